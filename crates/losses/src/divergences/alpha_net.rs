//! AlphaNet (Wang et al. 2021): the larger of two members of the alpha-beta family with alpha + beta = 1, both in one pass.

use abkd_host::math::{SATURATE, beyond_linear};
use rayon::prelude::*;

use super::alpha_beta::{EXPONENT, geometric_mean, polynomial, scaled_phi, series};
use super::{Definition, Form, Parameter, Range};
use crate::pointwise::{Entry, Peak, Pointwise, select};
use crate::row::passes::{dispatch_formulas, dispatch_gradient};
use crate::row::softmax::{Norms, dispatch_exponentials};
use crate::row::{Kernel, Logit, Run, Scratch, formulas, normalize};
use crate::{Divergence, Error, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "alphanet",
    label: "AlphaNet",
    golden: None,
    formula: "max of AB(a, 1-a) and AB(b, 1-b)",
    parameters: &[
        Parameter {
            name: "a",
            default: 0.2,
            range: ALPHA,
        },
        Parameter {
            name: "b",
            default: 0.9,
            range: ALPHA,
        },
    ],
    default_fidelity: Fidelity::Official,
    row: |job, alphas, fidelity| job.run(Larger { alphas, fidelity }),
    form: Form::Larger(|alphas| alphas.map(|alpha| Divergence::alpha_beta(alpha, 1.0 - alpha))),
};

/// alpha = 1 is refused: the formula of AB(1, 0) would divide by 0.
const ALPHA: Range = Range {
    contains: |x| (EXPONENT.contains)(x) && x as f32 != 1.0,
    text: "a finite number of at most 1000 in size, and not 1",
};

impl Divergence {
    /// The larger of `AB(a, 1 - a)` and `AB(b, 1 - b)`, where neither alpha is 1. Official: by their means over the rows of
    /// one call, see `choice`. Paper: row by row.
    pub const fn alpha_net(a: f64, b: f64) -> Self {
        Self::new(&DEFINITION, [a, b])
    }
}

/// A member. `NARROW` is for rows without an extreme probability, see [`reach`](SumOne::reach): there e^(alpha d) is in the
/// range of f32, so q can be multiplied by it, and neither p nor a series is needed.
#[derive(Clone, Copy)]
struct SumOne<const NARROW: bool> {
    alpha: f32,
    inverse_alpha: f32,
    inverse_beta: f32,
    /// See [`series`].
    series: [f32; 7],
    /// (p/q)^alpha and -g at the peak.
    ratio: f32,
    peak: f32,
    /// -alpha d at the peak, and -(p/q)^alpha / alpha there.
    exponent: f32,
    slope: f32,
}

impl<const NARROW: bool> SumOne<NARROW> {
    fn new(alpha: f64) -> Self {
        // rounded first, so that the parts of a difference use the same alpha
        let alpha = f64::from(alpha as f32);
        let beta = 1.0 - alpha;
        Self {
            alpha: alpha as f32,
            inverse_alpha: (1.0 / alpha) as f32,
            inverse_beta: (1.0 / beta) as f32,
            series: series(alpha, 1.0),
            ratio: 0.0,
            peak: 0.0,
            exponent: 0.0,
            slope: 0.0,
        }
    }

    /// q e^(alpha d)
    #[inline(always)]
    fn mixed(&self, e: Entry) -> f32 {
        geometric_mean(self.alpha, 1.0 - self.alpha, e)
    }

    /// The value without its factor, see [`scale`](SumOne::scale). An alpha within 0.01 of 1 costs digits.
    #[inline(always)]
    fn value(&self, e: Entry) -> f32 {
        let Entry { p, q, d, .. } = e;
        if NARROW {
            let mixed = beyond_linear(self.alpha * d).0;
            return q * self.alpha.mul_add(beyond_linear(d).0, -mixed);
        }
        let near = q * d * d * polynomial(self.series, d);
        let phi = scaled_phi(self.alpha, self.inverse_alpha, q, self.mixed(e), d);
        let far = ((p - q) - phi) * self.inverse_beta;
        select(d.abs() <= 0.5, near, far)
    }
}

impl SumOne<true> {
    /// Largest -log p and -log q for which `NARROW` holds, with log(q/p) at the peak added where that is above 0.
    fn reach(&self) -> f32 {
        // An alpha this close to 0 cannot be a divisor.
        if self.alpha.abs() < 1e-30 {
            return f32::NEG_INFINITY;
        }
        SATURATE / self.alpha.abs().max(1.0)
    }

    /// Factor for sums of `value`; without `NARROW` there is no factor.
    fn scale(&self) -> f64 {
        let alpha = f64::from(self.alpha);
        1.0 / (alpha * (1.0 - alpha))
    }
}

/// The gradient alone, which does not need p where `NARROW`.
impl<const NARROW: bool> Pointwise for SumOne<NARROW> {
    fn at(self, peak: &Peak) -> Self {
        let alpha = f64::from(self.alpha);
        let phi = if alpha == 0.0 {
            peak.d
        } else {
            (alpha * peak.d).exp_m1() / alpha
        };
        let ratio = peak.ratio(alpha);
        Self {
            ratio,
            peak: phi as f32,
            exponent: (-alpha * peak.d) as f32,
            slope: -ratio * self.inverse_alpha,
            ..self
        }
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        if NARROW {
            let exponent = if NEAR {
                self.alpha * e.r
            } else {
                self.alpha.mul_add(e.d, self.exponent)
            };
            return (0.0, e.q * self.slope * beyond_linear(exponent).1);
        }
        let (base, mixed) = (self.ratio * e.q, self.mixed(e));
        let phi = scaled_phi(self.alpha, self.inverse_alpha, base, mixed, e.r);
        (0.0, -phi)
    }

    fn least(&self, peak: &Peak) -> f32 {
        peak.close_to(self.ratio)
    }

    fn left_out(&self) -> f32 {
        self.peak
    }

    #[inline(always)]
    fn teacher_is_far(&self) -> bool {
        true
    }
}

/// The values of both members, the second in place of h.
#[derive(Clone, Copy)]
struct BothValues<const NARROW: bool>([SumOne<NARROW>; 2]);

impl<const NARROW: bool> Pointwise for BothValues<NARROW> {
    const HAS_NEAR: bool = false;

    fn at(self, peak: &Peak) -> Self {
        Self(self.0.map(|member| member.at(peak)))
    }

    #[inline(always)]
    fn eval<const NEAR: bool>(&self, e: Entry) -> (f32, f32) {
        (self.0[0].value(e), self.0[1].value(e))
    }

    fn left_out(&self) -> f32 {
        0.0
    }
}

/// Official: the member with the larger sum over the rows given. Paper: the larger one of each row. The first where both are
/// equal. Because of the sum over all rows, all values are computed before the first gradient. Where `NARROW`, the gradients
/// need only the student's exponentials.
struct Larger {
    alphas: [f64; 2],
    fidelity: Fidelity,
}

impl Kernel for Larger {
    fn run<L: Logit>(
        self,
        run: &Run<L>,
        student: &mut [L],
        value: &mut [f32],
    ) -> Result<(), Error> {
        let narrow = self.alphas.map(SumOne::<true>::new);
        let wide = self.alphas.map(SumOne::<false>::new);
        let [one, two] = narrow.map(|member| member.reach());
        let is_narrow = |norms: &Norms| {
            let unlikely = -norms.p.low.min(norms.q.low);
            unlikely - norms.peak.d.min(0.0) as f32 <= one.min(two)
        };
        let vocab = run.vocab.max(1);
        let rows: Vec<_> = student
            .par_chunks_exact(vocab)
            .enumerate()
            .map_init(
                || Scratch::new(vocab),
                |Scratch { z: zs, t: ts, p, q }, (index, z)| {
                    let (z, t) = (L::read(z, zs), L::read(run.teacher(index), ts));
                    let norms = normalize(index, z, t, p, q)?;
                    let sums = if is_narrow(&norms) {
                        let both = BothValues(narrow).at(&norms.peak);
                        let [one, two] = dispatch_formulas(both, z, t, p, q, norms).both();
                        let scales = narrow.map(|member| member.scale());
                        [scales[0] * one, scales[1] * two]
                    } else {
                        let both = BothValues(wide).at(&norms.peak);
                        dispatch_formulas(both, z, t, p, q, norms).both()
                    };
                    Ok((norms, sums))
                },
            )
            .collect();
        // the first bad row, whatever the order of work
        let rows = rows.into_iter().collect::<Result<Vec<_>, Error>>()?;
        let all: f64 = rows.iter().map(|(_, [one, two])| two - one).sum();
        student
            .par_chunks_exact_mut(vocab)
            .zip(run.teacher.par_chunks_exact(vocab))
            .zip(value)
            .zip(rows)
            .for_each_init(
                || Scratch::new(vocab),
                |Scratch { z: zs, t: ts, p, q }, (((z, t), value), row)| {
                    let (norms, [one, two]) = row;
                    let gain = match self.fidelity {
                        Fidelity::Official => all,
                        Fidelity::Paper => two - one,
                    };
                    let (member, sum) = if gain > 0.0 { (1, two) } else { (0, one) };
                    *value = sum as f32;
                    let (logits, t) = (L::read(z, zs), L::read(t, ts));
                    dispatch_exponentials(logits, norms.q.shift, q);
                    let sums = if is_narrow(&norms) {
                        formulas(narrow[member], logits, t, p, q, norms)
                    } else {
                        dispatch_exponentials(t, norms.p.shift, p);
                        formulas(wide[member], logits, t, p, q, norms)
                    };
                    L::write(z, zs, |out| dispatch_gradient(out, p, q, norms, sums));
                },
            );
        Ok(())
    }
}
