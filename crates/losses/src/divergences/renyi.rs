//! Renyi's divergence (Renyi 1961; van Erven and Harremoes 2014): a logarithm of a sum, whose gradient is that of a member of
//! the alpha-beta family.

use abkd_host::math::SATURATE;

#[cfg(feature = "burn")]
use super::Params;
#[cfg(feature = "burn")]
use super::alpha_beta::tensors;
use super::alpha_beta::{AlphaBeta, geometric_mean};
use super::{Definition, Form, Parameter, Range};
#[cfg(feature = "burn")]
use crate::Rows;
use crate::pointwise::{Entry, Peak, Pointwise};
#[cfg(feature = "burn")]
use crate::reference::Pair;
#[cfg(feature = "burn")]
use crate::reference::pair::{ln_1p, power};
use crate::row::passes::{dispatch_formulas, dispatch_gradient};
use crate::row::softmax::dispatch_exponentials;
use crate::row::{Kernel, Logit, Run, Scratch, formulas, normalize};
use crate::{Divergence, Error, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "renyi",
    label: "Renyi",
    golden: None,
    formula: "1/(alpha - 1) log sum p^alpha q^(1 - alpha)",
    parameters: &[Parameter {
        name: "alpha",
        default: 0.5,
        range: Range {
            contains: |x| x > 0.0 && x <= 1e3 && x as f32 != 1.0,
            text: "a number above 0, not 1 and at most 1000",
        },
    }],
    default_fidelity: Fidelity::Paper,
    row: |job, [alpha, _], _| job.run(Renyi { alpha }),
    form: Form::Rows {
        #[cfg(feature = "burn")]
        tensors: rows,
    },
};

impl Divergence {
    /// Renyi's divergence of order alpha: `1/(alpha - 1) log sum p^alpha q^(1 - alpha)`, with alpha above 0 and not 1. It goes
    /// to forward KL as alpha goes to 1.
    pub const fn renyi(alpha: f64) -> Self {
        Self::new(&DEFINITION, [alpha, 0.0])
    }
}

/// The sum saturates below this: the divergence of distributions without a common token is infinite.
fn least() -> f64 {
    (-f64::from(SATURATE)).exp()
}

/// Factor between the gradient of the member (alpha, 1 - alpha) and that of the sum.
fn of_member(alpha: f64) -> f64 {
    -alpha * (1.0 - alpha)
}

/// p^alpha q^(1 - alpha), without a gradient.
#[derive(Clone, Copy)]
struct Mixed {
    alpha: f32,
}

impl Pointwise for Mixed {
    const HAS_NEAR: bool = false;

    fn at(self, _: &Peak) -> Self {
        self
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        (geometric_mean(self.alpha, 1.0 - self.alpha, e), 0.0)
    }

    fn left_out(&self) -> f32 {
        0.0
    }
}

/// One pass for the sum, and one for the gradient, whose value keeps the digits of a sum near 1.
struct Renyi {
    alpha: f64,
}

impl Kernel for Renyi {
    fn run<L: Logit>(
        self,
        run: &Run<L>,
        student: &mut [L],
        value: &mut [f32],
    ) -> Result<(), Error> {
        // rounded first, so that sum and gradient use the same alpha
        let alpha = f64::from(self.alpha as f32);
        let mixed = Mixed {
            alpha: alpha as f32,
        };
        let member = AlphaBeta::<true>::new(alpha, 1.0 - alpha, of_member(alpha));
        run.each(student, value, |index, z, scratch| {
            let Scratch { z: zs, t: ts, p, q } = scratch;
            let (logits, t) = (L::read(z, zs), L::read(run.teacher(index), ts));
            let norms = normalize(index, logits, t, p, q)?;
            let sum = dispatch_formulas(mixed.at(&norms.peak), logits, t, p, q, norms).f;
            let sum = sum.max(least());
            dispatch_exponentials(t, norms.p.shift, p);
            let sums = formulas(member, logits, t, p, q, norms);
            let log = if sum < 0.5 { sum.ln() } else { sums.f.ln_1p() };
            let scale = (1.0 / ((alpha - 1.0) * sum)) as f32;
            L::write(z, zs, |out| {
                dispatch_gradient(out, p, q, norms, sums);
                out.iter_mut().for_each(|g| *g *= scale);
            });
            Ok(log / (alpha - 1.0))
        })
    }
}

#[cfg(feature = "burn")]
fn rows(pair: &Pair, [alpha, _]: Params) -> Rows {
    let (above, below) = (pair.d.clone().clamp_min(0.0), pair.d.clone().clamp_max(0.0));
    let exponent = below * alpha - above * (1.0 - alpha);
    let mixed = power(pair.p.log.clone().max_pair(pair.q.log.clone()) + exponent);
    let sum = mixed.mask_fill(pair.left_out.clone(), 0.0).sum_dim(1); // [N, 1]
    let sum = sum.clamp_min(least());
    let Rows { value, grad, .. } = pair.rows(tensors([alpha, 1.0 - alpha], of_member(alpha), pair));
    let near_one = sum.clone().greater_elem(0.5);
    let log = sum
        .clone()
        .log()
        .mask_where(near_one, ln_1p(value.unsqueeze_dim(1)));
    Rows::new(
        log.squeeze_dim(1) / (alpha - 1.0),
        grad / (sum * (alpha - 1.0)),
    )
}
