//! Parameters of every divergence that transform the logits before it is computed, and its gradient afterwards. In this
//! order: a temperature; the teacher's likeliest tokens as classes of their own and all others as one class; an assistant in
//! the student's place.

use rayon::prelude::*;

use crate::divergences::{Parameter, Range};
use crate::row::{self, Logit};
use crate::{Divergence, Error, Fidelity, Logits, Model};

mod assistant;
#[cfg(feature = "burn")]
pub(crate) mod tensors;

use self::assistant::Assistant;

/// Temperature, number of tokens, assistant.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct View {
    /// Divides both models' logits.
    pub tau: f64,
    /// 1 if value and gradient are multiplied by the square of `tau`, else 0.
    pub squared: f64,
    /// Number of the teacher's likeliest tokens that are classes of their own; 0: all.
    pub top: f64,
    /// The teacher's share in the assistant; 0: there is none.
    pub amid_lambda: f64,
    /// The path of the mixture.
    pub amid_alpha: f64,
}

/// The parameters, by name only.
pub(crate) static PARAMETERS: [Parameter; 5] = [
    Parameter {
        name: "tau",
        default: 1.0,
        range: Range {
            contains: |x| (1e-2..=1e3).contains(&x),
            text: "a temperature from 0.01 to 1000",
        },
    },
    Parameter {
        name: "squared",
        default: 0.0,
        range: Range {
            contains: |x| x == 0.0 || x == 1.0,
            text: "0 or 1",
        },
    },
    Parameter {
        name: "top",
        default: 0.0,
        range: Range {
            contains: |x| (0.0..=1e9).contains(&x) && x.fract() == 0.0,
            text: "a number of tokens (0: all)",
        },
    },
    Parameter {
        name: "amid_lambda",
        default: 0.0,
        range: Range {
            contains: |x| (0.0..1.0).contains(&x),
            text: "the teacher's share, from 0 to below 1",
        },
    },
    Parameter {
        name: "amid_alpha",
        default: -1.0,
        range: Range {
            contains: |x| (-100.0..=100.0).contains(&x),
            text: "a number from -100 to 100",
        },
    },
];

impl View {
    /// The logits as they are.
    pub const WHOLE: Self = Self {
        tau: 1.0,
        squared: 0.0,
        top: 0.0,
        amid_lambda: 0.0,
        amid_alpha: -1.0,
    };

    pub fn values(&self) -> [f64; 5] {
        let Self {
            tau,
            squared,
            top,
            amid_lambda,
            amid_alpha,
        } = *self;
        [tau, squared, top, amid_lambda, amid_alpha]
    }

    pub fn values_mut(&mut self) -> [&mut f64; 5] {
        let Self {
            tau,
            squared,
            top,
            amid_lambda,
            amid_alpha,
        } = self;
        [tau, squared, top, amid_lambda, amid_alpha]
    }

    /// Whether it changes logits of a vocabulary.
    fn changes(self, vocab: usize) -> bool {
        self.tau != 1.0 || self.classes(vocab).is_some() || self.assistant().is_some()
    }

    fn assistant(self) -> Option<Assistant> {
        (self.amid_lambda > 0.0).then_some(Assistant {
            exponent: 0.5 * (1.0 - self.amid_alpha),
            teacher: self.amid_lambda,
        })
    }

    /// Number of tokens that are classes of their own, where the others are one.
    fn classes(self, vocab: usize) -> Option<usize> {
        let top = self.top as usize;
        (top > 0 && top < vocab).then_some(top)
    }

    /// What logits are multiplied by.
    fn of_logits(self) -> f64 {
        1.0 / self.tau
    }

    /// What the value of the divided logits is multiplied by.
    fn of_value(self) -> f64 {
        if self.squared == 1.0 {
            self.tau * self.tau
        } else {
            1.0
        }
    }

    /// What its gradient is multiplied by.
    fn of_grad(self) -> f64 {
        self.of_value() / self.tau
    }
}

impl Divergence {
    /// The view, and the divergence without it, which is computed on the transformed logits. `None` if the view changes no
    /// logits of a vocabulary of this size.
    pub(crate) fn seen(&self, vocab: usize) -> Option<(View, Self)> {
        let view = self.view();
        view.changes(vocab)
            .then(|| (view, self.with_view(View::WHOLE)))
    }
}

/// [`row::divergence`] through a view: in f32, some rows at a time, so that no copy of all logits is made.
pub(crate) fn divergence<L: Logit>(
    of: &Divergence,
    view: View,
    fidelity: Fidelity,
    logits: Logits<&mut [L], &[L]>,
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    let rows = if of.chooses_together(fidelity) {
        value.len().max(1)
    } else {
        16 * rayon::current_num_threads()
    };
    let block = rows * vocab.max(1);
    let blocks = logits.student.chunks_mut(block);
    let blocks = blocks.zip(logits.teacher.chunks(block));
    for (i, ((student, teacher), value)) in blocks.zip(value.chunks_mut(rows)).enumerate() {
        let logits = Logits { student, teacher };
        some_rows(of, view, fidelity, logits, vocab, value).map_err(|mut error| {
            if let Some(row) = error.row_mut() {
                *row += i * rows;
            }
            error
        })?;
    }
    Ok(())
}

fn some_rows<L: Logit>(
    of: &Divergence,
    view: View,
    fidelity: Fidelity,
    logits: Logits<&mut [L], &[L]>,
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    let divided = |logits: &[L]| -> Vec<f32> {
        let (mut scratch, by) = (Vec::new(), view.of_logits() as f32);
        let logits = L::read(logits, &mut scratch);
        logits.par_iter().map(|x| x * by).collect()
    };
    let (z, t) = (divided(logits.student), divided(logits.teacher));
    let grad = match view.classes(vocab) {
        Some(top) => {
            let classes = Classes::new(&z, &t, vocab, top);
            let student = classes.student.clone();
            let grad = assisted(
                of,
                view,
                fidelity,
                student,
                &classes.teacher,
                top + 1,
                value,
            )?;
            classes.spread(&grad, z, vocab)
        }
        None => assisted(of, view, fidelity, z, &t, vocab, value)?,
    };
    let by = view.of_value() as f32;
    value.iter_mut().for_each(|value| *value *= by);
    let by = view.of_grad() as f32;
    L::write(logits.student, &mut Vec::new(), |out| {
        let both = out.par_iter_mut().zip(&grad);
        both.for_each(|(out, grad)| *out = by * grad);
    });
    Ok(())
}

/// Gradient in the student's logits, through the assistant where there is one.
fn assisted(
    of: &Divergence,
    view: View,
    fidelity: Fidelity,
    z: Vec<f32>,
    teacher: &[f32],
    vocab: usize,
    value: &mut [f32],
) -> Result<Vec<f32>, Error> {
    let mut of_student = |mut grad: Vec<f32>| {
        let student = &mut grad[..];
        row::divergence(of, fidelity, Logits { student, teacher }, vocab, value).map(|()| grad)
    };
    let Some(assistant) = view.assistant() else {
        return of_student(z);
    };
    // Checked before the assistant mixes both models, so that an error names the right one.
    row::check(Model::Student, &z, vocab)?;
    row::check(Model::Teacher, teacher, vocab)?;
    let (logits, shares) = assistant.of(&z, teacher, vocab);
    let mut grad = of_student(logits)?;
    shares.student(&mut grad, &z, vocab);
    Ok(grad)
}

/// The teacher's likeliest tokens of each row, and one class for all others: its logit is the logarithm of the sum of their
/// exponentials, so that the softmax of the classes is that of the tokens, summed.
struct Classes {
    /// `[N, top]`
    tokens: Vec<usize>,
    /// `[N, top + 1]`
    student: Vec<f32>,
    teacher: Vec<f32>,
}

impl Classes {
    fn new(z: &[f32], t: &[f32], vocab: usize, top: usize) -> Self {
        let rows: Vec<_> = z
            .par_chunks_exact(vocab)
            .zip(t.par_chunks_exact(vocab))
            .map(|(z, t)| {
                let mut order: Vec<usize> = (0..vocab).collect();
                // Equal logits by their place; NaN is found by the kernel, in whichever class it ends.
                let likelier = |a: &usize, b: &usize| t[*b].total_cmp(&t[*a]).then(a.cmp(b));
                order.select_nth_unstable_by(top, likelier);
                let (tokens, others) = order.split_at_mut(top);
                tokens.sort_unstable();
                others.sort_unstable();
                let classes = |x: &[f32]| -> Vec<f32> {
                    let own = tokens.iter().map(|&i| x[i]);
                    own.chain([log_sum_exp(others.iter().map(|&i| x[i]))])
                        .collect()
                };
                (tokens.to_vec(), classes(z), classes(t))
            })
            .collect();
        let mut all = Self {
            tokens: Vec::with_capacity(rows.len() * top),
            student: Vec::with_capacity(rows.len() * (top + 1)),
            teacher: Vec::with_capacity(rows.len() * (top + 1)),
        };
        for (tokens, student, teacher) in rows {
            all.tokens.extend(tokens);
            all.student.extend(student);
            all.teacher.extend(teacher);
        }
        all
    }

    /// Gradients of all tokens, in place of the student's logits: a class's own for its token, and the last class's in shares
    /// of its probability.
    fn spread(&self, grad: &[f32], mut z: Vec<f32>, vocab: usize) -> Vec<f32> {
        let top = self.tokens.len() / (z.len() / vocab).max(1);
        z.par_chunks_exact_mut(vocab)
            .zip(self.tokens.par_chunks_exact(top))
            .zip(self.student.par_chunks_exact(top + 1))
            .zip(grad.par_chunks_exact(top + 1))
            .for_each(|(((z, tokens), logits), grad)| {
                let (all, of_all) = (logits[top], grad[top]);
                for z in z.iter_mut() {
                    let share = if *z == f32::NEG_INFINITY {
                        0.0
                    } else {
                        (*z - all).exp()
                    };
                    *z = of_all * share;
                }
                for (&token, &grad) in tokens.iter().zip(grad) {
                    z[token] = grad;
                }
            });
        z
    }
}

/// The logarithm of the sum of exponentials, in f64; `-inf` of nothing, NaN or +inf where a number is.
fn log_sum_exp(x: impl Iterator<Item = f32> + Clone) -> f32 {
    let max = x.clone().fold(
        f32::NEG_INFINITY,
        |a, b| if b > a || b.is_nan() { b } else { a },
    );
    if !max.is_finite() {
        return max;
    }
    let max = f64::from(max);
    let sum: f64 = x.map(|x| (f64::from(x) - max).exp()).sum();
    (max + sum.ln()) as f32
}
