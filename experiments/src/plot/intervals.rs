//! The rows of a table on each data set from best to worst, with intervals; the paper's beside them.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::{Area, Chart, Key, Look, ends, frame, named, px, save};
use crate::evidence::{Evidence, LEVEL, OnSet, RowMean};
use crate::results::{Table, Titles};

const WIDTH: u32 = 1700;
const PANEL_HEIGHT: u32 = 270;
const FRAME_HEIGHT: u32 = 60;

/// A row in a panel.
struct Point<'a> {
    row: &'a str,
    /// Position in the table: a row has the same colour in every panel.
    index: usize,
    mean: f64,
    /// Ends of the whisker.
    ends: Option<[f64; 2]>,
}

/// Draws a panel for each data set, ours and, if given, the paper's.
///
/// # Errors
/// The file cannot be written.
pub fn intervals(
    evidence: &Evidence,
    paper: Option<&Table>,
    path: &Path,
    title: &str,
    profile: &str,
    subject: Option<&str>,
) -> Result<()> {
    let sets: Vec<&OnSet> = evidence
        .sets
        .iter()
        .filter(|s| s.dataset.is_some())
        .collect();
    let size = (WIDTH, FRAME_HEIGHT + sets.len() as u32 * PANEL_HEIGHT);
    let columns = if paper.is_some() { 2 } else { 1 };
    save(path, size, |area| {
        let body = frame(area, title, &[], Key::Line)?;
        let panels = body.split_evenly((sets.len(), columns));
        for (set, panels) in sets.iter().zip(panels.chunks(columns)) {
            let whiskers = match set.shape.trainings {
                1 => "no intervals of one training".into(),
                _ => format!("whiskers: intervals of {:.0}%", 100.0 * LEVEL),
            };
            let name = evidence.title(set);
            let ours = ours(set);
            panel(
                &panels[0],
                &format!("{name}, ours ({profile}) – {whiskers}"),
                ours,
                subject,
            )?;
            if let (Some(paper), Some(area)) = (paper, panels.get(1)) {
                let titles = Titles::default();
                let name = set.dataset.as_deref().map_or(name, |name| titles.of(name));
                let title = format!(
                    "{name}, paper – whiskers: standard deviation over the sampling seeds of one training"
                );
                panel(area, &title, theirs(set, paper), subject)?;
            }
        }
        Ok(())
    })
}

fn ours(set: &OnSet) -> Vec<Point<'_>> {
    let points = set.rows.iter().enumerate().map(|(index, r)| Point {
        row: &r.row,
        index,
        mean: r.mean,
        ends: r.estimate.map(|e| e.interval(LEVEL)),
    });
    points.collect()
}

fn theirs<'a>(set: &'a OnSet, paper: &Table) -> Vec<Point<'a>> {
    let point = |(index, row): (usize, &'a RowMean)| {
        let row = row.row.as_str();
        let cell = paper.cell(row, set.dataset.as_deref()?)?;
        let ends = |std: f64| [cell.rouge_l_mean - std, cell.rouge_l_mean + std];
        Some(Point {
            row,
            index,
            mean: cell.rouge_l_mean,
            ends: cell.sampling_std.map(ends),
        })
    };
    set.rows.iter().enumerate().filter_map(point).collect()
}

fn panel(area: &Area, title: &str, mut points: Vec<Point>, subject: Option<&str>) -> Result<()> {
    points.sort_by(|a, b| b.mean.total_cmp(&a.mean));
    let values = points.iter().flat_map(|p| p.ends.unwrap_or([p.mean; 2]));
    let (low, high) = ends(values);
    if points.is_empty() {
        return Ok(());
    }
    let margin = (0.08 * (high - low)).max(0.1);
    let range = low - margin..high + margin;
    let names: Vec<&str> = points.iter().map(|p| p.row).collect();
    let mut chart = named(area, title, &names, (range, 5.0), "ROUGE-L F1 (%)")?;
    for (i, point) in points.iter().enumerate() {
        let look = Look::of(point.index, point.row, subject);
        draw(&mut chart, i as f64 + 0.5, point, &look)?;
    }
    Ok(())
}

fn draw(chart: &mut Chart, x: f64, point: &Point, look: &Look) -> Result<()> {
    if let Some([low, high]) = point.ends {
        let cap = 0.1;
        let strokes = [
            [(x, low), (x, high)],
            [(x - cap, low), (x + cap, low)],
            [(x - cap, high), (x + cap, high)],
        ];
        chart.draw_series(strokes.map(|stroke| PathElement::new(stroke, look.line())))?;
    }
    let radius = px(if look.emphasised { 7 } else { 5 });
    chart.draw_series([Circle::new((x, point.mean), radius, look.color.filled())])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::png_size;
    use super::*;
    use crate::evidence::tests::{ROWS, paper, scores};

    #[test]
    fn a_panel_for_each_set_and_side_also_of_one_training() {
        let means = [("a", 40.0), ("bb", 30.0), ("ccc", 20.0), ("dddd", 10.0)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        for trainings in [1, 3] {
            let scores = scores(&means, trainings, 0.5);
            for paper in [None, Some(paper(&means))] {
                let evidence = Evidence::new(&scores, &ROWS, paper.as_ref()).unwrap();
                intervals(&evidence, paper.as_ref(), &path, "x", "tiny", Some("bb")).unwrap();
                assert_eq!(png_size(&path), (WIDTH, FRAME_HEIGHT + 2 * PANEL_HEIGHT));
            }
        }
    }
}
