//! The skewed KL divergences: one distribution against its mixture with the other (Ko et al. 2024, DistiLLM).

use abkd_host::math::{Softplus, expm1_over_x, ln_tail};
#[cfg(feature = "burn")]
use burn::tensor::Tensor;
#[cfg(feature = "burn")]
use burn::tensor::activation::sigmoid;

#[cfg(feature = "burn")]
use super::kl;
use super::kl::TwoKl;
use super::{Definition, Form, Parameter, SHARE};
#[cfg(feature = "cube")]
use crate::cube::Formula;
#[cfg(feature = "cube")]
use crate::pointwise::ln_share;
use crate::pointwise::{self, Entry, Mixture, Peak, Pointwise, select};
#[cfg(feature = "burn")]
use crate::reference::pair::expm1;
#[cfg(feature = "burn")]
use crate::reference::{Pair, TensorMixture, Terms};
use crate::{Divergence, Fidelity};

const LAMBDA: Parameter = Parameter {
    name: "lambda",
    default: 0.1,
    range: SHARE,
};

/// Weights of the plain forward KL, which the skewed one is if the teacher has no share in the mixture.
const PLAIN: [f64; 2] = [1.0, 0.0];

pub(super) static FORWARD: Definition = Definition {
    id: "skew_fkl",
    label: "Skew KL",
    golden: Some("sfkl"),
    formula: "KL(p,m), m = lambda p + (1 - lambda) q",
    parameters: &[LAMBDA],
    default_fidelity: Fidelity::Paper,
    row: |job, [lambda, _], fidelity| {
        if lambda == 0.0 {
            return job.rows(|_| TwoKl::plain(PLAIN, fidelity));
        }
        job.rows(|_| SkewForward::new(lambda, fidelity.entropy() as f32))
    },
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, [lambda, _], fidelity| {
            if lambda == 0.0 {
                return kl::tensors(PLAIN, pair, fidelity);
            }
            skew_forward(lambda, fidelity.entropy(), pair)
        },
        #[cfg(feature = "cube")]
        cube: Some(|[lambda, _], fidelity| {
            if lambda == 0.0 {
                return Some(kl::cube(PLAIN, fidelity));
            }
            let [a, b] = [lambda, 1.0 - lambda].map(ln_share);
            let odds = (1.0 - lambda) / lambda;
            Some((Formula::SkewForward, [a, b, fidelity.entropy(), odds]))
        }),
    },
};

pub(super) static REVERSE: Definition = Definition {
    id: "skew_rkl",
    label: "Skew RKL",
    golden: Some("srkl"),
    formula: "KL(q,m), m = (1 - lambda) p + lambda q",
    parameters: &[LAMBDA],
    default_fidelity: Fidelity::Paper,
    row: |job, [lambda, _], _| job.rows(|_| SkewReverse::new(lambda)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, [lambda, _], _| skew_reverse(lambda, pair),
        #[cfg(feature = "cube")]
        cube: Some(|[lambda, _], _| {
            let [a, b] = [1.0 - lambda, lambda].map(ln_share);
            Some((Formula::SkewReverse, [a, b, 0.0, 0.0]))
        }),
    },
};

impl Divergence {
    /// Skewed forward KL: `KL(p, lambda p + (1 - lambda) q)`, with the weight of p in `[0, 1]`. Official value: the
    /// cross-entropy `-sum p log m`.
    pub const fn skew_forward_kl(lambda: f64) -> Self {
        Self::new(&FORWARD, [lambda, 0.0])
    }

    /// Skewed reverse KL: `KL(q, (1 - lambda) p + lambda q)`, with the weight of q in `[0, 1]`.
    pub const fn skew_reverse_kl(lambda: f64) -> Self {
        Self::new(&REVERSE, [lambda, 0.0])
    }
}

/// `KL(p, m)`, or the cross-entropy `-sum p log m` with `entropy` = 0. Not for a teacher's share of 0, which makes
/// it KL(p, q).
#[derive(Clone, Copy)]
struct SkewForward {
    mixture: Mixture,
    entropy: f32,
    /// The student's share over the teacher's.
    odds: f32,
}

impl SkewForward {
    fn new(lambda: f64, entropy: f32) -> Self {
        Self {
            mixture: Mixture::new(lambda),
            entropy,
            odds: ((1.0 - lambda) / lambda) as f32,
        }
    }
}

impl Pointwise for SkewForward {
    fn at(self, peak: &Peak) -> Self {
        Self {
            mixture: self.mixture.at(peak),
            ..self
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let Mixture { ln_a, peak, .. } = self.mixture;
        let of = self.mixture.softplus(e.d);
        let log_ratio = -of.down - ln_a;
        let f = e.p * (log_ratio - (1.0 - self.entropy) * e.lp);
        if !NEAR {
            let less = self.odds.mul_add(-of.share, self.odds * peak.share);
            return (f, e.q * less);
        }
        let growth = e.r * expm1_over_x(e.r);
        let near = peak.share * of.other * growth;
        // The smaller shares are more accurate.
        let far = select(
            peak.share > 0.5,
            peak.other - of.other,
            of.share - peak.share,
        );
        let gain = select(e.r.abs() <= pointwise::NEAR, near, far);
        (f, -self.odds * e.q * gain)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.odds * self.mixture.peak.share)
    }

    fn left_out(&self) -> f32 {
        self.odds * self.mixture.peak.share
    }
}

/// `KL(q, m)`. Up to a constant, g is `beyond` of x.
#[derive(Clone, Copy)]
struct SkewReverse {
    mixture: Mixture,
}

/// e / (1 + e) - ln(1 + e) for an e in the range of [`ln_tail`], without a difference of nearly equal numbers.
#[inline(always)]
fn ratio_beyond_ln(e: f32) -> f32 {
    -(e * e / (1.0 + e) + ln_tail(e))
}

impl SkewReverse {
    fn new(lambda: f64) -> Self {
        Self {
            mixture: Mixture::new(1.0 - lambda),
        }
    }
}

impl Pointwise for SkewReverse {
    fn at(self, peak: &Peak) -> Self {
        Self {
            mixture: self.mixture.at(peak),
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let m = &self.mixture;
        let Softplus { up, beyond, .. } = m.softplus(e.d);
        let mut gain = beyond - m.peak.beyond;
        if NEAR {
            let growth = m.growth(e.r);
            let near = ratio_beyond_ln(growth) - m.peak.share * growth / (1.0 + growth);
            gain = select(e.r.abs() <= pointwise::NEAR, near, gain);
        }
        (-e.q * (up + m.ln_b), e.q * gain)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.mixture.peak.beyond)
    }

    fn left_out(&self) -> f32 {
        self.mixture.ln_b - self.mixture.peak.beyond
    }
}

#[cfg(feature = "burn")]
fn skew_forward(lambda: f64, entropy: f64, pair: &Pair) -> Terms {
    let m = TensorMixture::new(lambda, pair);
    let odds = (1.0 - lambda) / lambda;
    let log_ratio = m.here.down.clone().neg() - m.ln_a;
    let near = m.peak.share.clone() * m.here.other.clone() * expm1(pair.r.clone());
    // The smaller shares are more accurate.
    let [n, vocab] = pair.d.dims();
    let teacher_leads = m.peak.share.clone().greater_elem(0.5).expand([n, vocab]);
    let by_teacher = m.here.share - m.peak.share.clone();
    let by_student = m.peak.other - m.here.other;
    let far = by_teacher.mask_where(teacher_leads, by_student);
    Terms {
        f: pair.p.prob.clone() * (log_ratio - pair.p.log.clone() * (1.0 - entropy)),
        h: pair.q.prob.clone() * pair.where_near(near, far) * -odds,
        g: m.peak.share * -odds,
    }
}

#[cfg(feature = "burn")]
fn skew_reverse(lambda: f64, pair: &Pair) -> Terms {
    let m = TensorMixture::new(1.0 - lambda, pair);
    // The derivative of `beyond` is -share^2: its integral from the peak, by Gauss's three-point rule.
    let mut slope = Tensor::zeros_like(&pair.r);
    let outer = 0.6f64.sqrt();
    for (point, weight) in [(-outer, 5.0), (0.0, 8.0), (outer, 5.0)] {
        let share = sigmoid(pair.r.clone() * (0.5 + 0.5 * point) + m.x.clone());
        slope = slope + share.square() * (weight / 18.0);
    }
    let near = (slope * pair.r.clone()).neg();
    let gain = pair.where_near(near, m.here.beyond - m.peak.beyond.clone());
    Terms {
        f: (pair.q.prob.clone() * (m.here.up + m.ln_b)).neg(),
        h: pair.q.prob.clone() * gain,
        g: m.peak.beyond - m.ln_b,
    }
}
