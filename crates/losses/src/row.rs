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
    SmallBeta, TotalVariation, TwoKl, entropy_term,
};

const LANES: usize = 16;
/// Entries summed in f32 before the sum moves to f64.
const BLOCK: usize = 64 * LANES;
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
        run.rows(student, value, |_| AlphaBeta {
            alpha: 0.0,
            beta: b,
            factor: official(beta),
        })
    } else if alpha + beta == 0.0 {
        run.rows(student, value, |_| AlphaBeta {
            alpha: a,
            beta: b,
            factor: official(alpha),
        })
    } else if beta.abs() < SMALL_BETA {
        run.rows(student, value, |_| SmallBeta { alpha, beta })
    } else {
        run.rows(student, value, |_| AlphaBeta {
            alpha: a,
            beta: b,
            factor: 1.0,
        })
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
    let mut other = student.to_vec();
    let mut other_value = value.to_vec();
    alpha_beta(
        run,
        alphas[0],
        1.0 - alphas[0],
        Fidelity::Paper,
        student,
        value,
    )?;
    alpha_beta(
        run,
        alphas[1],
        1.0 - alphas[1],
        Fidelity::Paper,
        &mut other,
        &mut other_value,
    )?;
    let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
    let batch = sum(&other_value) > sum(value);
    for (i, v) in value.iter_mut().enumerate() {
        let take = if fidelity == Fidelity::Official {
            batch
        } else {
            other_value[i] > *v
        };
        if take {
            *v = other_value[i];
            let range = i * run.vocab..(i + 1) * run.vocab;
            student[range.clone()].copy_from_slice(&other[range]);
        }
    }
    Ok(())
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
            z.copy_from_slice(&q);
            z[label as usize] -= 1.0;
            None
        })
        .find_map_first(|error| error)
        .map_or(Ok(()), Err)
}

/// A row before f and h are known.
struct RowView<'a> {
    p: &'a [f32],
    q: &'a [f32],
}

/// Entropies compared as in the published code; the half that is to catch up weighs 3 (2 in the
/// paper's text).
fn bdkd(row: &RowView, fidelity: Fidelity) -> TwoKl {
    let entropy = |x: &[f32]| x.iter().map(|&v| f64::from(entropy_term(v))).sum::<f64>();
    let (heavy, with_entropy) = match fidelity {
        Fidelity::Official => (3.0, 0.0),
        Fidelity::Paper => (2.0, 1.0),
    };
    let student_is_flatter = entropy(row.q) > entropy(row.p);
    TwoKl {
        forward: if student_is_flatter { 1.0 } else { heavy },
        reverse: if student_is_flatter { heavy } else { 1.0 },
        entropy: with_entropy,
    }
}

/// Sums of |p - q| over the head and the tail of the teacher's distribution.
///
/// The head is the likeliest tokens whose mass together stays below `mu`, the first one always
/// (official), or that reach it (paper). Only as many tokens are sorted as the head needs.
fn akl_gaps(row: &RowView, mu: f64, fidelity: Fidelity) -> (f64, f64) {
    let gap = |i: usize| f64::from((row.p[i] - row.q[i]).abs());
    let total: f64 = (0..row.p.len()).map(gap).sum();
    let mut order: Vec<u32> = (0..row.p.len() as u32).collect();
    let by_mass = |a: &u32, b: &u32| {
        row.p[*b as usize]
            .total_cmp(&row.p[*a as usize])
            .then(a.cmp(b))
    };
    let (mut mass, mut head, mut sorted) = (0.0, 0.0, 0);
    let mut i = 0;
    while i < order.len() {
        if i == sorted {
            let next = (sorted * 8).max(16).min(order.len());
            if next < order.len() {
                order[sorted..].select_nth_unstable_by(next - sorted, by_mass);
            }
            order[sorted..next].sort_unstable_by(by_mass);
            sorted = next;
        }
        let token = order[i] as usize;
        let before = mass;
        mass += f64::from(row.p[token]);
        let inside = match fidelity {
            Fidelity::Official => i == 0 || mass < mu,
            Fidelity::Paper => before < mu,
        };
        if !inside {
            break;
        }
        head += gap(token);
        i += 1;
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
        let vocab = self.vocab.max(1);
        student
            .par_chunks_exact_mut(vocab)
            .zip(self.teacher.par_chunks_exact(vocab))
            .zip(value)
            .enumerate()
            .map_init(
                || (vec![0.0f32; vocab], vec![0.0f32; vocab]),
                |(q, p), (row, ((z, t), value))| {
                    let Some(norm_q) = dispatch_softmax(z, q) else {
                        return Some(bad(row, Model::Student, z));
                    };
                    let Some(norm_p) = dispatch_softmax(t, p) else {
                        return Some(bad(row, Model::Teacher, t));
                    };
                    let d = make(&RowView { p, q });
                    *value = dispatch_formulas(d, z, t, p, q, norm_p, norm_q) as f32;
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
    /// Probability of the largest logit.
    largest: f32,
    /// Whether an entry is -inf.
    masked: bool,
}

impl Norm {
    #[inline(always)]
    fn log(self, logit: f32) -> f32 {
        (logit - self.max) - self.ln_sum
    }
}

/// Softmax of `z` into `out`; gives the normaliser, or `None` where there is none.
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
    let scale = (1.0 / total) as f32;
    for x in out.iter_mut() {
        *x *= scale;
    }
    Some(Norm {
        max,
        ln_sum: total.ln() as f32,
        largest: scale,
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

/// f summed; the gradient in place of z. `p` and `q` hold the softmaxes.
#[inline(always)]
fn formulas<D: Pointwise>(
    d: D,
    z: &mut [f32],
    t: &[f32],
    p: &[f32],
    q: &[f32],
    norm_p: Norm,
    norm_q: Norm,
) -> f64 {
    // The part of h that may be left out where all of q is summed: not where the teacher masks entries.
    let dropped = if norm_p.masked { d.dropped() } else { 0.0 };
    let eval = |z: f32, t: f32, p: f32, q: f32| {
        let left_out = z == f32::NEG_INFINITY || t == f32::NEG_INFINITY;
        let (f, h) = d.eval(Entry {
            p,
            q,
            lp: norm_p.log(t),
            lq: norm_q.log(z),
        });
        if left_out {
            (0.0, 0.0)
        } else {
            (f, h + dropped * q)
        }
    };
    let (mut total_f, mut total_h) = (0.0f64, 0.0f64);
    let blocks = z
        .chunks_mut(BLOCK)
        .zip(t.chunks(BLOCK))
        .zip(p.chunks(BLOCK))
        .zip(q.chunks(BLOCK));
    for (((z, t), p), q) in blocks {
        let (mut sum_f, mut sum_h) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (zs, z_rest) = z.as_chunks_mut::<LANES>();
        let (ts, t_rest) = t.as_chunks::<LANES>();
        let (ps, p_rest) = p.as_chunks::<LANES>();
        let (qs, q_rest) = q.as_chunks::<LANES>();
        for (((z, t), p), q) in zs.iter_mut().zip(ts).zip(ps).zip(qs) {
            for i in 0..LANES {
                let (f, h) = eval(z[i], t[i], p[i], q[i]);
                sum_f[i] += f;
                sum_h[i] += h;
                z[i] = h;
            }
        }
        for (((z, t), p), q) in z_rest.iter_mut().zip(t_rest).zip(p_rest).zip(q_rest) {
            let (f, h) = eval(*z, *t, *p, *q);
            sum_f[0] += f;
            sum_h[0] += h;
            *z = h;
        }
        total_f += sum_f.iter().map(|&x| f64::from(x)).sum::<f64>();
        total_h += sum_h.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    let sum_h = total_h as f32;
    let mut left = 0.0f64;
    for (z, q) in z.chunks_mut(BLOCK).zip(q.chunks(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let (zs, z_rest) = z.as_chunks_mut::<LANES>();
        let (qs, q_rest) = q.as_chunks::<LANES>();
        for (z, q) in zs.iter_mut().zip(qs) {
            for i in 0..LANES {
                z[i] -= q[i] * sum_h;
                lanes[i] += z[i];
            }
        }
        for (z, q) in z_rest.iter_mut().zip(q_rest) {
            *z -= q * sum_h;
            lanes[0] += *z;
        }
        left += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    // The gradient sums to 0. What rounding left of the sum comes from the likeliest token, whose two
    // terms nearly cancel when q is near 1.
    if let Some(largest) = q.iter().position(|&x| x == norm_q.largest) {
        z[largest] -= left as f32;
    }
    total_f
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

dispatch!(dispatch_softmax => softmax(z: &[f32], out: &mut [f32]) -> Option<Norm>);
dispatch!(dispatch_formulas => formulas<D>(d: D, z: &mut [f32], t: &[f32], p: &[f32], q: &[f32], norm_p: Norm, norm_q: Norm) -> f64);
