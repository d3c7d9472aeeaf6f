//! What updates and decoding steps of the paper's shapes ask of a card: launches, waits, bytes read back, memory. Kernels
//! are compiled by the real NVRTC, and the driver is `tools/cuda-stub`, which counts and computes nothing:
//! `make test-cuda`. The counts must not exceed those of `results/bench/cuda.csv`.
//!
//! Every case runs in a process of its own, since a memory pool does not shrink.
#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use abkd_data::{Sequence, collate};
use abkd_losses::Divergence;
use abkd_models::generate::{Decoding, Sampler};
use abkd_models::lora::{self, LoraConfig};
use abkd_models::{LanguageModel, ModelConfig, Precision};
use abkd_training::cache::{self, CacheMode, TeacherCache};
use abkd_training::step::{Teacher, Term, Update, update};
use abkd_training::timing::Phases;
use abkd_training::{Objective, optim};
use burn::module::Module;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

/// `struct counts` of `tools/cuda-stub/driver.c`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    launches: u64,
    graph_launches: u64,
    waits: u64,
    uploads: u64,
    uploaded_bytes: u64,
    reads: u64,
    read_bytes: u64,
    copies: u64,
    copied_bytes: u64,
    kernels: u64,
    allocations: u64,
    live_bytes: u64,
    peak_bytes: u64,
}

/// A row of the table: counts of one update or one decoding step; memory is that of the whole case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Cost {
    case: String,
    /// Kernels launched, and graphs replayed.
    launches: f64,
    /// Waits for the card.
    waits: f64,
    /// Bytes read back.
    read_bytes: f64,
    /// Bytes uploaded.
    uploaded_bytes: f64,
    /// Peak of allocated memory, without the first update or answer, which compiles the kernels.
    peak_gb: f64,
}

impl Cost {
    /// Its numbers by name.
    fn numbers(&self) -> [(&'static str, f64); 5] {
        [
            ("launches", self.launches),
            ("waits", self.waits),
            ("read_bytes", self.read_bytes),
            ("uploaded_bytes", self.uploaded_bytes),
            ("peak_gb", self.peak_gb),
        ]
    }
}

/// A function that the stub alone has; `None` where the driver is another one.
fn of_the_stub(name: &CStr) -> Option<*mut libc::c_void> {
    // SAFETY: both take strings that end with a 0, and the driver is loaded already or loads here.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            return None;
        }
        Some(libc::dlsym(library, name.as_ptr())).filter(|function| !function.is_null())
    }
}

/// The stub's counts.
fn counts() -> Option<Counts> {
    type Read = unsafe extern "C" fn(*mut Counts);
    let mut counts = Counts::default();
    let function = of_the_stub(c"stub_counts")?;
    // SAFETY: the stub's function has this type.
    unsafe { std::mem::transmute::<*mut libc::c_void, Read>(function)(&mut counts) };
    Some(counts)
}

/// Begins the peak of memory anew.
fn mark() {
    type Mark = unsafe extern "C" fn();
    let function = of_the_stub(c"stub_mark").expect("the stub");
    // SAFETY: the stub's function has this type.
    unsafe { std::mem::transmute::<*mut libc::c_void, Mark>(function)() };
}

fn gpt2(width: usize, layers: usize) -> LanguageModel {
    let heads = width / 64;
    model(&format!(
        r#"{{"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": {width}, "n_layer": {layers},
            "n_head": {heads}}}"#
    ))
}

fn llama(width: usize, inner: usize, layers: usize) -> LanguageModel {
    model(&format!(
        r#"{{"model_type": "llama", "vocab_size": 32000, "hidden_size": {width}, "intermediate_size": {inner},
            "num_hidden_layers": {layers}, "num_attention_heads": 32, "max_position_embeddings": 2048}}"#
    ))
}

fn model(config: &str) -> LanguageModel {
    let config: ModelConfig = serde_json::from_str(config).expect("a configuration");
    let model = config.zeros(&Device::cuda(0));
    model.with_precision(Precision::Bf16)
}

/// A model that is not trained, as the runner moves it to a card: only its rounded weights.
fn frozen(model: LanguageModel) -> LanguageModel {
    let model = model.frozen();
    begin_anew();
    model
}

/// Frees the pool's unused memory and resets the peak. While a kernel is compiled, the program goes on and allocates memory for
/// its next launches, so the first update or answer needs more memory than all later ones.
fn begin_anew() {
    let device = Device::cuda(0);
    device.sync().expect("the stub finishes everything");
    device.memory_cleanup();
    mark();
}

fn adapted(model: LanguageModel) -> LanguageModel {
    let config: LoraConfig =
        serde_json::from_str(r#"{"r": 16, "alpha": 64, "dropout": 0.1}"#).expect("settings");
    lora::attach(frozen(model), &config, 1).expect("it has q and v")
}

/// What a case does.
#[allow(clippy::large_enum_variant)] // one a process
enum Case {
    Update {
        student: LanguageModel,
        teacher: Option<LanguageModel>,
        /// Whether the teacher's hidden states are cached. If not, the teacher runs in each update.
        cached: bool,
        batch: usize,
        micro: Option<usize>,
        recompute: bool,
    },
    Decode {
        models: Vec<(LanguageModel, f64)>,
        rows: usize,
    },
    /// Four times as many prompts as rows, with answers of 8 tokens, less twice as many, halved: the first refill of a graph costs
    /// a comparison more.
    Refill { model: LanguageModel, rows: usize },
}

/// The name of a case and the function that builds it: memory holds only one case at a time.
type Named = (&'static str, fn() -> Case);

/// Sequences have 512 tokens, half of them the prompt's; prompts of answers have 256.
const CASES: [Named; 12] = [
    ("update, GPT-2 ABKD, teacher live", || Case::Update {
        student: gpt2(768, 12),
        teacher: Some(frozen(gpt2(1600, 48))),
        batch: 16,
        micro: None,
        recompute: false,
        cached: false,
    }),
    ("update, GPT-2 ABKD, teacher cached", || Case::Update {
        student: gpt2(768, 12),
        // With cached hidden states only the teacher's head runs, so one layer is enough.
        teacher: Some(frozen(gpt2(1600, 1))),
        batch: 16,
        micro: None,
        recompute: false,
        cached: true,
    }),
    ("update, XL SFT", || Case::Update {
        student: gpt2(1600, 48),
        teacher: None,
        batch: 16,
        micro: None,
        recompute: true,
        cached: false,
    }),
    ("update, 7B LoRA SFT", || Case::Update {
        student: adapted(llama(4096, 11008, 32)),
        teacher: None,
        batch: 8,
        micro: Some(2),
        recompute: true,
        cached: false,
    }),
    ("update, 3B LoRA ABKD, 7B live", || Case::Update {
        student: adapted(llama(3200, 8640, 26)),
        teacher: Some(frozen(llama(4096, 11008, 32))),
        batch: 8,
        micro: Some(2),
        recompute: true,
        cached: false,
    }),
    ("update, 3B LoRA ABKD, 7B cached", || Case::Update {
        student: adapted(llama(3200, 8640, 26)),
        teacher: Some(frozen(llama(4096, 11008, 1))),
        batch: 8,
        micro: Some(2),
        recompute: true,
        cached: true,
    }),
    ("decode, GPT-2", || Case::Decode {
        models: vec![(frozen(gpt2(768, 12)), 1.0)],
        rows: 64,
    }),
    ("decode, XL", || Case::Decode {
        models: vec![(frozen(gpt2(1600, 48)), 1.0)],
        rows: 64,
    }),
    ("decode, 3B", || Case::Decode {
        models: vec![(frozen(llama(3200, 8640, 26)), 1.0)],
        rows: 32,
    }),
    ("decode, 7B", || Case::Decode {
        models: vec![(frozen(llama(4096, 11008, 32)), 1.0)],
        rows: 32,
    }),
    ("decode, 3B and 7B mixed", || Case::Decode {
        models: vec![
            (frozen(llama(3200, 8640, 26)), 0.8),
            (frozen(llama(4096, 11008, 32)), 0.2),
        ],
        rows: 64,
    }),
    ("64 new prompts for finished answers, GPT-2", || {
        Case::Refill {
            model: frozen(gpt2(768, 12)),
            rows: 64,
        }
    }),
];

/// Counts of an update after the first two, of a decoding step, or of a refill.
fn measure(case: Case) -> (f64, Counts, Counts) {
    match case {
        Case::Update {
            student,
            teacher,
            batch,
            micro,
            recompute,
            cached,
        } => {
            let mut student = student.train();
            let mut optimizer = optim::adamw(&student, 0.01, 0.999);
            let objective = match teacher {
                None => Objective::CrossEntropy,
                Some(_) => {
                    let divergence =
                        Divergence::from_parts("ab", &Default::default()).expect("a known id");
                    Objective::Distill {
                        divergence,
                        fidelity: divergence.default_fidelity(),
                        kd_ratio: 1.0,
                    }
                }
            };
            let sequence = |example| Sequence {
                example,
                tokens: vec![7; 512],
                prompt_len: 256,
            };
            let sequences: Vec<Sequence> = (0..batch).map(sequence).collect();
            let folder = tempfile::tempdir().expect("a folder");
            let cache = teacher.as_ref().filter(|_| cached).map(|teacher| {
                let stop = AtomicBool::new(false);
                let mode = CacheMode::Bf16;
                cache::write(
                    folder.path(),
                    "x",
                    teacher,
                    &sequences,
                    8,
                    mode,
                    &stop,
                    &mut |_| {},
                )
                .expect("a folder");
                TeacherCache::open(folder.path(), "x").expect("just written")
            });
            let batch = collate(&sequences.iter().collect::<Vec<_>>());
            let mut before = Counts::default();
            for step in 0..3 {
                if step == 1 {
                    begin_anew();
                }
                before = counts().expect("the stub");
                let term = Term {
                    batch: batch.clone(),
                    objective: objective.clone(),
                    weight: 1.0,
                    from_data: cached,
                };
                let how = Update {
                    learning_rate: 1e-5,
                    max_grad_norm: 1.0,
                    micro_batch_size: micro,
                    parallel_micro_batches: 1,
                    gradient_checkpointing: recompute,
                    seed: 1,
                    step,
                };
                let teacher = teacher.as_ref().map(|model| Teacher {
                    model,
                    cache: cache.as_ref(),
                });
                let done = update(
                    student,
                    &mut optimizer,
                    teacher,
                    &[term],
                    &how,
                    Phases::default(),
                );
                student = done.expect("zeros are finite").0;
            }
            (1.0, before, counts().expect("the stub"))
        }
        Case::Decode { models, rows } => {
            let mut answer = answering(models, rows);
            // The first answer compiles the kernels. The other two differ by 32 steps, whose cost is the difference.
            let first = answer(rows, 40);
            begin_anew();
            let (short, long) = (answer(rows, 8), answer(rows, 40));
            (32.0, less(short, first), less(long, short))
        }
        Case::Refill { model, rows } => {
            let mut answer = answering(vec![(model, 1.0)], rows);
            let first = answer(2 * rows, 8);
            begin_anew();
            let (few, many) = (answer(2 * rows, 8), answer(4 * rows, 8));
            (2.0, less(few, first), less(many, few))
        }
    }
}

/// Counts so far when so many prompts have got an answer of so many tokens.
fn answering(models: Vec<(LanguageModel, f64)>, rows: usize) -> impl FnMut(usize, usize) -> Counts {
    let mut sampler = {
        let models = models.iter().map(|(model, share)| (model, *share));
        Sampler::mixture(&models.collect::<Vec<_>>()).expect("one vocabulary")
    };
    drop(models);
    move |prompts, tokens| {
        let examples: Vec<u64> = (0..prompts as u64).collect();
        let prompts = vec![vec![5u32; 256]; prompts];
        let decoding = Decoding {
            max_new_tokens: tokens,
            batch_size: rows,
            ..Decoding::sampling()
        };
        let answers = sampler.generate(&prompts, &examples, 1, &[], &decoding, &mut |_| {});
        assert_eq!(answers.expect("zeros are finite").len(), prompts.len());
        counts().expect("the stub")
    }
}

/// Counts since earlier ones; memory as it is.
fn less(now: Counts, then: Counts) -> Counts {
    Counts {
        launches: now.launches - then.launches,
        graph_launches: now.graph_launches - then.graph_launches,
        waits: now.waits - then.waits,
        read_bytes: now.read_bytes - then.read_bytes,
        uploaded_bytes: now.uploaded_bytes - then.uploaded_bytes,
        ..now
    }
}

const CASE: &str = "ABKD_CUDA_CASE";

/// One case, for the other test, which calls this in a process of its own.
#[test]
fn one_case() {
    let Ok(name) = std::env::var(CASE) else {
        return;
    };
    let (_, case) = CASES.iter().find(|(n, _)| *n == name).expect("a case");
    let (steps, before, after) = measure(case());
    // What runs before a measurement may wait once more than what runs after it.
    let each = |of: fn(&Counts) -> u64| {
        let more = of(&after) as f64 - of(&before) as f64;
        (more.max(0.0) / steps * 100.0).round() / 100.0
    };
    let cost = Cost {
        case: name,
        launches: each(|c| c.launches + c.graph_launches),
        waits: each(|c| c.waits),
        read_bytes: each(|c| c.read_bytes),
        uploaded_bytes: each(|c| c.uploaded_bytes),
        peak_gb: (after.peak_bytes as f64 / 1e7).round() / 100.0,
    };
    println!("\nCOST {}", serde_json::to_string(&cost).expect("numbers"));
}

#[test]
fn nothing_asks_more_of_a_card_than_the_table_says() {
    if counts().is_none() {
        eprintln!("skipped: the driver is not the stub; make test-cuda");
        return;
    }
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results/bench/cuda.csv");
    let only = std::env::var("CASES").unwrap_or_default();
    let mut measured = Vec::new();
    for (name, _) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let output = Command::new(std::env::current_exe().expect("a program"))
            .args(["--exact", "one_case", "--nocapture"])
            .env(CASE, name)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let cost = text.lines().find_map(|line| line.strip_prefix("COST "));
        let cost = cost.unwrap_or_else(|| {
            panic!(
                "{name}: {text}\n{}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        eprintln!("{cost}");
        measured.push(serde_json::from_str::<Cost>(cost).expect("a cost"));
    }
    if std::env::var_os("WRITE").is_some() {
        let mut writer = csv::Writer::from_path(&table).expect("a writable table");
        measured
            .iter()
            .for_each(|cost| writer.serialize(cost).expect("a writable table"));
        writer.flush().expect("a writable table");
        return;
    }
    let mut reader = csv::Reader::from_path(&table).expect("results/bench/cuda.csv");
    let rows = reader.deserialize().map(|row| row.expect("a row"));
    let allowed: BTreeMap<String, Cost> =
        rows.map(|cost: Cost| (cost.case.clone(), cost)).collect();
    let mut over = Vec::new();
    for cost in &measured {
        let allowed = allowed
            .get(&cost.case)
            .unwrap_or_else(|| panic!("no row for {}", cost.case));
        for ((what, is), (_, may)) in cost.numbers().into_iter().zip(allowed.numbers()) {
            // The pool and CubeCL's bookkeeping differ from run to run.
            if is > may * 1.05 + 2.0 * f64::from(what != "peak_gb") {
                over.push(format!(
                    "{}: {what} {is}, and {may} are in the table",
                    cost.case
                ));
            }
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}
