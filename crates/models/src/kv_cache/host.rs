//! Attention of new tokens over keys and values in host memory, a task for each row and key head.

use std::ops::Range;

use abkd_host::dispatch;
use abkd_host::math::exp;
use rayon::prelude::*;

/// Keys and values of one layer.
pub(super) struct HostLayer {
    /// `[B, K, dh, capacity]`: positions lie side by side, so that scores are sums of rows.
    keys: Vec<f32>,
    /// `[B, K, capacity, dh]`
    values: Vec<f32>,
    kv_heads: usize,
    capacity: usize,
    dh: usize,
}

impl HostLayer {
    pub fn new(batch: usize, kv_heads: usize, capacity: usize, dh: usize) -> Self {
        let size = batch * kv_heads * capacity * dh;
        Self {
            keys: vec![0.0; size],
            values: vec![0.0; size],
            kv_heads,
            capacity,
            dh,
        }
    }

    /// Writes the tokens at positions `past..past + width` of the rows at these places; `k` and `v` are `[B, K, T, dh]`.
    pub fn append(&mut self, places: &[usize], past: usize, width: usize, k: &[f32], v: &[f32]) {
        let (dh, capacity) = (self.dh, self.capacity);
        let new = width * dh;
        for (row, &place) in places.iter().enumerate() {
            for head in 0..self.kv_heads {
                let from = (row * self.kv_heads + head) * new;
                let to = (place * self.kv_heads + head) * capacity * dh;
                let at = to + past * dh;
                self.values[at..at + new].copy_from_slice(&v[from..from + new]);
                for (t, key) in k[from..from + new].chunks_exact(dh).enumerate() {
                    for (i, &x) in key.iter().enumerate() {
                        self.keys[to + i * capacity + past + t] = x;
                    }
                }
            }
        }
    }

    /// Attention of the last `width` tokens: `q` and the result are `[B, H, T, dh]`. The first `pads[row]` positions of a
    /// row are not seen.
    pub fn attend(
        &self,
        places: &[usize],
        pads: &[usize],
        past: usize,
        width: usize,
        q: &[f32],
    ) -> Vec<f32> {
        let mut out = vec![0.0; q.len()];
        let (dh, capacity) = (self.dh, self.capacity);
        let tasks = places.len() * self.kv_heads;
        // Query heads that share a key head lie side by side.
        let share = q.len() / tasks;
        out.par_chunks_exact_mut(share)
            .zip(q.par_chunks_exact(share))
            .enumerate()
            .for_each_init(Vec::new, |scores, (task, (out, q))| {
                let (row, head) = (task / self.kv_heads, task % self.kv_heads);
                let slab = (places[row] * self.kv_heads + head) * capacity * dh;
                let range = slab..slab + capacity * dh;
                let cached = (&self.keys[range.clone()], &self.values[range]);
                let queries = Queries {
                    dh,
                    width,
                    past,
                    pad: pads[row],
                };
                attend_queries(queries, q, cached, scores, out);
            });
        out
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

dispatch!(attend_queries => over_cache(
    queries: Queries, q: &[f32], cached: (&[f32], &[f32]), scores: &mut Vec<f32>, out: &mut [f32],
));

/// Keys and values are gone through once, whatever the number of queries: reading them is what takes the time.
#[inline(always)]
fn over_cache(
    queries: Queries,
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let dh = queries.dh;
    let capacity = keys.len() / dh;
    let n = q.len() / dh;
    scores.clear();
    scores.resize(n * capacity, 0.0);
    for (d, keys) in keys.chunks_exact(capacity).enumerate() {
        for (i, scores) in scores.chunks_exact_mut(capacity).enumerate() {
            let seen = queries.seen(i);
            add(&mut scores[seen.clone()], q[i * dh + d], &keys[seen]);
        }
    }
    let scale = 1.0 / (dh as f32).sqrt();
    for (i, scores) in scores.chunks_exact_mut(capacity).enumerate() {
        softmax(&mut scores[queries.seen(i)], scale);
    }
    for (s, value) in values
        .chunks_exact(dh)
        .take(queries.past + queries.width)
        .enumerate()
    {
        for (i, out) in out.chunks_exact_mut(dh).enumerate() {
            // A weight that is not seen is 0.
            add(out, scores[i * capacity + s], value);
        }
    }
}

#[inline(always)]
fn add(sum: &mut [f32], weight: f32, row: &[f32]) {
    for (s, &x) in sum.iter_mut().zip(row) {
        *s = x.mul_add(weight, *s);
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let max = scores
        .iter()
        .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut total = 0.0;
    for s in scores.iter_mut() {
        *s = exp((*s - max) * scale);
        total += *s;
    }
    let share = 1.0 / total;
    for s in scores {
        *s *= share;
    }
}
