//! Elementary functions without branches, so that a loop over them becomes vector code. They use fused multiply-adds: on a
//! processor without these (x86-64 before 2013) the results are right, but slow.

/// Largest exponent of a power; beyond it powers saturate.
pub const SATURATE: f32 = 60.0;

/// e^x within 2e-7 relative for x in [-87, 88]; clamped to that range outside (so e^-inf is 1e-38).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp_in_range(x.clamp(-87.0, 88.0))
}

/// e^`exponent` as [`exp`], but saturated at [`SATURATE`].
#[inline(always)]
pub fn power(exponent: f32) -> f32 {
    exp_in_range(exponent.clamp(-87.0, SATURATE))
}

/// e^(x - shift), for x not above `shift` + 88 (not checked): 1 at `shift`, 0 below `shift` - 88 (-inf too), NaN for NaN.
#[inline(always)]
pub fn shifted_exp(x: f32, shift: f32) -> f32 {
    let x = x - shift;
    // This order of the comparison keeps NaN. The power of 2 in e^-88 has the exponent -127, whose bits are those of 0.
    exp_in_range(if -88.0 > x { -88.0 } else { x })
}

/// e^x / 2^exponent, for x not above 88 + `exponent` ln 2 (not checked): 0 where the quotient is below e^-88 (-inf too),
/// NaN for NaN. Unlike in [`shifted_exp`] nothing is rounded before the exponential, for |x| up to 1e4 and an integer
/// exponent of the same order.
#[inline(always)]
pub fn scaled_exp(x: f32, exponent: f32) -> f32 {
    // At `lowest` the power of 2 is 2^-127, whose bits are those of 0. The comparison keeps NaN, as above.
    let lowest = (exponent - 127.0) * std::f32::consts::LN_2;
    exp_over(if lowest > x { lowest } else { x }, exponent)
}

/// 1.5 x 2^23, whose addition rounds to an integer, plus the bias of an exponent, so that the integer's bits only need a
/// shift to be a power of 2.
const ROUND: f32 = 12_582_912.0 + 127.0;

/// (e^r - 1 - r) / r^2 for |r| up to ln 2 / 2 (Cephes `expf`).
#[inline(always)]
fn exp_tail(r: f32) -> f32 {
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    p.mul_add(r, 0.5)
}

/// e^u - 1 - u without a difference of nearly equal numbers, and e^u - 1; for |u| up to [`SATURATE`].
#[inline(always)]
pub fn beyond_linear(u: f32) -> (f32, f32) {
    // As [`power`], but 1 and u are subtracted before the power of 2 is multiplied in: where that is 1, they cancel exactly.
    let shifted = u.mul_add(std::f32::consts::LOG2_E, ROUND);
    let r = (shifted - ROUND).mul_add(-std::f32::consts::LN_2, u);
    let p = exp_tail(r) * (r * r);
    let scale = f32::from_bits(shifted.to_bits() << 23);
    let linear = r.mul_add(scale, scale - 1.0);
    (
        p.mul_add(scale, linear - u),
        (p + r).mul_add(scale, scale - 1.0),
    )
}

/// e^x for x in [-88, 88].
#[inline(always)]
fn exp_in_range(x: f32) -> f32 {
    exp_over(x, 0.0)
}

/// e^x / 2^exponent for quotients in [e^-88, e^88].
#[inline(always)]
fn exp_over(x: f32, exponent: f32) -> f32 {
    let round = ROUND - exponent;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, round);
    let n = shifted - round;
    // ln 2 in two parts (Cody and Waite)
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = exp_tail(r).mul_add(r * r, r);
    let scale = f32::from_bits(shifted.to_bits() << 23);
    p.mul_add(scale, scale)
}

/// (e^x - 1) / x for |x| at most 0.5, within 2e-7: the Taylor polynomial economized.
#[inline(always)]
pub fn expm1_over_x(x: f32) -> f32 {
    let p = 1.997_905_6e-4f32;
    let p = p.mul_add(x, 1.399_778_3e-3);
    let p = p.mul_add(x, 8.333_118e-3);
    let p = p.mul_add(x, 4.166_530_4e-2);
    let p = p.mul_add(x, 1.0 / 6.0);
    let p = p.mul_add(x, 0.500_000_06);
    p.mul_add(x, 1.0)
}

/// ln x within 2e-7 absolute for normal positive x (Cephes `logf`).
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    // x = 2^e m with m in [sqrt(1/2), sqrt(2))
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let e = ((shifted as i32) >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    e.mul_add(std::f32::consts::LN_2, ln_of_1_plus(m))
}

/// ln(1 + m) for m in [sqrt(1/2) - 1, sqrt(2) - 1).
#[inline(always)]
fn ln_of_1_plus(m: f32) -> f32 {
    m + ln_tail(m)
}

/// ln(1 + m) - m for m in [sqrt(1/2) - 1, sqrt(2) - 1), without a difference of nearly equal numbers.
#[inline(always)]
pub fn ln_tail(m: f32) -> f32 {
    let z = m * m;
    let p = 7.037_683_6e-2f32;
    let p = p.mul_add(m, -1.151_461e-1);
    let p = p.mul_add(m, 1.167_699_9e-1);
    let p = p.mul_add(m, -1.242_014_1e-1);
    let p = p.mul_add(m, 1.424_932_3e-1);
    let p = p.mul_add(m, -1.666_805_8e-1);
    let p = p.mul_add(m, 2.000_071_5e-1);
    let p = p.mul_add(m, -2.499_999_4e-1);
    let p = p.mul_add(m, 3.333_333e-1);
    z * m.mul_add(p, -0.5)
}

/// Softplus and sigmoid at x, the parts of a mixture of two probabilities.
#[derive(Clone, Copy)]
pub struct Softplus {
    /// ln(1 + e^x)
    pub up: f32,
    /// ln(1 + e^-x)
    pub down: f32,
    /// 1 / (1 + e^-x)
    pub share: f32,
    /// 1 / (1 + e^x)
    pub other: f32,
    /// `share - up`, which is near -e^2x / 2 where both are near e^x.
    pub beyond: f32,
}

/// [`Softplus`] at x, each field within 4e-7 relative (`beyond`: 3e-6, because it is a difference for larger `e`).
#[inline(always)]
pub fn softplus(x: f32) -> Softplus {
    let e = exp(-x.abs());
    // ln(1 + e) of an e in [0, 1]
    let big = e > std::f32::consts::SQRT_2 - 1.0;
    let m = if big { (e - 1.0) * 0.5 } else { e };
    let tail = ln_tail(m);
    let ln = m + tail + if big { std::f32::consts::LN_2 } else { 0.0 };
    let larger = 1.0 / (1.0 + e);
    let smaller = e * larger;
    let (up, down) = (x.max(0.0) + ln, (-x).max(0.0) + ln);
    let share = if x >= 0.0 { larger } else { smaller };
    Softplus {
        up,
        down,
        share,
        other: if x >= 0.0 { smaller } else { larger },
        beyond: if big | (x >= 0.0) {
            share - up
        } else {
            -e.mul_add(smaller, tail)
        },
    }
}

/// 1 / (1 + e^-x); NaN for NaN (which the clamp in [`exp`] would hide).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x)) + x * 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elementary_functions_are_accurate() {
        for i in -86_900..87_900 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2e-7, "exp {x}");
        }
        for x in [0.0, -1e-3, -1.0, -30.0, -87.0] {
            let exact = f64::from(x).exp();
            assert!((f64::from(shifted_exp(5.0 + x, 5.0)) / exact - 1.0).abs() < 2e-6);
        }
        assert_eq!(shifted_exp(5.0, 5.0), 1.0);
        for x in [-83.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(shifted_exp(x, 5.0), 0.0);
        }
        assert!(shifted_exp(f32::NAN, 5.0).is_nan());
        // x above the shift
        assert!((f64::from(shifted_exp(21.0, 5.0)) / 16f64.exp() - 1.0).abs() < 2e-6);
        // divided by powers of 2, which adds no rounding error
        for x in [0.0, 39.9, -39.9, 1e2 / 3.0, 5e3 / 7.0, -5e3 / 7.0, 9999.9] {
            for exponent in [-40.0, 0.0, 60.0, 100.0] {
                let exponent = exponent + (x * std::f32::consts::LOG2_E).round();
                let exact = f64::from(x) - f64::from(exponent) * std::f64::consts::LN_2;
                let error = f64::from(scaled_exp(x, exponent)) / exact.exp() - 1.0;
                assert!(error.abs() < 3e-7, "{x} {exponent} {error}");
            }
        }
        for x in [-60.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(scaled_exp(x, 45.0), 0.0);
        }
        assert!(scaled_exp(f32::NAN, 5.0).is_nan());
        for i in -600..600 {
            let m = (i as f32 + 0.5) * 4.5e-4;
            let exact = (f64::from(m)).ln_1p() - f64::from(m);
            let slack = 4e-7 + 1e-15 / exact.abs();
            assert!((f64::from(ln_tail(m)) / exact - 1.0).abs() < slack, "{m}");
        }
        for i in -60_000..60_000 {
            let u = (i as f32 + 0.5) * 1e-3;
            let exact = f64::from(u).exp_m1();
            let (beyond, less_one) = beyond_linear(u);
            assert!((f64::from(less_one) / exact - 1.0).abs() < 1e-6, "{u}");
            // only here has the difference enough digits in f64
            if u.abs() > 1e-2 {
                let exact = exact - f64::from(u);
                assert!((f64::from(beyond) / exact - 1.0).abs() < 1e-6, "{u}");
            }
        }
        assert_eq!(power(f32::INFINITY), exp(SATURATE));
        for i in 1..40_000 {
            let x = (i as f32 * 1e-3 - 20.0).exp2();
            let exact = f64::from(x).ln();
            assert!(
                (f64::from(ln(x)) - exact).abs() < 2e-7 * exact.abs().max(1.0),
                "ln {x}"
            );
        }
        for i in -30_000..30_000 {
            let x = i as f32 * 1e-3;
            let Softplus {
                up,
                down,
                share,
                other,
                beyond,
            } = softplus(x);
            let e = f64::from(x).exp();
            for (ours, exact) in [
                (up, e.ln_1p()),
                (down, (1.0 / e).ln_1p()),
                (share, e / (1.0 + e)),
                (other, 1.0 / (1.0 + e)),
                (sigmoid(x), e / (1.0 + e)),
            ] {
                assert!((f64::from(ours) / exact - 1.0).abs() < 4e-7, "softplus {x}");
            }
            let exact = if x < -5.0 {
                e * e * (-0.5 + e * (2.0 / 3.0 - e * (0.75 - e * (0.8 - e * 5.0 / 6.0))))
            } else {
                e / (1.0 + e) - e.ln_1p()
            };
            assert!(
                (f64::from(beyond) / exact - 1.0).abs() < 3e-6,
                "softplus {x}"
            );
        }
        for i in -500..=500 {
            let x = i as f32 * 1e-3;
            let exact = if i == 0 {
                1.0
            } else {
                f64::from(x).exp_m1() / f64::from(x)
            };
            assert!(
                (f64::from(expm1_over_x(x)) / exact - 1.0).abs() < 2e-7,
                "expm1 {x}"
            );
        }
    }
}
