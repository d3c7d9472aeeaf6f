//! Keys and values in host memory, allocated once: new tokens are written in place, a row that leaves the batch costs
//! nothing, and attention reads them where they lie, a task for each row and key head.

use std::ops::Range;

use abkd_host::{LANES, dispatch};
use rayon::prelude::*;

use crate::Precision;
use crate::layers::bf16_bits;
use crate::llama::frequencies;
use crate::ops::softmax_of;

/// Keys and values of one layer.
pub(crate) trait Store: Send + Sync {
    /// Writes keys and values for the rows at these places, then attends to all that is seen.
    ///
    /// # Shapes
    ///
    /// - `qkv`: `[B, T, (H + 2 K) dh]`: the heads of queries, then of keys, then of values
    /// - `out`: `[B, H, T, dh]`
    fn step(&mut self, rows: &Rows, qkv: &[f32], rotary: Option<&Rotary>, out: &mut [f32]);
}

/// Cosines and sines of LLaMA's rotary embedding, `[positions, dh / 2]` each.
pub(crate) struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    pub fn new(positions: usize, theta: f64, dh: usize) -> Self {
        let frequencies: Vec<f64> = frequencies(theta, dh).collect();
        let table = |f: fn(f64) -> f64| {
            (0..positions)
                .flat_map(|position| {
                    frequencies
                        .iter()
                        .map(move |x| f(position as f64 * x) as f32)
                })
                .collect()
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Rotates the pairs (i, i + dh/2) of a head at a position.
    #[inline(always)]
    fn turn(&self, head: &mut [f32], position: usize) {
        let half = head.len() / 2;
        let (first, second) = head.split_at_mut(half);
        let place = position * half..(position + 1) * half;
        let angles = self.cos[place.clone()].iter().zip(&self.sin[place]);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// The rows of a step.
pub(crate) struct Rows<'a> {
    /// Where each is in the cache.
    pub places: &'a [usize],
    /// How many of its first positions are not seen.
    pub pads: &'a [usize],
    /// Positions that the cache holds.
    pub past: usize,
    /// T: new ones.
    pub width: usize,
}

/// Room for `capacity` positions, in the numbers of the products: reading them is what takes the time.
pub(crate) fn store(
    precision: Precision,
    batch: usize,
    kv_heads: usize,
    capacity: usize,
    dh: usize,
) -> Box<dyn Store> {
    match precision {
        Precision::F32 => Box::new(Slabs::<f32>::new(batch, kv_heads, capacity, dh)),
        Precision::Bf16 => Box::new(Slabs::<Bf16>::new(batch, kv_heads, capacity, dh)),
    }
}

trait Number: Copy + Default + Send + Sync + 'static {
    fn narrow(x: f32) -> Self;
    fn widen(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

/// The bits of a bfloat16.
#[derive(Clone, Copy, Default)]
struct Bf16(u16);

impl Number for Bf16 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self(bf16_bits(x) as u16)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// A slab for each row and key head.
struct Slabs<T> {
    /// `[B, K, blocks, dh, LANES]`: positions lie side by side, so that scores are sums of vectors.
    keys: Vec<T>,
    /// `[B, K, blocks LANES, dh]`
    values: Vec<T>,
    kv_heads: usize,
    /// Numbers in a slab.
    size: usize,
    dh: usize,
}

impl<T: Number> Slabs<T> {
    fn new(batch: usize, kv_heads: usize, capacity: usize, dh: usize) -> Self {
        let size = capacity.next_multiple_of(LANES) * dh;
        Self {
            keys: vec![T::default(); batch * kv_heads * size],
            values: vec![T::default(); batch * kv_heads * size],
            kv_heads,
            size,
            dh,
        }
    }
}

impl<T: Number> Store for Slabs<T> {
    fn step(&mut self, rows: &Rows, qkv: &[f32], rotary: Option<&Rotary>, out: &mut [f32]) {
        let (dh, kv_heads, width) = (self.dh, self.kv_heads, rows.width);
        let slabs = self
            .keys
            .chunks_mut(self.size)
            .zip(self.values.chunks_mut(self.size));
        let mut slabs: Vec<_> = slabs.map(Some).collect();
        // Query heads that share a key head lie side by side.
        let share = out.len() / (rows.places.len() * kv_heads);
        let columns = qkv.len() / (rows.places.len() * width);
        let mut tasks = Vec::with_capacity(rows.places.len() * kv_heads);
        for (i, answers) in out.chunks_exact_mut(share).enumerate() {
            let (row, head) = (i / kv_heads, i % kv_heads);
            let queries = Queries {
                dh,
                width,
                past: rows.past,
                pad: rows.pads[row],
            };
            let slab = slabs[rows.places[row] * kv_heads + head]
                .take()
                .expect("a place holds one row");
            tasks.push((queries, i, slab, answers));
        }
        tasks.into_par_iter().for_each_init(
            Scratch::default,
            |scratch, (queries, i, (keys, values), answers)| {
                let new = New {
                    qkv: &qkv[i / kv_heads * width * columns..][..width * columns],
                    columns,
                    head: i % kv_heads,
                    kv_heads,
                    rotary,
                };
                serve(queries, &new, keys, values, scratch, answers);
            },
        );
    }
}

/// A row's new tokens, for one key head.
struct New<'a> {
    /// `[T, columns]`
    qkv: &'a [f32],
    columns: usize,
    head: usize,
    kv_heads: usize,
    rotary: Option<&'a Rotary>,
}

impl New<'_> {
    /// A head's numbers for all new tokens, turned if they are to be.
    #[inline(always)]
    fn gather(&self, queries: Queries, head: usize, turned: bool, to: &mut Vec<f32>) {
        let dh = queries.dh;
        for (t, token) in self.qkv.chunks_exact(self.columns).enumerate() {
            let start = to.len();
            to.extend_from_slice(&token[head * dh..(head + 1) * dh]);
            if let Some(rotary) = self.rotary.filter(|_| turned) {
                let position = (queries.past + t).saturating_sub(queries.pad);
                rotary.turn(&mut to[start..], position);
            }
        }
    }
}

/// Queries of one row that share a key head: a head after another, `width` positions each.
#[derive(Clone, Copy)]
struct Queries {
    dh: usize,
    width: usize,
    past: usize,
    pad: usize,
}

impl Queries {
    /// Positions that query `i` sees: itself at least.
    fn seen(self, i: usize) -> Range<usize> {
        let end = self.past + i % self.width + 1;
        self.pad.min(end - 1)..end
    }
}

#[inline(always)]
fn append<T: Number>(queries: Queries, k: &[f32], v: &[f32], keys: &mut [T], values: &mut [T]) {
    let dh = queries.dh;
    for (to, &x) in values[queries.past * dh..].iter_mut().zip(v) {
        *to = T::narrow(x);
    }
    for (t, key) in k.chunks_exact(dh).enumerate() {
        let position = queries.past + t;
        let block = &mut keys[position / LANES * LANES * dh..];
        for (line, &x) in block.chunks_exact_mut(LANES).zip(key) {
            line[position % LANES] = T::narrow(x);
        }
    }
}

dispatch!(serve => serve_head<T: Number>(
    queries: Queries, new: &New, keys: &mut [T], values: &mut [T], scratch: &mut Scratch, out: &mut [f32],
));

#[inline(always)]
fn serve_head<T: Number>(
    queries: Queries,
    new: &New,
    keys: &mut [T],
    values: &mut [T],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let heads = new.columns / queries.dh - 2 * new.kv_heads;
    let share = heads / new.kv_heads;
    let Scratch { new: [q, k, v], .. } = scratch;
    for part in [&mut *q, &mut *k, &mut *v] {
        part.clear();
    }
    for head in new.head * share..(new.head + 1) * share {
        new.gather(queries, head, true, q);
    }
    new.gather(queries, heads + new.head, true, k);
    new.gather(queries, heads + new.kv_heads + new.head, false, v);
    append(queries, k, v, keys, values);
    over_cache(queries, keys, values, scratch, out);
}

/// Queries whose sums are held in registers.
const GROUP: usize = 4;

#[derive(Default)]
struct Scratch {
    /// Queries, keys and values of the new tokens.
    new: [Vec<f32>; 3],
    /// A group's queries side by side; what is missing in the last group is 0.
    group: Vec<[f32; GROUP]>,
    /// A row for each query of a group.
    scores: Vec<f32>,
}

#[inline(always)]
fn over_cache<T: Number>(
    queries: Queries,
    keys: &[T],
    values: &[T],
    Scratch {
        new: [q, ..],
        group,
        scores,
    }: &mut Scratch,
    out: &mut [f32],
) {
    let dh = queries.dh;
    let end = queries.past + queries.width;
    let columns = end.next_multiple_of(LANES);
    let scale = 1.0 / (dh as f32).sqrt();
    for (n, (q, out)) in q
        .chunks(GROUP * dh)
        .zip(out.chunks_mut(GROUP * dh))
        .enumerate()
    {
        group.clear();
        group.resize(dh, [0.0; GROUP]);
        for (i, q) in q.chunks_exact(dh).enumerate() {
            group.iter_mut().zip(q).for_each(|(group, &q)| group[i] = q);
        }
        scores.clear();
        scores.resize(GROUP * columns, 0.0);
        let blocks = keys.chunks_exact(LANES * dh).take(columns / LANES);
        for (b, block) in blocks.enumerate() {
            let mut sums = [[0.0; LANES]; GROUP];
            for (q, line) in group.iter().zip(block.as_chunks().0) {
                add(&mut sums, *q, line);
            }
            for (scores, sums) in scores.chunks_exact_mut(columns).zip(sums) {
                scores[b * LANES..(b + 1) * LANES].copy_from_slice(&sums);
            }
        }
        for (i, scores) in scores.chunks_exact_mut(columns).enumerate() {
            let seen = queries.seen(n * GROUP + i);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            softmax_of(&mut scores[seen], scale);
        }
        for first in (0..dh).step_by(LANES) {
            let width = LANES.min(dh - first);
            let mut sums = [[0.0; LANES]; GROUP];
            for (s, value) in values.chunks_exact(dh).take(end).enumerate() {
                // A weight that is not seen is 0.
                let weights = std::array::from_fn(|i| scores[i * columns + s]);
                let value = &value[first..];
                if let Some(line) = value.first_chunk() {
                    add(&mut sums, weights, line);
                } else {
                    let mut line = [T::default(); LANES];
                    line[..width].copy_from_slice(value);
                    add(&mut sums, weights, &line);
                }
            }
            for (out, sums) in out.chunks_exact_mut(dh).zip(sums) {
                out[first..first + width].copy_from_slice(&sums[..width]);
            }
        }
    }
}

#[inline(always)]
fn add<T: Number>(sums: &mut [[f32; LANES]; GROUP], weights: [f32; GROUP], line: &[T; LANES]) {
    for i in 0..GROUP {
        for j in 0..LANES {
            sums[i][j] = line[j].widen().mul_add(weights[i], sums[i][j]);
        }
    }
}
