//! Raw scores: one trained student, one data set, one sampling seed.

use std::path::Path;

use anyhow::Result;

use super::sheet::write_lines;

const SCORE_COLUMNS: [&str; 9] = [
    "experiment",
    "row",
    "training_seed",
    "dataset",
    "sampling_seed",
    "n",
    "rouge_l",
    "exact_match",
    "mean_tokens",
];

/// One test score: one student, one data set, one sampling seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Name of the experiment, e.g. `table1`.
    pub experiment: String,
    /// Label of the row as the paper prints it, e.g. `Jensen's KL`.
    pub row: String,
    /// Seed of the student's training; absent for the teacher and the initialised student, which are unique.
    pub training_seed: Option<u64>,
    /// Name of the data set, e.g. `self_instruct`.
    pub dataset: String,
    /// Sampling seed of the answers.
    pub sampling_seed: u64,
    /// How many examples were answered.
    pub n: u64,
    /// ROUGE-L F1 averaged over the examples, in percent.
    pub rouge_l: f64,
    /// Share of exactly matching answers, in percent.
    pub exact_match: f64,
    /// Mean length of the answers in tokens.
    pub mean_tokens: f64,
    /// ROUGE-L of each answer, in a file of its own.
    pub examples: Vec<f64>,
}

/// Writes raw scores with an atomic write.
///
/// # Errors
/// Names the file, or the score that is not a finite number.
pub fn write_scores(path: &Path, scores: &[Score]) -> Result<()> {
    write_lines(
        path,
        &SCORE_COLUMNS,
        scores.iter().map(|score| {
            vec![
                score.experiment.as_str().into(),
                score.row.as_str().into(),
                score.training_seed.into(),
                score.dataset.as_str().into(),
                score.sampling_seed.into(),
                score.n.into(),
                score.rouge_l.into(),
                score.exact_match.into(),
                score.mean_tokens.into(),
            ]
        }),
    )
}
