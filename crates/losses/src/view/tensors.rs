//! The same as tensor operations, for any device.

use burn::tensor::{DType, IndexingUpdateOp, Tensor, TensorData};

use super::View;
use crate::{Divergence, Error, Fidelity, Logits, Rows};

/// `compute` on what is seen of the logits, in f32.
pub(crate) fn seen(
    compute: fn(&Divergence, Fidelity, Logits<Tensor<2>>) -> Result<Rows, Error>,
    divergence: &Divergence,
    view: View,
    fidelity: Fidelity,
    logits: Logits<Tensor<2>>,
) -> Result<Rows, Error> {
    let dtype = logits.student.dtype();
    let divided = |logits: Tensor<2>| logits.cast(DType::F32) * view.of_logits();
    let (z, t) = (divided(logits.student), divided(logits.teacher));
    let [n, vocab] = z.dims();
    let Rows { value, grad, .. } = match view.classes(vocab) {
        None => assisted(compute, divergence, view, fidelity, z, t)?,
        Some(top) => {
            let (_, tokens) = t.clone().topk_with_indices(top, 1);
            let device = z.device();
            let add = |values: Tensor<2>| {
                let none = Tensor::zeros([n, vocab], &device);
                none.scatter(1, tokens.clone(), values, IndexingUpdateOp::Add)
            };
            let own = add(Tensor::ones([n, top], &device)).greater_elem(0.5);
            // The logit of all others together: -inf where they have no mass.
            let others = |x: &Tensor<2>| {
                let x = x.clone().mask_fill(own.clone(), f32::NEG_INFINITY);
                let max = x.clone().max_dim(1).clamp_min(f32::MIN);
                (x - max.clone()).exp().sum_dim(1).log() + max
            };
            let (all, of_teacher) = (others(&z), others(&t));
            let classes = |x: &Tensor<2>, others: Tensor<2>| {
                Tensor::cat(vec![x.clone().gather(1, tokens.clone()), others], 1)
            };
            let (student, teacher) = (classes(&z, all.clone()), classes(&t, of_teacher));
            let Rows { value, grad, .. } =
                assisted(compute, divergence, view, fidelity, student, teacher)?;
            let of_own = add(grad.clone().slice([0..n, 0..top]));
            let share = (z - all.clamp_min(f32::MIN)).exp().mask_fill(own, 0.0);
            let of_others = share * grad.slice([0..n, top..top + 1]);
            Rows::new(value, of_own + of_others)
        }
    };
    Ok(Rows::new(
        value * view.of_value(),
        (grad * view.of_grad()).cast(dtype),
    ))
}

/// `compute` on the student, or on the assistant in its place.
fn assisted(
    compute: fn(&Divergence, Fidelity, Logits<Tensor<2>>) -> Result<Rows, Error>,
    divergence: &Divergence,
    view: View,
    fidelity: Fidelity,
    student: Tensor<2>,
    teacher: Tensor<2>,
) -> Result<Rows, Error> {
    let Some(assistant) = view.assistant() else {
        return compute(divergence, fidelity, Logits { student, teacher });
    };
    // The assistant needs f64 and is seldom used: the row kernel's code computes it on the host.
    let device = student.device();
    let [n, vocab] = student.dims();
    let floats = |x: &Tensor<2>| -> Vec<f32> {
        let data = x.clone().into_data_as::<f32>();
        data.as_slice().expect("read as f32").to_vec()
    };
    let tensor = |x: Vec<f32>| Tensor::<2>::from_data(TensorData::new(x, [n, vocab]), &device);
    let z = floats(&student);
    let (logits, shares) = assistant.of(&z, &floats(&teacher), vocab);
    let logits = Logits {
        student: tensor(logits),
        teacher,
    };
    let Rows { value, grad, .. } = compute(divergence, fidelity, logits)?;
    let mut grad = floats(&grad);
    shares.student(&mut grad, &z, vocab);
    Ok(Rows::new(value, tensor(grad)))
}
