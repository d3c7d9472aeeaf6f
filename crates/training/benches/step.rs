//! Seconds a sample of an update: fine-tuning, and distillation with the teacher's rows cached. Models have SmolLM2's
//! shape (teacher 30 layers, student 10) and drawn weights, sequences the lengths of 40 of Dolly's, batches are of 8:
//! `cargo bench -p abkd-training --bench step -- sft|fkld|ab f32|bf16 flex|tch [MICRO_BATCH_SIZE] [recompute]`, the last for gradient
//! checkpointing. Also prints the peak memory of the
//! updates, with the teacher no longer in memory.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use abkd_data::{Sequence, batch};
use abkd_losses::Divergence;
use abkd_models::{ModelConfig, Precision};
use abkd_training::cache::{CacheMode, TeacherCache, write};
use abkd_training::step::{Teacher, Term, Update, update};
use abkd_training::timing::Phases;
use abkd_training::{Objective, optim};
use burn::module::Module;
use burn::tensor::Device;

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

fn config(layers: usize) -> ModelConfig {
    let text = format!(
        r#"{{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": {layers}, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 2048, "rope_theta": 100000.0, "tie_word_embeddings": true}}"#
    );
    serde_json::from_str(&text).expect("a configuration")
}

fn main() {
    abkd_host::keep_freed_memory();
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let device = device(has("tch"));
    let precision = if has("bf16") {
        Precision::Bf16
    } else {
        Precision::F32
    };
    // Buckets by length, as in training.
    let mut lengths = LENGTHS;
    lengths.sort_by_key(|(prompt, response)| prompt + response);
    let sequences: Vec<Sequence> = lengths
        .iter()
        .enumerate()
        .map(|(example, &(prompt_len, response))| Sequence {
            example,
            tokens: (0..prompt_len + response)
                .map(|i| ((example * 7919 + i * 104_729) % 49_152) as u32)
                .collect(),
            prompt_len,
        })
        .collect();
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
    let mut teacher = config(if objective == Objective::CrossEntropy {
        1
    } else {
        30
    })
    .init(2, &device)
    .with_precision(precision);
    let folder = tempfile::tempdir().expect("a folder");
    cache(folder.path(), &teacher, &sequences);
    let cache = TeacherCache::open(folder.path(), "bench").expect("just written");
    // Only its head is used from here on.
    teacher = teacher.with_layers(1).expect("it has one");
    reset_peak();
    let mut student = config(10)
        .init(1, &device)
        .with_precision(precision)
        .train();
    let mut optimizer = optim::adamw(&student, 0.01, 0.999);
    let mut samples = Vec::new();
    for round in 0..2 {
        for (i, chunk) in sequences.chunks(BATCH).enumerate() {
            let begun = Instant::now();
            let term = Term {
                batch: batch(&chunk.iter().collect::<Vec<_>>(), 0),
                objective: objective.clone(),
                weight: 1.0,
                from_data: true,
            };
            let teacher = Teacher {
                model: &teacher,
                cache: Some(&cache),
            };
            let how = Update {
                learning_rate: 1e-5,
                max_grad_norm: 1.0,
                micro_batch_size: args.iter().find_map(|a| a.parse().ok()),
                parallel_micro_batches: 1,
                gradient_checkpointing: has("recompute"),
                seed: i as u64,
                step: i,
            };
            student = update(
                student,
                &mut optimizer,
                Some(teacher),
                &[term],
                &how,
                Phases::default(),
            )
            .expect("drawn weights give finite losses")
            .0;
            // The first round warms up.
            if round > 0 {
                samples.push(begun.elapsed().as_secs_f64());
            }
        }
    }
    let seconds = samples.iter().sum::<f64>() / sequences.len() as f64;
    println!("{seconds:.4} s/sample, peak {:.2} GiB", peak());
}

fn cache(folder: &Path, teacher: &abkd_models::LanguageModel, sequences: &[Sequence]) {
    let stop = AtomicBool::new(false);
    write(
        folder,
        "bench",
        teacher,
        sequences,
        0,
        BATCH,
        CacheMode::Bf16,
        &stop,
        &mut |_| {},
    )
    .expect("a writable folder");
}

/// Linux only; elsewhere the peak is not told.
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
