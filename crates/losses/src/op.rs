//! The differentiable forms: a Burn operation whose value and gradient are already known, so that a backward pass is one
//! product, in place where nothing else holds the gradient.

#![allow(deprecated)] // Burn will drop libtorch one day

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

use crate::{
    Divergence, Error, Fidelity, Logits, Rows, cross_entropy_value_and_grad, value_and_grad,
};

/// Divergence of each row, differentiable in the student's logits. The teacher is a constant, whatever
/// device it comes from. On a plain device this is [`value`](crate::value).
///
/// The gradient is computed with the value and kept for the backward pass: `[N, V]`, and nothing else of that size. It is a
/// constant there: no second derivatives.
///
/// # Errors
///
/// As [`value_and_grad`].
pub fn divergence(
    divergence: &Divergence,
    fidelity: Fidelity,
    logits: Logits<Tensor<2>>,
) -> Result<Tensor<1>, Error> {
    let Logits { student, teacher } = logits;
    let constant = Logits {
        student: student.clone().inner(),
        teacher: teacher.inner(),
    };
    let rows = value_and_grad(divergence, fidelity, constant)?;
    Ok(differentiable(student, rows))
}

/// Cross-entropy of each row, differentiable in the logits as [`divergence`] is.
///
/// # Errors
///
/// As [`cross_entropy_value_and_grad`].
pub fn cross_entropy(student: Tensor<2>, labels: &[u32]) -> Result<Tensor<1>, Error> {
    let rows = cross_entropy_value_and_grad(student.clone().inner(), labels)?;
    Ok(differentiable(student, rows))
}

/// The rows' values as a function of the logits that they were computed from.
fn differentiable(logits: Tensor<2>, Rows { value, grad, .. }: Rows) -> Tensor<1> {
    let [logits, grad] = [logits, grad].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::rows(logits, value.into_dispatch(), grad))
}

#[backend_extension(
    Autodiff,
    Flex,
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
)]
trait RowsOp: Backend {
    /// `value`, whose gradient in `logits` is `grad`. Without autodiff the result is `value` alone.
    ///
    /// # Shapes
    ///
    /// - `logits`, `grad`: `[N, V]`; `value`: `[N]`
    #[allow(unused_variables)]
    fn rows(
        logits: FloatTensor<Self>,
        value: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        value
    }
}

impl RowsOp for Flex {}
#[cfg(feature = "tch")]
impl RowsOp for burn::backend::LibTorch {}
#[cfg(feature = "cube")]
impl RowsOp for burn_cubecl::CubeBackend {}

impl<B: RowsOp, C: CheckpointStrategy> RowsOp for Autodiff<B, C> {
    fn rows(
        logits: FloatTensor<Self>,
        value: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let value = value.into_primitive();
        match RowsBackward
            .prepare::<C>([logits.node()])
            // never recomputed from the logits
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((grad.into_primitive(), logits.dtype()), value),
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }
}

#[derive(Debug)]
struct RowsBackward;

impl<B: Backend> Backward<B, 1> for RowsBackward {
    /// Gradient of each row's value, and the type of the logits, which may be narrower.
    type State = (FloatTensor<B>, DType);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let [logits] = ops.parents;
        if let Some(logits) = logits {
            let (grad, dtype) = ops.state;
            let [n] = upstream.shape().dims();
            // Values may be wider than the gradient.
            let upstream = B::float_cast(upstream, grad.dtype().into());
            let upstream = B::float_reshape(upstream, [n, 1].into());
            let grad = B::float_mul(grad, upstream);
            grads.register::<B>(logits.id, B::float_cast(grad, dtype.into()));
        }
    }
}
