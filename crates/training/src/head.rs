//! Head and loss over the rows that predict a response token, a chunk of rows at a time.
//!
//! The gradients in the hidden states and in the head are computed in the forward pass, and each chunk
//! of logits is freed at once. So the memory beyond inputs and outputs is one chunk with both models' logits,
//! for any number of rows and any vocabulary. (A loss of two parts needs a second gradient per chunk.)

mod masses;

use std::borrow::Cow;
use std::ops::Range;

use abkd_losses::{Divergence, Fidelity, Logits, cross_entropy_value_and_grad, value_and_grad};
use abkd_models::Precision;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::Error;

pub use masses::{Masses, Shape};

/// Loss that a step minimises, in nats per response token.
#[derive(Clone, Debug, PartialEq)]
pub enum Objective {
    /// Cross-entropy of the data: fine-tuning.
    CrossEntropy,
    /// `(1 - kd_ratio) x cross-entropy + kd_ratio x divergence`.
    Distill {
        /// The divergence from the teacher.
        divergence: Divergence,
        /// Paper or official form of the divergence.
        fidelity: Fidelity,
        /// Share of the divergence, in [0, 1].
        kd_ratio: f64,
    },
    /// MiniLLM's policy gradient on the reverse KL divergence.
    Policy(PolicyRows),
}

impl Objective {
    /// Whether the objective needs the teacher's distributions.
    pub fn has_teacher(&self) -> bool {
        match self {
            Self::CrossEntropy => false,
            Self::Distill { kd_ratio, .. } => *kd_ratio != 0.0,
            Self::Policy(_) => true,
        }
    }
}

/// Per-token inputs of MiniLLM's policy loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyRows {
    /// `log q` of each token when it was sampled.
    pub old_log_prob: Vec<f32>,
    /// Advantage `A` of each token.
    pub advantage: Vec<f32>,
    /// Importance weight `w` of each token.
    pub weight: Vec<f32>,
    /// PPO's clip: the ratio is clipped to `1 - clip ..= 1 + clip`.
    pub clip: f32,
    /// Whether the single-step term `KL(q, p)` is added.
    pub single_step: bool,
}

impl PolicyRows {
    /// Loss of a token and its derivative in `log q`, for PPO's
    /// `max(-A ratio, -A clip(ratio))` with `ratio = w q / q_old`.
    pub fn token(&self, row: usize, log_prob: f32) -> (f32, f32) {
        let ratio = (log_prob - self.old_log_prob[row]).exp() * self.weight[row];
        let advantage = self.advantage[row];
        let free = -advantage * ratio;
        let clipped = -advantage * ratio.clamp(1.0 - self.clip, 1.0 + self.clip);
        if free >= clipped {
            (free, free)
        } else {
            (clipped, 0.0)
        }
    }
}

/// Memory limit of a chunk of logits, the teacher's included.
pub const CHUNK_BYTES: usize = 64 << 20;

/// [`CHUNK_BYTES`] of a card. After each chunk the host waits for the card.
pub const CARD_CHUNK_BYTES: usize = 2 << 30;

/// Memory limit of a chunk of logits on `device`.
pub fn chunk_bytes(device: &Device) -> usize {
    match abkd_host::is_card(device) {
        true => CARD_CHUNK_BYTES,
        false => CHUNK_BYTES,
    }
}

/// Hidden states of the rows and the head that turns them into logits.
#[derive(Clone)]
pub struct Rows {
    /// `[N, d]`
    pub hidden: Tensor<2>,
    /// `[V, d]`
    pub head: Tensor<2>,
    /// Precision of the matrix products.
    pub precision: Precision,
}

/// Loss and gradients of a batch.
pub struct HeadLoss {
    /// Scaled sum over the rows, nats.
    pub loss: f64,
    /// d loss / d hidden, `[N, d]`
    pub d_hidden: Tensor<2>,
    /// d loss / d head, `[V, d]`; absent where the head is frozen.
    pub d_head: Option<Tensor<2>>,
}

/// Loss over `N` rows, summed and scaled, and its gradients in the student's hidden states and head.
///
/// All tensors are on a plain (not autodiff) device. `teacher` may be absent only for
/// [`Objective::CrossEntropy`]. `scale` is 1/N for the mean, or less where the rows are a part of an
/// update. Without `head_gradient` the head is frozen and its gradient is not computed.
///
/// # Errors
///
/// Logits that are NaN or +inf; vocabularies of different sizes.
///
/// # Panics
///
/// When the objective needs a teacher and there is none; when there are no rows.
pub fn head_loss(
    objective: &Objective,
    student: &Rows,
    teacher: Option<&Rows>,
    labels: &[u32],
    scale: f64,
    head_gradient: bool,
    chunk_bytes: usize,
) -> Result<HeadLoss, Error> {
    let (student, teacher) = (&student.rounded(), teacher.map(Rows::rounded));
    let teacher = teacher.as_ref();
    let [n, d] = student.hidden.dims();
    let vocab = student.head.dims()[0];
    if let Some(teacher) = teacher {
        let other = teacher.head.dims()[0];
        if other != vocab {
            return Err(Error::Vocabulary {
                teacher: other,
                student: vocab,
            });
        }
    }
    let chunk_bytes = chunk_bytes / (1 + usize::from(teacher.is_some()));
    let objective = settle(objective, student, teacher, chunk_bytes)?;
    let mut total = 0.0;
    let mut d_hidden = Vec::new();
    let mut d_head: Option<Tensor<2>> = None;
    for range in chunks(n, vocab, chunk_bytes) {
        let hidden = student.hidden.clone().slice([range.clone(), 0..d]);
        let logits = student.logits(range.clone()); // [C, V]
        let teacher_logits = || {
            teacher
                .expect("this objective needs a teacher")
                .logits(range.clone())
        };
        let (sum, grad) = chunk_loss(&objective, logits, teacher_logits, labels, range.clone())
            .map_err(Error::in_chunk(range.start))?;
        total += sum;
        let precision = student.precision;
        d_hidden.push(precision.matmul(grad.clone(), student.head.clone())); // [C, d]
        if head_gradient {
            // [V, d] is much larger than its factors, so a factor is scaled and the product added in place.
            let (grad, hidden) = (grad.transpose(), hidden * scale);
            d_head = Some(match d_head {
                Some(sum) => precision.add_matmul(sum, grad, hidden),
                None => precision.matmul(grad, hidden),
            });
        }
    }
    Ok(HeadLoss {
        loss: total * scale,
        d_hidden: Tensor::cat(d_hidden, 0) * scale,
        d_head,
    })
}

/// Sum of the loss over the rows `range` and its gradient in their logits `[C, V]`.
fn chunk_loss(
    objective: &Objective,
    logits: Tensor<2>,
    teacher_logits: impl Fn() -> Tensor<2>,
    labels: &[u32],
    range: Range<usize>,
) -> Result<(f64, Tensor<2>), abkd_losses::Error> {
    let labels = &labels[range.clone()];
    // In bfloat16 a gradient is rounded once, as a factor of its products; sums of gradients are computed in f32 first.
    let logits = match objective {
        Objective::CrossEntropy => logits,
        Objective::Distill { kd_ratio, .. } if [0.0, 1.0].contains(kd_ratio) => logits,
        _ => logits.cast(DType::F32),
    };
    match objective {
        Objective::CrossEntropy => Ok(sum_and_grad(cross_entropy_value_and_grad(logits, labels)?)),
        Objective::Distill {
            divergence,
            fidelity,
            kd_ratio,
        } => {
            if *kd_ratio == 0.0 {
                return Ok(sum_and_grad(cross_entropy_value_and_grad(logits, labels)?));
            }
            let kd = |logits| {
                value_and_grad(
                    divergence,
                    *fidelity,
                    Logits {
                        student: logits,
                        teacher: teacher_logits(),
                    },
                )
            };
            if *kd_ratio == 1.0 {
                return Ok(sum_and_grad(kd(logits)?));
            }
            let (ce, ce_grad) = sum_and_grad(cross_entropy_value_and_grad(logits.clone(), labels)?);
            let (kd, kd_grad) = sum_and_grad(kd(logits)?);
            let rest = 1.0 - kd_ratio;
            Ok((
                rest * ce + kd_ratio * kd,
                ce_grad * rest + kd_grad * *kd_ratio,
            ))
        }
        Objective::Policy(rows) => {
            let ce = cross_entropy_value_and_grad(logits.clone(), labels)?;
            let (losses, slopes): (Vec<f32>, Vec<f32>) = ce
                .values()
                .into_iter()
                .zip(range)
                .map(|(negative, row)| rows.token(row, -negative))
                .unzip();
            // d log q / dz is minus the cross-entropy's gradient.
            let n = slopes.len();
            let slopes = Tensor::<1>::from_data(TensorData::new(slopes, [n]), &logits.device());
            let grad = ce.grad * slopes.neg().unsqueeze_dim::<2>(1);
            let sum: f64 = losses.into_iter().map(f64::from).sum();
            if !rows.single_step {
                return Ok((sum, grad));
            }
            let (kl, kl_grad) = sum_and_grad(value_and_grad(
                &Divergence::reverse_kl(),
                Fidelity::Paper,
                Logits {
                    student: logits,
                    teacher: teacher_logits(),
                },
            )?);
            Ok((sum + kl, grad + kl_grad))
        }
    }
}

/// Log-probability of each row's label.
///
/// # Errors
///
/// Logits that are NaN or +inf.
pub fn log_probs(rows: &Rows, labels: &[u32], chunk_bytes: usize) -> Result<Vec<f32>, Error> {
    let rows = rows.rounded();
    let n = rows.hidden.dims()[0];
    let mut out = Vec::with_capacity(n);
    for range in chunks(n, rows.head.dims()[0], chunk_bytes) {
        let (start, labels) = (range.start, &labels[range.clone()]);
        let losses = cross_entropy_value_and_grad(rows.logits(range), labels)
            .map_err(Error::in_chunk(start))?;
        out.extend(losses.values().into_iter().map(|x| -x));
    }
    Ok(out)
}

impl Rows {
    /// The rows with the head rounded to the precision of its products: once, instead of once per chunk.
    fn rounded(&self) -> Self {
        let mut rows = self.clone();
        if rows.precision == Precision::Bf16 {
            rows.head = rows.head.cast(DType::BF16);
        }
        rows
    }

    /// In the product's precision where the losses' kernels read it, else f32: bfloat16 would round the loss values too.
    fn logits(&self, range: Range<usize>) -> Tensor<2> {
        let d = self.hidden.dims()[1];
        let hidden = self.hidden.clone().slice([range, 0..d]);
        let head = self.head.clone().transpose();
        let logits = self.precision.product(hidden, head);
        if abkd_host::serves(&logits.device()) {
            logits
        } else {
            logits.cast(DType::F32)
        }
    }
}

fn sum_and_grad(rows: abkd_losses::Rows) -> (f64, Tensor<2>) {
    let sum = rows.values().into_iter().map(f64::from).sum();
    (sum, rows.grad)
}

fn chunks(n: usize, vocab: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = (bytes / (4 * vocab)).clamp(1, n.max(1));
    (0..n)
        .step_by(rows)
        .map(move |start| start..(start + rows).min(n))
}

/// With several chunks, a divergence whose form is chosen by all rows of the batch is chosen before the first chunk.
fn settle<'a>(
    objective: &'a Objective,
    student: &Rows,
    teacher: Option<&Rows>,
    chunk_bytes: usize,
) -> Result<Cow<'a, Objective>, Error> {
    let Objective::Distill {
        divergence,
        fidelity,
        kd_ratio,
    } = *objective
    else {
        return Ok(Cow::Borrowed(objective));
    };
    let (Some(mut choice), Some(teacher)) = (divergence.choice(fidelity), teacher) else {
        return Ok(Cow::Borrowed(objective));
    };
    let chunks = || {
        chunks(
            student.hidden.dims()[0],
            student.head.dims()[0],
            chunk_bytes,
        )
    };
    if kd_ratio == 0.0 || chunks().count() == 1 {
        return Ok(Cow::Borrowed(objective));
    }
    for range in chunks() {
        let logits = || Logits {
            student: student.logits(range.clone()),
            teacher: teacher.logits(range.clone()),
        };
        choice.add(logits).map_err(Error::in_chunk(range.start))?;
    }
    let (divergence, fidelity) = choice.chosen();
    Ok(Cow::Owned(Objective::Distill {
        divergence,
        fidelity,
        kd_ratio,
    }))
}

#[cfg(test)]
mod tests;
