//! Head and loss over the rows that predict a response token, a chunk of rows at a time.
//!
//! The gradients in the hidden states and in the head are formed in the forward pass and each chunk
//! of logits is freed at once, so the memory beyond inputs and outputs is a chunk or two, whatever the
//! number of rows and the size of the vocabulary.

use abkd_losses::{Divergence, Fidelity, cross_entropy_value_and_grad, value, value_and_grad};
use burn::tensor::Tensor;

use crate::Error;

/// What a step minimises, in nats a response token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Cross-entropy of the data: fine-tuning.
    CrossEntropy,
    /// `(1 - kd_ratio) x cross-entropy + kd_ratio x divergence`.
    Distill {
        /// The divergence from the teacher.
        divergence: Divergence,
        /// Paper or official form.
        fidelity: Fidelity,
        /// Share of the divergence, in [0, 1].
        kd_ratio: f64,
    },
}

/// Memory that one chunk of logits may take.
pub const CHUNK_BYTES: usize = 64 << 20;

/// Hidden states of the rows and the head that turns them into logits.
#[derive(Clone)]
pub struct Rows {
    /// `[N, d]`
    pub hidden: Tensor<2>,
    /// `[V, d]`
    pub head: Tensor<2>,
}

/// Loss and gradients of a batch.
pub struct HeadLoss {
    /// Mean over the rows, nats.
    pub loss: f64,
    /// d loss / d hidden, `[N, d]`
    pub d_hidden: Tensor<2>,
    /// d loss / d head, `[V, d]`
    pub d_head: Tensor<2>,
}

/// Mean loss over `N` rows and its gradients in the student's hidden states and head.
///
/// All tensors are on a plain (not autodiff) device. `teacher` may be absent only for
/// [`Objective::CrossEntropy`].
///
/// # Errors
///
/// Logits that are not numbers; vocabularies that differ.
///
/// # Panics
///
/// When the objective needs a teacher and there is none.
pub fn head_loss(
    objective: &Objective,
    student: &Rows,
    teacher: Option<&Rows>,
    labels: &[u32],
    chunk_bytes: usize,
) -> Result<HeadLoss, Error> {
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
    let objective = settle(objective, student, teacher, chunk_bytes)?;
    let transposed = student.head.clone().transpose(); // [d, V]
    let mut total = 0.0;
    let mut d_hidden = Vec::new();
    let mut d_head: Option<Tensor<2>> = None;
    for range in chunks(n, vocab, chunk_bytes) {
        let hidden = student.hidden.clone().slice([range.clone(), 0..d]);
        let logits = hidden.clone().matmul(transposed.clone()); // [C, V]
        let labels = &labels[range.clone()];
        let (sum, grad) = match objective {
            Objective::CrossEntropy => sum_and_grad(cross_entropy_value_and_grad(logits, labels)?),
            Objective::Distill {
                divergence,
                fidelity,
                kd_ratio,
            } => {
                let teacher_logits = teacher.expect("distillation has a teacher").logits(range);
                if kd_ratio == 1.0 {
                    sum_and_grad(value_and_grad(
                        &divergence,
                        fidelity,
                        logits,
                        teacher_logits,
                    )?)
                } else {
                    let (ce, ce_grad) =
                        sum_and_grad(cross_entropy_value_and_grad(logits.clone(), labels)?);
                    let (kd, kd_grad) = sum_and_grad(value_and_grad(
                        &divergence,
                        fidelity,
                        logits,
                        teacher_logits,
                    )?);
                    let rest = 1.0 - kd_ratio;
                    (
                        rest * ce + kd_ratio * kd,
                        ce_grad * rest + kd_grad * kd_ratio,
                    )
                }
            }
        };
        total += sum;
        d_hidden.push(grad.clone().matmul(student.head.clone())); // [C, d]
        let part = grad.transpose().matmul(hidden); // [V, d]
        d_head = Some(match d_head {
            Some(sum) => sum + part,
            None => part,
        });
    }
    let scale = 1.0 / n as f64;
    Ok(HeadLoss {
        loss: total * scale,
        d_hidden: Tensor::cat(d_hidden, 0) * scale,
        d_head: d_head.expect("at least one row") * scale,
    })
}

/// Sum over the rows of the cross-entropy alone, without gradients: for validation.
///
/// # Errors
///
/// Logits that are not numbers.
pub fn cross_entropy_sum(rows: &Rows, labels: &[u32], chunk_bytes: usize) -> Result<f64, Error> {
    let n = rows.hidden.dims()[0];
    let mut total = 0.0;
    for range in chunks(n, rows.head.dims()[0], chunk_bytes) {
        let labels = &labels[range.clone()];
        total += sum_and_grad(cross_entropy_value_and_grad(rows.logits(range), labels)?).0;
    }
    Ok(total)
}

impl Rows {
    fn logits(&self, range: std::ops::Range<usize>) -> Tensor<2> {
        let d = self.hidden.dims()[1];
        self.hidden
            .clone()
            .slice([range, 0..d])
            .matmul(self.head.clone().transpose())
    }
}

fn sum_and_grad(rows: abkd_losses::Rows) -> (f64, Tensor<2>) {
    let values = rows.value.into_data_as::<f32>();
    let values = values.as_slice::<f32>().expect("converted to f32 above");
    (values.iter().map(|&x| f64::from(x)).sum(), rows.grad)
}

fn chunks(n: usize, vocab: usize, bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let rows = (bytes / (4 * vocab)).clamp(1, n.max(1));
    (0..n)
        .step_by(rows)
        .map(move |start| start..(start + rows).min(n))
}

/// AlphaNet takes the larger of two divergences *of the whole batch*, so with several chunks the
/// choice is made before the first of them.
fn settle(
    objective: &Objective,
    student: &Rows,
    teacher: Option<&Rows>,
    chunk_bytes: usize,
) -> Result<Objective, Error> {
    let Objective::Distill {
        divergence: Divergence::AlphaNet { a, b },
        fidelity,
        kd_ratio,
    } = *objective
    else {
        return Ok(*objective);
    };
    let n = student.hidden.dims()[0];
    let vocab = student.head.dims()[0];
    if chunks(n, vocab, chunk_bytes).count() == 1 {
        return Ok(*objective);
    }
    let teacher = teacher.expect("distillation has a teacher");
    let members = [a, b].map(|alpha| Divergence::AlphaBeta {
        alpha,
        beta: 1.0 - alpha,
    });
    let mut sums = [0.0; 2];
    for range in chunks(n, vocab, chunk_bytes) {
        for (sum, member) in sums.iter_mut().zip(&members) {
            let rows = value(
                member,
                fidelity,
                student.logits(range.clone()),
                teacher.logits(range.clone()),
            )?;
            *sum += f64::from(rows.sum().into_scalar::<f32>());
        }
    }
    let divergence = if sums[1] > sums[0] {
        members[1]
    } else {
        members[0]
    };
    Ok(Objective::Distill {
        divergence,
        fidelity,
        kd_ratio,
    })
}
