//! Numbers of two f64, with about 31 digits: enough for a difference of nearly equal numbers.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// The unevaluated sum of its parts; the second is at most half a unit in the last place of the first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Wide(f64, f64);

/// `a + b` and its rounding error, for |a| not below |b|.
fn ordered_sum(a: f64, b: f64) -> Wide {
    let sum = a + b;
    Wide(sum, b - (sum - a))
}

/// `a + b` and its rounding error (Knuth).
fn sum(a: f64, b: f64) -> Wide {
    let sum = a + b;
    let from_b = sum - a;
    Wide(sum, (a - (sum - from_b)) + (b - from_b))
}

impl From<f64> for Wide {
    fn from(x: f64) -> Self {
        Self(x, 0.0)
    }
}

impl From<f32> for Wide {
    fn from(x: f32) -> Self {
        Self(x.into(), 0.0)
    }
}

impl From<Wide> for f64 {
    fn from(x: Wide) -> Self {
        x.0 + x.1
    }
}

impl Add for Wide {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (high, low) = (sum(self.0, other.0), sum(self.1, other.1));
        let high = ordered_sum(high.0, high.1 + low.0);
        ordered_sum(high.0, high.1 + low.1)
    }
}

impl Neg for Wide {
    type Output = Self;
    fn neg(self) -> Self {
        Self(-self.0, -self.1)
    }
}

impl Sub for Wide {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Wide {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let product = self.0 * other.0;
        let lost = self.0.mul_add(other.0, -product);
        ordered_sum(product, lost + (self.0 * other.1 + self.1 * other.0))
    }
}

impl Mul<f64> for Wide {
    type Output = Self;
    fn mul(self, other: f64) -> Self {
        self * Self::from(other)
    }
}

impl Div for Wide {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let first = self.0 / other.0;
        let left = self - other * first;
        let second = left.0 / other.0;
        let left = left - other * second;
        ordered_sum(first, second) + Self::from(left.0 / other.0)
    }
}

impl std::iter::Sum for Wide {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        terms.fold(Self::ZERO, Add::add)
    }
}

impl Wide {
    pub const ZERO: Self = Self(0.0, 0.0);
    pub const ONE: Self = Self(1.0, 0.0);
    const LN_2: Self = Self(std::f64::consts::LN_2, 2.319_046_813_846_299_6e-17);

    pub fn abs(self) -> Self {
        if self.0 < 0.0 { -self } else { self }
    }

    /// (y, n) of e^x = (1 + y) 2^n.
    fn split_exp(self) -> (Self, f64) {
        let n = (self.0 / std::f64::consts::LN_2).round();
        // The Taylor series at x / 256, then squared 8 times.
        let x = (self - Self::LN_2 * n) * (1.0 / 256.0);
        let mut series = Self::ONE;
        for k in (2..=10).rev() {
            series = Self::ONE + series * x / Self::from(f64::from(k));
        }
        let mut y = series * x;
        for _ in 0..8 {
            y = y * 2.0 + y * y;
        }
        (y, n)
    }

    pub fn exp(self) -> Self {
        let (y, n) = self.split_exp();
        // in two factors, each of them finite
        let half = (n / 2.0).trunc();
        (y + Self::ONE) * half.exp2() * (n - half).exp2()
    }

    pub fn exp_m1(self) -> Self {
        match self.split_exp() {
            (y, 0.0) => y,
            _ => self.exp() - Self::ONE,
        }
    }

    pub fn ln(self) -> Self {
        // one Newton step doubles the digits
        let near = Self::from(self.0.ln());
        near + (self * (-near).exp() - Self::ONE)
    }
}

#[cfg(test)]
mod tests {
    use super::Wide;

    #[test]
    fn differences_of_nearly_equal_numbers_keep_31_digits() {
        let third = Wide::ONE / Wide::from(3.0);
        assert!(f64::from(third * 3.0 - Wide::ONE).abs() < 1e-31);
        for x in [1e-3, 0.5, 1.0, 30.0, -1e-3, -0.7, -60.0] {
            let x = Wide::from(x) * third;
            let square = x.exp() * x.exp();
            assert!(f64::from(square / (x * 2.0).exp() - Wide::ONE).abs() < 1e-30);
            assert!(f64::from(x.exp().ln() - x).abs() < 1e-30 * f64::from(x).abs().max(1.0));
        }
        // e to 32 digits
        let e = Wide(std::f64::consts::E, 1.445_646_891_729_250_2e-16);
        assert!(f64::from(Wide::ONE.exp() - e).abs() < 1e-30);
    }
}
