//! Statistics of a table's rows from the scores of single answers: intervals, differences, and a verdict on each claim.
//!
//! Two questions are kept apart: whether *these students* differ (other examples could have been drawn) and whether *the
//! losses* differ (other trainings could have been run, too). Verdicts are about the losses. Formulas and assumptions:
//! [`abkd_metrics::inference`].

mod claims;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use abkd_metrics::inference::{
    Estimate, Shape, Table as Values, difference_across, first, holm, interquartile_mean,
    rank_agreement, redrawn,
};
use abkd_metrics::stats::{mean, quantiles};
use rayon::prelude::*;

pub use claims::Claim;
#[cfg(test)]
use claims::Verdict;
pub(crate) use write::{NONE, broken};

use crate::results::{Examples, Table, Titles, distinct};

/// Level of all intervals.
pub const LEVEL: f64 = 0.95;
/// A difference is significant if its p value, adjusted for all pairs of the set, is below this.
pub const SIGNIFICANT: f64 = 0.05;
/// Power of the smallest detectable difference.
pub const POWER: f64 = 0.8;
/// Number of exchanges of the approximate randomisation, and of bootstrap draws.
const DRAWS: usize = 10_000;
/// Largest number of trainings per row that is reported as deciding a difference.
const MOST: usize = 1000;

/// A row on a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct RowMean {
    /// Label of the row.
    pub row: String,
    /// Mean over the scores of the block.
    pub mean: f64,
    /// The mean with its standard error; absent for one training.
    pub estimate: Option<Estimate>,
    /// Probability that the row is first; absent for one training.
    pub first: Option<f64>,
}

/// A row minus another row.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Label of the row.
    pub row: String,
    /// Label of the other row.
    pub other: String,
    /// Difference of the means.
    pub mean: f64,
    /// Difference of the losses, and its p value, adjusted for all pairs of the set (Holm); absent for one training.
    pub losses: Option<(Estimate, f64)>,
    /// p value of no difference between these students, adjusted likewise; absent over all sets.
    pub students: Option<f64>,
    /// Difference divided by the standard deviation of a single answer's difference.
    pub effect: Option<f64>,
    /// Trainings per row with which the difference would be found at [`POWER`]; absent if too many.
    pub trainings: Option<usize>,
}

impl Difference {
    /// Whether the losses differ by more than chance.
    pub fn significant(&self) -> bool {
        self.losses.as_ref().is_some_and(|(_, p)| *p < SIGNIFICANT)
    }

    /// The smallest true difference that would be found at [`POWER`].
    pub fn detectable(&self) -> Option<f64> {
        Some(self.losses.as_ref()?.0.detectable(POWER))
    }

    /// The other row minus the row.
    fn reversed(&self) -> Self {
        let turn = |e: &Estimate| Estimate {
            mean: -e.mean,
            ..*e
        };
        Self {
            row: self.other.clone(),
            other: self.row.clone(),
            mean: -self.mean,
            losses: self.losses.as_ref().map(|(e, p)| (turn(e), *p)),
            effect: self.effect.map(|d| -d),
            ..self.clone()
        }
    }
}

/// All rows on a data set, or on all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct OnSet {
    /// Name of the set; `None` for the mean over all.
    pub dataset: Option<String>,
    /// The rows, in the table's order.
    pub rows: Vec<RowMean>,
    /// Each pair once, in the table's order.
    pub pairs: Vec<Difference>,
    /// Interval of Spearman's rho with the paper's scores.
    pub agreement: Option<[f64; 2]>,
    /// Numbers of trainings, sampling seeds and examples that all rows have.
    pub shape: Shape,
    /// Rows left out because they have too few scores in common with the others.
    pub left_out: Vec<String>,
    /// Per row, the interquartile mean over the sets and its interval; empty for a single set.
    pub middle: Vec<(f64, Option<[f64; 2]>)>,
}

impl OnSet {
    /// A row minus another row.
    pub fn difference(&self, row: &str, other: &str) -> Option<Difference> {
        let is = |d: &&Difference, a: &str, b: &str| d.row == a && d.other == b;
        let found = self.pairs.iter().find(|d| is(d, row, other));
        found.cloned().or_else(|| {
            let turned = self.pairs.iter().find(|d| is(d, other, row));
            turned.map(Difference::reversed)
        })
    }
}

/// Statistics of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The data sets, and last, where there are several, their mean.
    pub sets: Vec<OnSet>,
    /// The claims and their verdicts.
    pub claims: Vec<Claim>,
    /// Headings of the sets.
    pub titles: Titles,
}

/// Scores of some rows on a set that form a complete block.
struct Block<'a> {
    dataset: &'a str,
    rows: Vec<&'a str>,
    trainings: BTreeSet<u64>,
    samplings: BTreeSet<u64>,
    scores: BTreeMap<(&'a str, u64, u64), &'a [f64]>,
    left_out: Vec<&'a str>,
}

impl<'a> Block<'a> {
    /// The block of `rows` over the training and sampling seeds that all of them have. Rows with the fewest trainings are
    /// left out until two trainings are common, if any row has two.
    fn new(all: &'a [Examples], dataset: &'a str, rows: &[&'a str]) -> Option<Self> {
        let of_set = all.iter().filter(|e| e.dataset == dataset);
        let ranked = of_set.filter(|e| rows.contains(&e.row.as_str()));
        let scores: BTreeMap<_, _> = ranked
            .map(|e| {
                let key = (
                    e.row.as_str(),
                    e.training_seed.unwrap_or(0),
                    e.sampling_seed,
                );
                (key, e.rouge_l.as_slice())
            })
            .collect();
        let seeds = |row: &str, of: fn(&(&str, u64, u64)) -> u64| -> BTreeSet<u64> {
            scores.keys().filter(|k| k.0 == row).map(of).collect()
        };
        let common = |rows: &[&str], of| {
            let sets = rows.iter().map(|row| seeds(row, of));
            sets.reduce(|a, b| &a & &b).unwrap_or_default()
        };
        let mut kept: Vec<&str> = rows.to_vec();
        kept.retain(|row| scores.keys().any(|k| k.0 == *row));
        let mut left_out = Vec::new();
        let most = kept.iter().map(|row| seeds(row, |k| k.1).len()).max()?;
        while common(&kept, |k| k.1).len() < most.min(2) {
            let (at, row) = kept
                .iter()
                .enumerate()
                .min_by_key(|(_, row)| seeds(row, |k| k.1).len())?;
            left_out.push(*row);
            kept.remove(at);
        }
        let (trainings, samplings) = (common(&kept, |k| k.1), common(&kept, |k| k.2));
        let block = Self {
            dataset,
            rows: kept,
            trainings,
            samplings,
            scores,
            left_out,
        };
        // With a missing cell or another number of examples, nothing can be compared.
        let whole = {
            let mut lists = block.lists(&block.rows, &block.trainings);
            let examples = lists.next()??.len();
            lists.all(|list| list.is_some_and(|l| l.len() == examples))
        };
        whole.then_some(block)
    }

    /// Scores of some rows and trainings, in the order of [`Values`].
    fn lists(
        &self,
        rows: &[&'a str],
        trainings: &BTreeSet<u64>,
    ) -> impl Iterator<Item = Option<&'a [f64]>> {
        rows.iter().flat_map(move |row| {
            trainings.iter().flat_map(move |t| {
                let of = move |s: &u64| self.scores.get(&(*row, *t, *s)).copied();
                self.samplings.iter().map(of)
            })
        })
    }

    fn values(&self, rows: &[&'a str], trainings: &BTreeSet<u64>) -> Option<Values> {
        let lists: Vec<&[f64]> = self.lists(rows, trainings).flatten().collect();
        let shape = Shape {
            rows: rows.len(),
            trainings: trainings.len(),
            samplings: self.samplings.len(),
            examples: lists.first()?.len(),
        };
        Values::new(shape, lists.concat())
    }
}

impl Evidence {
    /// From the scores of single answers. `rows` are the rows to compare, in the table's order; claims are those of the
    /// paper's table. `None` with fewer than two rows to compare.
    pub fn new(scores: &[Examples], rows: &[&str], paper: Option<&Table>) -> Option<Self> {
        let datasets = distinct(scores.iter().map(|e| e.dataset.as_str()));
        let blocks: Vec<Block> = datasets
            .iter()
            .filter_map(|name| Block::new(scores, name, rows))
            .filter(|block| block.rows.len() > 1)
            .collect();
        let mut sets: Vec<OnSet> = blocks.iter().filter_map(|b| on_set(b, paper)).collect();
        if blocks.len() > 1 {
            sets.extend(on_all(&blocks));
        }
        let claims = paper.map_or(Vec::new(), |paper| claims::claims(&sets, paper));
        (!sets.is_empty()).then_some(Self {
            sets,
            claims,
            titles: Titles::default(),
        })
    }

    /// Heading of a set, or of all.
    pub fn title<'a>(&'a self, set: &'a OnSet) -> &'a str {
        match &set.dataset {
            Some(name) => self.titles.of(name),
            None => "all sets",
        }
    }

    /// What is claimed, e.g. `ABKD is first on Dolly`.
    pub fn text(&self, claim: &Claim) -> String {
        let Claim {
            row,
            place,
            dataset,
            ..
        } = claim;
        match dataset {
            Some(name) => format!("{row} is {place} on {}", self.titles.of(name)),
            None => format!("{row} is {place} over all data sets"),
        }
    }

    /// The statistics of a data set; `None` for the mean over all.
    pub fn on(&self, dataset: Option<&str>) -> Option<&OnSet> {
        self.sets.iter().find(|s| s.dataset.as_deref() == dataset)
    }

    /// Claims, beside what is claimed already, that this row is first.
    pub fn claiming(mut self, row: Option<&str>) -> Self {
        if let Some(row) = row {
            self.claims.extend(claims::is_first(&self.sets, row));
        }
        self
    }
}

fn on_set(block: &Block, paper: Option<&Table>) -> Option<OnSet> {
    let values = block.values(&block.rows, &block.trainings)?;
    let draws = redrawn(std::slice::from_ref(&values), DRAWS, 1).concat();
    let chance = first(&draws);
    let rows = block
        .rows
        .iter()
        .enumerate()
        .map(|(r, row)| {
            let estimate = values.row(r);
            RowMean {
                row: (*row).into(),
                mean: values.mean(r),
                estimate,
                first: estimate.map(|_| chance[r]),
            }
        })
        .collect();
    let indices = pairs(block.rows.len());
    let students: Vec<f64> = indices
        .par_iter()
        .map(|&(a, b)| values.randomisation(a, b, DRAWS, 1))
        .collect();
    let differences: Vec<Option<Estimate>> = indices
        .par_iter()
        .map(|&(a, b)| values.difference(a, b))
        .collect();
    let adjusted = adjusted(differences.into_iter());
    let pairs = indices.par_iter().zip(adjusted).zip(holm(&students));
    let pairs = pairs.map(|((&(a, b), losses), students)| Difference {
        row: block.rows[a].into(),
        other: block.rows[b].into(),
        mean: values.students(a, b).mean,
        losses,
        students: Some(students),
        effect: values.effect(a, b),
        trainings: values.trainings_to_decide(a, b, POWER, MOST),
    });
    let theirs: Option<Vec<f64>> = block
        .rows
        .iter()
        .map(|row| Some(paper?.cell(row, block.dataset)?.rouge_l_mean))
        .collect();
    let many = values.shape().trainings > 1;
    Some(OnSet {
        dataset: Some(block.dataset.into()),
        rows,
        pairs: pairs.collect(),
        agreement: theirs
            .filter(|_| many)
            .and_then(|theirs| rank_agreement(&draws, &theirs, LEVEL)),
        shape: values.shape(),
        left_out: block.left_out.iter().map(|r| (*r).into()).collect(),
        middle: Vec::new(),
    })
}

/// The mean over all sets, for the rows and trainings that all sets have.
fn on_all(blocks: &[Block]) -> Option<OnSet> {
    let (one, others) = blocks.split_first()?;
    let mut rows = one.rows.clone();
    rows.retain(|row| others.iter().all(|b| b.rows.contains(row)));
    let trainings = others
        .iter()
        .fold(one.trainings.clone(), |all, b| &all & &b.trainings);
    if rows.len() < 2 || trainings.is_empty() {
        return None;
    }
    let values: Option<Vec<Values>> = blocks.iter().map(|b| b.values(&rows, &trainings)).collect();
    let values = values?;
    let draws = redrawn(&values, DRAWS, 1);
    let many = trainings.len() > 1;
    let of_draws = |of: &dyn Fn(&[f64]) -> Option<f64>| -> Vec<Vec<f64>> {
        draws
            .iter()
            .map(|sets| {
                let row = |r: usize| sets.iter().map(|set| set[r]).collect::<Vec<f64>>();
                (0..rows.len()).filter_map(|r| of(&row(r))).collect()
            })
            .collect()
    };
    let chance = first(&of_draws(&|sets| mean(sets)));
    let middles = of_draws(&interquartile_mean);
    let ends = [0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL];
    let middle = (0..rows.len())
        .filter_map(|r| {
            let means: Vec<f64> = values.iter().map(|v| v.mean(r)).collect();
            let drawn: Vec<f64> = middles.iter().map(|draw| draw[r]).collect();
            let interval = quantiles(&drawn, ends).filter(|_| many);
            Some((interquartile_mean(&means)?, interval))
        })
        .collect();
    let indices = pairs(rows.len());
    let differences = indices
        .iter()
        .map(|&(a, b)| difference_across(&values, a, b));
    let adjusted = adjusted(differences);
    let of_row = |r: usize| mean(&values.iter().map(|v| v.mean(r)).collect::<Vec<_>>());
    let shape = Shape {
        rows: rows.len(),
        examples: values.iter().map(|v| v.shape().examples).sum(),
        ..values[0].shape()
    };
    Some(OnSet {
        dataset: None,
        rows: (0..rows.len())
            .filter_map(|r| {
                Some(RowMean {
                    row: rows[r].into(),
                    mean: of_row(r)?,
                    estimate: None,
                    first: many.then(|| chance[r]),
                })
            })
            .collect(),
        pairs: indices
            .iter()
            .zip(adjusted)
            .filter_map(|(&(a, b), losses)| {
                Some(Difference {
                    row: rows[a].into(),
                    other: rows[b].into(),
                    mean: of_row(a)? - of_row(b)?,
                    losses,
                    students: None,
                    effect: None,
                    trainings: None,
                })
            })
            .collect(),
        agreement: None,
        shape,
        left_out: Vec::new(),
        middle,
    })
}

/// Each pair once.
fn pairs(rows: usize) -> Vec<(usize, usize)> {
    (0..rows)
        .flat_map(|a| (a + 1..rows).map(move |b| (a, b)))
        .collect()
}

/// The estimates with their p values, adjusted for all of them.
fn adjusted(estimates: impl Iterator<Item = Option<Estimate>>) -> Vec<Option<(Estimate, f64)>> {
    let estimates: Vec<Option<Estimate>> = estimates.collect();
    let p: Vec<f64> = estimates.iter().flatten().map(Estimate::p).collect();
    let mut p = holm(&p).into_iter();
    estimates
        .into_iter()
        .map(|e| Some((e?, p.next()?)))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
