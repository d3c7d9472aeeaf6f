//! All pairs of rows on each data set: the difference, and whether it is more than chance.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, Key, frame, px, save, text_style};
use crate::evidence::{Evidence, OnSet};

const PANEL: (u32, u32) = (640, 440);
const COLUMNS: usize = 2;
const FRAME_HEIGHT: u32 = 60;
const AHEAD: RGBColor = RGBColor(0, 114, 178);
const BEHIND: RGBColor = RGBColor(213, 94, 0);

/// Draws a matrix for each data set, and the mean over all.
///
/// # Errors
/// The file cannot be written.
pub fn matrix(evidence: &Evidence, path: &Path, title: &str) -> Result<()> {
    let lines = evidence.sets.len().div_ceil(COLUMNS);
    let columns = evidence.sets.len().min(COLUMNS);
    let size = (
        columns as u32 * PANEL.0,
        FRAME_HEIGHT + lines as u32 * PANEL.1,
    );
    let largest = evidence.sets.iter().flat_map(|s| &s.pairs);
    let largest = largest.map(|d| d.mean.abs()).fold(0.1, f64::max);
    save(path, size, |area| {
        let body = frame(area, title, &[], Key::Box)?;
        for (set, part) in evidence
            .sets
            .iter()
            .zip(body.split_evenly((lines, columns)))
        {
            panel(&part, evidence.title(set), set, largest)?;
        }
        Ok(())
    })
}

fn panel(area: &Area, title: &str, set: &OnSet, largest: f64) -> Result<()> {
    let (width, height) = area.dim_in_pixel();
    let (left, top) = (px(100), px(62));
    let n = set.rows.len() as i32;
    let (w, h) = (
        (width as i32 - left - px(16)) / n,
        (height as i32 - top - px(16)) / n,
    );
    let heading = format!("{title}: row less column, points; * more than chance");
    let style = text_style(16, HPos::Center, VPos::Center);
    area.draw(&Text::new(heading, (width as i32 / 2, px(18)), style))?;
    for (i, row) in set.rows.iter().enumerate() {
        let (x, y) = (left + w * i as i32, top + h * i as i32);
        let above = text_style(11, HPos::Center, VPos::Center);
        area.draw(&Text::new(
            row.row.clone(),
            (x + w / 2, top - px(14)),
            above,
        ))?;
        let beside = text_style(13, HPos::Right, VPos::Center);
        area.draw(&Text::new(
            row.row.clone(),
            (left - px(6), y + h / 2),
            beside,
        ))?;
        for (j, other) in set.rows.iter().enumerate() {
            let Some(d) = set.difference(&row.row, &other.row) else {
                continue;
            };
            let x = left + w * j as i32;
            let color = if d.mean > 0.0 { AHEAD } else { BEHIND };
            let fill = color.mix(0.7 * (d.mean.abs() / largest).min(1.0)).filled();
            let corners = [(x, y), (x + w - px(2), y + h - px(2))];
            area.draw(&Rectangle::new(corners, fill))?;
            let counts = d.losses.as_ref().is_some_and(|(_, p)| *p < 0.05);
            let star = if counts { "*" } else { "" };
            let style = text_style(13, HPos::Center, VPos::Center);
            // A difference that rounds to 0 has no sign.
            let number = format!("{:+.1}", d.mean).replace("-0.0", "0.0");
            let text = number.replace("+0.0", "0.0") + star;
            area.draw(&Text::new(text, (x + w / 2, y + h / 2), style))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::png_size;
    use super::*;
    use crate::evidence::tests::{ROWS, scores};

    #[test]
    fn a_matrix_for_each_set_and_one_for_all() {
        let means = [("a", 40.0), ("bb", 30.0), ("ccc", 20.0), ("dddd", 10.0)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let evidence = Evidence::new(&scores(&means, 3, 0.5), &ROWS, None, None).unwrap();
        matrix(&evidence, &path, "x").unwrap();
        assert_eq!(png_size(&path), (2 * PANEL.0, FRAME_HEIGHT + 2 * PANEL.1));
    }
}
