//! A project that runs in seconds, and the binary on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const EXPERIMENT: &str = r#"
name = "small"
title = "Two losses"
kind = "table"
paper = "table1.csv"
datasets = ["dolly", "vicuna"]
seeds = [10, 20]
references = true
[[rows]]
label = "FKLD"
divergence = "fkld"
[[rows]]
label = "ABKD"
divergence = "ab"
params = { alpha = 0.2, beta = 0.7 }
"#;

pub const PROFILE: &str = r#"
name = "micro"
description = "seconds"
[data]
source = "embedded"
train = 96
test = 6
max_prompt_length = 96
max_length = 192
[teacher.gpt2]
vocab_size = 1024
n_positions = 192
n_embd = 32
n_layer = 2
n_head = 2
[student.gpt2]
vocab_size = 1024
n_positions = 192
n_embd = 16
n_layer = 1
n_head = 2
[teacher_sft]
epochs = 2
batch_size = 8
learning_rate = 2e-3
[student_sft]
epochs = 1
batch_size = 8
learning_rate = 2e-3
[distill]
epochs = 3
batch_size = 8
learning_rate = 1e-3
[validation]
examples = 6
max_new_tokens = 12
[evaluation]
max_new_tokens = 12
"#;

pub struct Project {
    pub dir: tempfile::TempDir,
}

impl Project {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("small.toml"), EXPERIMENT).unwrap();
        fs::write(dir.path().join("micro.toml"), PROFILE).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_abkd"));
        command.args([verb, self.path("small.toml").to_str().unwrap(), "--profile"]);
        command
            .arg(self.path("micro.toml"))
            .arg("--root")
            .arg(root());
        for folder in ["runs", "results", "figures"] {
            command.arg(format!("--{folder}")).arg(self.path(folder));
        }
        command
    }

    pub fn run(&self) -> Output {
        self.command("run").output().unwrap()
    }

    pub fn start(&self) -> Child {
        self.command("run")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Waits until the first training has begun.
    pub fn wait_for_training(&self) {
        let begun = Instant::now();
        let started = || {
            let entries = fs::read_dir(self.path("runs/micro"));
            let mut tasks = entries.into_iter().flatten().flatten();
            tasks.any(|task| task.path().join("steps.jsonl").exists())
        };
        while !started() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the run never started"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The teacher's newest checkpoint, if there is one.
    pub fn checkpoint(&self) -> Option<PathBuf> {
        let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
        entries(self.path("runs/micro"))
            .flat_map(|task| entries(task.path()))
            .map(|e| e.path())
            .find(|p| {
                let name = p.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("state-")
            })
    }

    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.path(file), text.replacen(from, to, 1)).unwrap();
    }

    /// Every result file, and the weights of every student.
    pub fn outcome(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("results/micro")).unwrap() {
            let path = entry.unwrap().path();
            found.push((
                path.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read(&path).unwrap(),
            ));
        }
        for entry in fs::read_dir(self.path("runs/micro")).unwrap() {
            let entry = entry.unwrap();
            let weights = entry.path().join("student/model.safetensors");
            if weights.exists() {
                found.push((
                    entry.file_name().to_string_lossy().into_owned(),
                    fs::read(weights).unwrap(),
                ));
            }
        }
        found.sort();
        found
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
