//! A table of scores as bars: groups by data set, one colour per row, whiskers of one standard deviation: over the
//! trainings where a row has several, else over the sampling seeds.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::prelude::*;

use super::{Area, Key, Look, frame, named, px, save};
use crate::results::{Table, Titles, distinct};

const PANEL_HEIGHT: u32 = 430;
const WIDTH: u32 = 1600;
const FRAME_HEIGHT: u32 = 110;

/// The share of a group's width that is left free between two groups.
const GAP: f64 = 0.16;

/// Draws our table and, if given, the paper's below it in the same layout. A missing cell is shown as a dash in place
/// of its bar.
///
/// # Errors
/// Nothing to draw, or the file cannot be written.
pub fn bars(
    ours: &Table,
    paper: Option<&Table>,
    path: &Path,
    title: &str,
    profile: &str,
    subject: Option<&str>,
    titles: &Titles,
) -> Result<()> {
    ensure!(
        !ours.cells.is_empty(),
        "draw {}: no score of ours yet",
        path.display()
    );
    let tables = || paper.into_iter().chain([ours]);
    let looks = Look::all(distinct(tables().flat_map(Table::rows)), subject);
    let datasets = distinct(tables().flat_map(Table::datasets));
    let panels = tables().count();
    let size = (WIDTH, FRAME_HEIGHT + panels as u32 * PANEL_HEIGHT);
    save(path, size, |area| {
        let body = frame(area, title, &looks, Key::Box)?;
        let panels = body.split_evenly((panels, 1));
        let heading = format!("Ours ({profile})");
        panel(&panels[0], &heading, ours, &looks, &datasets, titles)?;
        if let Some(paper) = paper {
            let titles = Titles::default();
            panel(&panels[1], "Paper", paper, &looks, &datasets, &titles)?;
        }
        Ok(())
    })
}

fn panel(
    area: &Area,
    title: &str,
    table: &Table,
    looks: &[Look],
    datasets: &[&str],
    titles: &Titles,
) -> Result<()> {
    let tips = table
        .cells
        .iter()
        .map(|c| c.rouge_l_mean + c.spread().unwrap_or_default());
    let top = tips.fold(0.0, f64::max).max(0.1) * 1.06;
    let holes = looks.iter().any(|look| {
        datasets
            .iter()
            .any(|dataset| table.cell(&look.row, dataset).is_none())
    });
    let trainings = || table.cells.iter().filter_map(|c| c.training_seeds);
    let over = match (trainings().min(), trainings().max()) {
        (Some(1), Some(n)) if n > 1 => {
            format!("{n} trainings, or over the sampling seeds where a row has one")
        }
        (_, Some(n)) if n > 1 => format!("{n} trainings"),
        _ => "the sampling seeds of one training".into(),
    };
    let mut legend = format!(" – whiskers: standard deviation over {over}");
    if holes {
        legend += "; a dash marks a missing value";
    }
    let title = format!("{title}{legend}");
    let names: Vec<&str> = datasets.iter().map(|name| titles.of(name)).collect();
    let mut chart = named(area, &title, &names, (0.0..top, 6.0), "ROUGE-L F1 (%)")?;

    let width = (1.0 - GAP) / looks.len() as f64;
    let whisker = BLACK.stroke_width(px(1) as u32);
    for (group, dataset) in datasets.iter().enumerate() {
        for (slot, look) in looks.iter().enumerate() {
            let left = group as f64 + GAP / 2.0 + slot as f64 * width;
            let (middle, right) = (left + width / 2.0, left + width);
            let Some(cell) = table.cell(&look.row, dataset) else {
                let dash = [
                    (middle - width * 0.2, top * 0.008),
                    (middle + width * 0.2, top * 0.016),
                ];
                chart.draw_series([Rectangle::new(dash, RGBColor(150, 150, 150).filled())])?;
                continue;
            };
            let corners = [
                (left + width * 0.05, 0.0),
                (right - width * 0.05, cell.rouge_l_mean),
            ];
            chart.draw_series([Rectangle::new(corners, look.color.filled())])?;
            if look.emphasised {
                chart.draw_series([Rectangle::new(corners, whisker)])?;
            }
            let Some(std) = cell.spread() else {
                continue;
            };
            let (low, high) = ((cell.rouge_l_mean - std).max(0.0), cell.rouge_l_mean + std);
            let cap = width * 0.22;
            let strokes = [
                [(middle, low), (middle, high)],
                [(middle - cap, low), (middle + cap, low)],
                [(middle - cap, high), (middle + cap, high)],
            ];
            // A white rim keeps the whisker visible on black bars.
            let rim = WHITE.mix(0.8).stroke_width(px(3) as u32);
            chart.draw_series(strokes.map(|stroke| PathElement::new(stroke, rim)))?;
            chart.draw_series(strokes.map(|stroke| PathElement::new(stroke, whisker)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{count, dark, picture, png_size};
    use super::*;
    use crate::results::Cell;

    fn table(rows: &[&str], datasets: &[&str]) -> Table {
        let cell = |row: &str, dataset: &str| Cell {
            row: row.into(),
            dataset: dataset.into(),
            rouge_l_mean: 20.0,
            training_std: Some(1.0),
            sampling_std: None,
            training_seeds: None,
            sampling_seeds: None,
            exact_match_mean: None,
        };
        let cells = rows
            .iter()
            .flat_map(|row| datasets.iter().map(move |name| cell(row, name)))
            .collect();
        Table {
            row_key: "loss".into(),
            cells,
        }
    }

    #[test]
    fn bars_have_their_size_and_a_dash_where_a_cell_is_missing() {
        let paper = table(&["FKLD", "RKLD", "ABKD"], &["dolly", "vicuna"]);
        let mut ours = paper.clone();
        ours.cells.retain(|cell| cell.row != "RKLD");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table1.png");
        let draw = || {
            let (subject, titles) = (Some("ABKD"), Titles::default());
            bars(
                &ours,
                Some(&paper),
                &path,
                "Table 1",
                "tiny",
                subject,
                &titles,
            )
            .unwrap();
        };
        draw();
        assert_eq!(png_size(&path), (1600, 970));
        let first = std::fs::read(&path).unwrap();
        draw();
        assert_eq!(std::fs::read(&path).unwrap(), first);

        let pixels = picture(&path);
        let count = |ys, is: &dyn Fn([u8; 3]) -> bool| count(&pixels, (0..1600, ys), is);
        let bar = |row: &str| {
            let RGBColor(r, g, b) = Look::of(0, row, None).color;
            move |p| p == [r, g, b]
        };
        assert!(count(60..470, &bar("FKLD")) > 10_000);
        assert_eq!(count(60..470, &bar("RKLD")), 0, "no bar of ours");
        assert!(count(500..920, &bar("RKLD")) > 10_000);
        let dash = |p: [u8; 3]| p == [150; 3];
        assert!(count(60..470, &dash) > 100, "a dash for each missing bar");
        assert!(
            count(500..920, &dash) < 50,
            "nothing is missing in the paper's table"
        );
        assert!(count(0..46, &dark) > 100, "title");
    }

    #[test]
    fn one_cell_is_enough_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table4.png");
        let draw = |ours: &Table| bars(ours, None, &path, "", "tiny", None, &Titles::default());
        draw(&table(&["new"], &["dolly"])).unwrap();
        assert_eq!(png_size(&path), (1600, 540));
        let error = format!("{:#}", draw(&table(&[], &[])).unwrap_err());
        assert!(error.contains("table4.png: no score"), "{error}");
    }
}
