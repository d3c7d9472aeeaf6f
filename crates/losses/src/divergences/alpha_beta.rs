//! The alpha-beta family (Cichocki et al. 2011), ABKD's divergence (Wang et al. 2025).

mod members;

#[cfg(feature = "burn")]
use burn::tensor::Tensor;

pub(super) use self::members::{AlphaBeta, geometric_mean, polynomial, scaled_phi, series};

use self::members::{BetaZero, BothZero, SmallBeta};
use super::{Definition, Form, Parameter, Params, Range};
#[cfg(feature = "cube")]
use crate::cube::{Description, Formula};
#[cfg(feature = "burn")]
use crate::reference::pair::{expm1, power, scaled_phi as tensor_phi};
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::row::Job;
use crate::{Divergence, Error, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "ab",
    label: "ABKD",
    golden: None,
    formula: "-1/(alpha beta) sum [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)]",
    parameters: &[
        Parameter {
            name: "alpha",
            default: 0.2,
            range: EXPONENT,
        },
        Parameter {
            name: "beta",
            default: 0.7,
            range: EXPONENT,
        },
    ],
    default_fidelity: Fidelity::Paper,
    row,
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, exponents, fidelity| tensors(exponents, factor(exponents, fidelity), pair),
        #[cfg(feature = "cube")]
        cube: Some(cube),
    },
};

/// Beyond this, powers of probabilities are meaningless in single precision.
pub(super) const EXPONENT: Range = Range {
    contains: |x| x.abs() <= 1e3,
    text: "a finite number of at most 1000 in size",
};

/// Below this |beta| the row kernel does not divide by beta.
const SMALL_BETA: f64 = 0.05;

/// Below this |beta| and |alpha + beta| the kernel for CubeCL devices loses too many digits: the difference of nearly equal
/// terms needs f64.
#[cfg(feature = "cube")]
const BOTH_SMALL: f64 = 0.05;

impl Divergence {
    /// The alpha-beta divergence `-1/(alpha beta) sum [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) -
    /// beta/(alpha+beta) q^(alpha+beta)]`, continued to alpha = 0, beta = 0, alpha + beta = 0. Official: the limits carry
    /// the factor 1/alpha (1/beta) where continuity requires its square.
    pub const fn alpha_beta(alpha: f64, beta: f64) -> Self {
        Self::new(&DEFINITION, [alpha, beta])
    }
}

/// The released code has 1/x in place of 1/x^2 in the limits: a factor of x.
fn factor([alpha, beta]: Params, fidelity: Fidelity) -> f64 {
    match fidelity {
        Fidelity::Paper => 1.0,
        Fidelity::Official if alpha == 0.0 && beta == 0.0 => 1.0,
        Fidelity::Official if beta == 0.0 || alpha + beta == 0.0 => alpha,
        Fidelity::Official if alpha == 0.0 => beta,
        Fidelity::Official => 1.0,
    }
}

fn row(job: Job, [alpha, beta]: Params, fidelity: Fidelity) -> Result<(), Error> {
    let sum = alpha + beta;
    let factor = factor([alpha, beta], fidelity);
    let one = sum as f32 == 1.0;
    if alpha == 0.0 && beta == 0.0 {
        job.rows(|_| BothZero::new())
    } else if beta == 0.0 && one {
        job.rows(|_| BetaZero::<true>::new(alpha, factor))
    } else if beta == 0.0 {
        job.rows(|_| BetaZero::<false>::new(alpha, factor))
    } else if beta.abs() < SMALL_BETA && alpha != 0.0 && sum != 0.0 {
        job.rows(|_| SmallBeta::new(alpha, beta))
    } else if one {
        job.rows(|_| AlphaBeta::<true>::new(alpha, beta, factor))
    } else {
        job.rows(|_| AlphaBeta::<false>::new(alpha, beta, factor))
    }
}

/// With s = alpha + beta and phi_x = (e^(x d) - 1) / x: `f = q^s (phi_s - phi_alpha) / beta`,
/// `q g = -q^s phi_alpha`, and their limits; times `factor`.
#[cfg(feature = "burn")]
pub(super) fn tensors([alpha, beta]: Params, factor: f64, pair: &Pair) -> Terms {
    let s = alpha + beta;
    let d = &pair.d;
    // All powers start from the larger probability, whose logarithm has the smaller error.
    let (above, below) = (d.clone().clamp_min(0.0), d.clone().clamp_max(0.0));
    let top = pair.p.log.clone().max_pair(pair.q.log.clone()) * s;
    let student = power(top.clone() - above.clone() * s);
    let teacher = power(top.clone() + below.clone() * s);
    let mixed = power(top + below * alpha - above * beta);
    let phi = |x: f64, moved: &Tensor<2>| tensor_phi(x, student.clone(), moved.clone(), d);
    let phi_alpha = phi(alpha, &mixed);
    let f = if alpha == 0.0 && beta == 0.0 {
        d.clone().square() * 0.5
    } else if beta == 0.0 {
        (d.clone() * teacher - phi_alpha.clone()) / alpha
    } else {
        // Both forms are equal in exact arithmetic; the smaller divisor would amplify rounding errors.
        let far = if beta.abs() < s.abs() {
            let rest = tensor_phi(beta, mixed.clone(), teacher, d);
            (rest - phi_alpha.clone()) / s
        } else {
            (phi(s, &teacher) - phi_alpha.clone()) / beta
        };
        // Where f is a small difference, its series in d: the sum of (s^k + s^(k-1) alpha + .. + alpha^k) d^(k+2) / (k+2)!.
        let (mut near, mut power) = (Tensor::zeros_like(d), student.clone() * d.clone());
        let (mut sum, mut power_of_s, mut factorial) = (0.0, 1.0, 1.0);
        for k in 0..8 {
            sum = alpha * sum + power_of_s;
            power_of_s *= s;
            factorial *= f64::from(k + 2);
            power = power * d.clone();
            near = near + power.clone() * (sum / factorial);
        }
        let is_near = d.clone().abs() * alpha.abs().max(s.abs());
        far.mask_where(is_near.lower_equal_elem(0.5), near)
    };
    // With X = (s - 1) u, h is the sum of two parts, both small if X and r are.
    let peak = &pair.at_peak;
    let one = Tensor::ones_like(&peak.d);
    let at_peak = power(peak.lq.clone() * (s - 1.0))
        * tensor_phi(alpha, one, power(peak.d.clone() * alpha), &peak.d);
    let base = if (s - 1.0).abs() < 1e-7 {
        pair.q.prob.clone()
    } else {
        student
    };
    let base = base * power(peak.d.clone() * alpha);
    let own = at_peak.clone() * pair.q.prob.clone();
    let x = pair.u.clone() * (s - 1.0);
    let near = pair.scaled_phi(alpha, base, mixed) + own.clone() * expm1(x.clone());
    let h = (phi_alpha - own).mask_where(x.abs().lower_equal_elem(0.5), near);
    Terms {
        f: f * factor,
        h: h * -factor,
        g: at_peak * -factor,
    }
}

#[cfg(feature = "cube")]
fn cube([alpha, beta]: Params, fidelity: Fidelity) -> Option<Description> {
    let sum = alpha + beta;
    let formula = if alpha == 0.0 && beta == 0.0 {
        Formula::HalfSquare
    } else if beta.abs().max(sum.abs()) < BOTH_SMALL {
        return None;
    } else if beta.abs() < sum.abs() {
        Formula::SmallBeta
    } else {
        Formula::AlphaBeta
    };
    Some((formula, [alpha, beta, sum, factor([alpha, beta], fidelity)]))
}
