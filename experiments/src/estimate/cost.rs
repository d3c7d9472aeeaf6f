//! FLOPs, tokens, memory and disk of a task.

use abkd_models::ModelConfig;
use abkd_training::cache::CacheMode;
use abkd_training::{Method, Settings};

use super::Estimate;

/// Cost of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Updates.
    pub updates: usize,
    /// Tokens that go through a model in training, prompts included.
    pub trained_tokens: f64,
    /// Tokens sampled.
    pub sampled_tokens: f64,
    /// Floating-point operations of the matrix products.
    pub flops: f64,
    /// Bytes of weights that sampling reads, once per decoding step of a batch.
    pub sampling_bytes: f64,
    /// Peak memory by part, bytes.
    pub memory: Memory,
    /// Disk space of the results, bytes.
    pub disk: f64,
}

/// Memory by part, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Weights of student (or the one model) and teacher.
    pub weights: f64,
    /// Gradients.
    pub gradients: f64,
    /// AdamW's two moments.
    pub optimizer: f64,
    /// Activations kept for the backward pass, or keys and values while sampling.
    pub activations: f64,
    /// Logits: chunks of student, teacher and gradient.
    pub logits: f64,
}

impl Memory {
    /// All parts.
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.logits
    }
}

/// FLOPs of the layers for one token after `context` others, forward.
fn layers_flops(shape: &ModelConfig, context: f64) -> f64 {
    let p = shape.parameters();
    let attention = 4.0 * context * shape.width() as f64;
    p.layers as f64 * (2.0 * p.layer as f64 + attention)
}

fn head_flops(shape: &ModelConfig) -> f64 {
    2.0 * (shape.vocab_size() * shape.width()) as f64
}

/// Cost of answering `n` prompts.
pub(super) fn sampling(shape: &ModelConfig, n: f64, prompt: f64, new: f64, batch: usize) -> Cost {
    let length = prompt + new;
    let layers = layers_flops(shape, length / 2.0) * length;
    let p = shape.parameters();
    let read = 4.0 * (p.layer * p.layers + shape.vocab_size() * shape.width()) as f64;
    let kv = 8.0 * (p.layers * shape.width()) as f64 * length * batch as f64;
    Cost {
        sampled_tokens: n * new,
        flops: n * (layers + head_flops(shape) * new),
        sampling_bytes: (n / batch as f64).ceil() * new * read,
        memory: Memory {
            weights: 4.0 * p.total() as f64,
            activations: kv,
            logits: 4.0 * (batch * shape.vocab_size()) as f64,
            ..Memory::default()
        },
        ..Cost::default()
    }
}

/// Cost of the teacher's hidden states of the data.
pub(super) fn hidden(estimate: &Estimate) -> Cost {
    let (lengths, teacher) = (estimate.lengths, &estimate.teacher);
    let p = &estimate.spec.profile;
    let (n, length) = (lengths.sequences as f64, lengths.prompt + lengths.response);
    let bytes = p.teacher_cache.bytes() as f64 * teacher.width() as f64;
    Cost {
        flops: n * layers_flops(teacher, length / 2.0) * length,
        memory: Memory {
            weights: 4.0 * teacher.parameters().total() as f64,
            ..Memory::default()
        },
        disk: n * lengths.response * bytes,
        ..Cost::default()
    }
}

/// Cost of training a student (or fine-tuning a teacher) of the given shape.
pub(super) fn training(
    estimate: &Estimate,
    method: &Method,
    settings: &Settings,
    shape: &ModelConfig,
) -> Cost {
    let lengths = estimate.lengths;
    let p = &estimate.spec.profile;
    let updates = settings.updates(lengths.sequences);
    let samples = updates as f64 * settings.batch_size as f64;
    let length = lengths.prompt + lengths.response;
    let counts = shape.parameters();
    let trained = settings.lora.as_ref().map_or(counts.total(), |lora| {
        lora.r * 2 * (shape.width() * 2) * counts.layers
    }) as f64;
    // forward 1, gradient of the activations 1, gradient of the weights 1 if they are trained
    let passes = if settings.lora.is_some() { 2.0 } else { 3.0 }
        + if settings.gradient_checkpointing {
            1.0
        } else {
            0.0
        };
    let mut a_sample = passes * layers_flops(shape, length / 2.0) * length
        + passes * head_flops(shape) * lengths.response;
    let mut cost = Cost {
        updates,
        ..Cost::default()
    };
    if method.needs_teacher() {
        let teacher = &estimate.teacher;
        let cached = p.teacher_cache != CacheMode::Off && method.uses_teacher_on_data();
        if !cached {
            a_sample += layers_flops(teacher, length / 2.0) * length;
        }
        a_sample += head_flops(teacher) * lengths.response;
    }
    cost.flops = samples * a_sample * method.passes();
    for (shape, answers, new) in sampled(estimate, method, samples) {
        let part = sampling(shape, answers, lengths.prompt, new, settings.batch_size);
        cost.flops += part.flops;
        cost.sampled_tokens += part.sampled_tokens;
        cost.sampling_bytes += part.sampling_bytes;
    }
    // validations
    let new = lengths.response.min(p.validation.max_new_tokens as f64);
    let answers = settings.validations(lengths.sequences) as f64 * p.validation.examples as f64;
    let part = sampling(shape, answers, lengths.prompt, new, p.validation.batch_size);
    cost.flops += part.flops;
    cost.sampled_tokens += part.sampled_tokens;
    cost.sampling_bytes += part.sampling_bytes;

    cost.trained_tokens = samples * length;
    let teacher = if method.needs_teacher() {
        4.0 * estimate.teacher.parameters().total() as f64
    } else {
        0.0
    };
    let rows = settings
        .micro_batch_size
        .map_or(settings.batch_size, |rows| {
            settings
                .batch_size
                .min(rows.saturating_mul(settings.parallel_micro_batches.unwrap_or(1)))
        }) as f64;
    // the longest batches are about twice the mean
    let width = (2.0 * length).min(p.data.max_length as f64);
    cost.memory = Memory {
        weights: 4.0 * counts.total() as f64 + teacher,
        gradients: 4.0 * trained,
        optimizer: 8.0 * trained,
        activations: activations(shape, settings, rows, width),
        logits: chunk(
            shape,
            rows * width * if teacher > 0.0 { 2.0 } else { 1.0 },
            crate::backend::chunk_bytes(&p.backend),
        ),
    };
    cost.disk = match &settings.lora {
        Some(_) => 4.0 * trained,
        None => 4.0 * counts.total() as f64,
    };
    cost
}

/// Bytes of activations. Values per token and layer: about 16 d, plus the attention weights, H per key.
fn activations(shape: &ModelConfig, settings: &Settings, rows: f64, width: f64) -> f64 {
    let d = shape.width() as f64;
    let layers = shape.parameters().layers as f64;
    let a_layer = rows * width * (16.0 * d + 3.0 * shape.heads() as f64 * width);
    let kept = if settings.gradient_checkpointing {
        a_layer + layers * rows * width * d
    } else {
        layers * a_layer
    };
    4.0 * kept
}

/// Bytes of the logits in memory at once, for `rows` rows of either model and chunks of at most `limit` bytes.
fn chunk(shape: &ModelConfig, rows: f64, limit: usize) -> f64 {
    let all = 4.0 * rows * shape.vocab_size() as f64;
    all.min(limit as f64)
}

/// Answers that a method samples during training on `samples` sequences: model, number, length.
fn sampled<'a>(
    estimate: &'a Estimate,
    method: &Method,
    samples: f64,
) -> Vec<(&'a ModelConfig, f64, f64)> {
    let p = &estimate.spec.profile;
    let length = |limit: Option<usize>| {
        let limit = limit.unwrap_or(p.data.max_new_tokens()) as f64;
        estimate.lengths.response.min(limit)
    };
    let sampled = method.sampled().into_iter().map(|sampled| {
        let model = if sampled.by_teacher {
            &estimate.teacher
        } else {
            &estimate.student
        };
        (model, sampled.share * samples, length(sampled.longest))
    });
    sampled.collect()
}
