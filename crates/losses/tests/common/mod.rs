//! Code that the tests of the kernels share; not every test uses all of it.
#![allow(dead_code)]

pub mod exact;
#[cfg(feature = "burn")]
pub mod goldens;
pub mod regimes;
pub mod wide;

use abkd_losses::{Divergence, Fidelity, Logits, row};

/// Every divergence, and the alpha-beta one at its limits.
pub fn all() -> Vec<Divergence> {
    let mut all: Vec<Divergence> = Divergence::all().collect();
    let members = [
        (0.0, 0.5),
        (0.5, 0.0),
        (0.0, 0.0),
        (0.5, -0.5),
        (1.0, 0.01),
        (0.01, 1.0),
        (1.2, -0.3),
    ];
    all.extend(members.map(|(alpha, beta)| Divergence::alpha_beta(alpha, beta)));
    all
}

pub fn log_softmax(z: &[f32]) -> Vec<f64> {
    let max = z.iter().fold(f64::NEG_INFINITY, |a, &x| a.max(x.into()));
    let lse = max
        + z.iter()
            .map(|&x| (f64::from(x) - max).exp())
            .sum::<f64>()
            .ln();
    z.iter().map(|&x| f64::from(x) - lse).collect()
}

/// Values and gradients of the row kernel.
pub fn kernel(
    d: &Divergence,
    f: Fidelity,
    z: &[f32],
    t: &[f32],
    vocab: usize,
) -> (Vec<f32>, Vec<f32>) {
    let mut grad = z.to_vec();
    let mut value = vec![0.0; z.len() / vocab];
    row::divergence(
        d,
        f,
        Logits {
            student: &mut grad,
            teacher: t,
        },
        vocab,
        &mut value,
    )
    .unwrap();
    (value, grad)
}

/// Whether tokens of all probabilities have about the same weight in the sum: alpha + beta near 0. Each token then adds the
/// rounding error of the softmax's log-sum-exp, which f32 tensors cannot make smaller.
pub fn counts_all_alike(d: &Divergence) -> bool {
    let exponents = d.param("alpha").zip(d.param("beta"));
    exponents.is_some_and(|(alpha, beta)| (alpha + beta).abs() < 0.25)
}

/// Every divergence, with other parameters too.
pub fn with_other_parameters() -> Vec<Divergence> {
    let mut all = all();
    all.push(Divergence::weighted_kl(0.2));
    all.extend([0.0, 0.2, 0.9].map(Divergence::akl));
    all.extend([0.2, 2.0].map(Divergence::renyi));
    for lambda in [0.5, 0.9] {
        all.push(Divergence::jensen(lambda));
        all.push(Divergence::skew_forward_kl(lambda));
        all.push(Divergence::skew_reverse_kl(lambda));
    }
    let pairs = [(-0.5, 0.6), (0.0, 0.5)];
    all.extend(pairs.map(|(a, b)| Divergence::alpha_net(a, b)));
    let members = [
        (0.5, 0.5),
        (0.8, 0.2),
        (0.2, 0.1),
        (-0.3, 1.2),
        (1.0, 0.03),
        (0.6, -0.02),
        (0.9, 0.06),
    ];
    all.extend(members.map(|(alpha, beta)| Divergence::alpha_beta(alpha, beta)));
    all
}

/// Largest error of a value and of a gradient's entry: relative to the value where that is above 1, and to the largest entry
/// of the row. A largest entry below 1e-25 counts as 1e-25.
pub fn errors(exact: &[exact::Found], values: &[f32], grads: &[f32]) -> [f64; 2] {
    let mut errors = [0.0f64; 2];
    let vocab = grads.len() / values.len();
    for ((exact, value), grads) in exact.iter().zip(values).zip(grads.chunks(vocab)) {
        let error = (f64::from(*value) - exact.value).abs() / exact.value.abs().max(1.0);
        errors[0] = worse(errors[0], error);
        // Of 31 digits of a value the exact gradient loses most where it is much smaller.
        let least = 1e-25 * exact.value.abs().max(1.0);
        let largest = exact.grad.iter().fold(least, |a, g| a.max(g.abs()));
        for (ours, grad) in grads.iter().zip(&exact.grad) {
            let error = (f64::from(*ours) - grad).abs() - exact.slack;
            errors[1] = worse(errors[1], error / largest);
        }
    }
    errors
}

/// The larger; NaN if either is NaN.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b < a { a } else { b }
}
