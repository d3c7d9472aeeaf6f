//! Identifies the divergence that a gradient belongs to. Each candidate's gradient is fitted to theirs by a factor (and by one
//! more for the cross-entropy of the labels); the candidate that leaves the smallest residual (`rest`) is chosen.

use std::collections::BTreeMap;

use abkd_losses::{Divergence, Fidelity};

use crate::Error;
use crate::cases::Case;
use crate::rows::{Rows, cross_entropy, divergence};

/// Largest rest of a match, relative to their gradient.
const MATCH: f64 = 5e-4;
/// Temperatures that are tried.
const TEMPERATURES: [f64; 9] = [0.5, 0.7, 0.8, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0];

/// A loss: `scale` times the sum of a divergence over the tokens, plus `labels` times that of the labels' cross-entropy.
#[derive(Clone)]
pub(crate) struct Found {
    /// Without it the loss is the labels' cross-entropy alone.
    pub divergence: Option<(Divergence, Fidelity)>,
    pub temperature: f64,
    /// Factor of each token's gradient, in the case by which the divergence is identified.
    pub scale: f64,
    pub labels: f64,
    /// How many places ahead of their logits the labels are.
    pub shift: usize,
    /// Norm of the residual, relative to the norm of their gradient.
    pub rest: f64,
}

impl Found {
    pub fn matches(&self) -> bool {
        self.rest < MATCH
    }

    /// Values and gradients of each token, for a scale of 1: those of the divergence, or of the cross-entropy alone. Tokens
    /// that do not count have them, too.
    pub fn rows(&self, case: &Case) -> Result<Rows, Error> {
        match &self.divergence {
            Some((d, fidelity)) => divergence(case, d, *fidelity, self.temperature),
            None => cross_entropy(case, &case.counted(self.shift)),
        }
    }
}

/// What a gradient is.
pub(crate) enum Identity {
    NotFinite,
    Zero,
    Found(Found),
    /// Nothing fits; the nearest.
    Unknown(Found),
}

pub(crate) fn identify(case: &Case, theirs: &[f64]) -> Result<Identity, Error> {
    if theirs.iter().any(|g| !g.is_finite()) {
        return Ok(Identity::NotFinite);
    }
    if theirs.iter().all(|g| *g == 0.0) {
        return Ok(Identity::Zero);
    }
    let [_, t, v] = case.shape;
    let last = |i: usize| i / v % t == t - 1;
    let shift = usize::from((0..theirs.len()).all(|i| !last(i) || theirs[i] == 0.0));
    let search = Search {
        case,
        theirs,
        shift,
        labels: cross_entropy(case, &case.counted(shift))?.grad,
    };
    // The simplest loss that fits is chosen: a stage is searched only if no earlier stage has a match.
    let mut nearest = search.labels_alone();
    // Of each stage: whether parameters are fitted, the temperatures, and whether the labels' cross-entropy is added.
    let stages: [(bool, &[f64], bool); 4] = [
        (false, &[1.0], false),
        (true, &[1.0], false),
        (true, &[1.0], true),
        (true, &TEMPERATURES, true),
    ];
    for (any, temperatures, labels) in stages {
        if nearest.matches() {
            break;
        }
        let found = search.best(any, temperatures, labels)?;
        if found.rest < nearest.rest {
            nearest = found;
        }
    }
    Ok(if nearest.matches() {
        Identity::Found(nearest)
    } else {
        Identity::Unknown(nearest)
    })
}

struct Search<'a> {
    case: &'a Case,
    theirs: &'a [f64],
    shift: usize,
    /// Gradient of the labels' cross-entropy.
    labels: Vec<f64>,
}

impl Search<'_> {
    fn labels_alone(&self) -> Found {
        let [scale, _, rest] = fit(self.theirs, &self.labels, None);
        Found {
            divergence: None,
            temperature: 1.0,
            scale,
            labels: 0.0,
            shift: self.shift,
            rest,
        }
    }

    /// The best of all divergences: with the paper's parameters, or with those that fit best.
    fn best(&self, any: bool, temperatures: &[f64], labels: bool) -> Result<Found, Error> {
        let mut best: Option<Found> = None;
        for d in Divergence::all() {
            for fidelity in [Fidelity::Paper, Fidelity::Official] {
                for &temperature in temperatures {
                    let mut found = self.with(d, fidelity, temperature, labels)?;
                    if any {
                        found = self.fitted(found, labels)?;
                    }
                    // A later one has to be clearly better: several are special cases of others.
                    let better = |best: &Found| found.rest < 0.5 * best.rest && !best.matches();
                    if best.as_ref().is_none_or(better) {
                        best = Some(found);
                    }
                }
            }
        }
        Ok(best.expect("there are divergences"))
    }

    fn with(
        &self,
        d: Divergence,
        fidelity: Fidelity,
        temperature: f64,
        labels: bool,
    ) -> Result<Found, Error> {
        let mut grad = divergence(self.case, &d, fidelity, temperature)?.grad;
        let [_, t, v] = self.case.shape;
        if self.shift == 1 {
            for last in grad.chunks_mut(v).skip(t - 1).step_by(t) {
                last.fill(0.0);
            }
        }
        let [scale, labels, rest] = fit(self.theirs, &grad, labels.then_some(&self.labels[..]));
        Ok(Found {
            divergence: Some((d, fidelity)),
            temperature,
            scale,
            labels,
            shift: self.shift,
            rest,
        })
    }

    /// The same divergence with the parameters that fit best: from the best of a grid, by steps that are halved.
    fn fitted(&self, start: Found, labels: bool) -> Result<Found, Error> {
        let Some((d, fidelity)) = start.divergence else {
            return Ok(start);
        };
        let temperature = start.temperature;
        let names: Vec<&str> = d.params().into_iter().map(|(name, _)| name).collect();
        let at = |values: &[f64]| -> Result<Option<Found>, Error> {
            let named = names.iter().map(|name| name.to_string());
            let params: BTreeMap<String, f64> = named.zip(values.iter().copied()).collect();
            // outside the divergence's range
            let Ok(d) = Divergence::from_parts(d.id(), &params) else {
                return Ok(None);
            };
            let found = self.with(d, fidelity, temperature, labels)?;
            Ok(found.rest.is_finite().then_some(found))
        };
        let mut values: Vec<f64> = d.params().into_iter().map(|(_, value)| value).collect();
        let mut best = start;
        if values.is_empty() {
            return Ok(best);
        }
        let grid: Vec<f64> = (-4..=8).map(|i| 0.25 * f64::from(i)).collect();
        let points = grid.len().pow(values.len() as u32);
        for point in 0..points {
            let place = |i: usize| grid[point / grid.len().pow(i as u32) % grid.len()];
            let tried: Vec<f64> = (0..values.len()).map(place).collect();
            if let Some(found) = at(&tried)?
                && found.rest < best.rest
            {
                (best, values) = (found, tried);
            }
        }
        let mut step = 0.125;
        while step > 1e-5 && !(best.matches() && step < 1e-4) {
            let mut moved = false;
            for i in 0..values.len() {
                for by in [step, -step] {
                    let mut tried = values.clone();
                    tried[i] += by;
                    if let Some(found) = at(&tried)?
                        && found.rest < best.rest
                    {
                        (best, values, moved) = (found, tried, true);
                    }
                }
            }
            if !moved {
                step /= 2.0;
            }
        }
        // Round numbers, where they fit as well.
        let rounded: Vec<f64> = values.iter().map(|x| (x * 1e3).round() / 1e3).collect();
        if let Some(found) = at(&rounded)?
            && found.rest < 1.5 * best.rest + 1e-5
        {
            best = found;
        }
        Ok(best)
    }
}

/// Factors of one or two gradients whose sum is nearest to theirs, and what is left, relative to theirs.
pub(crate) fn fit(theirs: &[f64], one: &[f64], two: Option<&[f64]>) -> [f64; 3] {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let none = vec![0.0; theirs.len()];
    let other = two.unwrap_or(&none);
    let (aa, ab, bb) = (dot(one, one), dot(one, other), dot(other, other));
    let (ta, tb) = (dot(theirs, one), dot(theirs, other));
    let determinant = aa * bb - ab * ab;
    let [a, b] = if two.is_some() && determinant > 1e-12 * aa * bb {
        [
            (ta * bb - tb * ab) / determinant,
            (tb * aa - ta * ab) / determinant,
        ]
    } else if aa > 0.0 {
        [ta / aa, 0.0]
    } else {
        [0.0, 0.0]
    };
    let left = theirs.iter().zip(one).zip(other);
    let left: f64 = left.map(|((t, x), y)| (t - a * x - b * y).powi(2)).sum();
    [a, b, (left / dot(theirs, theirs)).sqrt()]
}
