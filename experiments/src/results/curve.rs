//! Validation curves: the files behind Figure 1.

use std::collections::BTreeMap;
use std::path::Path;

use abkd_metrics::stats;
use anyhow::Result;

use super::sheet::{Sheet, write_lines};

const CURVE_COLUMNS: [&str; 5] = [
    "loss",
    "training_seed",
    "epoch",
    "dolly_validation_rouge_l",
    "validation_loss",
];

/// The paper's file: one training, no loss.
const PAPER_COLUMNS: [&str; 3] = ["loss", "epoch", "dolly_validation_rouge_l"];

/// One point of a validation curve.
#[derive(Clone, Debug, PartialEq)]
pub struct CurvePoint {
    /// Label of the loss.
    pub loss: String,
    /// Seed of the training; the paper's file does not say.
    pub training_seed: Option<u64>,
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// ROUGE-L F1 on the Dolly validation set, in percent.
    pub dolly_validation_rouge_l: f64,
    /// Validation loss in nats per token; the paper's file has none.
    pub validation_loss: Option<f64>,
}

/// Writes validation curves with an atomic write.
///
/// # Errors
/// Names the file, or the point that is not a finite number.
pub fn write_curve(path: &Path, points: &[CurvePoint]) -> Result<()> {
    write_lines(
        path,
        &CURVE_COLUMNS,
        points.iter().map(|point| {
            vec![
                point.loss.as_str().into(),
                point.training_seed.into(),
                u64::from(point.epoch).into(),
                point.dolly_validation_rouge_l.into(),
                point.validation_loss.into(),
            ]
        }),
    )
}

/// Reads validation curves, ours or the paper's; the latter have no validation loss.
///
/// # Errors
/// Names the file, and the line and column where a value is wrong.
pub fn read_curve(path: &Path) -> Result<Vec<CurvePoint>> {
    let sheet = Sheet::open(path, &[&PAPER_COLUMNS, &CURVE_COLUMNS])?;
    let ours = sheet.columns.len() == CURVE_COLUMNS.len();
    let first = usize::from(ours) + 1;
    (0..sheet.len())
        .map(|line| {
            Ok(CurvePoint {
                loss: sheet.text(line, 0)?.to_string(),
                training_seed: if ours {
                    sheet.optional(line, 1, Sheet::whole)?
                } else {
                    None
                },
                epoch: sheet.whole(line, first)?,
                dolly_validation_rouge_l: sheet.number(line, first + 1)?,
                validation_loss: sheet.optional(line, first + 2, Sheet::number)?,
            })
        })
        .collect()
}

/// A point of a loss's mean curve, over the trainings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanPoint {
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Mean over the trainings that have the epoch.
    pub mean: f64,
    /// Sample standard deviation over the trainings; absent for one.
    pub std: Option<f64>,
}

/// The mean curve of a loss, in the order of the epochs.
pub fn mean_curve(points: &[CurvePoint], loss: &str) -> Vec<MeanPoint> {
    let mut epochs: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for point in points.iter().filter(|point| point.loss == loss) {
        let values = epochs.entry(point.epoch).or_default();
        values.push(point.dolly_validation_rouge_l);
    }
    epochs
        .into_iter()
        .filter_map(|(epoch, values)| {
            Some(MeanPoint {
                epoch,
                mean: stats::mean(&values)?,
                std: stats::std(&values),
            })
        })
        .collect()
}

/// The highest point of a loss's mean curve.
pub fn best_point(points: &[CurvePoint], loss: &str) -> Option<f64> {
    let means = mean_curve(points, loss).into_iter().map(|p| p.mean);
    means.max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn curves_read_back_with_and_without_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figure1.csv");
        let point = |epoch, validation_loss: Option<f64>| CurvePoint {
            loss: "Jensen's KL".into(),
            training_seed: validation_loss.map(|_| 3),
            epoch,
            dolly_validation_rouge_l: 12.5,
            validation_loss,
        };
        let points = [point(1, Some(2.25)), point(2, None)];
        write_curve(&path, &points).unwrap();
        assert_eq!(read_curve(&path).unwrap(), points);
        fs::write(
            &path,
            "loss,epoch,dolly_validation_rouge_l\r\nJensen's KL,2,12.50\r\n",
        )
        .unwrap();
        assert_eq!(read_curve(&path).unwrap(), [point(2, None)]);
    }

    #[test]
    fn a_mean_curve_is_over_the_trainings() {
        let point = |loss: &str, training_seed, epoch, rouge| CurvePoint {
            loss: loss.into(),
            training_seed: Some(training_seed),
            epoch,
            dolly_validation_rouge_l: rouge,
            validation_loss: None,
        };
        let points = [
            point("A", 1, 2, 5.0),
            point("A", 1, 1, 1.0),
            point("A", 2, 1, 3.0),
            point("B", 1, 1, 9.0),
        ];
        let curve = mean_curve(&points, "A");
        assert_eq!(curve.len(), 2);
        assert_eq!((curve[0].epoch, curve[0].mean), (1, 2.0));
        assert!((curve[0].std.unwrap() - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!((curve[1].mean, curve[1].std), (5.0, None));
    }
}
