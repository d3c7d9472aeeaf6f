//! AMiD's assistant (Shin et al. 2026, arXiv 2510.15982): a mixture r of teacher and student, whose divergence from the teacher
//! is minimised in the student's place.
//!
//! With c = (1 - alpha) / 2 it is `r ~ (lambda p^c + (1 - lambda) q^c)^(1/c)`: the arithmetic mixture for alpha = -1, the
//! geometric one for alpha = 1. Its logits are `log q + log(lambda e^(c d) + 1 - lambda) / c` with d = log(p/q); their slope in
//! log q is the student's share `w = (1 - lambda) / (lambda e^(c d) + 1 - lambda)`. So with G, the gradient of the divergence in
//! r's logits, and h = G w, the gradient in the student's is `h_j - q_j sum h`.
//!
//! Everything is computed in f64; the logits of r are then f32, which costs digits where the models nearly agree.

use rayon::prelude::*;

/// The student's share of the exponent below which the mixture is the geometric one.
const GEOMETRIC: f64 = 1e-8;

/// Path and share of the mixture.
#[derive(Clone, Copy)]
pub(crate) struct Assistant {
    /// c = (1 - alpha) / 2
    pub exponent: f64,
    /// lambda
    pub teacher: f64,
}

/// The student's share w of each entry: what the assistant's gradient needs.
pub(crate) struct Shares(Vec<f32>);

/// log-softmax, and the probability of all but the likeliest token; NaN where a logit is no number.
fn log_softmax(x: &[f32]) -> (Vec<f64>, f64, usize) {
    let peak = (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
    let peak = peak.unwrap_or(0);
    let max = f64::from(x[peak]);
    let powers = x.iter().enumerate().filter(|(i, _)| *i != peak);
    let others: f64 = powers.map(|(_, x)| (f64::from(*x) - max).exp()).sum();
    let log = others.ln_1p();
    let of = |x: &f32| f64::from(*x) - max - log;
    (x.iter().map(of).collect(), others / (1.0 + others), peak)
}

impl Assistant {
    /// The logit of r and the student's share, from log p and log q.
    fn entry(self, lp: f64, lq: f64) -> (f64, f64) {
        let Self {
            exponent: c,
            teacher,
        } = self;
        let student = 1.0 - teacher;
        if c.abs() < GEOMETRIC {
            let part = |share: f64, log: f64| if share == 0.0 { 0.0 } else { share * log };
            return (part(teacher, lp) + part(student, lq), student);
        }
        if lp == f64::NEG_INFINITY && lq == f64::NEG_INFINITY {
            return (f64::NEG_INFINITY, 0.0);
        }
        // From the side whose term is the larger one.
        let exponent = c * (lp - lq);
        if exponent <= 0.0 {
            let rest = teacher * exponent.exp_m1();
            (lq + rest.ln_1p() / c, student / (1.0 + rest))
        } else {
            let rest = student * (-exponent).exp_m1();
            (
                lp + rest.ln_1p() / c,
                student * (-exponent).exp() / (1.0 + rest),
            )
        }
    }

    /// The assistant's logits, from rows of both models'.
    pub fn of(self, z: &[f32], t: &[f32], vocab: usize) -> (Vec<f32>, Shares) {
        let mut logits = vec![0.0; z.len()];
        let mut shares = vec![0.0; z.len()];
        logits
            .par_chunks_exact_mut(vocab)
            .zip(shares.par_chunks_exact_mut(vocab))
            .zip(z.par_chunks_exact(vocab))
            .zip(t.par_chunks_exact(vocab))
            .for_each(|(((logits, shares), z), t)| {
                let ((lq, ..), (lp, ..)) = (log_softmax(z), log_softmax(t));
                for i in 0..z.len() {
                    let (logit, share) = self.entry(lp[i], lq[i]);
                    (logits[i], shares[i]) = (logit as f32, share as f32);
                }
            });
        (logits, Shares(shares))
    }
}

impl Shares {
    /// The gradient in the student's logits `z`, in place of the one in r's.
    pub fn student(&self, grad: &mut [f32], z: &[f32], vocab: usize) {
        grad.par_chunks_exact_mut(vocab)
            .zip(self.0.par_chunks_exact(vocab))
            .zip(z.par_chunks_exact(vocab))
            .for_each(|((grad, shares), z)| {
                let (lq, rest, peak) = log_softmax(z);
                let h = |grad: f32, share: f32| f64::from(grad) * f64::from(share);
                let all = grad.iter().zip(shares).enumerate();
                let others: f64 = all
                    .filter(|(i, _)| *i != peak)
                    .map(|(_, (grad, share))| h(*grad, *share))
                    .sum();
                let of_peak = h(grad[peak], shares[peak]);
                for (i, (grad, share)) in grad.iter_mut().zip(shares).enumerate() {
                    *grad = (h(*grad, *share) - lq[i].exp() * (of_peak + others)) as f32;
                }
                // h (1 - q) - q sum of the others: the difference loses its digits where q is near 1
                grad[peak] = (of_peak * rest - (1.0 - rest) * others) as f32;
            });
    }
}
