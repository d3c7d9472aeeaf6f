//! A run whose files were damaged between two attempts is refused; the error names the file and what to remove. Once that
//! is removed, the run ends with the same bits as an uninterrupted one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use abkd_data::{Sequence, Tokenizer};
use abkd_models::ModelConfig;
use abkd_models::generate::Decoding;
use abkd_training::trainer::{student_dir, student_seal};
use abkd_training::{
    Error, Event, KeepBest, Method, Outcome, Settings, TrainRun, Validation, train,
};
use burn::tensor::Device;
use serde_json::json;

/// Two epochs of ten updates; stopped after `stop_after` updates.
fn run(dir: &Path, fingerprint: &str, stop_after: Option<usize>) -> Result<Outcome, Error> {
    let config: ModelConfig = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": Tokenizer::embedded().vocab_size(), "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
    }))
    .unwrap();
    let settings: Settings = serde_json::from_value(json!({
        "epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "keep_best": "loss",
    }))
    .unwrap();
    let sequences: Vec<Sequence> = (0..20)
        .map(|example| Sequence {
            example,
            tokens: vec![5, 6 + example as u32, 7, 8],
            prompt_len: 2,
        })
        .collect();
    let stop = AtomicBool::new(false);
    train(
        TrainRun {
            dir,
            fingerprint,
            settings: &settings,
            method: &Method::sft(),
            kd_ratio: 0.0,
            max_new_tokens: 4,
            base: "base",
            student: config.init(1, &Device::flex()),
            teacher: None,
            cache: None,
            sequences: &sequences,
            tokenizer: &Tokenizer::embedded(),
            text: None,
            validation: Validation {
                examples: &[],
                prompts: &[],
                sequences: &sequences[..4],
                decoding: &Decoding::greedy(),
                seed: 1,
            },
            // Replaces the file that is written with the weights.
            beside: &[("generation_config.json", BESIDE.to_vec())],
            checkpoint_every: Duration::from_secs(1000),
            stop: &stop,
        },
        &mut |event| {
            if let Event::Step { step, .. } = event {
                stop.store(Some(step) == stop_after, Ordering::Relaxed);
            }
        },
    )
}

/// A file that is to be saved beside the weights.
const BESIDE: &[u8] = b"{\"eos_token_id\": 7}";

/// Files of a run stopped in its second epoch: a checkpoint, the first validation's weights and the log.
fn stopped(dir: &Path) -> Vec<PathBuf> {
    let outcome = run(dir, "one", Some(13)).unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    let folders = [dir.join("state-000000013"), dir.join("validation-1")];
    let mut files: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.push(dir.join("steps.jsonl"));
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Files that a finished run leaves: the student's with content, the others by name, as the log holds times.
fn left(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(student_dir(dir)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        found.push((name, fs::read(&path).unwrap()));
    }
    let names = fs::read_dir(dir).unwrap();
    found.extend(names.map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        (name, Vec::new())
    }));
    found.sort();
    let lines = fs::read_to_string(dir.join("steps.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 20);
    found
}

fn undisturbed() -> (Outcome, Vec<(String, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(dir.path(), "one", None).unwrap();
    // If the caller is killed before it uses the result, the same command returns it again.
    assert_eq!(run(dir.path(), "one", None).unwrap(), outcome);
    (outcome, left(dir.path()))
}

/// A name, and a function that damages a file.
type Damage = (&'static str, fn(&Path));

#[test]
fn a_damaged_file_is_refused_and_the_remedy_works() {
    let whole = tempfile::tempdir().unwrap();
    let files = stopped(whole.path());
    assert!(files.len() >= 8, "{files:?}");
    let expected = undisturbed();
    let damages: [Damage; 4] = [
        ("flip", |path| {
            let mut content = fs::read(path).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 1;
            fs::write(path, content).unwrap();
        }),
        ("cut", |path| {
            let content = fs::read(path).unwrap();
            fs::write(path, &content[..content.len().saturating_sub(5)]).unwrap();
        }),
        ("empty", |path| fs::write(path, "").unwrap()),
        ("remove", |path| fs::remove_file(path).unwrap()),
    ];
    for file in &files {
        let name = file.strip_prefix(whole.path()).unwrap();
        for (damage, apply) in damages {
            let dir = tempfile::tempdir().unwrap();
            copy(whole.path(), dir.path());
            apply(&dir.path().join(name));
            let what = format!("{damage} {}", name.display());
            let error = run(dir.path(), "one", None).unwrap_err().to_string();
            let text = error.as_str();
            assert!(
                text.contains(name.file_name().unwrap().to_str().unwrap()),
                "{what}: {text}"
            );
            let (_, rest) = text.split_once("remove ").expect(text);
            let doomed = rest.split(' ').next().unwrap();
            assert!(doomed.starts_with(dir.path().to_str().unwrap()), "{text}");
            fs::remove_dir_all(doomed).unwrap();
            let outcome = run(dir.path(), "one", None).unwrap();
            assert_eq!((outcome, left(dir.path())), expected, "{what}");
        }
    }
}

#[test]
fn files_beside_the_weights_are_under_the_students_seal_from_the_first_on() {
    let dir = tempfile::tempdir().unwrap();
    stopped(dir.path());
    let read =
        |folder: &str| fs::read(dir.path().join(folder).join("generation_config.json")).unwrap();
    assert_eq!(read("validation-1"), BESIDE);
    // A finished run can be resumed any number of times.
    for _ in 0..2 {
        let Outcome::Finished { curve, .. } = run(dir.path(), "one", None).unwrap() else {
            panic!("it was not stopped");
        };
        let seal = student_seal(dir.path(), "one", &curve, KeepBest::Loss).unwrap();
        assert!(seal.holds("generation_config.json"));
        assert_eq!(read("student"), BESIDE);
    }
}

#[test]
fn the_files_of_another_run_are_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    stopped(one.path());
    run(other.path(), "other", Some(13)).unwrap();
    for folder in ["state-000000013", "validation-1"] {
        let dir = tempfile::tempdir().unwrap();
        copy(one.path(), dir.path());
        fs::remove_dir_all(dir.path().join(folder)).unwrap();
        copy(&other.path().join(folder), &dir.path().join(folder));
        let error = run(dir.path(), "one", None).unwrap_err().to_string();
        assert!(error.contains("belongs to"), "{error}");
    }
}

#[test]
fn the_best_weights_are_there_at_the_end_or_it_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "one", None).unwrap();
    fs::remove_file(student_dir(dir.path()).join("model.safetensors")).unwrap();
    let error = run(dir.path(), "one", None).unwrap_err().to_string();
    assert!(
        error.contains("student/model.safetensors: it is missing"),
        "{error}"
    );
    fs::remove_dir_all(student_dir(dir.path())).unwrap();
    let error = run(dir.path(), "one", None).unwrap_err().to_string();
    assert!(error.contains("the best weights so far"), "{error}");
}

#[test]
fn what_a_killed_attempt_left_is_swept() {
    let (outcome, expected) = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    stopped(dir.path());
    // Left by a validation after the checkpoint, an interrupted removal and an interrupted save.
    copy(
        &dir.path().join("validation-1"),
        &dir.path().join("validation-2"),
    );
    copy(
        &dir.path().join("validation-1"),
        &dir.path().join("student"),
    );
    for name in [
        ".tmp-99999999-state-000000007",
        ".tmp-99999998-validation-2",
    ] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("student.bpk"), "part").unwrap();
    }
    fs::create_dir(dir.path().join("state-000000002")).unwrap();
    assert_eq!(run(dir.path(), "one", None).unwrap(), outcome);
    assert_eq!(left(dir.path()), expected);
}
