//! Scores of models on test sets, as a table and as CSV.

use std::path::Path;

use abkd_metrics::inference::{Shape, Table};
use abkd_training::evaluate::Score;
use anyhow::Result;

use crate::results::{Field, write_lines};

/// Level of the intervals.
const LEVEL: f64 = 0.95;

/// A model's score on a set: means over the sampling seeds.
pub(super) struct Scored {
    pub model: String,
    pub dataset: String,
    pub seeds: usize,
    pub score: Score,
    /// Interval over the examples; absent for a single example.
    pub interval: Option<[f64; 2]>,
}

impl Scored {
    /// From the means and the ROUGE-L of each answer, per sampling seed.
    pub fn new(model: &str, dataset: &str, seeds: &[(Score, Vec<f64>)]) -> Self {
        let mean = |of: fn(&Score) -> f64| {
            seeds.iter().map(|(s, _)| of(s)).sum::<f64>() / seeds.len().max(1) as f64
        };
        let n = seeds.first().map_or(0, |(score, _)| score.n);
        let shape = Shape {
            rows: 1,
            trainings: 1,
            samplings: seeds.len(),
            examples: n,
        };
        let all = seeds.iter().flat_map(|(_, examples)| examples).copied();
        Self {
            model: model.into(),
            dataset: dataset.into(),
            seeds: seeds.len(),
            score: Score {
                n,
                rouge_l: mean(|s| s.rouge_l),
                exact_match: mean(|s| s.exact_match),
                mean_tokens: mean(|s| s.mean_tokens),
            },
            interval: Table::new(shape, all.collect())
                .map(|t| t.student(0).interval(LEVEL))
                .map(|[low, high]| [low.max(0.0), high.min(100.0)]),
        }
    }

    fn cells(&self) -> [String; 7] {
        let interval = self
            .interval
            .map(|[low, high]| format!("{low:.2} to {high:.2}"));
        [
            self.model.clone(),
            self.dataset.clone(),
            format!("{:.2}", self.score.rouge_l),
            interval.unwrap_or_default(),
            format!("{:.2}", self.score.exact_match),
            format!("{:.1}", self.score.mean_tokens),
            self.score.n.to_string(),
        ]
    }
}

const HEADINGS: [&str; 7] = [
    "model",
    "set",
    "ROUGE-L",
    "95% interval",
    "exact match",
    "tokens",
    "examples",
];

/// The scores in columns.
pub(super) fn table(scores: &[Scored]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(scores.iter().map(Scored::cells));
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADINGS.len()).filter_map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 | 1 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The scores as a Markdown table.
pub(super) fn markdown(scores: &[Scored]) -> String {
    let row = |cells: &[String; 7]| format!("| {} |\n", cells.join(" | "));
    let heading = row(&HEADINGS.map(str::to_owned)) + "|---|---|---|---|---|---|---|\n";
    scores
        .iter()
        .fold(heading, |text, s| text + &row(&s.cells()))
}

/// Writes the scores as CSV.
pub(super) fn write(path: &Path, scores: &[Scored]) -> Result<()> {
    let header = [
        "model",
        "dataset",
        "examples",
        "sampling_seeds",
        "rouge_l",
        "low",
        "high",
        "exact_match",
        "mean_tokens",
    ];
    let lines = scores.iter().map(|s| {
        let [low, high] = [0, 1].map(|i| Field::from(s.interval.map(|ends| ends[i])));
        vec![
            s.model.as_str().into(),
            s.dataset.as_str().into(),
            (s.score.n as u64).into(),
            (s.seeds as u64).into(),
            s.score.rouge_l.into(),
            low,
            high,
            s.score.exact_match.into(),
            s.score.mean_tokens.into(),
        ]
    });
    write_lines(path, &header, lines)
}
