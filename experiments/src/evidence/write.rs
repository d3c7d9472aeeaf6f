//! Evidence as CSV, and as tables for a page or a terminal.

use std::path::Path;

use anyhow::Result;

use super::{Difference, Evidence, LEVEL, OnSet, POWER, RowMean, SIGNIFICANT};
use crate::results::{Field, distinct, write_lines};

/// Text of a missing value.
pub(crate) const NONE: &str = "–";
/// Name of the mean over all sets in CSV files.
const ALL: &str = "all";

impl Evidence {
    /// Writes `<experiment>_intervals.csv` (a line per data set and row), `<experiment>_differences.csv` (a line per data
    /// set and pair of rows) and `<experiment>_verdicts.csv` (a line per claim) into a folder.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, folder: &Path, experiment: &str, row_key: &str) -> Result<()> {
        let file = |end: &str| folder.join(format!("{experiment}_{end}.csv"));
        let header = [
            row_key,
            "dataset",
            "mean",
            "low",
            "high",
            "standard_error",
            "degrees",
            "probability_first",
            "interquartile_mean",
            "interquartile_low",
            "interquartile_high",
            "trainings",
            "sampling_seeds",
            "examples",
        ];
        write_lines(&file("intervals"), &header, self.row_lines())?;
        let header = [
            row_key,
            "other",
            "dataset",
            "difference",
            "low",
            "high",
            "p",
            "p_adjusted",
            "p_students_adjusted",
            "effect",
            "detectable",
            "trainings_to_decide",
        ];
        write_lines(&file("differences"), &header, self.pair_lines())?;
        let texts: Vec<String> = self.claims.iter().map(|claim| self.text(claim)).collect();
        let lines = self.claims.iter().zip(&texts).map(|(claim, text)| {
            vec![
                text.as_str().into(),
                claim.dataset.as_deref().unwrap_or(ALL).into(),
                claim.verdict.name().into(),
                claim.reason.as_str().into(),
            ]
        });
        let header = ["claim", "dataset", "verdict", "reason"];
        write_lines(&file("verdicts"), &header, lines)
    }

    fn row_lines(&self) -> impl Iterator<Item = Vec<Field<'_>>> {
        self.sets.iter().flat_map(|set| {
            set.rows.iter().enumerate().map(move |(index, row)| {
                let interval = row.estimate.map(|e| e.interval(LEVEL));
                let middle = set.middle.get(index);
                let ends = middle.and_then(|m| m.1);
                vec![
                    row.row.as_str().into(),
                    set.name().into(),
                    row.mean.into(),
                    interval.map(|i| i[0]).into(),
                    interval.map(|i| i[1]).into(),
                    row.estimate.map(|e| e.error()).into(),
                    row.estimate.map(|e| e.degrees).into(),
                    row.first.into(),
                    middle.map(|m| m.0).into(),
                    ends.map(|i| i[0]).into(),
                    ends.map(|i| i[1]).into(),
                    (set.shape.trainings as u64).into(),
                    (set.shape.samplings as u64).into(),
                    (set.shape.examples as u64).into(),
                ]
            })
        })
    }

    fn pair_lines(&self) -> impl Iterator<Item = Vec<Field<'_>>> {
        self.sets.iter().flat_map(|set| {
            set.pairs.iter().map(move |d| {
                let losses = d.losses.as_ref();
                let interval = losses.map(|(e, _)| e.interval(LEVEL));
                vec![
                    d.row.as_str().into(),
                    d.other.as_str().into(),
                    set.name().into(),
                    d.mean.into(),
                    interval.map(|i| i[0]).into(),
                    interval.map(|i| i[1]).into(),
                    losses.map_or(Field::Empty, |(e, _)| Field::Fine(e.p())),
                    losses.map_or(Field::Empty, |(_, p)| Field::Fine(*p)),
                    d.students.map_or(Field::Empty, Field::Fine),
                    d.effect.into(),
                    d.detectable().into(),
                    d.trainings.map(|n| n as u64).into(),
                ]
            })
        })
    }

    /// Claim, verdict, reason.
    pub fn verdict_grid(&self) -> Vec<Vec<String>> {
        let header = ["claim", "verdict", "why"].map(String::from).to_vec();
        let lines = self.claims.iter().map(|claim| {
            vec![
                self.text(claim),
                claim.verdict.name().into(),
                claim.reason.clone(),
            ]
        });
        [header].into_iter().chain(lines).collect()
    }

    /// Rows by data sets: mean and interval, and the probability of being first. `gap` separates the parts of a cell.
    pub fn interval_grid(&self, row_key: &str, gap: char) -> Vec<Vec<String>> {
        let mut header = vec![row_key.to_owned()];
        let titles = self.sets.iter().map(|set| broken(self.title(set), gap));
        header.extend(titles);
        let rows = self.sets.iter().flat_map(|set| &set.rows);
        let lines = distinct(rows.map(|row| row.row.as_str()))
            .into_iter()
            .map(|row| {
                let mut line = vec![row.to_owned()];
                line.extend(self.sets.iter().map(|set| {
                    let at = set.rows.iter().position(|r| r.row == row);
                    at.map_or(NONE.into(), |at| set.cell(at, gap))
                }));
                line
            });
        [header].into_iter().chain(lines).collect()
    }

    /// Note on how to read verdicts and intervals.
    pub fn note(&self) -> String {
        let mut note = format!(
            "Intervals are of {:.0}% and of the losses: other trainings, sampling seeds and examples could have been drawn \
             (variance components, the rows' common training variance, Satterthwaite's degrees of freedom). p values are \
             two-sided and adjusted for all pairs of a set (Holm). A claim is supported where the row is ahead of each other \
             row with p below {SIGNIFICANT}, refuted where one is ahead of it with p below {SIGNIFICANT}, else undecided; \
             `would be found`: with a probability of {:.0}%.",
            100.0 * LEVEL,
            100.0 * POWER
        );
        if self.sets.iter().any(|set| set.shape.trainings < 2) {
            note += " A row has one training: how much trainings vary is unknown, so there are no intervals of the losses, and \
                     no claim is decided.";
        }
        for set in self.sets.iter().filter(|set| !set.left_out.is_empty()) {
            let have = if set.left_out.len() == 1 {
                "has"
            } else {
                "have"
            };
            note += &format!(
                " On {} without {}, which {have} too few trainings in common with the others.",
                self.title(set),
                set.left_out.join(", ")
            );
        }
        note
    }

    /// A line per set: pairs that differ as losses and as students, and rank agreement with the paper.
    pub fn closing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for set in &self.sets {
            let count = |is: fn(&&Difference) -> bool| set.pairs.iter().filter(is).count();
            let losses = count(|d| d.significant());
            let mut line = format!(
                "{}: {losses} of {} pairs differ as losses",
                self.title(set),
                set.pairs.len()
            );
            if set.pairs.iter().any(|d| d.students.is_some()) {
                let students = count(|d| d.students.is_some_and(|p| p < SIGNIFICANT));
                line += &format!(", {students} as these students");
            }
            if let Some([low, high]) = set.agreement {
                line += &format!("; Spearman ρ with the paper between {low:+.2} and {high:+.2}");
            }
            lines.push(line + ".");
        }
        lines
    }
}

impl OnSet {
    fn name(&self) -> &str {
        self.dataset.as_deref().unwrap_or(ALL)
    }

    /// `53.94 [52.41, 55.47] 0.62`; over all sets the interquartile mean and its interval.
    fn cell(&self, index: usize, gap: char) -> String {
        let row: &RowMean = &self.rows[index];
        let (mean, interval) = match self.middle.get(index) {
            Some((middle, interval)) => (*middle, *interval),
            None => (row.mean, row.estimate.map(|e| e.interval(LEVEL))),
        };
        let mut text = format!("{mean:.2}");
        if let Some([low, high]) = interval {
            text += &format!("{gap}[{low:.1}, {high:.1}]");
        }
        if let Some(first) = row.first {
            text += &format!("{gap}{:.0}%", 100.0 * first);
        }
        text
    }
}

/// A heading, broken after its hyphens where the parts of a cell stand on lines of their own.
pub(crate) fn broken(title: &str, gap: char) -> String {
    match gap {
        '\n' => title.replace('-', "-\n"),
        _ => title.into(),
    }
}

/// `0.021`, `< 0.001`
pub(super) fn p_text(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("{p:.3}")
    }
}
