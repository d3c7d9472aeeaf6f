//! Seconds per sample as stacked bars: one bar per method, one colour per phase, the ratio to SFT above the bar.

use std::path::Path;

use abkd_training::timing::Phase;
use anyhow::{Result, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Key, Look, Marker, frame, named, save, text_style};
use crate::timing::TimingRow;

const SIZE: (u32, u32) = (1200, 620);

/// Okabe and Ito's palette again, in the order of [`Phase::ALL`].
const COLORS: [RGBColor; 7] = [
    RGBColor(130, 130, 130),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// Draws the rows; `paper` gives the paper's ratio to SFT, if any.
///
/// # Errors
/// Nothing to draw, or the file cannot be written.
pub fn stacks(
    rows: &[TimingRow],
    paper: impl Fn(&str) -> Option<f64>,
    path: &Path,
    title: &str,
    profile: &str,
) -> Result<()> {
    ensure!(
        !rows.is_empty(),
        "draw {}: nothing was timed yet",
        path.display()
    );
    let looks: Vec<Look> = Phase::ALL
        .iter()
        .zip(COLORS)
        .map(|(phase, color)| Look {
            row: phase.id().into(),
            color,
            marker: Marker::Square,
            emphasised: false,
        })
        .collect();
    let milli = |x: f64| 1e3 * x;
    let highest = rows
        .iter()
        .map(|r| milli(r.phases.iter().sum()))
        .fold(0.0, f64::max);
    let top = highest.max(1e-6) * 1.16;
    let both = match rows.iter().any(|row| paper(&row.method).is_some()) {
        true => ", ours (the paper's)",
        false => "",
    };
    let caption = format!("{profile}: above each bar the ratio to SFT{both}");
    let names: Vec<&str> = rows.iter().map(|r| r.method.as_str()).collect();
    save(path, SIZE, |area| {
        let body = frame(area, title, &looks, Key::Box)?;
        let y = (0.0..top, 6.0);
        let mut chart = named(&body, &caption, &names, y, "milliseconds a sample")?;
        for (i, row) in rows.iter().enumerate() {
            let (left, right) = (i as f64 + 0.2, i as f64 + 0.8);
            let mut low = 0.0;
            for (seconds, color) in row.phases.iter().zip(COLORS) {
                let high = low + milli(*seconds);
                let corners = [(left, low), (right, high)];
                chart.draw_series([Rectangle::new(corners, color.filled())])?;
                low = high;
            }
            let ours = row.ratio_to_sft.map_or("-".into(), |r| format!("{r:.2}"));
            let theirs = paper(&row.method).map_or(String::new(), |r| format!(" ({r:.2})"));
            chart.draw_series([Text::new(
                ours + &theirs,
                (i as f64 + 0.5, low + top * 0.015),
                text_style(15, HPos::Center, VPos::Bottom),
            )])?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{count, picture};
    use super::*;

    #[test]
    fn every_phase_has_its_colour_and_nothing_is_an_error() {
        let row = TimingRow {
            method: "SFT".into(),
            seconds_per_sample: 0.7,
            ratio_to_sft: Some(1.0),
            one_off_seconds_per_sample: 0.0,
            amortised_seconds_per_sample: 0.7,
            amortised_ratio_to_sft: Some(1.0),
            median: 0.7,
            q1: 0.7,
            q3: 0.7,
            outliers: 0,
            updates: 1,
            sampling_share: 1.0,
            tokens_per_update: 1.0,
            phases: [0.1; 7],
        };
        let none = |_: &str| None;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table3.png");
        let rows = [row];
        stacks(&rows, none, &path, "Table 3", "tiny").unwrap();
        let pixels = picture(&path);
        for RGBColor(r, g, b) in COLORS {
            let found = count(&pixels, (0..1200, 70..560), |p| p == [r, g, b]);
            assert!(found > 10_000, "{found}");
        }
        let svg = folder.path().join("table3.svg");
        let text = |paper: Option<f64>| {
            stacks(&rows, |_| paper, &svg, "Table 3", "tiny").unwrap();
            std::fs::read_to_string(&svg).unwrap()
        };
        assert!(!text(None).contains("paper") && text(Some(1.0)).contains("paper"));
        let error = stacks(&[], none, &path, "", "").unwrap_err().to_string();
        assert!(error.contains("table3.png"), "{error}");
    }
}
