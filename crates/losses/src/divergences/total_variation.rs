//! Total variation.

use super::{Definition, Form};
#[cfg(feature = "cube")]
use crate::cube::Formula;
use crate::pointwise::{Entry, Peak, Pointwise, larger, smaller};
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::{Divergence, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "tvd",
    label: "TVD",
    golden: None,
    formula: "0.5 sum |p - q|",
    parameters: &[],
    default_fidelity: Fidelity::Paper,
    row: |job, _, _| job.rows(|_| TotalVariation::new()),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, _| tensors(pair),
        #[cfg(feature = "cube")]
        cube: Some(|_, _| Some((Formula::TotalVariation, [0.0; 4]))),
    },
};

impl Divergence {
    /// Total variation: `0.5 sum |p - q|`, with gradient 0 where p = q.
    pub const fn total_variation() -> Self {
        Self::new(&DEFINITION, [0.0; 2])
    }
}

#[derive(Clone, Copy)]
struct TotalVariation {
    /// Half the sign of log(p/q) at the peak.
    peak: f32,
}

impl TotalVariation {
    fn new() -> Self {
        Self { peak: 0.0 }
    }
}

/// Half the sign of x, for |x| above 1e-38.
#[inline(always)]
fn half_sign(x: f32) -> f32 {
    smaller(larger(x * 1e38, -0.5), 0.5)
}

impl Pointwise for TotalVariation {
    // A difference of signs is exact.
    const HAS_NEAR: bool = false;

    fn at(self, peak: &Peak) -> Self {
        Self {
            peak: half_sign(peak.d as f32),
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, Entry { p, q, .. }: Entry) -> (f32, f32) {
        let gap = p - q;
        (0.5 * gap.abs(), q * (self.peak - half_sign(gap)))
    }

    fn left_out(&self) -> f32 {
        self.peak
    }
}

#[cfg(feature = "burn")]
fn tensors(pair: &Pair) -> Terms {
    let gap = pair.q.prob.clone() - pair.p.prob.clone();
    let g = pair.at_peak.d.clone().sign() * -0.5;
    Terms {
        f: gap.clone().abs() * 0.5,
        h: pair.q.prob.clone() * (gap.sign() * 0.5 - g.clone()),
        g,
    }
}
