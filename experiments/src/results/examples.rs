//! Scores of single answers: a line per trained student, data set and sampling seed.

use std::path::Path;

use anyhow::{Context, Result};

use super::score::Score;
use super::sheet::{Sheet, write_lines};

const COLUMNS: [&str; 5] = [
    "row",
    "training_seed",
    "dataset",
    "sampling_seed",
    "rouge_l",
];

/// ROUGE-L of each answer of a student to a data set, in percent, in the order of the set.
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    /// Label of the row.
    pub row: String,
    /// Seed of the student's training; absent for the teacher and the initialised student.
    pub training_seed: Option<u64>,
    /// Name of the data set.
    pub dataset: String,
    /// Sampling seed of the answers.
    pub sampling_seed: u64,
    /// The scores.
    pub rouge_l: Vec<f64>,
}

/// Writes the scores of single answers, separated by spaces in one field per student, set and seed.
///
/// # Errors
/// Names the file.
pub fn write_examples(path: &Path, scores: &[Score]) -> Result<()> {
    let texts: Vec<String> = scores
        .iter()
        .map(|score| {
            let texts: Vec<String> = score.examples.iter().map(|x| format!("{x:.4}")).collect();
            texts.join(" ")
        })
        .collect();
    write_lines(
        path,
        &COLUMNS,
        scores.iter().zip(&texts).map(|(score, text)| {
            vec![
                score.row.as_str().into(),
                score.training_seed.into(),
                score.dataset.as_str().into(),
                score.sampling_seed.into(),
                text.as_str().into(),
            ]
        }),
    )
}

/// Reads the scores of single answers.
///
/// # Errors
/// Names the file, and the line and column where a value is wrong.
pub fn read_examples(path: &Path) -> Result<Vec<Examples>> {
    let sheet = Sheet::open(path, &[&COLUMNS])?;
    (0..sheet.len())
        .map(|line| {
            let score = |text: &str| {
                let value = text.parse().ok().filter(|x: &f64| x.is_finite());
                value.with_context(|| format!("{}: `{text}` is not a score", sheet.place(line, 4)))
            };
            Ok(Examples {
                row: sheet.text(line, 0)?.to_string(),
                training_seed: sheet.optional(line, 1, Sheet::whole)?,
                dataset: sheet.text(line, 2)?.to_string(),
                sampling_seed: sheet.whole(line, 3)?,
                rouge_l: sheet
                    .text(line, 4)?
                    .split(' ')
                    .map(score)
                    .collect::<Result<_>>()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_read_as_they_were_written_and_a_wrong_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv");
        let score = Score {
            experiment: "table1".into(),
            row: "Jensen's KL".into(),
            training_seed: Some(2),
            dataset: "dolly".into(),
            sampling_seed: 10,
            n: 3,
            rouge_l: 20.0,
            exact_match: 0.0,
            mean_tokens: 1.0,
            examples: vec![0.0, 10.0, 50.0],
        };
        write_examples(&path, std::slice::from_ref(&score)).unwrap();
        let read = read_examples(&path).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].rouge_l, score.examples);
        assert_eq!(
            (read[0].row.as_str(), read[0].training_seed),
            ("Jensen's KL", Some(2))
        );
        let text = std::fs::read_to_string(&path).unwrap();
        for wrong in ["x", "NaN", ""] {
            std::fs::write(&path, text.replace("10.0000", wrong)).unwrap();
            let error = format!("{:#}", read_examples(&path).unwrap_err());
            assert!(error.contains("x.csv:2:"), "{error}");
        }
    }
}
