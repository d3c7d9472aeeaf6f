//! A mixture of both distributions as tensors, see [`pointwise`](crate::pointwise).

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use super::pair::{Pair, ln_1p};
use crate::pointwise::ln_share;

/// A mixture `a p + b q` through `x = log(a p / (b q))`.
pub(crate) struct TensorMixture {
    pub ln_a: f64,
    pub ln_b: f64,
    /// x at the peak
    pub x: Tensor<2>,
    pub here: Softplus,
    pub peak: Softplus,
}

pub(crate) struct Softplus {
    /// log(1 + e^x) = -log(b q / m)
    pub up: Tensor<2>,
    /// log(1 + e^-x) = -log(a p / m)
    pub down: Tensor<2>,
    /// a p / m and b q / m
    pub share: Tensor<2>,
    pub other: Tensor<2>,
    /// share - up
    pub beyond: Tensor<2>,
}

impl Softplus {
    fn new(x: Tensor<2>) -> Self {
        let tail = ln_1p(x.clone().abs().neg().exp());
        let up = x.clone().clamp_min(0.0) + tail.clone();
        let share = sigmoid(x.clone());
        // far below 0, where both are nearly e^x: the sum of (1/k - 1) (-e^x)^k from k = 2 on
        let e = x.clone().clamp_max(-1.6).exp();
        let mut series = Tensor::zeros_like(&e);
        for k in (2..=14).rev() {
            let coefficient = (1.0 / f64::from(k) - 1.0) * (-1f64).powi(k);
            series = series * e.clone() + coefficient;
        }
        let series = series * e.clone() * e;
        let beyond = share.clone() - up.clone();
        Self {
            up,
            down: x.clone().neg().clamp_min(0.0) + tail,
            share,
            other: sigmoid(x.clone().neg()),
            beyond: beyond.mask_where(x.lower_elem(-1.6), series),
        }
    }
}

impl TensorMixture {
    /// `a` is the teacher's share.
    pub fn new(a: f64, pair: &Pair) -> Self {
        let (ln_a, ln_b) = (ln_share(a), ln_share(1.0 - a));
        let x = pair.at_peak.d.clone() + (ln_a - ln_b);
        Self {
            ln_a,
            ln_b,
            here: Softplus::new(pair.r.clone() + x.clone()),
            peak: Softplus::new(x.clone()),
            x,
        }
    }
}
