//! Causal attention of sequences that lie end to end, on a device that CubeCL serves. Heads are copied to padded `[B, H, T, dh]`
//! for the products, and rotated meanwhile; scale, mask, softmax and dropout are one walk over the scores. Nothing of their
//! size outlives the operation: the backward pass computes the weights again.

use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{Shape, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeDim;
use cubecl::prelude::*;

use super::{Dropped, cubes, each_number, empty, left, like, row_key, total, units};
use crate::attention::Rotary;
use crate::span::Heads;

/// What the kernels ask about the sequences.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// First row and number of rows of each sequence: `[B, 2]`
    sequences: CubeTensor,
    /// Cosines, then sines, of each position: `[T, dh]`; a single number where nothing is rotated.
    angles: CubeTensor,
    turned: bool,
    /// B, and T: the longest sequence.
    batch: usize,
    width: usize,
}

impl Places {
    pub fn new(lengths: &[usize], rotary: Option<&Rotary>, dh: usize, beside: &CubeTensor) -> Self {
        let mut first = 0;
        let mut sequences = Vec::with_capacity(2 * lengths.len());
        for &length in lengths {
            sequences.extend([first as i32, length as i32]);
            first += length;
        }
        let sequences = TensorData::new(sequences, [lengths.len(), 2]);
        let angles = rotary.map_or_else(|| vec![0.0], |rotary| rotary.table(dh));
        let count = angles.len();
        let angles = TensorData::new(angles, [count]);
        Self {
            sequences: CubeBackend::int_from_data(sequences, &beside.device),
            angles: CubeBackend::float_from_data(angles, &beside.device),
            turned: rotary.is_some(),
            batch: lengths.len(),
            width: lengths.iter().copied().max().unwrap_or(0),
        }
    }
}

/// The attention, but for its inputs.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub places: &'a Places,
    pub shape: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Dropout of attention weights.
    pub dropout: Option<Dropped>,
}

/// Some columns of a matrix.
#[derive(Clone)]
pub(crate) struct Columns {
    pub numbers: CubeTensor,
    pub first: usize,
}

impl Attention<'_> {
    /// `[N, H dh]`
    pub fn forward(self, qkv: [Columns; 3], rows: usize) -> CubeTensor {
        let [q, k, v] = self.inputs(qkv);
        let (weights, dropped) = self.weights(q, k);
        let y = CubeBackend::float_matmul(dropped.unwrap_or(weights), v);
        let out = empty(&y, Shape::new([rows, self.shape.heads * self.shape.dh]));
        self.rows(&y, false, false, 1.0, &out, 0);
        out
    }

    /// Writes the gradients in queries, keys and values into columns of matrices.
    pub fn backward(self, qkv: [Columns; 3], g: &CubeTensor, grads: [Columns; 3]) {
        let of_rows = Columns {
            numbers: g.clone(),
            first: 0,
        };
        let g = self.heads(&of_rows, false, false, 1.0);
        let [q, k, v] = self.inputs(qkv);
        let (weights, dropped) = self.weights(q.clone(), k.clone());
        let transposed = |x| CubeBackend::float_swap_dims(x, 2, 3);
        let d_weights = CubeBackend::float_matmul(g.clone(), transposed(v));
        let d_scores = self.scores_gradient(&weights, &d_weights);
        let d_q = CubeBackend::float_matmul(d_scores.clone(), k);
        let d_k = CubeBackend::float_matmul(transposed(d_scores), q);
        let d_v = CubeBackend::float_matmul(transposed(dropped.unwrap_or(weights)), g);
        let [of_q, of_k, of_v] = grads;
        self.rows(&d_q, true, false, self.scale, &of_q.numbers, of_q.first);
        self.rows(&d_k, true, true, 1.0, &of_k.numbers, of_k.first);
        self.rows(&d_v, false, true, 1.0, &of_v.numbers, of_v.first);
    }

    fn inputs(self, [q, k, v]: [Columns; 3]) -> [CubeTensor; 3] {
        [
            self.heads(&q, true, false, self.scale),
            self.heads(&k, true, true, 1.0),
            self.heads(&v, false, true, 1.0),
        ]
    }

    /// Query heads per head of the matrix.
    fn share(self, of_keys: bool) -> usize {
        if of_keys {
            self.shape.heads / self.shape.kv_heads
        } else {
            1
        }
    }

    /// `[B, H, T, dh]` of columns; heads of keys and values once for each query head. 0 where a sequence has no token.
    fn heads(self, from: &Columns, turned: bool, of_keys: bool, scale: f32) -> CubeTensor {
        let (places, Heads { heads, dh, .. }) = (self.places, self.shape);
        let shape = Shape::new([places.batch, heads, places.width, dh]);
        let to = empty(&from.numbers, shape);
        let (count, dim) = each_number(&to);
        heads_kernel::launch(
            &to.client,
            count,
            dim,
            from.numbers.clone().into_tensor_arg(),
            places.sequences.clone().into_tensor_arg(),
            places.angles.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            from.first,
            from.numbers.meta.shape()[1],
            heads,
            places.width,
            self.share(of_keys),
            scale,
            dh,
            turned && places.turned,
        );
        to
    }

    /// The transpose of [`heads`](Self::heads).
    fn rows(
        self,
        from: &CubeTensor,
        turned: bool,
        of_keys: bool,
        scale: f32,
        to: &CubeTensor,
        first: usize,
    ) {
        let (places, Heads { heads, dh, .. }) = (self.places, self.shape);
        let share = self.share(of_keys);
        let numbers = places.batch * heads / share * places.width * dh;
        let dim = CubeDim::new(&from.client, numbers);
        rows_kernel::launch(
            &from.client,
            cubecl::calculate_cube_count_elemwise(&from.client, numbers, dim),
            dim,
            from.clone().into_tensor_arg(),
            places.sequences.clone().into_tensor_arg(),
            places.angles.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            first,
            to.meta.shape()[1],
            heads / share,
            places.width,
            share,
            scale,
            numbers,
            dh,
            turned && places.turned,
        );
    }

    /// Weights `[B, H, T, T]`, and what dropout leaves of them.
    fn weights(self, q: CubeTensor, k: CubeTensor) -> (CubeTensor, Option<CubeTensor>) {
        let k = CubeBackend::float_swap_dims(k, 2, 3);
        let scores = CubeBackend::float_matmul(q, k);
        let weights = like(&scores);
        let dropped = self.dropout.map(|_| like(&scores));
        let units = units(&scores);
        // WebGPU forbids a tensor twice and empty ones
        let spare = || empty(&scores, Shape::new([1]));
        let ([low, high], (limit, kept)) = self.drops();
        weights_kernel::launch(
            &scores.client,
            cubes(scores.meta.num_elements() / self.places.width),
            CubeDim::new_1d(units),
            scores.clone().into_tensor_arg(),
            self.places.sequences.clone().into_tensor_arg(),
            weights.clone().into_tensor_arg(),
            dropped.clone().unwrap_or_else(spare).into_tensor_arg(),
            self.places.width,
            self.shape.heads,
            low,
            high,
            limit,
            kept,
            dropped.is_some(),
            units as usize,
        );
        (weights, dropped)
    }

    fn scores_gradient(self, weights: &CubeTensor, g: &CubeTensor) -> CubeTensor {
        let out = like(weights);
        let units = units(weights);
        let ([low, high], (limit, kept)) = self.drops();
        scores_gradient_kernel::launch(
            &weights.client,
            cubes(weights.meta.num_elements() / self.places.width),
            CubeDim::new_1d(units),
            weights.clone().into_tensor_arg(),
            g.clone().into_tensor_arg(),
            self.places.sequences.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            self.places.width,
            self.shape.heads,
            low,
            high,
            limit,
            kept,
            self.dropout.is_some(),
            units as usize,
        );
        out
    }

    /// Halves of the key, and the limit, of dropout.
    fn drops(self) -> ([u32; 2], (u32, f32)) {
        let none = ([0; 2], (0, 1.0));
        self.dropout.map_or(none, |d| (d.halves(), d.limit()))
    }
}

/// Columns `first..` of `[N, stride]` to `[B, H, T, dh]`.
#[cube(launch)]
fn heads_kernel(
    from: &Tensor<f32>,
    sequences: &Tensor<i32>,
    angles: &Tensor<f32>,
    to: &mut Tensor<f32>,
    first: usize,
    stride: usize,
    heads: usize,
    width: usize,
    share: usize,
    scale: f32,
    #[comptime] dh: usize,
    #[comptime] turned: bool,
) {
    let i = ABSOLUTE_POS;
    if i >= to.len() {
        terminate!();
    }
    let x = i % dh;
    let t = i / dh % width;
    let head = i / dh / width % heads;
    let sequence = i / dh / width / heads;
    let mut y = 0.0f32;
    if t < sequences[2 * sequence + 1] as usize {
        let row = sequences[2 * sequence] as usize + t;
        let start = row * stride + first + head / share * dh;
        y = from[start + x];
        if turned {
            let half = dh / 2;
            let at = x % half;
            let cos = angles[t * dh + at];
            let sin = angles[t * dh + half + at];
            if x < half {
                y = y * cos - from[start + x + half] * sin;
            } else {
                y = y * cos + from[start + at] * sin;
            }
        }
        y *= scale;
    }
    to[i] = y;
}

/// The transpose of [`heads_kernel`], for `numbers` numbers of `[B, heads, T, dh]`, each the sum over `share` heads of `from`.
#[cube(launch)]
fn rows_kernel(
    from: &Tensor<f32>,
    sequences: &Tensor<i32>,
    angles: &Tensor<f32>,
    to: &mut Tensor<f32>,
    first: usize,
    stride: usize,
    heads: usize,
    width: usize,
    share: usize,
    scale: f32,
    numbers: usize,
    #[comptime] dh: usize,
    #[comptime] turned: bool,
) {
    let i = ABSOLUTE_POS;
    if i >= numbers {
        terminate!();
    }
    let x = i % dh;
    let t = i / dh % width;
    let head = i / dh / width % heads;
    let sequence = i / dh / width / heads;
    if t < sequences[2 * sequence + 1] as usize {
        let row = sequences[2 * sequence] as usize + t;
        let mut sum = 0.0f32;
        for s in 0..share {
            let start = (((sequence * heads + head) * share + s) * width + t) * dh;
            let mut g = from[start + x];
            if turned {
                let half = dh / 2;
                let at = x % half;
                let cos = angles[t * dh + at];
                let sin = angles[t * dh + half + at];
                if x < half {
                    g = g * cos + from[start + x + half] * sin;
                } else {
                    g = g * cos - from[start + at] * sin;
                }
            }
            sum += g;
        }
        to[row * stride + first + head * dh + x] = sum * scale;
    }
}

/// The largest number over the units.
#[cube]
fn largest(x: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut all = Shared::<[f32]>::new_slice(units);
    all[unit] = x;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = all[unit + half];
            all[unit] = max(all[unit], other);
        }
        sync_cube();
        half /= 2;
    }
    all[0]
}

/// Softmax over the keys up to the query's position, and dropout. A cube for each row.
#[cube(launch)]
fn weights_kernel(
    scores: &Tensor<f32>,
    sequences: &Tensor<i32>,
    weights: &mut Tensor<f32>,
    dropped: &mut Tensor<f32>,
    width: usize,
    heads: usize,
    low: u32,
    high: u32,
    limit: u32,
    kept: f32,
    #[comptime] drops: bool,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    let start = row * width;
    if start >= scores.len() {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let query = row % width;
    let head = row / width % heads;
    let token = sequences[2 * (row / width / heads)] as usize + query;
    let key = row_key(low, high, token, head);
    // Where a unit sees no key: a score that every query has.
    let mut most = scores[start];
    let mut j = unit;
    while j <= query {
        most = max(most, scores[start + j]);
        j += units;
    }
    let most = largest(most, units);
    let mut sum = 0.0f32;
    let mut j = unit;
    while j <= query {
        sum += (scores[start + j] - most).exp();
        j += units;
    }
    let sum = total(sum, units);
    let mut j = unit;
    while j < width {
        let mut weight = 0.0f32;
        if j <= query {
            weight = (scores[start + j] - most).exp() / sum;
        }
        weights[start + j] = weight;
        if drops {
            dropped[start + j] = weight * left(key, j, limit, kept);
        }
        j += units;
    }
}

/// Gradient of the scores from that of the weights that dropout left.
#[cube(launch)]
fn scores_gradient_kernel(
    weights: &Tensor<f32>,
    g: &Tensor<f32>,
    sequences: &Tensor<i32>,
    out: &mut Tensor<f32>,
    width: usize,
    heads: usize,
    low: u32,
    high: u32,
    limit: u32,
    kept: f32,
    #[comptime] drops: bool,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    let start = row * width;
    if start >= weights.len() {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let query = row % width;
    let head = row / width % heads;
    let token = sequences[2 * (row / width / heads)] as usize + query;
    let key = row_key(low, high, token, head);
    let mut sum = 0.0f32;
    let mut j = unit;
    while j <= query {
        let mut slope = g[start + j];
        if drops {
            slope *= left(key, j, limit, kept);
        }
        sum += weights[start + j] * slope;
        j += units;
    }
    let mean = total(sum, units);
    let mut j = unit;
    while j < width {
        let mut slope = 0.0f32;
        if j <= query {
            slope = g[start + j];
            if drops {
                slope *= left(key, j, limit, kept);
            }
            slope = weights[start + j] * (slope - mean);
        }
        out[start + j] = slope;
        j += units;
    }
}
