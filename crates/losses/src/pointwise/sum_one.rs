//! AlphaNet's members: the alpha-beta divergence with alpha + beta = 1, both in one pass.

use abkd_host::math::{SATURATE, beyond_linear};

use super::alpha_beta::{geometric_mean, polynomial, scaled_phi, series};
use super::{Entry, Peak, Pointwise, select};

/// A member. `NARROW` is for rows without an extreme probability, see [`reach`](SumOne::reach): there e^(alpha d) is a
/// number that q may be multiplied by, and neither p nor a series is needed.
#[derive(Clone, Copy)]
pub(crate) struct SumOne<const NARROW: bool> {
    alpha: f32,
    inverse_alpha: f32,
    inverse_beta: f32,
    /// See [`series`].
    series: [f32; 7],
    /// (p/q)^alpha and -g at the peak.
    ratio: f32,
    peak: f32,
    /// -alpha d at the peak, and -(p/q)^alpha / alpha there.
    exponent: f32,
    slope: f32,
}

impl<const NARROW: bool> SumOne<NARROW> {
    pub(crate) fn new(alpha: f64) -> Self {
        // of the rounded number, so that the parts of a difference fit
        let alpha = f64::from(alpha as f32);
        let beta = 1.0 - alpha;
        Self {
            alpha: alpha as f32,
            inverse_alpha: (1.0 / alpha) as f32,
            inverse_beta: (1.0 / beta) as f32,
            series: series(alpha, 1.0),
            ratio: 0.0,
            peak: 0.0,
            exponent: 0.0,
            slope: 0.0,
        }
    }

    /// q e^(alpha d)
    #[inline(always)]
    fn mixed(&self, e: Entry) -> f32 {
        geometric_mean(self.alpha, 1.0 - self.alpha, e)
    }

    /// The value, but for a factor: [`scale`](SumOne::scale). An alpha within 0.01 of 1 costs digits.
    #[inline(always)]
    fn value(&self, e: Entry) -> f32 {
        let Entry { p, q, d, .. } = e;
        if NARROW {
            let mixed = beyond_linear(self.alpha * d).0;
            return q * self.alpha.mul_add(beyond_linear(d).0, -mixed);
        }
        let near = q * d * d * polynomial(self.series, d);
        let phi = scaled_phi(self.alpha, self.inverse_alpha, q, self.mixed(e), d);
        let far = ((p - q) - phi) * self.inverse_beta;
        select(d.abs() <= 0.5, near, far)
    }
}

impl SumOne<true> {
    /// Largest -log p and -log q that `NARROW` serves, with log(q/p) at the peak added where that is above 0.
    pub(crate) fn reach(&self) -> f32 {
        // Nothing can be divided by it.
        if self.alpha.abs() < 1e-30 {
            return f32::NEG_INFINITY;
        }
        SATURATE / self.alpha.abs().max(1.0)
    }

    /// What sums of `value` are to be multiplied by; 1 where not `NARROW`.
    pub(crate) fn scale(&self) -> f64 {
        let alpha = f64::from(self.alpha);
        1.0 / (alpha * (1.0 - alpha))
    }
}

/// The gradient alone, which p is not needed for where `NARROW`.
impl<const NARROW: bool> Pointwise for SumOne<NARROW> {
    fn at(self, peak: &Peak) -> Self {
        let alpha = f64::from(self.alpha);
        let phi = if alpha == 0.0 {
            peak.d
        } else {
            (alpha * peak.d).exp_m1() / alpha
        };
        let ratio = peak.ratio(alpha);
        Self {
            ratio,
            peak: phi as f32,
            exponent: (-alpha * peak.d) as f32,
            slope: -ratio * self.inverse_alpha,
            ..self
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        if NARROW {
            let exponent = if NEAR {
                self.alpha * e.r
            } else {
                self.alpha.mul_add(e.d, self.exponent)
            };
            return (0.0, e.q * self.slope * beyond_linear(exponent).1);
        }
        let (base, mixed) = (self.ratio * e.q, self.mixed(e));
        let phi = scaled_phi(self.alpha, self.inverse_alpha, base, mixed, e.r);
        (0.0, -phi)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.ratio)
    }

    fn left_out(&self) -> f32 {
        self.peak
    }

    #[inline(always)]
    fn teacher_is_far(&self) -> bool {
        true
    }
}

/// The values of both members, the second in place of h.
#[derive(Clone, Copy)]
pub(crate) struct BothValues<const NARROW: bool>(pub [SumOne<NARROW>; 2]);

impl<const NARROW: bool> Pointwise for BothValues<NARROW> {
    const HAS_NEAR: bool = false;

    fn at(self, peak: &Peak) -> Self {
        Self(self.0.map(|member| member.at(peak)))
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        (self.0[0].value(e), self.0[1].value(e))
    }

    fn left_out(&self) -> f32 {
        0.0
    }
}
