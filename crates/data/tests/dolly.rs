//! Token counts of the published Dolly data with GPT-2's tokenizer.

use std::path::{Path, PathBuf};

use abkd_data::{Limits, PromptTemplate, Tokenizer, encode_training, indexed, prompt, read_jsonl};

/// The folder that checkouts share: `ABKD_SHARED`, else `shared` beside this checkout.
fn shared() -> PathBuf {
    std::env::var_os("ABKD_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    )
}

#[test]
fn dolly_has_the_published_token_counts() {
    let shared = shared();
    let path = shared.join("tokenizers/gpt2/tokenizer.json");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let tokenizer = Tokenizer::from_file(&path, None).unwrap();
    let limits = Limits {
        max_prompt_length: 256,
        max_length: usize::MAX,
    };
    let count = |file: &str| {
        let examples = read_jsonl(&shared.join("data/dolly").join(file)).unwrap();
        let encoded =
            encode_training(&examples, &tokenizer, &PromptTemplate::Paper, &limits).unwrap();
        let tokens: usize = encoded.sequences.iter().map(|s| s.tokens.len()).sum();
        let prompts: usize = encoded.sequences.iter().map(|s| s.prompt_len).sum();
        (
            encoded.sequences.len(),
            tokens,
            prompts,
            encoded.skipped.len(),
        )
    };
    // plus one separator per example, as in the published token files
    let (n, tokens, prompts, skipped) = count("dev.jsonl");
    assert_eq!((n, tokens + n, skipped), (1000, 152_868, 0));
    let (n2, tokens2, prompts2, skipped2) = count("train.jsonl");
    println!("{n} {tokens} {prompts}; {n2} {tokens2} {prompts2} {skipped2}");
    assert_eq!((n2, tokens2 + n2, skipped2), (11_435, 1_742_452, 0));
    assert!((prompts2 as f64 / n2 as f64 - 71.3).abs() < 0.05);
}

#[test]
fn dolly_packs_into_the_published_number_of_values() {
    let shared = shared();
    let path = shared.join("tokenizers/gpt2/tokenizer.json");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let tokenizer = Tokenizer::from_file(&path, None).unwrap();
    let examples = read_jsonl(&shared.join("data/dolly/dev.jsonl")).unwrap();
    let documents = indexed::pack(&examples, &tokenizer).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("valid_0");
    indexed::write_indexed(&prefix, &documents).unwrap();
    let read = indexed::IndexedTokens::open(&prefix).unwrap();
    assert_eq!((read.len(), read.values()), (1000, 152_868));
    let limits = Limits {
        max_prompt_length: 256,
        max_length: 512,
    };
    let encoded = encode_training(&examples, &tokenizer, &PromptTemplate::Paper, &limits).unwrap();
    for (i, sequence) in encoded.sequences.iter().enumerate() {
        assert_eq!(read.sequence(i, &limits).as_ref(), Some(sequence));
    }
    let line: serde_json::Value = serde_json::from_str(&read.line(0, &tokenizer).unwrap()).unwrap();
    assert_eq!(line["prompt"], prompt(&examples[0]));
    assert_eq!(line["output"], examples[0].outputs[0]);
}
