//! Validation curves: the files behind Figure 1.

use std::path::Path;

use anyhow::Result;

use super::sheet::{Sheet, write_lines};

const CURVE_COLUMNS: [&str; 4] = [
    "loss",
    "epoch",
    "dolly_validation_rouge_l",
    "validation_loss",
];

/// One point of a validation curve.
#[derive(Clone, Debug, PartialEq)]
pub struct CurvePoint {
    /// Label of the loss.
    pub loss: String,
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// ROUGE-L F1 on the Dolly validation set, in percent.
    pub dolly_validation_rouge_l: f64,
    /// Validation loss in nats per token; the paper's file has none.
    pub validation_loss: Option<f64>,
}

/// Writes validation curves, replacing the file in one step.
///
/// # Errors
/// Names the file, or the point that is not a finite number.
pub fn write_curve(path: &Path, points: &[CurvePoint]) -> Result<()> {
    write_lines(
        path,
        CURVE_COLUMNS,
        points.iter().map(|point| {
            [
                point.loss.as_str().into(),
                u64::from(point.epoch).into(),
                point.dolly_validation_rouge_l.into(),
                point.validation_loss.into(),
            ]
        }),
    )
}

/// Reads validation curves, ours or the paper's, which has no validation loss.
///
/// # Errors
/// Names the file, and the line and column where a value is wrong.
pub fn read_curve(path: &Path) -> Result<Vec<CurvePoint>> {
    let sheet = Sheet::open(path, &[&CURVE_COLUMNS[..3], &CURVE_COLUMNS])?;
    (0..sheet.len())
        .map(|line| {
            Ok(CurvePoint {
                loss: sheet.text(line, 0)?.to_string(),
                epoch: sheet.whole(line, 1)?,
                dolly_validation_rouge_l: sheet.number(line, 2)?,
                validation_loss: sheet.optional(line, 3, Sheet::number)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn curves_read_back_with_and_without_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figure1.csv");
        let point = |epoch, validation_loss| CurvePoint {
            loss: "Jensen's KL".into(),
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
}
