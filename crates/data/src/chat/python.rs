//! What templates expect of Python: its texts of values, and the functions that `transformers` adds.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};

fn error(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// The source of an error of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
pub(super) struct Refused;

pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(error(message).with_source(Refused))
}

/// A value's text in Python; `Ok(None)` where minijinja's text is the same. Lists and maps are refused.
fn text(value: &Value) -> Result<Option<&'static str>, Error> {
    match value.kind() {
        ValueKind::None => Ok(Some("None")),
        ValueKind::Bool => Ok(Some(if value.is_true() { "True" } else { "False" })),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => Err(error(format!(
            "it prints a {} as Python prints it, which is not supported; the filter `tojson` is",
            value.kind()
        ))),
        _ => Ok(None),
    }
}

/// Prints a value.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match text(value)? {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => escape_formatter(out, state, value),
    }
}

/// The filter `string`.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    Ok(match text(value)? {
        Some(text) => text.into(),
        None => value.to_string().into(),
    })
}

/// The test `sequence`: whether a value has a length and items. Texts and maps have them, too.
pub(super) fn is_sequence(value: &Value) -> bool {
    let kinds = [ValueKind::Seq, ValueKind::String, ValueKind::Map];
    value.is_undefined() || kinds.contains(&value.kind())
}

/// The test `iterable`: none is not, as in Python.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// How JSON is written: the arguments of Python's `json.dumps`.
struct Style {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

/// The filter `tojson` of `transformers`: Python's `json.dumps` with `ensure_ascii=False`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let flag = |name: &str| Ok::<_, Error>(options.get::<Option<bool>>(name)?.unwrap_or(false));
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(100)),
        }),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(error("tojson: `separators` are two texts")),
    };
    let style = Style {
        ascii: flag("ensure_ascii")?,
        sorted: flag("sort_keys")?,
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out.into())
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > 100 {
            return Err(error("tojson: the value is nested too deep"));
        }
        match value.kind() {
            ValueKind::None => *out += "null",
            ValueKind::Bool => *out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => *out += &number(value)?,
            ValueKind::String => self.quote(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(out, '[', ']', depth, &items, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut fields = Vec::new();
                for key in value.try_iter()? {
                    fields.push((self.key_of(&key)?, value.get_item(&key)?));
                }
                if self.sorted {
                    fields.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list(out, '{', '}', depth, &fields, |(key, item), out| {
                    self.quote(key, out);
                    *out += &self.key;
                    self.write(item, depth + 1, out)
                })?;
            }
            kind => return Err(error(format!("tojson: JSON has no {kind}"))),
        }
        Ok(())
    }

    fn list<T>(
        &self,
        out: &mut String,
        open: char,
        close: char,
        depth: usize,
        items: &[T],
        mut write: impl FnMut(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize| match &self.indent {
            Some(indent) => format!("\n{}", indent.repeat(depth)),
            None => String::new(),
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                *out += &self.item;
            }
            *out += &line(depth + 1);
            write(item, out)?;
        }
        if !items.is_empty() {
            *out += &line(depth);
        }
        out.push(close);
        Ok(())
    }

    fn key_of(&self, key: &Value) -> Result<String, Error> {
        match key.kind() {
            ValueKind::String => Ok(key.as_str().unwrap_or_default().into()),
            ValueKind::None => Ok("null".into()),
            ValueKind::Bool => Ok(key.to_string()),
            ValueKind::Number => number(key),
            kind => Err(error(format!("tojson: a key is a {kind}"))),
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => *out += "\\\"",
                '\\' => *out += "\\\\",
                '\n' => *out += "\\n",
                '\r' => *out += "\\r",
                '\t' => *out += "\\t",
                '\u{8}' => *out += "\\b",
                '\u{c}' => *out += "\\f",
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        *out += &format!("\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> Result<String, Error> {
    let text = value.to_string();
    match text.contains(|c: char| c.is_ascii_alphabetic()) {
        true => Err(error(format!(
            "tojson: the number {text} is written otherwise by Python"
        ))),
        false => Ok(text),
    }
}
