//! Passes over a row, each compiled once for every instruction set.

use std::ops::Range;

use abkd_host::math::shifted_exp;
use abkd_host::{LANES, dispatch};

use crate::pointwise::{Entry, Pointwise, entropy_term};

/// Entries summed in f32 before the sum moves to f64.
pub(super) const BLOCK: usize = 64 * LANES;

/// What turns a logit into a probability and its logarithm.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub max: f32,
    /// Index of the first logit that equals `max`.
    pub peak: usize,
    /// Log of the sum of e^(z - max). Apart from `max`, because the sum of both would round away the
    /// digits that tell a probability near 1 from 1.
    ln_sum: f32,
    /// 1 / that sum: probability of the largest logit, and what turns an exponential into a probability.
    pub scale: f32,
    /// 1 - `scale`, which a difference would lose where it is near 0.
    pub rest: f32,
    /// Whether an entry is -inf.
    masked: bool,
}

impl Norm {
    #[inline(always)]
    pub fn log(self, logit: f32) -> f32 {
        (logit - self.max) - self.ln_sum
    }
}

/// The entries on both sides of the peak, which is taken by itself: in a sum with the others it would
/// cost them their digits.
fn around(peak: usize, len: usize) -> [Range<usize>; 2] {
    [0..peak, peak + 1..len]
}

/// Moves the sums of a block to f64.
#[inline(always)]
pub(super) fn add(total: &mut [f64; LANES], block: [f32; LANES]) {
    for (total, x) in total.iter_mut().zip(block) {
        *total += f64::from(x);
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// Folds a block with `pick`, which ignores NaN.
#[inline(always)]
fn extreme(block: &[f32], start: f32, pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = pick(lanes[i], chunk[i]);
        }
    }
    lanes.iter().chain(rest).copied().fold(start, pick)
}

/// e^(z - max) into `out`; times the normaliser's `scale` that is the softmax. `None` where there is none.
#[inline(always)]
fn softmax(z: &[f32], out: &mut [f32]) -> Option<Norm> {
    let (mut max, mut min, mut block) = (f32::NEG_INFINITY, f32::INFINITY, 0);
    for (i, z) in z.chunks(BLOCK).enumerate() {
        let high = extreme(z, f32::NEG_INFINITY, larger);
        min = smaller(min, extreme(z, f32::INFINITY, smaller));
        if high > max {
            (max, block) = (high, i * BLOCK);
        }
    }
    if !max.is_finite() {
        return None;
    }
    let peak = block + z[block..].iter().position(|&x| x == max)?;
    let rest = exponentials(z, max, peak, out);
    // NaN among the logits
    if !rest.is_finite() {
        return None;
    }
    Some(Norm {
        max,
        peak,
        ln_sum: rest.ln_1p() as f32,
        scale: (1.0 / (1.0 + rest)) as f32,
        rest: (rest / (1.0 + rest)) as f32,
        masked: min == f32::NEG_INFINITY,
    })
}

/// e^(z - max) into `out`, and the sum of all but the peak's, which is 1.
#[inline(always)]
fn exponentials(z: &[f32], max: f32, peak: usize, out: &mut [f32]) -> f64 {
    out[peak] = 1.0;
    let mut total = [0.0f64; LANES];
    for side in around(peak, z.len()) {
        let (z, out) = (&z[side.clone()], &mut out[side]);
        for (z, out) in z.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            let mut lanes = [0.0f32; LANES];
            let (chunks, rest) = z.as_chunks::<LANES>();
            let (outs, out_rest) = out.as_chunks_mut::<LANES>();
            for (chunk, out) in chunks.iter().zip(outs) {
                for i in 0..LANES {
                    out[i] = shifted_exp(chunk[i], max);
                    lanes[i] += out[i];
                }
            }
            for (x, out) in rest.iter().zip(out_rest) {
                *out = shifted_exp(*x, max);
                lanes[0] += *out;
            }
            add(&mut total, lanes);
        }
    }
    total.iter().sum()
}

/// Sums over a row.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub f: f64,
    /// Of the formulas' second value.
    pub second: f64,
    /// h of the student's peak, and the sum of the others'.
    peak_h: f32,
    other_h: f64,
}

/// f, h and the second value summed; h in place of `p`. `p` and `q` hold the exponentials.
#[inline(always)]
fn formulas<D: Pointwise>(
    d: D,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    norm_p: Norm,
    norm_q: Norm,
) -> Sums {
    // The part of h that may be left out where all of q is summed: not where the teacher masks entries.
    let dropped = if norm_p.masked { d.dropped() } else { 0.0 };
    let eval = |z: f32, t: f32, p: f32, q: f32| {
        let entry = Entry {
            p: p * norm_p.scale,
            q: q * norm_q.scale,
            lp: norm_p.log(t),
            lq: norm_q.log(z),
        };
        let (f, h) = d.eval(entry);
        // By bits: a branch would keep the compiler from vector code.
        let there = (z != f32::NEG_INFINITY) & (t != f32::NEG_INFINITY);
        let keep = |x: f32| f32::from_bits(x.to_bits() & u32::from(there).wrapping_neg());
        (keep(f), keep(h + dropped * entry.q), keep(d.second(entry)))
    };
    let (mut total_f, mut total_h, mut total_g) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for side in around(norm_q.peak, z.len()) {
        let (z, t) = (&z[side.clone()], &t[side.clone()]);
        let (p, q) = (&mut p[side.clone()], &q[side]);
        let blocks = z
            .chunks(BLOCK)
            .zip(t.chunks(BLOCK))
            .zip(p.chunks_mut(BLOCK))
            .zip(q.chunks(BLOCK));
        for (((z, t), p), q) in blocks {
            let (mut sum_f, mut sum_h) = ([0.0f32; LANES], [0.0f32; LANES]);
            let mut sum_g = [0.0f32; LANES];
            let (zs, z_rest) = z.as_chunks::<LANES>();
            let (ts, t_rest) = t.as_chunks::<LANES>();
            let (ps, p_rest) = p.as_chunks_mut::<LANES>();
            let (qs, q_rest) = q.as_chunks::<LANES>();
            for (((z, t), p), q) in zs.iter().zip(ts).zip(ps).zip(qs) {
                for i in 0..LANES {
                    let (f, h, g) = eval(z[i], t[i], p[i], q[i]);
                    sum_g[i] += g;
                    sum_f[i] += f;
                    sum_h[i] += h;
                    p[i] = h;
                }
            }
            for (((z, t), p), q) in z_rest.iter().zip(t_rest).zip(p_rest).zip(q_rest) {
                let (f, h, g) = eval(*z, *t, *p, *q);
                sum_g[0] += g;
                sum_f[0] += f;
                sum_h[0] += h;
                *p = h;
            }
            add(&mut total_f, sum_f);
            add(&mut total_h, sum_h);
            add(&mut total_g, sum_g);
        }
    }
    let peak = norm_q.peak;
    let (f, h, g) = eval(z[peak], t[peak], p[peak], q[peak]);
    Sums {
        f: total_f.iter().sum::<f64>() + f64::from(f),
        second: total_g.iter().sum::<f64>() + f64::from(g),
        peak_h: h,
        other_h: total_h.iter().sum(),
    }
}

/// h - q sum(h) into `out`; `q` holds the exponentials.
#[inline(always)]
fn gradient(out: &mut [f32], h: &[f32], q: &[f32], norm: Norm, sums: Sums) {
    // The sum in two parts: the terms nearly cancel where h is much the same share of q everywhere.
    let share = (sums.other_h + f64::from(sums.peak_h)) * f64::from(norm.scale);
    let high = share as f32;
    let low = (share - f64::from(high)) as f32;
    for ((out, h), q) in out.iter_mut().zip(h).zip(q) {
        *out = q.mul_add(-low, q.mul_add(-high, *h));
    }
    // They nearly cancel where q is near 1 too: h (1 - q) - q sum of the other h.
    out[norm.peak] = sums.peak_h * norm.rest - norm.scale * sums.other_h as f32;
}

/// Sum of the published code's entropy terms over a row.
#[inline(always)]
fn entropy(x: &[f32], scale: f32) -> f64 {
    let mut total = 0.0f64;
    for block in x.chunks(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += entropy_term(chunk[i] * scale);
            }
        }
        for x in rest {
            lanes[0] += entropy_term(x * scale);
        }
        total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    total
}

dispatch!(pub(super) dispatch_entropy => entropy(x: &[f32], scale: f32) -> f64);
dispatch!(pub(super) dispatch_softmax => softmax(z: &[f32], out: &mut [f32]) -> Option<Norm>);
dispatch!(pub(super) dispatch_exponentials => exponentials(z: &[f32], max: f32, peak: usize, out: &mut [f32]) -> f64);
dispatch!(pub(super) dispatch_formulas => formulas<D: Pointwise>(d: D, z: &[f32], t: &[f32], p: &mut [f32], q: &[f32], norm_p: Norm, norm_q: Norm) -> Sums);
dispatch!(pub(super) dispatch_gradient => gradient(out: &mut [f32], h: &[f32], q: &[f32], norm: Norm, sums: Sums));
