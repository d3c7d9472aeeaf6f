//! The two scalar formulas of a divergence: f(p, q), and with g = df/dq what an entry adds to the gradient.
//!
//! The gradient in the logits is `q_j (g_j - sum_k q_k g_k)`, so a constant may be taken off all g. With the g
//! of the student's likeliest token taken off, no term `q_j g_j` is larger than twice the largest entry of the
//! gradient, whatever its size was before: `h = q (g - g at the peak)` is what the kernel sums. Where both
//! distributions are peaked, or nearly equal, h is many orders smaller than q g. So there are two ways to h. The
//! fast one is that difference. Where too few of its digits are left, which is known by the size of the results,
//! the row is done again from r, which is log(p/q) less that at the peak, without a difference of nearly equal
//! numbers.

mod mixture;

pub(crate) use mixture::{Mixture, ln_share};

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
pub(crate) const NEAR: f32 = 1.0 / 3.0;

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
pub(crate) fn select(condition: bool, yes: f32, no: f32) -> f32 {
    let mask = u32::from(condition).wrapping_neg();
    f32::from_bits((yes.to_bits() & mask) | (no.to_bits() & !mask))
}

#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
pub(crate) fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}
