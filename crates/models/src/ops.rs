//! The operations of a pass other than products, each as one walk over memory with its own backward pass. Burn's versions
//! are several operations that each keep a result for the backward pass, and Flex's exponentials are scalar. All but the
//! products have kernels for the devices that CubeCL serves, too.

#![allow(deprecated)] // Burn will drop libtorch one day

mod causal;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod dropout;
mod memory;
mod products;
mod rows;

use std::fmt::Debug;
use std::sync::Arc;

use abkd_host::math::{shifted_exp, sigmoid};
use abkd_host::{LANES, dispatch};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Device, Shape, Tensor};
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend;

pub(crate) use causal::{Sequences, causal};
use dropout::Dropped;
use memory::Memory;
pub(crate) use products::{add_product, products, serve_products};
pub(crate) use rows::{gelu_new, layer_norm, rms_norm, swiglu, swiglu_joint};

/// Whether a device's tensors lie in host memory, in a graph or not. There our own products are used, too.
pub(crate) fn serve(device: &Device) -> bool {
    // Device equality ignores autodiff.
    *device == Device::flex() || abkd_host::libtorch().is_some_and(|libtorch| *device == libtorch)
}

/// Whether the operations other than products serve a device: they have kernels for CubeCL's devices, too.
pub(crate) fn serve_rows(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    if on_card(device) {
        return true;
    }
    serve(device)
}

/// Whether CubeCL serves a device, in a graph or not.
#[cfg(feature = "cube")]
fn on_card(device: &Device) -> bool {
    let plain = device.clone().without_autodiff();
    matches!(plain.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
}

/// A device of CubeCL that computes, for tests.
#[cfg(test)]
pub(crate) fn card() -> Option<Device> {
    #[cfg(feature = "wgpu")]
    return Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice));
    #[cfg(not(feature = "wgpu"))]
    None
}

/// A function of `I` dense tensors, and its gradient. Nothing but the inputs is kept for the backward pass.
trait Operation<const I: usize>: Debug + Send + Sync {
    /// Whether the gradient depends on the inputs; they are kept only then. Else they have the output's shape, and any tensors of
    /// that shape take their place.
    fn keeps_inputs(&self) -> bool {
        true
    }

    /// Shape of the output.
    fn shape(&self, inputs: [Shape; I]) -> Shape;

    /// Writes all of `out`.
    fn forward(&self, inputs: [&[f32]; I], out: &mut [f32]);

    /// Writes all of the inputs' gradients, from the output's gradient `g`.
    fn backward(&self, inputs: [&[f32]; I], g: &[f32], grads: [&mut [f32]; I]);

    /// The value on a device that CubeCL serves. Operations that run there override this.
    #[cfg(feature = "cube")]
    fn forward_on_card(&self, _: &[FloatTensor<CubeBackend>; I]) -> FloatTensor<CubeBackend> {
        unreachable!("this operation runs only in host memory")
    }

    /// The inputs' gradients there.
    #[cfg(feature = "cube")]
    fn backward_on_card(
        &self,
        _: &[FloatTensor<CubeBackend>; I],
        _: &FloatTensor<CubeBackend>,
    ) -> [FloatTensor<CubeBackend>; I] {
        unreachable!("this operation runs only in host memory")
    }
}

/// A backend that runs these operations.
trait Walk: Backend {
    /// The same numbers in f32, row after row.
    fn dense(x: FloatTensor<Self>) -> FloatTensor<Self>;

    fn forward<const I: usize>(
        op: &dyn Operation<I>,
        inputs: &[FloatTensor<Self>; I],
    ) -> FloatTensor<Self>;

    fn backward<const I: usize>(
        op: &dyn Operation<I>,
        inputs: &[FloatTensor<Self>; I],
        g: &FloatTensor<Self>,
    ) -> [FloatTensor<Self>; I];
}

/// Of tensors in host memory: the walks over slices.
macro_rules! in_memory {
    ($backend:ty) => {
        impl Walk for $backend {
            fn dense(x: FloatTensor<Self>) -> FloatTensor<Self> {
                <Self as Memory>::dense(x)
            }

            fn forward<const I: usize>(
                op: &dyn Operation<I>,
                inputs: &[FloatTensor<Self>; I],
            ) -> FloatTensor<Self> {
                let mut out = Self::empty(op.shape(inputs.each_ref().map(|x| x.shape())));
                let inputs = inputs.each_ref().map(|x| Self::read(x));
                op.forward(inputs, Self::write(&mut out));
                out
            }

            fn backward<const I: usize>(
                op: &dyn Operation<I>,
                inputs: &[FloatTensor<Self>; I],
                g: &FloatTensor<Self>,
            ) -> [FloatTensor<Self>; I] {
                let mut made = inputs.each_ref().map(|x| Self::empty(x.shape()));
                op.backward(
                    inputs.each_ref().map(|x| Self::read(x)),
                    Self::read(g),
                    made.each_mut().map(|x| Self::write(x)),
                );
                made
            }
        }
    };
}

in_memory!(Flex);
#[cfg(feature = "tch")]
in_memory!(burn::backend::LibTorch);

fn apply_1<const A: usize, const Y: usize>(
    op: impl Operation<1> + 'static,
    a: Tensor<A>,
) -> Tensor<Y> {
    Tensor::from_dispatch(Dispatch::walk_1(a.into_dispatch(), Arc::new(op)))
}

fn apply_2<const A: usize, const B: usize, const Y: usize>(
    op: impl Operation<2> + 'static,
    a: Tensor<A>,
    b: Tensor<B>,
) -> Tensor<Y> {
    let (a, b) = (a.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(Dispatch::walk_2(a, b, Arc::new(op)))
}

fn apply_3<const A: usize, const B: usize, const C: usize, const Y: usize>(
    op: impl Operation<3> + 'static,
    a: Tensor<A>,
    b: Tensor<B>,
    c: Tensor<C>,
) -> Tensor<Y> {
    let (a, b, c) = (a.into_dispatch(), b.into_dispatch(), c.into_dispatch());
    Tensor::from_dispatch(Dispatch::walk_3(a, b, c, Arc::new(op)))
}

#[backend_extension(
    Autodiff,
    Flex,
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
)]
trait WalkOps: Backend {
    fn walk_1(a: FloatTensor<Self>, op: Arc<dyn Operation<1>>) -> FloatTensor<Self>;
    fn walk_2(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        op: Arc<dyn Operation<2>>,
    ) -> FloatTensor<Self>;
    fn walk_3(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        op: Arc<dyn Operation<3>>,
    ) -> FloatTensor<Self>;
}

/// All methods through one function of an array of inputs.
macro_rules! by_arrays {
    ($($function:tt)+) => {
        fn walk_1(a: FloatTensor<Self>, op: Arc<dyn Operation<1>>) -> FloatTensor<Self> {
            $($function)+([a], op)
        }

        fn walk_2(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            op: Arc<dyn Operation<2>>,
        ) -> FloatTensor<Self> {
            $($function)+([a, b], op)
        }

        fn walk_3(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            c: FloatTensor<Self>,
            op: Arc<dyn Operation<3>>,
        ) -> FloatTensor<Self> {
            $($function)+([a, b, c], op)
        }
    };
}

impl WalkOps for Flex {
    by_arrays!(forward::<Self, _>);
}

#[cfg(feature = "tch")]
impl WalkOps for burn::backend::LibTorch {
    by_arrays!(forward::<Self, _>);
}

#[cfg(feature = "cube")]
impl WalkOps for CubeBackend {
    by_arrays!(forward::<Self, _>);
}

impl<B: Walk, C: CheckpointStrategy> WalkOps for Autodiff<B, C> {
    by_arrays!(tracked::<B, C, _>);
}

fn forward<B: Walk, const I: usize>(
    inputs: [FloatTensor<B>; I],
    op: Arc<dyn Operation<I>>,
) -> FloatTensor<B> {
    B::forward(&*op, &inputs.map(B::dense))
}

fn tracked<B: Walk, C: CheckpointStrategy, const I: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; I],
    op: Arc<dyn Operation<I>>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Step;

    impl<B: Walk, const I: usize> Backward<B, I> for Step {
        type State = (Option<[FloatTensor<B>; I]>, Arc<dyn Operation<I>>);

        fn backward(self, ops: Ops<Self::State, I>, grads: &mut Gradients, _: &mut Checkpointer) {
            let g = B::dense(grads.consume::<B>(&ops.node));
            let (inputs, op) = ops.state;
            let inputs = inputs.unwrap_or_else(|| std::array::from_fn(|_| g.clone()));
            let made = B::backward(&*op, &inputs, &g);
            for (parent, grad) in ops.parents.iter().zip(made) {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, grad);
                }
            }
        }
    }

    let nodes = std::array::from_fn(|i| inputs[i].node());
    let inputs = inputs.map(|x| B::dense(x.into_primitive()));
    match Step.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let kept = op.keeps_inputs().then(|| inputs.clone());
            let y = forward::<B, I>(inputs, op.clone());
            prep.finish((kept, op), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward::<B, I>(inputs, op)),
    }
}

dispatch!(pub(crate) silu => silu_values(x: &mut [f32]));
dispatch!(pub(crate) gelu => gelu_values(x: &mut [f32]));

#[inline(always)]
fn silu_values(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid(*x);
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

/// Softmax of `scale` times the scores, in place; in lanes, so that it becomes vector code.
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
