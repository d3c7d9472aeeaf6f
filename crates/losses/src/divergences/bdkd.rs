//! Bidirectional KL (Amara et al. 2022, BDKD): the side of the larger entropy weighs more. Its weights are constants for the
//! gradient.

use abkd_host::math::ln;
use abkd_host::{LANES, dispatch};
#[cfg(feature = "burn")]
use burn::tensor::Tensor;

use super::kl::TwoKl;
#[cfg(feature = "burn")]
use super::kl::two_kl;
use super::{Definition, Form};
#[cfg(feature = "cube")]
use crate::cube::Formula;
#[cfg(feature = "burn")]
use crate::reference::pair::{Softmax, ln_1p};
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::row::RowView;
use crate::row::passes::{BLOCK, around};
use crate::row::softmax::Norm;
use crate::{Divergence, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "bdkd",
    label: "BDKD",
    golden: None,
    formula: "w_t KL(p,q) + w_s KL(q,p), the side of larger entropy weighs more",
    parameters: &[],
    default_fidelity: Fidelity::Official,
    row: |job, _, fidelity| job.rows(|row| weighted(row, fidelity)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, fidelity| tensors(pair, fidelity),
        #[cfg(feature = "cube")]
        cube: Some(|_, fidelity| {
            let numbers = [heavy(fidelity), 0.0, fidelity.entropy(), 0.0];
            Some((Formula::Bidirectional, numbers))
        }),
    },
};

impl Divergence {
    /// Bidirectional: `w_t FKL + w_s RKL`; the side with the larger entropy (teacher: `w_t`, student: `w_s`) weighs more
    /// than 1, constant for the gradient. Paper: 2. Official: 3, entropies with `log(p + 1e-9)`, first half a cross-entropy.
    pub const fn bdkd() -> Self {
        Self::new(&DEFINITION, [0.0; 2])
    }
}

/// Weight of the half whose side has the larger entropy.
fn heavy(fidelity: Fidelity) -> f64 {
    match fidelity {
        Fidelity::Official => 3.0,
        Fidelity::Paper => 2.0,
    }
}

/// Entropies are compared as in the published code.
fn weighted(row: &RowView, fidelity: Fidelity) -> TwoKl {
    let entropy = |x: &[f32], norm: &Norm| {
        // the term of the peak, whose probability may be near 1
        let peak = (1.0 - norm.rest) * (1e-9 - norm.rest).ln_1p();
        dispatch_entropy(x, norm.scale, norm.peak) - peak
    };
    let student_is_flatter = entropy(row.q, &row.norms.q) > entropy(row.p, &row.norms.p);
    let weights = if student_is_flatter {
        [1.0, heavy(fidelity)]
    } else {
        [heavy(fidelity), 1.0]
    };
    TwoKl::plain(weights, fidelity)
}

/// Sum of the published code's entropy terms over a row without its peak.
#[inline(always)]
fn entropy(x: &[f32], scale: f32, peak: usize) -> f64 {
    let mut total = 0.0f64;
    for side in around(peak, x.len()) {
        for block in x[side].chunks(BLOCK) {
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
    }
    total
}

/// -x log(x + 1e-9), the published code's entropy term.
#[inline(always)]
fn entropy_term(x: f32) -> f32 {
    -x * ln(x + 1e-9)
}

dispatch!(dispatch_entropy => entropy(x: &[f32], scale: f32, peak: usize) -> f64);

#[cfg(feature = "burn")]
fn tensors(pair: &Pair, fidelity: Fidelity) -> Terms {
    let heavy = heavy(fidelity);
    let flatter = entropy_of(&pair.q).greater(entropy_of(&pair.p)).float(); // [N, 1]
    let extra = flatter * (heavy - 1.0);
    two_kl(
        extra.clone().neg() + heavy,
        extra + 1.0,
        fidelity.entropy(),
        pair,
    )
}

/// The published code's entropy `[N, 1]`, accurate also where the peak's probability is near 1.
#[cfg(feature = "burn")]
fn entropy_of(x: &Softmax) -> Tensor<2> {
    let peak = x.is_at(&x.peak);
    let term = x.prob.clone() * (x.prob.clone() + 1e-9).log();
    let others = term.mask_fill(peak, 0.0).sum_dim(1);
    let at_peak = (x.rest.clone().neg() + 1.0) * ln_1p(x.rest.clone().neg() + 1e-9);
    (others + at_peak).neg()
}
