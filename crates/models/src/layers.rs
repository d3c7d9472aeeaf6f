//! Leaf layers of both architectures, with Hugging Face field names, over the rows `[N, d]` of all tokens.

use burn::module::{Module, Param};
use burn::tensor::module::{embedding, layer_norm};
use burn::tensor::{DType, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::lora::Adapter;
use crate::ops;

fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::zeros(shape, device))
}

/// Number type of the matrix products. Master weights and all else are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// Factors are rounded to bfloat16, and so is the product.
    Bf16,
}

impl Precision {
    /// `x` as a factor of a product.
    pub(crate) fn round<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => x,
            Self::Bf16 => x.cast(DType::BF16),
        }
    }

    /// A number as a factor of a product, or as a product.
    #[inline(always)]
    pub(crate) fn round_value(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => f32::from_bits(bf16_bits(x) << 16),
        }
    }

    /// `a b` for matrices: `[N, K] x [K, M] -> [N, M]`, in and out f32.
    pub fn matmul(self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        self.product(a, b).cast(DType::F32)
    }

    /// [`matmul`](Self::matmul) without the cast back to f32; factors may already be in the product's type.
    pub fn product(self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        if self == Self::F32 {
            return a.matmul(b);
        }
        let native = crate::bf16::on_device(&a.device());
        let [a, b] = [a, b].map(|x| {
            let x = x.cast(DType::BF16);
            if native { x } else { x.cast(DType::F32) }
        });
        a.matmul(b).cast(DType::BF16)
    }

    /// `sum + a b` for matrices without a graph, in place where that is possible; in and out f32.
    pub fn add_matmul(self, sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        if ops::serve_products(&sum.device(), self) {
            ops::add_product(sum, a, b, self)
        } else {
            sum + self.matmul(a, b)
        }
    }
}

/// The nearest bfloat16, ties to even. `half` has a branch here, which keeps the compiler from vector code.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

/// Token or position embedding; `weight` is `[V, d]`.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[V, d]`
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    pub(crate) fn new(rows: usize, d: usize, device: &Device) -> Self {
        Self {
            weight: zeros([rows, d], device),
        }
    }

    /// `[B, T] -> [B, T, d]`
    pub(crate) fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.weight.val(), ids)
    }
}

/// GPT-2's "Conv1D": an affine map whose weight is stored `[in, out]`.
#[derive(Module, Debug)]
pub struct Conv1D {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Conv1D {
    pub(crate) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            weight: zeros([input, output], device),
            bias: zeros([output], device),
            precision: Precision::F32,
        }
    }

    /// `[N, in] -> [N, out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        product(x, self.weight.val(), self.precision) + self.bias.val().unsqueeze()
    }
}

/// A linear map, with or without a bias. Held `[in, out]`; a checkpoint stores it `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Low-rank adapter, if any.
    pub adapter: Option<Adapter>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Linear {
    pub(crate) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            weight: zeros([input, output], device),
            bias: None,
            adapter: None,
            precision: Precision::F32,
        }
    }

    /// The same with a bias of zeros, if there is to be one.
    pub(crate) fn with_bias(mut self, there: bool) -> Self {
        let weight = self.weight.val();
        self.bias = there.then(|| zeros([weight.dims()[1]], &weight.device()));
        self
    }

    /// `[N, in] -> [N, out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let adapted = self.adapter.as_ref().map(|a| a.forward(x.clone()));
        let y = product(x, self.weight.val(), self.precision);
        let y = match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        };
        match adapted {
            Some(more) => y + more,
            None => y,
        }
    }

    /// Several projections of the same rows.
    pub(crate) fn together<const I: usize>(all: [&Self; I], x: Tensor<2>) -> Projected<I> {
        let precision = all[0].precision;
        if ops::serve_products(&x.device(), precision) && all.iter().all(|p| p.adapter.is_none()) {
            let weights = all.map(|p| p.weight.val());
            let joint = ops::products(x, weights, precision);
            let biases: Option<Vec<_>> = all.iter().map(|p| Some(p.bias.as_ref()?.val())).collect();
            return Projected::Joint(match biases {
                Some(biases) => joint + Tensor::cat(biases, 0).unsqueeze(),
                None => joint,
            });
        }
        Projected::Apart(all.map(|p| p.forward(x.clone())))
    }
}

/// Outputs of several projections of the same rows.
#[allow(clippy::large_enum_variant)] // one per projection, on the stack
pub(crate) enum Projected<const I: usize> {
    /// `[N, out]` each.
    Apart([Tensor<2>; I]),
    /// Side by side: `[N, all outs]`.
    Joint(Tensor<2>),
}

/// `x W`, in and out f32.
fn product(x: Tensor<2>, weight: Tensor<2>, precision: Precision) -> Tensor<2> {
    if ops::serve_products(&x.device(), precision) {
        ops::products(x, [weight], precision)
    } else {
        precision.matmul(x, weight)
    }
}

/// Layer normalisation over the last dimension.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d]`
    pub weight: Param<Tensor<1>>,
    /// `[d]`
    pub bias: Param<Tensor<1>>,
}

impl LayerNorm {
    pub(crate) fn new(d: usize, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([d], device)),
            bias: zeros([d], device),
        }
    }

    /// `[N, d] -> [N, d]`
    pub(crate) fn forward(&self, x: Tensor<2>, epsilon: f64) -> Tensor<2> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        if ops::serve_rows(&x.device()) {
            return ops::layer_norm(x, weight, bias, epsilon);
        }
        layer_norm(x, weight, Some(bias), epsilon)
    }
}

/// Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[d]`
    pub weight: Param<Tensor<1>>,
}

impl RmsNorm {
    pub(crate) fn new(d: usize, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([d], device)),
        }
    }

    /// `[N, d] -> [N, d]`
    pub(crate) fn forward(&self, x: Tensor<2>, epsilon: f64) -> Tensor<2> {
        if ops::serve_rows(&x.device()) {
            return ops::rms_norm(x, self.weight.val(), epsilon);
        }
        let mean_square = x.clone().square().mean_dim(1); // [N, 1]
        x * (mean_square + epsilon).sqrt().recip() * self.weight.val().unsqueeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs so small that epsilon dominates the divisor.
    #[test]
    fn norms_add_epsilon_before_the_root() {
        let device = Device::flex();
        let (values, epsilon) = ([1e-3f32, -2e-3, 5e-3], 1e-5);
        let exact = values.map(f64::from);
        let mean = |x: [f64; 3]| x.iter().sum::<f64>() / 3.0;
        let close = |y: Tensor<2>, exact: [f64; 3]| {
            let y: Vec<f32> = y.into_data().as_slice().unwrap().to_vec();
            for (y, exact) in y.iter().zip(exact) {
                assert!((f64::from(*y) / exact - 1.0).abs() < 1e-5, "{y} {exact}");
            }
        };
        let x = || Tensor::<1>::from_floats(values, &device).reshape([1, 3]);
        let root = (mean(exact.map(|x| x * x)) + epsilon).sqrt();
        let norm = RmsNorm::new(3, &device);
        close(norm.forward(x(), epsilon), exact.map(|x| x / root));
        let centred = exact.map(|x| x - mean(exact));
        let root = (mean(centred.map(|x| x * x)) + epsilon).sqrt();
        let norm = LayerNorm::new(3, &device);
        close(norm.forward(x(), epsilon), centred.map(|x| x / root));
    }

    #[test]
    fn bfloat16_is_rounded_as_half_does_it() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9E37_79B9));
            let exact = half::bf16::from_f32(x);
            let ours = half::bf16::from_bits(bf16_bits(x) as u16);
            assert!(ours == exact || (x.is_nan() && ours.is_nan()), "{x:e}");
        }
    }
}
