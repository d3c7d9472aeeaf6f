use std::fmt;
use std::path::Path;

use abkd_host::files;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use crate::columns::LINE;
use crate::{Columns, Error, Example, parquet};

/// Reads a JSONL file of examples. A line has `instruction`, `input` and `output`, or `prompt` and `completion`, or
/// `messages`. `input` may be missing or null; `output` and `completion` are a string or a list of strings. A UTF-8 byte
/// order mark is ignored, lines may end with CR LF, and blank lines are skipped.
///
/// A file whose name ends with `.parquet` is a Parquet file with these columns.
///
/// # Errors
///
/// The error names file and line: another format (UTF-16, a JSON array, CSV, a compressed file, a git-lfs pointer), invalid
/// JSON, a missing field, a duplicate field, a field of the wrong type, or no example at all. Of a Parquet file it names file
/// and row, or file and column.
pub fn read_jsonl(path: &Path) -> Result<Vec<Example>, Error> {
    read(path, &Columns::default(), false)
}

/// [`read_jsonl`] with other names of the columns.
///
/// # Errors
///
/// As [`read_jsonl`].
pub fn read_columns(path: &Path, columns: &Columns) -> Result<Vec<Example>, Error> {
    read(path, columns, false)
}

/// [`read_jsonl`] that refuses empty answers: such a document would train the model to end at once.
///
/// # Errors
///
/// As [`read_jsonl`], and where an output is empty.
pub fn read_answered(path: &Path) -> Result<Vec<Example>, Error> {
    read(path, &Columns::default(), true)
}

fn read(path: &Path, columns: &Columns, answered: bool) -> Result<Vec<Example>, Error> {
    if parquet::is_named_so(path) {
        return parquet::read(path, columns, answered);
    }
    let bytes = files::read(path, files::TEXT_LIMIT).map_err(Error::io(path))?;
    let refuse = |line: usize, what: String| Error::Line {
        path: path.into(),
        line,
        what,
    };
    if let Some(format) = other_format(&bytes) {
        return Err(refuse(1, format.into()));
    }
    let mut examples = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        // Concatenated files keep their byte order marks.
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let example = parse(line, columns).map_err(|what| refuse(index + 1, what))?;
        if answered && has_empty_answer(&example) {
            return Err(refuse(
                index + 1,
                format!("{EMPTY_ANSWER}; remove the line"),
            ));
        }
        examples.push(example);
    }
    if examples.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(examples)
}

pub(crate) const EMPTY_ANSWER: &str =
    "`output` is empty: the example has no answer, so there is nothing to learn from it";

pub(crate) fn has_empty_answer(example: &Example) -> bool {
    example
        .outputs
        .iter()
        .any(|answer| answer.trim().is_empty())
}

/// Detects another format than JSONL by the first bytes; the message names the format and the remedy.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    const BEGINS: [(&[u8], &str); 9] = [
        (
            b"\xff\xfe\0\0",
            "UTF-32, and UTF-8 is read; convert it with `iconv -f UTF-32 -t UTF-8`",
        ),
        (
            b"\xff\xfe",
            "UTF-16, and UTF-8 is read; convert it with `iconv -f UTF-16 -t UTF-8`",
        ),
        (
            b"\xfe\xff",
            "UTF-16, and UTF-8 is read; convert it with `iconv -f UTF-16 -t UTF-8`",
        ),
        (b"\x1f\x8b", "compressed with gzip; unpack it with `gunzip`"),
        (
            b"\x28\xb5\x2f\xfd",
            "compressed with zstd; unpack it with `unzstd`",
        ),
        (b"BZh", "compressed with bzip2; unpack it with `bunzip2`"),
        (b"\xfd7zXZ\0", "compressed with xz; unpack it with `unxz`"),
        (b"PK\x03\x04", "a zip archive; unpack it with `unzip`"),
        (
            b"PAR1",
            "a Parquet file; give it a name that ends with .parquet",
        ),
    ];
    let named = BEGINS.iter().find(|(begin, _)| bytes.starts_with(begin));
    if let Some((_, format)) = named {
        return Some(format);
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match text.trim_ascii_start() {
        // Every second byte of ASCII is 0 in UTF-16.
        [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..] => {
            Some("UTF-16, and UTF-8 is read; convert it with `iconv -f UTF-16LE -t UTF-8`")
        }
        [b'[', ..] => Some(
            "a JSON array, and JSONL has one object a line; convert it with `jq -c '.[]' FILE > FILE.jsonl`",
        ),
        [b'<', ..] => Some("a page in HTML or XML, a login's perhaps, not the file itself"),
        _ if !bytes.contains(&b'\n') && text.trim_ascii().contains(&b'\r') => {
            Some("its lines end with a carriage return alone; convert it with `tr '\\r' '\\n'`")
        }
        _ => None,
    }
}

/// The fields of an object in their order, duplicates included.
pub(crate) struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Fields {
    pub(crate) fn new(fields: Vec<(String, Value)>) -> Self {
        Self(fields)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<&Value>, String> {
        let mut found = self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v);
        let value = found.next();
        match found.next() {
            Some(_) => Err(format!("`{key}` is there twice; leave one of them")),
            None => Ok(value),
        }
    }

    pub(crate) fn need(&self, key: &str) -> Result<&Value, String> {
        self.get(key)?.ok_or_else(|| {
            let has = listed(self.0.iter().map(|(k, _)| k.as_str()), "no field");
            format!("missing field `{key}` (it has {has}); {LINE}")
        })
    }
}

/// The first few names, or `none` if there are none.
pub(crate) fn listed<'a>(names: impl Iterator<Item = &'a str>, none: &str) -> String {
    let names: Vec<String> = names.take(8).map(|k| format!("`{}`", begin(k))).collect();
    match names.is_empty() {
        true => none.into(),
        false => names.join(", "),
    }
}

/// The start of a key, with escapes: the file may hold any text.
fn begin(key: &str) -> String {
    key.chars().take(40).flat_map(char::escape_debug).collect()
}

fn parse(line: &[u8], columns: &Columns) -> Result<Example, String> {
    let text = std::str::from_utf8(line)
        .map_err(|e| format!("not UTF-8 ({e}); convert the file with `iconv -t UTF-8`"))?;
    match serde_json::from_str::<Fields>(text) {
        Ok(fields) => columns.example(&fields),
        Err(error) => Err(not_an_object(text, &error)),
    }
}

/// Message for a line that is not an object, by what the line looks like.
fn not_an_object(text: &str, error: &serde_json::Error) -> String {
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        return format!("expected an object, found {}; {LINE}", kind(&value));
    }
    let trimmed = text.trim();
    if trimmed.contains('\0') {
        return "it holds NUL bytes: the file is damaged, or its encoding is not UTF-8".into();
    }
    if trimmed.starts_with("{'") {
        return format!("not JSON: its quotes are Python's (`'`), and JSON has `\"`; {LINE}");
    }
    if !trimmed.starts_with(['{', '[', '"', '}', ']']) && trimmed.contains([',', '\t', ';']) {
        return format!("not JSON: it looks like a line of CSV; {LINE}");
    }
    if error.classify() == Category::Eof {
        return format!(
            "not JSON ({error}): the object does not end on its line; JSONL has each on one line, as `jq -c .` writes it"
        );
    }
    format!("not JSON ({error}); {LINE}")
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<Example>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, text).unwrap();
        read_jsonl(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn strings_and_lists_are_read() {
        let text = br#"{"instruction":"a","output":"b"}

{"instruction":"c","input":"d","output":["e","f"]}"#;
        let examples = read(text).unwrap();
        assert_eq!(
            examples[0],
            Example {
                instruction: "a".into(),
                input: String::new(),
                outputs: vec!["b".into()],
                messages: Vec::new(),
            }
        );
        assert_eq!(
            (examples[1].input.as_str(), examples[1].outputs.len()),
            ("d", 2)
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = b"{\"instruction\":\"a\",\"output\":\"b\"}\n";
        for (bad, what) in [
            (&b"{oops"[..], "not JSON"),
            (b"{\"output\":\"b\"}", "missing field `instruction`"),
            (b"{\"instruction\":\"a\"}", "missing field `output`"),
            (
                b"{\"instruction\":3,\"output\":\"b\"}",
                "expected a string, found a number",
            ),
            (b"{\"instruction\":\"a\",\"output\":[]}", "list is empty"),
            (b"{\"instruction\":\"a\",\"output\":[null]}", "found null"),
            (b"[1]", "expected an object, found a list"),
            (b"{\"output\":null,\"instruction\":\"a\"}", "found null"),
            (b"{\"output\":3,\"instruction\":\"a\"}", "found a number"),
            (b"{\"output\":{},\"instruction\":\"a\"}", "found an object"),
            (
                b"{\"output\":[[\"b\"]],\"instruction\":\"a\"}",
                "found a list",
            ),
            (
                b"{\"output\":\"b\",\"instruction\":\"a\",\"input\":0}",
                "`input`: expected a string, found a number",
            ),
            (
                b"{\"output\":\"b\",\"output\":\"c\",\"instruction\":\"a\"}",
                "`output` is there twice",
            ),
            (
                b"{\"question\":\"b\",\"answer\":\"c\"}",
                "it has `question`, `answer`",
            ),
            (b"{}", "it has no field"),
            (b"{\"output\":\"b\",\"instruction\":\"a\"} {}", "not JSON"),
            (b"\xff", "not UTF-8"),
        ] {
            let error = read(&[good, bad].concat()).unwrap_err();
            assert!(
                error.contains("x.jsonl:2: ") && error.contains(what),
                "{error}"
            );
        }
        assert!(read(b"\n").unwrap_err().contains("no example"));
    }

    #[test]
    fn what_is_harmless_is_read() {
        let plain = "{\"instruction\":\"a\",\"input\":\"\",\"output\":\"b\"}";
        let wanted = read(plain.as_bytes()).unwrap();
        for text in [
            format!("\u{feff}{plain}\n"),
            format!("\u{feff}\n{plain}"),
            format!("{plain}\r\n"),
            format!("  {plain}  \t\n \r\n\n"),
            plain.replace("\"input\":\"\"", "\"input\":null"),
            plain.replace("\"output\":\"b\"", "\"output\":[\"b\"],\"x\":1,\"x\":2"),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap(), wanted, "{text:?}");
        }
        let twice = format!("\u{feff}{plain}\n\u{feff}{plain}\n");
        assert_eq!(read(twice.as_bytes()).unwrap().len(), 2);
        // Strings are read unchanged.
        let text = br#"{"instruction":" 3 ","input":"null","output":"\u0000\ud83d\ude00"}"#;
        let example = &read(text).unwrap()[0];
        assert_eq!(
            (&*example.instruction, &*example.input, &*example.outputs[0]),
            (" 3 ", "null", "\0\u{1f600}")
        );
    }

    #[test]
    fn other_formats_are_named() {
        let wide = |big: bool| -> Vec<u8> {
            let units = "{\"instruction\":\"a\",\"output\":\"b\"}\n".encode_utf16();
            units
                .flat_map(|u| {
                    if big {
                        u.to_be_bytes()
                    } else {
                        u.to_le_bytes()
                    }
                })
                .collect()
        };
        for (bytes, what) in [
            ([b"\xff\xfe".to_vec(), wide(false)].concat(), "UTF-16"),
            ([b"\xfe\xff".to_vec(), wide(true)].concat(), "UTF-16"),
            (wide(false), "UTF-16"),
            (wide(true), "UTF-16"),
            (b"\xff\xfe\0\0{\0\0\0".to_vec(), "UTF-32"),
            (b"[\n {\n  \"instruction\": \"a\"".to_vec(), "a JSON array"),
            (b"\xef\xbb\xbf[{}]".to_vec(), "a JSON array"),
            (b"\x1f\x8b\x08\0".to_vec(), "gzip"),
            (b"\x28\xb5\x2f\xfd\0".to_vec(), "zstd"),
            (b"PAR1\x15\x04".to_vec(), "Parquet"),
            (b"PK\x03\x04\x14".to_vec(), "zip"),
            (b"<!DOCTYPE html>\n".to_vec(), "HTML"),
            (b"instruction,input,output\na,b,c\n".to_vec(), "CSV"),
            (b"instruction\toutput\na\tb\n".to_vec(), "CSV"),
            (b"{'instruction': 'a', 'output': 'b'}\n".to_vec(), "Python"),
            (
                b"{\n \"instruction\": \"a\",\n".to_vec(),
                "does not end on its line",
            ),
            (
                b"{\"instruction\":\"a\"}\r{\"instruction\":\"a\"}\r".to_vec(),
                "carriage return",
            ),
            (b"\0\0\0\0\0\0\n".to_vec(), "NUL"),
            (
                b"{\"instruction\":\"a\0\",\"output\":\"b\"}".to_vec(),
                "NUL",
            ),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(
                error.contains("x.jsonl:1: ") && error.contains(what),
                "{what}: {error}"
            );
        }
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n";
        let error = read(pointer).unwrap_err();
        assert!(
            error.contains("x.jsonl: ") && error.contains("git-lfs"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_answer_is_read_where_it_may_be_skipped_and_named_where_it_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        for empty in ["\"\"", "\" \\n\"", "[\"b\", \"\"]"] {
            let line = |output: &str| format!("{{\"instruction\":\"a\",\"output\":{output}}}\n");
            std::fs::write(&path, line("\"b\"") + "\n" + &line(empty)).unwrap();
            assert_eq!(read_jsonl(&path).unwrap().len(), 2);
            let error = read_answered(&path).unwrap_err().to_string();
            assert!(error.contains("x.jsonl:3: `output` is empty"), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_jsonl(dir.path()).unwrap_err().to_string();
        assert!(error.contains("folder"), "{error}");
        #[cfg(unix)]
        {
            let error = read_jsonl(Path::new("/dev/zero")).unwrap_err().to_string();
            assert!(error.contains("device"), "{error}");
        }
    }
}
