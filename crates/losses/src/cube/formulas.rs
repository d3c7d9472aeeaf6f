//! f and h of an entry, see [`pointwise`](crate::pointwise). A new divergence is a branch of [`terms`].

use cubecl::prelude::*;

use super::math::{power, scaled_phi, softplus};

/// Which formulas a kernel is compiled with.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Formula {
    /// `a KL(p, q) + b KL(q, p)`; with c = 0 the first half is a cross-entropy.
    TwoKl,
    /// The same, a and b from the row's entropies: a on the side of the larger one, 1 on the other.
    Bidirectional,
    /// a, b: logarithms of the teacher's and the student's share in the mixture; c: the student's.
    Jensen,
    /// a, b: logarithms of the shares; c = 0 makes it a cross-entropy.
    SkewForward,
    /// a, b: logarithms of the shares.
    SkewReverse,
    TotalVariation,
    /// a: alpha, b: beta, c: their sum, d: factor. `f = q^s (phi_s - phi_alpha) / beta`.
    AlphaBeta,
    /// The same with `f = q^s (e^(alpha d) phi_beta - phi_alpha) / s`: equal for any numbers, but it
    /// keeps its digits where beta is small.
    SmallBeta,
    /// alpha = beta = 0.
    HalfSquare,
}

/// A formula's numbers, unknown when the kernel is compiled.
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
}

#[derive(CubeType)]
pub(super) struct Terms {
    pub f: f32,
    pub h: f32,
}

#[cube]
pub(super) fn terms(e: &Entry, n: &Numbers, #[comptime] formula: Formula) -> Terms {
    match formula {
        Formula::TwoKl | Formula::Bidirectional => {
            let reverse = n.b * e.q * (e.lq - e.lp);
            Terms {
                f: n.a * e.p * (n.c * e.lp - e.lq) + reverse,
                h: reverse - n.a * e.p,
            }
        }
        Formula::Jensen => {
            let m = softplus((e.lp - e.lq) + (n.a - n.b));
            let h = -n.c * e.q * m.up;
            Terms {
                f: h - n.c * e.q * n.b - (1.0f32 - n.c) * e.p * (m.down + n.a),
                h,
            }
        }
        Formula::SkewForward => {
            let m = softplus((e.lp - e.lq) + (n.a - n.b));
            Terms {
                f: e.p * (-m.down - n.a - (1.0f32 - n.c) * e.lp),
                h: e.p * (m.share - 1.0f32),
            }
        }
        Formula::SkewReverse => {
            let m = softplus((e.lp - e.lq) + (n.a - n.b));
            Terms {
                f: -e.q * (m.up + n.b),
                h: e.q * (m.share - m.up),
            }
        }
        Formula::TotalVariation => {
            let gap = e.q - e.p;
            let sign = select(gap < 0.0f32, -1.0f32, select(gap > 0.0f32, 1.0f32, 0.0f32));
            Terms {
                f: 0.5f32 * gap.abs(),
                h: 0.5f32 * e.q * sign,
            }
        }
        Formula::AlphaBeta => {
            let d = e.lp - e.lq;
            let base = power(n.c * e.lq);
            let phi = scaled_phi(n.a, base, power(n.c * e.lq + n.a * d), d);
            let sum = scaled_phi(n.c, base, power(n.c * e.lq + n.c * d), d);
            Terms {
                f: n.d * ((sum - phi) / n.b),
                h: -n.d * phi,
            }
        }
        Formula::SmallBeta => {
            let d = e.lp - e.lq;
            let mixed = power(n.c * e.lq + n.a * d);
            let phi = scaled_phi(n.a, power(n.c * e.lq), mixed, d);
            let rest = scaled_phi(n.b, mixed, power(n.c * e.lq + n.c * d), d);
            Terms {
                f: n.d * ((rest - phi) / n.c),
                h: -n.d * phi,
            }
        }
        Formula::HalfSquare => {
            let d = e.lp - e.lq;
            Terms {
                f: 0.5f32 * d * d,
                h: -d,
            }
        }
    }
}

/// c, where [`terms`] leaves a part c q out of h. That part does not change the gradient as long as all
/// of q is summed, and h is more accurate without it.
#[cube]
pub(super) fn dropped(n: &Numbers, #[comptime] formula: Formula) -> f32 {
    match formula {
        Formula::TwoKl | Formula::Bidirectional => n.b,
        Formula::Jensen => -n.c * n.b,
        Formula::SkewReverse => -n.b,
        _ => 0.0f32.runtime(),
    }
}
