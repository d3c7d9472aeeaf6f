//! The row kernel on the CPU: exponentials and log-sum-exp of both rows, then f and h of every entry, then the gradient in
//! place of the student's logits (together with f, where no sum of h is needed). Rows run in parallel; within a row sums are
//! kept in 16 lanes, so a result does not depend on the number of threads. Compiled for AVX-512, AVX2 and the baseline, and
//! chosen at run time.

mod logit;
mod own;
pub(crate) mod passes;
pub(crate) mod softmax;

use rayon::prelude::*;

use self::logit::AnyLogits;
pub use self::logit::Logit;
pub use self::own::{Entry, own};
use self::passes::{
    Sums, dispatch_formulas, dispatch_gradient, dispatch_near_formulas, dispatch_together,
};
use self::softmax::{Norms, dispatch_exponentials, dispatch_log_ratio, dispatch_softmax};

use crate::error::{Error, Model};
use crate::pointwise::Pointwise;
use crate::{Divergence, Fidelity, Logits, view};

/// Values of a divergence, and its gradient in place of the student's logits.
///
/// # Shapes
///
/// - `logits`: N rows of `vocab` logits each, in f32, f16 or bf16, one after the other; `value`: N
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
    logits: Logits<&mut [L], &[L]>,
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    let Logits { student, teacher } = logits;
    assert_eq!(student.len(), teacher.len());
    assert_eq!(student.len(), value.len() * vocab);
    if let Some((view, divergence)) = divergence.seen(vocab) {
        let logits = Logits { student, teacher };
        return view::divergence(&divergence, view, fidelity, logits, vocab, value);
    }
    let job = Job {
        logits: L::hide(student, teacher),
        vocab,
        value,
    };
    (divergence.definition().row)(job, divergence.values(), fidelity)
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
                    // q - 1, from the sum of the others: the difference loses its digits where q is near 1
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

/// A call of the kernel. It hides the type of the logits, so that the table of divergences can hold plain functions.
pub(crate) struct Job<'a> {
    logits: AnyLogits<'a>,
    vocab: usize,
    value: &'a mut [f32],
}

impl Job<'_> {
    /// Applies `make`'s formulas to every row.
    pub fn rows<D: Pointwise>(self, make: impl Fn(&RowView) -> D + Sync) -> Result<(), Error> {
        self.run(EachRow(make))
    }

    /// Runs a kernel on the logits in their type.
    pub fn run(self, kernel: impl Kernel) -> Result<(), Error> {
        let Self { vocab, value, .. } = self;
        match self.logits {
            AnyLogits::F32(student, teacher) => kernel.run(&Run { teacher, vocab }, student, value),
            AnyLogits::F16(student, teacher) => kernel.run(&Run { teacher, vocab }, student, value),
            AnyLogits::Bf16(student, teacher) => {
                kernel.run(&Run { teacher, vocab }, student, value)
            }
        }
    }
}

/// A kernel over rows of any type.
pub(crate) trait Kernel {
    /// Values, and gradients in place of the student's logits.
    fn run<L: Logit>(self, run: &Run<L>, student: &mut [L], value: &mut [f32])
    -> Result<(), Error>;
}

/// A function that makes a row's formulas.
struct EachRow<F>(F);

impl<D: Pointwise, F: Fn(&RowView) -> D + Sync> Kernel for EachRow<F> {
    fn run<L: Logit>(
        self,
        run: &Run<L>,
        student: &mut [L],
        value: &mut [f32],
    ) -> Result<(), Error> {
        run.rows(student, value, self.0)
    }
}

/// A row before f and h are known: exponentials and their normalisers.
pub(crate) struct RowView<'a> {
    pub p: &'a [f32],
    pub q: &'a [f32],
    pub norms: &'a Norms,
}

/// The teacher's logits, and the length of a row.
pub(crate) struct Run<'a, L> {
    pub teacher: &'a [L],
    pub vocab: usize,
}

impl<L: Logit> Run<'_, L> {
    /// Applies `make`'s formulas to every row.
    fn rows<D: Pointwise>(
        &self,
        student: &mut [L],
        value: &mut [f32],
        make: impl Fn(&RowView) -> D + Sync,
    ) -> Result<(), Error> {
        self.each(student, value, |index, z, scratch| {
            self.row(index, z, &make, scratch)
        })
    }

    /// Runs `row` on every row: its index, the student's logits, which the gradient replaces, and scratch memory. It returns
    /// the row's value.
    pub fn each(
        &self,
        student: &mut [L],
        value: &mut [f32],
        row: impl Fn(usize, &mut [L], &mut Scratch) -> Result<f64, Error> + Sync,
    ) -> Result<(), Error> {
        student
            .par_chunks_exact_mut(self.vocab.max(1))
            .zip(value)
            .enumerate()
            .map_init(
                || Scratch::new(self.vocab),
                |scratch, (index, (z, value))| {
                    let found = row(index, z, scratch);
                    found.map(|found| *value = found as f32).err()
                },
            )
            // the first bad row, whatever the order of work
            .find_map_first(|error| error)
            .map_or(Ok(()), Err)
    }

    /// Applies `make`'s formulas to a row; the gradient replaces its logits.
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

    pub fn teacher(&self, index: usize) -> &[L] {
        &self.teacher[index * self.vocab..][..self.vocab]
    }
}

/// Sums of f and h, and h in place of `p`, by the faster formulas where these keep their digits.
pub(crate) fn formulas<D: Pointwise>(
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
pub(crate) fn normalize(
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

/// A thread's buffers for a row: converted logits, exponentials, and h in place of the teacher's.
pub(crate) struct Scratch {
    pub z: Vec<f32>,
    pub t: Vec<f32>,
    pub p: Vec<f32>,
    pub q: Vec<f32>,
}

impl Scratch {
    pub fn new(vocab: usize) -> Self {
        Self {
            z: Vec::new(),
            t: Vec::new(),
            p: vec![0.0; vocab],
            q: vec![0.0; vocab],
        }
    }
}

/// Refuses rows without a distribution.
pub(crate) fn check(model: Model, logits: &[f32], vocab: usize) -> Result<(), Error> {
    let wrong = |logits: &[f32]| {
        logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY)
            || logits.iter().all(|x| *x == f32::NEG_INFINITY)
    };
    let mut rows = logits.chunks_exact(vocab).enumerate();
    match rows.find(|(_, logits)| wrong(logits)) {
        Some((row, logits)) => Err(bad(row, model, logits)),
        None => Ok(()),
    }
}

fn bad(row: usize, model: Model, logits: &[f32]) -> Error {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        Error::NotFinite { model, row }
    } else {
        Error::EmptyRow { model, row }
    }
}
