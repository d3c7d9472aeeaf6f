//! The KV cache in host memory, allocated once: new tokens are written in place, a row that leaves the batch costs nothing,
//! and attention reads the cache without a copy, in one task for each row and key head.

mod cell;

use std::ops::Range;

use abkd_host::{LANES, dispatch, fault, prefetch};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use cell::DotPair;
use cell::{Cell, Pair};

use crate::Precision;
use crate::ops::softmax_of;
use crate::rope::Angles;

/// Factor of the scores (Vaswani et al. 2017): 1 / sqrt(dh).
pub(crate) fn score_scale(dh: usize) -> f32 {
    fault!(
        "scores by the width",
        1.0 / (dh as f32).sqrt(),
        1.0 / dh as f32
    )
}

/// Keys and values of one layer.
pub(crate) trait Store: Send + Sync {
    /// Writes the new keys and values at the rows' places, then attends to all positions that a query sees.
    ///
    /// # Shapes
    ///
    /// - `qkv`: `[B, T, (H + 2 K) dh]`: the heads of queries, then of keys, then of values
    /// - `out`: `[B, H, T, dh]`
    fn step(&mut self, rows: &Rows, qkv: &[f32], rotary: Option<&Rotary>, out: &mut [f32]);
}

/// Cosines and sines of LLaMA's rotary embedding, `[positions, dh / 2]` each.
#[derive(Debug)]
pub(crate) struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    pub fn new(positions: usize, angles: Angles) -> Self {
        let frequencies = angles.frequencies();
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

    /// Cosines, then sines, of each position: `[positions, dh]`
    #[cfg(feature = "cube")]
    pub fn table(&self, dh: usize) -> Vec<f32> {
        let half = dh / 2;
        let pairs = self.cos.chunks(half).zip(self.sin.chunks(half));
        pairs.flat_map(|(cos, sin)| [cos, sin].concat()).collect()
    }

    /// The gradient of [`turn`](Self::turn): the rotation back.
    #[inline(always)]
    pub fn turn_back(&self, head: &mut [f32], position: usize) {
        let half = head.len() / 2;
        let (first, second) = head.split_at_mut(half);
        let place = position * half..(position + 1) * half;
        let angles = self.cos[place.clone()].iter().zip(&self.sin[place]);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
        }
    }

    /// Rotates the pairs (i, i + dh/2) of a head at a position.
    #[inline(always)]
    pub fn turn(&self, head: &mut [f32], position: usize) {
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
    /// Each row's place in the cache.
    pub places: &'a [usize],
    /// Number of each row's first positions that are padding.
    pub pads: &'a [usize],
    /// Positions that are already in the cache.
    pub past: usize,
    /// T: new positions.
    pub width: usize,
}

/// A cache for `capacity` positions, in the number type of the products, because reading the cache takes the time.
pub(crate) fn store(
    precision: Precision,
    batch: usize,
    kv_heads: usize,
    capacity: usize,
    dh: usize,
) -> Box<dyn Store> {
    match precision {
        Precision::F32 => Box::new(Slabs::<f32>::new(batch, kv_heads, capacity, dh)),
        #[cfg(target_arch = "x86_64")]
        // A step multiplies few numbers, so that even a slow `vdpbf16ps` is used.
        Precision::Bf16 if crate::bf16::dots().is_some() => {
            Box::new(Slabs::<DotPair>::new(batch, kv_heads, capacity, dh))
        }
        Precision::Bf16 => Box::new(Slabs::<Pair>::new(batch, kv_heads, capacity, dh)),
    }
}

/// A slab for each row and key head.
struct Slabs<T> {
    /// `[B, K, blocks, dh / PER, LANES]`: positions lie side by side, so that scores are sums of lanes.
    keys: Vec<T>,
    /// `[B, K, positions / PER, lines LANES]`: a head's numbers lie side by side, padded to whole lines.
    values: Vec<T>,
    kv_heads: usize,
    /// Cells in a slab of keys, and of values.
    sizes: [usize; 2],
    dh: usize,
}

impl<T: Cell> Slabs<T> {
    fn new(batch: usize, kv_heads: usize, capacity: usize, dh: usize) -> Self {
        let sizes = [
            capacity.next_multiple_of(LANES) * dh.div_ceil(T::PER),
            capacity.div_ceil(T::PER) * dh.next_multiple_of(LANES),
        ];
        let [keys, values] = sizes.map(|size| vec![T::default(); batch * kv_heads * size]);
        Self {
            keys,
            values,
            kv_heads,
            sizes,
            dh,
        }
    }
}

impl<T: Cell> Store for Slabs<T> {
    fn step(&mut self, rows: &Rows, qkv: &[f32], rotary: Option<&Rotary>, out: &mut [f32]) {
        let kv_heads = self.kv_heads;
        let slabs =
            (self.keys.chunks_mut(self.sizes[0])).zip(self.values.chunks_mut(self.sizes[1]));
        let mut slabs: Vec<_> = slabs.map(Some).collect();
        // Query heads that share a key head lie side by side.
        let share = out.len() / (rows.places.len() * kv_heads);
        let columns = qkv.len() / (rows.places.len() * rows.width);
        let mut tasks = Vec::with_capacity(rows.places.len() * kv_heads);
        for (i, answers) in out.chunks_exact_mut(share).enumerate() {
            let (row, head) = (i / kv_heads, i % kv_heads);
            let new = New {
                qkv: &qkv[row * rows.width * columns..][..rows.width * columns],
                columns,
                head,
                kv_heads,
                rotary,
                dh: self.dh,
                width: rows.width,
                past: rows.past,
                pad: rows.pads[row],
            };
            let slab = slabs[rows.places[row] * kv_heads + head]
                .take()
                .expect("a place holds one row");
            tasks.push((new, slab, answers));
        }
        tasks
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, (new, slab, answers)| {
                T::serve(&new, slab, scratch, answers);
            });
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
    dh: usize,
    width: usize,
    past: usize,
    pad: usize,
}

impl New<'_> {
    /// Positions that query `i` sees, at least its own. The queries are ordered head by head.
    fn seen(&self, i: usize) -> Range<usize> {
        let end = self.past + i % self.width + 1;
        self.pad.min(end - 1)..end
    }

    /// Appends a head's numbers for all new tokens to `to`, rotated if `turned`.
    #[inline(always)]
    fn gather(&self, head: usize, turned: bool, to: &mut Vec<f32>) {
        for (t, token) in self.qkv.chunks_exact(self.columns).enumerate() {
            let start = to.len();
            to.extend_from_slice(&token[head * self.dh..(head + 1) * self.dh]);
            if let Some(rotary) = self.rotary.filter(|_| turned) {
                let position = (self.past + t).saturating_sub(self.pad);
                rotary.turn(&mut to[start..], position);
            }
        }
    }
}

/// Prefetch distance, in blocks of keys.
const AHEAD: usize = 2;

/// Queries of a group, whose sums are held in registers.
const GROUP: usize = 4;

struct Scratch<T> {
    /// Queries, keys and values of the new tokens.
    new: [Vec<f32>; 3],
    /// A row for each query of a group.
    scores: Vec<f32>,
    /// The queries of a group, then their weights.
    cells: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            new: Default::default(),
            scores: Vec::new(),
            cells: Vec::new(),
        }
    }
}

dispatch!(serve => serve_head<T: Cell>(
    new: &New, slab: (&mut [T], &mut [T]), scratch: &mut Scratch<T>, out: &mut [f32],
));

#[inline(always)]
fn serve_head<T: Cell>(
    new: &New,
    (keys, values): (&mut [T], &mut [T]),
    scratch: &mut Scratch<T>,
    out: &mut [f32],
) {
    let heads = new.columns / new.dh - 2 * new.kv_heads;
    let share = heads / new.kv_heads;
    fetch_places(new, keys, values);
    let [q, k, v] = &mut scratch.new;
    for part in [&mut *q, &mut *k, &mut *v] {
        part.clear();
    }
    for head in new.head * share..(new.head + 1) * share {
        new.gather(head, true, q);
    }
    new.gather(heads + new.head, true, k);
    new.gather(heads + new.kv_heads + new.head, false, v);
    append(new, k, v, keys, values);
    let size = GROUP * new.dh;
    for (n, out) in out.chunks_mut(size).enumerate() {
        let first = n * GROUP;
        match out.len() / new.dh {
            1 => over_cache::<T, 1>(new, first, keys, values, scratch, out),
            2 => over_cache::<T, 2>(new, first, keys, values, scratch, out),
            3 => over_cache::<T, 3>(new, first, keys, values, scratch, out),
            _ => over_cache::<T, GROUP>(new, first, keys, values, scratch, out),
        }
    }
}

/// Prefetches the memory that [`append`] writes to: each number of a key lies in another cache line.
#[inline(always)]
fn fetch_places<T: Cell>(new: &New, keys: &[T], values: &[T]) {
    if new.width > 1 {
        return;
    }
    let (depth, row) = (new.dh.div_ceil(T::PER), new.dh.next_multiple_of(LANES));
    for c in 0..depth {
        let cell = (new.past / LANES * depth + c) * LANES;
        prefetch(keys.as_ptr().wrapping_add(cell));
    }
    for c in (0..row).step_by(LANES) {
        prefetch(values.as_ptr().wrapping_add(new.past / T::PER * row + c));
    }
}

#[inline(always)]
fn append<T: Cell>(new: &New, k: &[f32], v: &[f32], keys: &mut [T], values: &mut [T]) {
    let (depth, row) = (new.dh.div_ceil(T::PER), new.dh.next_multiple_of(LANES));
    for (t, (k, v)) in k
        .chunks_exact(new.dh)
        .zip(v.chunks_exact(new.dh))
        .enumerate()
    {
        let position = new.past + t;
        let block = &mut keys[position / LANES * LANES * depth..][..LANES * depth];
        for (line, k) in block.chunks_exact_mut(LANES).zip(k.chunks(T::PER)) {
            for (i, &x) in k.iter().enumerate() {
                line[position % LANES].set(i, x);
            }
        }
        for (cell, &x) in values[position / T::PER * row..].iter_mut().zip(v) {
            // Clears the next position, which may hold a number of an earlier batch.
            if position.is_multiple_of(T::PER) {
                *cell = T::default();
            }
            cell.set(position % T::PER, x);
        }
    }
}

/// Attention of G queries from `first` on.
#[inline(always)]
fn over_cache<T: Cell, const G: usize>(
    new: &New,
    first: usize,
    keys: &[T],
    values: &[T],
    scratch: &mut Scratch<T>,
    out: &mut [f32],
) {
    let Scratch {
        new: [q, ..],
        scores,
        cells,
    } = scratch;
    let dh = new.dh;
    let depth = dh.div_ceil(T::PER);
    // Ends at the last position that a query of the group sees.
    let end = (first..first + G).map(|i| new.seen(i).end).max();
    let end = end.expect("a group has a query");
    let columns = end.next_multiple_of(LANES);
    let scale = score_scale(dh);
    cells.clear();
    for q in q[first * dh..].chunks_exact(dh).take(G) {
        T::cells(q, cells);
    }
    scores.clear();
    scores.resize(G * columns, 0.0);
    let queries: [&[T]; G] = std::array::from_fn(|i| &cells[i * depth..(i + 1) * depth]);
    let count = columns / LANES;
    let blocks = keys.chunks_exact(LANES * depth).take(count);
    let mut coming = values.as_ptr();
    for (b, block) in blocks.enumerate() {
        let mut sums = [T::zero(); G];
        // Prefetches both from memory: the next keys, and the values, which take as many lines.
        let mut next = block.as_ptr().wrapping_add(AHEAD * LANES * depth);
        for (c, line) in block.as_chunks::<LANES>().0.iter().enumerate() {
            prefetch(next);
            prefetch(coming);
            next = next.wrapping_add(LANES);
            coming = coming.wrapping_add(LANES);
            for i in 0..G {
                sums[i] = T::add(sums[i], queries[i][c], line);
            }
        }
        for (scores, sums) in scores.chunks_exact_mut(columns).zip(sums) {
            scores[b * LANES..(b + 1) * LANES].copy_from_slice(&T::floats(sums));
        }
    }
    cells.clear();
    for (i, scores) in scores.chunks_exact_mut(columns).enumerate() {
        // Positions that are not seen have weight 0.
        let seen = new.seen(first + i);
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        softmax_of(&mut scores[seen], scale);
        T::cells(&scores[..end], cells);
    }
    let depth = end.div_ceil(T::PER);
    let weights: [&[T]; G] = std::array::from_fn(|i| &cells[i * depth..(i + 1) * depth]);
    let lines = dh.div_ceil(LANES);
    let next_slab = keys.as_ptr_range().end;
    let mut line = 0;
    while line + 4 <= lines {
        mix::<T, G, 4>(weights, values, next_slab, line, dh, out);
        line += 4;
    }
    while line < lines {
        mix::<T, G, 1>(weights, values, next_slab, line, dh, out);
        line += 1;
    }
}

/// L lines of the weighted mean of the values. The next slab's keys, which take as many lines, are prefetched meanwhile.
#[inline(always)]
fn mix<T: Cell, const G: usize, const L: usize>(
    weights: [&[T]; G],
    values: &[T],
    next_keys: *const T,
    line: usize,
    dh: usize,
    out: &mut [f32],
) {
    let mut sums = [[T::zero(); L]; G];
    let width = dh.next_multiple_of(LANES);
    let rows = values.chunks_exact(width);
    for (c, row) in rows.take(weights[0].len()).enumerate() {
        let row: &[[T; LANES]] = &row.as_chunks().0[line..line + L];
        for l in 0..L {
            prefetch(next_keys.wrapping_add(c * width + (line + l) * LANES));
        }
        for i in 0..G {
            for l in 0..L {
                sums[i][l] = T::add(sums[i][l], weights[i][c], &row[l]);
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(dh).zip(sums) {
        for (out, sums) in out[line * LANES..].chunks_mut(LANES).zip(sums) {
            out.copy_from_slice(&T::floats(sums)[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{mix, unit};

    /// Largest error of a slab's answers to two rows in three steps, against attention computed position by position.
    fn worst<T: Cell>(round: fn(f32) -> f32) -> f64 {
        let (batch, kv_heads, share, dh, capacity) = (2, 2, 5, 70, 40);
        let mut slabs = Slabs::<T>::new(batch, kv_heads, capacity, dh);
        let heads = kv_heads * share;
        let columns = (heads + 2 * kv_heads) * dh;
        let pads = [0, 3];
        let number = |i: usize| (unit(mix(i as u64)) * 4.0 - 2.0) as f32;
        // [B, positions, columns]
        let all: Vec<f32> = (0..batch * capacity * columns).map(number).collect();
        let at = |row: usize, t: usize, head: usize, i: usize| {
            f64::from(round(all[(row * capacity + t) * columns + head * dh + i]))
        };
        let (mut past, mut worst) = (0, 0.0f64);
        for width in [7, 1, 32] {
            let qkv: Vec<f32> = (0..batch)
                .flat_map(|row| &all[(row * capacity + past) * columns..][..width * columns])
                .copied()
                .collect();
            let mut out = vec![f32::NAN; batch * heads * width * dh];
            let rows = Rows {
                places: &[0, 1],
                pads: &pads,
                past,
                width,
            };
            slabs.step(&rows, &qkv, None, &mut out);
            for (n, out) in out.chunks_exact(dh).enumerate() {
                let (row, head, t) = (n / width / heads, n / width % heads, past + n % width);
                let seen = pads[row].min(t)..t + 1;
                let key = heads + head / share;
                let dot = |s: usize| -> f64 {
                    (0..dh)
                        .map(|i| at(row, t, head, i) * at(row, s, key, i))
                        .sum()
                };
                let weights: Vec<f64> = seen
                    .clone()
                    .map(|s| (dot(s) / (dh as f64).sqrt()).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                for (i, &out) in out.iter().enumerate() {
                    let values = seen.clone().map(|s| at(row, s, key + kv_heads, i));
                    let exact: f64 = values.zip(&weights).map(|(v, w)| v * w / total).sum();
                    worst = worst.max((f64::from(out) - exact).abs());
                }
            }
            past += width;
        }
        worst
    }

    #[test]
    fn it_is_the_mean_of_the_values_that_are_seen() {
        let f32 = worst::<f32>(|x| x);
        assert!(f32 < 1e-5, "{f32}");
        let half = |x| Precision::Bf16.round_value(x);
        // Weights are rounded, too: 2^-8 of values up to 2.
        let pair = worst::<Pair>(half);
        assert!(pair < 8e-3, "{pair}");
        #[cfg(target_arch = "x86_64")]
        if crate::bf16::dots().is_some() {
            let pair = worst::<DotPair>(half);
            assert!(pair < 8e-3, "{pair}");
        }
    }
}
