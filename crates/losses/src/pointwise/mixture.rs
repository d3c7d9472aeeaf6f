//! A mixture of both distributions, from which a divergence is measured.

use abkd_host::math::{Softplus, expm1_over_x, softplus};

use super::Peak;

/// Logarithm of a share in a mixture, finite at the ends of [0, 1].
pub(crate) fn ln_share(share: f64) -> f64 {
    share.max(1e-30).ln()
}

/// A mixture `m = a p + b q`, through `x = log(a p / (b q))`: log(q/m) = -log b - softplus(x),
/// log(p/m) = -log a - softplus(-x), and a p / m = 1 / (1 + e^-x). No difference of nearly equal numbers
/// is left where one side dominates.
#[derive(Clone, Copy)]
pub(crate) struct Mixture {
    pub ln_a: f32,
    pub ln_b: f32,
    /// At the peak, where `share` is a p / m and `other` b q / m.
    pub peak: Softplus,
}

impl Mixture {
    /// `a` is the teacher's share.
    pub fn new(a: f64) -> Self {
        Self {
            ln_a: ln_share(a) as f32,
            ln_b: ln_share(1.0 - a) as f32,
            peak: softplus(0.0),
        }
    }

    pub fn at(self, peak: &Peak) -> Self {
        let peak = self.softplus(peak.d as f32);
        Self { peak, ..self }
    }

    /// At `d` = log(p/q).
    #[inline(always)]
    pub fn softplus(&self, d: f32) -> Softplus {
        softplus(d + (self.ln_a - self.ln_b))
    }

    /// b q / m at the peak divided by that at an entry, minus 1, for a small |r|.
    #[inline(always)]
    pub fn growth(&self, r: f32) -> f32 {
        self.peak.share * (r * expm1_over_x(r))
    }
}
