//! One update of the student.

use abkd_data::Batch;
use abkd_models::LanguageModel;
use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::head::{CHUNK_BYTES, HeadLoss, Objective, Rows, cross_entropy_sum, head_loss};
use crate::{Error, optim};

/// What an update reports.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Mean loss over the response tokens, before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Response tokens.
    pub tokens: usize,
}

/// Hidden states of the batch's target rows: `[N, d]`.
pub fn target_rows(model: &LanguageModel, batch: &Batch) -> Tensor<2> {
    let device = model.device();
    let ids: Vec<i32> = batch.input_ids.iter().map(|&t| t as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch.rows, batch.width]), &device);
    let hidden = model.hidden(ids, &[], None);
    let [b, t, d] = hidden.dims();
    hidden
        .reshape([b * t, d])
        .select(0, target_positions(batch, &device))
}

fn target_positions(batch: &Batch, device: &Device) -> Tensor<1, Int> {
    let positions: Vec<i32> = batch.targets.iter().map(|(at, _)| *at as i32).collect();
    let n = positions.len();
    Tensor::from_data(TensorData::new(positions, [n]), device)
}

fn labels(batch: &Batch) -> Vec<u32> {
    batch.targets.iter().map(|(_, label)| *label).collect()
}

/// One update: forward, loss, backward, clipping, AdamW.
///
/// `student` is on an autodiff device, `teacher` on a plain one. `step` counts from 0 and keys the
/// dropout masks.
///
/// # Errors
///
/// A loss or gradient that is not finite; vocabularies that differ.
#[allow(clippy::too_many_arguments)]
pub fn update(
    student: LanguageModel,
    optimizer: &mut ModuleOptimizer,
    teacher: Option<&LanguageModel>,
    objective: &Objective,
    batch: &Batch,
    learning_rate: f64,
    max_grad_norm: f64,
    step: usize,
) -> Result<(LanguageModel, StepReport), Error> {
    let rows = target_rows(&student, batch);
    let student_rows = Rows {
        hidden: rows.clone().inner(),
        head: student.head().val().inner(),
    };
    let teacher_rows = match objective {
        Objective::CrossEntropy => None,
        Objective::Distill { .. } => teacher.map(|t| Rows {
            hidden: target_rows(t, batch),
            head: t.head().val(),
        }),
    };
    let HeadLoss {
        loss,
        d_hidden,
        d_head,
    } = head_loss(
        objective,
        &student_rows,
        teacher_rows.as_ref(),
        &labels(batch),
        CHUNK_BYTES,
    )?;
    if !loss.is_finite() {
        return Err(Error::NotFinite {
            step: step + 1,
            what: "the loss",
            value: loss,
        });
    }
    // The product's gradient in the hidden states is d_hidden, which is all that backward needs.
    let mut grads = (rows * Tensor::from_inner(d_hidden)).sum().backward();
    let mut grads = GradientsParams::from_module(&mut grads, &student);
    let head = student.head();
    if head.val().is_require_grad() {
        // A tied head has a gradient from the embedding already.
        let sum = match grads.remove::<2>(head.id) {
            Some(grad) => grad + d_head,
            None => d_head,
        };
        grads.register(head.id, sum);
    }
    let grad_norm = optim::global_norm(&student, &grads);
    if !grad_norm.is_finite() {
        return Err(Error::NotFinite {
            step: step + 1,
            what: "the gradient norm",
            value: grad_norm,
        });
    }
    let grads = optim::clip(&student, grads, grad_norm, max_grad_norm);
    let student = optimizer.step(learning_rate, student, grads);
    Ok((
        student,
        StepReport {
            loss,
            grad_norm,
            tokens: batch.targets.len(),
        },
    ))
}

/// Mean cross-entropy over the response tokens of `batches`.
///
/// # Errors
///
/// Logits that are not numbers.
pub fn cross_entropy(model: &LanguageModel, batches: &[Batch]) -> Result<f64, Error> {
    let model = model.valid();
    let (mut total, mut tokens) = (0.0, 0);
    for batch in batches {
        let rows = Rows {
            hidden: target_rows(&model, batch),
            head: model.head().val(),
        };
        total += cross_entropy_sum(&rows, &labels(batch), CHUNK_BYTES)?;
        tokens += batch.targets.len();
    }
    Ok(total / tokens.max(1) as f64)
}
