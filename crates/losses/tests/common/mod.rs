//! What the tests of the kernel share.

pub mod exact;

use std::collections::BTreeMap;

use abkd_losses::{Divergence, Fidelity, row};

/// Every divergence, and the alpha-beta one at its limits.
pub fn all() -> Vec<Divergence> {
    let mut all: Vec<Divergence> = Divergence::IDS
        .into_iter()
        .map(|id| Divergence::from_parts(id, &BTreeMap::new()).unwrap())
        .collect();
    let members = [
        (0.0, 0.5),
        (0.5, 0.0),
        (0.0, 0.0),
        (0.5, -0.5),
        (1.0, 0.01),
        (0.01, 1.0),
        (1.2, -0.3),
    ];
    all.extend(members.map(|(alpha, beta)| Divergence::AlphaBeta { alpha, beta }));
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
    row::divergence(d, f, &mut grad, t, vocab, &mut value).unwrap();
    (value, grad)
}
