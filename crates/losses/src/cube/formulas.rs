//! f and h of an entry, see [`pointwise`](crate::pointwise), here always without a difference of nearly equal numbers.
//! A new divergence is a branch of [`terms`] and of [`peak_g`].

use cubecl::prelude::*;

use super::math::{expm1_over_x, ln_tail, power, ratio_beyond_ln, scaled_phi, softplus};

/// Largest |r| for the near formulas: up to it e^r - 1 lies in the range where ln(1 + m) is a polynomial.
const NEAR: f32 = 1.0 / 3.0;

/// Which formulas a kernel is compiled with.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Formula {
    /// `a KL(p, q) + b KL(q, p)`; with c = 0 the first half is a cross-entropy.
    TwoKl,
    /// The same with weights by the row's entropies: a for the side with the larger one, 1 for the other.
    Bidirectional,
    /// The same with weights by the gaps in the teacher's head and tail; a: the head's mass, b: 1 if the token that crosses
    /// it belongs to the tail, and 0 if to the head.
    Adaptive,
    /// a, b: logarithms of the teacher's and the student's share in the mixture; c: the student's share.
    Jensen,
    /// a, b: logarithms of the shares; c = 0 makes it a cross-entropy; d: the student's share over the teacher's.
    SkewForward,
    /// a, b: logarithms of the shares.
    SkewReverse,
    TotalVariation,
    /// a: alpha, b: beta, c: their sum, d: factor. `f = q^s (phi_s - phi_alpha) / beta`.
    AlphaBeta,
    /// The same with `f = q^s (e^(alpha d) phi_beta - phi_alpha) / s`: equal in exact arithmetic, but it keeps its digits
    /// where beta is small.
    SmallBeta,
    /// alpha = beta = 0.
    HalfSquare,
}

impl Formula {
    /// Whether log(p/q) at the peak changes h by more than a common factor.
    pub fn is_by_d(self) -> bool {
        matches!(
            self,
            Formula::AlphaBeta | Formula::SmallBeta | Formula::HalfSquare
        )
    }
}

/// A formula's numbers, passed at run time.
#[derive(CubeLaunch, CubeType)]
pub(super) struct Numbers {
    pub a: f32,
    pub b: f32,
    pub c: f32,
    pub d: f32,
}

/// Probabilities of teacher and student and their logarithms.
#[derive(CubeType)]
pub(super) struct Entry {
    pub p: f32,
    pub q: f32,
    pub lp: f32,
    pub lq: f32,
    /// log(p/q) minus its value at the peak, from the logits alone.
    pub r: f32,
    /// log q minus its value at the peak.
    pub u: f32,
}

/// The student's likeliest entry that is not left out.
#[derive(CubeType)]
pub(super) struct Peak {
    /// log(p/q)
    pub d: f32,
    /// log q
    pub lq: f32,
}

#[derive(CubeType)]
pub(super) struct Terms {
    pub f: f32,
    pub h: f32,
    /// Derivative of h in log(p/q) at the peak, without the part that scales all h alike.
    pub slope: f32,
}

/// f, and h = q (g - g at the peak).
#[cube]
pub(super) fn terms(e: &Entry, m: &Peak, n: &Numbers, #[comptime] formula: Formula) -> Terms {
    let d = e.r + m.d;
    let is_near = e.r.abs() <= NEAR;
    match formula {
        Formula::TwoKl | Formula::Bidirectional | Formula::Adaptive => {
            let gap = relative(1.0f32, e, m, e.q, e.p);
            Terms {
                f: n.a * e.p * (n.c * e.lp - e.lq) - n.b * e.q * d,
                h: -(n.a * gap + n.b * e.q * e.r),
                slope: 0.0f32.runtime(),
            }
        }
        Formula::Jensen => {
            let shift = n.a - n.b;
            let (here, peak) = (softplus(d + shift), softplus(m.d + shift));
            let growth = peak.share * e.r * expm1_over_x(select(is_near, e.r, 0.0f32));
            let near = growth + ln_tail(select(is_near, growth, 0.0f32));
            let gain = select(is_near, near, here.up - peak.up);
            let q = n.c * e.q;
            Terms {
                f: -q * (here.up + n.b) - (1.0f32 - n.c) * e.p * (here.down + n.a),
                h: -q * gain,
                slope: 0.0f32.runtime(),
            }
        }
        Formula::SkewForward => {
            let shift = n.a - n.b;
            let (here, peak) = (softplus(d + shift), softplus(m.d + shift));
            let growth = e.r * expm1_over_x(select(is_near, e.r, 0.0f32));
            // the smaller shares are more accurate
            let far = select(
                peak.share > 0.5f32,
                peak.other - here.other,
                here.share - peak.share,
            );
            let gain = select(is_near, peak.share * here.other * growth, far);
            Terms {
                f: e.p * (-here.down - n.a - (1.0f32 - n.c) * e.lp),
                h: -n.d * e.q * gain,
                slope: 0.0f32.runtime(),
            }
        }
        Formula::SkewReverse => {
            let shift = n.a - n.b;
            let (here, peak) = (softplus(d + shift), softplus(m.d + shift));
            let growth = peak.share * e.r * expm1_over_x(select(is_near, e.r, 0.0f32));
            let growth = select(is_near, growth, 0.0f32);
            let near = ratio_beyond_ln(growth) - peak.share * growth / (1.0f32 + growth);
            let gain = select(is_near, near, here.beyond - peak.beyond);
            Terms {
                f: -e.q * (here.up + n.b),
                h: e.q * gain,
                slope: 0.0f32.runtime(),
            }
        }
        Formula::TotalVariation => Terms {
            f: 0.5f32 * (e.p - e.q).abs(),
            h: e.q * (half_sign(m.d) - half_sign(e.p - e.q)),
            slope: 0.0f32.runtime(),
        },
        Formula::AlphaBeta | Formula::SmallBeta => {
            // All powers start from the larger probability, whose logarithm has the smaller error.
            let (above, below) = (max(d, 0.0f32), min(d, 0.0f32));
            let top = n.c * max(e.lp, e.lq);
            let student = power(top - n.c * above);
            let teacher = power(top + n.c * below);
            let mixed = power(top + (n.a * below - n.b * above));
            let phi = scaled_phi(n.a, student, mixed, d);
            let far = match comptime!(formula) {
                Formula::SmallBeta => (scaled_phi(n.b, mixed, teacher, d) - phi) / n.c,
                _ => (scaled_phi(n.c, student, teacher, d) - phi) / n.b,
            };
            let f = select(
                d.abs() * max(n.a.abs(), n.c.abs()) <= 0.5f32,
                student * d * d * series(n.a, n.c, d),
                far,
            );
            let both = by_powers(e, m, n, student, mixed, phi);
            Terms {
                f: n.d * f,
                h: n.d * both.h,
                slope: n.d * both.slope,
            }
        }
        Formula::HalfSquare => {
            let both = by_powers(e, m, n, 1.0f32.runtime(), 1.0f32.runtime(), d);
            Terms {
                f: 0.5f32 * d * d,
                h: both.h,
                slope: both.slope,
            }
        }
    }
}

/// g at the peak, which contains the constant that h may leave out.
#[cube]
pub(super) fn peak_g(m: &Peak, n: &Numbers, #[comptime] formula: Formula) -> f32 {
    match formula {
        Formula::TwoKl | Formula::Bidirectional | Formula::Adaptive => {
            n.b * (1.0f32 - m.d) - n.a * power(m.d)
        }
        Formula::Jensen => -n.c * (softplus(m.d + (n.a - n.b)).up + n.b),
        Formula::SkewForward => -n.d * softplus(m.d + (n.a - n.b)).share,
        Formula::SkewReverse => softplus(m.d + (n.a - n.b)).beyond - n.b,
        Formula::TotalVariation => -half_sign(m.d),
        Formula::AlphaBeta | Formula::SmallBeta => n.d * alpha_beta_g(m, n),
        Formula::HalfSquare => alpha_beta_g(m, n),
    }
}

/// `(phi_s - phi_alpha) / (beta d^2)`, where it would be a small difference of large numbers: the sum of
/// `(s^k + s^(k-1) alpha + .. + alpha^k) d^k / (k + 2)!`.
#[cube]
fn series(alpha: f32, s: f32, d: f32) -> f32 {
    let mut sum = 0.0f32;
    let mut power_of_s = 1.0f32;
    let mut power_of_d = 1.0f32;
    let mut out = 0.0f32;
    let mut k = 2.0f32;
    for _ in 0..7 {
        sum = alpha * sum + power_of_s;
        power_of_s *= s;
        power_of_d /= k;
        out += sum * power_of_d;
        power_of_d *= d;
        k += 1.0f32;
    }
    out
}

#[cube]
fn half_sign(x: f32) -> f32 {
    select(x < 0.0f32, -0.5f32, select(x > 0.0f32, 0.5f32, 0.0f32))
}

/// `q^s phi_alpha(r)` times (p/q)^alpha at the peak, from `base` = q^s and `moved` = q^s e^(alpha d).
#[cube]
fn relative(alpha: f32, e: &Entry, m: &Peak, base: f32, moved: f32) -> f32 {
    let base = base * power(alpha * m.d);
    let exponent = alpha * e.r;
    // `moved` has its own rounding error, which the difference from the base would amplify.
    let by_base = base * power(min(exponent, 40.0f32));
    scaled_phi(alpha, base, select(exponent < 40.0f32, by_base, moved), e.r)
}

#[cube]
fn alpha_beta_g(m: &Peak, n: &Numbers) -> f32 {
    let one = 1.0f32.runtime();
    -power((n.c - 1.0f32) * m.lq) * scaled_phi(n.a, one, power(n.a * m.d), m.d)
}

/// h of the alpha-beta family, from q^s, q^s e^(alpha d) and `q^s phi_alpha`. With X = (s - 1) u, h is the sum of two parts,
/// both small if X and r are.
#[cube]
fn by_powers(e: &Entry, m: &Peak, n: &Numbers, student: f32, mixed: f32, phi: f32) -> Terms {
    let own = e.q * alpha_beta_g(m, n);
    let x = (n.c - 1.0f32) * e.u;
    let is_near = x.abs() <= 0.5f32;
    let growth = x * expm1_over_x(select(is_near, x, 0.0f32));
    // With s = 1 the power is q itself, which has the smaller error.
    let base = select(n.c == 1.0f32, e.q, student);
    let near = own * growth - relative(n.a, e, m, base, mixed);
    let at_peak = power((n.c - 1.0f32) * m.lq + n.a * m.d);
    Terms {
        f: 0.0f32.runtime(),
        h: select(is_near, near, -phi - own),
        slope: e.q * at_peak - mixed,
    }
}
