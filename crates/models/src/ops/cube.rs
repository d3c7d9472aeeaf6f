//! The operations of a pass on a device that CubeCL serves. Those of [`rows`](super::rows) are one launch each, two for a norm's
//! gradient.

pub(super) mod attention;

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeDim, calculate_cube_count_elemwise};

use super::{CUBE, Dropped, LINE, Operation, Walk};

/// Units per cube; no more than WebGPU grants everywhere.
const UNITS: u32 = 256;
/// Largest number of cubes along one axis of a launch.
const MOST_CUBES: usize = 65_535;
/// Rows whose share of the parameters' gradients one cube sums.
const ROWS: usize = 16;

impl Walk for CubeBackend {
    fn dense(x: CubeTensor) -> CubeTensor {
        let x = if x.dtype == DType::F32 {
            x
        } else {
            burn_cubecl::kernel::cast(x, DType::F32)
        };
        into_contiguous(x)
    }

    fn forward<const I: usize>(op: &dyn Operation<I>, inputs: &[CubeTensor; I]) -> CubeTensor {
        op.forward_on_card(inputs)
    }

    fn backward<const I: usize>(
        op: &dyn Operation<I>,
        inputs: &[CubeTensor; I],
        g: &CubeTensor,
    ) -> [CubeTensor; I] {
        op.backward_on_card(inputs, g)
    }
}

/// A tensor of the same shape, with arbitrary content.
pub(super) fn like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.meta.shape().clone())
}

fn empty(beside: &CubeTensor, shape: Shape) -> CubeTensor {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    empty_device_contiguous_dtype(client, device, shape, DType::F32)
}

/// How to launch a unit for each number.
fn each_number(x: &CubeTensor) -> (CubeCount, CubeDim) {
    let count = x.meta.num_elements();
    let dim = CubeDim::new(&x.client, count);
    (calculate_cube_count_elemwise(&x.client, count, dim), dim)
}

/// A cube for each part of the work; cubes beyond the last end at once.
fn cubes(parts: usize) -> CubeCount {
    let along = parts.clamp(1, MOST_CUBES);
    CubeCount::Static(along as u32, parts.div_ceil(along) as u32, 1)
}

fn units(x: &CubeTensor) -> u32 {
    let most = x.client.properties().hardware.max_units_per_cube;
    // a power of 2: sums halve the units until one is left
    1 << UNITS.min(most).ilog2()
}

/// `x / rms(x) weight`, or `(x - mean(x)) / sd(x) weight + bias`.
pub(super) fn norm(
    x: &CubeTensor,
    weight: &CubeTensor,
    bias: Option<&CubeTensor>,
    epsilon: f32,
) -> CubeTensor {
    let (out, units) = (like(x), units(x));
    let rows = x.meta.shape()[0];
    norm_kernel::launch(
        &x.client,
        cubes(rows),
        CubeDim::new_1d(units),
        x.clone().into_tensor_arg(),
        weight.clone().into_tensor_arg(),
        bias.unwrap_or(weight).clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        epsilon,
        bias.is_some(),
        units as usize,
    );
    out
}

/// Gradients in `x`, the weight, and the bias where there is one.
pub(super) fn norm_gradient(
    x: &CubeTensor,
    weight: &CubeTensor,
    centred: bool,
    epsilon: f32,
    g: &CubeTensor,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let units = units(x);
    let [rows, d]: [usize; 2] = x.meta.shape().dims();
    let parts = rows.div_ceil(ROWS);
    let dx = like(x);
    let of_weight = empty(x, Shape::new([parts, d]));
    // WebGPU forbids empty tensors
    let of_bias = empty(x, Shape::new(if centred { [parts, d] } else { [1, 1] }));
    norm_gradient_kernel::launch(
        &x.client,
        cubes(parts),
        CubeDim::new_1d(units),
        x.clone().into_tensor_arg(),
        weight.clone().into_tensor_arg(),
        g.clone().into_tensor_arg(),
        dx.clone().into_tensor_arg(),
        of_weight.clone().into_tensor_arg(),
        of_bias.clone().into_tensor_arg(),
        epsilon,
        ROWS,
        centred,
        units as usize,
    );
    let d_weight = like(weight);
    let d_bias = if centred {
        like(weight)
    } else {
        of_bias.clone()
    };
    let (count, dim) = each_number(weight);
    columns_kernel::launch(
        &x.client,
        count,
        dim,
        of_weight.into_tensor_arg(),
        of_bias.into_tensor_arg(),
        d_weight.clone().into_tensor_arg(),
        d_bias.clone().into_tensor_arg(),
        centred,
    );
    (dx, d_weight, d_bias)
}

pub(super) fn gelu(x: &CubeTensor) -> CubeTensor {
    let out = like(x);
    let (count, dim) = each_number(x);
    let (input, output) = (x.clone().into_tensor_arg(), out.clone().into_tensor_arg());
    gelu_kernel::launch(&x.client, count, dim, input, output);
    out
}

pub(super) fn gelu_gradient(x: &CubeTensor, g: &CubeTensor) -> CubeTensor {
    let out = like(x);
    let (count, dim) = each_number(x);
    gelu_gradient_kernel::launch(
        &x.client,
        count,
        dim,
        x.clone().into_tensor_arg(),
        g.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
    );
    out
}

/// `silu(gate) up`
pub(super) fn gated(gate: &CubeTensor, up: &CubeTensor) -> CubeTensor {
    let out = like(gate);
    let (count, dim) = each_number(gate);
    let (of_gate, of_up) = (gate.clone().into_tensor_arg(), up.clone().into_tensor_arg());
    let to = out.clone().into_tensor_arg();
    gated_kernel::launch(&gate.client, count, dim, of_gate, of_up, to);
    out
}

/// Gradients in gate and up.
pub(super) fn gated_gradient(
    gate: &CubeTensor,
    up: &CubeTensor,
    g: &CubeTensor,
) -> [CubeTensor; 2] {
    let made = [like(gate), like(up)];
    let [d_gate, d_up] = made.clone();
    let (count, dim) = each_number(gate);
    gated_gradient_kernel::launch(
        &gate.client,
        count,
        dim,
        gate.clone().into_tensor_arg(),
        up.clone().into_tensor_arg(),
        g.clone().into_tensor_arg(),
        d_gate.into_tensor_arg(),
        d_up.into_tensor_arg(),
    );
    made
}

/// `x`, or its gradient, where dropout leaves it.
pub(super) fn dropout(x: &CubeTensor, dropped: Dropped) -> CubeTensor {
    let out = like(x);
    let (count, dim) = each_number(x);
    let ([low, high], (limit, kept)) = (dropped.halves(), dropped.limit());
    dropout_kernel::launch(
        &x.client,
        count,
        dim,
        x.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        low,
        high,
        limit,
        kept,
    );
    out
}

/// A bijection under which consecutive arguments give unrelated results.
#[cube]
fn scatter(x: u32) -> u32 {
    let x = (x ^ (x >> 16u32)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15u32)) * 0x846c_a68bu32;
    x ^ (x >> 16u32)
}

/// Key of a row of a head, as on the host.
#[cube]
fn row_key(low: u32, high: u32, row: usize, head: usize) -> u32 {
    scatter(scatter(scatter(row as u32 ^ low) ^ high) ^ head as u32)
}

/// Factor that dropout gives a weight.
#[cube]
fn left(key: u32, j: usize, limit: u32, kept: f32) -> f32 {
    let drawn = scatter(j as u32 * 0x9E37_79B9u32 + key);
    let mut factor = kept;
    if drawn < limit {
        factor = 0.0f32;
    }
    factor
}

#[cube(launch)]
fn dropout_kernel(
    x: &Tensor<f32>,
    out: &mut Tensor<f32>,
    low: u32,
    high: u32,
    limit: u32,
    kept: f32,
) {
    let i = ABSOLUTE_POS;
    if i >= out.len() {
        terminate!();
    }
    out[i] = x[i] * left(row_key(low, high, 0, 0), i, limit, kept);
}

#[cube]
fn total(x: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(units);
    // the sum before may still be read
    sync_cube();
    sums[unit] = x;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    sums[0]
}

/// A row's mean (0 where it is not subtracted), and 1 / the deviation from it.
#[derive(CubeType)]
struct Scale {
    mean: f32,
    scale: f32,
}

#[cube]
fn scale_of(
    x: &Tensor<f32>,
    start: usize,
    d: usize,
    epsilon: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) -> Scale {
    let unit = UNIT_POS as usize;
    let mut mean = 0.0f32;
    if centred {
        let mut sum = 0.0f32;
        let mut j = unit;
        while j < d {
            sum += x[start + j];
            j += units;
        }
        mean = total(sum, units) / d as f32;
    }
    let mut squares = 0.0f32;
    let mut j = unit;
    while j < d {
        let from = x[start + j] - mean;
        squares += from * from;
        j += units;
    }
    let square = total(squares, units) / d as f32;
    Scale {
        mean,
        scale: 1.0f32 / (square + epsilon).sqrt(),
    }
}

#[cube(launch)]
fn norm_kernel(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: &Tensor<f32>,
    out: &mut Tensor<f32>,
    epsilon: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) {
    let d = weight.len();
    let start = CUBE_POS * d;
    if start >= x.len() {
        terminate!();
    }
    let of = scale_of(x, start, d, epsilon, centred, units);
    let mut j = UNIT_POS as usize;
    while j < d {
        let mut y = (x[start + j] - of.mean) * of.scale * weight[j];
        if centred {
            y += bias[j];
        }
        out[start + j] = y;
        j += units;
    }
}

/// The formulas of [`rows`](super::rows). A cube sums its rows' share of the parameters' gradients, each unit its columns.
#[cube(launch)]
fn norm_gradient_kernel(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    g: &Tensor<f32>,
    dx: &mut Tensor<f32>,
    of_weight: &mut Tensor<f32>,
    of_bias: &mut Tensor<f32>,
    epsilon: f32,
    #[comptime] rows: usize,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) {
    let d = weight.len();
    let unit = UNIT_POS as usize;
    let part = CUBE_POS * d;
    if part >= of_weight.len() {
        terminate!();
    }
    let mut j = unit;
    while j < d {
        of_weight[part + j] = 0.0f32;
        if centred {
            of_bias[part + j] = 0.0f32;
        }
        j += units;
    }
    let mut row = CUBE_POS * rows;
    let end = min((CUBE_POS + 1) * rows, x.len() / d);
    while row < end {
        let start = row * d;
        let of = scale_of(x, start, d, epsilon, centred, units);
        let mut along = 0.0f32;
        let mut all = 0.0f32;
        let mut j = unit;
        while j < d {
            let from = x[start + j] - of.mean;
            let g = g[start + j];
            let h = g * weight[j];
            along += h * from;
            all += h;
            of_weight[part + j] += g * from * of.scale;
            if centred {
                of_bias[part + j] += g;
            }
            j += units;
        }
        along = total(along, units) * of.scale / d as f32;
        if centred {
            all = total(all, units) / d as f32;
        } else {
            all = 0.0f32;
        }
        let mut j = unit;
        while j < d {
            let from = x[start + j] - of.mean;
            let h = g[start + j] * weight[j];
            dx[start + j] = of.scale * (h - all - from * of.scale * along);
            j += units;
        }
        row += 1;
    }
}

/// Sums over the parts.
#[cube(launch)]
fn columns_kernel(
    of_weight: &Tensor<f32>,
    of_bias: &Tensor<f32>,
    d_weight: &mut Tensor<f32>,
    d_bias: &mut Tensor<f32>,
    #[comptime] centred: bool,
) {
    let j = ABSOLUTE_POS;
    let d = d_weight.len();
    if j >= d {
        terminate!();
    }
    let mut weight = 0.0f32;
    let mut bias = 0.0f32;
    let mut at = j;
    while at < of_weight.len() {
        weight += of_weight[at];
        if centred {
            bias += of_bias[at];
        }
        at += d;
    }
    d_weight[j] = weight;
    if centred {
        d_bias[j] = bias;
    }
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    let e = (-x.abs()).exp();
    let mut s = 1.0f32 / (1.0f32 + e);
    if x < 0.0f32 {
        s *= e;
    }
    s
}

#[cube(launch)]
fn gelu_kernel(x: &Tensor<f32>, out: &mut Tensor<f32>) {
    let i = ABSOLUTE_POS;
    if i >= out.len() {
        terminate!();
    }
    let x = x[i];
    out[i] = x * sigmoid((x * x * CUBE + LINE) * x);
}

#[cube(launch)]
fn gelu_gradient_kernel(x: &Tensor<f32>, g: &Tensor<f32>, dx: &mut Tensor<f32>) {
    let i = ABSOLUTE_POS;
    if i >= dx.len() {
        terminate!();
    }
    let x = x[i];
    let square = x * x;
    let s = sigmoid((square * CUBE + LINE) * x);
    let inner = square * (3.0f32 * CUBE) + LINE;
    dx[i] = g[i] * (x * inner * s * (1.0f32 - s) + s);
}

#[cube(launch)]
fn gated_kernel(gate: &Tensor<f32>, up: &Tensor<f32>, out: &mut Tensor<f32>) {
    let i = ABSOLUTE_POS;
    if i >= out.len() {
        terminate!();
    }
    let x = gate[i];
    out[i] = x * sigmoid(x) * up[i];
}

#[cube(launch)]
fn gated_gradient_kernel(
    gate: &Tensor<f32>,
    up: &Tensor<f32>,
    g: &Tensor<f32>,
    d_gate: &mut Tensor<f32>,
    d_up: &mut Tensor<f32>,
) {
    let i = ABSOLUTE_POS;
    if i >= g.len() {
        terminate!();
    }
    let x = gate[i];
    let s = sigmoid(x);
    d_up[i] = g[i] * x * s;
    d_gate[i] = g[i] * up[i] * (x * s * (1.0f32 - s) + s);
}
