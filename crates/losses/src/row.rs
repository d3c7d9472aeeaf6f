//! The row kernel on the CPU: log-sum-exp of both rows, then f and h of every entry, then the gradient
//! over the student's logits in place. Rows run in parallel; within a row sums are kept in 16 lanes, so
//! a result does not depend on the number of threads. Compiled for AVX-512, AVX2 and anything else, and
//! chosen at run time.

use burn::tensor::Device;
use rayon::prelude::*;

use crate::divergence::{Divergence, Fidelity};
use crate::error::{Error, Model};
use crate::math::exp;
use crate::pointwise::{
    AlphaBeta, BetaZero, BothZero, Entry, Jensen, Mixture, Pointwise, SkewForward, SkewReverse,
    SmallBeta, SumOne, TotalVariation, TwoKl, entropy_term,
};

const LANES: usize = 16;
/// Entries summed in f32 before the sum moves to f64.
const BLOCK: usize = 64 * LANES;
/// Rows that AlphaNet's choice is guessed from.
const SAMPLE: usize = 16;
/// Below this |beta| the alpha-beta divergence is worked out in f64.
const SMALL_BETA: f64 = 0.05;

/// Whether tensors of `device` lie in host memory, so that this kernel serves them.
pub(crate) fn serves(device: &Device) -> bool {
    #[cfg(feature = "tch")]
    #[allow(deprecated)] // Burn will drop libtorch one day
    if *device == Device::libtorch() {
        return true;
    }
    *device == Device::flex()
}

/// Values of a divergence, and its gradient in place of the student's logits.
///
/// # Shapes
///
/// - `student`, `teacher`: N rows of `vocab` logits; `value`: N
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn divergence(
    divergence: &Divergence,
    fidelity: Fidelity,
    student: &mut [f32],
    teacher: &[f32],
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    assert_eq!(student.len(), teacher.len());
    assert_eq!(student.len(), value.len() * vocab);
    let run = Run { teacher, vocab };
    let entropy = if fidelity == Fidelity::Paper {
        1.0
    } else {
        0.0
    };
    let two = |forward: f64, reverse: f64, entropy: f32| TwoKl {
        forward: forward as f32,
        reverse: reverse as f32,
        entropy,
    };
    match *divergence {
        Divergence::ForwardKl => run.rows(student, value, |_| two(1.0, 0.0, entropy)),
        Divergence::ReverseKl => run.rows(student, value, |_| two(0.0, 1.0, entropy)),
        Divergence::Wsd { weight } => {
            run.rows(student, value, |_| two(1.0 - weight, weight, entropy))
        }
        Divergence::Bdkd => run.rows(student, value, |row| bdkd(row, fidelity)),
        Divergence::Jensen { lambda } => run.rows(student, value, |_| Jensen {
            mixture: Mixture::new(1.0 - lambda),
            student: lambda as f32,
        }),
        Divergence::Akl { mu } => run.rows(student, value, |row| {
            let (head, tail) = akl_gaps(row, mu, fidelity);
            let share = if head + tail > 0.0 {
                head / (head + tail)
            } else {
                0.5
            };
            two(share, 1.0 - share, 1.0)
        }),
        Divergence::AlphaNet { a, b } => alpha_net(&run, [a, b], fidelity, student, value),
        Divergence::AlphaBeta { alpha, beta } => {
            alpha_beta(&run, alpha, beta, fidelity, student, value)
        }
        Divergence::SkewForwardKl { lambda } => run.rows(student, value, |_| SkewForward {
            mixture: Mixture::new(lambda),
            entropy,
        }),
        Divergence::SkewReverseKl { lambda } => run.rows(student, value, |_| SkewReverse {
            mixture: Mixture::new(1.0 - lambda),
        }),
        Divergence::TotalVariation => run.rows(student, value, |_| TotalVariation),
    }
}

fn alpha_beta(
    run: &Run,
    alpha: f64,
    beta: f64,
    fidelity: Fidelity,
    student: &mut [f32],
    value: &mut [f32],
) -> Result<(), Error> {
    // The released code has 1/x for 1/x^2 in the limits: a factor of x.
    let official = |x: f64| {
        if fidelity == Fidelity::Official {
            x as f32
        } else {
            1.0
        }
    };
    let (a, b) = (alpha as f32, beta as f32);
    if alpha == 0.0 && beta == 0.0 {
        run.rows(student, value, |_| BothZero)
    } else if beta == 0.0 {
        run.rows(student, value, |_| BetaZero {
            alpha: a,
            factor: official(alpha),
        })
    } else if alpha == 0.0 {
        run.rows(student, value, |_| AlphaBeta::new(0.0, b, official(beta)))
    } else if alpha + beta == 0.0 {
        run.rows(student, value, |_| AlphaBeta::new(a, b, official(alpha)))
    } else if beta.abs() < SMALL_BETA {
        run.rows(student, value, |_| SmallBeta { alpha, beta })
    } else {
        run.rows(student, value, |_| AlphaBeta::new(a, b, 1.0))
    }
}

/// Official: the member with the larger sum over the rows given. Paper: the larger one of each row.
fn alpha_net(
    run: &Run,
    alphas: [f64; 2],
    fidelity: Fidelity,
    student: &mut [f32],
    value: &mut [f32],
) -> Result<(), Error> {
    let pair = |first: usize| {
        let [a, b] = [alphas[first], alphas[1 - first]];
        move |_: &RowView| SumOne::new(a, b)
    };
    let mut other = vec![0.0; value.len()];
    if fidelity == Fidelity::Paper {
        let mut second = student.to_vec();
        run.rows(&mut second, &mut other, pair(1))?;
        run.rows(student, value, pair(0))?;
        for (i, v) in value.iter_mut().enumerate() {
            if other[i] > *v {
                *v = other[i];
                let range = i * run.vocab..(i + 1) * run.vocab;
                student[range.clone()].copy_from_slice(&second[range]);
            }
        }
        return Ok(());
    }
    // One pass gives both values and the gradient of one member: the one that some rows speak for. Should
    // all of them speak for the other, a second pass is due.
    let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
    let some = value.len().min(SAMPLE);
    let mut sample = student[..some * run.vocab].to_vec();
    let (v, o) = (&mut value[..some], &mut other[..some]);
    run.rows_with_second(&mut sample, v, o, pair(0))?;
    let guess = usize::from(sum(o) > sum(v));
    let kept = (some < value.len()).then(|| student.to_vec());
    run.rows_with_second(student, value, &mut other, pair(guess))?;
    // The first member where the two are equal.
    let wrong = if guess == 0 {
        sum(&other) > sum(value)
    } else {
        sum(&other) >= sum(value)
    };
    match kept {
        Some(logits) if wrong => {
            student.copy_from_slice(&logits);
            run.rows(student, value, pair(1 - guess))
        }
        _ => Ok(()),
    }
}

/// Cross-entropies, and their gradient in place of the logits.
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`.
///
/// # Panics
///
/// When the lengths do not fit or a label is not below `vocab`.
pub fn cross_entropy(
    student: &mut [f32],
    labels: &[u32],
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    assert_eq!(student.len(), value.len() * vocab);
    student
        .par_chunks_exact_mut(vocab.max(1))
        .zip(labels)
        .zip(value)
        .enumerate()
        .map(|(row, ((z, &label), value))| {
            let logit = z[label as usize];
            let mut q = vec![0.0; vocab];
            let Some(norm) = dispatch_softmax(z, &mut q) else {
                return Some(bad(row, Model::Student, z));
            };
            if logit == f32::NEG_INFINITY {
                return Some(Error::ImpossibleLabel { row, label });
            }
            *value = -norm.log(logit);
            for (z, e) in z.iter_mut().zip(&q) {
                *z = e * norm.scale;
            }
            z[label as usize] -= 1.0;
            None
        })
        .find_map_first(|error| error)
        .map_or(Ok(()), Err)
}

/// A row before f and h are known: exponentials, and what makes probabilities of them.
struct RowView<'a> {
    p: &'a [f32],
    q: &'a [f32],
    scale_p: f32,
    scale_q: f32,
}

/// Entropies compared as in the published code; the half that is to catch up weighs 3 (2 in the
/// paper's text).
fn bdkd(row: &RowView, fidelity: Fidelity) -> TwoKl {
    let (heavy, with_entropy) = match fidelity {
        Fidelity::Official => (3.0, 0.0),
        Fidelity::Paper => (2.0, 1.0),
    };
    let student_is_flatter =
        dispatch_entropy(row.q, row.scale_q) > dispatch_entropy(row.p, row.scale_p);
    TwoKl {
        forward: if student_is_flatter { 1.0 } else { heavy },
        reverse: if student_is_flatter { heavy } else { 1.0 },
        entropy: with_entropy,
    }
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

/// Bins of the teacher's masses: 16 an octave, from the largest down by a factor of 2^16.
const BINS: usize = 16 * 16 + 1;

/// Bin of an exponential in (2^-16, 1]; the likeliest token is in bin 0.
#[inline(always)]
fn bin(e: f32) -> usize {
    ((1.0f32.to_bits() - e.to_bits()) >> 19) as usize
}

/// Sums of |p - q| over the head and the tail of the teacher's distribution.
///
/// The head is the likeliest tokens whose mass together stays below `mu`, the first one always
/// (official), or that reach it (paper). Tokens are sorted only within the bin in which `mu` is crossed.
fn akl_gaps(row: &RowView, mu: f64, fidelity: Fidelity) -> (f64, f64) {
    let total = dispatch_gap_sum(row.p, row.q, row.scale_p, row.scale_q);
    let mass_of = |i: usize| f64::from(row.p[i] * row.scale_p);
    let gap_of = |i: usize| f64::from((row.p[i] * row.scale_p - row.q[i] * row.scale_q).abs());
    let smallest = f32::from_bits(1.0f32.to_bits() - ((BINS as u32 - 1) << 19));
    let (mut masses, mut gaps) = ([0.0f64; BINS], [0.0f64; BINS]);
    for (chunk, p) in row.p.chunks(LANES).enumerate() {
        // Most of a trained model's tokens are far below.
        if p.iter().fold(0.0, |a: f32, &b| if b > a { b } else { a }) <= smallest {
            continue;
        }
        for (i, &e) in p.iter().enumerate() {
            if e > smallest {
                let token = chunk * LANES + i;
                masses[bin(e)] += mass_of(token);
                gaps[bin(e)] += gap_of(token);
            }
        }
    }
    let (mut mass, mut head) = (0.0, 0.0);
    let mut crossed = 0;
    while crossed < BINS && mass + masses[crossed] < mu {
        mass += masses[crossed];
        head += gaps[crossed];
        crossed += 1;
    }
    // What is left to look at one by one: the bin that crosses, or all below the bins.
    let mut members: Vec<u32> = (0..row.p.len() as u32)
        .filter(|&i| {
            let e = row.p[i as usize];
            if crossed < BINS {
                e > smallest && bin(e) == crossed
            } else {
                e <= smallest
            }
        })
        .collect();
    members.sort_unstable_by(|a, b| {
        row.p[*b as usize]
            .total_cmp(&row.p[*a as usize])
            .then(a.cmp(b))
    });
    for (i, &token) in members.iter().enumerate() {
        let before = mass;
        mass += mass_of(token as usize);
        let inside = match fidelity {
            Fidelity::Official => (crossed == 0 && i == 0) || mass < mu,
            Fidelity::Paper => before < mu,
        };
        if !inside {
            break;
        }
        head += gap_of(token as usize);
    }
    (head, (total - head).max(0.0))
}

struct Run<'a> {
    teacher: &'a [f32],
    vocab: usize,
}

impl Run<'_> {
    /// Applies `make`'s formulas to every row.
    fn rows<D: Pointwise>(
        &self,
        student: &mut [f32],
        value: &mut [f32],
        make: impl Fn(&RowView) -> D + Sync,
    ) -> Result<(), Error> {
        let mut second = vec![0.0; value.len()];
        self.rows_with_second(student, value, &mut second, make)
    }

    /// The same, with the sums of the formulas' second value.
    fn rows_with_second<D: Pointwise>(
        &self,
        student: &mut [f32],
        value: &mut [f32],
        second: &mut [f32],
        make: impl Fn(&RowView) -> D + Sync,
    ) -> Result<(), Error> {
        let vocab = self.vocab.max(1);
        student
            .par_chunks_exact_mut(vocab)
            .zip(self.teacher.par_chunks_exact(vocab))
            .zip(value)
            .zip(second)
            .enumerate()
            .map_init(
                || (vec![0.0f32; vocab], vec![0.0f32; vocab]),
                |(q, p), (row, (((z, t), value), other))| {
                    let Some(norm_q) = dispatch_softmax(z, q) else {
                        return Some(bad(row, Model::Student, z));
                    };
                    let Some(norm_p) = dispatch_softmax(t, p) else {
                        return Some(bad(row, Model::Teacher, t));
                    };
                    let d = make(&RowView {
                        p,
                        q,
                        scale_p: norm_p.scale,
                        scale_q: norm_q.scale,
                    });
                    let (sum, second) = dispatch_formulas(d, z, t, p, q, norm_p, norm_q);
                    (*value, *other) = (sum as f32, second as f32);
                    None
                },
            )
            // the first bad row, whatever the order of work
            .find_map_first(|error| error)
            .map_or(Ok(()), Err)
    }
}

fn bad(row: usize, model: Model, logits: &[f32]) -> Error {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        Error::NotFinite { model, row }
    } else {
        Error::EmptyRow { model, row }
    }
}

/// What turns a logit into a log-probability, in two parts: their sum would round away the digits that
/// tell a probability near 1 from 1.
#[derive(Clone, Copy)]
struct Norm {
    max: f32,
    ln_sum: f32,
    /// 1 / sum: probability of the largest logit, and what turns an exponential into a probability.
    scale: f32,
    /// Whether an entry is -inf.
    masked: bool,
}

impl Norm {
    #[inline(always)]
    fn log(self, logit: f32) -> f32 {
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

/// e^(x - max); 0 for -inf, NaN for NaN (which the clamp in `exp` would hide).
#[inline(always)]
fn shifted_exp(x: f32, max: f32) -> f32 {
    if x == f32::NEG_INFINITY {
        0.0
    } else {
        exp(x - max) + x * 0.0
    }
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
    let (sum_h, scale) = (total_h as f32, norm_q.scale);
    let mut left = 0.0f64;
    for (z, q) in z.chunks_mut(BLOCK).zip(q.chunks(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let (zs, z_rest) = z.as_chunks_mut::<LANES>();
        let (qs, q_rest) = q.as_chunks::<LANES>();
        for (z, q) in zs.iter_mut().zip(qs) {
            for i in 0..LANES {
                z[i] -= q[i] * scale * sum_h;
                lanes[i] += z[i];
            }
        }
        for (z, q) in z_rest.iter_mut().zip(q_rest) {
            *z -= q * scale * sum_h;
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

/// Compiles a function once for each instruction set and calls the best one that the machine has.
macro_rules! dispatch {
    ($name:ident => $inner:ident $(<$d:ident>)? ($($arg:ident: $ty:ty),*) -> $out:ty) => {
        #[allow(clippy::too_many_arguments)]
        fn $name $(<$d: Pointwise>)? ($($arg: $ty),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512 $(<$d: Pointwise>)? ($($arg: $ty),*) -> $out { $inner($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$d: Pointwise>)? ($($arg: $ty),*) -> $out { $inner($($arg),*) }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $inner($($arg),*)
        }
    };
}

dispatch!(dispatch_entropy => entropy(x: &[f32], scale: f32) -> f64);
dispatch!(dispatch_gap_sum => gap_sum(p: &[f32], q: &[f32], scale_p: f32, scale_q: f32) -> f64);
dispatch!(dispatch_softmax => softmax(z: &[f32], out: &mut [f32]) -> Option<Norm>);
dispatch!(dispatch_formulas => formulas<D>(d: D, z: &mut [f32], t: &[f32], p: &[f32], q: &[f32], norm_p: Norm, norm_q: Norm) -> (f64, f64));
