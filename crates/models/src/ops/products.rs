//! Products of rows with one or more weights, as one operation: `[x A, x B, ..]` side by side. The factors are rounded
//! once, and the gradient in `x` is one sum.

#![allow(deprecated)] // Burn will drop libtorch one day

use abkd_host::dispatch;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use super::memory::Memory;
use crate::{Precision, bf16};

/// Whether these products serve a device in this precision.
pub(crate) fn serve_products(device: &Device, precision: Precision) -> bool {
    match precision {
        Precision::F32 => super::serve(device),
        // Flex multiplies no bfloat16.
        Precision::Bf16 => abkd_host::libtorch().is_some_and(|libtorch| *device == libtorch),
    }
}

/// `[N, in]`, `[in, out]` each `-> [N, all outs]`, for up to three weights; in and out f32.
pub(crate) fn products<const W: usize>(
    x: Tensor<2>,
    weights: [Tensor<2>; W],
    precision: Precision,
) -> Tensor<2> {
    let x = x.into_dispatch();
    let mut weights = weights.into_iter().map(Tensor::into_dispatch);
    let mut next = || weights.next().expect("counted");
    Tensor::from_dispatch(match W {
        1 => Dispatch::products_1(x, next(), precision),
        2 => Dispatch::products_2(x, next(), next(), precision),
        3 => Dispatch::products_3(x, next(), next(), next(), precision),
        _ => unreachable!("up to three weights"),
    })
}

/// `sum + a b` for matrices, in place where nothing else holds `sum`; in and out f32, without a graph.
pub(crate) fn add_product(
    sum: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
    precision: Precision,
) -> Tensor<2> {
    let [sum, a, b] = [sum, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::add_product(sum, a, b, precision))
}

#[backend_extension(Autodiff, Flex, LibTorch: cfg(feature = "tch"))]
trait ProductOps: Backend {
    fn products_1(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
    fn products_2(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
    fn products_3(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
    fn add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

/// The first three methods through one function of an array of factors.
macro_rules! by_arrays {
    ($($function:tt)+) => {
        fn products_1(
            x: FloatTensor<Self>,
            a: FloatTensor<Self>,
            precision: Precision,
        ) -> FloatTensor<Self> {
            $($function)+([x, a], precision)
        }

        fn products_2(
            x: FloatTensor<Self>,
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            precision: Precision,
        ) -> FloatTensor<Self> {
            $($function)+([x, a, b], precision)
        }

        fn products_3(
            x: FloatTensor<Self>,
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            c: FloatTensor<Self>,
            precision: Precision,
        ) -> FloatTensor<Self> {
            $($function)+([x, a, b, c], precision)
        }
    };
}

macro_rules! on_host {
    ($backend:ty) => {
        impl ProductOps for $backend {
            by_arrays!(plain::<Self, _>);

            fn add_product(
                sum: FloatTensor<Self>,
                a: FloatTensor<Self>,
                b: FloatTensor<Self>,
                precision: Precision,
            ) -> FloatTensor<Self> {
                let [a, b] = [a, b].map(|x| round::<Self>(x, precision));
                Self::add(sum, &a, &b)
            }
        }
    };
}

on_host!(Flex);
#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn::backend::ops::FloatTensorOps;

    use super::*;

    on_host!(LibTorch);

    impl Multiply for LibTorch {
        fn side_by_side(x: &FloatTensor<Self>, weights: &[FloatTensor<Self>]) -> FloatTensor<Self> {
            let product = |w: &FloatTensor<Self>| Self::float_matmul(x.clone(), w.clone());
            let y = match weights {
                [weight] => product(weight),
                all => Self::float_cat(all.iter().map(product).collect(), 1),
            };
            Self::float_cast(y, FloatDType::F32)
        }

        fn sum(g: &[FloatTensor<Self>], weights: &[FloatTensor<Self>]) -> FloatTensor<Self> {
            let product = |(g, w): (&FloatTensor<Self>, &FloatTensor<Self>)| {
                let transposed = Self::float_transpose(w.clone());
                Self::float_matmul(g.clone(), transposed)
            };
            let mut products = g.iter().zip(weights).map(product);
            let first = products.next().expect("one weight at least");
            let first = Self::float_cast(first, FloatDType::F32);
            products.fold(first, |sum, x| add_in_place(sum, &x))
        }

        fn add(
            sum: FloatTensor<Self>,
            a: &FloatTensor<Self>,
            b: &FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let product = Self::float_matmul(a.clone(), b.clone());
            add_in_place(sum, &product)
        }
    }

    /// `sum + x` for an `x` of any type; libtorch converts while it adds.
    fn add_in_place(
        mut sum: FloatTensor<LibTorch>,
        x: &FloatTensor<LibTorch>,
    ) -> FloatTensor<LibTorch> {
        if !sum.can_mut() {
            sum = FloatTensor::<LibTorch>::new(sum.tensor.copy());
        }
        let _ = sum.tensor.g_add_(&x.tensor);
        sum
    }
}

/// The products of which the operations consist. Factors are of one type, results f32.
trait Multiply: Memory {
    /// `[x A, x B, ..]`
    fn side_by_side(x: &FloatTensor<Self>, weights: &[FloatTensor<Self>]) -> FloatTensor<Self>;

    /// `g_A A^T + g_B B^T + ..`
    fn sum(g: &[FloatTensor<Self>], weights: &[FloatTensor<Self>]) -> FloatTensor<Self>;

    /// `sum + a b`
    fn add(
        sum: FloatTensor<Self>,
        a: &FloatTensor<Self>,
        b: &FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl Multiply for Flex {
    fn side_by_side(x: &FloatTensor<Self>, weights: &[FloatTensor<Self>]) -> FloatTensor<Self> {
        let (rows, width): (usize, usize) =
            (x.shape()[0], weights.iter().map(|w| w.shape()[1]).sum());
        let mut to: Vec<f32> = Vec::with_capacity(rows * width);
        let mut first = 0;
        for weight in weights {
            // SAFETY: the columns lie in the capacity of `to`.
            unsafe { multiply(to.as_mut_ptr().add(first), width, false, x, weight) };
            first += weight.shape()[1];
        }
        // SAFETY: the products have written all columns of all rows.
        unsafe { to.set_len(rows * width) };
        FloatTensor::<Self>::from_data(TensorData::new(to, [rows, width]))
    }

    fn sum(g: &[FloatTensor<Self>], weights: &[FloatTensor<Self>]) -> FloatTensor<Self> {
        let (rows, width) = (g[0].shape()[0], weights[0].shape()[0]);
        let mut to: Vec<f32> = Vec::with_capacity(rows * width);
        for (i, (g, weight)) in g.iter().zip(weights).enumerate() {
            let transposed = weight.transpose(0, 1);
            // SAFETY: the product has the size of the capacity of `to`, and the first product writes all of it.
            unsafe { multiply(to.as_mut_ptr(), width, i > 0, g, &transposed) };
        }
        // SAFETY: as above.
        unsafe { to.set_len(rows * width) };
        FloatTensor::<Self>::from_data(TensorData::new(to, [rows, width]))
    }

    fn add(
        sum: FloatTensor<Self>,
        a: &FloatTensor<Self>,
        b: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let mut sum = if sum.is_contiguous() && sum.layout().start_offset() == 0 {
            sum
        } else {
            sum.to_contiguous()
        };
        let [rows, width] = [a.shape()[0], b.shape()[1]];
        let numbers: &mut [f32] = sum.storage_mut();
        assert!(numbers.len() >= rows * width);
        // SAFETY: just checked.
        unsafe { multiply(numbers.as_mut_ptr(), width, true, a, b) };
        sum
    }
}

/// Numbers that a thread rounds at a time.
const PART: usize = 1 << 14;
/// Multiply-adds from which on a product is split among threads, as in Flex.
const PARALLEL: usize = 192 * 192 * 192;

/// `to = a b`, or `to += a b`.
///
/// # Safety
///
/// `to` must have room for the product's rows, each `stride` after the one before; with `add` its numbers must be
/// initialised.
unsafe fn multiply(
    to: *mut f32,
    stride: usize,
    add: bool,
    a: &FloatTensor<Flex>,
    b: &FloatTensor<Flex>,
) {
    let ([m, k], [inner, n]) = (a.shape().dims(), b.shape().dims());
    assert_eq!(k, inner, "inner dimensions");
    let parallelism = if m * n * k < PARALLEL {
        gemm::Parallelism::None
    } else {
        gemm::Parallelism::Rayon(0)
    };
    let factor = |x: &FloatTensor<Flex>| {
        let all: &[f32] = x.storage();
        Factor {
            numbers: all[x.layout().start_offset()..].as_ptr(),
            strides: [0, 1].map(|i| x.layout().strides()[i]),
        }
    };
    // SAFETY: the factors' strides are the tensors' own; the caller guarantees `to`.
    unsafe {
        gemm_f32(
            [m, k, n],
            to,
            stride,
            add,
            factor(a),
            factor(b),
            parallelism,
        )
    }
}

/// A factor of a product in host memory.
pub(super) struct Factor {
    pub numbers: *const f32,
    /// From a row to the next, and from a column to the next.
    pub strides: [isize; 2],
}

/// `to = a b`, or `to += a b`, of `[m, k] x [k, n]`; rows of `to` are dense, each `stride` after the one before.
///
/// # Safety
///
/// All entries of both factors must exist, and `to` must have room for the product; with `add` its numbers must be
/// initialised.
pub(super) unsafe fn gemm_f32(
    [m, k, n]: [usize; 3],
    to: *mut f32,
    stride: usize,
    add: bool,
    a: Factor,
    b: Factor,
    parallelism: gemm::Parallelism,
) {
    let ([a_row, a_column], [b_row, b_column]) = (a.strides, b.strides);
    // SAFETY: guaranteed by the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to,
            1,
            stride as isize,
            add,
            a.numbers,
            a_column,
            a_row,
            b.numbers,
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Rounds `x` as a factor: see [`bf16`].
fn round<B: Multiply>(x: FloatTensor<B>, precision: Precision) -> FloatTensor<B> {
    match precision {
        Precision::F32 => x,
        Precision::Bf16 if bf16::on_libtorch() => B::float_cast(x, FloatDType::BF16),
        Precision::Bf16 if x.dtype() == DType::BF16 => B::float_cast(x, FloatDType::F32),
        Precision::Bf16 => {
            let x = B::dense(x);
            let mut to = B::empty(x.shape());
            let parts = B::write(&mut to).par_chunks_mut(PART);
            parts
                .zip(B::read(&x).par_chunks(PART))
                .for_each(|(to, x)| round_numbers(x, to));
            to
        }
    }
}

/// Rounds a product in f32, unless it is already rounded because its factors were bfloat16.
fn round_product<B: Multiply>(mut y: FloatTensor<B>, precision: Precision) -> FloatTensor<B> {
    if precision == Precision::Bf16 && !bf16::on_libtorch() {
        let parts = B::write(&mut y).par_chunks_mut(PART);
        parts.for_each(round_in_place);
    }
    y
}

dispatch!(round_numbers => round_each(x: &[f32], to: &mut [f32]));
dispatch!(round_in_place => round_all(x: &mut [f32]));

#[inline(always)]
fn round_each(x: &[f32], to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to = Precision::Bf16.round_value(*x);
    }
}

#[inline(always)]
fn round_all(x: &mut [f32]) {
    for x in x {
        *x = Precision::Bf16.round_value(*x);
    }
}

fn plain<B: Multiply, const I: usize>(
    factors: [FloatTensor<B>; I],
    precision: Precision,
) -> FloatTensor<B> {
    let factors = factors.map(|x| round::<B>(x, precision));
    round_product::<B>(B::side_by_side(&factors[0], &factors[1..]), precision)
}

impl<B: Multiply, C: CheckpointStrategy> ProductOps for Autodiff<B, C> {
    by_arrays!(tracked::<B, C, _>);

    fn add_product(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("sums of products have no graph")
    }
}

fn tracked<B: Multiply, C: CheckpointStrategy, const I: usize>(
    factors: [FloatTensor<Autodiff<B, C>>; I],
    precision: Precision,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Step;

    impl<B: Multiply, const I: usize> Backward<B, I> for Step {
        /// The rounded factors.
        type State = ([FloatTensor<B>; I], Precision);

        fn backward(self, ops: Ops<Self::State, I>, grads: &mut Gradients, _: &mut Checkpointer) {
            let (factors, precision) = ops.state;
            let (x, weights) = factors.split_first().expect("x comes first");
            let g = round::<B>(grads.consume::<B>(&ops.node), precision);
            let (rows, mut end) = (g.shape()[0], 0);
            let parts: Vec<FloatTensor<B>> = weights
                .iter()
                .map(|w| {
                    let first = end;
                    end += w.shape()[1];
                    B::float_slice(g.clone(), &[(0..rows).into(), (first..end).into()])
                })
                .collect();
            if let Some(parent) = &ops.parents[0] {
                let sum = round_product::<B>(B::sum(&parts, weights), precision);
                grads.register::<B>(parent.id, sum);
            }
            let transposed = B::float_transpose(x.clone());
            for (parent, part) in ops.parents[1..].iter().zip(parts) {
                if let Some(parent) = parent {
                    let grad = B::side_by_side(&transposed, &[part]);
                    grads.register::<B>(parent.id, round_product::<B>(grad, precision));
                }
            }
        }
    }

    let nodes = std::array::from_fn(|i| factors[i].node());
    let factors = factors.map(|x| round::<B>(x.into_primitive(), precision));
    let y = round_product::<B>(B::side_by_side(&factors[0], &factors[1..]), precision);
    match Step.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((factors, precision), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::to_vec;

    fn wave(shape: [usize; 2], step: f32, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|i| (i as f32 * step).sin())
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn near(ours: Vec<f32>, burns: Vec<f32>, tolerance: f32) {
        assert_eq!(ours.len(), burns.len());
        let largest = burns.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
        for (a, b) in ours.into_iter().zip(burns) {
            assert!((a - b).abs() <= tolerance * largest, "{a} {b} of {largest}");
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_single_products() {
        let mut cases = vec![(Device::flex(), Precision::F32)];
        if let Some(device) = abkd_host::libtorch() {
            cases.push((device.clone(), Precision::F32));
            cases.push((device, Precision::Bf16));
        }
        for (device, precision) in cases {
            assert!(serve_products(&device, precision));
            let device = device.autodiff();
            let results = |ours: bool| {
                let x = wave([33, 20], 0.37, &device).require_grad();
                let weights = [(7, 0.3), (1, 0.5), (12, 0.7)]
                    .map(|(n, step)| wave([20, n], step, &device).require_grad());
                let y = if ours {
                    products(x.clone(), weights.clone(), precision)
                } else {
                    let single = weights.clone().map(|w| precision.matmul(x.clone(), w));
                    Tensor::cat(single.into(), 1)
                };
                let grads = (y.clone() * wave([33, 20], 0.11, &device)).sum().backward();
                let mut all = vec![to_vec(y.inner()), to_vec(x.grad(&grads).unwrap())];
                all.extend(weights.iter().map(|w| to_vec(w.grad(&grads).unwrap())));
                all
            };
            let tolerance = match precision {
                Precision::F32 => 1e-6,
                Precision::Bf16 => 1e-2,
            };
            for (ours, burns) in results(true).into_iter().zip(results(false)) {
                near(ours, burns, tolerance);
            }
        }
    }

    #[test]
    fn frozen_weights_have_no_gradient() {
        let device = Device::flex().autodiff();
        let x = wave([5, 4], 0.3, &device).require_grad();
        let (free, frozen) = (wave([4, 3], 0.5, &device), wave([4, 2], 0.7, &device));
        let free = free.require_grad();
        let y = products(x.clone(), [frozen.clone(), free.clone()], Precision::F32);
        let grads = y.sum().backward();
        assert!(frozen.grad(&grads).is_none());
        assert!(free.grad(&grads).is_some() && x.grad(&grads).is_some());
    }

    #[test]
    fn products_are_added_in_place_and_what_others_hold_stays() {
        for device in std::iter::once(Device::flex()).chain(abkd_host::libtorch()) {
            let (a, b) = (wave([6, 9], 0.3, &device), wave([6, 4], 0.9, &device));
            let sum = wave([9, 4], 0.2, &device);
            let ours = add_product(
                sum.clone(),
                a.clone().transpose(),
                b.clone(),
                Precision::F32,
            );
            near(
                to_vec(ours),
                to_vec(sum.clone() + a.transpose().matmul(b)),
                1e-6,
            );
            assert_eq!(to_vec(sum), to_vec(wave([9, 4], 0.2, &device)));
        }
    }
}
