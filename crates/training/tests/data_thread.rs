//! The thread that prepares the data ends when the run ends, fails or stops, and its panics propagate to the caller.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use abkd_data::indexed::{IndexedTokens, write_indexed};
use abkd_data::{Sequence, Tokenizer};
use abkd_models::ModelConfig;
use abkd_models::generate::Decoding;
use abkd_training::{Error, Event, Method, Outcome, Settings, TrainRun, Validation, train};
use burn::tensor::Device;
use serde_json::json;

/// Fine-tunes on `sequences`, one per update, and stops after `stop_after` updates.
fn run(
    sequences: &[Sequence],
    learning_rate: f64,
    stop_after: Option<usize>,
) -> Result<Outcome, Error> {
    run_with(&Method::sft(), None, sequences, learning_rate, stop_after)
}

/// The same with another method, and with plain text.
fn run_with(
    method: &Method,
    text: Option<&IndexedTokens>,
    sequences: &[Sequence],
    learning_rate: f64,
    stop_after: Option<usize>,
) -> Result<Outcome, Error> {
    let config: ModelConfig = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": 392, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
    }))
    .unwrap();
    let settings: Settings = serde_json::from_value(json!({
        "epochs": 1, "batch_size": 1, "learning_rate": learning_rate, "keep_best": "last",
        "max_grad_norm": 1e30,
    }))
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    train(
        TrainRun {
            dir: dir.path(),
            fingerprint: "toy",
            settings: &settings,
            method,
            kd_ratio: 0.0,
            max_new_tokens: 4,
            base: "base",
            student: config.init(1, &Device::flex()),
            teacher: None,
            cache: None,
            sequences,
            tokenizer: &Tokenizer::embedded(),
            text,
            validation: Validation {
                examples: &[],
                prompts: &[],
                sequences: &[],
                decoding: &Decoding::greedy(),
                seed: 1,
            },
            beside: &[],
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

fn sequences() -> Vec<Sequence> {
    (0..20)
        .map(|example| Sequence {
            example,
            tokens: vec![5, 6 + example as u32, 7, 8],
            prompt_len: 2,
        })
        .collect()
}

/// The result of `f`; panics if `f` takes more than a minute.
fn in_time<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // The receiver is dropped after a timeout.
        let _ = sender.send(f());
    });
    match receiver.recv_timeout(Duration::from_secs(60)) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(RecvTimeoutError::Disconnected) => panic!("it panicked"),
    }
}

#[test]
fn it_ends_where_the_training_fails_or_stops() {
    let outcome = in_time(|| run(&sequences(), 1e-3, Some(3)));
    assert!(matches!(outcome, Ok(Outcome::Interrupted)), "{outcome:?}");
    let error = in_time(|| run(&sequences(), 1e38, None)).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("update 2"), "{text}");
}

#[test]
fn its_panic_is_the_trainings() {
    let mut sequences = sequences();
    // No caller gives such a sequence; collating it underflows.
    sequences[11].prompt_len = 9;
    sequences[11].tokens.clear();
    let panic = in_time(move || {
        catch_unwind(AssertUnwindSafe(|| run(&sequences, 1e-3, None).map(drop))).unwrap_err()
    });
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap();
    assert!(text.contains("overflow"), "{text}");
}

#[test]
fn text_that_predicts_nothing_is_refused() {
    for documents in [&[][..], &[&[5u16][..], &[], &[6]]] {
        let dir = tempfile::tempdir().unwrap();
        write_indexed(&dir.path().join("text"), documents).unwrap();
        let text = IndexedTokens::open(&dir.path().join("text")).unwrap();
        let error = in_time(move || {
            run_with(&Method::sft(), Some(&text), &sequences(), 1e-3, None).unwrap_err()
        });
        let (text, wanted) = (error.to_string(), format!("(of {})", documents.len()));
        assert!(
            text.contains("plain text") && text.contains(&wanted),
            "{text}"
        );
    }
}

#[test]
fn a_teacher_that_is_needed_is_asked_for() {
    for id in ["kd", "gkd", "opd", "minillm"] {
        let method = Method::from_parts(id, None, json!({})).unwrap();
        let error = in_time(move || run_with(&method, None, &sequences(), 1e-3, None).unwrap_err());
        let text = error.to_string();
        assert!(
            text.contains(id) && text.contains("need a teacher"),
            "{text}"
        );
    }
}
