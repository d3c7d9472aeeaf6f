//! f and h of every divergence, see [`pointwise`](crate::pointwise).

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use super::pair::{Pair, Softmax, Terms, expm1, ln_1p, power, scaled_phi};
use crate::{Divergence, Fidelity};

/// Largest |r| that is near.
const NEAR: f64 = 1.0 / 3.0;

pub(super) fn formulas(divergence: &Divergence, fidelity: Fidelity, pair: &Pair) -> Terms {
    let paper = fidelity == Fidelity::Paper;
    let entropy = if paper { 1.0 } else { 0.0 };
    let constant = |x: f64| Tensor::<2>::full([pair.d.dims()[0], 1], x, &pair.d.device());
    let fixed =
        |forward: f64, reverse: f64| two_kl(constant(forward), constant(reverse), entropy, pair);
    match *divergence {
        Divergence::ForwardKl => fixed(1.0, 0.0),
        Divergence::ReverseKl => fixed(0.0, 1.0),
        Divergence::Wsd { weight } => fixed(1.0 - weight, weight),
        Divergence::Bdkd => {
            let heavy = if paper { 2.0 } else { 3.0 };
            let flatter = entropy_of(&pair.q).greater(entropy_of(&pair.p)).float(); // [N, 1]
            let extra = flatter * (heavy - 1.0);
            two_kl(extra.clone().neg() + heavy, extra + 1.0, entropy, pair)
        }
        Divergence::Jensen { lambda } => jensen(lambda, pair),
        Divergence::Akl { mu } => {
            let share = akl_share(pair, mu, fidelity);
            two_kl(share.clone(), share.neg() + 1.0, 1.0, pair)
        }
        Divergence::AlphaNet { .. } => {
            unreachable!("handled by the caller: it is a choice, not a formula")
        }
        Divergence::AlphaBeta { alpha, beta } => alpha_beta(alpha, beta, fidelity, pair),
        // without a teacher's share
        Divergence::SkewForwardKl { lambda: 0.0 } => fixed(1.0, 0.0),
        Divergence::SkewForwardKl { lambda } => skew_forward(lambda, entropy, pair),
        Divergence::SkewReverseKl { lambda } => skew_reverse(lambda, pair),
        Divergence::ToDi => todi(pair),
        Divergence::TotalVariation => {
            let gap = pair.q.prob.clone() - pair.p.prob.clone();
            let g = pair.at_peak.d.clone().sign() * -0.5;
            Terms {
                f: gap.clone().abs() * 0.5,
                h: pair.q.prob.clone() * (gap.sign() * 0.5 - g.clone()),
                g,
            }
        }
    }
}

/// Of weights `[N, 1]`.
fn two_kl(forward: Tensor<2>, reverse: Tensor<2>, entropy: f64, pair: &Pair) -> Terms {
    let (p, q) = (&pair.p, &pair.q);
    let log_ratio = p.log.clone() * entropy - q.log.clone();
    let back = q.prob.clone() * pair.d.clone();
    let h = forward.clone() * pair.gap() + reverse.clone() * (q.prob.clone() * pair.r.clone());
    let g = reverse.clone() * (pair.at_peak.d.clone() - 1.0)
        + forward.clone() * pair.at_peak.ratio.clone();
    Terms {
        f: forward * (p.prob.clone() * log_ratio) - reverse * back,
        h: h.neg(),
        g: g.neg(),
    }
}

fn todi(pair: &Pair) -> Terms {
    let (p, q, d) = (&pair.p.prob, &pair.q.prob, &pair.d);
    let (share, other) = (sigmoid(d.clone()), sigmoid(d.clone().neg()));
    let peak = &pair.at_peak.d;
    let (share_peak, other_peak) = (sigmoid(peak.clone()), sigmoid(peak.clone().neg()));
    // w less that at the peak; the smaller shares have the digits.
    let near = share.clone() * other_peak.clone() * expm1(pair.r.clone().neg()).neg();
    let [n, vocab] = d.dims();
    let teacher_leads = peak.clone().greater_elem(0.0).expand([n, vocab]);
    let by_teacher = share.clone() - share_peak.clone();
    let by_student = other_peak.clone() - other.clone();
    let weight = where_near(pair, near, by_teacher.mask_where(teacher_leads, by_student));
    Terms {
        f: d.clone() * (share * p.clone() - other.clone() * q.clone()),
        h: q.clone() * (weight * peak.clone() - other * pair.r.clone()) - pair.gap(),
        g: other_peak * (peak.clone().neg() + 1.0) - share_peak * pair.at_peak.ratio.clone(),
    }
}

/// The published code's entropy `[N, 1]`, with the digits of a peak that has nearly all.
fn entropy_of(x: &Softmax) -> Tensor<2> {
    let peak = x.is_at(&x.peak);
    let term = x.prob.clone() * (x.prob.clone() + 1e-9).log();
    let others = term.mask_fill(peak, 0.0).sum_dim(1);
    let at_peak = (x.rest.clone().neg() + 1.0) * ln_1p(x.rest.clone().neg() + 1e-9);
    (others + at_peak).neg()
}

/// Share of the forward half in AKL: the head's gap over both gaps, `[N, 1]`.
fn akl_share(pair: &Pair, mu: f64, fidelity: Fidelity) -> Tensor<2> {
    let (sorted, order) = pair.p.prob.clone().sort_descending_with_indices(1);
    let mass = sorted.clone().cumsum(1);
    let inside = match fidelity {
        Fidelity::Official => {
            let [n, _] = sorted.dims();
            let first = Tensor::ones([n, 1], &sorted.device());
            mass.lower_elem(mu)
                .float()
                .slice_assign([0..n, 0..1], first)
        }
        Fidelity::Paper => (mass - sorted).lower_elem(mu).float(),
    };
    let gap = pair.distance();
    let head = (gap.clone().gather(1, order) * inside).sum_dim(1);
    let both = gap.sum_dim(1);
    let equal = both.clone().lower_equal_elem(0.0);
    (head / both).mask_fill(equal, 0.5)
}

/// A mixture `a p + b q` through `x = log(a p / (b q))`.
struct Mixture {
    ln_a: f64,
    ln_b: f64,
    /// x at the peak
    x: Tensor<2>,
    here: Softplus,
    peak: Softplus,
}

struct Softplus {
    /// log(1 + e^x) = -log(b q / m)
    up: Tensor<2>,
    /// log(1 + e^-x) = -log(a p / m)
    down: Tensor<2>,
    /// a p / m and b q / m
    share: Tensor<2>,
    other: Tensor<2>,
    /// share - up
    beyond: Tensor<2>,
}

impl Softplus {
    fn new(x: Tensor<2>) -> Self {
        let tail = ln_1p(x.clone().abs().neg().exp());
        let up = x.clone().clamp_min(0.0) + tail.clone();
        let share = sigmoid(x.clone());
        // far below 0, where both are nearly e^x: the sum of (1/k - 1) (-e^x)^k from k = 2 on
        let e = x.clone().clamp_max(-1.6).exp();
        let mut series = Tensor::zeros_like(&e);
        for k in (2..=14).rev() {
            let coefficient = (1.0 / f64::from(k) - 1.0) * (-1f64).powi(k);
            series = series * e.clone() + coefficient;
        }
        let series = series * e.clone() * e;
        let beyond = share.clone() - up.clone();
        Self {
            up,
            down: x.clone().neg().clamp_min(0.0) + tail,
            share,
            other: sigmoid(x.clone().neg()),
            beyond: beyond.mask_where(x.lower_elem(-1.6), series),
        }
    }
}

impl Mixture {
    /// `a` is the teacher's share.
    fn new(a: f64, pair: &Pair) -> Self {
        // finite logarithms at the ends of [0, 1]
        let ln = |x: f64| x.max(1e-30).ln();
        let (ln_a, ln_b) = (ln(a), ln(1.0 - a));
        let x = pair.at_peak.d.clone() + (ln_a - ln_b);
        Self {
            ln_a,
            ln_b,
            here: Softplus::new(pair.r.clone() + x.clone()),
            peak: Softplus::new(x.clone()),
            x,
        }
    }
}

/// `far`, but `near` where r is.
fn where_near(pair: &Pair, near: Tensor<2>, far: Tensor<2>) -> Tensor<2> {
    far.mask_where(pair.r.clone().abs().lower_equal_elem(NEAR), near)
}

fn jensen(lambda: f64, pair: &Pair) -> Terms {
    let m = Mixture::new(1.0 - lambda, pair);
    let q = pair.q.prob.clone() * lambda;
    let p = pair.p.prob.clone() * (1.0 - lambda);
    let growth = m.peak.share.clone() * expm1(pair.r.clone());
    let gain = where_near(pair, ln_1p(growth), m.here.up.clone() - m.peak.up.clone());
    Terms {
        f: (q.clone() * (m.here.up + m.ln_b) + p * (m.here.down + m.ln_a)).neg(),
        h: (q * gain).neg(),
        g: (m.peak.up + m.ln_b) * -lambda,
    }
}

fn skew_forward(lambda: f64, entropy: f64, pair: &Pair) -> Terms {
    let m = Mixture::new(lambda, pair);
    let odds = (1.0 - lambda) / lambda;
    let log_ratio = m.here.down.clone().neg() - m.ln_a;
    let near = m.peak.share.clone() * m.here.other.clone() * expm1(pair.r.clone());
    // The smaller shares have the digits.
    let [n, vocab] = pair.d.dims();
    let teacher_leads = m.peak.share.clone().greater_elem(0.5).expand([n, vocab]);
    let by_teacher = m.here.share - m.peak.share.clone();
    let by_student = m.peak.other - m.here.other;
    let far = by_teacher.mask_where(teacher_leads, by_student);
    Terms {
        f: pair.p.prob.clone() * (log_ratio - pair.p.log.clone() * (1.0 - entropy)),
        h: pair.q.prob.clone() * where_near(pair, near, far) * -odds,
        g: m.peak.share * -odds,
    }
}

fn skew_reverse(lambda: f64, pair: &Pair) -> Terms {
    let m = Mixture::new(1.0 - lambda, pair);
    // The slope of `beyond` is -share^2: its integral from the peak on, by Gauss's three points.
    let mut slope = Tensor::zeros_like(&pair.r);
    let outer = 0.6f64.sqrt();
    for (point, weight) in [(-outer, 5.0), (0.0, 8.0), (outer, 5.0)] {
        let share = sigmoid(pair.r.clone() * (0.5 + 0.5 * point) + m.x.clone());
        slope = slope + share.square() * (weight / 18.0);
    }
    let near = (slope * pair.r.clone()).neg();
    let gain = where_near(pair, near, m.here.beyond - m.peak.beyond.clone());
    Terms {
        f: (pair.q.prob.clone() * (m.here.up + m.ln_b)).neg(),
        h: pair.q.prob.clone() * gain,
        g: m.peak.beyond - m.ln_b,
    }
}

/// With s = alpha + beta and phi_x = (e^(x d) - 1) / x: `f = q^s (phi_s - phi_alpha) / beta`,
/// `q g = -q^s phi_alpha`, and their limits.
pub(super) fn alpha_beta(alpha: f64, beta: f64, fidelity: Fidelity, pair: &Pair) -> Terms {
    let s = alpha + beta;
    let d = &pair.d;
    // The powers of an entry by that of its larger probability, whose logarithm has the smaller error.
    let (above, below) = (d.clone().clamp_min(0.0), d.clone().clamp_max(0.0));
    let top = pair.p.log.clone().max_pair(pair.q.log.clone()) * s;
    let student = power(top.clone() - above.clone() * s);
    let teacher = power(top.clone() + below.clone() * s);
    let mixed = power(top + below * alpha - above * beta);
    let phi = |x: f64, moved: &Tensor<2>| scaled_phi(x, student.clone(), moved.clone(), d);
    let phi_alpha = phi(alpha, &mixed);
    let official = |x: f64| {
        if fidelity == Fidelity::Official {
            x
        } else {
            1.0
        }
    };
    let (f, factor) = if alpha == 0.0 && beta == 0.0 {
        (d.clone().square() * 0.5, 1.0)
    } else if beta == 0.0 {
        let f = (d.clone() * teacher - phi_alpha.clone()) / alpha;
        (f, official(alpha))
    } else {
        let factor = if alpha == 0.0 {
            official(beta)
        } else if s == 0.0 {
            official(alpha)
        } else {
            1.0
        };
        // Equal for all numbers; the smaller divisor would enlarge what rounding left.
        let far = if beta.abs() < s.abs() {
            let rest = scaled_phi(beta, mixed.clone(), teacher, d);
            (rest - phi_alpha.clone()) / s
        } else {
            (phi(s, &teacher) - phi_alpha.clone()) / beta
        };
        // By its series in d where it is a small difference: the sum of (s^k + s^(k-1) alpha + .. + alpha^k) d^(k+2) / (k+2)!.
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
        (far.mask_where(is_near.lower_equal_elem(0.5), near), factor)
    };
    // With X = (s - 1) u, h is the sum of two parts, both small if X and r are.
    let peak = &pair.at_peak;
    let one = Tensor::ones_like(&peak.d);
    let at_peak = power(peak.lq.clone() * (s - 1.0))
        * scaled_phi(alpha, one, power(peak.d.clone() * alpha), &peak.d);
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
