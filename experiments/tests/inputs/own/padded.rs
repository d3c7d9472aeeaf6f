//! Checkpoints with more rows of embedding and head than the tokenizer has tokens.

use std::fs;

use abkd_data::Tokenizer;
use abkd_models::{LanguageModel, ModelConfig};
use burn::tensor::Device;
use serde_json::{Value, json};

use super::Desk;
use crate::root::text;

/// A model with one row for each token; `kind` is the type of a LLaMA-like model, or `gpt2`.
fn exact(kind: &str, layers: usize) -> LanguageModel {
    let tokens = Tokenizer::embedded().vocab_size();
    let json = match kind {
        "gpt2" => json!({
            "model_type": "gpt2", "vocab_size": tokens, "n_positions": 192, "n_embd": 8, "n_layer": layers, "n_head": 2,
            "eos_token_id": 0,
        }),
        _ => json!({
            "model_type": kind, "vocab_size": tokens, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": layers,
            "num_attention_heads": 2, "max_position_embeddings": 192, "eos_token_id": 0, "tie_word_embeddings": false,
        }),
    };
    let config: ModelConfig = serde_json::from_value(json).unwrap();
    config.init(layers as u64, &Device::flex())
}

/// Adds rows of large numbers to embedding and head of a checkpoint: the logits of most of them would be the largest.
fn pad(desk: &Desk, name: &str, rows: usize) {
    let path = desk.path(name).join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (size, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*size) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let mut padded = Vec::new();
    for (name, tensor) in header.as_object_mut().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        let at = |index: usize| tensor["data_offsets"][index].as_u64().unwrap() as usize;
        let begin = padded.len();
        padded.extend_from_slice(&data[at(0)..at(1)]);
        let ends = ["wte.weight", "embed_tokens.weight", "lm_head.weight"];
        if ends.iter().any(|end| name.ends_with(end)) {
            let shape = |index: usize| tensor["shape"][index].as_u64().unwrap() as usize;
            let (height, width) = (shape(0), shape(1));
            for row in 0..rows {
                for column in 0..width {
                    let sign = if (row >> (column % 4)) & 1 == 0 {
                        50.0
                    } else {
                        -50.0_f32
                    };
                    padded.extend_from_slice(&sign.to_le_bytes());
                }
            }
            tensor["shape"][0] = (height + rows).into();
        }
        tensor["data_offsets"] = json!([begin, padded.len()]);
    }
    let header = header.to_string();
    let size = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&size[..], header.as_bytes(), &padded].concat()).unwrap();
    let path = desk.path(name).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = (config["vocab_size"].as_u64().unwrap() + rows as u64).into();
    fs::write(&path, config.to_string()).unwrap();
}

/// A folder with a pair whose sides have this many rows beyond the tokens.
fn desk(kind: &str, teacher: usize, student: usize) -> Desk {
    let desk = Desk::new();
    for (name, layers, rows) in [("teacher", 3, teacher), ("student", 1, student)] {
        desk.model(name, &exact(kind, layers));
        if rows > 0 {
            pad(&desk, name, rows);
        }
    }
    desk
}

/// What a run leaves, without the model card and the seal, which have the hashes of the checkpoints.
fn outcome(desk: &Desk) -> Vec<(String, Vec<u8>)> {
    let mut all = desk.outcome();
    all.retain(|(name, _)| !name.ends_with("README.md") && !name.ends_with("seal.json"));
    all
}

const TOKENS: &str = "beyond them are left out";

#[test]
fn padding_changes_no_bit_of_a_distillation_and_is_said_once() {
    for (kind, words) in [
        ("gpt2", "distill teacher student --init-epochs 1"),
        ("qwen2", "distill teacher student --method gkd"),
        ("llama", "distill teacher layers:2"),
    ] {
        let words = format!(
            "{words} --data train.jsonl --test mine=test.jsonl --out out --epochs 1 --max-new-tokens 8"
        );
        let plain = desk(kind, 0, 0);
        let said = text(&plain.abkd(&words));
        assert!(plain.path("out/student").exists(), "{said}");
        assert!(!said.contains(TOKENS), "{said}");
        let padded = desk(kind, 7, 64);
        let plan = padded.abkd(&format!("{words} --dry-run"));
        assert!(plan.status.success(), "{}", text(&plan));
        let same = plain.runs(&format!(
            "{} --dry-run",
            words.replace("--out out", "--out other")
        ));
        let shown = String::from_utf8(plan.stdout).unwrap();
        let sizes = |plan: &str| -> Vec<String> {
            let lines = plan.lines().filter(|line| line.contains("memory"));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(sizes(&shown), sizes(&same));
        let output = padded.abkd(&words);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches(TOKENS).count(), 1, "{said}");
        assert_eq!(outcome(&padded), outcome(&plain), "{kind}");
        // It goes on where it was, too.
        let again = text(&padded.abkd(&words));
        assert!(again.contains("tasks are done"), "{again}");
    }
}

#[test]
fn padding_changes_no_answer_and_no_score_of_any_model() {
    let (plain, padded) = (desk("llama", 0, 0), desk("llama", 3, 64));
    for words in [
        "eval student --test mine=test.jsonl --max-new-tokens 8",
        "generate student --raw --prompt hello --max-new-tokens 20",
        "generate student --raw --prompt hello --temperature 0 --max-new-tokens 20",
    ] {
        let output = padded.abkd(words);
        assert!(output.status.success(), "{}", text(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.matches("64 of ").count(), 1, "{said}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), plain.runs(words));
    }
}

#[test]
fn a_model_with_fewer_rows_than_tokens_is_refused() {
    let desk = desk("gpt2", 0, 0);
    desk.model("small", &crate::root::gpt2(1, 192, 40));
    desk.refuses(
        "distill teacher small --data train.jsonl --out out",
        &["STUDENT", "the student of 40"],
    );
    desk.refuses(
        "generate small --prompt hello",
        &["MODEL", "the model only 40"],
    );
}
