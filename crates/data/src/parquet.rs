//! Parquet files of examples, read a few rows at a time.
//!
//! The library trusts sizes that a file declares. They are checked here before it allocates by them: a page's unpacked size,
//! the number of values in a page and in a column.

mod pages;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use ::parquet::schema::types::{SchemaDescriptor, Type};
use abkd_host::files;
use serde_json::{Value, json};

use self::pages::{Pages, Source};
use crate::jsonl::{EMPTY_ANSWER, Fields, has_empty_answer, listed};
use crate::{Columns, Error, Example};

/// The first and last bytes of a file.
const MAGIC: &[u8] = b"PAR1";
/// The same where the footer is encrypted.
const ENCRYPTED: &[u8] = b"PARE";
/// Rows read at a time.
const ROWS: usize = 256;
/// What to do with a damaged file.
const REMEDY: &str = "fetch or write the file again";

/// Whether the name of a file says that it is a Parquet file.
pub(crate) fn is_named_so(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| suffix.eq_ignore_ascii_case("parquet"))
}

/// Reads a file of examples; `answered` refuses empty answers.
///
/// # Errors
///
/// The error names the file, and column or row: another format, a damaged file, a compression that is not read, a column that
/// is missing or of the wrong type, a row that is no example, or no row at all.
pub(crate) fn read(path: &Path, columns: &Columns, answered: bool) -> Result<Vec<Example>, Error> {
    let mut file = files::open(path).map_err(Error::io(path))?;
    let fail = |reason: String| Error::file(path, reason);
    let length = file.metadata().map_err(Error::io(path))?.len();
    let (begin, end) = both_ends(&mut file, length).map_err(Error::io(path))?;
    files::refuse_pointer(&begin).map_err(Error::io(path))?;
    format(&begin, &end, length).map_err(fail)?;
    // Some damaged files make the library panic.
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let metadata = ParquetMetaDataReader::new()
            .parse_and_finish(&file)
            .map_err(|e| fail(format!("its footer is damaged ({e}); {REMEDY}")))?;
        let table = Table::new(&metadata, columns).map_err(fail)?;
        table.examples(path, Source::new(file), answered)
    }));
    read.unwrap_or_else(|_| {
        Err(fail(format!(
            "the Parquet library panicked on it, so it is damaged; {REMEDY}"
        )))
    })
}

/// The first 64 and the last 4 bytes of a file.
fn both_ends(file: &mut File, length: u64) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut begin, mut end) = (Vec::new(), Vec::new());
    file.by_ref().take(64).read_to_end(&mut begin)?;
    file.seek(SeekFrom::Start(length.saturating_sub(4)))?;
    file.by_ref().take(4).read_to_end(&mut end)?;
    Ok((begin, end))
}

/// Refuses a file by its first and last bytes and its length.
fn format(begin: &[u8], end: &[u8], length: u64) -> Result<(), String> {
    if begin.starts_with(ENCRYPTED) || end == ENCRYPTED {
        return Err("an encrypted Parquet file, and only plain ones are read".into());
    }
    if !begin.starts_with(MAGIC) {
        return Err(
            "not a Parquet file: it does not begin with PAR1; give JSON lines a name that ends with .jsonl".into(),
        );
    }
    if end != MAGIC || length < 12 {
        return Err(format!(
            "a truncated Parquet file: it does not end with PAR1; {REMEDY}"
        ));
    }
    if length > files::TEXT_LIMIT {
        return Err(too_large());
    }
    Ok(())
}

fn too_large() -> String {
    format!(
        "more than {} bytes, which is more than is read; split the file",
        files::TEXT_LIMIT
    )
}

/// A column of text in the file, or the text inside a column of lists.
struct Leaf {
    /// Its number.
    index: usize,
    /// Definition level from which on a list has an element; `None` for a column without lists.
    repeated: Option<i16>,
}

/// Where the values of a column lie.
enum Place {
    Text(Leaf),
    Messages { role: Leaf, content: Leaf },
}

/// A column that is read.
struct Column<'a> {
    name: &'a str,
    place: Place,
}

/// The columns that hold the examples of a file.
struct Table<'a> {
    metadata: &'a ParquetMetaData,
    names: &'a Columns,
    columns: Vec<Column<'a>>,
}

impl<'a> Table<'a> {
    fn new(metadata: &'a ParquetMetaData, names: &'a Columns) -> Result<Self, String> {
        let schema = metadata.file_metadata().schema_descr();
        let fields = schema.root_schema().get_fields();
        let there: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        let mut columns: Vec<Column> = Vec::new();
        for (key, name) in names.of_table(&there)? {
            let mut found = fields.iter().filter(|field| field.name() == name);
            let (first, second) = (found.next(), found.next());
            let field = first.ok_or_else(|| format!("no column `{name}`"))?;
            if second.is_some() {
                return Err(format!("column `{name}` is there twice; leave one of them"));
            }
            let known = columns.iter().any(|column| column.name == name);
            // An input that is null in all rows may have no type.
            if known || key == "input" && is_nothing(field) {
                continue;
            }
            let place = place(schema, field, key).ok_or_else(|| {
                let belongs = match key {
                    "messages" => "a list of structs with the strings `role` and `content`",
                    "output" | "completion" => "a string or a list of strings",
                    _ => "a string",
                };
                let groups = match metadata.num_row_groups() {
                    1 => "the only row group".into(),
                    all => format!("each of {all} row groups"),
                };
                format!(
                    "column `{name}`: {} in {groups}, and {belongs} belongs there; convert the column, or name another with `columns`",
                    kind(field)
                )
            })?;
            columns.push(Column { name, place });
        }
        Ok(Self {
            metadata,
            names,
            columns,
        })
    }

    fn examples(&self, path: &Path, source: Source, answered: bool) -> Result<Vec<Example>, Error> {
        let source = Arc::new(source);
        let fail = |reason: String| Error::file(path, reason);
        let (mut examples, mut bytes) = (Vec::new(), 0);
        for (number, group) in self.metadata.row_groups().iter().enumerate() {
            let before = examples.len();
            let broken = |column: &Column, what: String| {
                let group = number + 1;
                fail(format!(
                    "column `{}`, row group {group}: {what}",
                    column.name
                ))
            };
            let mut readers = Vec::new();
            for column in &self.columns {
                let opened = Reader::open(&column.place, &source, group);
                readers.push(opened.map_err(|what| broken(column, what))?);
            }
            loop {
                let mut batch = Vec::new();
                for (column, reader) in self.columns.iter().zip(&mut readers) {
                    let values = reader.next().map_err(|what| broken(column, what))?;
                    batch.push(values.into_iter());
                }
                let rows = batch.iter().map(|values| values.len()).min().unwrap_or(0);
                if let Some(at) = batch.iter().position(|values| values.len() != rows) {
                    let what = format!("it has more rows than another; {REMEDY}");
                    return Err(broken(&self.columns[at], what));
                }
                if rows == 0 {
                    break;
                }
                for _ in 0..rows {
                    let names = self.columns.iter().map(|column| column.name.to_owned());
                    let values = batch.iter_mut().filter_map(Iterator::next);
                    let example = self
                        .names
                        .example(&Fields::new(names.zip(values).collect()));
                    let refuse = |what| Error::Row {
                        path: path.into(),
                        row: examples.len() + 1,
                        what,
                    };
                    let example = example.map_err(refuse)?;
                    if answered && has_empty_answer(&example) {
                        return Err(refuse(format!("{EMPTY_ANSWER}; remove the row")));
                    }
                    bytes += size(&example);
                    examples.push(example);
                }
                // A few bytes of a dictionary may stand for any amount of text.
                if bytes > files::TEXT_LIMIT {
                    return Err(fail(too_large()));
                }
            }
            let (found, declared) = (examples.len() - before, group.num_rows());
            if found as i64 != declared {
                let group = number + 1;
                return Err(fail(format!(
                    "row group {group}: {found} rows, and its footer declares {declared}; {REMEDY}"
                )));
            }
        }
        match examples.is_empty() {
            true => Err(fail("it has no row, so there is no example".into())),
            false => Ok(examples),
        }
    }
}

/// Bytes of an example's text.
fn size(example: &Example) -> u64 {
    let outputs: usize = example.outputs.iter().map(String::len).sum();
    (example.instruction.len() + example.input.len() + outputs) as u64
}

fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    field.is_primitive()
        && field.get_physical_type() == Physical::BYTE_ARRAY
        && (info.converted_type() == ConvertedType::UTF8
            || info.logical_type_ref() == Some(&LogicalType::String))
}

/// Whether a column has no type: its values are null.
fn is_nothing(field: &Type) -> bool {
    field.get_basic_info().logical_type_ref() == Some(&LogicalType::Unknown)
}

/// The element of a list and its path: below two levels, as the format's specification says, or below one, as older files have
/// it.
fn element(field: &Type) -> Option<(&Type, Vec<&str>)> {
    let info = field.get_basic_info();
    let list = info.converted_type() == ConvertedType::LIST
        || info.logical_type_ref() == Some(&LogicalType::List);
    if !list || !field.is_group() {
        return None;
    }
    let [repeated] = field.get_fields() else {
        return None;
    };
    if repeated.get_basic_info().repetition() != Repetition::REPEATED {
        return None;
    }
    let path = vec![field.name(), repeated.name()];
    let named_element = repeated.name() == "array" || repeated.name().ends_with("_tuple");
    if repeated.is_group()
        && !named_element
        && let [inner] = repeated.get_fields()
    {
        return Some((inner, [path, vec![inner.name()]].concat()));
    }
    Some((repeated, path))
}

/// The type of a column in words.
fn kind(field: &Type) -> String {
    if is_text(field) {
        return "a string".into();
    }
    if field.is_primitive() {
        return match field.get_physical_type() {
            Physical::BYTE_ARRAY => "bytes that are not marked as text (BYTE_ARRAY)".into(),
            other => other.to_string(),
        };
    }
    if let Some((inner, _)) = element(field) {
        return format!("a list of ({})", kind(inner));
    }
    let fields = field.get_fields().iter().map(|field| field.name());
    format!("a struct of {}", listed(fields, "nothing"))
}

/// Where the values of a column lie; `None` where its type is wrong.
fn place(schema: &SchemaDescriptor, field: &Type, key: &str) -> Option<Place> {
    let leaf = |path: &[&str], list: bool| {
        let same = |parts: &[String]| parts.iter().map(String::as_str).eq(path.iter().copied());
        let index = schema
            .columns()
            .iter()
            .position(|column| same(column.path().parts()))?;
        let levels = schema.column(index).max_rep_level();
        (levels == i16::from(list)).then(|| Leaf {
            index,
            repeated: list.then(|| i16::from(field.is_optional()) + 1),
        })
    };
    match (key, element(field)) {
        ("messages", Some((inner, path))) if inner.is_group() && element(inner).is_none() => {
            let part = |name: &str| {
                let mut fields = inner.get_fields().iter();
                fields.find(|part| part.name() == name && is_text(part))?;
                leaf(&[&path[..], &[name]].concat(), true)
            };
            let (role, content) = (part("role")?, part("content")?);
            Some(Place::Messages { role, content })
        }
        ("output" | "completion", Some((inner, path))) if is_text(inner) => {
            leaf(&path, true).map(Place::Text)
        }
        ("messages", _) => None,
        _ if is_text(field) => leaf(&[field.name()], false).map(Place::Text),
        _ => None,
    }
}

/// Reads a column of a row group.
enum Reader {
    Text(Box<LeafReader>),
    Messages {
        role: Box<LeafReader>,
        content: Box<LeafReader>,
    },
}

impl Reader {
    fn open(place: &Place, source: &Arc<Source>, group: &RowGroupMetaData) -> Result<Self, String> {
        let open = |leaf: &Leaf| LeafReader::open(leaf, source, group).map(Box::new);
        Ok(match place {
            Place::Text(leaf) => Self::Text(open(leaf)?),
            Place::Messages { role, content } => Self::Messages {
                role: open(role)?,
                content: open(content)?,
            },
        })
    }

    /// The values of the next rows; none at the end.
    fn next(&mut self) -> Result<Vec<Value>, String> {
        match self {
            Self::Text(reader) => reader.next(),
            Self::Messages { role, content } => {
                let (roles, contents) = (role.next()?, content.next()?);
                let apart = || format!("`role` and `content` are not of one length; {REMEDY}");
                if roles.len() != contents.len() {
                    return Err(apart());
                }
                let rows = roles.into_iter().zip(contents);
                rows.map(|(roles, contents)| messages(roles, contents).ok_or_else(apart))
                    .collect()
            }
        }
    }
}

/// A conversation; `None` where its parts are not of one length.
fn messages(roles: Value, contents: Value) -> Option<Value> {
    match (roles, contents) {
        (Value::Null, Value::Null) => Some(Value::Null),
        (Value::Array(roles), Value::Array(contents)) if roles.len() == contents.len() => {
            let both = roles.into_iter().zip(contents);
            let message = |(role, content)| json!({ "role": role, "content": content });
            Some(both.map(message).collect())
        }
        _ => None,
    }
}

struct LeafReader {
    reader: ColumnReaderImpl<ByteArrayType>,
    /// Definition level of a text that is not null.
    whole: i16,
    repeated: Option<i16>,
}

impl LeafReader {
    fn open(leaf: &Leaf, source: &Arc<Source>, group: &RowGroupMetaData) -> Result<Self, String> {
        let chunk = group.column(leaf.index);
        let known = matches!(
            chunk.compression(),
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_)
        );
        if !known {
            return Err(format!(
                "compressed with {}, and snappy, zstd and none are read; write the file again (pandas: `to_parquet(..., compression=\"snappy\")`)",
                chunk.compression()
            ));
        }
        let described = chunk.column_descr_ptr();
        let whole = described.max_def_level();
        let pages = Pages::open(source, chunk, group.num_rows())?;
        Ok(Self {
            reader: ColumnReaderImpl::new(described, Box::new(pages)),
            whole,
            repeated: leaf.repeated,
        })
    }

    /// The values of the next rows: texts, lists of texts, or null; none at the end.
    fn next(&mut self) -> Result<Vec<Value>, String> {
        let (mut defined, mut repeated) = (Vec::new(), Vec::new());
        let mut texts: Vec<ByteArray> = Vec::new();
        let (_, _, levels) = self
            .reader
            .read_records(ROWS, Some(&mut defined), Some(&mut repeated), &mut texts)
            .map_err(|e| format!("damaged ({e}); {REMEDY}"))?;
        let short = || format!("damaged: it has fewer texts than it declares; {REMEDY}");
        let mut texts = texts.iter();
        let mut rows: Vec<Value> = Vec::new();
        for at in 0..levels {
            let level = match self.whole {
                0 => 0,
                _ => *defined.get(at).ok_or_else(short)?,
            };
            let value = if level == self.whole {
                let text = texts.next().ok_or_else(short)?;
                let text = text
                    .as_utf8()
                    .map_err(|_| format!("a text is not UTF-8; {REMEDY}"))?;
                Value::String(text.into())
            } else {
                Value::Null
            };
            let Some(element) = self.repeated else {
                rows.push(value);
                continue;
            };
            if *repeated.get(at).ok_or_else(short)? == 0 {
                rows.push(match level {
                    _ if level >= element => vec![value].into(),
                    _ if level + 1 == element => Value::Array(Vec::new()),
                    _ => Value::Null,
                });
            } else {
                let Some(Value::Array(list)) = rows.last_mut() else {
                    return Err(format!("damaged: a list has no beginning; {REMEDY}"));
                };
                list.push(value);
            }
        }
        Ok(rows)
    }
}
