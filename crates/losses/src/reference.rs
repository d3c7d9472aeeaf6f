//! Every divergence as tensor operations, for any backend: the readable form of what [`row`](crate::row) computes, and the
//! code for devices without a row kernel. In f32 it has five digits. For alpha-beta divergences with alpha + beta near 0,
//! which weigh all tokens alike, only a vocabulary of a few hundred tokens has five digits; the row kernel has no such limit.

mod mixture;
pub(crate) mod pair;

use burn::tensor::{Int, Tensor, TensorData};

pub(crate) use self::mixture::TensorMixture;
pub(crate) use self::pair::{Pair, Terms};

use self::pair::Softmax;
use crate::divergences::Form;
use crate::error::Model;
use crate::tensors::check_shapes;
use crate::{Divergence, Error, Fidelity, Logits, Rows, view};

/// See [`value_and_grad`](crate::value_and_grad).
///
/// # Errors
///
/// Shapes that differ; a row without a finite logit, or with NaN or `+inf`.
pub fn value_and_grad(
    divergence: &Divergence,
    fidelity: Fidelity,
    logits: Logits<Tensor<2>>,
) -> Result<Rows, Error> {
    check_shapes(&logits)?;
    if let Some((view, divergence)) = divergence.seen(logits.student.dims()[1]) {
        return view::tensors::seen(value_and_grad, &divergence, view, fidelity, logits);
    }
    let Logits { student, teacher } = logits;
    if student.dims()[0] == 0 {
        let value = Tensor::zeros([0], &student.device());
        return Ok(Rows::new(value, student));
    }
    let pair = Pair::new(student, teacher)?;
    Ok(rows(divergence, fidelity, &pair))
}

fn rows(divergence: &Divergence, fidelity: Fidelity, pair: &Pair) -> Rows {
    match divergence.definition().form {
        Form::Sum { tensors, .. } => pair.rows(tensors(pair, divergence.values(), fidelity)),
        Form::Rows { tensors } => tensors(pair, divergence.values()),
        Form::Larger(members) => {
            let members = members(divergence.values());
            let [one, two] = members.map(|member| rows(&member, Fidelity::Paper, pair));
            larger(one, two, fidelity)
        }
    }
}

/// See [`cross_entropy_value_and_grad`](crate::cross_entropy_value_and_grad).
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`.
pub fn cross_entropy(student: Tensor<2>, labels: &[u32]) -> Result<Rows, Error> {
    let device = student.device();
    let [n, _] = student.dims();
    let ids: Vec<i32> = labels.iter().map(|&l| l as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), &device);
    let student = Softmax::new(student, Model::Student)?;
    let value = student.log.clone().gather(1, ids.clone());
    let is_label = student.is_at(&ids);
    let others = student.prob.mask_fill(is_label.clone(), 0.0);
    // The label's q - 1, from the sum of the others: the difference has no digits where q is near 1.
    let at_label = others.clone().sum_dim(1).neg().expand(others.dims());
    Ok(Rows::new(
        value.neg().squeeze_dim(1),
        others.mask_where(is_label, at_label),
    ))
}

/// The rows of the larger of two divergences, see [`Form::Larger`].
pub(crate) fn larger(one: Rows, two: Rows, fidelity: Fidelity) -> Rows {
    if fidelity == Fidelity::Official {
        let larger = two.value.clone().sum().into_scalar::<f32>()
            > one.value.clone().sum().into_scalar::<f32>();
        return if larger { two } else { one };
    }
    let larger = two.value.clone().greater(one.value.clone());
    let columns = larger.clone().unsqueeze_dim::<2>(1).expand(one.grad.dims());
    Rows::new(
        one.value.mask_where(larger, two.value),
        one.grad.mask_where(columns, two.grad),
    )
}
