//! All pairs of rows on each data set: the difference, and whether it is more than chance.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, Key, frame, px, save, text, text_style};
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
    let n = set.rows.len() as i32;
    let names = || set.rows.iter().map(|r| r.row.as_str());
    let beside_style = text_style(13, HPos::Right, VPos::Center);
    let beside: Vec<_> = names()
        .map(|name| wrapped(area, name, &beside_style, px(94)))
        .collect::<Result<_>>()?;
    let widest = beside.iter().map(|label| label.width).max();
    let left = px(6) + widest.unwrap_or(0).max(px(94));
    let w = (width as i32 - left - px(16)) / n;
    let above_style = text_style(11, HPos::Center, VPos::Center);
    let above: Vec<_> = names()
        .map(|name| wrapped(area, name, &above_style, w - px(6)))
        .collect::<Result<_>>()?;
    let most = above.iter().map(|label| label.lines.len()).max();
    let top = px(62 + 13 * (most.unwrap_or(1) as i32 - 1));
    let h = (height as i32 - top - px(16)) / n;
    let heading = format!("{title}: row less column, points; * more than chance");
    let style = text_style(16, HPos::Center, VPos::Center);
    text(area, &heading, (width as i32 / 2, px(18)), &style)?;
    for (i, row) in set.rows.iter().enumerate() {
        let (x, y) = (left + w * i as i32, top + h * i as i32);
        // The last line stands at the same height above each column.
        let last = above[i].lines.len() as i32 - 1;
        let first = top - px(14) - px(13) * last;
        above[i].draw(area, (x + w / 2, first), px(13), &above_style)?;
        let last = beside[i].lines.len() as i32 - 1;
        let first = y + h / 2 - px(15) * last / 2;
        beside[i].draw(area, (left - px(6), first), px(15), &beside_style)?;
        for (j, other) in set.rows.iter().enumerate() {
            let Some(d) = set.difference(&row.row, &other.row) else {
                continue;
            };
            let x = left + w * j as i32;
            let color = if d.mean > 0.0 { AHEAD } else { BEHIND };
            let fill = color.mix(0.7 * (d.mean.abs() / largest).min(1.0)).filled();
            let corners = [(x, y), (x + w - px(2), y + h - px(2))];
            area.draw(&Rectangle::new(corners, fill))?;
            let star = if d.significant() { "*" } else { "" };
            let style = text_style(13, HPos::Center, VPos::Center);
            // A difference that rounds to 0 has no sign.
            let number = format!("{:+.1}", d.mean).replace("-0.0", "0.0");
            let number = number.replace("+0.0", "0.0") + star;
            text(area, &number, (x + w / 2, y + h / 2), &style)?;
        }
    }
    Ok(())
}

/// A label cut into lines at its spaces.
struct Label {
    lines: Vec<String>,
    /// Width of the widest line, in pixels of the canvas.
    width: i32,
}

impl Label {
    fn draw(&self, area: &Area, (x, y): (i32, i32), step: i32, style: &TextStyle) -> Result<()> {
        for (line, y) in self.lines.iter().zip((y..).step_by(step as usize)) {
            text(area, line, (x, y), style)?;
        }
        Ok(())
    }
}

/// Cuts a text into lines that fit into a width; a word that does not has a line of its own.
fn wrapped(area: &Area, text: &str, style: &TextStyle, fits: i32) -> Result<Label> {
    let wide = |text: &str| anyhow::Ok(area.estimate_text_size(text, style)?.0 as i32);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match longer {
            Some(longer) if wide(&longer)? <= fits => *lines.last_mut().expect("one") = longer,
            _ => lines.push(word.into()),
        }
    }
    let mut width = 0;
    for line in &lines {
        width = width.max(wide(line)?);
    }
    Ok(Label { lines, width })
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
        let evidence = Evidence::new(&scores(&means, 3, 0.5), &ROWS, None).unwrap();
        matrix(&evidence, &path, "x").unwrap();
        assert_eq!(png_size(&path), (2 * PANEL.0, FRAME_HEIGHT + 2 * PANEL.1));
    }

    #[test]
    fn a_long_label_is_cut_at_its_spaces() {
        let dir = tempfile::tempdir().unwrap();
        save(&dir.path().join("x.png"), (64, 64), |area| {
            let style = text_style(13, HPos::Right, VPos::Center);
            let label = wrapped(area, "warm-up of 200 updates", &style, px(94))?;
            assert_eq!(label.lines, ["warm-up of 200", "updates"]);
            assert!(label.width <= px(94));
            let label = wrapped(area, "a", &style, 1)?;
            assert_eq!(label.lines, ["a"]);
            assert!(label.width > 1);
            Ok(())
        })
        .unwrap();
    }
}
