//! Figure 1: validation ROUGE-L over the epochs of distillation, the mean over the trainings with a band of one standard
//! deviation.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::prelude::*;

use super::{Area, Axis, Key, Look, axes, ends, frame, save, ticks};
use crate::results::{CurvePoint, distinct, mean_curve};

const SIZE: (u32, u32) = (1600, 760);

/// Draws our curves in one panel and, if given, the paper's (read off its printed figure) in another. Each panel has
/// its own scale; each loss has the same colour and marker in both. `at` is what our points are counted in: epochs, or
/// validations.
///
/// # Errors
/// Nothing to draw, or the file cannot be written.
pub fn figure1(
    ours: &[CurvePoint],
    paper: Option<&[CurvePoint]>,
    path: &Path,
    title: &str,
    profile: &str,
    at: &str,
    subject: Option<&str>,
) -> Result<()> {
    let words = Words {
        title,
        ours: &format!("Ours ({profile})"),
        at,
        score: "ROUGE-L F1 on Dolly validation (%)",
    };
    picture(ours, paper, path, &words, subject)
}

/// Draws the curves of a pair of models on a user's own validation data.
///
/// # Errors
/// As [`figure1`].
pub fn own_curve(points: &[CurvePoint], path: &Path, pair: &str) -> Result<()> {
    let words = Words {
        title: "Validation ROUGE-L during distillation",
        ours: pair,
        at: "epoch",
        score: "ROUGE-L F1 on the validation data (%)",
    };
    picture(points, None, path, &words, None)
}

/// Labels of a figure of curves.
struct Words<'a> {
    title: &'a str,
    /// Heading of our panel.
    ours: &'a str,
    /// Label of our panel's x axis.
    at: &'a str,
    /// Label of the y axis.
    score: &'a str,
}

fn picture(
    ours: &[CurvePoint],
    paper: Option<&[CurvePoint]>,
    path: &Path,
    words: &Words,
    subject: Option<&str>,
) -> Result<()> {
    ensure!(
        !ours.is_empty(),
        "draw {}: no curve of ours yet",
        path.display()
    );
    save(path, SIZE, |area| draw(area, ours, paper, words, subject))
}

fn draw(
    area: &Area,
    ours: &[CurvePoint],
    paper: Option<&[CurvePoint]>,
    words: &Words,
    subject: Option<&str>,
) -> Result<()> {
    let paper = paper.filter(|points| !points.is_empty());
    let all = paper.unwrap_or_default().iter().chain(ours);
    let rows = distinct(all.map(|point| point.loss.as_str()));
    let looks: Vec<Look> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| Look::of(i, row, subject))
        .collect();
    let body = frame(area, words.title, &looks, Key::Line)?;
    let panels = body.split_evenly((1, if paper.is_some() { 2 } else { 1 }));
    let seeds: std::collections::BTreeSet<_> = ours.iter().map(|p| p.training_seed).collect();
    let band = match seeds.len() {
        1 => String::new(),
        n => format!(", mean of {n} trainings ± standard deviation"),
    };
    let title = format!("{}{band}", words.ours);
    panel(
        area,
        &panels[0],
        [&title, words.at, words.score],
        ours,
        &looks,
    )?;
    if let Some(paper) = paper {
        panel(
            area,
            &panels[1],
            ["Paper (read off the figure)", "epoch", words.score],
            paper,
            &looks,
        )?;
    }
    Ok(())
}

fn panel(
    whole: &Area,
    area: &Area,
    [title, x, score]: [&str; 3],
    points: &[CurvePoint],
    looks: &[Look],
) -> Result<()> {
    let (first, last) = ends(points.iter().map(|point| f64::from(point.epoch)));
    let curves: Vec<_> = looks
        .iter()
        .map(|look| mean_curve(points, &look.row))
        .collect();
    let whiskers = curves.iter().flatten().flat_map(|point| {
        let std = point.std.unwrap_or_default();
        [point.mean - std, point.mean + std]
    });
    let (low, high) = ends(whiskers);
    let margin = ((high - low) * 0.06).max(0.05);
    let (low, high) = (low - margin, high + margin);
    let (y_ticks, y_step) = ticks(low, high, 7.0);
    // Epochs are whole: a step below one would print the same number twice.
    let x_ticks = ticks(first, last, 10.0_f64.min((last - first).max(1.0))).0;
    let pad = ((last - first) * 0.03).max(0.2);

    let chart = axes(
        area,
        title,
        Axis::new(first - pad..last + pad, x_ticks),
        Axis::new(low..high, y_ticks),
        [x, score],
        &|epoch| format!("{epoch:.0}"),
        y_step,
    )?;

    // The emphasised curve comes last, on top of the others.
    let mut order: Vec<usize> = (0..looks.len()).collect();
    order.sort_by_key(|&i| looks[i].emphasised);
    for &i in &order {
        let edge = |sign: f64| {
            let at = curves[i].iter().filter_map(move |point| {
                Some((f64::from(point.epoch), point.mean + sign * point.std?))
            });
            at.map(|at| chart.backend_coord(&at)).collect::<Vec<_>>()
        };
        let band = [edge(1.0), edge(-1.0).into_iter().rev().collect()].concat();
        if band.len() > 2 {
            whole.draw(&Polygon::new(band, looks[i].color.mix(0.12)))?;
        }
    }
    for i in order {
        let pixels: Vec<(i32, i32)> = curves[i]
            .iter()
            .map(|point| chart.backend_coord(&(f64::from(point.epoch), point.mean)))
            .collect();
        if pixels.len() > 1 {
            whole.draw(&PathElement::new(pixels.clone(), looks[i].line()))?;
        }
        for pixel in pixels {
            looks[i].mark(whole, pixel)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::render;
    use super::super::tests::{count, dark, png_size};
    use super::*;

    const SUBJECT: Option<&str> = Some("ABKD");
    const TITLE: &str = "Figure 1: validation ROUGE-L during distillation, by loss";
    const WORDS: Words = Words {
        title: TITLE,
        ours: "Ours (tiny)",
        at: "epoch",
        score: "ROUGE-L F1 on Dolly validation (%)",
    };

    fn curves(epochs: u32) -> Vec<CurvePoint> {
        let losses = ["FKLD", "Jensen's KL", "ABKD"];
        let points = |(i, loss): (usize, &&str)| {
            let loss = loss.to_string();
            (1..=epochs).map(move |epoch| CurvePoint {
                loss: loss.clone(),
                training_seed: None,
                epoch,
                dolly_validation_rouge_l: 10.0 + i as f64 + f64::from(epoch).sqrt(),
                validation_loss: None,
            })
        };
        losses.iter().enumerate().flat_map(points).collect()
    }

    #[test]
    fn a_figure_has_its_size_its_colours_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny/figure1.png");
        figure1(
            &curves(3),
            Some(&curves(20)),
            &path,
            TITLE,
            "tiny",
            "epoch",
            SUBJECT,
        )
        .unwrap();
        assert_eq!(png_size(&path), SIZE);
        let pixels = render(SIZE, |area| {
            draw(area, &curves(3), Some(&curves(20)), &WORDS, SUBJECT)
        })
        .unwrap();
        let count = |xs, ys, is: &dyn Fn([u8; 3]) -> bool| count(&pixels, SIZE.0, (xs, ys), is);
        for loss in ["FKLD", "Jensen's KL", "ABKD"] {
            let RGBColor(r, g, b) = Look::of(0, loss, None).color;
            assert!(count(0..1600, 50..720, &|p| p == [r, g, b]) > 200, "{loss}");
        }
        assert!(count(300..1300, 0..46, &dark) > 500, "title");
        assert!(count(0..40, 100..650, &dark) > 200, "label of the y axis");
        assert!(count(400..1200, 720..760, &dark) > 100, "legend");
        assert_eq!(
            count(0..1600, 0..4, &|p| p != [255; 3]),
            0,
            "nothing at the edge"
        );
    }

    #[test]
    fn equal_curves_are_equal_files_and_few_points_are_enough() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.png", "b.png"].map(|name| folder.path().join(name));
        figure1(&curves(1), None, &a, TITLE, "tiny", "epoch", SUBJECT).unwrap();
        figure1(&curves(1), None, &b, TITLE, "tiny", "epoch", SUBJECT).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let error = format!(
            "{:#}",
            figure1(&[], None, &a, TITLE, "tiny", "epoch", SUBJECT).unwrap_err()
        );
        assert!(error.contains("a.png: no curve"), "{error}");
        assert!(
            figure1(
                &curves(1),
                None,
                &a.join("below a file.png"),
                TITLE,
                "tiny",
                "epoch",
                SUBJECT
            )
            .is_err()
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn several_trainings_give_a_band() {
        let trainings: Vec<CurvePoint> = [1, 2]
            .into_iter()
            .flat_map(|seed| {
                curves(4).into_iter().map(move |point| CurvePoint {
                    training_seed: Some(seed),
                    dolly_validation_rouge_l: point.dolly_validation_rouge_l + seed as f64,
                    ..point
                })
            })
            .collect();
        let pixels = |points: &[CurvePoint]| {
            let pixels = render(SIZE, |area| draw(area, points, None, &WORDS, SUBJECT)).unwrap();
            let pale = |p: [u8; 3]| p != [255; 3] && p.iter().all(|&c| c > 200);
            count(&pixels, SIZE.0, (100..1550, 60..680), pale)
        };
        assert!(pixels(&trainings) > pixels(&curves(4)) + 20_000);
    }
}
