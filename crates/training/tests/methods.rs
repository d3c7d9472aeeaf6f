//! Every method on a toy teacher and student: the student improves, and a stopped and resumed run ends with the same bits.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use abkd_data::indexed::{IndexedTokens, write_indexed};
use abkd_data::{Sequence, Tokenizer, collate};
use abkd_losses::{Divergence, Fidelity, Logits, value};
use abkd_models::generate::{Decoding, generate};
use abkd_models::lora::{self, LoraConfig, Start};
use abkd_models::{LanguageModel, ModelConfig, checkpoint, params};
use abkd_training::cache::{self, CacheMode, TeacherCache};
use abkd_training::step::{self, Teacher, Term, Update, target_rows};
use abkd_training::timing::Phases;
use abkd_training::trainer::student_dir;
use abkd_training::{
    Event, KeepBest, Method, Objective, Outcome, Schedule, Settings, TrainRun, Validation, optim,
    train,
};
use burn::module::Module;
use burn::tensor::Device;
use serde_json::json;

fn model(width: usize, seed: u64, range: f64) -> LanguageModel {
    let config: ModelConfig = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": 392, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "initializer_range": range,
    }))
    .unwrap();
    config.init(seed, &Device::flex())
}

/// Number of training sequences.
const N: u32 = 320;

/// A teacher that has learned a task, a student that has not, and the task's data.
struct Toy {
    teacher: LanguageModel,
    student: LanguageModel,
    tokenizer: Tokenizer,
    sequences: Vec<Sequence>,
}

impl Toy {
    fn new() -> Self {
        // prompt `a b ?`, answer `a b a end`
        let tokenizer = Tokenizer::embedded();
        let eos = tokenizer.eos();
        let sequences = (0..N)
            .map(|i| {
                let (a, b) = (20 + i % 8, 30 + i % 5);
                Sequence {
                    example: i as usize,
                    tokens: vec![a, b, 3, a, b, a, eos],
                    prompt_len: 3,
                }
            })
            .collect();
        let student = model(16, 2, 0.02);
        let mut toy = Self {
            teacher: student.clone(),
            student,
            tokenizer,
            sequences,
        };
        let dir = tempfile::tempdir().unwrap();
        let sft = Method::sft();
        let untrained = std::mem::replace(&mut toy.student, model(24, 1, 0.02));
        toy.run(dir.path(), &sft, &settings(), None);
        toy.student = untrained;
        toy.teacher = checkpoint::load(&student_dir(dir.path()), &Device::flex()).unwrap();
        toy
    }

    fn run(
        &self,
        dir: &Path,
        method: &Method,
        settings: &Settings,
        stop_after: Option<usize>,
    ) -> Outcome {
        self.run_with_text(dir, method, settings, stop_after, None)
    }

    fn run_with_text(
        &self,
        dir: &Path,
        method: &Method,
        settings: &Settings,
        stop_after: Option<usize>,
        text: Option<&IndexedTokens>,
    ) -> Outcome {
        let stop = AtomicBool::new(false);
        train(
            TrainRun {
                dir,
                fingerprint: "toy",
                settings,
                method,
                kd_ratio: 1.0,
                max_new_tokens: 6,
                base: "base",
                student: self.student.clone(),
                teacher: Some(&self.teacher),
                cache: None,
                sequences: &self.sequences,
                tokenizer: &self.tokenizer,
                text,
                validation: Validation {
                    examples: &[],
                    prompts: &[],
                    sequences: &self.sequences[280..],
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
        .unwrap()
    }

    /// Mean KL(q, p) on the student's own answers, nats per token.
    fn reverse_kl(&self, student: &LanguageModel) -> f32 {
        let prompts: Vec<Vec<u32>> = self
            .sequences
            .iter()
            .map(|s| s.tokens[..3].to_vec())
            .collect();
        let keys: Vec<u64> = (0..u64::from(N)).collect();
        let decoding = Decoding {
            max_new_tokens: 6,
            ..Decoding::sampling()
        };
        let eos = self.tokenizer.eos();
        let answers =
            generate(student, &prompts, &keys, 9, &[eos], &decoding, &mut |_| {}).unwrap();
        let sequences: Vec<Sequence> = prompts
            .iter()
            .zip(answers)
            .map(|(p, a)| Sequence {
                example: 0,
                tokens: [p.as_slice(), &a].concat(),
                prompt_len: 3,
            })
            .collect();
        let laid = collate(&sequences.iter().collect::<Vec<_>>());
        let logits = |m: &LanguageModel| m.logits(target_rows(m, &laid));
        let rows = value(
            &Divergence::reverse_kl(),
            Fidelity::Paper,
            Logits {
                student: logits(student),
                teacher: logits(&self.teacher),
            },
        )
        .unwrap();
        rows.mean().into_scalar()
    }
}

fn settings() -> Settings {
    serde_json::from_value(json!({
        "epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "keep_best": "loss",
    }))
    .unwrap()
}

/// Each method with settings that use all of its parts within a few steps.
fn methods() -> Vec<(&'static str, Method)> {
    [
        ("sft", json!({})),
        ("kd", json!({})),
        ("abkd", json!({})),
        ("seqkd", json!({ "kd_ratio": 0.5 })),
        ("imitkd", json!({ "last_share": 0.1 })),
        // a buffer that is full after three updates on the student's answers
        ("gkd", json!({ "lambda": 0.5, "capacity": 24 })),
        ("opd", json!({})),
        ("minillm", json!({ "rollouts": 32, "inner_epochs": 2 })),
        (
            "distillm",
            json!({ "first_threshold": 0.6, "capacity": 24, "loss_margin": 0.0 }),
        ),
    ]
    .map(|(id, settings)| (id, Method::from_parts(id, None, settings).unwrap()))
    .into()
}

#[test]
fn each_method_lowers_the_reverse_kl_to_the_teacher() {
    let toy = Toy::new();
    let before = toy.reverse_kl(&toy.student);
    for (id, method) in methods() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = toy.run(dir.path(), &method, &settings(), None);
        assert!(matches!(outcome, Outcome::Finished { .. }));
        let student = checkpoint::load(&student_dir(dir.path()), &Device::flex()).unwrap();
        let after = toy.reverse_kl(&student);
        assert!(after < 0.9 * before, "{id}: {before} -> {after}");
    }
}

#[test]
fn a_stopped_run_ends_with_the_bits_of_an_undisturbed_one() {
    let toy = Toy::new();
    let settings = Settings {
        epochs: 2,
        keep_best: KeepBest::Loss,
        ..settings()
    };
    let adapted = Settings {
        lora: Some(LoraConfig {
            r: 2,
            alpha: 8.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            start: Start::Continue,
        }),
        ..settings.clone()
    };
    // validations within an epoch; the run ends within an epoch too, with a last validation
    let validated = Settings {
        max_updates: Some(61),
        validate_every: Some(7),
        schedule: Schedule::CosineWarmup,
        warmup: Some(10),
        ..settings.clone()
    };
    let last = Settings {
        keep_best: KeepBest::Last,
        ..validated.clone()
    };
    let kd = Method::from_parts("kd", None, json!({})).unwrap();
    let adaptive = methods().pop().unwrap().1;
    let plain = methods().into_iter().map(|(id, m)| (id, m, &settings));
    let others = [
        ("kd with adapters", kd.clone(), &adapted),
        ("distillm with more validations", adaptive, &validated),
        ("kd, the last kept", kd, &last),
    ];
    for (id, method, settings) in plain.chain(others) {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let finished = toy.run(whole.path(), &method, settings, None);
        // within the first and the last epoch, and within MiniLLM's rounds and inner epochs
        for stop in [3, 50] {
            let outcome = toy.run(parts.path(), &method, settings, Some(stop));
            assert!(matches!(outcome, Outcome::Interrupted), "{id}");
        }
        let state = parts.path().join("state-000000050");
        if settings.lora.is_some() {
            // A checkpoint holds what is trained alone.
            let saved = std::fs::metadata(state.join("student.bpk")).unwrap().len();
            let all = 4 * toy.student.config().parameters().total() as u64;
            assert!(2 * saved < all, "{saved} of {all}");
        }
        assert_eq!(
            toy.run(parts.path(), &method, settings, None),
            finished,
            "{id}"
        );
        let name = if settings.lora.is_some() {
            "adapter_model.safetensors"
        } else {
            "model.safetensors"
        };
        let weights = |dir: &Path| std::fs::read(student_dir(dir).join(name)).unwrap();
        assert!(weights(whole.path()) == weights(parts.path()), "{id}");
        let Outcome::Finished { curve, .. } = finished else {
            panic!("{id}: nobody stopped it");
        };
        let steps: Vec<usize> = curve.iter().map(|r| r.step).collect();
        if settings.validate_every.is_some() {
            assert_eq!(steps, [7, 14, 21, 28, 35, 42, 49, 56, 61], "{id}");
        } else {
            assert_eq!(steps, [40, 80], "{id}");
        }
        let left: Vec<String> = std::fs::read_dir(parts.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("validation"))
            .collect();
        assert!(left.is_empty(), "{id}: {left:?}");
    }
}

/// The weights file that a run writes.
fn trained(
    toy: &Toy,
    method: &Method,
    settings: &Settings,
    text: Option<&IndexedTokens>,
) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    toy.run_with_text(dir.path(), method, settings, None, text);
    let student = student_dir(dir.path());
    let adapter = student.join("adapter_model.safetensors");
    let path = if adapter.exists() {
        adapter
    } else {
        student.join("model.safetensors")
    };
    std::fs::read(path).unwrap()
}

#[test]
fn the_last_validations_weights_can_be_kept() {
    let toy = Toy::new();
    // A learning rate so large that the loss goes up and down; constant, so independent of the run's length.
    let settings = |keep_best, max_updates| Settings {
        epochs: 8,
        keep_best,
        max_updates,
        learning_rate: 1.0,
        schedule: Schedule::ConstantWarmup,
        ..settings()
    };
    let sft = Method::sft();
    let dir = tempfile::tempdir().unwrap();
    let outcome = toy.run(dir.path(), &sft, &settings(KeepBest::Loss, None), None);
    let Outcome::Finished { curve, .. } = outcome else {
        panic!("nobody stopped it");
    };
    let worse = curve
        .windows(2)
        .find(|w| w[1].validation_loss > w[0].validation_loss);
    let end = Some(worse.expect("the loss goes up once").last().unwrap().step);
    let best = trained(&toy, &sft, &settings(KeepBest::Loss, end), None);
    let last = trained(&toy, &sft, &settings(KeepBest::Last, end), None);
    let validated_at_the_end_alone = Settings {
        validate_every: end,
        ..settings(KeepBest::Loss, end)
    };
    assert!(best != last);
    assert!(last == trained(&toy, &sft, &validated_at_the_end_alone, None));
}

#[test]
fn minillms_supervised_term_is_on_text_on_the_data_or_nowhere() {
    let toy = Toy::new();
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("text");
    let documents: Vec<Vec<u16>> = vec![vec![50, 60, 50, 60]; 20];
    write_indexed(&prefix, &documents).unwrap();
    let text = IndexedTokens::open(&prefix).unwrap();
    let settings = Settings {
        max_updates: Some(6),
        ..settings()
    };
    let run = |data_term: &str, text: Option<&IndexedTokens>| {
        let keys = json!({ "rollouts": 16, "inner_epochs": 2, "data_term": data_term });
        let method = Method::from_parts("minillm", None, keys).unwrap();
        trained(&toy, &method, &settings, text)
    };
    let nowhere = run("none", None);
    assert!(run("none", Some(&text)) == nowhere);
    assert!(run("text", None) == nowhere);
    assert!(run("text", Some(&text)) != nowhere);
    let data = run("data", None);
    assert!(data != nowhere);
    assert!(run("data", Some(&text)) == data);
}

#[test]
fn minillms_student_has_no_dropout_unless_it_is_asked_for() {
    let toy = Toy::new();
    let run = |adapters: f64, dropout: bool| {
        let keys = json!({ "rollouts": 16, "inner_epochs": 2, "dropout": dropout });
        let method = Method::from_parts("minillm", None, keys).unwrap();
        let lora = serde_json::from_value(json!({ "r": 2, "alpha": 8.0, "dropout": adapters }));
        let settings = Settings {
            max_updates: Some(6),
            lora: Some(lora.unwrap()),
            ..settings()
        };
        trained(&toy, &method, &settings, None)
    };
    let without = run(0.0, true);
    assert!(run(0.5, false) == without);
    assert!(run(0.5, true) != without);
}

#[test]
fn the_initialised_students_adapter_is_trained_on_or_merged() {
    let mut toy = Toy::new();
    let config = |start| LoraConfig {
        r: 2,
        alpha: 8.0,
        dropout: 0.0,
        target_modules: vec!["v_proj".into(), "q_proj".into()],
        start,
    };
    let settings = |start| Settings {
        epochs: 1,
        lora: Some(config(start)),
        ..settings()
    };
    let kd = Method::from_parts("kd", None, json!({})).unwrap();
    let first = tempfile::tempdir().unwrap();
    toy.run(first.path(), &kd, &settings(Start::Continue), None);
    let base = toy.student.clone();
    let (adapted, own) = lora::load_trainable(base.clone(), &student_dir(first.path())).unwrap();
    let begun = lora::tensors(&adapted);
    assert_eq!((own.r, own.alpha), (2, 8.0));
    toy.student = adapted.clone();

    // One update at a small learning rate: the trained weights stay close to their start.
    let run = |toy: &Toy, settings: &Settings| {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            max_updates: Some(1),
            learning_rate: 1e-4,
            ..settings.clone()
        };
        toy.run(dir.path(), &kd, &settings, None);
        dir
    };
    let apart = |a: &[(String, Vec<usize>, Vec<f32>)], b: &[(String, Vec<usize>, Vec<f32>)]| {
        let pairs = a.iter().zip(b).flat_map(|(a, b)| a.2.iter().zip(&b.2));
        pairs.fold(0.0f32, |e, (x, y)| e.max((x - y).abs()))
    };
    let continued = run(&toy, &settings(Start::Continue));
    let continued = lora::load(base.clone(), &student_dir(continued.path())).unwrap();
    let distance = apart(&lora::tensors(&continued), &begun);
    assert!(distance > 0.0 && distance < 2e-4, "{distance}");

    // A new adapter on the merged weights: its B was 0 one update ago.
    let merged = run(&toy, &settings(Start::Merge));
    let merged_base = lora::merge(adapted.clone());
    let merged = lora::load(merged_base.clone(), &student_dir(merged.path())).unwrap();
    for (name, _, values) in lora::tensors(&merged) {
        let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        assert_eq!(name.contains("lora_B"), largest < 2e-4, "{name} {largest}");
    }
    assert!(apart(&lora::tensors(&merged), &begun) > 1e-2);
    let laid = collate(&toy.sequences.iter().collect::<Vec<_>>());
    let hidden = |m: &LanguageModel| target_rows(m, &laid);
    let moved: f32 = (hidden(&merged) - hidden(&merged_base))
        .abs()
        .max()
        .into_scalar();
    assert!(moved < 1e-2, "{moved}");

    // Without adapters in the settings the adapter is merged, and every weight is trained.
    let whole = run(
        &toy,
        &Settings {
            lora: None,
            ..settings(Start::Continue)
        },
    );
    let whole = checkpoint::load(&student_dir(whole.path()), &Device::flex()).unwrap();
    let before = params::values(&merged_base);
    for ((name, _, a), (_, _, b)) in params::values(&whole).iter().zip(&before) {
        assert!(a != b, "{name} is not trained");
    }

    for (key, other, said) in [
        (
            "r",
            LoraConfig {
                r: 3,
                ..config(Start::Continue)
            },
            ["3", "has 2"],
        ),
        (
            "alpha",
            LoraConfig {
                alpha: 4.0,
                ..config(Start::Continue)
            },
            ["4", "has 8"],
        ),
        (
            "target_modules",
            LoraConfig {
                target_modules: vec!["q_proj".into()],
                ..config(Start::Continue)
            },
            ["q_proj", "has q_proj, v_proj"],
        ),
    ] {
        let text = lora::adapt(adapted.clone(), &other, 1)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains(key) && said.iter().all(|s| text.contains(s)),
            "{text}"
        );
        lora::adapt(
            adapted.clone(),
            &LoraConfig {
                start: Start::Merge,
                ..other
            },
            1,
        )
        .unwrap();
    }
    let text =
        serde_json::from_value::<LoraConfig>(json!({ "r": 2, "alpha": 8.0, "start": "new" }))
            .unwrap_err()
            .to_string();
    assert!(
        text.contains("start") && text.contains("`new`") && text.contains("merge"),
        "{text}"
    );
}

#[test]
fn parts_of_a_batch_make_the_update_of_the_whole() {
    let toy = Toy::new();
    let laid = collate(&toy.sequences[..7].iter().collect::<Vec<_>>());
    let term = Term {
        batch: laid,
        objective: Objective::Distill {
            divergence: Divergence::forward_kl(),
            fidelity: Fidelity::Paper,
            kd_ratio: 0.5,
        },
        weight: 1.0,
        from_data: true,
    };
    let update = |micro_batch_size, parallel_micro_batches, gradient_checkpointing| {
        let student = toy.student.clone().train();
        let mut optimizer = optim::adamw(&student, 0.01, 0.999);
        let how = Update {
            learning_rate: 1e-3,
            max_grad_norm: 1e9,
            micro_batch_size,
            parallel_micro_batches,
            gradient_checkpointing,
            seed: 0,
            step: 0,
        };
        // A term without targets is ignored.
        let mut nothing = term.clone();
        nothing.batch.targets.clear();
        let terms = [term.clone(), nothing];
        let (student, report) = step::update(
            student,
            &mut optimizer,
            Some(Teacher {
                model: &toy.teacher,
                cache: None,
            }),
            &terms,
            &how,
            Phases::default(),
        )
        .unwrap();
        let weights: Vec<Vec<f32>> = params::values(&student.valid())
            .into_iter()
            .map(|(_, _, values)| values)
            .collect();
        (report, weights)
    };
    let (whole, _) = update(None, 1, false);
    for size in [1, 2, 5] {
        let (parts, weights) = update(Some(size), 1, false);
        // Parallel micro-batches and recomputed layers give the same update, bit by bit.
        for (parallel, checkpointing) in [(3, false), (1, true)] {
            let (other, other_weights) = update(Some(size), parallel, checkpointing);
            assert!(other.loss == parts.loss && other_weights == weights);
        }
        assert!((parts.loss - whole.loss).abs() < 1e-5);
        assert!((parts.grad_norm / whole.grad_norm - 1.0).abs() < 1e-4);
    }
}

#[test]
fn text_adds_a_language_modelling_term() {
    let toy = Toy::new();
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("text");
    // 60 follows 50 only in the text; a document of one token has no target
    let documents: Vec<Vec<u16>> = (0..20)
        .map(|_| vec![50, 60, 50, 60])
        .chain([vec![7]])
        .collect();
    write_indexed(&prefix, &documents).unwrap();
    let text = IndexedTokens::open(&prefix).unwrap();
    let settings = Settings {
        epochs: 1,
        ..settings()
    };
    let after_50 = |text: Option<&IndexedTokens>| {
        let run = tempfile::tempdir().unwrap();
        let method = Method::from_parts("kd", None, json!({})).unwrap();
        toy.run_with_text(run.path(), &method, &settings, None, text);
        let student = checkpoint::load(&student_dir(run.path()), &Device::flex()).unwrap();
        let decoding = Decoding {
            max_new_tokens: 1,
            ..Decoding::greedy()
        };
        let eos = toy.tokenizer.eos();
        generate(
            &student,
            &[vec![50]],
            &[0],
            1,
            &[eos],
            &decoding,
            &mut |_| {},
        )
        .unwrap()[0][0]
    };
    assert_eq!(after_50(Some(&text)), 60);
    assert_ne!(after_50(None), 60);
}

#[test]
fn recomputed_activations_give_the_same_student() {
    let toy = Toy::new();
    let method = Method::from_parts("kd", None, json!({})).unwrap();
    let weights = |gradient_checkpointing| {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            gradient_checkpointing,
            epochs: 1,
            ..settings()
        };
        toy.run(dir.path(), &method, &settings, None);
        std::fs::read(student_dir(dir.path()).join("model.safetensors")).unwrap()
    };
    assert!(weights(true) == weights(false));
}

#[test]
fn the_cached_teacher_teaches_as_the_running_one() {
    let toy = Toy::new();
    let dir = tempfile::tempdir().unwrap();
    let go_on = AtomicBool::new(false);
    cache::write(
        dir.path(),
        "toy",
        &toy.teacher,
        &toy.sequences,
        8,
        CacheMode::F32,
        &go_on,
        &mut |_| {},
    )
    .unwrap();
    let cache = TeacherCache::open(dir.path(), "toy").unwrap();
    let chosen: Vec<&Sequence> = [31, 4, 77].iter().map(|&i| &toy.sequences[i]).collect();
    let term = Term {
        batch: collate(&chosen),
        objective: Objective::Distill {
            divergence: Divergence::reverse_kl(),
            fidelity: Fidelity::Paper,
            kd_ratio: 1.0,
        },
        weight: 1.0,
        from_data: true,
    };
    let how = Update {
        learning_rate: 1e-3,
        max_grad_norm: 1.0,
        micro_batch_size: Some(2),
        parallel_micro_batches: 1,
        gradient_checkpointing: false,
        seed: 0,
        step: 0,
    };
    let update = |cache| {
        let student = toy.student.clone().train();
        let mut optimizer = optim::adamw(&student, 0.01, 0.999);
        let teacher = Some(Teacher {
            model: &toy.teacher,
            cache,
        });
        let terms = [term.clone()];
        let none = Phases::default();
        step::update(student, &mut optimizer, teacher, &terms, &how, none)
            .unwrap()
            .1
    };
    let (with, without) = (update(Some(&cache)), update(None));
    let asked = [with.teacher_tokens, without.teacher_tokens];
    assert_eq!(asked, [with.tokens; 2]);
    assert_eq!(
        (with.cached_tokens, without.cached_tokens),
        (with.tokens, 0)
    );
    assert!((with.loss - without.loss).abs() < 1e-5);
    assert!((with.grad_norm / without.grad_norm - 1.0).abs() < 1e-4);
}

#[test]
fn adapters_alone_are_trained_and_read_back_the_same() {
    let toy = Toy::new();
    let config = LoraConfig {
        r: 2,
        alpha: 8.0,
        dropout: 0.0,
        target_modules: vec!["q_proj".into(), "v_proj".into()],
        start: Start::Continue,
    };
    let settings = Settings {
        lora: Some(config.clone()),
        ..settings()
    };
    let dir = tempfile::tempdir().unwrap();
    let method = Method::from_parts("kd", None, json!({})).unwrap();
    let Outcome::Finished { curve, .. } = toy.run(dir.path(), &method, &settings, None) else {
        panic!("nobody stopped it");
    };
    assert!(curve[3].train_loss < curve[0].train_loss, "{curve:?}");
    let adapter = student_dir(dir.path());
    assert!(adapter.join("adapter_config.json").exists());
    assert!(!adapter.join("model.safetensors").exists());
    // the optimizer only holds two moments of 16 x 2 + 2 x 16 + 16 x 2 + 2 x 8 values each
    let state = std::fs::read_dir(dir.path())
        .unwrap()
        .filter_map(|e| Some(e.ok()?.path().join("optimizer.bpk")))
        .find(|p| p.exists())
        .unwrap();
    let size = std::fs::metadata(state).unwrap().len();
    assert!(size < 8 * 1024, "{size} bytes of optimizer state");

    let adapted = lora::load(toy.student.clone(), &adapter).unwrap();
    let merged = lora::merge(adapted.clone());
    assert!(!lora::tensors(&adapted).is_empty() && lora::tensors(&merged).is_empty());
    let laid = collate(&toy.sequences.iter().collect::<Vec<_>>());
    let hidden = |m: &LanguageModel| target_rows(m, &laid);
    let apart: f32 = (hidden(&adapted) - hidden(&merged))
        .abs()
        .max()
        .into_scalar();
    let moved: f32 = (hidden(&toy.student) - hidden(&merged))
        .abs()
        .max()
        .into_scalar();
    assert!(apart < 1e-5 && moved > 1e-2, "{apart} {moved}");

    let wrong = lora::load(toy.teacher.clone(), &adapter)
        .unwrap_err()
        .to_string();
    assert!(
        wrong.contains("lora_A") && wrong.contains("base"),
        "{wrong}"
    );
    let missing = LoraConfig {
        target_modules: vec!["w_proj".into()],
        ..config
    };
    let error = lora::attach(toy.student, &missing, 1)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("w_proj") && error.contains("q_proj"),
        "{error}"
    );
}
