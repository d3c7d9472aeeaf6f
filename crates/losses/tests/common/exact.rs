//! Every divergence in f64, a row at a time and without any care for speed.

use abkd_losses::{Divergence, Fidelity};

use super::log_softmax;

/// What the choices of a divergence (AKL's head, AlphaNet's member, BDKD's weights, the sign in the total
/// variation) must not hang on: f32 would be free to choose otherwise.
const TIE: f64 = 1e-5;

/// Values `[N]` and gradients `[N, V]` of rows without masked entries; `None` where a choice is a tie.
pub fn exact(
    d: &Divergence,
    fidelity: Fidelity,
    z: &[f32],
    t: &[f32],
    vocab: usize,
) -> Option<(Vec<f64>, Vec<f64>)> {
    let rows = z.chunks(vocab).zip(t.chunks(vocab));
    let rows: Vec<Row> = rows.map(|(z, t)| Row::new(z, t)).collect();
    let entropy = if fidelity == Fidelity::Paper {
        1.0
    } else {
        0.0
    };
    let found = match *d {
        Divergence::AlphaNet { a, b } => alpha_net(&rows, a, b, fidelity)?,
        Divergence::Bdkd => {
            let each = rows.iter().map(|row| row.bdkd(fidelity));
            each.collect::<Option<Vec<_>>>()?
        }
        Divergence::Akl { mu } => {
            let each = rows.iter().map(|row| {
                let share = row.akl_share(mu, fidelity)?;
                Some(row.two(share, 1.0 - share, 1.0))
            });
            each.collect::<Option<Vec<_>>>()?
        }
        Divergence::TotalVariation if rows.iter().any(Row::touches) => return None,
        _ => rows
            .iter()
            .map(|row| row.formula(d, fidelity, entropy))
            .collect(),
    };
    let (values, grads): (Vec<f64>, Vec<Vec<f64>>) = found.into_iter().unzip();
    Some((values, grads.concat()))
}

/// Logarithms of both distributions.
struct Row {
    lp: Vec<f64>,
    lq: Vec<f64>,
}

/// A row's value and its gradient `[V]`.
type Found = (f64, Vec<f64>);

impl Row {
    fn new(z: &[f32], t: &[f32]) -> Self {
        Self {
            lp: log_softmax(t),
            lq: log_softmax(z),
        }
    }

    /// Sums f, and makes the gradient in the logits of h = q df/dq.
    fn sum(&self, f_h: impl Fn(f64, f64) -> (f64, f64)) -> Found {
        let entries = self.lp.iter().zip(&self.lq);
        let (f, h): (Vec<f64>, Vec<f64>) = entries.map(|(&lp, &lq)| f_h(lp, lq)).unzip();
        let sum: f64 = h.iter().sum();
        let grad = h.iter().zip(&self.lq).map(|(h, lq)| h - lq.exp() * sum);
        (f.iter().sum(), grad.collect())
    }

    /// `forward KL(p, q) + reverse KL(q, p)`; without `entropy` the first is the cross-entropy.
    fn two(&self, forward: f64, reverse: f64, entropy: f64) -> Found {
        self.sum(|lp, lq| {
            let (p, back) = (lp.exp(), lq.exp() * (lq - lp));
            (
                forward * p * (entropy * lp - lq) + reverse * back,
                reverse * back - forward * p,
            )
        })
    }

    fn formula(&self, d: &Divergence, fidelity: Fidelity, entropy: f64) -> Found {
        match *d {
            Divergence::ForwardKl => self.two(1.0, 0.0, entropy),
            Divergence::ReverseKl => self.two(0.0, 1.0, entropy),
            Divergence::Wsd { weight } => self.two(1.0 - weight, weight, entropy),
            Divergence::Jensen { lambda } => self.sum(|lp, lq| {
                let (p, q) = (lp.exp(), lq.exp());
                let lm = ((1.0 - lambda) * p + lambda * q).ln();
                let student = lambda * q * (lq - lm);
                (student + (1.0 - lambda) * p * (lp - lm), student)
            }),
            Divergence::SkewForwardKl { lambda } => self.sum(|lp, lq| {
                let (p, q) = (lp.exp(), lq.exp());
                let m = lambda * p + (1.0 - lambda) * q;
                (p * (entropy * lp - m.ln()), -p * (1.0 - lambda) * q / m)
            }),
            Divergence::SkewReverseKl { lambda } => self.sum(|lp, lq| {
                let (p, q) = (lp.exp(), lq.exp());
                let m = (1.0 - lambda) * p + lambda * q;
                let f = q * (lq - m.ln());
                (f, f - lambda * q * q / m)
            }),
            Divergence::AlphaBeta { alpha, beta } => self.alpha_beta(alpha, beta, fidelity),
            Divergence::TotalVariation => self.sum(|lp, lq| {
                let gap = lp.exp() - lq.exp();
                (0.5 * gap.abs(), -0.5 * lq.exp() * gap.signum())
            }),
            Divergence::Bdkd | Divergence::Akl { .. } | Divergence::AlphaNet { .. } => {
                unreachable!("choices, not formulas")
            }
        }
    }

    fn alpha_beta(&self, a: f64, b: f64, fidelity: Fidelity) -> Found {
        let s = a + b;
        let limit = if b == 0.0 || s == 0.0 { a } else { b };
        let at_limit = a == 0.0 || b == 0.0 || s == 0.0;
        // The released code divides by the number that is left, not by its square.
        let factor = if at_limit && limit != 0.0 && fidelity == Fidelity::Official {
            limit
        } else {
            1.0
        };
        self.sum(|lp, lq| {
            let d = lp - lq;
            let f = if a == 0.0 && b == 0.0 {
                0.5 * d.powi(2)
            } else if a == 0.0 {
                (-(b * lq).exp() * b * d - (b * lq).exp() + (b * lp).exp()) / (b * b)
            } else if b == 0.0 {
                ((a * lp).exp() * a * d - (a * lp).exp() + (a * lq).exp()) / (a * a)
            } else if s == 0.0 {
                (-a * d + (a * d).exp() - 1.0) / (a * a)
            } else {
                let mixed = (a * lp + b * lq).exp();
                (a / s * (s * lp).exp() + b / s * (s * lq).exp() - mixed) / (a * b)
            };
            let phi = if a == 0.0 { d } else { (a * d).exp_m1() / a };
            (factor * f, -factor * (s * lq).exp() * phi)
        })
    }

    fn bdkd(&self, fidelity: Fidelity) -> Option<Found> {
        let entropy = |l: &[f64]| -> f64 {
            let terms = l.iter().map(|l| -l.exp() * (l.exp() + 1e-9).ln());
            terms.sum()
        };
        let more = entropy(&self.lq) - entropy(&self.lp);
        let (heavy, kept) = match fidelity {
            Fidelity::Official => (3.0, 0.0),
            Fidelity::Paper => (2.0, 1.0),
        };
        let [forward, reverse] = if more > 0.0 {
            [1.0, heavy]
        } else {
            [heavy, 1.0]
        };
        (more.abs() > TIE).then(|| self.two(forward, reverse, kept))
    }

    /// Share of the forward half in AKL.
    fn akl_share(&self, mu: f64, fidelity: Fidelity) -> Option<f64> {
        let mut order: Vec<usize> = (0..self.lp.len()).collect();
        order.sort_by(|&a, &b| self.lp[b].total_cmp(&self.lp[a]));
        let (mut mass, mut head, mut tail) = (0.0, 0.0, 0.0);
        let mut last_inside = None;
        for (i, &token) in order.iter().enumerate() {
            let p = self.lp[token].exp();
            let gap = (p - self.lq[token].exp()).abs();
            let (before, free) = (mass, i == 0);
            mass += p;
            let (inside, reached) = match fidelity {
                Fidelity::Official => (free || mass < mu, mass),
                Fidelity::Paper => (before < mu, before),
            };
            let by_rounding = (reached - mu).abs() < TIE && !free;
            let twin = last_inside.is_some_and(|lp: f64| lp - self.lp[token] < TIE);
            if by_rounding || (!inside && tail == 0.0 && twin) {
                return None;
            }
            if inside {
                head += gap;
                last_inside = Some(self.lp[token]);
            } else {
                tail += gap;
            }
        }
        (head + tail > TIE).then_some(head / (head + tail))
    }

    /// Whether p = q to f32 anywhere.
    fn touches(&self) -> bool {
        let mut gaps = self.lp.iter().zip(&self.lq).map(|(p, q)| (p - q).abs());
        gaps.any(|gap| gap < TIE)
    }
}

/// The larger member: of the rows together (official) or of each (paper).
fn alpha_net(rows: &[Row], a: f64, b: f64, fidelity: Fidelity) -> Option<Vec<Found>> {
    let members = |row: &Row| [a, b].map(|a| row.alpha_beta(a, 1.0 - a, Fidelity::Paper));
    let both: Vec<[Found; 2]> = rows.iter().map(members).collect();
    let sum = |member: usize| both.iter().map(|row| row[member].0).sum::<f64>();
    let together = [sum(0), sum(1)];
    let choose = |[one, two]: [Found; 2]| {
        let [a, b] = match fidelity {
            Fidelity::Official => together,
            Fidelity::Paper => [one.0, two.0],
        };
        ((b - a).abs() > TIE * (a + b)).then_some(if b > a { two } else { one })
    };
    both.into_iter().map(choose).collect()
}
