//! Seconds per sample of an update: fine-tuning, and distillation with the teacher's rows cached. Models have SmolLM2's
//! shape (teacher 30 layers, student 10) and random weights, sequences have the lengths of 40 of Dolly's, and batches of 8
//! are drawn as in training:
//! `cargo bench -p abkd-training --bench step -- sft|fkld|ab f32|bf16 flex|tch [MICRO_BATCH_SIZE] [recompute]`; `recompute`
//! is gradient checkpointing. Also prints the peak memory of the updates, with a one-layer teacher in memory, and the time
//! of the update's matrix products at the throughput of a product of 2048 x 2048 matrices.
//!
//! For `benches/pytorch/step.py`: `batches` prints the prompt and response tokens of each sequence of each batch; with
//! `wait` every update waits for a line on standard input.

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use abkd_data::{Sequence, batches_of_epoch, collate};
use abkd_losses::Divergence;
use abkd_models::{LanguageModel, ModelConfig, Precision};
use abkd_training::cache::{CacheMode, TeacherCache, write};
use abkd_training::step::{Teacher, Term, Update, update};
use abkd_training::timing::Phases;
use abkd_training::{Objective, optim};
use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, Tensor};

/// Tokens of prompt and response.
const LENGTHS: [(usize, usize); 40] = [
    (47, 70),
    (43, 112),
    (212, 251),
    (36, 54),
    (256, 27),
    (41, 9),
    (41, 290),
    (72, 37),
    (236, 76),
    (151, 16),
    (42, 3),
    (37, 157),
    (43, 4),
    (35, 29),
    (39, 41),
    (122, 15),
    (41, 78),
    (38, 60),
    (39, 109),
    (50, 17),
    (46, 67),
    (43, 26),
    (48, 76),
    (40, 6),
    (81, 41),
    (44, 29),
    (39, 83),
    (43, 8),
    (34, 85),
    (37, 2),
    (103, 231),
    (179, 99),
    (40, 36),
    (38, 14),
    (55, 32),
    (38, 2),
    (102, 31),
    (248, 44),
    (40, 10),
    (208, 35),
];
const BATCH: usize = 8;
/// Measured batches; one more runs first as warm-up.
const MEASURED: usize = 5;
const VOCAB: usize = 49_152;
const WIDTH: usize = 576;
const LAYERS: usize = 10;
const TEACHER_LAYERS: usize = 30;
/// Number of parameters of a layer's projections.
const LAYER: usize = 2 * WIDTH * WIDTH + 2 * WIDTH * 192 + 3 * WIDTH * 1536;

fn config(layers: usize) -> ModelConfig {
    let text = format!(
        r#"{{"model_type": "llama", "vocab_size": {VOCAB}, "hidden_size": {WIDTH}, "intermediate_size": 1536,
        "num_hidden_layers": {layers}, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 2048, "rope_theta": 100000.0, "tie_word_embeddings": true}}"#
    );
    serde_json::from_str(&text).expect("a configuration")
}

fn main() {
    abkd_host::share_cores_with_libtorch();
    abkd_host::keep_freed_memory();
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let sequences: Vec<Sequence> = LENGTHS
        .iter()
        .enumerate()
        .map(|(example, &(prompt_len, response))| Sequence {
            example,
            tokens: (0..prompt_len + response)
                .map(|i| ((example * 7919 + i * 104_729) % VOCAB) as u32)
                .collect(),
            prompt_len,
        })
        .collect();
    let batches = draw(&sequences);
    if has("batches") {
        for batch in &batches {
            let lengths = batch
                .iter()
                .map(|s| (s.prompt_len, s.tokens.len() - s.prompt_len));
            let words: Vec<String> = lengths.map(|(p, r)| format!("{p}+{r}")).collect();
            println!("{}", words.join(" "));
        }
        return;
    }
    let device = device(has("tch"));
    let precision = if has("bf16") {
        Precision::Bf16
    } else {
        Precision::F32
    };
    let objective = match ["fkld", "ab"].into_iter().find(|id| has(id)) {
        None => Objective::CrossEntropy,
        Some(id) => {
            let divergence = Divergence::from_parts(id, &Default::default()).expect("a known id");
            Objective::Distill {
                divergence,
                fidelity: divergence.default_fidelity(),
                kd_ratio: 1.0,
            }
        }
    };
    let layers = if objective.has_teacher() {
        TEACHER_LAYERS
    } else {
        1
    };
    let mut teacher = config(layers).init(2, &device).with_precision(precision);
    let folder = tempfile::tempdir().expect("a folder");
    cache(folder.path(), &teacher, &sequences);
    let cache = TeacherCache::open(folder.path(), "bench").expect("just written");
    // Only the teacher's head is used from here on.
    teacher = teacher.with_layers(1).expect("it has one");
    reset_peak();
    let student = config(LAYERS)
        .init(1, &device)
        .with_precision(precision)
        .train();
    let mut run = Run {
        optimizer: optim::adamw(&student, 0.01, 0.999),
        student: Some(student),
        teacher: Teacher {
            model: &teacher,
            cache: Some(&cache),
        },
        objective,
        micro_batch_size: args.iter().find_map(|a| a.parse().ok()),
        gradient_checkpointing: has("recompute"),
        step: 0,
    };
    // The first update is the warm-up.
    let mut measured = Vec::new();
    if has("wait") {
        println!("ready");
        for (_, batch) in std::io::stdin().lock().lines().zip(&batches) {
            let seconds = run.update(batch);
            measured.push((batch, seconds));
            println!("{seconds} {}", tokens(batch));
        }
    } else {
        measured.extend(batches.iter().map(|batch| (batch, run.update(batch))));
    }
    let peak = peak();
    measured.remove(0);
    let samples = (BATCH * measured.len()) as f64;
    let seconds = measured.iter().map(|(_, s)| s).sum::<f64>() / samples;
    let work: f64 = measured
        .iter()
        .map(|(batch, _)| work(batch, run.objective.has_teacher()))
        .sum();
    let rate = rate(&device, precision);
    let products = work / samples / rate;
    println!(
        "{seconds:.4} s/sample, peak {peak:.2} GiB, products {products:.4} s/sample at {:.0} GFLOP/s: {:.2} times that",
        rate / 1e9,
        seconds / products
    );
}

/// Batches as in training: drawn uniformly, each sorted by length.
fn draw(sequences: &[Sequence]) -> Vec<Vec<&Sequence>> {
    let epochs = (0..).flat_map(|epoch| batches_of_epoch(sequences.len(), BATCH, 1, epoch));
    epochs
        .take(1 + MEASURED)
        .map(|indices| {
            let mut batch: Vec<&Sequence> = indices.into_iter().map(|i| &sequences[i]).collect();
            batch.sort_by_key(|s| s.tokens.len());
            batch
        })
        .collect()
}

struct Run<'a> {
    student: Option<LanguageModel>,
    optimizer: optim::AdamW,
    teacher: Teacher<'a>,
    objective: Objective,
    micro_batch_size: Option<usize>,
    gradient_checkpointing: bool,
    step: usize,
}

impl Run<'_> {
    /// Runs an update and returns its seconds.
    fn update(&mut self, batch: &[&Sequence]) -> f64 {
        let begun = Instant::now();
        let term = Term {
            batch: collate(batch),
            objective: self.objective.clone(),
            weight: 1.0,
            from_data: true,
        };
        let how = Update {
            learning_rate: 1e-5,
            max_grad_norm: 1.0,
            micro_batch_size: self.micro_batch_size,
            parallel_micro_batches: 1,
            gradient_checkpointing: self.gradient_checkpointing,
            seed: self.step as u64,
            step: self.step,
        };
        let (student, report) = update(
            self.student.take().expect("put back by the update before"),
            &mut self.optimizer,
            Some(self.teacher),
            &[term],
            &how,
            Phases::default(),
        )
        .expect("drawn weights give finite losses");
        self.student = Some(student);
        self.step += 1;
        if std::env::var_os("PHASES").is_some() {
            eprintln!("{:?}", report.phases);
        }
        begun.elapsed().as_secs_f64()
    }
}

fn tokens(batch: &[&Sequence]) -> usize {
    batch.iter().map(|s| s.tokens.len() - 1).sum()
}

/// Floating-point operations of an update's matrix products: the student's layers and head forward and, twice as many,
/// backward; the teacher's head. Attention counts only the keys that the causal mask allows.
fn work(batch: &[&Sequence], teacher: bool) -> f64 {
    let rows: usize = batch.iter().map(|s| s.tokens.len() - s.prompt_len).sum();
    let pairs: usize = batch
        .iter()
        .map(|s| s.tokens.len() * (s.tokens.len() - 1) / 2)
        .sum();
    let layers = 3 * LAYERS * (LAYER * tokens(batch) + 2 * WIDTH * pairs);
    let heads = (3 + usize::from(teacher)) * VOCAB * WIDTH * rows;
    2.0 * (layers + heads) as f64
}

/// Floating-point operations per second of a product of 2048 x 2048 matrices, best of 8.
fn rate(device: &Device, precision: Precision) -> f64 {
    const N: usize = 2048;
    let random = || {
        let x = Tensor::<2>::random([N, N], Distribution::Normal(0.0, 1.0), device);
        match precision {
            Precision::F32 => x,
            Precision::Bf16 => x.cast(DType::BF16),
        }
    };
    let (a, b) = (random(), random());
    let seconds = (0..8)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(precision.product(a.clone(), b.clone()));
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (N * N * N) as f64 / seconds
}

fn cache(folder: &Path, teacher: &LanguageModel, sequences: &[Sequence]) {
    let stop = AtomicBool::new(false);
    write(
        folder,
        "bench",
        teacher,
        sequences,
        BATCH,
        CacheMode::Bf16,
        &stop,
        &mut |_| {},
    )
    .expect("a writable folder");
}

/// Linux only; elsewhere the peak is printed as NaN.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak() -> f64 {
    abkd_host::peak_memory().map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 30))
}

fn device(libtorch: bool) -> Device {
    if libtorch {
        abkd_host::libtorch().expect("this build has no libtorch: --features tch")
    } else {
        Device::flex()
    }
}
