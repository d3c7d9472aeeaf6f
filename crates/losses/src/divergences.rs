//! The divergences. Each is a [`Definition`] in a file of this folder and a line in [`ALL`]. All code that goes by a
//! divergence's name or parameters reads these definitions.

mod akl;
mod alpha_beta;
mod alpha_net;
mod bdkd;
mod chi_squared;
mod jensen;
mod kl;
mod renyi;
mod skew;
mod todi;
mod total_variation;

#[cfg(feature = "burn")]
use crate::Rows;
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::row::Job;
use crate::{Divergence, Error, Fidelity};

/// Every divergence, in the order of the paper's tables.
pub(crate) static ALL: &[&Definition] = &[
    &kl::FORWARD,
    &kl::REVERSE,
    &kl::WEIGHTED,
    &bdkd::DEFINITION,
    &jensen::DEFINITION,
    &akl::DEFINITION,
    &alpha_net::DEFINITION,
    &alpha_beta::DEFINITION,
    &skew::FORWARD,
    &skew::REVERSE,
    &total_variation::DEFINITION,
    &todi::DEFINITION,
    &kl::JEFFREYS,
    &chi_squared::DEFINITION,
    &renyi::DEFINITION,
];

/// Values of a definition's parameters, in their order; 0 for those that it does not have.
pub(crate) type Params = [f64; 2];

/// What a divergence is, and how it is computed. (p = teacher, q = student, m = mixture)
#[cfg_attr(not(feature = "burn"), allow(dead_code))]
pub(crate) struct Definition {
    /// The name in settings and result files.
    pub id: &'static str,
    /// The name in the paper's tables.
    pub label: &'static str,
    /// The name in golden files, where that is not the id.
    pub golden: Option<&'static str>,
    /// The formula, for help texts.
    pub formula: &'static str,
    /// In the order of the formula; at most as many as [`Params`] holds.
    pub parameters: &'static [Parameter],
    /// See [`Divergence::default_fidelity`].
    pub default_fidelity: Fidelity,
    /// The row kernel on the CPU.
    pub row: fn(Job, Params, Fidelity) -> Result<(), Error>,
    /// How the other devices compute it.
    pub form: Form,
}

/// How a divergence is computed from tensors.
#[cfg_attr(not(feature = "burn"), allow(dead_code))]
pub(crate) enum Form {
    /// A sum over the vocabulary.
    Sum {
        /// f and h as tensor operations, for any device.
        #[cfg(feature = "burn")]
        tensors: fn(&Pair, Params, Fidelity) -> Terms,
        /// Formula and numbers of the kernel for CubeCL devices. Without them, or where the function returns `None`, these
        /// devices run the tensor operations.
        #[cfg(feature = "cube")]
        cube: Option<fn(Params, Fidelity) -> Option<crate::cube::Description>>,
    },
    /// No sum over the vocabulary: rows computed by tensor operations, on every device but the CPU.
    Rows {
        /// These operations.
        #[cfg(feature = "burn")]
        tensors: fn(&Pair, Params) -> Rows,
    },
    /// The larger of two divergences, the first where both are equal. Official: by their sums over the rows of a call. Paper:
    /// row by row. Both members are computed with [`Fidelity::Paper`].
    Larger(fn(Params) -> [Divergence; 2]),
}

/// A parameter of a divergence.
pub(crate) struct Parameter {
    pub name: &'static str,
    /// The paper's value.
    pub default: f64,
    pub range: Range,
}

/// The values that a parameter may have.
pub(crate) struct Range {
    pub contains: fn(f64) -> bool,
    /// The range in words, for messages.
    pub text: &'static str,
}

/// Range of a weight.
const SHARE: Range = Range {
    contains: |x| (0.0..=1.0).contains(&x),
    text: "a number in [0, 1]",
};
