//! The rotary embedding (Su et al. 2021) as tensors.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::rope::Angles;

/// Cosines and sines of positions.
pub(crate) struct Rotary {
    cos: Tensor<4>, // [B or 1, 1, T, dh]
    sin: Tensor<4>,
}

impl Rotary {
    /// For positions `[rows, T]`.
    pub(crate) fn new(positions: &[usize], rows: usize, angles: Angles, device: &Device) -> Self {
        let dh = angles.dh;
        let half = dh / 2;
        let width = positions.len() / rows;
        let frequencies = angles.frequencies();
        let table = |f: fn(f64) -> f64| {
            let mut values = Vec::with_capacity(positions.len() * dh);
            for &position in positions {
                values.extend(frequencies.iter().map(|x| f(position as f64 * x) as f32));
                values.extend_from_within(values.len() - half..);
            }
            Tensor::from_data(TensorData::new(values, [rows, 1, width, dh]), device)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// For the positions `[B]` of one token a row; `self` is for all positions from 0 on.
    pub(crate) fn at(&self, positions: Tensor<1, Int>) -> Self {
        let [batch] = positions.dims();
        let rows = |table: &Tensor<4>| {
            let dh = table.dims()[3];
            let rows = table.clone().select(2, positions.clone());
            rows.reshape([batch, 1, 1, dh])
        };
        Self {
            cos: rows(&self.cos),
            sin: rows(&self.sin),
        }
    }

    /// Rotates the pair (i, i + dh/2) of every head: `x cos + (-x2, x1) sin`.
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, h, t, dh] = x.dims();
        let half = dh / 2;
        let first = x.clone().slice([0..b, 0..h, 0..t, 0..half]);
        let second = x.clone().slice([0..b, 0..h, 0..t, half..dh]);
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}
