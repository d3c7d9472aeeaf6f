//! Elementary functions of the kernel. A shader's built-in ones may have errors too large for a gradient (`log` by 5e-7
//! absolute near 1, `exp` by 2 |x| units in the last place), so these are written out, as on the CPU.

use cubecl::prelude::*;

use abkd_host::math::SATURATE;

/// e^x; x is clamped to [-87, 88].
#[cube]
pub(super) fn exp(x: f32) -> f32 {
    let x = max(min(x, 88.0f32), -87.0f32);
    let n = (x * std::f32::consts::LOG2_E + 0.5f32).floor();
    // ln 2 in two parts (Cody and Waite)
    let r = (x - n * 0.693_359_4f32) + n * 2.121_944_4e-4f32;
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_199_9e-3f32;
    let p = p * r + 8.333_452e-3f32;
    let p = p * r + 4.166_579_6e-2f32;
    let p = p * r + 1.666_666_5e-1f32;
    let p = p * r + 0.5f32;
    let p = p * r * r + r + 1.0f32;
    p * f32::reinterpret(u32::cast_from(i32::cast_from(n) + 127i32) << 23u32)
}

/// A difference and its rounding error (Knuth).
#[derive(CubeType, Clone, Copy)]
pub(super) struct Difference {
    pub high: f32,
    pub low: f32,
}

/// `zero` is a 0 that the shader's compiler does not know.
#[cube]
pub(super) fn difference(a: f32, b: f32, zero: u32) -> Difference {
    let high = as_rounded(a - b, zero);
    let back = as_rounded(high - a, zero);
    let from_a = a - as_rounded(high - back, zero);
    let from_b = as_rounded(b + back, zero);
    Difference {
        high,
        low: from_a - from_b,
    }
}

/// x as it was rounded: a compiler that treats sums as exact would simplify the rounding error to 0.
#[cube]
fn as_rounded(x: f32, zero: u32) -> f32 {
    f32::reinterpret(u32::reinterpret(x) ^ zero)
}

/// e^(a - b) without rounding of the exponent; `zero` as for [`difference`].
#[cube]
pub(super) fn exp_of_difference(a: f32, b: f32, zero: u32) -> f32 {
    let exponent = difference(a, b, zero);
    exp(exponent.high) * (1.0f32 + max(min(exponent.low, 1.0f32), -1.0f32))
}

/// e^`exponent`, saturated.
#[cube]
pub(super) fn power(exponent: f32) -> f32 {
    exp(min(exponent, SATURATE))
}

/// (e^x - 1) / x for |x| at most 0.5.
#[cube]
pub(super) fn expm1_over_x(x: f32) -> f32 {
    let p = 2.480_158_7e-5f32;
    let p = p * x + 1.984_127e-4f32;
    let p = p * x + 1.388_888_9e-3f32;
    let p = p * x + 8.333_334e-3f32;
    let p = p * x + 4.166_666_8e-2f32;
    let p = p * x + 1.666_666_7e-1f32;
    let p = p * x + 0.5f32;
    p * x + 1.0f32
}

/// `b (e^(x d) - 1) / x` from `base` = b and `moved` = b e^(x d); `b d` where x is 0.
#[cube]
pub(super) fn scaled_phi(x: f32, base: f32, moved: f32, d: f32) -> f32 {
    let xd = x * d;
    let mut phi = base * d * expm1_over_x(xd);
    if xd.abs() > 0.5f32 {
        phi = (moved - base) / x;
    }
    phi
}

/// ln x of a normal positive x.
#[cube]
pub(super) fn ln(x: f32) -> f32 {
    // x = 2^e m with m in [sqrt(1/2), sqrt(2)), whose bits begin at 0x3f3504f3; e is counted from -127
    let shifted = u32::reinterpret(x) + 0x004a_fb0du32;
    let e = f32::cast_from(shifted >> 23u32) - 127.0f32;
    let m = f32::reinterpret((shifted & 0x007f_ffffu32) + 0x3f35_04f3u32);
    ln_of_1_plus(m - 1.0f32) + e * std::f32::consts::LN_2
}

/// ln(1 + m) for m in [sqrt(1/2) - 1, sqrt(2) - 1).
#[cube]
pub(super) fn ln_of_1_plus(m: f32) -> f32 {
    m + ln_tail(m)
}

/// ln(1 + m) - m for m in [sqrt(1/2) - 1, sqrt(2) - 1), without a difference of nearly equal numbers.
#[cube]
pub(super) fn ln_tail(m: f32) -> f32 {
    let z = m * m;
    let p = 7.037_683_6e-2f32;
    let p = p * m - 1.151_461e-1f32;
    let p = p * m + 1.167_699_9e-1f32;
    let p = p * m - 1.242_014_1e-1f32;
    let p = p * m + 1.424_932_3e-1f32;
    let p = p * m - 1.666_805_8e-1f32;
    let p = p * m + 2.000_071_5e-1f32;
    let p = p * m - 2.499_999_4e-1f32;
    let p = p * m + 3.333_333e-1f32;
    z * (m * p - 0.5f32)
}

/// e / (1 + e) - ln(1 + e) for an e in the range of [`ln_tail`].
#[cube]
pub(super) fn ratio_beyond_ln(e: f32) -> f32 {
    -(e * e / (1.0f32 + e) + ln_tail(e))
}

/// ln(1 + x) for x >= 0, with all digits where x is small.
#[cube]
pub(super) fn ln_1p(x: f32) -> f32 {
    let mut out = ln_of_1_plus(min(x, 0.4f32));
    if x > 0.4f32 {
        out = ln(1.0f32 + x);
    }
    out
}

/// Softplus and sigmoid at x, the parts of a mixture of two probabilities.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Softplus {
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

#[cube]
pub(super) fn softplus(x: f32) -> Softplus {
    let e = exp(-x.abs());
    let tail = ln_1p(e);
    let larger = 1.0f32 / (1.0f32 + e);
    let up = max(x, 0.0f32) + tail;
    let share = select(x >= 0.0f32, larger, e * larger);
    let small = e < 0.4f32 && x < 0.0f32;
    Softplus {
        up,
        down: max(-x, 0.0f32) + tail,
        share,
        other: select(x >= 0.0f32, e * larger, larger),
        beyond: select(small, ratio_beyond_ln(min(e, 0.4f32)), share - up),
    }
}
