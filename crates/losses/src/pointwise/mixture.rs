//! Divergences from a mixture of both distributions.

use abkd_host::math::{Softplus, expm1_over_x, ln_tail, softplus};

use super::{Entry, NEAR, Peak, Pointwise, select};

/// A mixture `m = a p + b q`, through `x = log(a p / (b q))`: log(q/m) = -log b - softplus(x),
/// log(p/m) = -log a - softplus(-x), and a p / m = 1 / (1 + e^-x). No difference of nearly equal numbers
/// is left where one side dominates.
#[derive(Clone, Copy)]
struct Mixture {
    ln_a: f32,
    ln_b: f32,
    /// At the peak, where `share` is a p / m and `other` b q / m.
    peak: Softplus,
}

impl Mixture {
    /// `a` is the teacher's share.
    fn new(a: f64) -> Self {
        // finite logarithms at the ends of [0, 1]
        let ln = |x: f64| x.max(1e-30).ln() as f32;
        Self {
            ln_a: ln(a),
            ln_b: ln(1.0 - a),
            peak: softplus(0.0),
        }
    }

    fn at(self, peak: &Peak) -> Self {
        let peak = self.softplus(peak.d as f32);
        Self { peak, ..self }
    }

    /// Of log(p/q).
    #[inline(always)]
    fn softplus(&self, d: f32) -> Softplus {
        softplus(d + (self.ln_a - self.ln_b))
    }

    /// b q / m at the peak over that at an entry, less 1, where `r` is near.
    #[inline(always)]
    fn growth(&self, r: f32) -> f32 {
        self.peak.share * (r * expm1_over_x(r))
    }
}

/// `b KL(q, m) + a KL(p, m)`
#[derive(Clone, Copy)]
pub(crate) struct Jensen {
    mixture: Mixture,
    student: f32,
}

impl Jensen {
    pub(crate) fn new(lambda: f64) -> Self {
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
            gain = select(e.r.abs() <= self::NEAR, near, gain);
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

/// `KL(p, m)`, or the cross-entropy `-sum p log m` with `entropy` = 0. Not for a teacher's share of 0, which makes
/// it KL(p, q).
#[derive(Clone, Copy)]
pub(crate) struct SkewForward {
    mixture: Mixture,
    entropy: f32,
    /// The student's share over the teacher's.
    odds: f32,
}

impl SkewForward {
    pub(crate) fn new(lambda: f64, entropy: f32) -> Self {
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
        // The smaller shares have the digits.
        let far = select(
            peak.share > 0.5,
            peak.other - of.other,
            of.share - peak.share,
        );
        let gain = select(e.r.abs() <= self::NEAR, near, far);
        (f, -self.odds * e.q * gain)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.odds * self.mixture.peak.share)
    }

    fn left_out(&self) -> f32 {
        self.odds * self.mixture.peak.share
    }
}

/// `KL(q, m)`. Less a constant, g is `beyond` of x.
#[derive(Clone, Copy)]
pub(crate) struct SkewReverse {
    mixture: Mixture,
}

/// e / (1 + e) - ln(1 + e) for an e as [`ln_tail`] takes it, without a difference of nearly equal numbers.
#[inline(always)]
fn ratio_beyond_ln(e: f32) -> f32 {
    -(e * e / (1.0 + e) + ln_tail(e))
}

impl SkewReverse {
    pub(crate) fn new(lambda: f64) -> Self {
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
            gain = select(e.r.abs() <= self::NEAR, near, gain);
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
