//! Passes over a row, each compiled once for every instruction set.

use abkd_host::math::shifted_exp;
use abkd_host::{LANES, dispatch};

use crate::pointwise::{Entry, Pointwise, entropy_term};

/// Entries summed in f32 before the sum moves to f64.
const BLOCK: usize = 64 * LANES;

/// What turns a logit into a log-probability, in two parts: their sum would round away the digits that
/// tell a probability near 1 from 1.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    max: f32,
    ln_sum: f32,
    /// 1 / sum: probability of the largest logit, and what turns an exponential into a probability.
    pub scale: f32,
    /// Whether an entry is -inf.
    masked: bool,
}

impl Norm {
    #[inline(always)]
    pub fn log(self, logit: f32) -> f32 {
        (logit - self.max) - self.ln_sum
    }
}

/// e^(z - max) into `out`; times the normaliser's `scale` that is the softmax. `None` where there is none.
#[inline(always)]
fn softmax(z: &[f32], out: &mut [f32]) -> Option<Norm> {
    let (mut high, mut low) = ([f32::NEG_INFINITY; LANES], [f32::INFINITY; LANES]);
    let (chunks, rest) = z.as_chunks::<LANES>();
    let (larger, smaller) = (
        |a: f32, b: f32| if b > a { b } else { a },
        |a: f32, b: f32| if b < a { b } else { a },
    );
    for chunk in chunks {
        for i in 0..LANES {
            high[i] = larger(high[i], chunk[i]);
            low[i] = smaller(low[i], chunk[i]);
        }
    }
    let ends = |lanes: [f32; LANES]| lanes.into_iter().chain(rest.iter().copied());
    let max = ends(high).fold(f32::NEG_INFINITY, larger);
    let min = ends(low).fold(f32::INFINITY, smaller);
    if !max.is_finite() {
        return None;
    }
    let mut total = 0.0f64;
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
        total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    if !total.is_finite() {
        return None;
    }
    Some(Norm {
        max,
        ln_sum: total.ln() as f32,
        scale: (1.0 / total) as f32,
        masked: min == f32::NEG_INFINITY,
    })
}

/// f and the second value summed; the gradient in place of z. `p` and `q` hold the exponentials.
#[inline(always)]
fn formulas<D: Pointwise>(
    d: D,
    z: &mut [f32],
    t: &[f32],
    p: &[f32],
    q: &[f32],
    norm_p: Norm,
    norm_q: Norm,
) -> (f64, f64) {
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
    let (mut total_f, mut total_h, mut total_g) = (0.0f64, 0.0f64, 0.0f64);
    let blocks = z
        .chunks_mut(BLOCK)
        .zip(t.chunks(BLOCK))
        .zip(p.chunks(BLOCK))
        .zip(q.chunks(BLOCK));
    for (((z, t), p), q) in blocks {
        let (mut sum_f, mut sum_h) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut sum_g = [0.0f32; LANES];
        let (zs, z_rest) = z.as_chunks_mut::<LANES>();
        let (ts, t_rest) = t.as_chunks::<LANES>();
        let (ps, p_rest) = p.as_chunks::<LANES>();
        let (qs, q_rest) = q.as_chunks::<LANES>();
        for (((z, t), p), q) in zs.iter_mut().zip(ts).zip(ps).zip(qs) {
            for i in 0..LANES {
                let (f, h, g) = eval(z[i], t[i], p[i], q[i]);
                sum_g[i] += g;
                sum_f[i] += f;
                sum_h[i] += h;
                z[i] = h;
            }
        }
        for (((z, t), p), q) in z_rest.iter_mut().zip(t_rest).zip(p_rest).zip(q_rest) {
            let (f, h, g) = eval(*z, *t, *p, *q);
            sum_g[0] += g;
            sum_f[0] += f;
            sum_h[0] += h;
            *z = h;
        }
        total_f += sum_f.iter().map(|&x| f64::from(x)).sum::<f64>();
        total_h += sum_h.iter().map(|&x| f64::from(x)).sum::<f64>();
        total_g += sum_g.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    // h - q sum(h), with the sum in two parts: the terms nearly cancel where h is
    // much the same share of q everywhere.
    let sum_h = total_h as f32;
    let rest_h = (total_h - f64::from(sum_h)) as f32;
    let less_share = |h: f32, e: f32| {
        let q = e * norm_q.scale;
        q.mul_add(-rest_h, q.mul_add(-sum_h, h))
    };
    let mut left = 0.0f64;
    for (z, q) in z.chunks_mut(BLOCK).zip(q.chunks(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let (zs, z_rest) = z.as_chunks_mut::<LANES>();
        let (qs, q_rest) = q.as_chunks::<LANES>();
        for (z, q) in zs.iter_mut().zip(qs) {
            for i in 0..LANES {
                z[i] = less_share(z[i], q[i]);
                lanes[i] += z[i];
            }
        }
        for (z, q) in z_rest.iter_mut().zip(q_rest) {
            *z = less_share(*z, *q);
            lanes[0] += *z;
        }
        left += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    // The gradient sums to 0. What rounding left of the sum comes from the likeliest token, whose two
    // terms nearly cancel when q is near 1.
    if let Some(largest) = q.iter().position(|&x| x == 1.0) {
        z[largest] -= left as f32;
    }
    (total_f, total_g)
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

/// Sum of |p - q| over a row.
#[inline(always)]
fn gap_sum(p: &[f32], q: &[f32], scale_p: f32, scale_q: f32) -> f64 {
    let mut total = 0.0f64;
    for (p, q) in p.chunks(BLOCK).zip(q.chunks(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let (ps, p_rest) = p.as_chunks::<LANES>();
        let (qs, q_rest) = q.as_chunks::<LANES>();
        for (p, q) in ps.iter().zip(qs) {
            for i in 0..LANES {
                lanes[i] += (p[i] * scale_p - q[i] * scale_q).abs();
            }
        }
        for (p, q) in p_rest.iter().zip(q_rest) {
            lanes[0] += (p * scale_p - q * scale_q).abs();
        }
        total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    total
}

dispatch!(pub(super) dispatch_entropy => entropy(x: &[f32], scale: f32) -> f64);
dispatch!(pub(super) dispatch_gap_sum => gap_sum(p: &[f32], q: &[f32], scale_p: f32, scale_q: f32) -> f64);
dispatch!(pub(super) dispatch_softmax => softmax(z: &[f32], out: &mut [f32]) -> Option<Norm>);
dispatch!(pub(super) dispatch_formulas => formulas<D: Pointwise>(d: D, z: &mut [f32], t: &[f32], p: &[f32], q: &[f32], norm_p: Norm, norm_q: Norm) -> (f64, f64));
