//! Norms and activations: row by row, or number by number.

use abkd_host::math::sigmoid;
use abkd_host::{LANES, dispatch};
use burn::tensor::{Shape, Tensor};
#[cfg(feature = "cube")]
use burn_cubecl::tensor::CubeTensor;
use rayon::prelude::*;

#[cfg(feature = "cube")]
use super::cube;
use super::{CUBE, LINE, Operation, apply_1, apply_2, apply_3, gelu};

/// Rows that a thread takes at a time.
const ROWS: usize = 32;
/// Numbers that a thread takes at a time.
const PART: usize = 1 << 13;

/// `x / rms(x) weight`: `[N, d]`, `[d] -> [N, d]`.
pub(crate) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let epsilon = epsilon as f32;
    apply_2(Norm { epsilon }, x, weight)
}

/// `(x - mean(x)) / sd(x) weight + bias`: `[N, d]`, `[d]`, `[d] -> [N, d]`.
pub(crate) fn layer_norm(
    x: Tensor<2>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    let epsilon = epsilon as f32;
    apply_3(Norm { epsilon }, x, weight, bias)
}

/// `silu(gate) up`
pub(crate) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    apply_2(Gated, gate, up)
}

/// [`swiglu`] of both side by side: `[N, 2 inner] -> [N, inner]`.
pub(crate) fn swiglu_joint(both: Tensor<2>) -> Tensor<2> {
    let inner = both.dims()[1] / 2;
    apply_1(GatedRows { inner }, both)
}

/// See [`gelu_new`](crate::activation::gelu_new).
pub(crate) fn gelu_new(x: Tensor<2>) -> Tensor<2> {
    apply_1(Gelu, x)
}

/// Root-mean-square normalisation; with a bias the mean is subtracted first (layer normalisation).
#[derive(Debug)]
struct Norm {
    epsilon: f32,
}

impl Operation<2> for Norm {
    fn shape(&self, [x, _]: [Shape; 2]) -> Shape {
        x
    }

    fn forward(&self, [x, weight]: [&[f32]; 2], out: &mut [f32]) {
        let rows = out.par_chunks_mut(ROWS * weight.len());
        let rows = rows.zip(x.par_chunks(ROWS * weight.len()));
        rows.for_each(|(out, x)| norm(x, weight, None, self.epsilon, out));
    }

    fn backward(&self, [x, weight]: [&[f32]; 2], g: &[f32], [dx, d_weight]: [&mut [f32]; 2]) {
        self.gradients(x, weight, g, dx, d_weight, None);
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, [x, weight]: &[CubeTensor; 2]) -> CubeTensor {
        cube::norm(x, weight, None, self.epsilon)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(&self, [x, weight]: &[CubeTensor; 2], g: &CubeTensor) -> [CubeTensor; 2] {
        let (dx, d_weight, _) = cube::norm_gradient(x, weight, false, self.epsilon, g);
        [dx, d_weight]
    }
}

impl Operation<3> for Norm {
    fn shape(&self, [x, ..]: [Shape; 3]) -> Shape {
        x
    }

    fn forward(&self, [x, weight, bias]: [&[f32]; 3], out: &mut [f32]) {
        let rows = out.par_chunks_mut(ROWS * weight.len());
        let rows = rows.zip(x.par_chunks(ROWS * weight.len()));
        rows.for_each(|(out, x)| norm(x, weight, Some(bias), self.epsilon, out));
    }

    fn backward(
        &self,
        [x, weight, _]: [&[f32]; 3],
        g: &[f32],
        [dx, d_weight, d_bias]: [&mut [f32]; 3],
    ) {
        self.gradients(x, weight, g, dx, d_weight, Some(d_bias));
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, [x, weight, bias]: &[CubeTensor; 3]) -> CubeTensor {
        cube::norm(x, weight, Some(bias), self.epsilon)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(
        &self,
        [x, weight, _]: &[CubeTensor; 3],
        g: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let (dx, d_weight, d_bias) = cube::norm_gradient(x, weight, true, self.epsilon, g);
        [dx, d_weight, d_bias]
    }
}

impl Norm {
    /// The parameters' gradients are summed in parts of a fixed size, so they do not depend on the number of threads.
    fn gradients(
        &self,
        x: &[f32],
        weight: &[f32],
        g: &[f32],
        dx: &mut [f32],
        d_weight: &mut [f32],
        d_bias: Option<&mut [f32]>,
    ) {
        let d = weight.len();
        let parts = dx.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d));
        let sums: Vec<[Vec<f32>; 2]> = parts
            .zip(g.par_chunks(ROWS * d))
            .map(|((dx, x), g)| {
                let mut sums = [
                    vec![0.0; d],
                    vec![0.0; if d_bias.is_some() { d } else { 0 }],
                ];
                let [of_weight, of_bias] = &mut sums;
                norm_gradient(x, weight, g, self.epsilon, dx, of_weight, of_bias);
                sums
            })
            .collect();
        let add = |to: &mut [f32], which: usize| {
            to.fill(0.0);
            for sum in &sums {
                for (to, x) in to.iter_mut().zip(&sum[which]) {
                    *to += x;
                }
            }
        };
        add(d_weight, 0);
        if let Some(d_bias) = d_bias {
            add(d_bias, 1);
        }
    }
}

/// `silu(gate) up`
#[derive(Debug)]
struct Gated;

impl Operation<2> for Gated {
    fn shape(&self, [gate, _]: [Shape; 2]) -> Shape {
        gate
    }

    fn forward(&self, [gate, up]: [&[f32]; 2], out: &mut [f32]) {
        let parts = gate.par_chunks(PART).zip(up.par_chunks(PART));
        let parts = out.par_chunks_mut(PART).zip(parts);
        parts.for_each(|(out, (gate, up))| gated(gate, up, out));
    }

    fn backward(&self, [gate, up]: [&[f32]; 2], g: &[f32], [d_gate, d_up]: [&mut [f32]; 2]) {
        let read = gate.par_chunks(PART).zip(up.par_chunks(PART));
        let read = read.zip(g.par_chunks(PART));
        let write = d_gate.par_chunks_mut(PART).zip(d_up.par_chunks_mut(PART));
        write
            .zip(read)
            .for_each(|((d_gate, d_up), ((gate, up), g))| {
                gated_gradient(gate, up, g, d_gate, d_up);
            });
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, [gate, up]: &[CubeTensor; 2]) -> CubeTensor {
        cube::gated(gate, up)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(&self, [gate, up]: &[CubeTensor; 2], g: &CubeTensor) -> [CubeTensor; 2] {
        cube::gated_gradient(gate, up, g)
    }
}

/// The same where gate and up share a row.
#[derive(Debug)]
struct GatedRows {
    inner: usize,
}

impl Operation<1> for GatedRows {
    fn shape(&self, [both]: [Shape; 1]) -> Shape {
        Shape::new([both[0], self.inner])
    }

    fn forward(&self, [both]: [&[f32]; 1], out: &mut [f32]) {
        let rows = both.par_chunks_exact(2 * self.inner);
        let rows = out.par_chunks_exact_mut(self.inner).zip(rows);
        rows.with_min_len(4).for_each(|(out, both)| {
            let (gate, up) = both.split_at(self.inner);
            gated(gate, up, out);
        });
    }

    fn backward(&self, [both]: [&[f32]; 1], g: &[f32], [grad]: [&mut [f32]; 1]) {
        let rows = both.par_chunks_exact(2 * self.inner);
        let rows = rows.zip(g.par_chunks_exact(self.inner));
        let rows = grad.par_chunks_exact_mut(2 * self.inner).zip(rows);
        rows.with_min_len(4).for_each(|(grad, (both, g))| {
            let (gate, up) = both.split_at(self.inner);
            let (d_gate, d_up) = grad.split_at_mut(self.inner);
            gated_gradient(gate, up, g, d_gate, d_up);
        });
    }
}

#[derive(Debug)]
struct Gelu;

impl Operation<1> for Gelu {
    fn shape(&self, [x]: [Shape; 1]) -> Shape {
        x
    }

    fn forward(&self, [x]: [&[f32]; 1], out: &mut [f32]) {
        let parts = out.par_chunks_mut(PART).zip(x.par_chunks(PART));
        parts.for_each(|(out, x)| {
            out.copy_from_slice(x);
            gelu(out);
        });
    }

    fn backward(&self, [x]: [&[f32]; 1], g: &[f32], [dx]: [&mut [f32]; 1]) {
        let read = x.par_chunks(PART).zip(g.par_chunks(PART));
        let parts = dx.par_chunks_mut(PART).zip(read);
        parts.for_each(|(dx, (x, g))| gelu_gradient(x, g, dx));
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, [x]: &[CubeTensor; 1]) -> CubeTensor {
        cube::gelu(x)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(&self, [x]: &[CubeTensor; 1], g: &CubeTensor) -> [CubeTensor; 1] {
        [cube::gelu_gradient(x, g)]
    }
}

dispatch!(norm => norm_rows(x: &[f32], weight: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]));
dispatch!(norm_gradient => norm_rows_gradient(
    x: &[f32], weight: &[f32], g: &[f32], epsilon: f32, dx: &mut [f32], d_weight: &mut [f32], d_bias: &mut [f32],
));
dispatch!(gated => gated_values(gate: &[f32], up: &[f32], out: &mut [f32]));
dispatch!(gated_gradient => gated_slopes(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]));
dispatch!(gelu_gradient => gelu_slopes(x: &[f32], g: &[f32], dx: &mut [f32]));

/// Sum of `f` over the numbers of two rows, in lanes.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        lanes[0] += f(*a, *b);
    }
    lanes.iter().sum()
}

/// Mean (0 where it is not subtracted), and 1 / the deviation from it.
#[inline(always)]
fn scale_of(x: &[f32], centred: bool, epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = if centred {
        sum(x, x, |x, _| x) / n
    } else {
        0.0
    };
    let square = sum(x, x, |x, _| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (square + epsilon).sqrt())
}

#[inline(always)]
fn norm_rows(x: &[f32], weight: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let (mean, scale) = scale_of(x, bias.is_some(), epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (x - mean) * scale * weight;
        }
        if let Some(bias) = bias {
            for (out, bias) in out.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
}

/// With `n = (x - mean) scale` and `h = g weight`: `dx = scale (h - mean(h) - n mean(h n))`, without `mean(h)` where the mean
/// is not subtracted.
#[inline(always)]
fn norm_rows_gradient(
    x: &[f32],
    weight: &[f32],
    g: &[f32],
    epsilon: f32,
    dx: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let (d, centred) = (weight.len(), !d_bias.is_empty());
    let rows = x.chunks_exact(d).zip(g.chunks_exact(d));
    for ((x, g), dx) in rows.zip(dx.chunks_exact_mut(d)) {
        let (mean, scale) = scale_of(x, centred, epsilon);
        let numbers = x
            .iter()
            .zip(g)
            .zip(weight)
            .zip(dx.iter_mut())
            .zip(&mut *d_weight);
        for ((((x, g), weight), dx), d_weight) in numbers {
            *dx = g * weight;
            *d_weight += g * (x - mean) * scale;
        }
        for (d_bias, g) in d_bias.iter_mut().zip(g) {
            *d_bias += g;
        }
        let n = d as f32;
        let along = sum(dx, x, |h, x| h * (x - mean)) * scale / n;
        let all = if centred {
            sum(dx, dx, |h, _| h) / n
        } else {
            0.0
        };
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - all - (x - mean) * scale * along);
        }
    }
}

#[inline(always)]
fn gated_values(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(*gate) * up;
    }
}

#[inline(always)]
fn gated_slopes(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let read = gate.iter().zip(up).zip(g);
    for ((((x, up), g), d_gate), d_up) in read.zip(d_gate).zip(d_up) {
        let s = sigmoid(*x);
        *d_up = g * x * s;
        *d_gate = g * up * (x * s).mul_add(1.0 - s, s);
    }
}

#[inline(always)]
fn gelu_slopes(x: &[f32], g: &[f32], dx: &mut [f32]) {
    for ((dx, &x), g) in dx.iter_mut().zip(x).zip(g) {
        let square = x * x;
        let s = sigmoid(square.mul_add(CUBE, LINE) * x);
        let inner = square.mul_add(3.0 * CUBE, LINE);
        *dx = g * (x * inner * s).mul_add(1.0 - s, s);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData, activation, module};

    use super::*;
    use crate::params::to_vec;

    fn wave<const D: usize>(shape: [usize; D], step: f32, device: &Device) -> Tensor<D> {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| 8.0 * (i as f32 * step).sin()).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    const SHAPE: [usize; 2] = [2 * ROWS + 5, 37];

    /// Values of `f` and its gradients in the inputs, in a graph.
    fn both(
        device: &Device,
        f: impl Fn(Tensor<2>, Tensor<2>, Tensor<1>, Tensor<1>) -> Tensor<2>,
    ) -> Vec<Vec<f32>> {
        let device = device.clone().autodiff();
        let (x, z) = (wave(SHAPE, 0.37, &device), wave(SHAPE, 0.21, &device));
        let (w, b) = (wave([37], 0.7, &device), wave([37], 0.9, &device));
        let (x, z) = (x.require_grad(), z.require_grad());
        let (w, b) = (w.require_grad(), b.require_grad());
        let y = f(x.clone(), z.clone(), w.clone(), b.clone());
        let weights = wave(SHAPE, 0.11, &device);
        // x is used twice, so that a gradient that overwrites a needed value would show.
        let loss = (y.clone() * weights).sum() + (y.clone().square() * 0.1).sum() + x.clone().sum();
        let grads = loss.backward();
        let twice = [&x, &z]
            .into_iter()
            .filter_map(|t| t.grad(&grads).map(to_vec));
        let once = [&w, &b]
            .into_iter()
            .filter_map(|t| t.grad(&grads).map(to_vec));
        std::iter::once(to_vec(y.inner()))
            .chain(twice)
            .chain(once)
            .collect()
    }

    fn devices() -> impl Iterator<Item = Device> {
        let in_memory = std::iter::once(Device::flex()).chain(abkd_host::libtorch());
        in_memory.chain(super::super::card())
    }

    /// `burns` is computed by Flex alone, whose functions are libm's. On libtorch or on wgpu (the message did not say
    /// which) the same formula of GELU gave 3.1905935, once in some hundred runs, where 3.1905465 is right.
    fn assert_near(
        f: impl Fn(Tensor<2>, Tensor<2>, Tensor<1>, Tensor<1>) -> Tensor<2>,
        burns: impl Fn(Tensor<2>, Tensor<2>, Tensor<1>, Tensor<1>) -> Tensor<2>,
    ) {
        let burns = both(&Device::flex(), &burns);
        for device in devices() {
            let ours = both(&device, &f);
            assert_eq!(ours.len(), burns.len());
            for (ours, burns) in ours.into_iter().zip(&burns) {
                assert_eq!(ours.len(), burns.len());
                let largest = burns.iter().fold(1.0, |m: f32, x| m.max(x.abs()));
                for (i, (a, b)) in ours.into_iter().zip(burns).enumerate() {
                    let near = (a - b).abs() <= 2e-6 * largest;
                    assert!(near, "{device:?}, number {i}: {a} {b} of {largest}");
                }
            }
        }
    }

    #[test]
    fn norms_have_burns_values_and_gradients() {
        assert_near(
            |x, _, w, _| rms_norm(x, w, 1e-3),
            |x, _, w, _| {
                let mean_square = x.clone().square().mean_dim(1);
                x * (mean_square + 1e-3).sqrt().recip() * w.unsqueeze()
            },
        );
        assert_near(
            |x, _, w, b| layer_norm(x, w, b, 1e-3),
            |x, _, w, b| module::layer_norm(x, w, Some(b), 1e-3),
        );
    }

    #[test]
    fn activations_have_burns_values_and_gradients() {
        assert_near(
            |x, z, _, _| swiglu(x, z),
            |x, z, _, _| activation::silu(x) * z,
        );
        assert_near(
            // side by side in host memory alone
            |x, z, _, _| match super::super::serve(&x.device()) {
                true => swiglu_joint(Tensor::cat(vec![x, z], 1)),
                false => swiglu(x, z),
            },
            |x, z, _, _| activation::silu(x) * z,
        );
        assert_near(
            |x, _, _, _| gelu_new(x),
            |x, _, _, _| {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let inner = (x.clone() + x.clone().powf_scalar(3.0) * 0.044715) * root;
                x * (inner.tanh() + 1.0) * 0.5
            },
        );
    }

    /// A view of other numbers is read correctly, and those stay unchanged; without a graph the values are the same.
    #[test]
    fn views_and_plain_tensors() {
        let device = Device::flex();
        let x = wave([4, 6], 0.3, &device);
        let view = || x.clone().swap_dims(0, 1).slice([1..5, 2..4]);
        let copy = || Tensor::<2>::from_data(view().into_data(), &device);
        assert_eq!(to_vec(gelu_new(view())), to_vec(gelu_new(copy())));
        assert_eq!(
            to_vec(swiglu(view(), copy())),
            to_vec(swiglu(copy(), view()))
        );
        assert_eq!(to_vec(x), to_vec(wave([4, 6], 0.3, &device)));
        let plain = gelu_new(wave(SHAPE, 0.37, &device));
        assert_eq!(to_vec(plain), both(&device, |x, _, _, _| gelu_new(x))[0]);
    }
}
