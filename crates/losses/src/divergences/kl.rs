//! The KL divergences of both directions, their sum (Jeffreys 1946), and their weighted sum (Wang et al. 2025, ABKD).

use abkd_host::math::expm1_over_x;
#[cfg(feature = "burn")]
use burn::tensor::Tensor;

use super::{Definition, Form, Parameter, SHARE};
#[cfg(feature = "cube")]
use crate::cube::{Description, Formula};
use crate::pointwise::{self, Entry, Peak, Pointwise, select};
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::{Divergence, Fidelity};

pub(super) static FORWARD: Definition = Definition {
    id: "fkld",
    label: "FKLD",
    golden: Some("fkl"),
    formula: "sum p log(p/q)",
    parameters: &[],
    default_fidelity: Fidelity::Paper,
    row: |job, _, fidelity| job.rows(|_| TwoKl::plain([1.0, 0.0], fidelity)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, fidelity| tensors([1.0, 0.0], pair, fidelity),
        #[cfg(feature = "cube")]
        cube: Some(|_, fidelity| Some(cube([1.0, 0.0], fidelity))),
    },
};

pub(super) static REVERSE: Definition = Definition {
    id: "rkld",
    label: "RKLD",
    golden: Some("rkl"),
    formula: "sum q log(q/p)",
    parameters: &[],
    default_fidelity: Fidelity::Paper,
    row: |job, _, fidelity| job.rows(|_| TwoKl::plain([0.0, 1.0], fidelity)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, fidelity| tensors([0.0, 1.0], pair, fidelity),
        #[cfg(feature = "cube")]
        cube: Some(|_, fidelity| Some(cube([0.0, 1.0], fidelity))),
    },
};

pub(super) static JEFFREYS: Definition = Definition {
    id: "jeffreys",
    label: "Jeffreys",
    golden: None,
    formula: "KL(p,q) + KL(q,p) = sum (p - q) log(p/q)",
    parameters: &[],
    default_fidelity: Fidelity::Paper,
    row: |job, _, fidelity| job.rows(|_| TwoKl::plain([1.0, 1.0], fidelity)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, _, fidelity| tensors([1.0, 1.0], pair, fidelity),
        #[cfg(feature = "cube")]
        cube: Some(|_, fidelity| Some(cube([1.0, 1.0], fidelity))),
    },
};

pub(super) static WEIGHTED: Definition = Definition {
    id: "wsd",
    label: "WSD",
    golden: None,
    formula: "(1 - weight) KL(p,q) + weight KL(q,p)",
    parameters: &[Parameter {
        name: "weight",
        default: 0.5,
        range: SHARE,
    }],
    default_fidelity: Fidelity::Paper,
    row: |job, [weight, _], fidelity| job.rows(|_| TwoKl::plain([1.0 - weight, weight], fidelity)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, [weight, _], fidelity| tensors([1.0 - weight, weight], pair, fidelity),
        #[cfg(feature = "cube")]
        cube: Some(|[weight, _], fidelity| Some(cube([1.0 - weight, weight], fidelity))),
    },
};

impl Divergence {
    /// Forward KL: `sum p log(p/q)`. Official value: the cross-entropy `-sum p log q` (same gradient).
    pub const fn forward_kl() -> Self {
        Self::new(&FORWARD, [0.0; 2])
    }

    /// Reverse KL: `sum q log(q/p)`.
    pub const fn reverse_kl() -> Self {
        Self::new(&REVERSE, [0.0; 2])
    }

    /// Jeffreys' divergence (1946): `KL(p, q) + KL(q, p) = sum (p - q) log(p/q)`. Official: the first half's value is a
    /// cross-entropy.
    pub const fn jeffreys() -> Self {
        Self::new(&JEFFREYS, [0.0; 2])
    }

    /// Weighted sum: `(1 - weight) FKL + weight RKL`, with the reverse half's share in `[0, 1]`. Official: the first half's
    /// value is a cross-entropy.
    pub const fn weighted_kl(weight: f64) -> Self {
        Self::new(&WEIGHTED, [weight, 0.0])
    }
}

/// `forward x KL(p, q) + reverse x KL(q, p)`; with `entropy` = 0 the forward half is the
/// cross-entropy `-sum p log q`.
#[derive(Clone, Copy)]
pub(super) struct TwoKl {
    forward: f32,
    reverse: f32,
    entropy: f32,
    /// p/q at the peak, and -g there.
    ratio: f32,
    peak: f32,
}

impl TwoKl {
    pub(super) fn new(forward: f64, reverse: f64, entropy: f32) -> Self {
        Self {
            forward: forward as f32,
            reverse: reverse as f32,
            entropy,
            ratio: 0.0,
            peak: 0.0,
        }
    }

    /// With both weights; the fidelity chooses KL or cross-entropy for the forward half.
    pub(super) fn plain([forward, reverse]: [f64; 2], fidelity: Fidelity) -> Self {
        Self::new(forward, reverse, fidelity.entropy() as f32)
    }
}

impl Pointwise for TwoKl {
    fn at(self, peak: &Peak) -> Self {
        let ratio = peak.ratio(1.0);
        Self {
            ratio,
            peak: self.forward * ratio + self.reverse * peak.d as f32,
            ..self
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let Entry { p, q, lp, lq, .. } = e;
        let f = self.forward * (p * (self.entropy * lp - lq)) - self.reverse * (q * e.d);
        if !NEAR {
            let back = q * (-self.reverse).mul_add(e.d, self.peak);
            return (f, (-self.forward).mul_add(p, back));
        }
        // p - q ratio
        let as_peak = self.ratio * q;
        let near = as_peak * e.r * expm1_over_x(e.r);
        let gap = select(e.r.abs() <= pointwise::NEAR, near, p - as_peak);
        (f, -(self.forward * gap + self.reverse * (q * e.r)))
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.forward * self.ratio + self.reverse)
    }

    fn left_out(&self) -> f32 {
        self.peak - self.reverse
    }

    fn of_teacher(&self) -> Option<f32> {
        (self.reverse == 0.0).then_some(-self.forward)
    }
}

/// [`TwoKl`] with constant weights as tensor operations.
#[cfg(feature = "burn")]
pub(super) fn tensors(weights: [f64; 2], pair: &Pair, fidelity: Fidelity) -> Terms {
    let [forward, reverse] = weights.map(|weight| pair.constant(weight));
    two_kl(forward, reverse, fidelity.entropy(), pair)
}

/// [`TwoKl`] as tensor operations, with weights `[N, 1]`.
#[cfg(feature = "burn")]
pub(super) fn two_kl(forward: Tensor<2>, reverse: Tensor<2>, entropy: f64, pair: &Pair) -> Terms {
    let (p, q) = (&pair.p, &pair.q);
    let log_ratio = p.log.clone() * entropy - q.log.clone();
    let back = q.prob.clone() * pair.d.clone();
    let h = forward.clone() * pair.gap() + reverse.clone() * (q.prob.clone() * pair.r.clone());
    let g = reverse.clone() * (pair.at_peak.d.clone() - 1.0)
        + forward.clone() * pair.at_peak.ratio.clone();
    Terms {
        f: forward * (p.prob.clone() * log_ratio) - reverse * back,
        h: h.neg(),
        g: g.neg(),
    }
}

/// [`TwoKl`] with constant weights on CubeCL devices.
#[cfg(feature = "cube")]
pub(super) fn cube([forward, reverse]: [f64; 2], fidelity: Fidelity) -> Description {
    (Formula::TwoKl, [forward, reverse, fidelity.entropy(), 0.0])
}
