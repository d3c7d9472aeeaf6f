//! Table 3: seconds per sample, by phase.
//!
//! Updates that sample answers and updates that do not are two kinds with different times, and a
//! method may have both. So the time of a method is the mean of the two medians, weighted by the share
//! of each kind: as robust as a median, without losing the rarer kind.

use std::path::Path;

use abkd_metrics::stats;
use abkd_training::step::StepReport;
use abkd_training::timing::Phase;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::results::{Field, Sheet, markdown_cell, write_atomic, write_lines};
use crate::spec::{Spec, TimingSpec};

/// The timed updates of one repeat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    warmup: usize,
    /// One entry per update.
    pub updates: Vec<UpdateTime>,
}

/// Time of one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateTime {
    /// Sequences of the update.
    pub sequences: usize,
    /// Response tokens of the update.
    pub tokens: usize,
    /// Seconds of each phase, in the order of [`Phase::ALL`].
    pub phases: [f64; 7],
}

impl UpdateTime {
    fn seconds_per_sample(&self) -> f64 {
        self.phases.iter().sum::<f64>() / self.sequences.max(1) as f64
    }

    fn samples_answers(&self) -> bool {
        self.phases[Phase::Generation as usize] > 0.0
    }
}

impl Timing {
    /// A timing without updates.
    pub fn new(spec: &TimingSpec) -> Self {
        Self {
            warmup: spec.warmup,
            updates: Vec::new(),
        }
    }

    /// Adds an update after the warm-up; `step` counts from 1.
    pub fn add(&mut self, step: usize, report: &StepReport) {
        if step > self.warmup {
            self.updates.push(UpdateTime {
                sequences: report.sequences,
                tokens: report.tokens,
                phases: Phase::ALL.map(|p| report.phases.seconds(p)),
            });
        }
    }

    /// Seconds per sample, as the module documentation defines it.
    pub fn seconds_per_sample(&self) -> f64 {
        by_kind(&self.updates, UpdateTime::seconds_per_sample)
    }
}

/// Costs of what is computed once before training, seconds per sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OneOffCosts {
    /// An answer of the teacher.
    pub answer: f64,
    /// The teacher's hidden states of a sequence.
    pub hidden: f64,
}

/// The two kinds of update: those that sample answers, and those that do not.
fn kinds(updates: &[UpdateTime]) -> [Vec<&UpdateTime>; 2] {
    let (sampling, other) = updates.iter().partition(|u| u.samples_answers());
    [sampling, other]
}

/// Medians of the two kinds of update, weighted by their share.
fn by_kind(updates: &[UpdateTime], value: impl Fn(&UpdateTime) -> f64) -> f64 {
    kinds(updates)
        .into_iter()
        .map(|kind| {
            let share = kind.len() as f64 / updates.len().max(1) as f64;
            let values: Vec<f64> = kind.into_iter().map(&value).collect();
            stats::median(&values).map_or(0.0, |median| share * median)
        })
        .sum()
}

/// A row of Table 3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimingRow {
    /// Label of the method.
    pub method: String,
    /// Seconds per sample of the training.
    pub seconds_per_sample: f64,
    /// Ratio of these seconds to SFT's.
    pub ratio_to_sft: Option<f64>,
    /// One-off costs (the teacher's answers or hidden states), seconds per sequence.
    pub one_off_seconds_per_sample: f64,
    /// Training time plus the one-off costs spread over the row's epochs.
    pub amortised_seconds_per_sample: f64,
    /// Ratio of the amortised seconds to SFT's.
    pub amortised_ratio_to_sft: Option<f64>,
    /// Median of all timed updates, seconds per sample.
    pub median: f64,
    /// First quartile.
    pub q1: f64,
    /// Third quartile.
    pub q3: f64,
    /// Updates beyond 1.5 interquartile ranges from the quartiles of their kind.
    pub outliers: u64,
    /// Updates timed.
    pub updates: u64,
    /// Share of updates that sampled answers.
    pub sampling_share: f64,
    /// Mean response tokens of an update.
    pub tokens_per_update: f64,
    /// Seconds per sample in each phase.
    pub phases: [f64; 7],
}

fn row(label: &str, updates: &[UpdateTime], answer_cost: f64, epochs: usize) -> TimingRow {
    let times: Vec<f64> = updates.iter().map(UpdateTime::seconds_per_sample).collect();
    let [q1, median, q3] = stats::quartiles(&times).unwrap_or_default();
    let seconds = by_kind(updates, UpdateTime::seconds_per_sample);
    let n = updates.len().max(1) as f64;
    TimingRow {
        method: label.into(),
        seconds_per_sample: seconds,
        ratio_to_sft: None,
        one_off_seconds_per_sample: answer_cost,
        amortised_seconds_per_sample: seconds + answer_cost / epochs as f64,
        amortised_ratio_to_sft: None,
        median,
        q1,
        q3,
        outliers: outliers(updates),
        updates: updates.len() as u64,
        sampling_share: updates.iter().filter(|u| u.samples_answers()).count() as f64 / n,
        tokens_per_update: updates.iter().map(|u| u.tokens as f64).sum::<f64>() / n,
        phases: Phase::ALL.map(|phase| {
            by_kind(updates, |u| {
                u.phases[phase as usize] / u.sequences.max(1) as f64
            })
        }),
    }
}

/// Updates beyond 1.5 interquartile ranges (Tukey's fences), each within its kind.
fn outliers(updates: &[UpdateTime]) -> u64 {
    let of_kind = |kind: Vec<&UpdateTime>| {
        let times = kind.into_iter().map(UpdateTime::seconds_per_sample);
        let times: Vec<f64> = times.collect();
        let [q1, _, q3] = stats::quartiles(&times).unwrap_or_default();
        let fence = 1.5 * (q3 - q1);
        let beyond = |t: &&f64| **t < q1 - fence || **t > q3 + fence;
        times.iter().filter(beyond).count() as u64
    };
    kinds(updates).into_iter().map(of_kind).sum()
}

/// Folds the timings of all rows, in any order.
fn fold(spec: &Spec, timings: &[(usize, Timing)], costs: OneOffCosts) -> Vec<TimingRow> {
    let mut rows = Vec::new();
    for (index, r) in spec.recipes.iter().enumerate() {
        let updates: Vec<UpdateTime> = timings
            .iter()
            .filter(|(i, _)| *i == index)
            .flat_map(|(_, t)| t.updates.iter().cloned())
            .collect();
        if updates.is_empty() {
            continue;
        }
        let cost = if r.method.teacher_answers().is_some() {
            costs.answer
        } else if r.method.uses_teacher_on_data() {
            costs.hidden
        } else {
            0.0
        };
        rows.push(row(&r.label, &updates, cost, r.settings.epochs));
    }
    let sft = rows
        .iter()
        .find(|r| r.method == "SFT")
        .map(|r| r.seconds_per_sample);
    for r in &mut rows {
        r.ratio_to_sft = sft.map(|s| r.seconds_per_sample / s);
        r.amortised_ratio_to_sft = sft.map(|s| r.amortised_seconds_per_sample / s);
    }
    rows
}

/// Columns before those of the phases.
const COLUMNS: [&str; 13] = [
    "method",
    "seconds_per_sample",
    "ratio_to_sft",
    "one_off_seconds_per_sample",
    "amortised_seconds_per_sample",
    "amortised_ratio_to_sft",
    "median",
    "q1",
    "q3",
    "outliers",
    "updates",
    "sampling_share",
    "tokens_per_update",
];

/// Writes `<stem>.csv` and `<stem>.json`.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write(
    stem: &Path,
    spec: &Spec,
    timings: &[(usize, Timing)],
    costs: OneOffCosts,
) -> Result<()> {
    let rows = fold(spec, timings, costs);
    write_lines(
        &stem.with_added_extension("csv"),
        &[&COLUMNS[..], &Phase::ALL.map(Phase::id)].concat(),
        rows.iter().map(|r| {
            let mut line = vec![
                r.method.as_str().into(),
                Field::Fine(r.seconds_per_sample),
                r.ratio_to_sft.into(),
                Field::Fine(r.one_off_seconds_per_sample),
                Field::Fine(r.amortised_seconds_per_sample),
                r.amortised_ratio_to_sft.into(),
                Field::Fine(r.median),
                Field::Fine(r.q1),
                Field::Fine(r.q3),
                r.outliers.into(),
                r.updates.into(),
                r.sampling_share.into(),
                r.tokens_per_update.into(),
            ];
            line.extend(r.phases.map(Field::Fine));
            line
        }),
    )?;
    let json = json!({
        "profile": spec.profile.name,
        "backend": spec.profile.backend,
        "batch_size": spec.profile.distill.batch_size,
        "timing": spec.profile.timing,
        "machine": machine(),
        "rows": rows,
    });
    let text = serde_json::to_string_pretty(&json)? + "\n";
    write_atomic(&stem.with_added_extension("json"), text.as_bytes())
}

/// The processor's name and the number of threads, as far as the system reports them.
pub(crate) fn machine() -> String {
    let name = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.into());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {threads} threads")
}

/// Content of `<stem>.json`.
#[derive(Deserialize)]
pub struct Timings {
    /// Machine of the measurement.
    pub machine: String,
    /// The methods.
    pub rows: Vec<TimingRow>,
}

/// Reads `<stem>.json` back from its path.
///
/// # Errors
///
/// When the file is missing or invalid.
pub fn read(path: &Path) -> Result<Timings> {
    let text = abkd_host::files::read(path, abkd_host::files::TEXT_LIMIT);
    let text = text.with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// The paper's seconds per sample, by method.
///
/// # Errors
///
/// When the file is missing or invalid.
pub fn read_paper(path: &Path) -> Result<Vec<(String, f64)>> {
    let sheet = Sheet::open(path, &[&["method", "seconds_per_sample"]])?;
    (0..sheet.len())
        .map(|line| Ok((sheet.text(line, 0)?.to_owned(), sheet.number(line, 1)?)))
        .collect()
}

/// Ours beside the paper's, if given, as Markdown; `paper` holds methods and seconds per sample.
pub fn comparison(rows: &[TimingRow], paper: Option<&[(String, f64)]>) -> String {
    let of = |method: &str| {
        let mut rows = paper.into_iter().flatten();
        rows.find(|(m, _)| m == method).map(|(_, s)| *s)
    };
    let paper_sft = of("SFT");
    let mut text = String::from("| method | s/sample | ratio to SFT | with one-off costs |");
    if paper.is_some() {
        text += " paper s/sample | paper ratio |";
    }
    let columns = text.matches('|').count() - 1;
    text += &format!("\n|{}\n", "---|".repeat(columns));
    let times = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2}"));
    for r in rows {
        text += &format!(
            "| {} | {:.5} | {} | {} |",
            markdown_cell(&r.method),
            r.seconds_per_sample,
            times(r.ratio_to_sft),
            times(r.amortised_ratio_to_sft),
        );
        if paper.is_some() {
            let theirs = of(&r.method);
            text += &format!(
                " {} | {} |",
                theirs.map_or("-".into(), |s| format!("{s:.3}")),
                times(theirs.zip(paper_sft).map(|(a, b)| a / b)),
            );
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(generation: f64, rest: f64) -> UpdateTime {
        UpdateTime {
            sequences: 2,
            tokens: 10,
            phases: [0.0, generation, 0.0, rest, 0.0, 0.0, 0.0],
        }
    }

    #[test]
    fn rare_sampling_counts_by_its_share() {
        // one update in four samples answers for 8 s; the rest of each update takes 2 s, 1 s per sample
        let updates = [
            update(8.0, 2.0),
            update(0.0, 2.0),
            update(0.0, 2.0),
            update(0.0, 2.0),
        ];
        let r = row("x", &updates, 3.0, 2);
        assert_eq!(r.seconds_per_sample, (10.0 + 3.0 * 2.0) / 4.0 / 2.0);
        assert_eq!(r.phases[Phase::Generation as usize], 1.0);
        assert_eq!(r.sampling_share, 0.25);
        assert_eq!(r.amortised_seconds_per_sample, r.seconds_per_sample + 1.5);
    }

    #[test]
    fn an_outlier_is_counted_and_does_not_move_the_time() {
        let mut updates: Vec<UpdateTime> = (0..9)
            .map(|i| update(0.0, 2.0 + 0.01 * f64::from(i)))
            .collect();
        updates.push(update(0.0, 50.0));
        let r = row("x", &updates, 0.0, 1);
        assert_eq!(r.outliers, 1);
        let table = comparison(&[row("a|b", &updates, 0.0, 1)], None);
        assert!(table.contains("\n| a\\|b | "), "{table}");
        assert!(r.seconds_per_sample < 1.1);
    }
}
