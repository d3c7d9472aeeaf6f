//! `abkd distill`, `abkd eval` and `abkd generate` in an empty folder, as a user types them.

mod chat;
mod padded;
mod wrong;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use abkd_data::{Example, Sizes, Tokenizer};
use abkd_models::checkpoint::{self, StoredAs};
use abkd_models::{LanguageModel, ModelConfig};
use burn::tensor::Device;
use serde_json::json;

use crate::root::{gpt2, jsonl, text};

/// A user's folder: two models and some data.
struct Desk {
    dir: tempfile::TempDir,
}

fn llama(layers: usize) -> LanguageModel {
    let config: ModelConfig = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": 192, "eos_token_id": 0,
    }))
    .unwrap();
    config.init(layers as u64, &Device::flex())
}

impl Desk {
    fn new() -> Self {
        let desk = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let sets = abkd_data::embedded(
            1,
            &Sizes {
                train: 60,
                valid: 4,
                test: 4,
            },
        );
        desk.write("train.jsonl", &jsonl(&sets.train));
        desk.write("valid.jsonl", &jsonl(&sets.valid));
        desk.write("test.jsonl", &jsonl(sets.test("dolly")));
        desk.model("teacher", &gpt2(3, 192, 512));
        desk.model("student", &gpt2(1, 192, 512));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A checkpoint with the embedded tokenizer.
    fn model(&self, name: &str, model: &LanguageModel) {
        checkpoint::save(model, &self.path(name), StoredAs::F32).unwrap();
        let tokenizer = self.path(name).join("tokenizer.json");
        Tokenizer::embedded().save(&tokenizer).unwrap();
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_abkd"));
        command
            .args(words.split_whitespace())
            .current_dir(self.dir.path())
            .env("HF_HOME", self.path("hub"))
            // Nothing listens on this port.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("ABKD_DATA");
        command
    }

    fn abkd(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command; returns its stdout.
    fn runs(&self, words: &str) -> String {
        let output = self.abkd(words);
        assert!(output.status.success(), "{words}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The command fails with a message that has all of `says`, and leaves no folder `out`.
    fn refuses(&self, words: &str, says: &[&str]) {
        let output = self.abkd(words);
        let said = text(&output);
        assert!(
            [Some(1), Some(2)].contains(&output.status.code()),
            "{words}: {said}"
        );
        assert!(output.stdout.is_empty(), "{words}: {said}");
        for what in says {
            assert!(said.contains(what), "{words}: no `{what}` in: {said}");
        }
        assert!(!self.path("out").exists(), "{words}: {said}");
    }

    /// Every file of the student, and the files beside its folder.
    fn outcome(&self) -> Vec<(String, Vec<u8>)> {
        let student = fs::read_dir(self.path("out/student")).unwrap();
        let student = student.map(|e| format!("student/{}", e.unwrap().file_name().display()));
        let beside = ["scores.csv", "answers.md", "curve.png"].map(str::to_owned);
        let mut all: Vec<_> = student
            .chain(beside)
            .map(|name| (name.clone(), fs::read(self.path("out").join(name)).unwrap()))
            .collect();
        all.sort();
        all
    }
}

const SMALL: &str = "--max-new-tokens 8 --epochs 2";

#[test]
fn a_student_is_a_whole_folder_that_answers_and_the_profile_runs_again() {
    let desk = Desk::new();
    let distill = format!(
        "distill teacher layers:2 --data train.jsonl --test mine=test.jsonl --out out {SMALL}"
    );
    let plan = desk.runs(&format!("{distill} --dry-run"));
    assert!(plan.contains("3 evaluations") && plan.contains("peak memory"));
    assert!(!desk.path("out").exists());

    let output = desk.abkd(&distill);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    for what in [
        "the last 3 of 60 examples are held out for validation",
        "fine-tuned for 1 epoch first",
        "student distilled",
        "out/student",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    let whole = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "seal.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let names: Vec<String> = desk.outcome().into_iter().map(|(name, _)| name).collect();
    for name in whole {
        assert!(names.contains(&format!("student/{name}")), "{names:?}");
    }
    let card = desk.read("out/student/README.md");
    let hash = abkd_host::files::sha256_of_file(&desk.path("train.jsonl")).unwrap();
    for what in [
        "# out",
        "distilled from teacher",
        &hash,
        "alpha = 0.2",
        "| student distilled | mine |",
    ] {
        assert!(card.contains(what), "{what}: {card}");
    }
    assert!(!card.contains(desk.dir.path().to_str().unwrap()), "{card}");
    let scores = desk.read("out/scores.csv");
    assert_eq!(scores.lines().count(), 1 + 3, "{scores}");
    assert!(desk.read("out/answers.md").contains("### Example 4"));

    // The same command repeats nothing, and restores a damaged file.
    let before = desk.outcome();
    let again = text(&desk.abkd(&distill));
    assert!(again.contains("6 of 6 tasks are done"), "{again}");
    fs::write(desk.path("out/student/model.safetensors"), b"x").unwrap();
    let again = text(&desk.abkd(&distill));
    assert!(again.contains("the student is written again"), "{again}");
    assert_eq!(before, desk.outcome());

    // `abkd run` on its two files repeats nothing, either.
    let mut run = desk.command("run ./experiment.toml -p ./profile.toml");
    let run = run.current_dir(desk.path("out")).output().unwrap();
    assert!(run.status.success(), "{}", text(&run));
    assert!(
        text(&run).contains("6 of 6 tasks are done"),
        "{}",
        text(&run)
    );

    // `abkd eval` gives the student the same score.
    let eval = "eval out/student --test mine=test.jsonl --max-new-tokens 8 --out answers";
    let table = desk.runs(eval);
    assert!(table.contains("student  mine"), "{table}");
    let (eval, own) = (desk.read("answers/scores.csv"), scores);
    let tail = |line: &str| line.split_once(',').unwrap().1.to_owned();
    let distilled = own.lines().find(|l| l.starts_with("student distilled,"));
    assert_eq!(tail(eval.lines().nth(1).unwrap()), tail(distilled.unwrap()));
    assert_eq!(desk.read("answers/mine-s10.jsonl").lines().count(), 4);
    let answer = desk.runs("generate out/student --prompt hello --max-new-tokens 5");
    assert_eq!(answer.lines().count(), 1, "{answer:?}");
    let greedy = "generate teacher --raw --prompt hello --temperature 0 --max-new-tokens 5 --seed";
    assert_eq!(
        desk.runs(&format!("{greedy} 1")),
        desk.runs(&format!("{greedy} 2"))
    );

    // The likeliest token is the same whatever the seed; a drawn one is not.
    let rows = |words: &str| {
        desk.runs(&format!(
            "eval out/student --test mine=test.jsonl --max-new-tokens 8 --seeds 1,2 --out drawn {words}"
        ));
        [1, 2].map(|seed| desk.read(&format!("drawn/mine-s{seed}.jsonl")))
    };
    let [a, b] = rows("--temperature 0");
    assert_eq!(a, b);
    let [a, b] = rows("");
    assert_ne!(a, b);

    // The time left is not known before each set was answered once.
    let two = "eval teacher --test mine=test.jsonl --test more=valid.jsonl --max-new-tokens 4";
    let said = text(&desk.abkd(two));
    assert!(said.contains("1/2 tasks, eta unknown yet"), "{said}");

    // A model that was fetched from the Hub before needs no network.
    desk.model("hub/hub/abkd/owner/model", &gpt2(1, 192, 512));
    desk.runs("generate owner/model --prompt hello --max-new-tokens 5");
}

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_bits() {
    let words =
        "distill teacher student --data train.jsonl --out out --epochs 40 --max-new-tokens 8";
    let desk = Desk::new();
    let mut kills = 0;
    for wait in [100, 200, 300, 450, 600, 800] {
        let mut child = desk
            .command(words)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_none() {
            kills += 1;
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
    assert!(kills >= 2, "only {kills} runs were killed");
    desk.runs(words);
    let undisturbed = Desk::new();
    undisturbed.runs(words);
    assert_eq!(desk.outcome(), undisturbed.outcome());
    // Without a test set the held-out examples are scored.
    assert!(
        desk.read("out/scores.csv")
            .contains("student before,validation,3,")
    );
}

#[test]
fn data_come_in_three_forms_and_adapters_are_merged() {
    let desk = Desk::new();
    desk.model("wide", &llama(2));
    let sets = abkd_data::embedded(
        1,
        &Sizes {
            train: 60,
            valid: 4,
            test: 4,
        },
    );
    let as_chat = |e: &Example| {
        let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
        let turns = [
            turn("user", &e.instruction),
            turn("assistant", &e.outputs[0]),
        ];
        format!("{}\n", json!({ "talk": turns }))
    };
    let chats = |all: &[Example]| all.iter().map(as_chat).collect::<String>();
    desk.write("chats.jsonl", &chats(&sets.train));
    desk.write("few.jsonl", &chats(&sets.valid));
    desk.runs(&format!(
        "distill wide wide --data chats.jsonl --valid few.jsonl --columns messages=talk --loss rkld --lora 2 --out out {SMALL}"
    ));
    assert!(desk.path("out/student/model.safetensors").exists());
    assert!(!desk.path("out/student/adapter_config.json").exists());
    let scores = desk.read("out/scores.csv");
    assert!(
        scores.contains("student distilled,validation,4,"),
        "{scores}"
    );
    desk.runs("eval out/student --test few=few.jsonl --columns messages=talk --max-new-tokens 4");

    let as_pair = |e: &Example| {
        format!(
            "{}\n",
            json!({ "prompt": e.instruction, "completion": e.outputs[0] })
        )
    };
    desk.write(
        "pairs.jsonl",
        &sets.train.iter().map(as_pair).collect::<String>(),
    );
    desk.runs(&format!(
        "distill teacher student --data pairs.jsonl --method gkd --init-epochs 1 --teacher-epochs 1 --out pairs {SMALL}"
    ));
    let profile = desk.read("pairs/profile.toml");
    assert!(profile.contains("[teacher_sft]") && profile.contains("[student_sft]"));
}

#[test]
fn rows_of_parquet_are_the_same_tasks_as_lines() {
    let desk = Desk::new();
    let file = "../crates/data/tests/parquet/chats.parquet";
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::copy(file, desk.path("chats.parquet")).unwrap();
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let chats = [
        vec![
            turn("user", "Name the capital of France."),
            turn("assistant", "Paris"),
        ],
        vec![
            turn("system", "Be short."),
            turn("user", "Name a river."),
            turn("assistant", "Seine"),
        ],
        vec![
            turn("user", "Hi"),
            turn("assistant", "Hello"),
            turn("user", "Wie heißt du? \u{1f600}"),
            turn("assistant", "Ada"),
        ],
    ];
    let line = |chat| format!("{}\n", json!({ "messages": chat }));
    desk.write("chats.jsonl", &chats.map(line).concat());
    let [rows, lines] = ["parquet", "jsonl"].map(|kind| {
        desk.runs(&format!(
            "distill teacher student --data chats.{kind} --test mine=chats.{kind} --out {kind} {SMALL}"
        ));
        let runs = fs::read_dir(desk.path(kind).join("runs")).unwrap();
        let runs = runs.map(|e| e.unwrap().path()).find(|path| path.is_dir()).unwrap();
        let mut ids: Vec<String> = fs::read_dir(runs)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("distill-") || name.starts_with("eval"))
            .collect();
        ids.sort();
        ids
    });
    assert!(!rows.is_empty());
    assert_eq!(rows, lines);
    desk.runs("eval teacher --test mine=chats.parquet --max-new-tokens 4");
    desk.refuses(
        "eval teacher --test mine=chats.parquet --columns messages=talk",
        &[
            "--test mine",
            "chats.parquet: no column `talk`, it has `source`, `messages`",
        ],
    );
}
