//! Tables over a grid of settings: lines over one key, a heat map over two.

use std::path::Path;

use abkd_metrics::inference::holm;
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, Key, Look, axes, ends, frame, px, save, text, text_style};
use crate::evidence::{Evidence, LEVEL, OnSet, SIGNIFICANT};
use crate::results::{CurvePoint, Table, Titles, best_point, distinct};
use crate::spec::{Grid, Point};

/// A number for each point of the grid, under a heading.
struct Layer<'a> {
    title: String,
    /// In the order of the grid's points; absent if there is no result yet.
    values: Vec<Option<f64>>,
    /// Whether higher is better.
    rises: bool,
    set: Option<&'a OnSet>,
}

/// Draws the scores over a grid of one or two keys: the mean over all sets, each set, the best validation of curves without
/// test sets, and the validation loss.
///
/// # Errors
/// The file cannot be written.
pub fn grid(
    grid: &Grid,
    labels: &[&str],
    table: &Table,
    evidence: Option<&Evidence>,
    curves: &[CurvePoint],
    path: &Path,
    title: &str,
) -> Result<()> {
    let titles = evidence.map_or_else(Titles::default, |evidence| evidence.titles.clone());
    let layers = layers(labels, table, evidence, curves, &titles);
    match grid.keys.len() {
        2 => maps(grid, labels, &layers, path, title),
        // Also of three keys and more, over the last one; the CSV has all keys.
        _ => lines(grid, labels, &layers, path, title),
    }
}

fn layers<'a>(
    labels: &[&str],
    table: &Table,
    evidence: Option<&'a Evidence>,
    curves: &[CurvePoint],
    titles: &Titles,
) -> Vec<Layer<'a>> {
    let datasets = table.datasets();
    let mean = |row: &str, sets: &[&str]| -> Option<f64> {
        let scores: Option<Vec<f64>> = sets
            .iter()
            .map(|set| Some(table.cell(row, set)?.rouge_l_mean))
            .collect();
        abkd_metrics::stats::mean(&scores?)
    };
    let on = |name: Option<&str>| evidence.and_then(|e| e.on(name));
    let mut layers = Vec::new();
    if datasets.len() > 1 {
        layers.push(Layer {
            title: "ROUGE-L, mean over all sets".into(),
            values: labels.iter().map(|row| mean(row, &datasets)).collect(),
            rises: true,
            set: on(None),
        });
    }
    for name in &datasets {
        layers.push(Layer {
            title: format!("ROUGE-L on {}", titles.of(name)),
            values: labels.iter().map(|row| mean(row, &[*name])).collect(),
            rises: true,
            set: on(Some(*name)),
        });
    }
    if datasets.is_empty() {
        layers.push(Layer {
            title: "ROUGE-L on Dolly validation, best".into(),
            values: labels.iter().map(|row| best_point(curves, row)).collect(),
            rises: true,
            set: None,
        });
    }
    let loss = |row: &str| {
        let of_row = curves.iter().filter(|p| p.loss == row);
        let last = of_row.clone().map(|p| p.epoch).max()?;
        let losses: Vec<f64> = of_row
            .filter(|p| p.epoch == last)
            .filter_map(|p| p.validation_loss)
            .collect();
        abkd_metrics::stats::mean(&losses)
    };
    layers.push(Layer {
        title: "validation loss at the end, nats a token".into(),
        values: labels.iter().map(|row| loss(row)).collect(),
        rises: false,
        set: None,
    });
    layers
}

const LINES: (u32, u32) = (760, 400);
const COLUMNS: usize = 2;

/// A curve for each row of the file, over the last key; the axis is logarithmic if its values span a decade.
fn lines(grid: &Grid, labels: &[&str], layers: &[Layer], path: &Path, title: &str) -> Result<()> {
    let rows = distinct(grid.points.iter().map(|point| point.label.as_str()));
    let looks = Look::all(rows, None);
    let panels = layers.len().div_ceil(COLUMNS);
    let size = (COLUMNS as u32 * LINES.0, 90 + panels as u32 * LINES.1);
    save(path, size, |area| {
        let body = frame(area, title, &looks, Key::Line)?;
        for (layer, part) in layers.iter().zip(body.split_evenly((panels, COLUMNS))) {
            panel(&part, grid, labels, layer, &looks)?;
        }
        Ok(())
    })
}

fn panel(area: &Area, grid: &Grid, labels: &[&str], layer: &Layer, looks: &[Look]) -> Result<()> {
    let key = grid.keys.last().map_or("", String::as_str);
    let values = axis(grid, grid.keys.len() - 1);
    let (least, most) = ends(values.iter().copied());
    let decades = least > 0.0 && most / least >= 10.0;
    let x = |value: f64| if decades { value.log10() } else { value };
    // A mark is labelled by the value of the key that stands there.
    let label = |at: f64| match values.iter().find(|value| x(**value) == at) {
        Some(value) if decades => format!("{value:e}"),
        Some(value) => format!("{value}"),
        None => String::new(),
    };
    let interval = |label: &str| {
        let row = layer.set?.rows.iter().find(|r| r.row == label)?;
        Some(row.estimate?.interval(LEVEL))
    };
    let known = layer.values.iter().flatten().copied();
    let (low, high) = ends(known);
    if low > high {
        return Ok(());
    }
    let margin = (0.08 * (high - low)).max(0.05);
    let pad = 0.04 * (x(most) - x(least)).max(0.1);
    let marks = values.iter().map(|value| x(*value)).collect();
    let mut chart = axes(
        area,
        &layer.title,
        (x(least) - pad..x(most) + pad, marks),
        (low - margin..high + margin, 6.0),
        [key, ""],
        &label,
    )?;
    for look in looks {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (index, point) in grid.points.iter().enumerate() {
            let (true, Some(value)) = (point.label == look.row, layer.values[index]) else {
                continue;
            };
            let at = x(point.values.last().copied().unwrap_or_default());
            points.push((at, value));
            if let Some([a, b]) = interval(labels[index]) {
                let (a, b) = (a.max(low - margin), b.min(high + margin));
                chart.draw_series([PathElement::new(
                    [(at, a), (at, b)],
                    look.color.mix(0.35).stroke_width(px(1) as u32),
                )])?;
            }
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let dots = points
            .iter()
            .map(|p| Circle::new(*p, px(3), look.color.filled()));
        chart.draw_series(dots)?;
        chart.draw_series([PathElement::new(points, look.line())])?;
    }
    Ok(())
}

const MAP: (u32, u32) = (720, 560);
/// Points of the alpha-beta plane that have names.
const NAMED: [(&str, f64, f64); 5] = [
    ("FKL", 1.0, 0.0),
    ("RKL", 0.0, 1.0),
    ("Hellinger", 0.5, 0.5),
    ("chi²", 2.0, -1.0),
    ("ABKD", 0.2, 0.7),
];

/// A heat map for each layer and row of the file; points that do not differ from the layer's best by more than chance have
/// a frame.
fn maps(grid: &Grid, labels: &[&str], layers: &[Layer], path: &Path, title: &str) -> Result<()> {
    let rows = distinct(grid.points.iter().map(|point| point.label.as_str()));
    let parts = layers
        .iter()
        .flat_map(|layer| rows.iter().map(move |row| (layer, *row)));
    let parts: Vec<(&Layer, &str)> = parts.collect();
    let panels = parts.len().div_ceil(COLUMNS);
    let size = (COLUMNS as u32 * MAP.0, 60 + panels as u32 * MAP.1);
    save(path, size, |area| {
        let body = frame(area, title, &[], Key::Box)?;
        for ((layer, row), part) in parts.iter().zip(body.split_evenly((panels, COLUMNS))) {
            let title = match rows.len() {
                1 => layer.title.clone(),
                _ => format!("{row}: {}", layer.title),
            };
            map(&part, grid, labels, layer, row, &title)?;
        }
        Ok(())
    })
}

/// Whether each point is the best or does not differ from it by more than chance (Holm over the others).
fn as_the_best(labels: &[&str], layer: &Layer) -> Vec<bool> {
    let known = layer.values.iter().enumerate();
    let known = known.filter_map(|(i, value)| Some((i, (*value)?)));
    let best = known.max_by(|a, b| a.1.total_cmp(&b.1));
    let (Some((best, _)), Some(set)) = (best, layer.set) else {
        return vec![false; labels.len()];
    };
    let others: Vec<usize> = (0..labels.len()).filter(|&i| i != best).collect();
    let p: Option<Vec<f64>> = others
        .iter()
        .map(|&i| Some(set.difference(labels[best], labels[i])?.losses?.0.p()))
        .collect();
    let Some(p) = p else {
        return vec![false; labels.len()];
    };
    let mut alike = vec![true; labels.len()];
    for (index, p) in others.into_iter().zip(holm(&p)) {
        alike[index] = p >= SIGNIFICANT;
    }
    alike
}

/// The values of a key, in order.
fn axis(grid: &Grid, key: usize) -> Vec<f64> {
    let mut values: Vec<f64> = grid.points.iter().map(|p| p.values[key]).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

/// The points of one row of the file, in the colours of the whole layer.
fn map(
    area: &Area,
    grid: &Grid,
    labels: &[&str],
    layer: &Layer,
    row: &str,
    title: &str,
) -> Result<()> {
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (width as i32, height as i32);
    let (left, top, bottom) = (px(78), px(44), px(52));
    let (columns, rows) = (axis(grid, 0), axis(grid, 1));
    let w = (width - left - px(16)) / columns.len() as i32;
    let h = (height - top - bottom) / rows.len() as i32;
    let centred = |size| text_style(size, HPos::Center, VPos::Center);
    text(area, title, (width / 2, px(20)), &centred(17))?;
    let (low, high) = ends(layer.values.iter().flatten().copied());
    let alike = as_the_best(labels, layer);
    let named: &[_] = if grid.keys == ["alpha", "beta"] {
        &NAMED
    } else {
        &[]
    };
    let corner = |point: &Point| {
        let column = columns
            .iter()
            .position(|v| *v == point.values[0])
            .unwrap_or_default();
        let row = rows
            .iter()
            .position(|v| *v == point.values[1])
            .unwrap_or_default();
        (
            left + w * column as i32,
            top + h * (rows.len() - 1 - row) as i32,
        )
    };
    for (index, point) in grid.points.iter().enumerate() {
        let (true, Some(value)) = (point.label == row, layer.values[index]) else {
            continue;
        };
        let (x, y) = corner(point);
        let part = if high > low {
            (value - low) / (high - low)
        } else {
            0.5
        };
        let good = if layer.rises { part } else { 1.0 - part };
        let corners = [(x, y), (x + w - px(1), y + h - px(1))];
        area.draw(&Rectangle::new(corners, shade(good).filled()))?;
        if alike[index] {
            let inner = [(x + px(2), y + px(2)), (x + w - px(3), y + h - px(3))];
            area.draw(&Rectangle::new(inner, BLACK.stroke_width(px(2) as u32)))?;
        }
        let name = named.iter().find(|(_, a, b)| point.values == [*a, *b]);
        let shift = if name.is_some() { px(7) } else { 0 };
        let ink = if good > 0.55 { &WHITE } else { &BLACK };
        let style = centred(12).color(ink);
        let (x, y) = (x + w / 2, y + h / 2);
        text(area, &format!("{value:.2}"), (x, y - shift), &style)?;
        if let Some((name, ..)) = name {
            text(area, name, (x, y + shift), &style)?;
        }
    }
    for (i, value) in columns.iter().enumerate() {
        let at = (left + w * i as i32 + w / 2, height - bottom + px(14));
        text(area, &format!("{value}"), at, &centred(13))?;
    }
    for (i, value) in rows.iter().enumerate() {
        let at = (left - px(8), top + h * (rows.len() - 1 - i) as i32 + h / 2);
        let style = text_style(13, HPos::Right, VPos::Center);
        text(area, &format!("{value}"), at, &style)?;
    }
    let at = (left + (width - left) / 2, height - px(16));
    text(area, &grid.keys[0], at, &centred(15))?;
    text(area, &grid.keys[1], (px(22), top - px(12)), &centred(15))
}

/// White to dark blue.
fn shade(part: f64) -> RGBColor {
    let mix = |from: f64, to: f64| (from + (to - from) * part.clamp(0.0, 1.0)) as u8;
    RGBColor(mix(247.0, 8.0), mix(251.0, 69.0), mix(255.0, 148.0))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{count, picture, png_size};
    use super::*;
    use crate::results::Cell;

    fn table(labels: &[&str]) -> Table {
        let cell = |(i, row): (usize, &&str)| Cell {
            row: row.to_string(),
            dataset: "dolly".into(),
            rouge_l_mean: i as f64,
            training_std: None,
            sampling_std: None,
            training_seeds: None,
            sampling_seeds: None,
            exact_match_mean: None,
        };
        Table {
            row_key: "loss".into(),
            cells: labels.iter().enumerate().map(cell).collect(),
        }
    }

    /// Two rows at two points each.
    fn made(keys: &[&str], values: [&[f64]; 2]) -> Grid {
        let points = ["x", "y"].iter().enumerate().flat_map(|(row, label)| {
            values.iter().map(move |values| Point {
                row,
                label: (*label).into(),
                values: values.to_vec(),
            })
        });
        Grid {
            keys: keys.iter().map(|key| (*key).into()).collect(),
            points: points.collect(),
        }
    }

    const LABELS: [&str; 4] = ["a", "b", "c", "d"];

    #[test]
    fn one_key_gives_lines_and_two_give_a_map_of_each_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let draw = |grid: &Grid| super::grid(grid, &LABELS, &table(&LABELS), None, &[], &path, "x");
        draw(&made(&["alpha"], [&[1e-3], &[1e-2]])).unwrap();
        assert_eq!(png_size(&path), (2 * LINES.0, 90 + LINES.1));
        draw(&made(&["alpha", "beta"], [&[0.2, 0.7], &[1.0, 0.0]])).unwrap();
        assert_eq!(png_size(&path), (2 * MAP.0, 60 + 2 * MAP.1));
        // The least score is of the first row, the highest of the second.
        let pixels = picture(&path);
        let (width, height) = MAP;
        for (part, x) in [(0.0, 0), (1.0, width)] {
            let RGBColor(r, g, b) = shade(part);
            let of = |x| (x..x + width, 60..60 + height);
            let found = |x| count(&pixels, of(x), |p| p == [r, g, b]);
            assert!(found(x) > 10_000 && found(width - x) == 0, "{part}");
        }
    }

    #[test]
    fn points_of_the_alpha_beta_plane_alone_have_names_and_marks_have_the_values_of_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        let text = |grid: &Grid| {
            let table = table(&LABELS);
            super::grid(grid, &LABELS, &table, None, &[], &path, "x").unwrap();
            std::fs::read_to_string(&path).unwrap()
        };
        let values: [&[f64]; 2] = [&[0.5, 0.5], &[1.0, 0.0]];
        assert!(text(&made(&["alpha", "beta"], values)).contains("Hellinger"));
        assert!(!text(&made(&["alpha", "tau"], values)).contains("Hellinger"));
        let text = text(&made(&["learning_rate"], [&[2.5e-4], &[1e-2]]));
        for mark in ["2.5e-4", "1e-2"] {
            assert!(text.contains(&format!("\n{mark}\n")), "{mark}");
        }
    }
}
