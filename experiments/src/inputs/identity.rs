//! Identity of inputs: hashes over the content of all files that a task reads.

mod remembered;

use std::path::{Path, PathBuf};

use abkd_data::{Example, PromptTemplate};
use abkd_host::files;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::spec::ModelSpec;

/// Files of a checkpoint folder, besides the weights, that affect the model's computation or its end-of-sequence token.
const DESCRIPTIONS: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
];

/// Identity of a base model, for the ids of the tasks that start from it.
///
/// # Errors
///
/// A configuration that is not valid, a file that cannot be read.
pub fn identity(root: &Path, model: &ModelSpec, teacher: &ModelSpec) -> Result<Value> {
    if let Some(config) = model.fresh()? {
        return Ok(json!({ "config": config, "seed": model.seed }));
    }
    if let Some(layers) = &model.layers {
        return Ok(json!({ "layers": layers, "of": identity(root, teacher, teacher)? }));
    }
    let dir = model
        .checkpoint
        .as_ref()
        .context("a model without a source")?;
    let mut identity = json!({ "checkpoint": hash_checkpoint(&root.join(dir))? });
    if let Some(tokens) = model.vocabulary {
        identity["vocabulary"] = tokens.into();
    }
    Ok(identity)
}

/// Hash of a checkpoint folder's descriptions and weights, with file names; `absent` if there is no checkpoint yet.
pub fn hash_checkpoint(dir: &Path) -> Result<String> {
    if !dir.join("config.json").exists() {
        return Ok("absent".into());
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|e| e == "safetensors")
                || DESCRIPTIONS.iter().any(|name| path.ends_with(name))
        })
        .collect();
    found.sort();
    hash_files(&found)
}

/// Hash of the names and contents of files.
///
/// # Errors
///
/// Names the file that cannot be read.
pub fn hash_files(paths: &[PathBuf]) -> Result<String> {
    let mut all = String::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hash = remembered::sha256(path).with_context(|| path.display().to_string())?;
        all += &format!("{name} {hash}\n");
    }
    Ok(short(&files::sha256(all.as_bytes())))
}

/// Hash of a pair of indexed token files.
///
/// # Errors
///
/// Names the file that cannot be read.
pub fn hash_tokens(prefix: &Path) -> Result<String> {
    hash_files(&["bin", "idx"].map(|suffix| prefix.with_added_extension(suffix)))
}

/// Hash of examples: every text with its length, every example with its number of texts.
pub fn hash_examples(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for e in examples {
        hasher.update((e.outputs.len() as u64).to_le_bytes());
        for text in [&e.instruction, &e.input].into_iter().chain(&e.outputs) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    short(&files::hex(&hasher.finalize()))
}

/// Hash of examples and of the prompt template. With a chat template, it covers the template itself, the examples' texts and
/// the messages that the template renders. The paper's template is constant and uses only the texts, so their hash suffices.
pub fn hash_asked(template: &PromptTemplate, examples: &[Example]) -> String {
    let PromptTemplate::Chat(chat) = template else {
        return hash_examples(examples);
    };
    let mut hasher = Sha256::new();
    let mut text = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    text(&chat.hash());
    text(&hash_examples(examples));
    for e in examples {
        let messages = e.asked();
        text(&messages.len().to_string());
        for message in &messages {
            text(message.role.name());
            text(&message.content);
        }
    }
    short(&files::hex(&hasher.finalize()))
}

/// Hash of a JSON value, short enough for a folder's name.
pub fn hash_json(value: &Value) -> String {
    files::sha256(value.to_string().as_bytes())[..10].to_owned()
}

/// The first digits of a hash, enough for an identity.
pub fn short(hex: &str) -> String {
    hex.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_checkpoint_and_every_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let hash = || hash_checkpoint(dir.path()).unwrap();
        assert_eq!(hash(), "absent");
        write("config.json", "{}");
        let mut seen = vec![hash()];
        let mut changes = |change: &dyn Fn()| {
            change();
            let now = hash();
            assert!(!seen.contains(&now));
            seen.push(now);
        };
        changes(&|| write("a.safetensors", "one"));
        changes(&|| write("b.safetensors", "two"));
        // the same bytes under each other's name
        changes(&|| {
            write("a.safetensors", "two");
            write("b.safetensors", "one");
        });
        changes(&|| write("generation_config.json", "{}"));
        changes(&|| write("generation_config.json", "[]"));
        changes(&|| write("config.json", "[]"));
        let before = hash();
        write("README.md", "what nobody reads");
        assert_eq!(hash(), before);
    }

    #[test]
    fn examples_are_told_apart_by_where_they_end() {
        let example = |instruction: &str, input: &str, outputs: &[&str]| Example {
            instruction: instruction.into(),
            input: input.into(),
            outputs: outputs.iter().map(|o| (*o).to_owned()).collect(),
            messages: Vec::new(),
        };
        let one = [example("a", "b", &["c", "d", "e", "f"])];
        let two = [example("a", "b", &["c"]), example("d", "e", &["f"])];
        assert_ne!(hash_examples(&one), hash_examples(&two));
    }
}
