//! Pearson's chi-squared divergence (Pearson 1900): twice the member (2, -1) of the alpha-beta family.

use super::alpha_beta::AlphaBeta;
#[cfg(feature = "burn")]
use super::alpha_beta::tensors;
use super::{Definition, Form};
#[cfg(feature = "cube")]
use crate::cube::Formula;
use crate::{Divergence, Fidelity};

const EXPONENTS: [f64; 2] = [2.0, -1.0];
const FACTOR: f64 = 2.0;

pub(super) static DEFINITION: Definition = Definition {
    id: "chi2",
    label: "Chi-squared",
    golden: None,
    formula: "sum (p - q)^2 / q",
    parameters: &[],
    default_fidelity: Fidelity::Paper,
    row: |job, _, _| {
        let [alpha, beta] = EXPONENTS;
        job.rows(|_| AlphaBeta::<true>::new(alpha, beta, FACTOR))
    },
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, _| tensors(EXPONENTS, FACTOR, pair),
        #[cfg(feature = "cube")]
        cube: Some(|_, _| {
            let [alpha, beta] = EXPONENTS;
            Some((Formula::AlphaBeta, [alpha, beta, alpha + beta, FACTOR]))
        }),
    },
};

impl Divergence {
    /// Pearson's chi-squared divergence: `sum (p - q)^2 / q`. Its gradient, from `h = q - p^2/q`, grows as p/q does.
    pub const fn chi_squared() -> Self {
        Self::new(&DEFINITION, [0.0; 2])
    }
}
