//! Projections and norms of a layer, over rows of numbers.

use abkd_host::{LANES, dispatch, fault};
use burn::tensor::Tensor;

use crate::Precision;
use crate::layers::{Conv1D, LayerNorm, Linear, RmsNorm};
use crate::packed::{Factors, Packed, Put};
use crate::params::to_vec;

/// A projection, or several of the same input side by side.
pub(crate) struct Dense {
    pub weight: Packed,
    /// The first column of each adapter, and the adapter.
    adapters: Vec<(usize, Adapter)>,
}

/// `scale x A B`, in f32.
struct Adapter {
    a: Packed,
    b: Packed,
    scale: f32,
}

impl Dense {
    pub fn conv(conv: &Conv1D) -> Self {
        let weight = Packed::new(conv.weight.val(), conv.precision);
        Self {
            weight: weight.with_bias(&to_vec(conv.bias.val())),
            adapters: Vec::new(),
        }
    }

    pub fn side_by_side(linears: &[&Linear]) -> Self {
        let weights = linears.iter().map(|l| l.weight.val()).collect();
        let mut adapters = Vec::new();
        let mut column = 0;
        for linear in linears {
            if let Some(adapter) = &linear.adapter {
                let pack = |factor| Packed::new(factor, Precision::F32);
                let adapter = Adapter {
                    a: pack(adapter.a.val()),
                    b: pack(adapter.b.val()),
                    scale: adapter.scale as f32,
                };
                adapters.push((column, adapter));
            }
            column += linear.weight.dims()[1];
        }
        let mut weight = Packed::new(Tensor::cat(weights, 1), linears[0].precision);
        if linears.iter().any(|linear| linear.bias.is_some()) {
            let bias = linears.iter().flat_map(|linear| match &linear.bias {
                Some(bias) => to_vec(bias.val()),
                None => vec![0.0; linear.weight.dims()[1]],
            });
            weight = weight.with_bias(&bias.collect::<Vec<_>>());
        }
        Self { weight, adapters }
    }

    /// `[N, in] -> [N, out]`
    pub fn apply(&self, x: &Factors, put: Put, out: &mut Vec<f32>) {
        let (rows, output) = (x.rows(), self.weight.output());
        out.resize(rows * output, 0.0);
        self.weight.product(x, put, out);
        for (column, adapter) in &self.adapters {
            let low = adapter.a.product_of(x.values(), rows);
            let more = adapter.b.product_of(&low, rows);
            let width = adapter.b.output();
            for (to, more) in out.chunks_exact_mut(output).zip(more.chunks_exact(width)) {
                let to = to[*column..].iter_mut().zip(more);
                to.for_each(|(to, more)| *to += adapter.scale * more);
            }
        }
    }
}

/// A norm over a row.
pub(crate) struct Norm {
    weight: Vec<f32>,
    /// Only a layer norm has one; with it, the mean is subtracted.
    bias: Option<Vec<f32>>,
    epsilon: f32,
}

impl Norm {
    pub fn layer(norm: &LayerNorm, epsilon: f64) -> Self {
        Self {
            weight: to_vec(norm.weight.val()),
            bias: Some(to_vec(norm.bias.val())),
            epsilon: epsilon as f32,
        }
    }

    pub fn rms(norm: &RmsNorm, epsilon: f64) -> Self {
        Self {
            weight: to_vec(norm.weight.val()),
            bias: None,
            epsilon: fault!("epsilon of the decoder", epsilon as f32, 0.0),
        }
    }

    pub fn apply(&self, x: &[f32], to: &mut [f32]) {
        match &self.bias {
            Some(bias) => layer_norm(x, &self.weight, bias, self.epsilon, to),
            None => rms_norm(x, &self.weight, self.epsilon, to),
        }
    }
}

dispatch!(rms_norm => rms_norm_row(x: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]));
dispatch!(layer_norm => layer_norm_row(
    x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, to: &mut [f32],
));

#[inline(always)]
fn rms_norm_row(x: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    let scale = 1.0 / (mean(x, |x| x * x) + epsilon).sqrt();
    for ((to, x), weight) in to.iter_mut().zip(x).zip(weight) {
        *to = x * scale * weight;
    }
}

#[inline(always)]
fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, to: &mut [f32]) {
    let middle = mean(x, |x| x);
    let scale = 1.0 / (mean(x, |x| (x - middle) * (x - middle)) + epsilon).sqrt();
    for (((to, x), weight), bias) in to.iter_mut().zip(x).zip(weight).zip(bias) {
        *to = ((x - middle) * scale).mul_add(*weight, *bias);
    }
}

#[inline(always)]
fn mean(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    lanes.iter().sum::<f32>() / x.len() as f32
}
