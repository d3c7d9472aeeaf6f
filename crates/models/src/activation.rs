//! Activations of the two architectures. Over host memory and without a graph they are one pass with vector code;
//! elsewhere they are Burn's.

use abkd_host::math::sigmoid;
use abkd_host::{dispatch, serves};
use burn::tensor::{Tensor, TensorData, activation};
use rayon::prelude::*;

use crate::params::{floats, to_vec};

/// Numbers that a thread takes at a time.
const PART: usize = 1 << 14;

/// SwiGLU's product: `silu(gate) up`.
pub(crate) fn swiglu(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    if !serves(&gate.device()) {
        return activation::silu(gate) * up;
    }
    let up = up.into_data_as::<f32>();
    let up = floats(&up);
    map(gate, |part, gate| swiglu_part(gate, &up[part * PART..]))
}

/// The tanh form of GELU (Hendrycks and Gimpel 2016), as GPT-2 uses it:
/// `x (1 + tanh u) / 2 = x sigmoid(2 u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`. The sigmoid is the
/// same number, and faster than the tanh.
pub(crate) fn gelu_new(x: Tensor<3>) -> Tensor<3> {
    if !serves(&x.device()) {
        let inner = (x.clone().square() * (0.044715 * DOUBLE_ROOT) + DOUBLE_ROOT) * x.clone();
        return x * activation::sigmoid(inner);
    }
    map(x, |_, x| gelu_part(x))
}

/// 2 sqrt(2/pi)
const DOUBLE_ROOT: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2;

/// `f(number of the part, part)` changes each part of `x`.
fn map(x: Tensor<3>, f: impl Fn(usize, &mut [f32]) + Sync) -> Tensor<3> {
    let (device, shape) = (x.device(), x.dims());
    let mut values = to_vec(x);
    let parts = values.par_chunks_mut(PART).enumerate();
    parts.for_each(|(i, part)| f(i, part));
    Tensor::from_data(TensorData::new(values, shape), &device)
}

dispatch!(swiglu_part => swiglu_values(gate: &mut [f32], up: &[f32]));
dispatch!(gelu_part => gelu_values(x: &mut [f32]));

#[inline(always)]
fn swiglu_values(gate: &mut [f32], up: &[f32]) {
    for (x, up) in gate.iter_mut().zip(up) {
        *x = *x * sigmoid(*x) * up;
    }
}

#[inline(always)]
fn gelu_values(x: &mut [f32]) {
    let (cube, line) = ((0.044715 * DOUBLE_ROOT) as f32, DOUBLE_ROOT as f32);
    for x in x {
        *x *= sigmoid((*x * *x).mul_add(cube, line) * *x);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn in_host_memory_they_are_what_the_tensors_give() {
        let n = 3 * PART + 5;
        let values = |step: f32| -> Vec<f32> { (0..n).map(|i| i as f32 * step - 20.0).collect() };
        let on = |device: &Device| {
            let tensor =
                |step| Tensor::<3>::from_data(TensorData::new(values(step), [1, 1, n]), device);
            let (gate, up) = (tensor(40.0 / n as f32), tensor(30.0 / n as f32));
            [gelu_new(gate.clone()), swiglu(gate, up)].map(to_vec)
        };
        let device = Device::flex();
        for (ours, burn) in on(&device).iter().zip(on(&device.autodiff())) {
            for (a, b) in ours.iter().zip(burn) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} {b}");
            }
        }
    }
}
