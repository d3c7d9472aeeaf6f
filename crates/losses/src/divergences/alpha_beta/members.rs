//! The members as formulas of an entry. With d = log(p/q), s = alpha + beta and phi_x = (e^(x d) - 1) / x (d where x = 0):
//! `f = q^s (phi_s - phi_alpha) / beta` and `q g = -q^s phi_alpha`, which holds in every limit but beta = 0, where
//! f is the derivative of q^s phi_x in x.

use abkd_host::math::{expm1_over_x, power};

use crate::pointwise::{Entry, Peak, Pointwise, larger, select, smaller};

/// q^s, q^s e^(alpha d) and p^s.
struct Terms {
    student: f32,
    mixed: f32,
    teacher: f32,
}

/// What the members have in common. `ONE` is for s = 1, whose powers are q and p themselves.
#[derive(Clone, Copy)]
struct Powers<const ONE: bool> {
    alpha: f32,
    beta: f32,
    sum: f32,
    inverse_alpha: f32,
    /// 1, except for the released code's limits.
    factor: f32,
    /// (p/q)^alpha and -g at the peak.
    ratio: f32,
    peak: f32,
}

/// `b phi_x(d)` of `base` = b and `moved` = b e^(x d).
#[inline(always)]
pub(in crate::divergences) fn scaled_phi(
    x: f32,
    inverse: f32,
    base: f32,
    moved: f32,
    d: f32,
) -> f32 {
    let near = base * d * expm1_over_x(x * d);
    let far = (moved - base) * inverse;
    // Also picks `near` where x is 0, for which `far` is NaN.
    select((x * d).abs() <= 0.5, near, far)
}

/// Coefficients of `(phi_s - phi_alpha) / (beta d^2)` as a polynomial in d, where it would be a small
/// difference of large numbers: `(s^k + s^(k-1) alpha + .. + alpha^k) / (k + 2)!`.
pub(in crate::divergences) fn series(alpha: f64, s: f64) -> [f32; 7] {
    let (mut power, mut sum, mut factorial) = (1.0, 0.0, 1.0);
    std::array::from_fn(|k| {
        sum = alpha * sum + power;
        power *= s;
        factorial *= (k + 2) as f64;
        (sum / factorial) as f32
    })
}

#[inline(always)]
pub(in crate::divergences) fn polynomial(coefficients: [f32; 7], x: f32) -> f32 {
    let [first @ .., last] = coefficients;
    first.iter().rfold(last, |sum, &c| sum.mul_add(x, c))
}

/// p^alpha q^beta where alpha + beta = 1.
#[inline(always)]
pub(in crate::divergences) fn geometric_mean(alpha: f32, beta: f32, e: Entry) -> f32 {
    let exponent = alpha * smaller(e.d, 0.0) - beta * larger(e.d, 0.0);
    // A positive exponent may saturate where the whole product does not.
    if alpha.min(beta) < 0.0 {
        power(exponent + larger(e.lp, e.lq))
    } else {
        larger(e.p, e.q) * power(exponent)
    }
}

impl<const ONE: bool> Powers<ONE> {
    fn new(alpha: f64, beta: f64, factor: f64) -> Self {
        Self {
            alpha: alpha as f32,
            beta: beta as f32,
            sum: (alpha + beta) as f32,
            inverse_alpha: (1.0 / alpha) as f32,
            factor: factor as f32,
            ratio: 0.0,
            peak: 0.0,
        }
    }

    fn at(self, peak: &Peak) -> Self {
        let alpha = f64::from(self.alpha);
        let phi = if alpha == 0.0 {
            peak.d
        } else {
            (alpha * peak.d).exp_m1() / alpha
        };
        let scale = (f64::from(self.sum - 1.0) * f64::from(peak.entry.lq)).exp();
        Self {
            ratio: peak.ratio(alpha),
            peak: (scale * phi) as f32,
            ..self
        }
    }

    #[inline(always)]
    fn terms<const NEAR: bool>(&self, e: Entry) -> Terms {
        if ONE {
            return Terms {
                student: e.q,
                mixed: geometric_mean(self.alpha, self.beta, e),
                teacher: e.p,
            };
        }
        if !NEAR {
            return Terms {
                student: power(self.sum * e.lq),
                mixed: power(self.alpha.mul_add(e.lp, self.beta * e.lq)),
                teacher: power(self.sum * e.lp),
            };
        }
        // All powers start from the larger probability, whose logarithm has the smaller error, so that they share one error.
        let (above, below) = (larger(e.d, 0.0), smaller(e.d, 0.0));
        let top = self.sum * larger(e.lp, e.lq);
        Terms {
            student: power(self.sum.mul_add(-above, top)),
            mixed: power(top + (self.alpha * below - self.beta * above)),
            teacher: power(self.sum.mul_add(below, top)),
        }
    }

    /// -h without the factor, from `phi` = q^s phi_alpha.
    ///
    /// With X = (s - 1) u, -h is `q^s ratio phi_alpha(r) + q (-g at the peak) (e^X - 1)`, where both parts are small
    /// if X and r are.
    #[inline(always)]
    fn slope<const NEAR: bool>(&self, e: Entry, phi: f32, terms: &Terms) -> f32 {
        let relative = |base: f32| {
            let base = base * self.ratio;
            scaled_phi(self.alpha, self.inverse_alpha, base, terms.mixed, e.r)
        };
        if ONE {
            return relative(e.q);
        }
        let at_peak = self.peak * e.q;
        let far = phi - at_peak;
        if !NEAR {
            return far;
        }
        let x = (self.sum - 1.0) * e.u;
        let near = relative(terms.student) + at_peak * (x * expm1_over_x(x));
        select(x.abs() <= 0.5, near, far)
    }

    fn least(&self, peak: &Peak) -> f32 {
        if ONE {
            return peak.close_to(self.factor * self.ratio);
        }
        // The exponent of a small power has too few digits. With a small s all entries are nearly alike, and their sums have
        // too few digits too.
        if self.alpha.min(self.beta) < 0.0 || self.sum < 0.25 || peak.next() < 1e-7 {
            return f32::INFINITY;
        }
        // An error of log(p/q) enters h with the factor q^s. The normalisers' error is the same for all entries, whose q^s add
        // up to `all` at most.
        let all = (peak.vocab - 1.0).powf((1.0 - self.sum).max(0.0)) * peak.rest.powf(self.sum);
        let powers =
            (peak.close() * peak.next().powf(self.sum)).max(0.02 * peak.rest * all * peak.entry.q);
        let by_d = self.ratio * powers;
        self.factor.abs() * by_d.max(peak.close_to(self.peak))
    }
}

/// A member with beta != 0; also where alpha or s is 0.
#[derive(Clone, Copy)]
pub(in crate::divergences) struct AlphaBeta<const ONE: bool> {
    powers: Powers<ONE>,
    inverse_beta: f32,
    inverse_sum: f32,
}

impl<const ONE: bool> AlphaBeta<ONE> {
    pub(in crate::divergences) fn new(alpha: f64, beta: f64, factor: f64) -> Self {
        Self {
            powers: Powers::new(alpha, beta, factor),
            inverse_beta: (1.0 / beta) as f32,
            inverse_sum: (1.0 / (alpha + beta)) as f32,
        }
    }
}

/// The methods that every member passes on to its [`Powers`].
macro_rules! by_powers {
    () => {
        const BY_D: bool = true;

        #[allow(clippy::needless_update)] // the limits have no other field
        fn at(self, peak: &Peak) -> Self {
            Self {
                powers: self.powers.at(peak),
                ..self
            }
        }

        fn least(&self, peak: &Peak) -> f32 {
            self.powers.least(peak)
        }

        fn left_out(&self) -> f32 {
            self.powers.factor * self.powers.peak
        }
    };
}

impl<const ONE: bool> Pointwise for AlphaBeta<ONE> {
    by_powers!();

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let Powers {
            alpha,
            sum,
            inverse_alpha,
            factor,
            ..
        } = self.powers;
        let d = e.d;
        let terms = self.powers.terms::<NEAR>(e);
        let phi = scaled_phi(alpha, inverse_alpha, terms.student, terms.mixed, d);
        let all = scaled_phi(sum, self.inverse_sum, terms.student, terms.teacher, d);
        let f = (all - phi) * self.inverse_beta;
        (
            factor * f,
            -factor * self.powers.slope::<NEAR>(e, phi, &terms),
        )
    }
}

/// beta = 0, alpha not 0: `f = (d p^alpha - q^alpha phi_alpha) / alpha`.
#[derive(Clone, Copy)]
pub(super) struct BetaZero<const ONE: bool> {
    powers: Powers<ONE>,
}

impl<const ONE: bool> BetaZero<ONE> {
    pub(super) fn new(alpha: f64, factor: f64) -> Self {
        Self {
            powers: Powers::new(alpha, 0.0, factor),
        }
    }
}

impl<const ONE: bool> Pointwise for BetaZero<ONE> {
    by_powers!();

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let Powers {
            alpha,
            inverse_alpha,
            factor,
            ..
        } = self.powers;
        let d = e.d;
        let terms = self.powers.terms::<NEAR>(e);
        let phi = scaled_phi(alpha, inverse_alpha, terms.student, terms.mixed, d);
        let f = (d * terms.teacher - phi) * inverse_alpha;
        (
            factor * f,
            -factor * self.powers.slope::<NEAR>(e, phi, &terms),
        )
    }
}

/// alpha = beta = 0: half the squared log ratio.
#[derive(Clone, Copy)]
pub(super) struct BothZero {
    powers: Powers<false>,
}

impl BothZero {
    pub(super) fn new() -> Self {
        Self {
            powers: Powers::new(0.0, 0.0, 1.0),
        }
    }
}

impl Pointwise for BothZero {
    by_powers!();

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let terms = Terms {
            student: 1.0,
            mixed: 1.0,
            teacher: 1.0,
        };
        (0.5 * e.d * e.d, -self.powers.slope::<NEAR>(e, e.d, &terms))
    }
}

/// The alpha-beta divergence where beta is small: `f = q^s (e^(alpha d) phi_beta - phi_alpha) / s`, equal to [`AlphaBeta`]'s
/// in exact arithmetic, but no small difference is divided by beta.
#[derive(Clone, Copy)]
pub(super) struct SmallBeta {
    powers: Powers<false>,
    inverse_beta: f32,
    inverse_sum: f32,
    /// See [`series`].
    series: [f32; 7],
    /// Largest |d| for which the series is used.
    near: f32,
}

impl SmallBeta {
    pub(super) fn new(alpha: f64, beta: f64) -> Self {
        let sum = alpha + beta;
        Self {
            powers: Powers::new(alpha, beta, 1.0),
            inverse_beta: (1.0 / beta) as f32,
            inverse_sum: (1.0 / sum) as f32,
            series: series(alpha, sum),
            near: (0.5 / alpha.abs().max(sum.abs())) as f32,
        }
    }
}

impl Pointwise for SmallBeta {
    by_powers!();

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        let Powers {
            alpha,
            beta,
            inverse_alpha,
            ..
        } = self.powers;
        let d = e.d;
        let terms = self.powers.terms::<NEAR>(e);
        let phi = scaled_phi(alpha, inverse_alpha, terms.student, terms.mixed, d);
        let rest = scaled_phi(beta, self.inverse_beta, terms.mixed, terms.teacher, d);
        let near = terms.student * d * d * polynomial(self.series, d);
        let far = (rest - phi) * self.inverse_sum;
        (
            select(d.abs() <= self.near, near, far),
            -self.powers.slope::<NEAR>(e, phi, &terms),
        )
    }
}
