use std::path::Path;

use serde_json::Value;

use crate::{Error, Example};

/// Reads a JSONL file of `{"instruction", "input", "output"}`; `input` may be missing, `output` is a
/// string or a list of strings.
///
/// # Errors
///
/// Names file and line: not JSON, a field missing or of the wrong type, no example at all.
pub fn read_jsonl(path: &Path) -> Result<Vec<Example>, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.into(),
        source,
    })?;
    let mut examples = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let example = parse(line).map_err(|what| Error::Line {
            path: path.into(),
            line: index + 1,
            what,
        })?;
        examples.push(example);
    }
    if examples.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(examples)
}

fn parse(line: &[u8]) -> Result<Example, String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8 ({e})"))?;
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON ({e})"))?;
    let Value::Object(fields) = value else {
        return Err(format!("expected an object, found {}", kind(&value)));
    };
    let text = |key: &str, value: &Value| match value {
        Value::String(s) => Ok(s.clone()),
        other => Err(format!("`{key}`: expected a string, found {}", kind(other))),
    };
    let field = |key: &str| {
        fields
            .get(key)
            .ok_or_else(|| format!("missing field `{key}`"))
    };
    let outputs = match field("output")? {
        Value::Array(items) => items
            .iter()
            .map(|v| text("output", v))
            .collect::<Result<_, _>>()?,
        value => vec![text("output", value)?],
    };
    if outputs.is_empty() {
        return Err("`output`: the list is empty, at least one reference is needed".into());
    }
    Ok(Example {
        instruction: text("instruction", field("instruction")?)?,
        input: fields
            .get("input")
            .map_or(Ok(String::new()), |v| text("input", v))?,
        outputs,
    })
}

fn kind(value: &Value) -> &'static str {
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
                outputs: vec!["b".into()]
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
}
