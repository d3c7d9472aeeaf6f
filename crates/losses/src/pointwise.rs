//! The two scalar formulas of each divergence: f(p, q), and with g = df/dq what an entry adds to the gradient.
//!
//! The gradient in the logits is `q_j (g_j - sum_k q_k g_k)`, so a constant may be taken off all g. With the g
//! of the student's likeliest token taken off, no term `q_j g_j` is larger than twice the largest entry of the
//! gradient, whatever its size was before: `h = q (g - g at the peak)` is what the kernel sums. Where both
//! distributions are peaked, or nearly equal, h is many orders smaller than q g. So there are two ways to h. The
//! fast one is that difference. Where too few of its digits are left, which is known by the size of the results,
//! the row is done again from r, which is log(p/q) less that at the peak, without a difference of nearly equal
//! numbers.

mod alpha_beta;
mod mixture;
mod sum_one;
mod todi;

pub(crate) use alpha_beta::{AlphaBeta, BetaZero, BothZero, SmallBeta};
pub(crate) use mixture::{Jensen, SkewForward, SkewReverse};
pub(crate) use sum_one::{BothValues, SumOne};
pub(crate) use todi::ToDi;

use abkd_host::math::{expm1_over_x, ln};

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
    /// log(p/q)
    pub d: f32,
    /// The same less that at the peak; where `NEAR` by the logits alone, exact if these are near each other.
    pub r: f32,
    /// log q less that at the peak.
    pub u: f32,
}

/// The entry that the others are relative to: the student's likeliest that counts.
#[derive(Clone, Copy)]
pub(crate) struct Peak {
    pub entry: Entry,
    /// log(p/q)
    pub d: f64,
    /// Sum of the student's other probabilities.
    pub rest: f32,
    /// Number of entries.
    pub vocab: f32,
}

impl Peak {
    /// (p/q)^x
    pub fn ratio(&self, x: f64) -> f32 {
        (x * self.d).min(f64::from(abkd_host::math::SATURATE)).exp() as f32
    }

    /// No other of the student's probabilities is larger.
    pub fn next(&self) -> f32 {
        self.rest.min(self.entry.q)
    }

    /// Terms q g of entries whose differences are smaller than this part of them have lost too many digits. Their
    /// logarithms have fewer where they are small.
    pub fn close(&self) -> f32 {
        0.1 * (-0.25 * self.next().ln()).max(1.0)
    }

    /// How large such terms of a g are.
    pub fn close_to(&self, g: f32) -> f32 {
        self.close() * g.abs() * self.next()
    }
}

/// Largest |r| that is near: e^r - 1 then lies where ln(1 + m) is a polynomial.
const NEAR: f32 = 1.0 / 3.0;

/// f and h of an entry.
pub(crate) trait Pointwise: Copy + Sync {
    /// The same with what a row's peak gives, on which `eval` and all below build.
    fn at(self, peak: &Peak) -> Self;

    /// Whether there are rows that want `NEAR`.
    const HAS_NEAR: bool = true;

    /// Whether h depends on log(p/q) at the peak by more than a factor.
    const BY_D: bool = false;

    /// f and h, the latter without a difference of nearly equal numbers where `NEAR`.
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32);

    /// The gradient's largest entry in a row must not be below this, or h wants `NEAR`; infinite if it does anyway.
    fn least(&self, _: &Peak) -> f32 {
        0.0
    }

    /// Less g at the peak: h / q of an entry that is left out of the sum, whose own g is 0.
    fn left_out(&self) -> f32;

    /// Whether the teacher's logits are not in a cache yet.
    #[inline(always)]
    fn teacher_is_far(&self) -> bool {
        false
    }

    /// c, where c (p - q) is the gradient, which then needs no sum over the row.
    fn of_teacher(&self) -> Option<f32> {
        None
    }
}

/// By bits: a branch would keep the compiler from vector code.
#[inline(always)]
fn select(condition: bool, yes: f32, no: f32) -> f32 {
    let mask = u32::from(condition).wrapping_neg();
    f32::from_bits((yes.to_bits() & mask) | (no.to_bits() & !mask))
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// `forward x KL(p, q) + reverse x KL(q, p)`; with `entropy` = 0 the forward half is the
/// cross-entropy `-sum p log q`.
#[derive(Clone, Copy)]
pub(crate) struct TwoKl {
    forward: f32,
    reverse: f32,
    entropy: f32,
    /// p/q at the peak, and -g there.
    ratio: f32,
    peak: f32,
}

impl TwoKl {
    pub(crate) fn new(forward: f64, reverse: f64, entropy: f32) -> Self {
        Self {
            forward: forward as f32,
            reverse: reverse as f32,
            entropy,
            ratio: 0.0,
            peak: 0.0,
        }
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
        let gap = select(e.r.abs() <= self::NEAR, near, p - as_peak);
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

#[derive(Clone, Copy)]
pub(crate) struct TotalVariation {
    /// Half the sign of log(p/q) at the peak.
    peak: f32,
}

impl TotalVariation {
    pub(crate) fn new() -> Self {
        Self { peak: 0.0 }
    }
}

/// Of any number that is not next to nothing.
#[inline(always)]
fn half_sign(x: f32) -> f32 {
    smaller(larger(x * 1e38, -0.5), 0.5)
}

impl Pointwise for TotalVariation {
    // What is left of a difference of signs is exact.
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

/// -x log(x + 1e-9), the published code's entropy term.
#[inline(always)]
pub(crate) fn entropy_term(x: f32) -> f32 {
    -x * ln(x + 1e-9)
}
