//! The files beside a student's weights that make its folder a complete Hugging Face folder: tokenizer, tokenizer
//! configuration and generation configuration.

use std::path::Path;

use abkd_data::Tokenizer;
use abkd_host::files;
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Files copied if they lie beside the tokenizer.
const COPIED: [&str; 3] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// A file's name and content.
pub type File = (&'static str, Vec<u8>);

/// The files. `path` is the tokenizer's, `None` for the embedded one; `described` is the teacher's folder, whose
/// `generation_config.json` is copied if it has the tokenizer's EOS token; `positions` is the maximum sequence length.
///
/// # Errors
///
/// A file that cannot be read.
pub fn files(
    tokenizer: &Tokenizer,
    path: Option<&Path>,
    described: Option<&Path>,
    positions: usize,
) -> Result<Vec<File>> {
    let read = |path: &Path| {
        files::read(path, files::TEXT_LIMIT).with_context(|| path.display().to_string())
    };
    let json = match path {
        Some(path) => read(path)?,
        None => {
            let dir = tempfile::tempdir()?;
            let path = dir.path().join("tokenizer.json");
            tokenizer.save(&path)?;
            read(&path)?
        }
    };
    let end = token_of(&json, tokenizer.eos());
    let mut all = Vec::new();
    for name in COPIED {
        let beside = path.map(|path| path.with_file_name(name));
        if let Some(beside) = beside.filter(|path| path.exists()) {
            all.push((name, read(&beside)?));
        }
    }
    if !all.iter().any(|(name, _)| *name == COPIED[0]) {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": positions,
            "clean_up_tokenization_spaces": false,
        });
        if let Some(end) = end {
            config["eos_token"] = json!(end);
            config["pad_token"] = json!(end);
        }
        all.push((COPIED[0], pretty(&config)?));
    }
    all.push(("tokenizer.json", json));
    let name = "generation_config.json";
    let own = described.map(|dir| dir.join(name)).filter(|p| p.exists());
    let own = own.map(|path| read(&path)).transpose()?;
    all.push((
        name,
        match own.filter(|bytes| ends_with(bytes, tokenizer.eos())) {
            Some(bytes) => bytes,
            None => pretty(&json!({
                "eos_token_id": tokenizer.eos(),
                "pad_token_id": tokenizer.eos(),
            }))?,
        },
    ));
    Ok(all)
}

/// Whether a token is an EOS token of a `generation_config.json`.
fn ends_with(bytes: &[u8], token: u32) -> bool {
    let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match &json["eos_token_id"] {
        Value::Array(all) => all.iter().any(|id| id.as_u64() == Some(token.into())),
        id => id.as_u64() == Some(token.into()),
    }
}

/// The text of a token in a `tokenizer.json`: among the added tokens, else in the vocabulary.
fn token_of(json: &[u8], id: u32) -> Option<String> {
    let json: Value = serde_json::from_slice(json).ok()?;
    let is = |value: &Value| value.as_u64() == Some(id.into());
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let mut added = added.filter(|token| is(&token["id"]));
    if let Some(token) = added.next() {
        return Some(token["content"].as_str()?.to_owned());
    }
    match &json["model"]["vocab"] {
        Value::Object(vocab) => Some(vocab.iter().find(|(_, value)| is(value))?.0.clone()),
        // Unigram: a list of [token, score]
        Value::Array(vocab) => Some(vocab.get(id as usize)?[0].as_str()?.to_owned()),
        _ => None,
    }
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    Ok((serde_json::to_string_pretty(value)? + "\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(files: &'a [File], name: &str) -> &'a [u8] {
        &files.iter().find(|(n, _)| *n == name).unwrap().1
    }

    #[test]
    fn the_embedded_tokenizer_is_written_with_its_end() {
        let tokenizer = Tokenizer::embedded();
        let files = files(&tokenizer, None, None, 192).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, find(&files, "tokenizer.json")).unwrap();
        let again = Tokenizer::from_file(&path, None).unwrap();
        assert_eq!(again.hash(), tokenizer.hash());
        let config: Value = serde_json::from_slice(find(&files, "tokenizer_config.json")).unwrap();
        assert_eq!(config["eos_token"], "<|endoftext|>");
        assert_eq!(config["model_max_length"], 192);
        let generation: Value =
            serde_json::from_slice(find(&files, "generation_config.json")).unwrap();
        assert_eq!(generation["eos_token_id"], tokenizer.eos());
    }

    #[test]
    fn what_lies_beside_a_tokenizer_is_taken_over_and_another_end_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        Tokenizer::embedded().save(&path).unwrap();
        let tokenizer = Tokenizer::from_file(&path, Some(0)).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("tokenizer_config.json", r#"{"mine": 1}"#);
        write(
            "generation_config.json",
            r#"{"eos_token_id": [3, 0], "top_k": 5}"#,
        );
        let taken = files(&tokenizer, Some(&path), Some(dir.path()), 9).unwrap();
        assert_eq!(find(&taken, "tokenizer_config.json"), br#"{"mine": 1}"#);
        assert_eq!(
            find(&taken, "tokenizer.json"),
            std::fs::read(&path).unwrap()
        );
        assert!(find(&taken, "generation_config.json").ends_with(br#""top_k": 5}"#));
        write("generation_config.json", r#"{"eos_token_id": 3}"#);
        let made = files(&tokenizer, Some(&path), Some(dir.path()), 9).unwrap();
        let json: Value = serde_json::from_slice(find(&made, "generation_config.json")).unwrap();
        assert_eq!(json["eos_token_id"], 0);
    }

    #[test]
    fn a_token_is_found_wherever_its_tokenizer_keeps_it() {
        let of = |json: &str, id| token_of(json.as_bytes(), id);
        let words = r#"{"added_tokens":[{"id":7,"content":"<end>"}],"model":{"vocab":{"a":3}}}"#;
        assert_eq!(of(words, 7).as_deref(), Some("<end>"));
        assert_eq!(of(words, 3).as_deref(), Some("a"));
        assert_eq!(of(words, 4), None);
        let pieces = r#"{"added_tokens":[],"model":{"vocab":[["x",-1.0],["</s>",0.0]]}}"#;
        assert_eq!(of(pieces, 1).as_deref(), Some("</s>"));
    }
}
