//! CSV fields with their locations, shared by all result files.

use std::path::Path;
use std::str::FromStr;

use abkd_host::files;
use anyhow::{Context, Result, anyhow, bail};
use csv::StringRecord;

use super::PARTIAL;

/// One field of a line to be written.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// Text as it is.
    Text(&'a str),
    /// A whole number.
    Whole(u64),
    /// A number, written with four decimals.
    Number(f64),
    /// A number that may be small, written with seven decimals.
    Fine(f64),
    /// An empty field: the value does not exist.
    Empty,
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Field<'_> {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Field<'_> {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl<'a, T: Into<Field<'a>>> From<Option<T>> for Field<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}

/// Writes a CSV file with an atomic write.
///
/// # Errors
/// Names the file, or the column and line of a number that is not finite.
pub fn write_lines<'a>(
    path: &Path,
    header: &[&str],
    lines: impl IntoIterator<Item = Vec<Field<'a>>>,
) -> Result<()> {
    let bytes = csv_bytes(header, lines).with_context(|| format!("write {}", path.display()))?;
    write_atomic(path, &bytes)
}

/// The bytes of a CSV file with LF line ends.
///
/// # Errors
/// A line of another length than the header; names the column and line of a number that is not finite.
pub fn csv_bytes<'a>(
    header: &[&str],
    lines: impl IntoIterator<Item = Vec<Field<'a>>>,
) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header)?;
    for (index, line) in lines.into_iter().enumerate() {
        for (column, field) in line.into_iter().enumerate() {
            let text = match field {
                Field::Text(text) => text.to_string(),
                Field::Whole(value) => value.to_string(),
                Field::Number(value) if value.is_finite() => format!("{value:.4}"),
                Field::Fine(value) if value.is_finite() => format!("{value:.7}"),
                Field::Number(value) | Field::Fine(value) => {
                    let key = header.get(column).unwrap_or(&"?");
                    bail!("line {}: {key} is {value}", index + 2)
                }
                Field::Empty => String::new(),
            };
            writer.write_field(text)?;
        }
        writer.write_record(None::<&[u8]>)?;
    }
    Ok(writer.into_inner().map_err(|error| error.into_error())?)
}

/// Atomic write, in a folder that is created if missing. Partial results are written after each task without fsync: after
/// a power loss they are written again from the tasks.
///
/// # Errors
/// Names the file.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = files::folder_of(path);
    let write = if folder.ends_with(PARTIAL) {
        files::replace
    } else {
        files::write
    };
    files::create_folder(&folder)
        .and_then(|()| write(path, bytes))
        .with_context(|| format!("write {}", path.display()))
}

/// A CSV file as text fields with their locations.
pub struct Sheet {
    file: String,
    /// The header.
    pub columns: Vec<String>,
    records: Vec<StringRecord>,
}

impl Sheet {
    /// Reads a file whose header is one of `accepted`.
    ///
    /// # Errors
    /// Names the file and the line.
    pub fn open(path: &Path, accepted: &[&[&str]]) -> Result<Self> {
        let file = path.display().to_string();
        let context = || format!("read {file}");
        let text = files::read_text(path).with_context(context)?;
        // The reader skips blank lines, and every line number after them would be wrong.
        if let Some(line) = text.lines().position(|line| line.trim().is_empty()) {
            bail!("{file}:{}:1: blank line", line + 1);
        }
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().with_context(context)?;
        let columns: Vec<String> = header.iter().map(str::to_string).collect();
        if !accepted.iter().any(|header| columns == *header) {
            let headers: Vec<String> = accepted.iter().map(|header| header.join(",")).collect();
            bail!(
                "{file}:1:1: wrong header `{}`, expected `{}`",
                columns.join(","),
                headers.join("` or `")
            );
        }
        let records = reader
            .records()
            .collect::<Result<_, _>>()
            .with_context(context)?;
        Ok(Self {
            file,
            columns,
            records,
        })
    }

    /// How many lines follow the header.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    fn get(&self, line: usize, column: usize) -> Option<&str> {
        self.records[line]
            .get(column)
            .filter(|text| !text.is_empty())
    }

    /// `file:line:column` of a field; the column counts characters. Exact while no field is quoted.
    pub fn place(&self, line: usize, column: usize) -> String {
        let before: usize = self.records[line]
            .iter()
            .take(column)
            .map(|field| field.chars().count() + 1)
            .sum();
        format!("{}:{}:{}", self.file, line + 2, before + 1)
    }

    /// A field that must not be empty.
    ///
    /// # Errors
    /// Names the place and the column.
    pub fn text(&self, line: usize, column: usize) -> Result<&str> {
        self.get(line, column).ok_or_else(|| {
            anyhow!(
                "{}: {} is empty",
                self.place(line, column),
                self.columns[column]
            )
        })
    }

    /// A whole number.
    ///
    /// # Errors
    /// Names the place, the column and the text.
    pub fn whole<T: FromStr>(&self, line: usize, column: usize) -> Result<T> {
        let text = self.text(line, column)?;
        text.parse()
            .map_err(|_| self.wrong(line, column, "a whole number", text))
    }

    /// A finite number.
    ///
    /// # Errors
    /// Names the place, the column and the text.
    pub fn number(&self, line: usize, column: usize) -> Result<f64> {
        let text = self.text(line, column)?;
        text.parse()
            .ok()
            .filter(|value: &f64| value.is_finite())
            .ok_or_else(|| self.wrong(line, column, "a number", text))
    }

    /// A field that may be empty, or whose column the file does not have.
    ///
    /// # Errors
    /// As `read`.
    pub fn optional<T>(
        &self,
        line: usize,
        column: usize,
        read: impl Fn(&Self, usize, usize) -> Result<T>,
    ) -> Result<Option<T>> {
        self.get(line, column)
            .map(|_| read(self, line, column))
            .transpose()
    }

    fn wrong(&self, line: usize, column: usize, kind: &str, text: &str) -> anyhow::Error {
        let key = &self.columns[column];
        anyhow!(
            "{}: {key} must be {kind}, got `{text}`",
            self.place(line, column)
        )
    }
}
