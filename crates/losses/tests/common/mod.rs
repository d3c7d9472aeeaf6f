//! What the tests of the kernel share.

pub mod exact;
pub mod regimes;
pub mod wide;

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

/// Normal numbers (Box and Muller) from a seed.
pub fn normal(seed: u64) -> impl FnMut() -> f64 {
    let mut i = seed.wrapping_mul(0xD129_0B46_94D5_4D2F);
    let mut uniform = move || {
        i = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (i ^ (i >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    move || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

/// Every divergence, with other parameters too.
pub fn with_other_parameters() -> Vec<Divergence> {
    let mut all = all();
    all.push(Divergence::Wsd { weight: 0.2 });
    all.extend([0.0, 0.2, 0.9].map(|mu| Divergence::Akl { mu }));
    for lambda in [0.5, 0.9] {
        all.push(Divergence::Jensen { lambda });
        all.push(Divergence::SkewForwardKl { lambda });
        all.push(Divergence::SkewReverseKl { lambda });
    }
    let pairs = [(-0.5, 0.6), (0.0, 0.5)];
    all.extend(pairs.map(|(a, b)| Divergence::AlphaNet { a, b }));
    let members = [(0.5, 0.5), (0.8, 0.2), (0.2, 0.1), (-0.3, 1.2)];
    all.extend(members.map(|(alpha, beta)| Divergence::AlphaBeta { alpha, beta }));
    all
}
