//! ToDi (Jung et al. 2025, arXiv 2505.16297): forward and reverse KL, weighed entry by entry.

use abkd_host::math::{Softplus, expm1_over_x, softplus};

use super::{Entry, NEAR, Peak, Pointwise, select};

/// `w p log(p/q) + (1 - w) q log(q/p)`, with `w = sigma(log(p/q))`, a constant for the gradient:
/// `g = -w p/q + (1 - w)(1 - log(p/q))`.
#[derive(Clone, Copy)]
pub(crate) struct ToDi {
    /// log(p/q) and p/q at the peak, w and 1 - w there.
    d: f32,
    ratio: f32,
    share: f32,
    other: f32,
    /// -g there.
    peak: f32,
}

impl ToDi {
    pub(crate) fn new() -> Self {
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
        let near = r.abs() <= self::NEAR;
        // p - q p/q at the peak, and w less that at the peak
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
