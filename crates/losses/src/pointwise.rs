//! The two scalar formulas of each divergence: f(p, q) and h = q df/dq.

use abkd_host::math::{SATURATE, beyond_linear, expm1_over_x, ln, power, softplus};

/// One entry of a row: probabilities and their logarithms.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// Teacher.
    pub p: f32,
    /// Student.
    pub q: f32,
    /// log p
    pub lp: f32,
    /// log q
    pub lq: f32,
}

/// f and h of an entry.
pub(crate) trait Pointwise: Copy + Sync {
    fn eval(&self, e: Entry) -> (f32, f32);

    /// Whether the teacher's logits are not in a cache yet.
    #[inline(always)]
    fn teacher_is_far(&self) -> bool {
        false
    }

    /// c, where `eval` leaves a part c q out of h. That part does not change the gradient as long as
    /// all of q is summed, and h is more accurate without it.
    fn dropped(&self) -> f32 {
        0.0
    }

    /// c, where h is c p: then c (p - q) is the gradient, and needs no sum over the row.
    fn of_teacher(&self) -> Option<f32> {
        None
    }
}

/// The cross-entropy `-sum p log q`: forward KL without the teacher's entropy.
#[derive(Clone, Copy)]
pub(crate) struct CrossEntropy;

impl Pointwise for CrossEntropy {
    #[inline(always)]
    fn eval(&self, Entry { p, lq, .. }: Entry) -> (f32, f32) {
        (-p * lq, -p)
    }

    fn of_teacher(&self) -> Option<f32> {
        Some(-1.0)
    }
}

/// `forward x KL(p, q) + reverse x KL(q, p)`; with `entropy` = 0 the forward half is the
/// cross-entropy `-sum p log q`.
#[derive(Clone, Copy)]
pub(crate) struct TwoKl {
    pub forward: f32,
    pub reverse: f32,
    pub entropy: f32,
}

impl Pointwise for TwoKl {
    #[inline(always)]
    fn eval(&self, Entry { p, q, lp, lq }: Entry) -> (f32, f32) {
        let reverse = q * (lq - lp);
        (
            self.forward * (p * (self.entropy * lp - lq)) + self.reverse * reverse,
            self.reverse * reverse - self.forward * p,
        )
    }

    fn dropped(&self) -> f32 {
        self.reverse
    }

    fn of_teacher(&self) -> Option<f32> {
        (self.reverse == 0.0).then_some(-self.forward)
    }
}

/// A mixture `m = a p + b q`, through `x = log(a p / (b q))`: log(q/m) = -log b - softplus(x),
/// log(p/m) = -log a - softplus(-x), and b q / m = 1 / (1 + e^x). No difference of nearly equal numbers
/// is left where one side dominates.
#[derive(Clone, Copy)]
pub(crate) struct Mixture {
    ln_a: f32,
    ln_b: f32,
}

impl Mixture {
    /// `a` is the teacher's share.
    pub(crate) fn new(a: f64) -> Self {
        // finite logarithms at the ends of [0, 1]
        let ln = |x: f64| x.max(1e-30).ln() as f32;
        Self {
            ln_a: ln(a),
            ln_b: ln(1.0 - a),
        }
    }

    #[inline(always)]
    fn softplus(self, e: Entry) -> (f32, f32, f32) {
        softplus((e.lp - e.lq) + (self.ln_a - self.ln_b))
    }
}

/// `b KL(q, m) + a KL(p, m)`
#[derive(Clone, Copy)]
pub(crate) struct Jensen {
    pub mixture: Mixture,
    pub student: f32,
}

impl Pointwise for Jensen {
    #[inline(always)]
    fn eval(&self, e: Entry) -> (f32, f32) {
        let (up, down, _) = self.mixture.softplus(e);
        let h = -self.student * e.q * up;
        let student = h - self.student * e.q * self.mixture.ln_b;
        (
            student - (1.0 - self.student) * e.p * (down + self.mixture.ln_a),
            h,
        )
    }

    fn dropped(&self) -> f32 {
        -self.student * self.mixture.ln_b
    }
}

/// `KL(p, m)`, or the cross-entropy `-sum p log m` with `entropy` = 0.
#[derive(Clone, Copy)]
pub(crate) struct SkewForward {
    pub mixture: Mixture,
    pub entropy: f32,
}

impl Pointwise for SkewForward {
    #[inline(always)]
    fn eval(&self, e: Entry) -> (f32, f32) {
        let (_, down, teacher) = self.mixture.softplus(e);
        let log_ratio = -down - self.mixture.ln_a;
        (
            e.p * (log_ratio - (1.0 - self.entropy) * e.lp),
            -e.p * (1.0 - teacher),
        )
    }
}

/// `KL(q, m)`
#[derive(Clone, Copy)]
pub(crate) struct SkewReverse {
    pub mixture: Mixture,
}

impl Pointwise for SkewReverse {
    #[inline(always)]
    fn eval(&self, e: Entry) -> (f32, f32) {
        let (up, _, teacher) = self.mixture.softplus(e);
        (-e.q * (up + self.mixture.ln_b), e.q * (teacher - up))
    }

    fn dropped(&self) -> f32 {
        -self.mixture.ln_b
    }
}

#[derive(Clone, Copy)]
pub(crate) struct TotalVariation;

impl Pointwise for TotalVariation {
    #[inline(always)]
    fn eval(&self, Entry { p, q, .. }: Entry) -> (f32, f32) {
        let sign = if q > p {
            1.0
        } else if q < p {
            -1.0
        } else {
            0.0
        };
        (0.5 * (p - q).abs(), 0.5 * q * sign)
    }
}

/// The alpha-beta divergence. With d = log(p/q), s = alpha + beta and phi_x = (e^(x d) - 1) / x
/// (d where x = 0): `f = q^s (phi_s - phi_alpha) / beta` and `h = -q^s phi_alpha`, which holds in
/// every limit but beta = 0, where f is the derivative of q^s phi_x in x.
#[derive(Clone, Copy)]
pub(crate) struct AlphaBeta {
    alpha: f32,
    sum: f32,
    /// 1 but for the released code's limits.
    factor: f32,
    inverse_alpha: f32,
    inverse_beta: f32,
    inverse_sum: f32,
}

/// `q^s phi_x(d)` of `base` = q^s and `moved` = q^s e^(x d).
#[inline(always)]
fn scaled_phi(x: f32, inverse: f32, base: f32, moved: f32, d: f32) -> f32 {
    let near = base * d * expm1_over_x(x * d);
    let far = (moved - base) * inverse;
    // Also picks `near` where x is 0, whose `far` is not a number.
    select((x * d).abs() <= 0.5, near, far)
}

/// By bits: a branch would keep the compiler from vector code.
#[inline(always)]
fn select(condition: bool, yes: f32, no: f32) -> f32 {
    let mask = u32::from(condition).wrapping_neg();
    f32::from_bits((yes.to_bits() & mask) | (no.to_bits() & !mask))
}

/// Coefficients of `(phi_s - phi_alpha) / (beta d^2)` as a polynomial in d, where it would be a small
/// difference of large numbers: `(s^k + s^(k-1) alpha + .. + alpha^k) / (k + 2)!`.
fn series(alpha: f64, s: f64) -> [f32; 7] {
    let (mut power, mut sum, mut factorial) = (1.0, 0.0, 1.0);
    std::array::from_fn(|k| {
        sum = alpha * sum + power;
        power *= s;
        factorial *= (k + 2) as f64;
        (sum / factorial) as f32
    })
}

#[inline(always)]
fn polynomial(coefficients: [f32; 7], x: f32) -> f32 {
    let [first @ .., last] = coefficients;
    first.iter().rfold(last, |sum, &c| sum.mul_add(x, c))
}

impl AlphaBeta {
    pub(crate) fn new(alpha: f32, beta: f32, factor: f32) -> Self {
        let sum = alpha + beta;
        Self {
            alpha,
            sum,
            factor,
            inverse_alpha: 1.0 / alpha,
            inverse_beta: 1.0 / beta,
            inverse_sum: 1.0 / sum,
        }
    }
}

impl Pointwise for AlphaBeta {
    #[inline(always)]
    fn eval(&self, Entry { lp, lq, .. }: Entry) -> (f32, f32) {
        let (d, s) = (lp - lq, self.sum);
        let base = power(s * lq);
        let mixed = power(s * lq + self.alpha * d);
        let teacher = power(s * lq + s * d);
        let phi = scaled_phi(self.alpha, self.inverse_alpha, base, mixed, d);
        let f = (scaled_phi(s, self.inverse_sum, base, teacher, d) - phi) * self.inverse_beta;
        (self.factor * f, -self.factor * phi)
    }
}

/// The alpha-beta divergence with alpha + beta = 1, AlphaNet's member: powers of the sum are p and q
/// themselves. `NARROW` is for rows without an extreme probability, see [`reach`](SumOne::reach): there
/// e^(alpha d) is a number that q may be multiplied by, and neither a power of its own nor a series is
/// needed.
#[derive(Clone, Copy)]
pub(crate) struct SumOne<const NARROW: bool> {
    alpha: f32,
    inverse_alpha: f32,
    inverse_beta: f32,
    /// See [`series`].
    series: [f32; 7],
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
        }
    }

    #[inline(always)]
    fn phi(&self, Entry { q, lp, lq, .. }: Entry) -> f32 {
        let d = lp - lq;
        if NARROW {
            return q * (beyond_linear(self.alpha * d).1 * self.inverse_alpha);
        }
        let mixed = power(self.alpha.mul_add(d, lq));
        scaled_phi(self.alpha, self.inverse_alpha, q, mixed, d)
    }

    /// The value, but for a factor: [`scale`](SumOne::scale). An alpha within 0.01 of 1 costs digits.
    #[inline(always)]
    fn value(&self, e: Entry) -> f32 {
        let d = e.lp - e.lq;
        if NARROW {
            let mixed = beyond_linear(self.alpha * d).0;
            return e.q * self.alpha.mul_add(beyond_linear(d).0, -mixed);
        }
        let near = e.q * d * d * polynomial(self.series, d);
        let far = ((e.p - e.q) - self.phi(e)) * self.inverse_beta;
        select(d.abs() <= 0.5, near, far)
    }
}

impl SumOne<true> {
    /// Largest -log p and -log q that `NARROW` serves.
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

/// The gradient alone, which p is not needed for.
impl<const NARROW: bool> Pointwise for SumOne<NARROW> {
    #[inline(always)]
    fn eval(&self, e: Entry) -> (f32, f32) {
        (0.0, -self.phi(e))
    }

    #[inline(always)]
    fn teacher_is_far(&self) -> bool {
        true
    }
}

/// The values of both members of AlphaNet, the second in place of h.
#[derive(Clone, Copy)]
pub(crate) struct BothValues<const NARROW: bool>(pub [SumOne<NARROW>; 2]);

impl<const NARROW: bool> Pointwise for BothValues<NARROW> {
    #[inline(always)]
    fn eval(&self, e: Entry) -> (f32, f32) {
        (self.0[0].value(e), self.0[1].value(e))
    }
}

/// beta = 0, alpha not 0: `f = (d p^alpha - q^alpha phi_alpha) / alpha`.
#[derive(Clone, Copy)]
pub(crate) struct BetaZero {
    pub alpha: f32,
    pub factor: f32,
}

impl Pointwise for BetaZero {
    #[inline(always)]
    fn eval(&self, Entry { lp, lq, .. }: Entry) -> (f32, f32) {
        let d = lp - lq;
        let base = power(self.alpha * lq);
        let teacher = power(self.alpha * lq + self.alpha * d);
        let phi = scaled_phi(self.alpha, 1.0 / self.alpha, base, teacher, d);
        let f = (d * power(self.alpha * lp) - phi) / self.alpha;
        (self.factor * f, -self.factor * phi)
    }
}

/// alpha = beta = 0: half the squared log ratio.
#[derive(Clone, Copy)]
pub(crate) struct BothZero;

impl Pointwise for BothZero {
    #[inline(always)]
    fn eval(&self, Entry { lp, lq, .. }: Entry) -> (f32, f32) {
        let d = lp - lq;
        (0.5 * d * d, -d)
    }
}

/// The alpha-beta divergence where beta is small: `f = q^s (e^(alpha d) phi_beta - phi_alpha) / s`, equal
/// to [`AlphaBeta`]'s for any numbers, but no small difference is divided by beta.
#[derive(Clone, Copy)]
pub(crate) struct SmallBeta {
    alpha: f32,
    beta: f32,
    sum: f32,
    inverse_alpha: f32,
    inverse_beta: f32,
    inverse_sum: f32,
    /// See [`series`].
    series: [f32; 7],
    /// Largest |d| that the series holds for.
    near: f32,
}

impl SmallBeta {
    pub(crate) fn new(alpha: f64, beta: f64) -> Self {
        let sum = alpha + beta;
        Self {
            alpha: alpha as f32,
            beta: beta as f32,
            sum: sum as f32,
            inverse_alpha: (1.0 / alpha) as f32,
            inverse_beta: (1.0 / beta) as f32,
            inverse_sum: (1.0 / sum) as f32,
            series: series(alpha, sum),
            near: (0.5 / alpha.abs().max(sum.abs())) as f32,
        }
    }
}

impl Pointwise for SmallBeta {
    #[inline(always)]
    fn eval(&self, Entry { lp, lq, .. }: Entry) -> (f32, f32) {
        let (d, s) = (lp - lq, self.sum);
        let base = power(s * lq);
        let mixed = power(s * lq + self.alpha * d);
        let teacher = power(s * lq + s * d);
        let phi = scaled_phi(self.alpha, self.inverse_alpha, base, mixed, d);
        let rest = scaled_phi(self.beta, self.inverse_beta, mixed, teacher, d);
        let near = base * d * d * polynomial(self.series, d);
        let far = (rest - phi) * self.inverse_sum;
        (select(d.abs() <= self.near, near, far), -phi)
    }
}

/// -x log(x + 1e-9), the published code's entropy term.
#[inline(always)]
pub(crate) fn entropy_term(x: f32) -> f32 {
    -x * ln(x + 1e-9)
}
