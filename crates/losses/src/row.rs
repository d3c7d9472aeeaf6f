//! The row kernel on the CPU: exponentials and log-sum-exp of both rows, then f and h of every entry, then
//! the gradient over the student's logits in place (at once with f, where no sum of h is needed). Rows run
//! in parallel; within a row sums are kept in 16 lanes, so a result does not depend on the number of
//! threads. Compiled for AVX-512, AVX2 and anything else, and chosen at run time.

mod akl;
mod logit;
mod passes;

use rayon::prelude::*;

use self::akl::akl_gaps;
pub use self::logit::Logit;
use self::passes::{
    Norms, dispatch_entropy, dispatch_exponentials, dispatch_formulas, dispatch_gradient,
    dispatch_softmax, dispatch_together,
};

use crate::divergence::{Divergence, Fidelity};
use crate::error::{Error, Model};
use crate::pointwise::{
    AlphaBeta, BetaZero, BothValues, BothZero, CrossEntropy, Jensen, Mixture, Pointwise,
    SkewForward, SkewReverse, SmallBeta, SumOne, TotalVariation, TwoKl,
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
    let two = |forward: f64, reverse: f64, entropy: f32| TwoKl {
        forward: forward as f32,
        reverse: reverse as f32,
        entropy,
    };
    match *divergence {
        Divergence::ForwardKl if entropy == 0.0 => run.rows(student, value, |_| CrossEntropy),
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

fn alpha_beta<L: Logit>(
    run: &Run<L>,
    alpha: f64,
    beta: f64,
    fidelity: Fidelity,
    student: &mut [L],
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
        run.rows(student, value, |_| SmallBeta::new(alpha, beta))
    } else {
        run.rows(student, value, |_| AlphaBeta::new(a, b, 1.0))
    }
}

/// Official: the member with the larger sum over the rows given. Paper: the larger one of each row.
/// The first where both are equal. So all values come before the first gradient, which then needs only
/// the student's exponentials.
fn alpha_net<L: Logit>(
    run: &Run<L>,
    alphas: [f64; 2],
    fidelity: Fidelity,
    student: &mut [L],
    value: &mut [f32],
) -> Result<(), Error> {
    let narrow = alphas.map(SumOne::<true>::new);
    let wide = alphas.map(SumOne::<false>::new);
    let [one, two] = narrow.map(|member| member.reach());
    let is_narrow = |norms: &Norms| -norms.p.low.min(norms.q.low) <= one.min(two);
    let vocab = run.vocab.max(1);
    let rows: Vec<_> = student
        .par_chunks_exact(vocab)
        .enumerate()
        .map_init(
            || Scratch::new(vocab),
            |Scratch { z: zs, t: ts, p, q }, (index, z)| {
                let (z, t) = (L::read(z, zs), L::read(run.teacher(index), ts));
                let norms = normalize(index, z, t, p, q)?;
                let sums = if is_narrow(&norms) {
                    let sums = dispatch_formulas(BothValues(narrow), z, t, p, q, norms);
                    let [one, two] = narrow.map(|member| member.scale());
                    [one * sums.f, two * sums.h()]
                } else {
                    let sums = dispatch_formulas(BothValues(wide), z, t, p, q, norms);
                    [sums.f, sums.h()]
                };
                Ok((norms, sums))
            },
        )
        .collect();
    // the first bad row, whatever the order of work
    let rows = rows.into_iter().collect::<Result<Vec<_>, Error>>()?;
    let all: f64 = rows.iter().map(|(_, [one, two])| two - one).sum();
    student
        .par_chunks_exact_mut(vocab)
        .zip(run.teacher.par_chunks_exact(vocab))
        .zip(value)
        .zip(rows)
        .for_each_init(
            || Scratch::new(vocab),
            |Scratch { z: zs, t: ts, p, q }, (((z, t), value), row)| {
                let (norms, [one, two]) = row;
                let gain = match fidelity {
                    Fidelity::Official => all,
                    Fidelity::Paper => two - one,
                };
                let (member, sum) = if gain > 0.0 { (1, two) } else { (0, one) };
                *value = sum as f32;
                let (logits, t) = (L::read(z, zs), L::read(t, ts));
                dispatch_exponentials(logits, norms.q.shift, q);
                let sums = if is_narrow(&norms) {
                    dispatch_formulas(narrow[member], logits, t, p, q, norms)
                } else {
                    dispatch_formulas(wide[member], logits, t, p, q, norms)
                };
                L::write(z, zs, |out| dispatch_gradient(out, p, q, norms.q, sums));
            },
        );
    Ok(())
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
            scale_p: norms.p.scale,
            scale_q: norms.q.scale,
        });
        if let Some(c) = d.of_teacher()
            && !norms.p.masked()
            && !norms.q.masked()
        {
            let mut sum = 0.0;
            L::write(z, zs, |z| {
                sum = dispatch_together(d, c, z, t, p, q, norms);
            });
            return Ok(sum);
        }
        let sums = dispatch_formulas(d, logits, t, p, q, norms);
        L::write(z, zs, |out| dispatch_gradient(out, p, q, norms.q, sums));
        Ok(sums.f)
    }

    fn teacher(&self, index: usize) -> &[L] {
        &self.teacher[index * self.vocab..][..self.vocab]
    }
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
    Ok(Norms {
        p: teacher,
        q: student,
    })
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
