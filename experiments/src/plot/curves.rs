//! Figure 1: validation ROUGE-L over the epochs of distillation, the mean over the trainings with a band of one standard
//! deviation.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use plotters::prelude::*;

use super::{Area, Key, Look, axes, ends, frame, save, ticks};
use crate::results::{CurvePoint, distinct, mean_curve};

const SIZE: (u32, u32) = (1600, 760);

/// Labels of a figure of curves.
pub struct Words<'a> {
    /// Heading of the figure.
    pub title: &'a str,
    /// Heading of our panel.
    pub ours: &'a str,
    /// What our points are counted in: epochs, or validations.
    pub at: &'a str,
    /// Label of the y axis.
    pub score: &'a str,
}

/// Draws our curves in one panel and, if given, the paper's (read off its printed figure) in another. Each panel has
/// its own scale; each loss has the same colour and marker in both.
///
/// # Errors
/// Nothing to draw, or the file cannot be written.
pub fn curves(
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
    let paper = paper.filter(|points| !points.is_empty());
    let all = paper.unwrap_or_default().iter().chain(ours);
    let looks = Look::all(distinct(all.map(|point| point.loss.as_str())), subject);
    let seeds: BTreeSet<_> = ours.iter().map(|p| p.training_seed).collect();
    let band = match seeds.len() {
        1 => String::new(),
        n => format!(", mean of {n} trainings ± standard deviation"),
    };
    let title = format!("{}{band}", words.ours);
    save(path, SIZE, |area| {
        let body = frame(area, words.title, &looks, Key::Line)?;
        let panels = body.split_evenly((1, if paper.is_some() { 2 } else { 1 }));
        let labels = [&title, words.at, words.score];
        panel(area, &panels[0], labels, ours, &looks)?;
        if let Some(paper) = paper {
            let labels = ["Paper (read off the figure)", "epoch", words.score];
            panel(area, &panels[1], labels, paper, &looks)?;
        }
        Ok(())
    })
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
    // Epochs are whole: a step below one would print the same number twice.
    let x_ticks = ticks(first, last, 10.0_f64.min((last - first).max(1.0))).0;
    let pad = ((last - first) * 0.03).max(0.2);

    let chart = axes(
        area,
        title,
        (first - pad..last + pad, x_ticks),
        (low..high, 7.0),
        [x, score],
        &|epoch| format!("{epoch:.0}"),
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
    use super::super::tests::{count, dark, picture, png_size};
    use super::*;

    const SUBJECT: Option<&str> = Some("ABKD");
    const WORDS: Words = Words {
        title: "Figure 1: validation ROUGE-L during distillation, by loss",
        ours: "Ours (tiny)",
        at: "epoch",
        score: "ROUGE-L F1 on Dolly validation (%)",
    };

    fn points(epochs: u32) -> Vec<CurvePoint> {
        let losses = ["FKLD", "Jensen's KL", "ABKD"];
        let of_loss = |(i, loss): (usize, &&str)| {
            let loss = loss.to_string();
            (1..=epochs).map(move |epoch| CurvePoint {
                loss: loss.clone(),
                training_seed: None,
                epoch,
                dolly_validation_rouge_l: 10.0 + i as f64 + f64::from(epoch).sqrt(),
                validation_loss: None,
            })
        };
        losses.iter().enumerate().flat_map(of_loss).collect()
    }

    #[test]
    fn a_figure_has_its_size_its_colours_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny/figure1.png");
        let paper = points(20);
        curves(&points(3), Some(&paper), &path, &WORDS, SUBJECT).unwrap();
        assert_eq!(png_size(&path), SIZE);
        let pixels = picture(&path);
        let count = |xs, ys, is: &dyn Fn([u8; 3]) -> bool| count(&pixels, (xs, ys), is);
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
        let draw = |ours: &[CurvePoint], path: &Path| curves(ours, None, path, &WORDS, SUBJECT);
        draw(&points(1), &a).unwrap();
        draw(&points(1), &b).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let error = format!("{:#}", draw(&[], &a).unwrap_err());
        assert!(error.contains("a.png: no curve"), "{error}");
        assert!(draw(&points(1), &a.join("below a file.png")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn several_trainings_give_a_band() {
        let trainings: Vec<CurvePoint> = [1, 2]
            .into_iter()
            .flat_map(|seed| {
                points(4).into_iter().map(move |point| CurvePoint {
                    training_seed: Some(seed),
                    dolly_validation_rouge_l: point.dolly_validation_rouge_l + seed as f64,
                    ..point
                })
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let pixels = |points: &[CurvePoint]| {
            curves(points, None, &path, &WORDS, SUBJECT).unwrap();
            let pale = |p: [u8; 3]| p != [255; 3] && p.iter().all(|&c| c > 200);
            count(&picture(&path), (100..1550, 60..680), pale)
        };
        assert!(pixels(&trainings) > pixels(&points(4)) + 20_000);
    }
}
