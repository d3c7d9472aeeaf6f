//! Passes over a row, each compiled once for every instruction set.

use std::ops::Range;

use abkd_host::{LANES, dispatch};

use super::softmax::{Norms, fold, larger, prefetch};
use crate::pointwise::Pointwise;

/// Entries summed in f32 before the sum moves to f64.
pub(crate) const BLOCK: usize = 64 * LANES;

/// The entries on both sides of the peak. The peak is added by itself: in one sum with it the others would lose their digits.
pub(crate) fn around(peak: usize, len: usize) -> [Range<usize>; 2] {
    [0..peak, peak + 1..len]
}

/// Moves the sums of a block to f64.
#[inline(always)]
pub(crate) fn add(total: &mut [f64; LANES], block: [f32; LANES]) {
    for (total, x) in total.iter_mut().zip(block) {
        *total += f64::from(x);
    }
}

/// Sums over a row.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub f: f64,
    /// Sum of h without the student's likeliest entry, whose h is 0 except for a pair of values or where the teacher masks
    /// it.
    pub h: f64,
    pub peak_h: f32,
    /// Largest |h|, if [`HAS_NEAR`](Pointwise::HAS_NEAR).
    pub most: f32,
}

impl Sums {
    /// The sums of a pair of values.
    pub fn both(self) -> [f64; 2] {
        [self.f, self.h + f64::from(self.peak_h)]
    }
}

/// Sums of f and h; h replaces `p`. `p` and `q` hold the exponentials. `d` has the constants of the row's peak.
#[inline(always)]
fn formulas<D: Pointwise>(
    d: D,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    norms: Norms,
) -> Sums {
    all_formulas::<D, false>(d, z, t, p, q, norms)
}

/// The same without differences of nearly equal numbers.
#[inline(always)]
fn near_formulas<D: Pointwise>(
    d: D,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    norms: Norms,
) -> Sums {
    all_formulas::<D, true>(d, z, t, p, q, norms)
}

#[inline(always)]
fn all_formulas<D: Pointwise, const NEAR: bool>(
    d: D,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    norms: Norms,
) -> Sums {
    let (far, peak) = (d.teacher_is_far(), norms.q.peak);
    let plain = Plain::<D, NEAR> { d, norms };
    if !plain.norms.masked() {
        return sums::<D>(plain, far, z, t, p, q, peak);
    }
    let left_out = if plain.norms.disjoint {
        0.0
    } else {
        d.left_out() * plain.norms.q.scale
    };
    sums::<D>(Masked { plain, left_out }, far, z, t, p, q, peak)
}

/// f and h of an entry, from its logits and exponentials. No closures: a closure that is not inlined is compiled without the
/// processor features of its function.
trait Eval {
    fn eval(&self, z: f32, t: f32, p: f32, q: f32) -> (f32, f32);
}

struct Plain<D, const NEAR: bool> {
    d: D,
    norms: Norms,
}

impl<D: Pointwise, const NEAR: bool> Eval for Plain<D, NEAR> {
    #[inline(always)]
    fn eval(&self, z: f32, t: f32, p: f32, q: f32) -> (f32, f32) {
        self.d.eval::<NEAR>(self.norms.entry::<NEAR>(z, t, p, q))
    }
}

/// The same where entries are masked.
struct Masked<D, const NEAR: bool> {
    plain: Plain<D, NEAR>,
    /// h / q of an entry that is left out.
    left_out: f32,
}

impl<D: Pointwise, const NEAR: bool> Eval for Masked<D, NEAR> {
    #[inline(always)]
    fn eval(&self, z: f32, t: f32, p: f32, q: f32) -> (f32, f32) {
        let (f, h) = self.plain.eval(z, t, p, q);
        // By bits: a branch would keep the compiler from vector code.
        let there = (z != f32::NEG_INFINITY) & (t != f32::NEG_INFINITY);
        let mask = u32::from(there).wrapping_neg();
        let keep = |x: f32, or: f32| f32::from_bits((x.to_bits() & mask) | (or.to_bits() & !mask));
        (keep(f, 0.0), keep(h, self.left_out * q))
    }
}

/// See [`formulas`].
#[inline(always)]
fn sums<D: Pointwise>(
    entry: impl Eval,
    teacher_is_far: bool,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    peak: usize,
) -> Sums {
    let (mut total_f, mut total_h) = ([0.0; LANES], [0.0; LANES]);
    let mut most = [0.0f32; LANES];
    for side in around(peak, z.len()) {
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
                    let (f, h) = entry.eval(z[i], t[i], p[i], q[i]);
                    sum_f[i] += f;
                    sum_h[i] += h;
                    if D::HAS_NEAR {
                        most[i] = larger(most[i], h.abs());
                    }
                    p[i] = h;
                }
            }
            for (((z, t), p), q) in z_rest.iter().zip(t_rest).zip(p_rest).zip(q_rest) {
                let (f, h) = entry.eval(*z, *t, *p, *q);
                sum_f[0] += f;
                sum_h[0] += h;
                most[0] = larger(most[0], h.abs());
                *p = h;
            }
            add(&mut total_f, sum_f);
            add(&mut total_h, sum_h);
        }
    }
    let (f, h) = entry.eval(z[peak], t[peak], p[peak], q[peak]);
    Sums {
        f: total_f.iter().sum::<f64>() + f64::from(f),
        h: total_h.iter().sum(),
        peak_h: h,
        most: fold(most, larger),
    }
}

/// The sum of f, and the gradient c (p - q) in place of the logits `z`. For a row without masked entries.
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
        let entry = norms.entry::<false>(*z, t, p, q);
        *z = c * (entry.p - entry.q);
        d.eval::<false>(entry).0
    };
    let mut total = [0.0; LANES];
    for side in around(norms.at, z.len()) {
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
    let peak = norms.at;
    let f = eval(&mut z[peak], t[peak], p[peak], q[peak]);
    // keeps the digits that p - q loses where both are near 1
    z[peak] = c * norms.peak_gap() as f32;
    total.iter().sum::<f64>() + f64::from(f)
}

/// h - q sum(h) into `out`; `q` holds the exponentials.
#[inline(always)]
fn gradient(out: &mut [f32], h: &[f32], q: &[f32], norms: Norms, sums: Sums) {
    // At the peak h is 0; the value from `eval` there is a rounding error.
    let peak = if norms.at == norms.q.peak {
        0.0
    } else {
        f64::from(sums.peak_h)
    };
    let share = ((sums.h + peak) * f64::from(norms.q.scale)) as f32;
    for ((out, h), q) in out.iter_mut().zip(h).zip(q) {
        *out = q.mul_add(-share, *h);
    }
    // Its terms nearly cancel where q is near 1: h (1 - q) - q sum of the other h.
    out[norms.q.peak] = (peak * norms.q.rest - (1.0 - norms.q.rest) * sums.h) as f32;
}

dispatch!(pub(crate) dispatch_formulas => formulas<D: Pointwise>(d: D, z: &[f32], t: &[f32], p: &mut [f32], q: &[f32], norms: Norms) -> Sums);
dispatch!(pub(crate) dispatch_near_formulas => near_formulas<D: Pointwise>(d: D, z: &[f32], t: &[f32], p: &mut [f32], q: &[f32], norms: Norms) -> Sums);
dispatch!(pub(crate) dispatch_together => together<D: Pointwise>(d: D, c: f32, z: &mut [f32], t: &[f32], p: &[f32], q: &[f32], norms: Norms) -> f64);
dispatch!(pub(crate) dispatch_gradient => gradient(out: &mut [f32], h: &[f32], q: &[f32], norms: Norms, sums: Sums));
