//! Causal attention of sequences that lie end to end, as one operation. A task is one sequence and one key head: it reads the
//! projections where they lie, rotates queries and keys by their angles, and processes the queries in blocks, against the
//! keys up to the block's end. No buffer of the size of the scores outlives a block: the backward pass recomputes the
//! weights.

use std::ops::Range;
use std::sync::Arc;

use abkd_host::dispatch;
use burn::nn::Dropout;
use burn::tensor::{Shape, Tensor};
#[cfg(feature = "cube")]
use burn_cubecl::tensor::CubeTensor;
use rayon::prelude::*;

#[cfg(feature = "cube")]
use super::cube::attention as card;
use super::products::{Factor, gemm_f32};
use super::{Dropped, Operation, apply_1, apply_3, softmax_of, softmax_slopes};
use crate::attention::{Rotary, score_scale};
use crate::layers::Projected;
use crate::rope::Angles;
use crate::span::Heads;

/// Queries of a block, over all heads that share a key head. Small blocks compute few masked scores, large ones make
/// efficient products.
const BLOCK: usize = 64;
/// Least number of queries of one head in a block.
const LEAST: usize = 16;

/// Sequences end to end, and their rotary angles.
#[derive(Debug)]
pub(crate) struct Sequences {
    lengths: Vec<usize>,
    rotary: Option<Rotary>,
    /// The same on a device that CubeCL serves, from the first layer on.
    #[cfg(feature = "cube")]
    on_card: std::sync::OnceLock<card::Places>,
}

impl Sequences {
    pub fn new(lengths: &[usize], angles: Option<Angles>) -> Arc<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Arc::new(Self {
            lengths: lengths.to_vec(),
            rotary: angles.map(|a| Rotary::new(longest, a)),
            #[cfg(feature = "cube")]
            on_card: std::sync::OnceLock::new(),
        })
    }
}

/// Attention of each token to those of its sequence up to itself: `[N, H dh]`.
pub(crate) fn causal(
    qkv: Projected<3>,
    sequences: &Arc<Sequences>,
    shape: Heads,
    dropout: Option<&Dropout>,
) -> Tensor<2> {
    let how = |x: &Tensor<2>| Causal {
        sequences: sequences.clone(),
        shape,
        dropout: dropout.and_then(|how| Dropped::draw(how, &x.device())),
    };
    match qkv {
        Projected::Apart([q, k, v]) => apply_3(how(&q), q, k, v),
        Projected::Joint(qkv) => apply_1(how(&qkv), qkv),
    }
}

/// The operation without its inputs.
#[derive(Clone, Debug)]
struct Causal {
    sequences: Arc<Sequences>,
    shape: Heads,
    /// Dropout of attention weights.
    dropout: Option<Dropped>,
}

impl Operation<3> for Causal {
    fn shape(&self, [q, ..]: [Shape; 3]) -> Shape {
        q
    }

    fn forward(&self, inputs: [&[f32]; 3], out: &mut [f32]) {
        self.run_forward(self.apart(inputs), out);
    }

    fn backward(&self, inputs: [&[f32]; 3], g: &[f32], grads: [&mut [f32]; 3]) {
        let [q, kv, _] = self.widths();
        let [dq, dk, dv] = grads;
        let grads = [
            Target::new(dq, q, 0),
            Target::new(dk, kv, 0),
            Target::new(dv, kv, 0),
        ];
        self.run_backward(self.apart(inputs), g, grads);
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, inputs: &[CubeTensor; 3]) -> CubeTensor {
        let rows = inputs[0].meta.shape()[0];
        self.on_card(&inputs[0]).forward(apart(inputs), rows)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(&self, inputs: &[CubeTensor; 3], g: &CubeTensor) -> [CubeTensor; 3] {
        let made = inputs.each_ref().map(super::cube::like);
        self.on_card(g).backward(apart(inputs), g, apart(&made));
        made
    }
}

impl Operation<1> for Causal {
    fn shape(&self, [qkv]: [Shape; 1]) -> Shape {
        Shape::new([qkv[0], self.widths()[0]])
    }

    fn forward(&self, [qkv]: [&[f32]; 1], out: &mut [f32]) {
        self.run_forward(self.joint(qkv), out);
    }

    fn backward(&self, [qkv]: [&[f32]; 1], g: &[f32], [grad]: [&mut [f32]; 1]) {
        let [q, kv, _] = self.widths();
        let grads = [0, q, q + kv].map(|first| Target::new(grad, q + 2 * kv, first));
        self.run_backward(self.joint(qkv), g, grads);
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, [qkv]: &[CubeTensor; 1]) -> CubeTensor {
        let rows = qkv.meta.shape()[0];
        self.on_card(qkv).forward(self.joint_on_card(qkv), rows)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(&self, [qkv]: &[CubeTensor; 1], g: &CubeTensor) -> [CubeTensor; 1] {
        let made = super::cube::like(qkv);
        let grads = self.joint_on_card(&made);
        self.on_card(g).backward(self.joint_on_card(qkv), g, grads);
        [made]
    }
}

/// Queries, keys and values in separate matrices.
#[cfg(feature = "cube")]
fn apart(inputs: &[CubeTensor; 3]) -> [card::Columns; 3] {
    inputs.each_ref().map(|numbers| card::Columns {
        numbers: numbers.clone(),
        first: 0,
    })
}

/// Some columns of a matrix.
#[derive(Clone, Copy)]
struct Columns<'a> {
    numbers: &'a [f32],
    /// Columns of the matrix.
    stride: usize,
    /// Index of the first of these columns.
    first: usize,
}

/// The same for writes, by several threads.
#[derive(Clone, Copy)]
struct Target {
    at: *mut f32,
    stride: usize,
    first: usize,
}

// SAFETY: a task writes the rows of its sequence and the columns of its heads, which no other task writes.
unsafe impl Sync for Target {}

impl Target {
    fn new(numbers: &mut [f32], stride: usize, first: usize) -> Self {
        let at = numbers.as_mut_ptr();
        Self { at, stride, first }
    }

    /// A head of a row.
    ///
    /// # Safety
    ///
    /// Row and head must be in the matrix and belong to the calling task.
    #[allow(clippy::mut_from_ref)]
    unsafe fn head(&self, row: usize, head: usize, dh: usize) -> &mut [f32] {
        let at = row * self.stride + self.first + head * dh;
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(at), dh) }
    }
}

/// A sequence and a key head.
#[derive(Clone, Debug)]
struct Task {
    rows: Range<usize>,
    kv_head: usize,
}

#[cfg(feature = "cube")]
impl Causal {
    fn on_card(&self, beside: &CubeTensor) -> card::Attention<'_> {
        let Sequences {
            lengths,
            rotary,
            on_card,
        } = &*self.sequences;
        let dh = self.shape.dh;
        card::Attention {
            places: on_card.get_or_init(|| card::Places::new(lengths, rotary.as_ref(), dh, beside)),
            shape: self.shape,
            scale: score_scale(dh),
            dropout: self.dropout,
        }
    }

    /// Queries, keys and values in one matrix.
    fn joint_on_card(&self, numbers: &CubeTensor) -> [card::Columns; 3] {
        let [q, kv, _] = self.widths();
        [0, q, q + kv].map(|first| card::Columns {
            numbers: numbers.clone(),
            first,
        })
    }
}

impl Causal {
    /// Widths of queries, keys and values.
    fn widths(&self) -> [usize; 3] {
        let Heads {
            heads,
            kv_heads,
            dh,
        } = self.shape;
        [heads * dh, kv_heads * dh, kv_heads * dh]
    }

    /// Queries, keys and values in separate matrices.
    fn apart<'a>(&self, inputs: [&'a [f32]; 3]) -> [Columns<'a>; 3] {
        let widths = self.widths();
        [0, 1, 2].map(|i| Columns {
            numbers: inputs[i],
            stride: widths[i],
            first: 0,
        })
    }

    /// Queries, keys and values in one matrix.
    fn joint<'a>(&self, numbers: &'a [f32]) -> [Columns<'a>; 3] {
        let [q, kv, _] = self.widths();
        [0, q, q + kv].map(|first| Columns {
            numbers,
            stride: q + 2 * kv,
            first,
        })
    }

    fn run_forward(&self, qkv: [Columns; 3], out: &mut [f32]) {
        let width = self.widths()[0];
        self.check(out.len() / width);
        let out = Target::new(out, width, 0);
        self.each(|scratch, task| scratch.forward(self, task, qkv, &out));
    }

    fn run_backward(&self, qkv: [Columns; 3], g: &[f32], grads: [Target; 3]) {
        let width = self.widths()[0];
        self.check(g.len() / width);
        let g = Columns {
            numbers: g,
            stride: width,
            first: 0,
        };
        self.each(|scratch, task| scratch.backward(self, task, qkv, g, &grads));
    }

    fn check(&self, rows: usize) {
        let all: usize = self.sequences.lengths.iter().sum();
        assert_eq!(rows, all, "the rows are those of the sequences");
    }

    /// Runs the tasks in parallel, long sequences first.
    fn each(&self, run: impl Fn(&mut Scratch, &Task) + Sync + Send) {
        let mut tasks = Vec::new();
        let mut first = 0;
        for &length in &self.sequences.lengths {
            let rows = first..first + length;
            first = rows.end;
            if length > 0 {
                tasks.extend((0..self.shape.kv_heads).map(|kv_head| Task {
                    rows: rows.clone(),
                    kv_head,
                }));
            }
        }
        tasks.sort_by_key(|t| std::cmp::Reverse(t.rows.len()));
        tasks
            .par_iter()
            .with_max_len(1)
            .for_each_init(Scratch::default, run);
    }

    /// Query heads per key head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    fn blocks(&self, task: &Task) -> impl Iterator<Item = Block> + use<> {
        let (start, length, group) = (task.rows.start, task.rows.len(), self.group());
        let heads = task.kv_head * group..(task.kv_head + 1) * group;
        let size = (BLOCK / group).max(LEAST);
        (0..length).step_by(size).map(move |first| Block {
            start,
            first,
            size: size.min(length - first),
            heads: heads.clone(),
        })
    }
}

/// A block of a task's queries.
struct Block {
    /// The sequence's first row.
    start: usize,
    /// The first query's position.
    first: usize,
    /// Queries per head.
    size: usize,
    heads: Range<usize>,
}

impl Block {
    /// Number of queries over all heads.
    fn queries(&self) -> usize {
        self.heads.len() * self.size
    }

    /// Number of keys that the last query sees.
    fn keys(&self) -> usize {
        self.first + self.size
    }

    /// Row, head and position of every query, in the order in which they lie in the scratch.
    fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (start, rows) = (self.start, self.first..self.first + self.size);
        self.heads
            .clone()
            .flat_map(move |head| rows.clone().map(move |at| (start + at, head, at)))
    }
}

/// A matrix as a factor of a product.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    /// From a row to the next, and from a column to the next.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    fn dense(numbers: &'a [f32], columns: usize) -> Self {
        Self {
            numbers,
            rows: numbers.len() / columns,
            columns,
            strides: [columns, 1],
        }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            strides: [self.strides[1], self.strides[0]],
            ..self
        }
    }
}

/// `to = a b`, or `to += a b`, row after row.
fn product(to: &mut [f32], add: bool, a: Matrix, b: Matrix) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let last = |x: Matrix| (x.rows - 1) * x.strides[0] + (x.columns - 1) * x.strides[1];
    assert!(b.rows == k && to.len() == m * n);
    assert!(last(a) < a.numbers.len() && last(b) < b.numbers.len());
    let factor = |x: Matrix| Factor {
        numbers: x.numbers.as_ptr(),
        strides: x.strides.map(|s| s as isize),
    };
    // SAFETY: the last entries are inside, so all are.
    unsafe {
        let to = to.as_mut_ptr();
        let alone = gemm::Parallelism::None;
        gemm_f32([m, k, n], to, n, add, factor(a), factor(b), alone);
    }
}

/// Buffers of a task.
#[derive(Default)]
struct Scratch {
    /// Rotated keys `[L, dh]`.
    k: Vec<f32>,
    /// Rotated and scaled queries of a block `[Q, dh]`, head by head.
    q: Vec<f32>,
    /// Attention weights of a block `[Q, keys]`.
    weights: Vec<f32>,
    /// The weights after dropout.
    left: Vec<f32>,
    /// Output of a block, then gradient of its queries `[Q, dh]`.
    out: Vec<f32>,
    /// Gradients of the outputs `[Q, dh]`, of the weights `[Q, keys]`, of keys and values `[L, dh]`.
    g: Vec<f32>,
    d_weights: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Scratch {
    fn keys(&mut self, how: &Causal, task: &Task, k: Columns) {
        let dh = how.shape.dh;
        room(&mut self.k, task.rows.len() * dh);
        let rows = task.rows.clone().zip(0..);
        let places = rows.map(|(row, at)| (row, task.kv_head, at));
        load(k, places, how, 1.0, &mut self.k);
    }

    /// Computes a block's queries and attention weights.
    fn weigh(&mut self, how: &Causal, block: &Block, q: Columns) {
        let dh = how.shape.dh;
        room(&mut self.q, block.queries() * dh);
        let scale = score_scale(dh);
        load(q, block.places(), how, scale, &mut self.q);
        room(&mut self.weights, block.queries() * block.keys());
        let k = Matrix::dense(&self.k[..block.keys() * dh], dh);
        product(
            &mut self.weights,
            false,
            Matrix::dense(&self.q, dh),
            k.transposed(),
        );
        softmax_block(&mut self.weights, block.keys(), block.first, block.size);
    }

    fn forward(&mut self, how: &Causal, task: &Task, [q, k, v]: [Columns; 3], out: &Target) {
        let dh = how.shape.dh;
        self.keys(how, task, k);
        for block in how.blocks(task) {
            self.weigh(how, &block, q);
            if let Some(dropped) = how.dropout {
                drop_block(dropped, &block, &mut [&mut self.weights]);
            }
            room(&mut self.out, block.queries() * dh);
            let weights = Matrix::dense(&self.weights, block.keys());
            product(&mut self.out, false, weights, v.of(&block, task, dh));
            for ((row, head, _), from) in block.places().zip(self.out.chunks_exact(dh)) {
                // SAFETY: row and head are the task's own.
                unsafe { out.head(row, head, dh) }.copy_from_slice(from);
            }
        }
    }

    fn backward(
        &mut self,
        how: &Causal,
        task: &Task,
        [q, k, v]: [Columns; 3],
        g: Columns,
        [dq, dk, dv]: &[Target; 3],
    ) {
        let dh = how.shape.dh;
        self.keys(how, task, k);
        for x in [&mut self.dk, &mut self.dv] {
            x.clear();
            x.resize(task.rows.len() * dh, 0.0);
        }
        for block in how.blocks(task) {
            let keys = block.keys();
            self.weigh(how, &block, q);
            room(&mut self.g, block.queries() * dh);
            for ((row, head, _), to) in block.places().zip(self.g.chunks_exact_mut(dh)) {
                to.copy_from_slice(g.head(row, head, dh));
            }
            let g = Matrix::dense(&self.g, dh);
            room(&mut self.d_weights, block.queries() * keys);
            product(
                &mut self.d_weights,
                false,
                g,
                v.of(&block, task, dh).transposed(),
            );
            let mut left = &self.weights;
            if let Some(dropped) = how.dropout {
                self.left.clone_from(&self.weights);
                drop_block(dropped, &block, &mut [&mut self.left, &mut self.d_weights]);
                left = &self.left;
            }
            let left = Matrix::dense(left, keys);
            product(&mut self.dv[..keys * dh], true, left.transposed(), g);
            softmax_block_gradient(&mut self.d_weights, &self.weights, keys);
            let d_weights = Matrix::dense(&self.d_weights, keys);
            let k = Matrix::dense(&self.k[..keys * dh], dh);
            room(&mut self.out, block.queries() * dh);
            product(&mut self.out, false, d_weights, k);
            let q = Matrix::dense(&self.q, dh);
            product(&mut self.dk[..keys * dh], true, d_weights.transposed(), q);
            let scale = score_scale(dh);
            unturn(
                &mut self.out,
                block.places().map(|(_, _, at)| at),
                how,
                scale,
            );
            for ((row, head, _), from) in block.places().zip(self.out.chunks_exact(dh)) {
                // SAFETY: row and head are the task's own.
                unsafe { dq.head(row, head, dh) }.copy_from_slice(from);
            }
        }
        unturn(&mut self.dk, 0.., how, 1.0);
        let grads = self.dk.chunks_exact(dh).zip(self.dv.chunks_exact(dh));
        for (row, (from_k, from_v)) in task.rows.clone().zip(grads) {
            // SAFETY: rows and head are the task's own.
            unsafe {
                dk.head(row, task.kv_head, dh).copy_from_slice(from_k);
                dv.head(row, task.kv_head, dh).copy_from_slice(from_v);
            }
        }
    }
}

/// Resizes a buffer; its content does not matter.
fn room(x: &mut Vec<f32>, length: usize) {
    x.resize(length, 0.0);
}

impl<'a> Columns<'a> {
    fn head(&self, row: usize, head: usize, dh: usize) -> &'a [f32] {
        &self.numbers[row * self.stride + self.first + head * dh..][..dh]
    }

    /// The task's head of the rows that a block sees: `[keys, dh]`.
    fn of(&self, block: &Block, task: &Task, dh: usize) -> Matrix<'a> {
        let at = block.start * self.stride + self.first + task.kv_head * dh;
        Matrix {
            numbers: &self.numbers[at..],
            rows: block.keys(),
            columns: dh,
            strides: [self.stride, 1],
        }
    }
}

/// Copies heads times `scale`, rotated if there are angles.
fn load(
    from: Columns,
    places: impl Iterator<Item = (usize, usize, usize)>,
    how: &Causal,
    scale: f32,
    to: &mut [f32],
) {
    let dh = how.shape.dh;
    for ((row, head, at), to) in places.zip(to.chunks_exact_mut(dh)) {
        copy_turned(
            from.head(row, head, dh),
            how.sequences.rotary.as_ref(),
            at,
            scale,
            to,
        );
    }
}

/// The gradient of [`load`], in place.
fn unturn(g: &mut [f32], places: impl Iterator<Item = usize>, how: &Causal, scale: f32) {
    for (at, g) in places.zip(g.chunks_exact_mut(how.shape.dh)) {
        turn_back(g, how.sequences.rotary.as_ref(), at, scale);
    }
}

dispatch!(copy_turned => copy_and_turn(
    from: &[f32], rotary: Option<&Rotary>, position: usize, scale: f32, to: &mut [f32],
));
dispatch!(turn_back => turn_gradient(g: &mut [f32], rotary: Option<&Rotary>, position: usize, scale: f32));
dispatch!(softmax_block => softmax_rows(scores: &mut [f32], keys: usize, first: usize, size: usize));
dispatch!(softmax_block_gradient => softmax_rows_gradient(g: &mut [f32], y: &[f32], keys: usize));

#[inline(always)]
fn copy_and_turn(
    from: &[f32],
    rotary: Option<&Rotary>,
    position: usize,
    scale: f32,
    to: &mut [f32],
) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from * scale;
    }
    if let Some(rotary) = rotary {
        rotary.turn(to, position);
    }
}

#[inline(always)]
fn turn_gradient(g: &mut [f32], rotary: Option<&Rotary>, position: usize, scale: f32) {
    for g in g.iter_mut() {
        *g *= scale;
    }
    if let Some(rotary) = rotary {
        rotary.turn_back(g, position);
    }
}

/// Softmax over the keys that each query sees; the others have weight 0.
#[inline(always)]
fn softmax_rows(scores: &mut [f32], keys: usize, first: usize, size: usize) {
    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
        let (seen, hidden) = row.split_at_mut(first + i % size + 1);
        softmax_of(seen, 1.0);
        hidden.fill(0.0);
    }
}

#[inline(always)]
fn softmax_rows_gradient(g: &mut [f32], y: &[f32], keys: usize) {
    for (g, y) in g.chunks_exact_mut(keys).zip(y.chunks_exact(keys)) {
        softmax_slopes(g, y);
    }
}

/// Applies dropout to a block's weights and to their gradients.
fn drop_block(dropped: Dropped, block: &Block, matrices: &mut [&mut Vec<f32>]) {
    for (i, (token, head, _)) in block.places().enumerate() {
        for x in matrices.iter_mut() {
            let row = &mut x[i * block.keys()..(i + 1) * block.keys()];
            dropped.drop_row(token, head, 0, row);
        }
    }
}
