//! Training curves of a table: loss, gradient norm and share of clipped updates, one curve per row.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::{Area, Key, Look, axes, ends, frame, save, ticks};

const SIZE: (u32, u32) = (1700, 520);
/// Points of a curve: each is the mean over some updates.
const BINS: usize = 80;

/// An update of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Position in the training, from 0 to 1.
    pub at: f64,
    /// Loss, nats per token.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether the gradient was clipped.
    pub clipped: bool,
}

/// Draws the updates of the trainings of each row.
///
/// # Errors
/// The file cannot be written.
pub fn training(rows: &[(String, Vec<Update>)], path: &Path, subject: Option<&str>) -> Result<()> {
    let looks = Look::all(rows.iter().map(|(row, _)| row.as_str()), subject);
    save(path, SIZE, |area| {
        let body = frame(area, "Training", &looks, Key::Line)?;
        let panels = body.split_evenly((1, 3));
        let values: [(&str, Value); 3] = [
            ("loss, nats a token", |u| u.loss),
            ("norm of the gradient", |u| u.grad_norm),
            ("share of clipped updates", |u| {
                f64::from(u8::from(u.clipped))
            }),
        ];
        for (panel, (title, value)) in panels.iter().zip(values) {
            let curves: Vec<Vec<(f64, f64)>> = rows
                .iter()
                .map(|(_, updates)| binned(updates, value))
                .collect();
            draw(panel, title, &curves, &looks)?;
        }
        Ok(())
    })
}

/// The quantity of an update that is drawn.
type Value = fn(&Update) -> f64;

/// Means over equal parts of the training.
fn binned(updates: &[Update], value: Value) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0usize); BINS];
    for update in updates {
        let bin = ((update.at * BINS as f64) as usize).min(BINS - 1);
        sums[bin].0 += value(update);
        sums[bin].1 += 1;
    }
    let means = sums.into_iter().enumerate().filter(|(_, (_, n))| *n > 0);
    means
        .map(|(bin, (sum, n))| ((bin as f64 + 0.5) / BINS as f64, sum / n as f64))
        .collect()
}

fn draw(area: &Area, title: &str, curves: &[Vec<(f64, f64)>], looks: &[Look]) -> Result<()> {
    let values = curves.iter().flatten().map(|(_, y)| *y);
    let finite = values.filter(|y| y.is_finite());
    let (low, high) = ends(finite);
    if low > high {
        return Ok(());
    }
    let margin = (0.05 * (high - low)).max(1e-3);
    let mut chart = axes(
        area,
        title,
        (0.0..1.0, ticks(0.0, 1.0, 5.0).0),
        (low - margin..high + margin, 6.0),
        ["part of the training", title],
        &|at| format!("{at:.1}"),
    )?;
    for (curve, look) in curves.iter().zip(looks) {
        chart.draw_series([PathElement::new(curve.clone(), look.line())])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::png_size;
    use super::*;

    #[test]
    fn updates_are_averaged_in_equal_parts_and_nothing_is_no_error() {
        let update = |at: f64, loss: f64| Update {
            at,
            loss,
            grad_norm: 2.0,
            clipped: loss > 1.0,
        };
        let updates = [update(0.0, 1.0), update(0.001, 3.0), update(1.0, 5.0)];
        let curve = binned(&updates, |u| u.loss);
        assert_eq!(curve.len(), 2);
        assert_eq!((curve[0].1, curve[1].1), (2.0, 5.0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let rows = vec![
            ("FKLD".to_owned(), updates.to_vec()),
            ("none".to_owned(), Vec::new()),
        ];
        training(&rows, &path, None).unwrap();
        assert_eq!(png_size(&path), SIZE);
        let svg = dir.path().join("x.svg");
        training(&rows, &svg, None).unwrap();
        assert!(
            std::fs::read_to_string(&svg)
                .unwrap()
                .contains("share of clipped")
        );
    }
}
