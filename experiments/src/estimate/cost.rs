//! FLOPs, tokens, memory and disk of a task.

use abkd_models::{ModelConfig, Precision};
use abkd_training::Settings;

use super::Estimate;
use crate::backend;
use crate::task::Training;

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
    /// Kernels that the host launches on a card.
    pub launches: f64,
    /// Kernels of the decoding steps, which a card replays as graphs.
    pub replayed: f64,
    /// Peak memory by part, bytes.
    pub memory: Memory,
    /// Disk space of the results, bytes.
    pub disk: f64,
}

impl Cost {
    /// Adds what [`sampling`] costs, but for its memory.
    fn add_answers(&mut self, answers: &Self) {
        self.flops += answers.flops;
        self.sampled_tokens += answers.sampled_tokens;
        self.sampling_bytes += answers.sampling_bytes;
        self.replayed += answers.replayed;
    }
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

/// Kernels of a layer on a card, as counted (docs/gpu.md): forward, backward, computed again for the backward pass, of the
/// adapters of two projections in all three, and of a decoding step.
const FORWARD: f64 = 31.0;
const BACKWARD: f64 = 54.0;
const AGAIN: f64 = 48.0;
const ADAPTED: f64 = 24.0;
const STEP: f64 = 45.0;
/// Tensors of a layer: of GPT-2, whose biases are trained, and the factors of an adapter of two projections.
const TENSORS: f64 = 12.0;
const ADAPTERS: f64 = 4.0;
/// Launches of an update for each tensor that is trained.
const A_TENSOR: f64 = 1.2;

/// FLOPs of the layers for one token after `context` others, forward.
fn layers_flops(shape: &ModelConfig, context: f64) -> f64 {
    let p = shape.parameters();
    let attention = 4.0 * context * shape.width() as f64;
    p.layers as f64 * (2.0 * p.layer as f64 + attention)
}

fn head_flops(shape: &ModelConfig) -> f64 {
    2.0 * (shape.vocab_size() * shape.width()) as f64
}

/// Bytes per number.
struct Bytes {
    /// In the factors of the matrix products.
    factor: f64,
    /// In a projection that is not trained: a card holds it in the number format of the products.
    frozen: f64,
}

impl Bytes {
    fn of(estimate: &Estimate) -> Self {
        let p = &estimate.spec.profile;
        let factor = match p.precision {
            Precision::F32 => 4.0,
            Precision::Bf16 => 2.0,
        };
        let on_card = backend::is_card(&p.backend);
        Self {
            factor,
            frozen: if on_card { factor } else { 4.0 },
        }
    }

    /// Bytes of a model that is not trained.
    fn model(&self, shape: &ModelConfig) -> f64 {
        self.layers(shape, shape.parameters().layers)
    }

    /// The same with fewer layers.
    fn layers(&self, shape: &ModelConfig, layers: usize) -> f64 {
        let p = shape.parameters();
        let others = p.total() - p.layer * p.layers;
        self.frozen * (p.layer * layers) as f64 + 4.0 * others as f64
    }
}

/// Cost of answering `n` prompts with at most `longest` tokens each.
pub(super) fn sampling(
    estimate: &Estimate,
    shape: &ModelConfig,
    n: f64,
    longest: usize,
    batch: usize,
) -> Cost {
    let bytes = Bytes::of(estimate);
    let new = estimate.lengths.response.min(longest as f64);
    let length = estimate.lengths.prompt + new;
    let layers = layers_flops(shape, length / 2.0) * length;
    let p = shape.parameters();
    let read = bytes.factor * (p.layer * p.layers + shape.vocab_size() * shape.width()) as f64;
    let steps = (n / batch as f64).ceil() * new;
    let kv = 2.0 * bytes.factor * (p.layers * shape.width()) as f64 * length * batch as f64;
    Cost {
        sampled_tokens: n * new,
        flops: n * (layers + head_flops(shape) * new),
        sampling_bytes: steps * read,
        replayed: steps * STEP * p.layers as f64,
        memory: Memory {
            weights: bytes.model(shape),
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
            weights: Bytes::of(estimate).model(teacher),
            ..Memory::default()
        },
        disk: n * lengths.response * bytes,
        ..Cost::default()
    }
}

/// Cost of training a student (or fine-tuning a teacher) of the given shape.
pub(super) fn training(estimate: &Estimate, training: &Training, shape: &ModelConfig) -> Cost {
    let lengths = estimate.lengths;
    let p = &estimate.spec.profile;
    let (method, settings) = (&training.method, &training.settings);
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
    let cached = training.hidden.is_some();
    let mut a_sample = passes * layers_flops(shape, length / 2.0) * length
        + passes * head_flops(shape) * lengths.response;
    let mut cost = Cost {
        updates,
        ..Cost::default()
    };
    if training.teacher.is_some() {
        let teacher = &estimate.teacher;
        if !cached {
            a_sample += layers_flops(teacher, length / 2.0) * length;
        }
        a_sample += head_flops(teacher) * lengths.response;
    }
    cost.flops = samples * a_sample * method.passes();
    for sampled in method.sampled() {
        let model = if sampled.by_teacher {
            &estimate.teacher
        } else {
            &estimate.student
        };
        let (n, batch) = (sampled.share * samples, settings.batch_size);
        let longest = sampled.longest.unwrap_or(p.data.max_new_tokens());
        cost.add_answers(&sampling(estimate, model, n, longest, batch));
    }
    let v = &training.validation;
    let n = settings.validations(lengths.sequences) as f64 * v.examples as f64;
    let validations = sampling(estimate, shape, n, v.max_new_tokens, v.batch_size);
    cost.add_answers(&validations);

    cost.trained_tokens = samples * length;
    let bytes = Bytes::of(estimate);
    let teacher = match training.teacher {
        Some(_) if training.needs_head_alone() => bytes.layers(&estimate.teacher, 1),
        Some(_) => bytes.model(&estimate.teacher),
        None => 0.0,
    };
    let own = match settings.lora {
        Some(_) => bytes.model(shape),
        None => 4.0 * counts.total() as f64,
    };
    let rows = settings
        .micro_batch_size
        .map_or(settings.batch_size, |rows| {
            settings
                .batch_size
                .min(rows.saturating_mul(settings.parallel_micro_batches.unwrap_or(1)))
        }) as f64;
    let layers = counts.layers as f64;
    let mut a_part = layers * (FORWARD + BACKWARD);
    if settings.gradient_checkpointing {
        a_part += layers * AGAIN;
    }
    if settings.lora.is_some() {
        a_part += layers * ADAPTED;
    }
    if training.teacher.is_some() && !cached {
        a_part += FORWARD * estimate.teacher.parameters().layers as f64;
    }
    let tensors = if settings.lora.is_some() {
        ADAPTERS
    } else {
        TENSORS
    };
    let parts = (settings.batch_size as f64 / rows).ceil();
    cost.launches =
        updates as f64 * method.passes() * (parts * a_part + A_TENSOR * tensors * layers);
    // the longest batches are about twice the mean
    let width = (2.0 * length).min(p.data.max_length as f64);
    cost.memory = Memory {
        weights: own + teacher,
        gradients: 4.0 * trained,
        optimizer: 8.0 * trained,
        activations: activations(&p.backend, shape, settings, rows, width),
        logits: logits(
            estimate,
            shape,
            rows * width * lengths.response / length,
            if teacher > 0.0 { 2.0 } else { 1.0 },
        ),
    };
    cost.disk = match &settings.lora {
        Some(_) => 4.0 * trained,
        None => 4.0 * counts.total() as f64,
    };
    cost
}

/// Bytes of activations: about 16 d values per token and layer, and the attention weights. The backward pass computes attention
/// weights again: in host memory in small blocks, on CubeCL's devices one layer at a time, in five matrices. Only libtorch on a
/// card keeps them instead, in three matrices per layer.
fn activations(
    backend: &str,
    shape: &ModelConfig,
    settings: &Settings,
    rows: f64,
    width: f64,
) -> f64 {
    let d = shape.width() as f64;
    let layers = shape.parameters().layers as f64;
    let weights = shape.heads() as f64 * rows * width * width;
    let (kept, passing) = match backend {
        "tch-cuda" => (3.0 * weights, 0.0),
        _ if backend::is_card(backend) => (0.0, 5.0 * weights),
        _ => (0.0, 0.0),
    };
    let a_layer = rows * width * 16.0 * d + kept;
    let kept = if settings.gradient_checkpointing {
        a_layer + layers * rows * width * d
    } else {
        layers * a_layer
    };
    4.0 * (kept + passing)
}

/// Bytes of the logits in memory at once, for `rows` rows of each of `models` models: chunks of both models' logits, and the
/// gradient of the student's; on a card also in f32, where the kernels read and write.
fn logits(estimate: &Estimate, shape: &ModelConfig, rows: f64, models: f64) -> f64 {
    let backend = &estimate.spec.profile.backend;
    let factor = Bytes::of(estimate).factor;
    let vocabulary = shape.vocab_size() as f64;
    let chunk = backend::chunk_bytes(backend) as f64 / (4.0 * vocabulary * models);
    let number = if backend::is_card(backend) && factor < 4.0 {
        factor + 4.0
    } else {
        factor
    };
    rows.min(chunk.max(1.0)) * vocabulary * number * (models + 1.0)
}
