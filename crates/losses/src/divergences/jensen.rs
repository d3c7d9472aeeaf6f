//! Jensen's divergence, both distributions against their mixture (Agarwal et al. 2024, GKD).

use abkd_host::math::{Softplus, ln_tail};

use super::{Definition, Form, Parameter, SHARE};
#[cfg(feature = "cube")]
use crate::cube::Formula;
#[cfg(feature = "cube")]
use crate::pointwise::ln_share;
use crate::pointwise::{self, Entry, Mixture, Peak, Pointwise, select};
#[cfg(feature = "burn")]
use crate::reference::pair::{expm1, ln_1p};
#[cfg(feature = "burn")]
use crate::reference::{Pair, TensorMixture, Terms};
use crate::{Divergence, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "jensen",
    label: "Jensen's KL",
    golden: Some("js"),
    formula: "lambda KL(q,m) + (1 - lambda) KL(p,m), m = (1 - lambda) p + lambda q",
    parameters: &[Parameter {
        name: "lambda",
        default: 0.1,
        range: SHARE,
    }],
    default_fidelity: Fidelity::Official,
    row: |job, [lambda, _], _| job.rows(|_| Jensen::new(lambda)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, [lambda, _], _| tensors(lambda, pair),
        #[cfg(feature = "cube")]
        cube: Some(|[lambda, _], _| {
            let [a, b] = [1.0 - lambda, lambda].map(ln_share);
            Some((Formula::Jensen, [a, b, lambda, 0.0]))
        }),
    },
};

impl Divergence {
    /// Generalized Jensen: `lambda KL(q, m) + (1 - lambda) KL(p, m)`, `m = (1 - lambda) p + lambda q`, with the weight of q
    /// in `[0, 1]`.
    pub const fn jensen(lambda: f64) -> Self {
        Self::new(&DEFINITION, [lambda, 0.0])
    }
}

/// `b KL(q, m) + a KL(p, m)`
#[derive(Clone, Copy)]
struct Jensen {
    mixture: Mixture,
    student: f32,
}

impl Jensen {
    fn new(lambda: f64) -> Self {
        Self {
            mixture: Mixture::new(1.0 - lambda),
            student: lambda as f32,
        }
    }
}

impl Pointwise for Jensen {
    fn at(self, peak: &Peak) -> Self {
        Self {
            mixture: self.mixture.at(peak),
            ..self
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let m = &self.mixture;
        let Softplus { up, down, .. } = m.softplus(e.d);
        let q = self.student * e.q;
        let f = -q * (up + m.ln_b) - (1.0 - self.student) * e.p * (down + m.ln_a);
        let mut gain = up - m.peak.up;
        if NEAR {
            let growth = m.growth(e.r);
            let near = growth + ln_tail(growth);
            gain = select(e.r.abs() <= pointwise::NEAR, near, gain);
        }
        (f, -q * gain)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.student * self.mixture.peak.up)
    }

    fn left_out(&self) -> f32 {
        self.student * (self.mixture.peak.up + self.mixture.ln_b)
    }
}

#[cfg(feature = "burn")]
fn tensors(lambda: f64, pair: &Pair) -> Terms {
    let m = TensorMixture::new(1.0 - lambda, pair);
    let q = pair.q.prob.clone() * lambda;
    let p = pair.p.prob.clone() * (1.0 - lambda);
    let growth = m.peak.share.clone() * expm1(pair.r.clone());
    let gain = pair.where_near(ln_1p(growth), m.here.up.clone() - m.peak.up.clone());
    Terms {
        f: (q.clone() * (m.here.up + m.ln_b) + p * (m.here.down + m.ln_a)).neg(),
        h: (q * gain).neg(),
        g: (m.peak.up + m.ln_b) * -lambda,
    }
}
