//! Where the students' probability mass lies during training, the teacher's beside it.

use std::collections::BTreeMap;
use std::path::Path;

use abkd_metrics::stats;
use abkd_training::head::{Masses, Shape};
use anyhow::{Result, ensure};
use plotters::prelude::*;

use super::{Area, Key, Look, axes, ends, frame, px, save, ticks};
use crate::results::{MassPoint, distinct};
use crate::spec::TEACHER;

const SIZE: (u32, u32) = (1520, 900);

/// A number of a panel: of the student and, where the teacher has one, of the teacher.
type Number = fn(&Masses) -> (f64, Option<f64>);

/// The panels.
const PANELS: [(&str, Number); 4] = [
    ("mass on the teacher's head (half of its mass)", |m| {
        both(m, |shape| shape.head)
    }),
    ("mass on the teacher's tail (its last 5%)", |m| {
        both(m, |shape| shape.tail)
    }),
    ("entropy, nats", |m| both(m, |shape| shape.entropy)),
    ("overlap of the ten likeliest tokens", |m| (m.overlap, None)),
];

fn both(masses: &Masses, number: fn(&Shape) -> f64) -> (f64, Option<f64>) {
    (number(&masses.student), Some(number(&masses.teacher)))
}

/// Draws a curve for each loss, the mean over its trainings, and the teacher as a level.
///
/// # Errors
/// Nothing to draw, or the file cannot be written.
pub fn masses(points: &[MassPoint], path: &Path, title: &str, subject: Option<&str>) -> Result<()> {
    ensure!(
        !points.is_empty(),
        "draw {}: no validation measured masses",
        path.display()
    );
    let rows = distinct(points.iter().map(|point| point.loss.as_str()));
    let mut looks = Look::all(rows, subject);
    looks.push(Look::of(looks.len(), TEACHER, None));
    let title = format!("{title}: where the probability mass lies");
    save(path, SIZE, |area| {
        let body = frame(area, &title, &looks, Key::Line)?;
        for (part, (title, number)) in body.split_evenly((2, 2)).iter().zip(PANELS) {
            panel(part, title, points, number, &looks)?;
        }
        Ok(())
    })
}

/// The mean over the trainings at each number of updates; of the teacher, the mean over all at both ends.
fn curve(points: &[MassPoint], number: Number, row: &str) -> Vec<(f64, f64)> {
    let mut at: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    if row == TEACHER {
        let levels: Vec<f64> = points.iter().filter_map(|p| number(&p.masses).1).collect();
        let updates = || points.iter().map(|p| p.updates);
        if let (Some(level), Some(a), Some(b)) =
            (stats::mean(&levels), updates().min(), updates().max())
        {
            return vec![(a as f64, level), (b as f64, level)];
        }
        return Vec::new();
    }
    for point in points.iter().filter(|point| point.loss == row) {
        let values = at.entry(point.updates).or_default();
        values.push(number(&point.masses).0);
    }
    let means = at.into_iter();
    means
        .filter_map(|(updates, values)| Some((updates as f64, stats::mean(&values)?)))
        .collect()
}

fn panel(
    area: &Area,
    title: &str,
    points: &[MassPoint],
    number: Number,
    looks: &[Look],
) -> Result<()> {
    let curves: Vec<Vec<(f64, f64)>> = looks
        .iter()
        .map(|look| curve(points, number, &look.row))
        .collect();
    let (first, last) = ends(curves.iter().flatten().map(|(x, _)| *x));
    let (low, high) = ends(curves.iter().flatten().map(|(_, y)| *y));
    let margin = (0.06 * (high - low)).max(1e-3);
    let pad = 0.03 * (last - first).max(1.0);
    let mut chart = axes(
        area,
        title,
        (first - pad..last + pad, ticks(first, last, 6.0).0),
        (low - margin..high + margin, 6.0),
        ["updates", ""],
        &|at| format!("{at:.0}"),
    )?;
    for (curve, look) in curves.into_iter().zip(looks) {
        if look.row != TEACHER {
            let dot = |at: &(f64, f64)| Circle::new(*at, px(3), look.color.filled());
            chart.draw_series(curve.iter().map(dot))?;
        }
        chart.draw_series([PathElement::new(curve, look.line())])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::png_size;
    use super::*;

    fn point(loss: &str, training_seed: u64, updates: u64, head: f64) -> MassPoint {
        let shape = |head| Shape {
            head,
            tail: 0.1,
            entropy: 2.0,
        };
        MassPoint {
            loss: loss.into(),
            training_seed,
            updates,
            masses: Masses {
                student: shape(head),
                teacher: shape(0.6),
                overlap: 0.5,
            },
        }
    }

    #[test]
    fn a_curve_is_the_mean_over_trainings_and_the_teacher_a_level() {
        let points = [
            point("FKLD", 1, 10, 0.2),
            point("FKLD", 2, 10, 0.4),
            point("FKLD", 1, 20, 0.5),
            point("ABKD", 1, 10, 0.9),
        ];
        let of = |row| curve(&points, PANELS[0].1, row);
        let fkld = of("FKLD");
        assert!(fkld.len() == 2 && (fkld[0].1 - 0.3).abs() < 1e-12 && fkld[1] == (20.0, 0.5));
        assert_eq!(of("ABKD"), [(10.0, 0.9)]);
        let teacher = of(TEACHER);
        assert!(teacher.iter().all(|(_, level)| (level - 0.6).abs() < 1e-12));
        assert_eq!((teacher.len(), teacher[0].0, teacher[1].0), (2, 10.0, 20.0));
        assert!(curve(&points, PANELS[3].1, TEACHER).is_empty());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        masses(&points, &path, "Three losses", None).unwrap();
        assert_eq!(png_size(&path), SIZE);
        let error = format!("{:#}", masses(&[], &path, "", None).unwrap_err());
        assert!(error.contains("x.png: no validation"), "{error}");
    }
}
