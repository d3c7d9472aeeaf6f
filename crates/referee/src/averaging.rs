//! How the tokens of a batch are averaged.

use crate::Error;
use crate::cases::Case;
use crate::identify::{Found, fit};

/// What a rule may depend on.
struct Counts {
    sequences: f64,
    positions: f64,
    vocab: f64,
    /// Counted tokens of the batch, and of the token's sequence.
    counted: f64,
    of_sequence: f64,
}

/// Weights of the tokens.
pub(crate) struct Rule {
    pub text: &'static str,
    /// Whether tokens without a label have their weight, too.
    pub masked_too: bool,
    weight: fn(&Counts) -> f64,
}

/// The rules, the usual ones first.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        text: "the mean over the counted tokens of the batch",
        masked_too: false,
        weight: |c| 1.0 / c.counted,
    },
    Rule {
        text: "the sum over the counted tokens",
        masked_too: false,
        weight: |_| 1.0,
    },
    Rule {
        text: "the sum over the counted tokens, divided by the number of sequences",
        masked_too: false,
        weight: |c| 1.0 / c.sequences,
    },
    Rule {
        text: "the mean over the sequences of each one's mean: a token of a short answer weighs more",
        masked_too: false,
        weight: |c| 1.0 / (c.sequences * c.of_sequence),
    },
    Rule {
        text: "the sum over the counted tokens, divided by all positions, the masked ones too",
        masked_too: false,
        weight: |c| 1.0 / c.positions,
    },
    Rule {
        text: "the mean over the entries of the counted tokens: divided by the vocabulary",
        masked_too: false,
        weight: |c| 1.0 / (c.counted * c.vocab),
    },
    Rule {
        text: "the sum over the counted tokens, divided by all entries, the masked ones' too",
        masked_too: false,
        weight: |c| 1.0 / (c.positions * c.vocab),
    },
    Rule {
        text: "the mean over all positions: tokens that do not count are trained on",
        masked_too: true,
        weight: |c| 1.0 / c.positions,
    },
    Rule {
        text: "the sum over all positions: tokens that do not count are trained on",
        masked_too: true,
        weight: |_| 1.0,
    },
    Rule {
        text: "the sum over all positions, divided by the number of sequences (torch's `batchmean`): tokens that do not count \
               are trained on",
        masked_too: true,
        weight: |c| 1.0 / c.sequences,
    },
    Rule {
        text: "the mean over all entries (torch's `mean`): tokens that do not count are trained on, all divided by the \
               vocabulary",
        masked_too: true,
        weight: |c| 1.0 / (c.positions * c.vocab),
    },
];

impl Rule {
    /// Each token's weight in a batch.
    pub fn weights(&self, case: &Case, shift: usize) -> Vec<f64> {
        let [b, t, v] = case.shape;
        let labels = case.counted(shift);
        let counted = |tokens: &[Option<u32>]| tokens.iter().flatten().count() as f64;
        let weight = |token: usize| {
            let sequence = &labels[token / t * t..][..t];
            let counts = Counts {
                sequences: b as f64,
                positions: (b * (t - shift)) as f64,
                vocab: v as f64,
                counted: counted(&labels),
                of_sequence: counted(sequence),
            };
            let there = token % t + shift < t;
            let counts_here = labels[token].is_some() || (self.masked_too && there);
            if counts_here {
                (self.weight)(&counts)
            } else {
                0.0
            }
        };
        (0..labels.len()).map(weight).collect()
    }
}

/// The rule that explains a batch's gradient, and the factor that it leaves.
pub(crate) struct Averaging {
    pub rule: &'static Rule,
    pub factor: f64,
    /// Largest difference of a token's weight, relative to the largest weight.
    pub error: f64,
}

/// Finds the rule from the scale in the case `typical` and from `theirs`, their gradient in the case `masks`.
pub(crate) fn averaging(
    found: &Found,
    typical: &Case,
    masks: &Case,
    theirs: &[f64],
) -> Result<Averaging, Error> {
    let v = masks.shape[2];
    let rows = found.rows(masks)?;
    let labels = crate::rows::cross_entropy(masks, &masks.counted(found.shift))?;
    let share = if found.scale == 0.0 {
        0.0
    } else {
        found.labels / found.scale
    };
    let one = |token: usize| {
        let range = token * v..(token + 1) * v;
        let mixed = rows.grad[range.clone()]
            .iter()
            .zip(&labels.grad[range.clone()]);
        let mixed: Vec<f64> = mixed.map(|(d, ce)| d + share * ce).collect();
        fit(&theirs[range], &mixed, None)[0]
    };
    let measured: Vec<f64> = (0..theirs.len() / v).map(one).collect();
    let explained = RULES.iter().map(|rule| {
        let usual = rule.weights(typical, found.shift);
        let usual = usual.into_iter().find(|w| *w > 0.0).unwrap_or(1.0);
        let factor = found.scale / usual;
        let expected = rule.weights(masks, found.shift);
        let expected: Vec<f64> = expected.into_iter().map(|w| w * factor).collect();
        let largest = expected.iter().fold(0.0f64, |a, w| a.max(w.abs()));
        let differences = measured.iter().zip(&expected).map(|(m, e)| (m - e).abs());
        Averaging {
            rule,
            factor,
            error: differences.fold(0.0, f64::max) / largest,
        }
    });
    let best = explained.min_by(|a, b| a.error.total_cmp(&b.error));
    Ok(best.expect("there are rules"))
}
