//! What both architectures share: leaf layers with Hugging Face field names, attention, KV cache.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::module::{attention, embedding, layer_norm};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::llama::Rotary;
use crate::lora::Adapter;
use crate::ops;

/// Added to the score of a masked position. Finite, so that a row of padding alone gives numbers
/// (that nobody reads) and not NaN, which would reach real rows through the values.
const MASKED: f32 = -1e9;

fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::zeros(shape, device))
}

/// Numbers of the matrix products. Master weights and all else are f32.
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
        match self {
            Self::F32 => a.matmul(b),
            Self::Bf16 => a
                .cast(DType::BF16)
                .matmul(b.cast(DType::BF16))
                .cast(DType::F32),
        }
    }

    /// `x W`: `[B, T, in] -> [B, T, out]`, in and out f32.
    fn linear(self, x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
        let [b, t, input] = x.dims();
        let output = weight.dims()[1];
        // One product of matrices: Burn's `linear` makes B products of some shapes, which is slower on a CPU.
        self.matmul(x.reshape([b * t, input]), weight)
            .reshape([b, t, output])
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

    /// `[B, T, in] -> [B, T, out]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.precision.linear(x, self.weight.val());
        y + self.bias.val().unsqueeze()
    }
}

/// A linear map without bias. Held `[in, out]`; a checkpoint stores it `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// Low-rank adapter, if any.
    pub adapter: Option<Adapter>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Linear {
    pub(crate) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            weight: zeros([input, output], device),
            adapter: None,
            precision: Precision::F32,
        }
    }

    /// `[B, T, in] -> [B, T, out]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let adapted = self.adapter.as_ref().map(|a| a.forward(x.clone()));
        let y = self.precision.linear(x, self.weight.val());
        match adapted {
            Some(more) => y + more,
            None => y,
        }
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

    pub(crate) fn forward(&self, x: Tensor<3>, epsilon: f64) -> Tensor<3> {
        layer_norm(x, self.weight.val(), Some(self.bias.val()), epsilon)
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

    pub(crate) fn forward(&self, x: Tensor<3>, epsilon: f64) -> Tensor<3> {
        let mean_square = x.clone().square().mean_dim(2); // [B, T, 1]
        x * (mean_square + epsilon).sqrt().recip() * self.weight.val().unsqueeze()
    }
}

/// Positions of a forward pass and which keys each query may see.
pub(crate) struct Span {
    /// Position ids `[B, T]`, or `[1, T]` where all rows agree.
    pub positions: Vec<usize>,
    /// Rows of `positions`.
    pub rows: usize,
    /// Added to the attention scores: `[B or 1, 1, T, past + T]`; `None` when nothing is masked.
    pub bias: Option<Tensor<4>>,
    /// LLaMA's rotations.
    pub rotary: Option<Rotary>,
}

impl Span {
    pub(crate) fn new(width: usize, past: usize, left_pad: &[usize], device: &Device) -> Self {
        let none = [0];
        let padded = left_pad.iter().any(|&p| p > 0);
        let pads: &[usize] = if padded { left_pad } else { &none };
        let positions = pads
            .iter()
            .flat_map(|&pad| (past..past + width).map(move |t| t.saturating_sub(pad)))
            .collect();
        let keys = past + width;
        let bias = (width > 1 || padded).then(|| {
            let mut values = vec![0.0f32; pads.len() * width * keys];
            for (row, &pad) in pads.iter().enumerate() {
                for query in 0..width {
                    let start = (row * width + query) * keys;
                    values[start..start + pad.min(keys)].fill(MASKED);
                    values[start + past + query + 1..start + keys].fill(MASKED);
                }
            }
            Tensor::from_data(
                TensorData::new(values, [pads.len(), 1, width, keys]),
                device,
            )
        });
        Self {
            positions,
            rows: pads.len(),
            bias,
            rotary: None,
        }
    }

    /// Position ids as a tensor `[rows, T]`.
    pub(crate) fn ids(&self, device: &Device) -> Tensor<2, Int> {
        let width = self.positions.len() / self.rows;
        let ids: Vec<i32> = self.positions.iter().map(|&p| p as i32).collect();
        Tensor::from_data(TensorData::new(ids, [self.rows, width]), device)
    }
}

/// Scaled dot-product attention; `dropout` acts on the attention weights and only in training.
///
/// # Shapes
///
/// - `q`: `[B, H, T, dh]`; `k`, `v`: `[B, K, S, dh]`, each for H / K heads in a row; output `[B, H, T, dh]`
pub(crate) fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    dropout: impl FnOnce(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let [batch, heads, width, dh] = q.dims();
    let groups = heads / k.dims()[1];
    let (k, v) = (repeat_kv(k, groups), repeat_kv(v, groups));
    if !q.device().is_autodiff() {
        let keys = k.dims()[2];
        let bias = bias.map(|b| b.expand([batch, heads, width, keys]));
        return attention(q, k, v, None, bias, AttentionModuleOptions::default());
    }
    let scores = q
        .mul_scalar(1.0 / (dh as f64).sqrt())
        .matmul(k.swap_dims(2, 3));
    let weights = match bias {
        Some(bias) if ops::serve(&scores.device()) => ops::masked_softmax(scores, bias),
        Some(bias) => softmax(scores + bias, 3),
        None => softmax(scores, 3),
    };
    dropout(weights).matmul(v)
}

/// `[B, K, S, dh] -> [B, K groups, S, dh]`, each head repeated `groups` times in a row.
fn repeat_kv(x: Tensor<4>, groups: usize) -> Tensor<4> {
    if groups == 1 {
        return x;
    }
    let [b, k, s, dh] = x.dims();
    x.reshape([b, k, 1, s, dh])
        .expand([b, k, groups, s, dh])
        .reshape([b, k * groups, s, dh])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_counts_positions_after_the_padding_and_masks_it() {
        let span = Span::new(2, 1, &[0, 2], &Device::flex());
        assert_eq!(span.positions, [1, 2, 0, 0]);
        let bias: Vec<f32> = span.bias.unwrap().into_data().as_slice().unwrap().to_vec();
        let m = MASKED;
        // row 0 is causal; row 1 cannot see its two padding positions
        assert_eq!(bias, [0.0, 0.0, m, 0.0, 0.0, 0.0, m, m, m, m, m, 0.0]);
    }

    /// Inputs so small that epsilon is most of what they are divided by.
    #[test]
    fn norms_add_epsilon_before_the_root() {
        let device = Device::flex();
        let (values, epsilon) = ([1e-3f32, -2e-3, 5e-3], 1e-5);
        let exact = values.map(f64::from);
        let mean = |x: [f64; 3]| x.iter().sum::<f64>() / 3.0;
        let close = |y: Tensor<3>, exact: [f64; 3]| {
            let y: Vec<f32> = y.into_data().as_slice().unwrap().to_vec();
            for (y, exact) in y.iter().zip(exact) {
                assert!((f64::from(*y) / exact - 1.0).abs() < 1e-5, "{y} {exact}");
            }
        };
        let x = || Tensor::<1>::from_floats(values, &device).reshape([1, 1, 3]);
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

    #[test]
    fn a_single_step_without_padding_needs_no_mask() {
        assert!(Span::new(1, 5, &[0, 0], &Device::flex()).bias.is_none());
    }
}
