//! A project folder for tests: two checkpoints, a tokenizer, one data set, an experiment of one row.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use abkd_data::{Example, Sizes, Tokenizer};
use abkd_models::checkpoint::{self, StoredAs};
use abkd_models::{LanguageModel, ModelConfig};
use burn::tensor::Device;
use serde_json::json;

pub const EXPERIMENT: &str = r#"name = "small"
title = "A row"
kind = "table"
paper = "table1.csv"
datasets = ["dolly"]
seeds = [10]
references = true
[[rows]]
label = "FKLD"
divergence = "fkld"
"#;

pub const PROFILE: &str = r#"name = "ok"
description = "seconds"
[data]
source = "folder"
path = "data"
max_prompt_length = 96
max_length = 192
[teacher]
checkpoint = "weights/t"
[student]
checkpoint = "weights/s"
[teacher_sft]
epochs = 1
batch_size = 8
learning_rate = 1e-3
[student_sft]
epochs = 1
batch_size = 8
learning_rate = 1e-3
keep_best = "loss"
[distill]
epochs = 1
batch_size = 8
learning_rate = 1e-3
[validation]
examples = 4
max_new_tokens = 8
[evaluation]
max_new_tokens = 8
"#;

pub const PAPER: &str = "loss,dataset,rouge_l_mean,rouge_l_std\nFKLD,dolly,23.80,0.37\n";

/// A project's folder.
pub struct Root {
    pub dir: tempfile::TempDir,
}

/// A GPT-2 with fresh weights.
pub fn gpt2(layers: usize, positions: usize, vocab: usize) -> LanguageModel {
    let config: ModelConfig = serde_json::from_value(json!({
        "model_type": "gpt2", "vocab_size": vocab, "n_positions": positions, "n_embd": 8, "n_layer": layers,
        "n_head": 2, "eos_token_id": 0,
    }))
    .unwrap();
    config.init(layers as u64, &Device::flex())
}

/// Examples as JSONL.
pub fn jsonl(examples: &[Example]) -> String {
    let line = |e: &Example| {
        let line = json!({ "instruction": e.instruction, "input": e.input, "output": e.outputs });
        format!("{line}\n")
    };
    examples.iter().map(line).collect()
}

impl Root {
    /// A project with checkpoints, a tokenizer and Dolly, and no other set.
    pub fn new() -> Self {
        let root = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        root.write("experiments/small.toml", EXPERIMENT);
        root.write("experiments/profiles/ok.toml", PROFILE);
        root.write("results/paper/table1.csv", PAPER);
        let sets = abkd_data::embedded(
            1,
            &Sizes {
                train: 24,
                valid: 4,
                test: 4,
            },
        );
        root.write("data/dolly/train.jsonl", &jsonl(&sets.train));
        root.write("data/dolly/dev.jsonl", &jsonl(&sets.valid));
        root.write("data/dolly/valid.jsonl", &jsonl(sets.test("dolly")));
        root.checkpoint("weights/t", &gpt2(2, 192, 512));
        root.checkpoint("weights/s", &gpt2(1, 192, 512));
        Tokenizer::embedded()
            .save(&root.path("weights/t/tokenizer.json"))
            .unwrap();
        root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Writes the teacher's tokenizer with the ids of two words swapped: another tokenizer of the same size.
    pub fn swapped_tokenizer(&self, name: &str) {
        let mut json: serde_json::Value =
            serde_json::from_str(&self.read("weights/t/tokenizer.json")).unwrap();
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let words: Vec<String> = vocab
            .keys()
            .filter(|w| w.len() > 3 && w.bytes().all(|b| b.is_ascii_alphabetic()))
            .take(2)
            .cloned()
            .collect();
        let ids = [vocab[&words[0]].clone(), vocab[&words[1]].clone()];
        vocab.insert(words[0].clone(), ids[1].clone());
        vocab.insert(words[1].clone(), ids[0].clone());
        self.write(name, &json.to_string());
    }

    pub fn checkpoint(&self, name: &str, model: &LanguageModel) {
        checkpoint::save(model, &self.path(name), StoredAs::F32).unwrap();
    }

    pub fn profile(&self, from: &str, to: &str) {
        self.edit("experiments/profiles/ok.toml", from, to);
    }

    pub fn experiment(&self, from: &str, to: &str) {
        self.edit("experiments/small.toml", from, to);
    }

    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{from}");
        self.write(file, &text.replacen(from, to, 1));
    }

    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_abkd"));
        command.args([verb, "small", "--profile", "ok", "--root"]);
        command.arg(self.dir.path()).env_remove("ABKD_DATA");
        command
    }

    pub fn abkd(&self, verb: &str) -> Output {
        self.command(verb).output().unwrap()
    }

    pub fn runs(&self) -> String {
        let output = self.abkd("run");
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// Both `plan` and `run` fail with a message that has all of `what`, and begin nothing.
    pub fn refuses(&self, what: &[&str]) {
        for verb in ["plan", "run"] {
            let output = self.abkd(verb);
            let said = text(&output);
            assert!(output.status.code() == Some(1), "{verb}: {what:?}: {said}");
            for what in what {
                assert!(said.contains(what), "{verb}: no `{what}` in: {said}");
            }
            assert!(!self.path("runs").exists(), "{verb}: {said}");
        }
    }

    /// Whether every task of the plan is done.
    pub fn is_done(&self) -> bool {
        let output = self.abkd("plan");
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        let evaluations = said.lines().find(|l| l.contains(" evaluations (")).unwrap();
        let all = evaluations.split(' ').next().unwrap();
        evaluations.ends_with(&format!(", {all} of them done")) && !said.contains("to do ")
    }

    /// Folders of tasks whose names begin with `name`.
    pub fn tasks(&self, name: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("runs/ok")).unwrap();
        let paths = entries.map(|e| e.unwrap().path());
        paths
            .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(name))
            .collect()
    }
}

/// Stdout and stderr of a program.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
