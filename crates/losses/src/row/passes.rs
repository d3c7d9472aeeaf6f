//! Passes over a row, each compiled once for every instruction set.

use std::ops::Range;

use abkd_host::math::shifted_exp;
use abkd_host::{LANES, dispatch};

use crate::pointwise::{Entry, Pointwise, entropy_term};

/// Entries summed in f32 before the sum moves to f64.
pub(super) const BLOCK: usize = 64 * LANES;

/// So many entries ahead memory is asked for.
const AHEAD: usize = 4096;

/// Farthest that the largest logit may be from what the exponentials are relative to: the rounding of the
/// difference is then no larger than that of other logits to the largest.
const FAR: f32 = 16.0;

/// What turns a logit into a probability and its logarithm.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    max: f32,
    /// Index of the first logit that equals `max`.
    pub peak: usize,
    /// The row's exponentials are e^(z - shift), with a shift near `max`.
    pub shift: f32,
    /// Log of the sum of e^(z - max). Apart from `max`, because the sum of both would round away the
    /// digits that tell a probability near 1 from 1.
    ln_sum: f32,
    /// Turns an exponential into a probability: 1 / their sum.
    pub scale: f32,
    /// Probability of the peak.
    top: f32,
    /// 1 - `top`, which a difference would lose where it is near 0.
    pub rest: f64,
    /// Log of the smallest probability; -inf where an entry is masked.
    pub low: f32,
}

/// The teacher's and the student's.
#[derive(Clone, Copy)]
pub(super) struct Norms {
    pub p: Norm,
    pub q: Norm,
}

impl Norm {
    #[inline(always)]
    pub fn log(self, logit: f32) -> f32 {
        (logit - self.max) - self.ln_sum
    }

    pub fn masked(self) -> bool {
        self.low == f32::NEG_INFINITY
    }
}

impl Entry {
    /// Of logits and exponentials.
    #[inline(always)]
    fn new(z: f32, t: f32, p: f32, q: f32, norms: Norms) -> Self {
        Self {
            p: p * norms.p.scale,
            q: q * norms.q.scale,
            lp: norms.p.log(t),
            lq: norms.q.log(z),
        }
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

/// Folds lanes in pairs, which is fewer steps than one by one.
#[inline(always)]
fn fold(lanes: [f32; LANES], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = pick(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// e^(z - shift) into `out`, with a shift near the largest z; times the normaliser's `scale` that is the
/// softmax. `None` where there is none.
#[inline(always)]
fn softmax(z: &[f32], out: &mut [f32]) -> Option<Norm> {
    // The first block tells where the largest logit is about, so that one walk over the row does.
    let first = &z[..z.len().min(BLOCK)];
    let mut shift = first.iter().copied().fold(f32::NEG_INFINITY, larger);
    let mut found = exponentials(z, shift, out);
    // no comparison with an infinite shift
    let near = (shift - FAR..=shift + FAR).contains(&found.max);
    if found.max.is_finite() && !near {
        shift = found.max;
        found = exponentials(z, shift, out);
    }
    let Found {
        max,
        min,
        block,
        others,
    } = found;
    if !max.is_finite() {
        return None;
    }
    let peak = block + z[block..].iter().position(|&x| x == max)?;
    let end = z.len().min(block + BLOCK);
    let others = others + sum(&out[block..peak]) + sum(&out[peak + 1..end]);
    // NaN among the logits
    if !others.is_finite() {
        return None;
    }
    let top = f64::from(out[peak]);
    let scale = (1.0 / (top + others)) as f32;
    let mut norm = Norm {
        max,
        peak,
        shift,
        ln_sum: (others / top).ln_1p() as f32,
        scale,
        top: (top / (top + others)) as f32,
        // with the scale's rounding, which the other probabilities have too
        rest: others * f64::from(scale),
        low: 0.0,
    };
    norm.low = norm.log(min);
    Some(norm)
}

/// What is found in a row while its exponentials are taken; no NaN is in `max` and `min`.
pub(super) struct Found {
    max: f32,
    min: f32,
    /// Start of the first block that has `max`.
    block: usize,
    /// Sum of the other blocks' exponentials.
    others: f64,
}

/// Has the memory some way behind a chunk brought to the second-level cache. A row comes from memory when
/// its exponentials are taken, and these take so long that the processor does not look far enough ahead.
#[inline(always)]
fn prefetch(chunk: &[f32; LANES]) {
    abkd_host::prefetch(chunk.as_ptr().wrapping_add(AHEAD));
}

/// e^(z - shift) into `out`.
#[inline(always)]
fn exponentials(z: &[f32], shift: f32, out: &mut [f32]) -> Found {
    let mut total = [0.0f64; LANES];
    let mut min = [f32::INFINITY; LANES];
    // of the block that has the largest logit so far
    let (mut max, mut block, mut held) = (f32::NEG_INFINITY, 0, [0.0; LANES]);
    for (i, (z, out)) in z.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).enumerate() {
        let (mut sum, mut high) = ([0.0f32; LANES], [f32::NEG_INFINITY; LANES]);
        let (chunks, rest) = z.as_chunks::<LANES>();
        let (outs, out_rest) = out.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(outs) {
            prefetch(chunk);
            for i in 0..LANES {
                out[i] = shifted_exp(chunk[i], shift);
                sum[i] += out[i];
                high[i] = larger(high[i], chunk[i]);
                min[i] = smaller(min[i], chunk[i]);
            }
        }
        for (x, out) in rest.iter().zip(out_rest) {
            *out = shifted_exp(*x, shift);
            sum[0] += *out;
            high[0] = larger(high[0], *x);
            min[0] = smaller(min[0], *x);
        }
        let high = fold(high, larger);
        if high > max {
            add(&mut total, held);
            (max, block, held) = (high, i * BLOCK, sum);
        } else {
            add(&mut total, sum);
        }
    }
    Found {
        max,
        min: fold(min, smaller),
        block,
        others: total.iter().sum(),
    }
}

/// Sum of at most a block.
#[inline(always)]
fn sum(x: &[f32]) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter().chain(rest).copied().map(f64::from).sum()
}

/// Sums over a row.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub f: f64,
    /// h of the student's peak, and the sum of the others'.
    peak_h: f32,
    other_h: f64,
}

impl Sums {
    pub fn h(self) -> f64 {
        self.other_h + f64::from(self.peak_h)
    }
}

/// f and h summed; h in place of `p`. `p` and `q` hold the exponentials.
#[inline(always)]
fn formulas<D: Pointwise>(
    d: D,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    norms: Norms,
) -> Sums {
    let eval = |z: f32, t: f32, p: f32, q: f32| d.eval(Entry::new(z, t, p, q, norms));
    if !norms.p.masked() && !norms.q.masked() {
        return sums(eval, d.teacher_is_far(), z, t, p, q, norms);
    }
    // The part of h that may be left out where all of q is summed: not where the teacher masks entries.
    let dropped = if norms.p.masked() { d.dropped() } else { 0.0 };
    let eval = |z: f32, t: f32, p: f32, q: f32| {
        let (f, h) = eval(z, t, p, q);
        // By bits: a branch would keep the compiler from vector code.
        let there = (z != f32::NEG_INFINITY) & (t != f32::NEG_INFINITY);
        let keep = |x: f32| f32::from_bits(x.to_bits() & u32::from(there).wrapping_neg());
        (keep(f), keep(h + dropped * (q * norms.q.scale)))
    };
    sums(eval, d.teacher_is_far(), z, t, p, q, norms)
}

/// See [`formulas`].
#[inline(always)]
fn sums(
    eval: impl Fn(f32, f32, f32, f32) -> (f32, f32),
    teacher_is_far: bool,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    norms: Norms,
) -> Sums {
    let (mut total_f, mut total_h) = ([0.0; LANES], [0.0; LANES]);
    for side in around(norms.q.peak, z.len()) {
        let (z, t) = (&z[side.clone()], &t[side.clone()]);
        let (p, q) = (&mut p[side.clone()], &q[side]);
        let blocks = z
            .chunks(BLOCK)
            .zip(t.chunks(BLOCK))
            .zip(p.chunks_mut(BLOCK))
            .zip(q.chunks(BLOCK));
        for (((z, t), p), q) in blocks {
            let (mut sum_f, mut sum_h) = ([0.0f32; LANES], [0.0f32; LANES]);
            let (zs, z_rest) = z.as_chunks::<LANES>();
            let (ts, t_rest) = t.as_chunks::<LANES>();
            let (ps, p_rest) = p.as_chunks_mut::<LANES>();
            let (qs, q_rest) = q.as_chunks::<LANES>();
            for (((z, t), p), q) in zs.iter().zip(ts).zip(ps).zip(qs) {
                if teacher_is_far {
                    prefetch(t);
                }
                for i in 0..LANES {
                    let (f, h) = eval(z[i], t[i], p[i], q[i]);
                    sum_f[i] += f;
                    sum_h[i] += h;
                    p[i] = h;
                }
            }
            for (((z, t), p), q) in z_rest.iter().zip(t_rest).zip(p_rest).zip(q_rest) {
                let (f, h) = eval(*z, *t, *p, *q);
                sum_f[0] += f;
                sum_h[0] += h;
                *p = h;
            }
            add(&mut total_f, sum_f);
            add(&mut total_h, sum_h);
        }
    }
    let peak = norms.q.peak;
    let (f, h) = eval(z[peak], t[peak], p[peak], q[peak]);
    Sums {
        f: total_f.iter().sum::<f64>() + f64::from(f),
        peak_h: h,
        other_h: total_h.iter().sum(),
    }
}

/// The sum of f, and c (p - q) in place of the logits `z`: the gradient where h = c p. For a row without
/// masked entries.
#[inline(always)]
fn together<D: Pointwise>(
    d: D,
    c: f32,
    z: &mut [f32],
    t: &[f32],
    p: &[f32],
    q: &[f32],
    norms: Norms,
) -> f64 {
    let eval = |z: &mut f32, t: f32, p: f32, q: f32| {
        let entry = Entry::new(*z, t, p, q, norms);
        *z = c * (entry.p - entry.q);
        d.eval(entry).0
    };
    let mut total = [0.0; LANES];
    for side in around(norms.q.peak, z.len()) {
        let (z, t) = (&mut z[side.clone()], &t[side.clone()]);
        let (p, q) = (&p[side.clone()], &q[side]);
        let blocks = z
            .chunks_mut(BLOCK)
            .zip(t.chunks(BLOCK))
            .zip(p.chunks(BLOCK))
            .zip(q.chunks(BLOCK));
        for (((z, t), p), q) in blocks {
            let mut sum = [0.0f32; LANES];
            let (zs, z_rest) = z.as_chunks_mut::<LANES>();
            let (ts, t_rest) = t.as_chunks::<LANES>();
            let (ps, p_rest) = p.as_chunks::<LANES>();
            let (qs, q_rest) = q.as_chunks::<LANES>();
            for (((z, t), p), q) in zs.iter_mut().zip(ts).zip(ps).zip(qs) {
                for i in 0..LANES {
                    sum[i] += eval(&mut z[i], t[i], p[i], q[i]);
                }
            }
            for (((z, t), p), q) in z_rest.iter_mut().zip(t_rest).zip(p_rest).zip(q_rest) {
                sum[0] += eval(z, *t, *p, *q);
            }
            add(&mut total, sum);
        }
    }
    let peak = norms.q.peak;
    let f = eval(&mut z[peak], t[peak], p[peak], q[peak]);
    if norms.p.peak == peak {
        // without the digits that p - q loses where both are near 1
        z[peak] = c * (norms.q.rest - norms.p.rest) as f32;
    }
    total.iter().sum::<f64>() + f64::from(f)
}

/// h - q sum(h) into `out`; `q` holds the exponentials.
#[inline(always)]
fn gradient(out: &mut [f32], h: &[f32], q: &[f32], norm: Norm, sums: Sums) {
    // The sum in two parts: the terms nearly cancel where h is much the same share of q everywhere.
    let share = sums.h() * f64::from(norm.scale);
    let high = share as f32;
    let low = (share - f64::from(high)) as f32;
    for ((out, h), q) in out.iter_mut().zip(h).zip(q) {
        *out = q.mul_add(-low, q.mul_add(-high, *h));
    }
    // They nearly cancel where q is near 1 too: h (1 - q) - q sum of the other h.
    out[norm.peak] =
        (f64::from(sums.peak_h) * norm.rest - f64::from(norm.top) * sums.other_h) as f32;
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
dispatch!(pub(super) dispatch_exponentials => exponentials(z: &[f32], shift: f32, out: &mut [f32]) -> Found);
dispatch!(pub(super) dispatch_formulas => formulas<D: Pointwise>(d: D, z: &[f32], t: &[f32], p: &mut [f32], q: &[f32], norms: Norms) -> Sums);
dispatch!(pub(super) dispatch_together => together<D: Pointwise>(d: D, c: f32, z: &mut [f32], t: &[f32], p: &[f32], q: &[f32], norms: Norms) -> f64);
dispatch!(pub(super) dispatch_gradient => gradient(out: &mut [f32], h: &[f32], q: &[f32], norm: Norm, sums: Sums));
