//! A row's exponentials, and the normaliser that makes them probabilities.

use abkd_host::math::scaled_exp;
use abkd_host::{LANES, dispatch};

use super::passes::{BLOCK, add, around};
use crate::pointwise::{Entry, Peak};

/// Largest distance of the largest logit from the guess of it, so that no exponential overflows.
const FAR: f32 = 16.0;

/// Largest logit that needs no origin.
const LARGE: f32 = 1e4;

/// Prefetch distance, in entries.
const AHEAD: usize = 4096;

/// Scaling of a row's exponentials: they are e^(z - `origin`) / 2^exponent, about 1 at the largest. The power of 2 costs no
/// rounding, and the origin is 0 except where logits are too large for that.
#[derive(Clone, Copy)]
pub(crate) struct Shift {
    origin: f32,
    exponent: f32,
}

impl Shift {
    /// For logits up to about `max`.
    fn new(max: f32) -> Self {
        if max.abs() > LARGE {
            return Self {
                origin: max,
                exponent: 0.0,
            };
        }
        Self {
            origin: 0.0,
            exponent: (max * std::f32::consts::LOG2_E).round(),
        }
    }

    #[inline(always)]
    fn exp(self, z: f32) -> f32 {
        scaled_exp(z - self.origin, self.exponent)
    }
}

/// A row's normaliser: turns a logit into a probability and its logarithm.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    max: f32,
    /// Index of the first logit that equals `max`.
    pub peak: usize,
    pub shift: Shift,
    /// Log of the sum of e^(z - max). Apart from `max`: a rounded sum of both would lose the digits in which a probability
    /// near 1 differs from 1.
    ln_sum: f64,
    /// Turns an exponential into a probability: 1 / their sum.
    pub scale: f32,
    /// 1 - the probability of the peak, from the sum of the others: a difference loses its digits near 0.
    pub rest: f64,
    /// Log of the smallest probability; -inf where an entry is masked.
    pub low: f32,
}

impl Norm {
    #[inline(always)]
    pub fn log(self, logit: f32) -> f32 {
        (logit - self.max) - self.ln_sum as f32
    }

    pub fn masked(self) -> bool {
        self.low == f32::NEG_INFINITY
    }
}

/// Both normalisers, and the peak of the student.
#[derive(Clone, Copy)]
pub(crate) struct Norms {
    pub p: Norm,
    pub q: Norm,
    pub peak: Peak,
    /// Index of the peak.
    pub at: usize,
    /// The student's logit at the peak.
    z: f32,
    /// The teacher's logit minus the student's at the peak, and `shift`: that minus log(p/q); both in two parts.
    gap: [f32; 2],
    shift: [f32; 2],
    /// Whether no token has a probability in both models.
    pub disjoint: bool,
}

/// a - b and its rounding error (Knuth).
#[inline(always)]
fn difference(a: f32, b: f32) -> [f32; 2] {
    let gap = a - b;
    let back = gap - a;
    [gap, (a - (gap - back)) - (b + back)]
}

impl Norms {
    /// From the logits and both rows' exponentials.
    pub fn new(p: Norm, q: Norm, z: &[f32], t: &[f32], exp_p: &[f32], exp_q: &[f32]) -> Self {
        let there = |i: usize| z[i] != f32::NEG_INFINITY && t[i] != f32::NEG_INFINITY;
        let mut at = q.peak;
        if !there(at) {
            // the student's likeliest that neither model masks
            let best = (0..z.len()).filter(|&i| there(i));
            at = best.max_by(|&i, &j| z[i].total_cmp(&z[j])).unwrap_or(at);
        }
        let log = |norm: Norm, logit: f32| f64::from(logit) - f64::from(norm.max) - norm.ln_sum;
        let (of_p, of_q) = (exp_p[at] * p.scale, exp_q[at] * q.scale);
        let rest = if at == q.peak {
            q.rest as f32
        } else {
            1.0 - of_q
        };
        let entry = Entry {
            p: of_p,
            q: of_q,
            lp: p.log(t[at]),
            lq: q.log(z[at]),
            d: 0.0,
            r: 0.0,
            u: 0.0,
        };
        Self {
            p,
            q,
            peak: Peak {
                entry,
                d: 0.0,
                rest,
                vocab: z.len() as f32,
            },
            at,
            z: z[at],
            gap: difference(t[at], z[at]),
            shift: [0.0; 2],
            disjoint: !there(at),
        }
        .with_log_ratio(log(p, t[at]) - log(q, z[at]))
    }

    /// Sets log(p/q) at the peak.
    pub fn with_log_ratio(mut self, d: f64) -> Self {
        self.peak.d = d;
        let shift = self.gap.map(f64::from).iter().sum::<f64>() - d;
        let high = shift as f32;
        self.shift = [high, (shift - f64::from(high)) as f32];
        self
    }

    pub fn masked(&self) -> bool {
        self.p.masked() || self.q.masked()
    }

    /// p - q at the peak, with the digits that a difference would lose where both are near 1 or each other.
    pub fn peak_gap(&self) -> f64 {
        f64::from(self.peak.entry.q) * self.peak.d.exp_m1()
    }

    /// An entry, from its logits and exponentials.
    #[inline(always)]
    pub fn entry<const NEAR: bool>(&self, z: f32, t: f32, p: f32, q: f32) -> Entry {
        let (v, u) = (t - self.p.max, z - self.q.max);
        let at_peak = self.peak.d as f32;
        let (d, r) = if NEAR {
            let [gap, lost] = difference(t, z);
            // d and r are computed separately: as a sum of r and a rounded number, d would have one error for all entries.
            let less = |[high, low]: [f32; 2]| (gap - high) + (lost - low);
            (less(self.shift), less(self.gap))
        } else {
            let d = (v - u) - (self.p.ln_sum - self.q.ln_sum) as f32;
            (d, d - at_peak)
        };
        Entry {
            p: p * self.p.scale,
            q: q * self.q.scale,
            lp: v - self.p.ln_sum as f32,
            lq: u - self.q.ln_sum as f32,
            d,
            r,
            u: z - self.z,
        }
    }
}

#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// Folds lanes in pairs, which is fewer steps than one by one.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; LANES], pick: impl Fn(f32, f32) -> f32) -> f32 {
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

/// The exponentials of `z` into `out`; times the normaliser's `scale` they are the softmax. `None` for a row without a
/// softmax.
#[inline(always)]
fn softmax(z: &[f32], out: &mut [f32]) -> Option<Norm> {
    // The first block gives a guess of the largest logit, so that one pass over the row is usually enough.
    let first = &z[..z.len().min(BLOCK)];
    let guess = first.iter().copied().fold(f32::NEG_INFINITY, larger);
    let mut shift = Shift::new(guess);
    let mut found = exponentials(z, shift, out);
    // false where the guess is infinite and the maximum is not
    let near = (guess - FAR..=guess + FAR).contains(&found.max);
    if found.max.is_finite() && !near {
        shift = Shift::new(found.max);
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
        ln_sum: (others / top).ln_1p(),
        scale,
        rest: others / (top + others),
        low: 0.0,
    };
    norm.low = norm.log(min);
    Some(norm)
}

/// Results of the pass that computes a row's exponentials; `max` and `min` ignore NaN.
pub(crate) struct Found {
    max: f32,
    min: f32,
    /// Start of the first block that has `max`.
    block: usize,
    /// Sum of the other blocks' exponentials.
    others: f64,
}

/// Prefetches the memory [`AHEAD`] entries after a chunk into the second-level cache. The exponentials of a row are its first
/// use and take so long that the processor does not prefetch far enough ahead by itself.
#[inline(always)]
pub(crate) fn prefetch(chunk: &[f32; LANES]) {
    abkd_host::prefetch(chunk.as_ptr().wrapping_add(AHEAD));
}

/// The exponentials of `z` into `out`.
#[inline(always)]
fn exponentials(z: &[f32], shift: Shift, out: &mut [f32]) -> Found {
    let mut total = [0.0f64; LANES];
    let mut min = [f32::INFINITY; LANES];
    // largest logit so far, start of its block, and that block's sum
    let (mut max, mut block, mut held) = (f32::NEG_INFINITY, 0, [0.0; LANES]);
    for (i, (z, out)) in z.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).enumerate() {
        let (mut sum, mut high) = ([0.0f32; LANES], [f32::NEG_INFINITY; LANES]);
        let (chunks, rest) = z.as_chunks::<LANES>();
        let (outs, out_rest) = out.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(outs) {
            prefetch(chunk);
            for i in 0..LANES {
                out[i] = shift.exp(chunk[i]);
                sum[i] += out[i];
                high[i] = larger(high[i], chunk[i]);
                min[i] = smaller(min[i], chunk[i]);
            }
        }
        for (x, out) in rest.iter().zip(out_rest) {
            *out = shift.exp(*x);
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

/// e^x in f64, 0 below e^-700; for x up to 700.
#[inline(always)]
fn wide_exp(x: f64) -> f64 {
    // As in f32, see [`abkd_host::math`].
    const ROUND: f64 = 6_755_399_441_055_744.0 + 1023.0;
    let there = f64::from(u8::from(x > -700.0));
    let x = if x > -700.0 { x } else { 0.0 };
    let shifted = x.mul_add(std::f64::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(
        -1.908_214_929_270_587_7e-10,
        n.mul_add(-0.693_147_180_369_123_8, x),
    );
    // its Taylor series
    let terms = (1..=13).rev();
    let series = terms.fold(1.0, |sum, k| (sum * r).mul_add(1.0 / f64::from(k), 1.0));
    there * series * f64::from_bits(shifted.to_bits() << 52)
}

/// log(p/q) of an entry from two normalisers in f64: the distributions may differ by less than the error of normalisers in
/// f32.
#[inline(always)]
fn log_ratio(z: &[f32], t: &[f32], at: usize) -> f64 {
    others(z, at).ln_1p() - others(t, at).ln_1p()
}

/// Sum of all exponentials except that of entry `at`, relative to it. No closure: one that is not inlined is compiled without
/// the processor features of its function.
#[inline(always)]
fn others(x: &[f32], at: usize) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for side in around(at, x.len()) {
        let (chunks, rest) = x[side].as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += wide_exp(f64::from(chunk[i]) - f64::from(x[at]));
            }
        }
        for &other in rest {
            lanes[0] += wide_exp(f64::from(other) - f64::from(x[at]));
        }
    }
    lanes.iter().sum()
}

dispatch!(pub(crate) dispatch_log_ratio => log_ratio(z: &[f32], t: &[f32], at: usize) -> f64);
dispatch!(pub(crate) dispatch_softmax => softmax(z: &[f32], out: &mut [f32]) -> Option<Norm>);
dispatch!(pub(crate) dispatch_exponentials => exponentials(z: &[f32], shift: Shift, out: &mut [f32]) -> Found);
