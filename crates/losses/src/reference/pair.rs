//! Both distributions, and the terms that a divergence computes from them.

use burn::tensor::{Bool, Int, Tensor};

use crate::error::Model;
use crate::{Error, Rows};

/// Largest exponent of a power.
const SATURATE: f64 = 60.0;

/// Largest |r| for the near formulas.
const NEAR: f64 = 1.0 / 3.0;

/// e^`exponent`, saturated.
pub(crate) fn power(exponent: Tensor<2>) -> Tensor<2> {
    exponent.clamp_max(SATURATE).exp()
}

/// (e^x - 1) / x for x near 0.
fn expm1_over_x(x: &Tensor<2>) -> Tensor<2> {
    let mut series = x.clone() / 8.0 + 1.0;
    for k in (2..8).rev() {
        series = series * x.clone() / f64::from(k) + 1.0;
    }
    series
}

/// e^x - 1, with all digits where x is near 0.
pub(crate) fn expm1(x: Tensor<2>) -> Tensor<2> {
    let near = x.clone() * expm1_over_x(&x);
    (power(x.clone()) - 1.0).mask_where(x.abs().lower_equal_elem(0.5), near)
}

/// log(1 + x), with all digits where x is near 0; some devices' own function loses them.
pub(crate) fn ln_1p(x: Tensor<2>) -> Tensor<2> {
    let mut series = Tensor::zeros_like(&x);
    for k in (1..=14).rev() {
        series = series * x.clone().neg() + 1.0 / f64::from(k);
    }
    let far = (x.clone() + 1.0).log();
    far.mask_where(x.clone().abs().lower_elem(0.25), series * x)
}

/// A row's softmax `[N, V]`.
pub(crate) struct Softmax {
    pub prob: Tensor<2>,
    pub log: Tensor<2>,
    /// Index of the likeliest entry `[N, 1]`, and the probability of all others.
    pub peak: Tensor<2, Int>,
    pub rest: Tensor<2>,
}

impl Softmax {
    /// Refuses rows without a distribution.
    pub fn new(logits: Tensor<2>, model: Model) -> Result<Self, Error> {
        let highest = logits.clone().max_dim(1).into_data_as::<f32>();
        let nan = logits.clone().is_nan().any_dim(1).into_data_as::<bool>();
        let highest = highest.as_slice::<f32>().expect("read as f32");
        let nan = nan.as_slice::<bool>().expect("read as bool");
        for (row, (&max, &nan)) in highest.iter().zip(nan).enumerate() {
            if nan || max == f32::INFINITY {
                return Err(Error::NotFinite { model, row });
            }
            if max == f32::NEG_INFINITY {
                return Err(Error::EmptyRow { model, row });
            }
        }
        let peak = logits.clone().argmax(1);
        let shifted = logits.clone() - logits.max_dim(1);
        let powers = shifted.clone().exp();
        // Summed without the peak, whose power is 1: the others would lose their digits.
        let others = powers.clone().mask_fill(is_at(&powers, &peak), 0.0);
        let others = others.sum_dim(1);
        let sum = others.clone() + 1.0;
        Ok(Self {
            prob: powers / sum.clone(),
            log: shifted - ln_1p(others.clone()),
            peak,
            rest: others / sum,
        })
    }

    /// Marks each row's token in `ids`, `[N, 1]`.
    pub fn is_at(&self, ids: &Tensor<2, Int>) -> Tensor<2, Bool> {
        is_at(&self.prob, ids)
    }
}

fn is_at(like: &Tensor<2>, ids: &Tensor<2, Int>) -> Tensor<2, Bool> {
    let [n, vocab] = like.dims();
    let tokens = Tensor::<1, Int>::arange(0..vocab as i64, &like.device());
    let tokens = tokens.unsqueeze::<2>().expand([n, vocab]);
    tokens.equal(ids.clone().expand([n, vocab]))
}

/// a - b and its rounding error (Knuth).
fn difference(a: &Tensor<2>, b: &Tensor<2>) -> [Tensor<2>; 2] {
    let gap = a.clone() - b.clone();
    let back = gap.clone() - a.clone();
    let lost = (a.clone() - (gap.clone() - back.clone())) - (b.clone() + back);
    [gap, lost]
}

/// Both distributions, and their entries relative to the peak, the student's likeliest entry that is not left out. All
/// `[N, V]`, and `[N, 1]` at the peak.
pub(crate) struct Pair {
    pub p: Softmax,
    pub q: Softmax,
    /// log(p/q)
    pub d: Tensor<2>,
    /// d minus its value at the peak, from the logits alone.
    pub r: Tensor<2>,
    /// log q minus its value at the peak.
    pub u: Tensor<2>,
    pub left_out: Tensor<2, Bool>,
    pub at_peak: AtPeak,
}

pub(crate) struct AtPeak {
    /// log(p/q), p/q and log q
    pub d: Tensor<2>,
    pub ratio: Tensor<2>,
    pub lq: Tensor<2>,
}

/// A divergence's f and h, which is `q (g - g at the peak)`, see [`pointwise`](crate::pointwise).
pub(crate) struct Terms {
    pub f: Tensor<2>,
    pub h: Tensor<2>,
    /// g at the peak `[N, 1]`.
    pub g: Tensor<2>,
}

impl Pair {
    pub fn new(student: Tensor<2>, teacher: Tensor<2>) -> Result<Self, Error> {
        let minus_inf = |x: &Tensor<2>| x.clone().equal_elem(f32::NEG_INFINITY);
        let left_out = minus_inf(&student).bool_or(minus_inf(&teacher));
        let q = Softmax::new(student.clone(), Model::Student)?;
        let p = Softmax::new(teacher.clone(), Model::Teacher)?;
        let counted = q.prob.clone().mask_fill(left_out.clone(), -1.0);
        let peak = counted.argmax(1);
        let at = |x: &Tensor<2>| x.clone().gather(1, peak.clone());
        let [gap, lost] = difference(&teacher, &student);
        let r = (gap.clone() - at(&gap)) + (lost.clone() - at(&lost));
        let r = r.mask_fill(left_out.clone(), 0.0);
        let u = (student.clone() - at(&student)).mask_fill(left_out.clone(), 0.0);
        // every entry is left out
        let disjoint = left_out.clone().all_dim(1);
        let log = |x: &Softmax| at(&x.log).mask_fill(disjoint.clone(), 0.0);
        let (lp, lq) = (log(&p), log(&q));
        let far = lp - lq.clone();
        // The normalisers may err by more than the distributions differ: log(p/q) at the peak is recomputed from their sums,
        // which are 1.
        let far_ratio = power(far.clone());
        let moved = q.prob.clone() * expm1(r.clone());
        let beyond = r.clone().greater_elem(SATURATE);
        let moved = moved.mask_where(beyond, p.prob.clone() / far_ratio);
        let sum = moved.sum_dim(1);
        let near = sum.clone().abs().lower_elem(0.5);
        let near = near.bool_and(left_out.clone().any_dim(1).bool_not());
        let d = far.mask_where(near, ln_1p(sum).neg());
        let at_peak = AtPeak {
            ratio: power(d.clone()),
            d,
            lq,
        };
        Ok(Self {
            d: r.clone() + at_peak.d.clone(),
            p,
            q,
            r,
            u,
            left_out,
            at_peak,
        })
    }

    /// `[N, 1]` of one number.
    pub fn constant(&self, x: f64) -> Tensor<2> {
        Tensor::full([self.d.dims()[0], 1], x, &self.d.device())
    }

    /// `b phi_x(r)` with phi_x = (e^(x r) - 1) / x (r where x = 0), of `base` = b and `moved` = b e^(x r).
    pub fn scaled_phi(&self, x: f64, base: Tensor<2>, moved: Tensor<2>) -> Tensor<2> {
        scaled_phi(x, base, moved, &self.r)
    }

    /// p - q (p/q at the peak)
    pub fn gap(&self) -> Tensor<2> {
        let base = self.q.prob.clone() * self.at_peak.ratio.clone();
        self.scaled_phi(1.0, base, self.p.prob.clone())
    }

    /// `near` where |r| is at most [`NEAR`], else `far`.
    pub fn where_near(&self, near: Tensor<2>, far: Tensor<2>) -> Tensor<2> {
        far.mask_where(self.r.clone().abs().lower_equal_elem(NEAR), near)
    }

    /// |p - q|, with the digits that it loses at a peak where both are near 1.
    pub fn distance(&self) -> Tensor<2> {
        let [n, vocab] = self.d.dims();
        let gap = self.p.prob.clone() - self.q.prob.clone();
        let by_rest = self.q.rest.clone() - self.p.rest.clone();
        let [by_rest, tops] = [by_rest, self.q.rest.clone()].map(|x| x.expand([n, vocab]));
        let same = self
            .q
            .is_at(&self.q.peak)
            .bool_and(self.q.is_at(&self.p.peak));
        let same = same.bool_and(tops.lower_elem(0.5));
        gap.mask_where(same, by_rest).abs()
    }

    /// Sums of f, and the gradient from h.
    pub fn rows(&self, Terms { f, h, g }: Terms) -> Rows {
        let f = f.mask_fill(self.left_out.clone(), 0.0);
        // an entry that is left out has no g of its own
        let left_out = self.q.prob.clone() * g.neg();
        let h = h.mask_where(self.left_out.clone(), left_out);
        let grad = h.clone() - self.q.prob.clone() * h.sum_dim(1);
        // The exact gradient sums to 0: the sum that rounding left is subtracted.
        let grad = grad.clone() - self.q.prob.clone() * grad.sum_dim(1);
        Rows::new(f.sum_dim(1).squeeze_dim(1), grad)
    }
}

/// [`Pair::scaled_phi`] with any tensor `by` in place of r.
pub(crate) fn scaled_phi(x: f64, base: Tensor<2>, moved: Tensor<2>, by: &Tensor<2>) -> Tensor<2> {
    let exponent = by.clone() * x;
    let near = base.clone() * by.clone() * expm1_over_x(&exponent);
    if x == 0.0 {
        return near;
    }
    // `moved` has its own rounding error, which the difference from the base would amplify.
    let mid = base.clone() * (power(exponent.clone()) - 1.0) / x;
    let far = (moved - base) / x;
    let far = far.mask_where(exponent.clone().lower_elem(40.0), mid);
    far.mask_where(exponent.abs().lower_equal_elem(0.5), near)
}
