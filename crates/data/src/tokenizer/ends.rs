//! The token that ends a text, from the files beside a `tokenizer.json`.
//!
//! A document ends with the tokenizer's own end of text, as `tokenizer.eos_token_id` in `transformers`:
//!
//! 1. `eos_token` of `tokenizer_config.json`; that of `special_tokens_map.json` takes precedence if the former has no
//!    `added_tokens_decoder` (files from before transformers 4.34);
//! 2. if the tokenizer's files do not name it, the first of `eos_token_id` of `generation_config.json`, else of
//!    `config.json`.
//!
//! An answer ends with that token or any of `eos_token_id` of `generation_config.json`, else of `config.json`:
//! `transformers` generates until one of them.

use std::path::{Path, PathBuf};

use abkd_host::files;
use serde_json::{Map, Value};

use crate::Error;

/// Files that name the token that ends a text.
pub(super) const FILES: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
];

/// End of text according to the files of a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The tokenizer's end of text, and the file that names it.
    pub token: Option<(String, PathBuf)>,
    /// Ids that end an answer, in the file's order.
    pub ids: Vec<u32>,
}

impl Said {
    /// Reads the files of a folder; each may be missing.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let [config, map, generation, model] = FILES.map(|name| folder.join(name));
        let (config, config_path) = (fields(&config)?, config);
        let modern = config
            .as_ref()
            .is_some_and(|c| c.contains_key("added_tokens_decoder"));
        let mut token = None;
        if let Some(found) = &config {
            token = eos_token(found, &config_path)?.map(|t| (t, config_path));
        }
        if !modern
            && let Some(found) = fields(&map)?
            && let Some(other) = eos_token(&found, &map)?
        {
            token = Some((other, map));
        }
        let mut ids = Vec::new();
        for path in [generation, model] {
            if ids.is_empty()
                && let Some(found) = fields(&path)?
            {
                ids = eos_ids(&found, &path)?;
            }
        }
        Ok(Self { token, ids })
    }
}

/// The fields of a JSON file; `None` if the file is missing.
fn fields(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let bytes = match files::read(path, files::TEXT_LIMIT) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match serde_json::from_slice(text) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(refuse(path, "it is no JSON object")),
        Err(e) => Err(refuse(path, &format!("it is no JSON ({e})"))),
    }
}

fn refuse(path: &Path, what: &str) -> Error {
    let reason = format!(
        "{what}; this file names the token that ends a text: mend it, or move it out of the folder and give `--eos`"
    );
    Error::file(path, reason)
}

/// Text of the token; in an object it is `content`.
fn eos_token(fields: &Map<String, Value>, path: &Path) -> Result<Option<String>, Error> {
    match fields.get("eos_token") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(Value::Object(token)) => match token.get("content") {
            Some(Value::String(token)) => Ok(Some(token.clone())),
            _ => Err(refuse(
                path,
                "`eos_token` has no `content` that is a string",
            )),
        },
        Some(_) => Err(refuse(
            path,
            "`eos_token` is neither a string nor an object with `content`",
        )),
    }
}

/// The ids: the field is one id or a list of ids.
fn eos_ids(fields: &Map<String, Value>, path: &Path) -> Result<Vec<u32>, Error> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            refuse(
                path,
                "`eos_token_id` is neither the number of a token nor a list of such numbers",
            )
        })
    };
    match fields.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(files: &[(&str, &str)]) -> Result<(Option<String>, Vec<u32>), String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Said::read(dir.path())
            .map(|s| (s.token.map(|(token, _)| token), s.ids))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn who_says_it_wins_as_in_transformers() {
        const CONFIG: &str = "tokenizer_config.json";
        const MAP: &str = "special_tokens_map.json";
        const GENERATION: &str = "generation_config.json";
        const MODEL: &str = "config.json";
        let token = |text: &str| Some(text.to_owned());
        let none: &[u32] = &[];
        for (files, wanted) in [
            (&[][..], (None, none)),
            (&[(CONFIG, r#"{"eos_token": "a"}"#)], (token("a"), none)),
            (
                &[(
                    CONFIG,
                    r#"{"eos_token": {"content": "a", "lstrip": false}}"#,
                )],
                (token("a"), none),
            ),
            (
                &[
                    (CONFIG, r#"{"eos_token": "a"}"#),
                    (MAP, r#"{"eos_token": "b"}"#),
                ],
                (token("b"), none),
            ),
            (
                &[
                    (CONFIG, r#"{"eos_token": "a", "added_tokens_decoder": {}}"#),
                    (MAP, r#"{"eos_token": "b"}"#),
                ],
                (token("a"), none),
            ),
            (
                &[
                    (CONFIG, r#"{"eos_token": null}"#),
                    (MAP, r#"{"eos_token": {"content": "b"}}"#),
                ],
                (token("b"), none),
            ),
            (
                &[(CONFIG, r#"{"eos_token": "a"}"#), (MAP, "{}")],
                (token("a"), none),
            ),
            (&[(MODEL, r#"{"eos_token_id": 5}"#)], (None, &[5])),
            (&[(MODEL, r#"{"eos_token_id": [5, 6]}"#)], (None, &[5, 6])),
            (
                &[
                    (MODEL, r#"{"eos_token_id": 5}"#),
                    (GENERATION, r#"{"eos_token_id": [7, 5]}"#),
                ],
                (None, &[7, 5]),
            ),
            (
                &[
                    (MODEL, r#"{"eos_token_id": 5}"#),
                    (GENERATION, r#"{"eos_token_id": null}"#),
                ],
                (None, &[5]),
            ),
            (
                &[
                    (CONFIG, r#"{"eos_token": "a"}"#),
                    (MODEL, "\u{feff}{\"eos_token_id\": 5}"),
                ],
                (token("a"), &[5]),
            ),
        ] {
            assert_eq!(said(files), Ok((wanted.0, wanted.1.to_vec())), "{files:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_file_and_key() {
        for (name, text, what) in [
            ("config.json", r#"{"eos_token_id": -1}"#, "eos_token_id"),
            ("config.json", r#"{"eos_token_id": "</s>"}"#, "eos_token_id"),
            ("config.json", r#"{"eos_token_id": 1.5}"#, "eos_token_id"),
            (
                "config.json",
                r#"{"eos_token_id": [1, null]}"#,
                "eos_token_id",
            ),
            (
                "generation_config.json",
                r#"{"eos_token_id": 99999999999}"#,
                "eos_token_id",
            ),
            ("tokenizer_config.json", r#"{"eos_token": 2}"#, "eos_token"),
            (
                "tokenizer_config.json",
                r#"{"eos_token": {"text": "a"}}"#,
                "content",
            ),
            ("special_tokens_map.json", "[]", "no JSON object"),
            ("config.json", "{", "no JSON"),
        ] {
            let error = said(&[(name, text)]).unwrap_err();
            assert!(
                error.contains(name) && error.contains(what) && error.contains("--eos"),
                "{error}"
            );
        }
    }
}
