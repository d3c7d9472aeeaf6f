//! Every divergence by its formula, in [`Wide`] numbers, one row at a time; speed does not matter.

use abkd_losses::{Divergence, Fidelity};

use super::wide::Wide;

/// A choice of a divergence (AKL's head, AlphaNet's member, BDKD's weights, the sign in the total variation) with a smaller
/// margin is a tie: f32 may choose otherwise.
const TIE: f64 = 1e-5;
/// Rounding errors of AlphaNet's sums here, whose terms are of order 1. Values below it cannot be compared.
const ROUNDED: f64 = 1e-29;
/// Exponents at which the powers of the alpha-beta family are about to saturate.
const SATURATED: f64 = 59.0;

/// A row's value, its gradient `[V]`, and how far any entry of the gradient may be off because f32 may choose otherwise.
pub struct Found {
    pub value: f64,
    pub grad: Vec<f64>,
    pub slack: f64,
}

/// Rows without masked entries; `None` where a choice is a tie or a power saturates.
pub fn exact(
    d: &Divergence,
    fidelity: Fidelity,
    z: &[f32],
    t: &[f32],
    vocab: usize,
) -> Option<Vec<Found>> {
    let rows = z.chunks(vocab).zip(t.chunks(vocab));
    let rows: Vec<Row> = rows.map(|(z, t)| Row::new(z, t)).collect();
    exact_of_rows(d, fidelity, &rows)
}

/// The same, for rows that are already normalised.
pub fn exact_of_rows(d: &Divergence, fidelity: Fidelity, rows: &[Row]) -> Option<Vec<Found>> {
    let params: Vec<f64> = d.params().into_iter().map(|(_, value)| value).collect();
    match Formula::of(d).computed {
        Each(found) => rows
            .iter()
            .map(|row| found(row, &params, fidelity))
            .collect(),
        Together(found) => found(rows, &params, fidelity),
    }
}

/// Whether the gradient is the slope of the value: no weight is held constant for it, and there is no kink.
pub fn gradient_is_slope(d: &Divergence) -> bool {
    Formula::of(d).gradient_is_slope
}

/// A divergence's formula; `None` where a choice is a tie or a power saturates.
struct Formula {
    id: &'static str,
    gradient_is_slope: bool,
    computed: Computed,
}

type AllFound = Option<Vec<Found>>;

/// From the parameters in the order of [`Divergence::params`].
enum Computed {
    Each(fn(&Row, &[f64], Fidelity) -> Option<Found>),
    Together(fn(&[Row], &[f64], Fidelity) -> AllFound),
}

use Computed::{Each, Together};

impl Formula {
    fn of(d: &Divergence) -> &'static Self {
        FORMULAS
            .iter()
            .find(|formula| formula.id == d.id())
            .unwrap_or_else(|| panic!("`{}` has no formula in f64", d.id()))
    }
}

/// The formulas of all divergences.
const FORMULAS: &[Formula] = &[
    Formula {
        id: "fkld",
        gradient_is_slope: true,
        computed: Each(|row, _, fidelity| Some(row.two(1.0, 0.0, entropy(fidelity)))),
    },
    Formula {
        id: "rkld",
        gradient_is_slope: true,
        computed: Each(|row, _, fidelity| Some(row.two(0.0, 1.0, entropy(fidelity)))),
    },
    Formula {
        id: "wsd",
        gradient_is_slope: true,
        computed: Each(|row, params, fidelity| {
            Some(row.two(1.0 - params[0], params[0], entropy(fidelity)))
        }),
    },
    Formula {
        id: "bdkd",
        gradient_is_slope: false,
        computed: Each(|row, _, fidelity| row.bdkd(fidelity)),
    },
    Formula {
        id: "jensen",
        gradient_is_slope: true,
        computed: Each(|row, params, _| {
            let lambda = params[0];
            Some(row.sum(|Entry { p, q, lp, lq }| {
                let lm = (p * (1.0 - lambda) + q * lambda).ln();
                let student = q * (lq - lm) * lambda;
                (student + p * (lp - lm) * (1.0 - lambda), student)
            }))
        }),
    },
    Formula {
        id: "akl",
        gradient_is_slope: false,
        computed: Each(|row, params, fidelity| {
            let share = row.akl_share(params[0], fidelity)?;
            Some(row.two(share, 1.0 - share, 1.0))
        }),
    },
    Formula {
        id: "alphanet",
        // where the members are equal there is a kink
        gradient_is_slope: false,
        computed: Together(|rows, params, fidelity| {
            alpha_net(rows, params[0], params[1], fidelity)
        }),
    },
    Formula {
        id: "ab",
        gradient_is_slope: true,
        computed: Each(|row, params, fidelity| {
            let (alpha, beta) = (params[0], params[1]);
            let official = fidelity == Fidelity::Official;
            (!row.saturates(alpha, beta)).then(|| row.alpha_beta(alpha, beta, official))
        }),
    },
    Formula {
        id: "skew_fkl",
        gradient_is_slope: true,
        computed: Each(|row, params, fidelity| {
            let (lambda, entropy) = (params[0], entropy(fidelity));
            Some(row.sum(|Entry { p, q, lp, .. }| {
                let m = p * lambda + q * (1.0 - lambda);
                (p * (lp * entropy - m.ln()), -(p * (1.0 - lambda) * q) / m)
            }))
        }),
    },
    Formula {
        id: "skew_rkl",
        gradient_is_slope: true,
        computed: Each(|row, params, _| {
            let lambda = params[0];
            Some(row.sum(|Entry { p, q, lq, .. }| {
                let m = p * (1.0 - lambda) + q * lambda;
                let f = q * (lq - m.ln());
                (f, f - q * q * lambda / m)
            }))
        }),
    },
    Formula {
        id: "tvd",
        gradient_is_slope: false,
        computed: Each(|row, _, _| {
            let found = row.sum(|Entry { p, q, .. }| {
                let sign = (q.partial_cmp(&p)).expect("numbers") as i8;
                ((p - q).abs() * 0.5, q * (0.5 * f64::from(sign)))
            });
            let slack = row.undecided_sign()?;
            Some(Found { slack, ..found })
        }),
    },
    Formula {
        id: "todi",
        gradient_is_slope: false,
        computed: Each(|row, _, _| {
            Some(row.sum(|Entry { p, q, lp, lq }| {
                let (w, d) = (p / (p + q), lp - lq);
                let rest = q / (p + q);
                (w * p * d - rest * q * d, rest * q - rest * q * d - w * p)
            }))
        }),
    },
    Formula {
        id: "jeffreys",
        gradient_is_slope: true,
        computed: Each(|row, _, fidelity| Some(row.two(1.0, 1.0, entropy(fidelity)))),
    },
    Formula {
        id: "chi2",
        gradient_is_slope: true,
        computed: Each(|row, _, _| {
            let found = row.sum(|Entry { p, q, .. }| {
                let gap = p - q;
                (gap * gap / q, q - p * p / q)
            });
            (!row.saturates(2.0, -1.0)).then_some(found)
        }),
    },
    Formula {
        id: "renyi",
        gradient_is_slope: true,
        computed: Each(|row, params, _| {
            let alpha = params[0];
            (!row.saturates(alpha, 1.0 - alpha)).then(|| row.renyi(alpha))
        }),
    },
];

/// Weight of `sum p log p` in a forward KL, which the released code leaves out.
fn entropy(fidelity: Fidelity) -> f64 {
    match fidelity {
        Fidelity::Paper => 1.0,
        Fidelity::Official => 0.0,
    }
}

/// An entry of both distributions.
#[derive(Clone, Copy)]
struct Entry {
    p: Wide,
    q: Wide,
    lp: Wide,
    lq: Wide,
}

pub struct Row(Vec<Entry>);

/// Softmax and its logarithm.
fn softmax(z: &[f32]) -> Vec<(Wide, Wide)> {
    let max = Wide::from(z.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: Wide = z.iter().map(|&z| (Wide::from(z) - max).exp()).sum();
    let log = max + sum.ln();
    let of = |&z: &f32| ((Wide::from(z) - max).exp() / sum, Wide::from(z) - log);
    z.iter().map(of).collect()
}

impl Row {
    pub fn new(z: &[f32], t: &[f32]) -> Self {
        let entries = softmax(t).into_iter().zip(softmax(z));
        Self(
            entries
                .map(|((p, lp), (q, lq))| Entry { p, q, lp, lq })
                .collect(),
        )
    }

    /// Sums f, and computes the gradient in the logits from h = q df/dq.
    fn sum(&self, f_h: impl Fn(Entry) -> (Wide, Wide)) -> Found {
        let (f, h): (Vec<Wide>, Vec<Wide>) = self.0.iter().map(|&e| f_h(e)).unzip();
        let sum: Wide = h.iter().copied().sum();
        let grad = h.iter().zip(&self.0).map(|(&h, e)| (h - e.q * sum).into());
        Found {
            value: f.into_iter().sum::<Wide>().into(),
            grad: grad.collect(),
            slack: 0.0,
        }
    }

    /// `forward KL(p, q) + reverse KL(q, p)`; without `entropy` the first is the cross-entropy.
    fn two(&self, forward: f64, reverse: f64, entropy: f64) -> Found {
        self.sum(|Entry { p, q, lp, lq }| {
            let back = q * (lq - lp) * reverse;
            (p * (lp * entropy - lq) * forward + back, back - p * forward)
        })
    }

    fn alpha_beta(&self, a: f64, b: f64, official: bool) -> Found {
        let s = a + b;
        let limit = if b == 0.0 || s == 0.0 { a } else { b };
        let at_limit = a == 0.0 || b == 0.0 || s == 0.0;
        // The released code divides by the exponent that is not 0, not by its square.
        let factor = if at_limit && limit != 0.0 && official {
            limit
        } else {
            1.0
        };
        let sum = Wide::from(a) + Wide::from(b);
        self.sum(|Entry { lp, lq, .. }| {
            let d = lp - lq;
            let ps = |x: f64| (lp * x).exp();
            let qs = |x: f64| (lq * x).exp();
            let f = if a == 0.0 && b == 0.0 {
                d * d * 0.5
            } else if a == 0.0 {
                (ps(b) - qs(b) - qs(b) * d * b) / Wide::from(b * b)
            } else if b == 0.0 {
                (ps(a) * d * a - ps(a) + qs(a)) / Wide::from(a * a)
            } else if s == 0.0 {
                ((d * a).exp_m1() - d * a) / Wide::from(a * a)
            } else {
                let mixed = (lp * a + lq * b).exp();
                let [a, b] = [a, b].map(Wide::from);
                (a / sum * (lp * sum).exp() + b / sum * (lq * sum).exp() - mixed) / (a * b)
            };
            let phi = if a == 0.0 {
                d
            } else {
                (d * a).exp_m1() / Wide::from(a)
            };
            (f * factor, -((lq * sum).exp() * phi * factor))
        })
    }

    fn renyi(&self, alpha: f64) -> Found {
        let mixed = |e: &Entry| (e.lp * alpha + e.lq * (1.0 - alpha)).exp();
        let sum: Wide = self.0.iter().map(mixed).sum();
        let grad = self.0.iter().map(|e| (e.q - mixed(e) / sum).into());
        Found {
            value: f64::from(sum.ln()) / (alpha - 1.0),
            grad: grad.collect(),
            slack: 0.0,
        }
    }

    /// Whether a power of the alpha-beta divergence saturates in the kernels.
    fn saturates(&self, alpha: f64, beta: f64) -> bool {
        self.0.iter().any(|e| {
            let exponent = |a: f64, b: f64| f64::from(e.lp * a + e.lq * b);
            let s = alpha + beta;
            exponent(alpha, beta)
                .max(exponent(s, 0.0))
                .max(exponent(0.0, s))
                > SATURATED
        })
    }

    fn bdkd(&self, fidelity: Fidelity) -> Option<Found> {
        let entropy = |x: &dyn Fn(&Entry) -> Wide| -> Wide {
            let term = |e| -(x(e) * (x(e) + Wide::from(1e-9)).ln());
            self.0.iter().map(term).sum()
        };
        let (of_q, of_p) = (entropy(&|e| e.q), entropy(&|e| e.p));
        let more = f64::from(of_q - of_p);
        let (heavy, kept) = match fidelity {
            Fidelity::Official => (3.0, 0.0),
            Fidelity::Paper => (2.0, 1.0),
        };
        let [forward, reverse] = if more > 0.0 {
            [1.0, heavy]
        } else {
            [heavy, 1.0]
        };
        // An entropy may be negative here.
        let size = f64::from(of_q.abs() + of_p.abs());
        (more.abs() > TIE * size).then(|| self.two(forward, reverse, kept))
    }

    /// Share of the forward half in AKL.
    fn akl_share(&self, mu: f64, fidelity: Fidelity) -> Option<f64> {
        let mut order: Vec<&Entry> = self.0.iter().collect();
        order.sort_by(|a, b| b.lp.partial_cmp(&a.lp).expect("numbers"));
        let (mut mass, mut head, mut tail) = (0.0, Wide::ZERO, Wide::ZERO);
        let mut last_inside = None;
        for (i, e) in order.into_iter().enumerate() {
            let gap = (e.p - e.q).abs();
            let (before, free) = (mass, i == 0);
            mass += f64::from(e.p);
            let (inside, reached) = match fidelity {
                Fidelity::Official => (free || mass < mu, mass),
                Fidelity::Paper => (before < mu, before),
            };
            let by_rounding = (reached - mu).abs() < TIE && !free;
            let twin = last_inside.is_some_and(|lp: Wide| f64::from(lp - e.lp) < TIE);
            if by_rounding || (!inside && tail == Wide::ZERO && twin) {
                return None;
            }
            if inside {
                head = head + gap;
                last_inside = Some(e.lp);
            } else {
                tail = tail + gap;
            }
        }
        let both = head + tail;
        (f64::from(both) > 0.0).then(|| f64::from(head / both))
    }

    /// Probability of the tokens whose sign f32 cannot decide; `None` if the student's likeliest token is one of them.
    fn undecided_sign(&self) -> Option<f64> {
        let d = |e: &Entry| f64::from(e.lp - e.lq);
        let likelier = |a: &&Entry, b: &&Entry| a.lq.partial_cmp(&b.lq).expect("numbers");
        let peak = self.0.iter().max_by(likelier)?;
        // log p and log q themselves are small where both are near 1
        if d(peak).abs() < TIE * f64::from(peak.lp.abs() + peak.lq.abs()) {
            return None;
        }
        let undecided = |e: &&Entry| d(e).abs() < 1e-6 * (1.0 + f64::from(e.lq).abs());
        let touching = self.0.iter().filter(undecided);
        Some(touching.map(|e| f64::from(e.q)).sum())
    }
}

/// The larger member: of the rows together (official) or of each (paper).
fn alpha_net(rows: &[Row], a: f64, b: f64, fidelity: Fidelity) -> Option<Vec<Found>> {
    if rows
        .iter()
        .any(|row| [a, b].iter().any(|&a| row.saturates(a, 1.0 - a)))
    {
        return None;
    }
    let members = |row: &Row| [a, b].map(|a| row.alpha_beta(a, 1.0 - a, false));
    let both: Vec<[Found; 2]> = rows.iter().map(members).collect();
    let sum = |member: usize| both.iter().map(|row| row[member].value).sum::<f64>();
    let together = [sum(0), sum(1)];
    let choose = |[one, two]: [Found; 2]| {
        let [a, b] = match fidelity {
            Fidelity::Official => together,
            Fidelity::Paper => [one.value, two.value],
        };
        ((b - a).abs() > TIE * (a + b) + ROUNDED).then_some(if b > a { two } else { one })
    };
    both.into_iter().map(choose).collect()
}
