//! The two scalar formulas of a divergence: f(p, q), and with g = df/dq an entry's part of the gradient.
//!
//! The gradient in the logits is `q_j (g_j - sum_k q_k g_k)`, so a constant may be subtracted from all g. With the g of the
//! student's likeliest token subtracted, no term `q_j g_j` is larger than twice the largest entry of the gradient, whatever
//! its size was before: the kernel sums `h = q (g - g at the peak)`. Where both distributions are peaked, or nearly equal, h
//! is many orders smaller than q g. So h has two formulas. The fast one is that difference. Where it keeps too few digits,
//! which the size of the results shows, the row is recomputed from r, which is log(p/q) minus its value at the peak, without
//! a difference of nearly equal numbers.

mod mixture;

pub(crate) use mixture::Mixture;
#[cfg(feature = "burn")]
pub(crate) use mixture::ln_share;

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
    /// d minus its value at the peak; with `NEAR` from the logits alone, exact if these are near each other.
    pub r: f32,
    /// log q minus its value at the peak.
    pub u: f32,
}

/// The entry to which the others are relative: the student's likeliest that is not left out.
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

    /// Upper bound of the student's other probabilities.
    pub fn next(&self) -> f32 {
        self.rest.min(self.entry.q)
    }

    /// Terms q g have lost too many digits if their differences are smaller than this fraction of them. Small probabilities
    /// have logarithms with fewer digits.
    pub fn close(&self) -> f32 {
        0.1 * (-0.25 * self.next().ln()).max(1.0)
    }

    /// The same limit as an absolute size, for terms with this g.
    pub fn close_to(&self, g: f32) -> f32 {
        self.close() * g.abs() * self.next()
    }
}

/// Largest |r| for the near formulas: up to it e^r - 1 lies in the range where ln(1 + m) is a polynomial.
pub(crate) const NEAR: f32 = 1.0 / 3.0;

/// f and h of an entry.
pub(crate) trait Pointwise: Copy + Sync {
    /// The same with the constants of a row's peak, which `eval` and all methods below need.
    fn at(self, peak: &Peak) -> Self;

    /// Whether some rows need `NEAR`.
    const HAS_NEAR: bool = true;

    /// Whether log(p/q) at the peak changes h by more than a common factor.
    const BY_D: bool = false;

    /// f and h, the latter without a difference of nearly equal numbers where `NEAR`.
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32);

    /// If the gradient's largest entry in a row is below this, h needs `NEAR`; infinite if it always does.
    fn least(&self, _: &Peak) -> f32 {
        0.0
    }

    /// -g at the peak: h / q of an entry that is left out of the sum, whose own g is 0.
    fn left_out(&self) -> f32;

    /// Whether the teacher's logits are not in the processor's cache yet, so that they are prefetched.
    #[inline(always)]
    fn teacher_is_far(&self) -> bool {
        false
    }

    /// c if the gradient is c (p - q), which needs no sum over the row.
    fn of_teacher(&self) -> Option<f32> {
        None
    }
}

/// Selects by bits: a branch would keep the compiler from vector code.
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
