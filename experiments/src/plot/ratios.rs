//! The benchmarks against PyTorch as bars: one panel per benchmark, one bar per row, its height the speed-up.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use serde::Deserialize;

use super::{Area, Key, frame, named, save, text_style};

const WIDTH: u32 = 1300;
const PANEL_HEIGHT: u32 = 330;
const FRAME_HEIGHT: u32 = 60;
const COLOR: RGBColor = RGBColor(0, 114, 178);

/// File name and heading of each panel, in order.
const PANELS: [(&str, &str); 3] = [
    ("losses", "divergence, forward and backward"),
    (
        "step",
        "update of a distillation, by seconds a sample, beside a well-written PyTorch step",
    ),
    ("sampling", "sampling, by tokens a second"),
];

/// A row of a benchmark's CSV, which has more columns than these.
#[derive(Debug, Deserialize)]
struct Bar {
    what: String,
    /// Speed-up over eager PyTorch; absent if PyTorch is too slow to measure.
    #[serde(alias = "times_as_fast_as_good")]
    times_as_fast: Option<f64>,
    machine: String,
}

/// Draws the CSV files found in `results`.
///
/// # Errors
/// No file is found, one has another format, or the figure cannot be written.
pub fn ratios(results: &Path, path: &Path) -> Result<()> {
    let mut panels = Vec::new();
    for (name, title) in PANELS {
        let file = results.join(format!("{name}.csv"));
        if file.exists() {
            panels.push((title, read(&file)?));
        }
    }
    ensure!(
        !panels.is_empty(),
        "{}: no comparison yet; `make bench PYTHON=...` with a Python that has torch and transformers makes one",
        results.display()
    );
    let size = (WIDTH, FRAME_HEIGHT + panels.len() as u32 * PANEL_HEIGHT);
    save(path, size, |area| {
        let title = "Times as fast as PyTorch 2.9 on the same cores";
        let body = frame(area, title, &[], Key::Box)?;
        let parts = body.split_evenly((panels.len(), 1));
        for (part, (title, bars)) in parts.iter().zip(&panels) {
            panel(part, title, bars)?;
        }
        Ok(())
    })
}

fn read(file: &Path) -> Result<Vec<Bar>> {
    let opened = abkd_host::files::open(file).with_context(|| file.display().to_string())?;
    csv::Reader::from_reader(opened)
        .into_deserialize()
        .map(|row| row.with_context(|| file.display().to_string()))
        .collect()
}

fn panel(area: &Area, title: &str, bars: &[Bar]) -> Result<()> {
    let times = bars.iter().filter_map(|b| b.times_as_fast);
    let top = times.fold(1.0, f64::max) * 1.15;
    let machine = bars.first().map_or("", |b| b.machine.as_str());
    let title = format!("{title} ({machine})");
    let names: Vec<&str> = bars.iter().map(|b| b.what.as_str()).collect();
    let mut chart = named(area, &title, &names, (0.0..top, 5.0), "times as fast")?;
    for (i, bar) in bars.iter().enumerate() {
        let Some(times) = bar.times_as_fast else {
            continue;
        };
        let (left, right) = (i as f64 + 0.25, i as f64 + 0.75);
        let corners = [(left, 0.0), (right, times)];
        chart.draw_series([Rectangle::new(corners, COLOR.filled())])?;
        chart.draw_series([Text::new(
            format!("{times:.1}"),
            (i as f64 + 0.5, times + top * 0.015),
            text_style(15, HPos::Center, VPos::Bottom),
        )])?;
    }
    let one = PathElement::new(
        [(0.0, 1.0), (bars.len() as f64, 1.0)],
        BLACK.stroke_width(1),
    );
    chart.draw_series([one])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::png_size;
    use super::*;

    #[test]
    fn a_panel_for_each_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench.png");
        let error = ratios(dir.path(), &path).unwrap_err().to_string();
        assert!(error.contains("make bench"), "{error}");
        let file = dir.path().join("step.csv");
        std::fs::write(&file, "what,times_as_fast,machine\nab,8.5,two cores\n").unwrap();
        ratios(dir.path(), &path).unwrap();
        assert_eq!(png_size(&path), (WIDTH, FRAME_HEIGHT + PANEL_HEIGHT));
        std::fs::write(&file, "what,times_as_fast,machine\nab,fast,two cores\n").unwrap();
        let error = format!("{:#}", ratios(dir.path(), &path).unwrap_err());
        assert!(
            error.contains("step.csv") && error.contains("line: 2"),
            "{error}"
        );
    }
}
