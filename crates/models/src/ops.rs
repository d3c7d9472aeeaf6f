//! What a pass does beside products, each way in one walk over host memory: activations, and the masked softmax of
//! attention in a graph. Burn's are several operations that each keep a result for the backward pass, and Flex's exponentials are
//! scalar. For Flex alone: libtorch and GPUs have kernels of their own.

use abkd_host::math::{shifted_exp, sigmoid};
use abkd_host::{LANES, dispatch};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

/// Numbers that a thread takes at a time.
const PART: usize = 1 << 14;

/// Whether these operations serve tensors of a device, in a graph or not.
pub(crate) fn serve(device: &Device) -> bool {
    *device == Device::flex()
}

/// An activation with its own backward: see [`gelu_new`](crate::activation::gelu_new).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Activation {
    Silu,
    Gelu,
}

/// `f(x)`, entry by entry.
pub(crate) fn activation(x: Tensor<3>, f: Activation) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::activation(x.into_dispatch(), f))
}

/// Softmax of `scores + bias` over the last dimension.
///
/// # Shapes
///
/// - `scores`: `[B, H, T, S]`; `bias`, a constant: `[B or 1, 1, T, S]`
pub(crate) fn masked_softmax(scores: Tensor<4>, bias: Tensor<4>) -> Tensor<4> {
    let bias = bias.inner().into_dispatch();
    Tensor::from_dispatch(Dispatch::masked_softmax(scores.into_dispatch(), bias))
}

#[backend_extension(Autodiff, Flex)]
trait HostOps: Backend {
    fn activation(x: FloatTensor<Self>, f: Activation) -> FloatTensor<Self>;
    fn masked_softmax(scores: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Their backward passes.
trait HostGradients: Backend {
    /// `g f'(x)`
    fn activation_gradient(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        f: Activation,
    ) -> FloatTensor<Self>;
    /// `y (g - sum(g y))` for each row.
    fn softmax_gradient(y: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self>;
}

type FlexTensor = FloatTensor<Flex>;

/// Changes the numbers of `x`, in place where nothing else holds them.
fn change(x: FlexTensor, f: impl FnOnce(&mut [f32])) -> FlexTensor {
    // Not `to_contiguous` alone: it would hold the numbers a second time.
    let mut x = if x.is_contiguous() {
        x
    } else {
        x.to_contiguous()
    };
    let (start, end) = x.layout().contiguous_offsets().expect("made contiguous");
    f(&mut x.storage_mut()[start..end]);
    x
}

fn read(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("contiguous numbers in f32")
}

impl HostOps for Flex {
    fn activation(x: FlexTensor, f: Activation) -> FlexTensor {
        change(x, |x| {
            x.par_chunks_mut(PART).for_each(|x| match f {
                Activation::Silu => silu(x),
                Activation::Gelu => gelu(x),
            });
        })
    }

    fn masked_softmax(scores: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let [_, heads, width, keys] = scores.shape().dims();
        let one_for_all = bias.shape()[0] == 1;
        let bias = bias.to_contiguous();
        let bias = read(&bias);
        change(scores, |scores| {
            // The rows of a head.
            let rows = scores.par_chunks_mut(width * keys).enumerate();
            rows.for_each(|(i, scores)| {
                let first = if one_for_all {
                    0
                } else {
                    i / heads * width * keys
                };
                let bias = bias[first..].chunks_exact(keys);
                for (scores, bias) in scores.chunks_exact_mut(keys).zip(bias) {
                    softmax(scores, bias);
                }
            });
        })
    }
}

impl HostGradients for Flex {
    fn activation_gradient(x: FlexTensor, g: FlexTensor, f: Activation) -> FlexTensor {
        let x = x.to_contiguous();
        let x = read(&x);
        change(g, |g| {
            let parts = g.par_chunks_mut(PART).zip(x.par_chunks(PART));
            parts.for_each(|(g, x)| match f {
                Activation::Silu => silu_gradient(g, x),
                Activation::Gelu => gelu_gradient(g, x),
            });
        })
    }

    fn softmax_gradient(y: FlexTensor, g: FlexTensor) -> FlexTensor {
        let [_, _, width, keys] = y.shape().dims();
        let y = y.to_contiguous();
        let y = read(&y);
        change(g, |g| {
            let heads = g
                .par_chunks_mut(width * keys)
                .zip(y.par_chunks(width * keys));
            heads.for_each(|(g, y)| {
                for (g, y) in g.chunks_exact_mut(keys).zip(y.chunks_exact(keys)) {
                    softmax_row_gradient(g, y);
                }
            });
        })
    }
}

impl<B: HostOps + HostGradients, C: CheckpointStrategy> HostOps for Autodiff<B, C> {
    fn activation(x: FloatTensor<Self>, f: Activation) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl<B: HostGradients> Backward<B, 1> for Step {
            type State = (FloatTensor<B>, Activation);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let (x, f) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |g| {
                    B::activation_gradient(x, g, f)
                });
            }
        }

        match Step.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                prep.finish((x.clone(), f), B::activation(x, f))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::activation(x.into_primitive(), f)),
        }
    }

    fn masked_softmax(scores: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl<B: HostGradients> Backward<B, 1> for Step {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let y = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |g| B::softmax_gradient(y, g));
            }
        }

        let node = scores.node();
        let y = B::masked_softmax(scores.into_primitive(), bias.into_primitive());
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(y.clone(), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

dispatch!(pub(crate) silu => silu_values(x: &mut [f32]));
dispatch!(pub(crate) gelu => gelu_values(x: &mut [f32]));
dispatch!(silu_gradient => silu_slopes(g: &mut [f32], x: &[f32]));
dispatch!(gelu_gradient => gelu_slopes(g: &mut [f32], x: &[f32]));
dispatch!(softmax => softmax_values(scores: &mut [f32], bias: &[f32]));
dispatch!(softmax_row_gradient => softmax_slopes(g: &mut [f32], y: &[f32]));

#[inline(always)]
fn silu_values(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid(*x);
    }
}

#[inline(always)]
fn silu_slopes(g: &mut [f32], x: &[f32]) {
    for (g, &x) in g.iter_mut().zip(x) {
        let s = sigmoid(x);
        *g *= (x * s).mul_add(1.0 - s, s);
    }
}

/// 2 sqrt(2/pi)
pub(crate) const DOUBLE_ROOT: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2;
const LINE: f32 = DOUBLE_ROOT as f32;
const CUBE: f32 = (0.044715 * DOUBLE_ROOT) as f32;

#[inline(always)]
fn gelu_values(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid((*x * *x).mul_add(CUBE, LINE) * *x);
    }
}

#[inline(always)]
fn gelu_slopes(g: &mut [f32], x: &[f32]) {
    for (g, &x) in g.iter_mut().zip(x) {
        let square = x * x;
        let s = sigmoid(square.mul_add(CUBE, LINE) * x);
        let inner = square.mul_add(3.0 * CUBE, LINE);
        *g *= (x * inner * s).mul_add(1.0 - s, s);
    }
}

#[inline(always)]
fn softmax_values(scores: &mut [f32], bias: &[f32]) {
    for (score, bias) in scores.iter_mut().zip(bias) {
        *score += bias;
    }
    softmax_of(scores, 1.0);
}

/// Softmax of `scale` times the scores, in their place; in lanes, so that it becomes vector code.
#[inline(always)]
pub(crate) fn softmax_of(scores: &mut [f32], scale: f32) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    let max = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = shifted_exp((chunk[i] - max) * scale, 0.0);
            lanes[i] += chunk[i];
        }
    }
    for s in rest {
        *s = shifted_exp((*s - max) * scale, 0.0);
        lanes[0] += *s;
    }
    let share = 1.0 / lanes.iter().sum::<f32>();
    for s in scores {
        *s *= share;
    }
}

#[inline(always)]
fn softmax_slopes(g: &mut [f32], y: &[f32]) {
    let mut lanes = [0.0; LANES];
    for (g, y) in g.chunks(LANES).zip(y.chunks(LANES)) {
        for ((g, y), lane) in g.iter().zip(y).zip(&mut lanes) {
            *lane = g.mul_add(*y, *lane);
        }
    }
    let mean: f32 = lanes.iter().sum();
    for (g, y) in g.iter_mut().zip(y) {
        *g = y * (*g - mean);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{TensorData, activation as burn_activation};

    use super::*;
    use crate::params::to_vec;

    fn wave<const D: usize>(shape: [usize; D], step: f32, device: &Device) -> Tensor<D> {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| 8.0 * (i as f32 * step).sin()).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Values of `f` and the gradient of a function of them, in a graph.
    fn both<const D: usize>(
        shape: [usize; D],
        f: impl Fn(Tensor<D>) -> Tensor<D>,
    ) -> [Vec<f32>; 2] {
        let device = Device::flex().autodiff();
        let x = wave(shape, 0.37, &device).require_grad();
        let y = f(x.clone());
        let values = to_vec(y.clone().inner());
        // x is used twice, so that a gradient in place of something that is needed would be seen.
        let weights = wave(shape, 0.11, &device);
        let loss = (y.clone() * weights).sum() + (y.square() * 0.1).sum() + x.clone().sum();
        let grads = loss.backward();
        [values, to_vec(x.grad(&grads).unwrap())]
    }

    fn assert_near(ours: [Vec<f32>; 2], burns: [Vec<f32>; 2]) {
        for (ours, burns) in ours.into_iter().zip(burns) {
            assert_eq!(ours.len(), burns.len());
            for (a, b) in ours.into_iter().zip(burns) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
            }
        }
    }

    #[test]
    fn activations_have_burns_values_and_gradients() {
        let shape = [2, PART / 7, 9];
        assert_near(
            both(shape, |x| activation(x, Activation::Silu)),
            both(shape, burn_activation::silu),
        );
        let gelu = |x: Tensor<3>| {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let inner = (x.clone() + x.clone().powf_scalar(3.0) * 0.044715) * root;
            x * (inner.tanh() + 1.0) * 0.5
        };
        assert_near(
            both(shape, |x| activation(x, Activation::Gelu)),
            both(shape, gelu),
        );
    }

    #[test]
    fn a_masked_softmax_has_burns_values_and_gradients() {
        let shape = [2, 3, 5, 19];
        for rows in [1, 2] {
            let bias = |device: &Device| {
                let hidden = wave([rows, 1, 5, 19], 0.9, device).greater_elem(3.0);
                Tensor::<4>::zeros([rows, 1, 5, 19], device).mask_fill(hidden, -1e9)
            };
            assert_near(
                both(shape, |x| {
                    let b = bias(&x.device());
                    masked_softmax(x, b)
                }),
                both(shape, |x| {
                    let b = bias(&x.device());
                    burn_activation::softmax(x + b, 3)
                }),
            );
        }
    }

    #[test]
    fn without_a_graph_the_values_are_the_same() {
        let shape = [1, 4, 33];
        let silu = |x| activation(x, Activation::Silu);
        let plain = silu(wave(shape, 0.37, &Device::flex()));
        assert_eq!(to_vec(plain), both(shape, silu)[0]);
    }

    #[test]
    fn a_view_of_other_numbers_is_read_as_it_is() {
        let x = wave([4, 6, 8], 0.3, &Device::flex());
        let view = || x.clone().swap_dims(0, 1).slice([1..5, 1..3, 2..7]);
        let ours = to_vec(activation(view(), Activation::Silu));
        let burns = to_vec(burn_activation::silu(view()));
        for (a, b) in ours.into_iter().zip(burns) {
            assert!((a - b).abs() <= 2e-6 * b.abs().max(1.0), "{a} {b}");
        }
        // and left as it was
        assert_eq!(to_vec(x), to_vec(wave([4, 6, 8], 0.3, &Device::flex())));
    }
}
