//! ToDi (Jung et al. 2025, arXiv 2505.16297): forward and reverse KL, weighted entry by entry.

use abkd_host::math::{Softplus, expm1_over_x, softplus};
#[cfg(feature = "burn")]
use burn::tensor::activation::sigmoid;

use super::{Definition, Form};
use crate::pointwise::{self, Entry, Peak, Pointwise, select};
#[cfg(feature = "burn")]
use crate::reference::pair::expm1;
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::{Divergence, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "todi",
    label: "ToDi",
    golden: None,
    formula: "sum w p log(p/q) + (1 - w) q log(q/p), w = p/(p + q) of each entry",
    parameters: &[],
    default_fidelity: Fidelity::Paper,
    row: |job, _, _| job.rows(|_| ToDi::new()),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, _| tensors(pair),
        #[cfg(feature = "cube")]
        cube: None,
    },
};

impl Divergence {
    /// ToDi: `sum w p log(p/q) + (1 - w) q log(q/p)`, where each entry's `w = sigma(log(p/q)) = p/(p + q)` is constant for
    /// the gradient.
    pub const fn todi() -> Self {
        Self::new(&DEFINITION, [0.0; 2])
    }
}

/// `w p log(p/q) + (1 - w) q log(q/p)`, with `w = sigma(log(p/q))`, a constant for the gradient:
/// `g = -w p/q + (1 - w)(1 - log(p/q))`.
#[derive(Clone, Copy)]
struct ToDi {
    /// log(p/q) and p/q at the peak, w and 1 - w there.
    d: f32,
    ratio: f32,
    share: f32,
    other: f32,
    /// -g there.
    peak: f32,
}

impl ToDi {
    fn new() -> Self {
        Self {
            d: 0.0,
            ratio: 1.0,
            share: 0.5,
            other: 0.5,
            peak: 0.0,
        }
    }
}

impl Pointwise for ToDi {
    const BY_D: bool = true;

    fn at(self, peak: &Peak) -> Self {
        let d = peak.d as f32;
        let ratio = peak.ratio(1.0);
        let Softplus { share, other, .. } = softplus(d);
        Self {
            d,
            ratio,
            share,
            other,
            peak: share * ratio - other * (1.0 - d),
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let Entry { p, q, d, r, .. } = e;
        let Softplus { share, other, .. } = softplus(d);
        let f = d * (share * p - other * q);
        if !NEAR {
            return (f, q * (other * (1.0 - d) + self.peak) - share * p);
        }
        let near = r.abs() <= pointwise::NEAR;
        // p - q (p/q at the peak), and w minus its value at the peak
        let as_peak = self.ratio * q;
        let gap = select(near, as_peak * r * expm1_over_x(r), p - as_peak);
        let by_student = self.other - other;
        let far = select(self.d > 0.0, by_student, share - self.share);
        let growth = share * self.other * (r * expm1_over_x(-r));
        let weight = select(near, growth, far);
        (f, q * (self.d * weight - other * r) - gap)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.share * self.ratio + self.other * (1.0 + self.d.abs()))
    }

    fn left_out(&self) -> f32 {
        self.peak
    }
}

#[cfg(feature = "burn")]
fn tensors(pair: &Pair) -> Terms {
    let (p, q, d) = (&pair.p.prob, &pair.q.prob, &pair.d);
    let (share, other) = (sigmoid(d.clone()), sigmoid(d.clone().neg()));
    let peak = &pair.at_peak.d;
    let (share_peak, other_peak) = (sigmoid(peak.clone()), sigmoid(peak.clone().neg()));
    // w minus its value at the peak; the smaller shares are more accurate.
    let near = share.clone() * other_peak.clone() * expm1(pair.r.clone().neg()).neg();
    let [n, vocab] = d.dims();
    let teacher_leads = peak.clone().greater_elem(0.0).expand([n, vocab]);
    let by_teacher = share.clone() - share_peak.clone();
    let by_student = other_peak.clone() - other.clone();
    let weight = pair.where_near(near, by_teacher.mask_where(teacher_leads, by_student));
    Terms {
        f: d.clone() * (share * p.clone() - other.clone() * q.clone()),
        h: q.clone() * (weight * peak.clone() - other * pair.r.clone()) - pair.gap(),
        g: other_peak * (peak.clone().neg() + 1.0) - share_peak * pair.at_peak.ratio.clone(),
    }
}
