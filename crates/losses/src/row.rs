//! The row kernel on the CPU: exponentials and log-sum-exp of both rows, then f and h of every entry, then
//! the gradient over the student's logits in place (at once with f, where no sum of h is needed). Rows run
//! in parallel; within a row sums are kept in 16 lanes, so a result does not depend on the number of
//! threads. Compiled for AVX-512, AVX2 and anything else, and chosen at run time.

mod akl;
mod alpha_net;
mod logit;
mod passes;
mod softmax;

use rayon::prelude::*;

use self::akl::akl_gaps;
use self::alpha_net::alpha_net;
pub use self::logit::Logit;
use self::passes::{
    Sums, dispatch_entropy, dispatch_formulas, dispatch_gradient, dispatch_near_formulas,
    dispatch_together,
};
use self::softmax::{Norm, Norms, dispatch_exponentials, dispatch_log_ratio, dispatch_softmax};

use crate::divergence::{Divergence, Fidelity};
use crate::error::{Error, Model};
use crate::pointwise::{
    AlphaBeta, BetaZero, BothZero, Jensen, Pointwise, SkewForward, SkewReverse, SmallBeta, ToDi,
    TotalVariation, TwoKl,
};

/// Below this |beta| the alpha-beta divergence is not divided by beta.
const SMALL_BETA: f64 = 0.05;

/// Values of a divergence, and its gradient in place of the student's logits.
///
/// # Shapes
///
/// - `student`, `teacher`: N rows of `vocab` logits in f32, f16 or bf16; `value`: N
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn divergence<L: Logit>(
    divergence: &Divergence,
    fidelity: Fidelity,
    student: &mut [L],
    teacher: &[L],
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
    let two = |forward: f64, reverse: f64| TwoKl::new(forward, reverse, entropy);
    match *divergence {
        Divergence::ForwardKl => run.rows(student, value, |_| two(1.0, 0.0)),
        Divergence::ReverseKl => run.rows(student, value, |_| two(0.0, 1.0)),
        Divergence::Wsd { weight } => run.rows(student, value, |_| two(1.0 - weight, weight)),
        Divergence::Bdkd => run.rows(student, value, |row| bdkd(row, fidelity)),
        Divergence::Jensen { lambda } => run.rows(student, value, |_| Jensen::new(lambda)),
        Divergence::Akl { mu } => run.rows(student, value, |row| {
            let (head, tail) = akl_gaps(row, mu, fidelity);
            let share = if head + tail > 0.0 {
                head / (head + tail)
            } else {
                0.5
            };
            TwoKl::new(share, 1.0 - share, 1.0)
        }),
        Divergence::AlphaNet { a, b } => alpha_net(&run, [a, b], fidelity, student, value),
        Divergence::AlphaBeta { alpha, beta } => {
            alpha_beta(&run, alpha, beta, fidelity, student, value)
        }
        // without a teacher's share
        Divergence::SkewForwardKl { lambda: 0.0 } => run.rows(student, value, |_| two(1.0, 0.0)),
        Divergence::SkewForwardKl { lambda } => {
            run.rows(student, value, |_| SkewForward::new(lambda, entropy))
        }
        Divergence::SkewReverseKl { lambda } => {
            run.rows(student, value, |_| SkewReverse::new(lambda))
        }
        Divergence::TotalVariation => run.rows(student, value, |_| TotalVariation::new()),
        Divergence::ToDi => run.rows(student, value, |_| ToDi::new()),
    }
}

fn alpha_beta<L: Logit>(
    run: &Run<L>,
    alpha: f64,
    beta: f64,
    fidelity: Fidelity,
    student: &mut [L],
    value: &mut [f32],
) -> Result<(), Error> {
    let sum = alpha + beta;
    // The released code has 1/x for 1/x^2 in the limits: a factor of x.
    let factor = match fidelity {
        Fidelity::Paper => 1.0,
        Fidelity::Official if beta == 0.0 || sum == 0.0 => alpha,
        Fidelity::Official if alpha == 0.0 => beta,
        Fidelity::Official => 1.0,
    };
    let one = sum as f32 == 1.0;
    if alpha == 0.0 && beta == 0.0 {
        run.rows(student, value, |_| BothZero::new())
    } else if beta == 0.0 && one {
        run.rows(student, value, |_| BetaZero::<true>::new(alpha, factor))
    } else if beta == 0.0 {
        run.rows(student, value, |_| BetaZero::<false>::new(alpha, factor))
    } else if beta.abs() < SMALL_BETA && alpha != 0.0 && sum != 0.0 {
        run.rows(student, value, |_| SmallBeta::new(alpha, beta))
    } else if one {
        run.rows(student, value, |_| {
            AlphaBeta::<true>::new(alpha, beta, factor)
        })
    } else {
        run.rows(student, value, |_| {
            AlphaBeta::<false>::new(alpha, beta, factor)
        })
    }
}

/// Cross-entropies, and their gradient in place of the logits.
///
/// # Shapes
///
/// - `student`: N rows of `vocab` logits in f32, f16 or bf16; `labels`, `value`: N
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`; a label whose logit is `-inf`.
///
/// # Panics
///
/// When the lengths do not fit or a label is not below `vocab`.
pub fn cross_entropy<L: Logit>(
    student: &mut [L],
    labels: &[u32],
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    assert_eq!(student.len(), value.len() * vocab);
    assert_eq!(labels.len(), value.len());
    student
        .par_chunks_exact_mut(vocab.max(1))
        .zip(labels)
        .zip(value)
        .enumerate()
        .map_init(
            || Scratch::new(vocab),
            |Scratch { z: zs, q, .. }, (row, ((z, &label), value))| {
                let logits = L::read(z, zs);
                let logit = logits[label as usize];
                let Some(norm) = dispatch_softmax(logits, q) else {
                    return Some(bad(row, Model::Student, logits));
                };
                if logit == f32::NEG_INFINITY {
                    return Some(Error::ImpossibleLabel { row, label });
                }
                *value = -norm.log(logit);
                let label = label as usize;
                L::write(z, zs, |out| {
                    for (out, e) in out.iter_mut().zip(q) {
                        *out = *e * norm.scale;
                    }
                    // q - 1, which the difference would lose where q is near 1
                    out[label] = if label == norm.peak {
                        -norm.rest as f32
                    } else {
                        out[label] - 1.0
                    };
                });
                None
            },
        )
        .find_map_first(|error| error)
        .map_or(Ok(()), Err)
}

/// A row before f and h are known: exponentials, and what makes probabilities of them.
struct RowView<'a> {
    p: &'a [f32],
    q: &'a [f32],
    norms: &'a Norms,
}

/// Entropies compared as in the published code; the half that is to catch up weighs 3 (2 in the
/// paper's text).
fn bdkd(row: &RowView, fidelity: Fidelity) -> TwoKl {
    let (heavy, with_entropy) = match fidelity {
        Fidelity::Official => (3.0, 0.0),
        Fidelity::Paper => (2.0, 1.0),
    };
    let entropy = |x: &[f32], norm: &Norm| {
        // of a probability that may be near 1
        let peak = (1.0 - norm.rest) * (1e-9 - norm.rest).ln_1p();
        dispatch_entropy(x, norm.scale, norm.peak) - peak
    };
    let student_is_flatter = entropy(row.q, &row.norms.q) > entropy(row.p, &row.norms.p);
    let [forward, reverse] = if student_is_flatter {
        [1.0, heavy]
    } else {
        [heavy, 1.0]
    };
    TwoKl::new(forward, reverse, with_entropy)
}

struct Run<'a, L> {
    teacher: &'a [L],
    vocab: usize,
}

impl<L: Logit> Run<'_, L> {
    /// Applies `make`'s formulas to every row.
    fn rows<D: Pointwise>(
        &self,
        student: &mut [L],
        value: &mut [f32],
        make: impl Fn(&RowView) -> D + Sync,
    ) -> Result<(), Error> {
        student
            .par_chunks_exact_mut(self.vocab.max(1))
            .zip(value)
            .enumerate()
            .map_init(
                || Scratch::new(self.vocab),
                |scratch, (index, (z, value))| {
                    let sum = self.row(index, z, &make, scratch);
                    sum.map(|sum| *value = sum as f32).err()
                },
            )
            // the first bad row, whatever the order of work
            .find_map_first(|error| error)
            .map_or(Ok(()), Err)
    }

    /// Applies `make`'s formulas to a row; the gradient in place of its logits.
    fn row<D: Pointwise>(
        &self,
        index: usize,
        z: &mut [L],
        make: &impl Fn(&RowView) -> D,
        Scratch { z: zs, t: ts, p, q }: &mut Scratch,
    ) -> Result<f64, Error> {
        let (logits, t) = (L::read(z, zs), L::read(self.teacher(index), ts));
        let norms = normalize(index, logits, t, p, q)?;
        let d = make(&RowView {
            p,
            q,
            norms: &norms,
        });
        if let Some(c) = d.of_teacher()
            && !norms.masked()
            && norms.peak_gap().abs() as f32 > norms.peak.close_to(1.0)
        {
            let mut sum = 0.0;
            L::write(z, zs, |z| {
                sum = dispatch_together(d.at(&norms.peak), c, z, t, p, q, norms);
            });
            return Ok(sum);
        }
        let sums = formulas(d, logits, t, p, q, norms);
        L::write(z, zs, |out| dispatch_gradient(out, p, q, norms, sums));
        Ok(sums.f)
    }

    fn teacher(&self, index: usize) -> &[L] {
        &self.teacher[index * self.vocab..][..self.vocab]
    }
}

/// f and h summed, and h in place of `p`, by the faster formulas where these keep their digits.
fn formulas<D: Pointwise>(
    d: D,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &[f32],
    mut norms: Norms,
) -> Sums {
    let here = d.at(&norms.peak);
    let least = here.least(&norms.peak);
    if norms.disjoint || least < f32::INFINITY {
        let sums = dispatch_formulas(here, z, t, p, q, norms);
        let most = sums.most.max(norms.peak.entry.q * sums.h.abs() as f32);
        if norms.disjoint || most >= least {
            return sums;
        }
        dispatch_exponentials(t, norms.p.shift, p);
    }
    if D::BY_D {
        norms = norms.with_log_ratio(dispatch_log_ratio(z, t, norms.at));
    }
    dispatch_near_formulas(d.at(&norms.peak), z, t, p, q, norms)
}

/// Exponentials of the teacher's row into `p` and of the student's into `q`, and their normalisers.
fn normalize(
    index: usize,
    z: &[f32],
    t: &[f32],
    p: &mut [f32],
    q: &mut [f32],
) -> Result<Norms, Error> {
    let student = dispatch_softmax(z, q).ok_or_else(|| bad(index, Model::Student, z))?;
    let teacher = dispatch_softmax(t, p).ok_or_else(|| bad(index, Model::Teacher, t))?;
    Ok(Norms::new(teacher, student, z, t, p, q))
}

/// A thread's room for a row: logits that have to be converted, exponentials, and h in place of the
/// teacher's.
struct Scratch {
    z: Vec<f32>,
    t: Vec<f32>,
    p: Vec<f32>,
    q: Vec<f32>,
}

impl Scratch {
    fn new(vocab: usize) -> Self {
        Self {
            z: Vec::new(),
            t: Vec::new(),
            p: vec![0.0; vocab],
            q: vec![0.0; vocab],
        }
    }
}

fn bad(row: usize, model: Model, logits: &[f32]) -> Error {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        Error::NotFinite { model, row }
    } else {
        Error::EmptyRow { model, row }
    }
}
