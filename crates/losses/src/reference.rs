//! Every divergence as tensor operations, for any backend: the readable form of what [`row`](crate::row)
//! computes, and what runs where there is no row kernel.

use burn::tensor::activation::sigmoid;
use burn::tensor::{Bool, Int, Tensor, TensorData};

use crate::error::Model;
use crate::{Divergence, Error, Fidelity, Rows, check_shapes};

/// Largest exponent of a power.
const SATURATE: f64 = 60.0;

/// Both distributions `[N, V]`, their logarithms, and the entries that count.
struct Pair {
    p: Tensor<2>,
    q: Tensor<2>,
    lp: Tensor<2>,
    lq: Tensor<2>,
    left_out: Tensor<2, Bool>,
    /// q in rows with such entries, else 0: a part c q of h changes the gradient in those rows alone, and
    /// h is more accurate without it.
    loose: Tensor<2>,
}

/// See [`value_and_grad`](crate::value_and_grad).
///
/// # Errors
///
/// Shapes that differ; a row without a finite logit, or with NaN or `+inf`.
pub fn value_and_grad(
    divergence: &Divergence,
    fidelity: Fidelity,
    student: Tensor<2>,
    teacher: Tensor<2>,
) -> Result<Rows, Error> {
    check_shapes(&student, &teacher)?;
    if student.dims()[0] == 0 {
        let value = Tensor::zeros([0], &student.device());
        return Ok(Rows {
            value,
            grad: student,
        });
    }
    let minus_inf = |x: &Tensor<2>| x.clone().equal_elem(f32::NEG_INFINITY);
    let left_out = minus_inf(&student).bool_or(minus_inf(&teacher));
    let (q, lq) = normalized(student, Model::Student)?;
    let (p, lp) = normalized(teacher, Model::Teacher)?;
    let loose = q.clone() * left_out.clone().float().max_dim(1);
    let pair = Pair {
        p,
        q,
        lp,
        lq,
        left_out,
        loose,
    };
    if let Divergence::AlphaNet { a, b } = *divergence {
        return Ok(alpha_net(&pair, [a, b], fidelity));
    }
    let (f, h) = formulas(divergence, fidelity, &pair);
    Ok(rows(f, h, &pair))
}

/// See [`cross_entropy_value_and_grad`](crate::cross_entropy_value_and_grad).
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`.
pub fn cross_entropy(student: Tensor<2>, labels: &[u32]) -> Result<Rows, Error> {
    let device = student.device();
    let [n, vocab] = student.dims();
    let ids: Vec<i32> = labels.iter().map(|&l| l as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), &device);
    let (q, log_q) = normalized(student, Model::Student)?;
    let value = log_q.clone().gather(1, ids.clone()).neg().squeeze_dim(1);
    let tokens = Tensor::<1, Int>::arange(0..vocab as i64, &device)
        .unsqueeze::<2>()
        .expand([n, vocab]);
    let onehot = tokens.equal(ids.expand([n, vocab])).float();
    Ok(Rows {
        value,
        grad: q - onehot,
    })
}

/// Softmax and log-softmax of rows that have one.
fn normalized(logits: Tensor<2>, model: Model) -> Result<(Tensor<2>, Tensor<2>), Error> {
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
    let shifted = logits.clone() - logits.max_dim(1);
    let powers = shifted.clone().exp();
    let sum = powers.clone().sum_dim(1);
    Ok((powers / sum.clone(), shifted - sum.log()))
}

/// Sums f and turns h into the gradient in the logits.
fn rows(f: Tensor<2>, h: Tensor<2>, pair: &Pair) -> Rows {
    let f = f.mask_fill(pair.left_out.clone(), 0.0);
    let h = h.mask_fill(pair.left_out.clone(), 0.0);
    let grad = h.clone() - pair.q.clone() * h.sum_dim(1);
    // The gradient sums to 0; what rounding left of the sum is taken off again, since the two terms
    // nearly cancel where q is near 1.
    let grad = grad.clone() - pair.q.clone() * grad.sum_dim(1);
    Rows {
        value: f.sum_dim(1).squeeze_dim(1),
        grad,
    }
}

/// f and h of every entry.
fn formulas(divergence: &Divergence, fidelity: Fidelity, pair: &Pair) -> (Tensor<2>, Tensor<2>) {
    let Pair { p, q, lp, lq, .. } = pair;
    let entropy = if fidelity == Fidelity::Paper {
        1.0
    } else {
        0.0
    };
    let forward = |entropy: f64| {
        (
            p.clone() * (lp.clone() * entropy - lq.clone()),
            p.clone().neg(),
        )
    };
    let reverse = || {
        let f = q.clone() * (lq.clone() - lp.clone());
        (f.clone(), f + pair.loose.clone())
    };
    // weights [N, 1] or scalars
    let both = |entropy: f64, w_forward: Tensor<2>, w_reverse: Tensor<2>| {
        let ((f1, h1), (f2, h2)) = (forward(entropy), reverse());
        (
            f1 * w_forward.clone() + f2 * w_reverse.clone(),
            h1 * w_forward + h2 * w_reverse,
        )
    };
    let constant = |x: f64| Tensor::<2>::full([p.dims()[0], 1], x, &p.device());
    match *divergence {
        Divergence::ForwardKl => forward(entropy),
        Divergence::ReverseKl => reverse(),
        Divergence::Wsd { weight } => both(entropy, constant(1.0 - weight), constant(weight)),
        Divergence::Bdkd => {
            let (heavy, entropy) = if fidelity == Fidelity::Official {
                (3.0, 0.0)
            } else {
                (2.0, 1.0)
            };
            let entropy_of =
                |x: &Tensor<2>| (x.clone() * (x.clone() + 1e-9).log()).sum_dim(1).neg();
            let flatter = entropy_of(q).greater(entropy_of(p)).float(); // [N, 1]
            let extra = flatter * (heavy - 1.0);
            both(entropy, extra.clone().neg() + heavy, extra + 1.0)
        }
        Divergence::Jensen { lambda } => {
            let m = Mixture::new(1.0 - lambda, pair);
            let h = q.clone() * m.up * -lambda;
            let teacher = p.clone() * (m.down + m.ln_a) * (1.0 - lambda);
            let f = h.clone() - q.clone() * (lambda * m.ln_b) - teacher;
            (f, h - pair.loose.clone() * (lambda * m.ln_b))
        }
        Divergence::Akl { mu } => {
            let share = akl_share(pair, mu, fidelity);
            both(1.0, share.clone(), share.neg() + 1.0)
        }
        Divergence::AlphaNet { .. } => {
            unreachable!("handled by the caller: it is a choice, not a formula")
        }
        Divergence::AlphaBeta { alpha, beta } => alpha_beta(alpha, beta, fidelity, pair),
        Divergence::SkewForwardKl { lambda } => {
            let m = Mixture::new(lambda, pair);
            let log_ratio = m.down.neg() - m.ln_a;
            (
                p.clone() * (log_ratio - lp.clone() * (1.0 - entropy)),
                p.clone() * (m.share - 1.0),
            )
        }
        Divergence::SkewReverseKl { lambda } => {
            let m = Mixture::new(1.0 - lambda, pair);
            (
                q.clone() * (m.up.clone() + m.ln_b).neg(),
                q.clone() * (m.share - m.up) - pair.loose.clone() * m.ln_b,
            )
        }
        Divergence::TotalVariation => {
            let gap = q.clone() - p.clone();
            (gap.clone().abs() * 0.5, q.clone() * gap.sign() * 0.5)
        }
    }
}

/// With d = log(p/q), s = alpha + beta and phi_x = (e^(x d) - 1) / x:
/// `f = q^s (phi_s - phi_alpha) / beta`, `h = -q^s phi_alpha`, and their limits.
fn alpha_beta(alpha: f64, beta: f64, fidelity: Fidelity, pair: &Pair) -> (Tensor<2>, Tensor<2>) {
    let d = pair.lp.clone() - pair.lq.clone();
    let s = alpha + beta;
    let power = |x: Tensor<2>| x.clamp_max(SATURATE).exp();
    // q^s phi_x; near 0 by its series, where the difference of two powers would lose its digits
    let scaled = |x: f64| {
        let scale = power(pair.lq.clone() * s);
        let xd = d.clone() * x;
        let mut series = xd.clone() / 8.0 + 1.0;
        for k in (2..8).rev() {
            series = series * xd.clone() / f64::from(k) + 1.0;
        }
        let near = scale.clone() * d.clone() * series;
        if x == 0.0 {
            return near;
        }
        let far = (power(pair.lq.clone() * s + xd.clone()) - scale) / x;
        far.mask_where(xd.abs().lower_equal_elem(0.5), near)
    };
    let official = |x: f64| {
        if fidelity == Fidelity::Official {
            x
        } else {
            1.0
        }
    };
    if alpha == 0.0 && beta == 0.0 {
        return (d.clone().square() * 0.5, d.neg());
    }
    let phi = scaled(alpha);
    let (f, factor) = if beta == 0.0 {
        (
            (d.clone() * power(pair.lp.clone() * alpha) - phi.clone()) / alpha,
            official(alpha),
        )
    } else {
        let factor = if alpha == 0.0 {
            official(beta)
        } else if s == 0.0 {
            official(alpha)
        } else {
            1.0
        };
        ((scaled(s) - phi.clone()) / beta, factor)
    };
    (f * factor, phi * -factor)
}

fn alpha_net(pair: &Pair, alphas: [f64; 2], fidelity: Fidelity) -> Rows {
    let [one, two] = alphas.map(|a| {
        let (f, h) = alpha_beta(a, 1.0 - a, Fidelity::Paper, pair);
        rows(f, h, pair)
    });
    larger(one, two, fidelity)
}

/// AlphaNet's choice between its members.
pub(crate) fn larger(one: Rows, two: Rows, fidelity: Fidelity) -> Rows {
    if fidelity == Fidelity::Official {
        let larger = two.value.clone().sum().into_scalar::<f32>()
            > one.value.clone().sum().into_scalar::<f32>();
        return if larger { two } else { one };
    }
    let larger = two.value.clone().greater(one.value.clone());
    let columns = larger.clone().unsqueeze_dim::<2>(1).expand(one.grad.dims());
    Rows {
        value: one.value.mask_where(larger, two.value),
        grad: one.grad.mask_where(columns, two.grad),
    }
}

/// Share of the forward half in AKL: the head's gap over both gaps, `[N, 1]`.
fn akl_share(pair: &Pair, mu: f64, fidelity: Fidelity) -> Tensor<2> {
    let (sorted, order) = pair.p.clone().sort_descending_with_indices(1);
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
    let gap = (pair.p.clone() - pair.q.clone()).abs();
    let head = (gap.clone().gather(1, order) * inside).sum_dim(1);
    let both = gap.sum_dim(1);
    let equal = both.clone().lower_equal_elem(0.0);
    (head / both).mask_fill(equal, 0.5)
}

/// A mixture `a p + b q` through `x = log(a p / (b q))`, see [`row`](crate::row).
struct Mixture {
    ln_a: f64,
    ln_b: f64,
    /// log(1 + e^x) = -log(b q / m)
    up: Tensor<2>,
    /// log(1 + e^-x) = -log(a p / m)
    down: Tensor<2>,
    /// a p / m
    share: Tensor<2>,
}

impl Mixture {
    fn new(a: f64, pair: &Pair) -> Self {
        let ln = |x: f64| x.max(1e-30).ln();
        let (ln_a, ln_b) = (ln(a), ln(1.0 - a));
        let x = pair.lp.clone() - pair.lq.clone() + (ln_a - ln_b);
        let tail = x.clone().abs().neg().exp().log1p();
        let up = x.clone().clamp_min(0.0) + tail.clone();
        Self {
            ln_a,
            ln_b,
            up,
            down: x.clone().neg().clamp_min(0.0) + tail,
            share: sigmoid(x),
        }
    }
}
