//! Figures as PNG: the curves of Figure 1, the bars, intervals and pairs of Tables 1, 2 and 4, ours beside the paper's, and the
//! stacked bars of Table 3.
//!
//! The font is part of the binary, so a figure looks the same on a machine without fonts.

mod bars;
mod canvas;
mod curves;
mod grid;
mod intervals;
mod masses;
mod matrix;
mod ratios;
mod stacks;
mod training;

use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use image::imageops::thumbnail;
use image::{ImageFormat, RgbImage};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::results::write_atomic;
use canvas::Canvas;

pub use bars::bars;
pub use curves::{Words, curves};
pub use grid::grid;
pub use intervals::intervals;
pub use masses::masses;
pub use matrix::matrix;
pub use ratios::ratios;
pub use stacks::stacks;
pub use training::{Update, training};

static DEJAVU_SANS: &[u8] = include_bytes!("../assets/DejaVuSans.ttf");

/// Figures are drawn at twice their size and averaged down: the backend does not antialias thick lines and polygons.
const OVERSAMPLING: u32 = 2;

/// Okabe and Ito's palette, its yellow replaced by grey: safe for colour-blind readers, and every curve has a marker
/// too. Losses and methods share colours: except for `ABKD`, they never appear in one figure.
const STYLES: [(&str, RGBColor, Marker); 16] = [
    ("FKLD", RGBColor(0, 114, 178), Marker::Circle),
    ("RKLD", RGBColor(230, 159, 0), Marker::Square),
    ("WSD", RGBColor(86, 180, 233), Marker::Up),
    ("BDKD", RGBColor(0, 158, 115), Marker::Diamond),
    ("Jensen's KL", RGBColor(204, 121, 167), Marker::Cross),
    ("AKL", RGBColor(130, 130, 130), Marker::Plus),
    ("AlphaNet", RGBColor(0, 0, 0), Marker::Down),
    ("ABKD", RGBColor(213, 94, 0), Marker::Circle),
    ("SFT", RGBColor(130, 130, 130), Marker::Plus),
    ("KD", RGBColor(0, 114, 178), Marker::Circle),
    ("SeqKD", RGBColor(86, 180, 233), Marker::Up),
    ("GKD", RGBColor(0, 158, 115), Marker::Diamond),
    ("MiniLLM", RGBColor(230, 159, 0), Marker::Square),
    ("DistiLLM", RGBColor(0, 0, 0), Marker::Down),
    ("Teacher", RGBColor(120, 85, 60), Marker::Cross),
    ("Student (SFT)", RGBColor(205, 190, 170), Marker::Square),
];

/// For rows that are not in [`STYLES`], by their position.
const OTHERS: [(RGBColor, Marker); 4] = [
    (RGBColor(51, 34, 136), Marker::Diamond),
    (RGBColor(136, 34, 85), Marker::Up),
    (RGBColor(153, 153, 51), Marker::Down),
    (RGBColor(68, 170, 153), Marker::Square),
];

type Area<'a> = DrawingArea<Canvas<'a>, Shift>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Marker {
    Circle,
    Square,
    Diamond,
    Up,
    Down,
    Cross,
    Plus,
}

/// How a row looks, in every panel and in the legend.
#[derive(Clone, Debug)]
struct Look {
    row: String,
    color: RGBColor,
    marker: Marker,
    /// Whether it is drawn with emphasis: the subject.
    emphasised: bool,
}

impl Look {
    fn of(index: usize, row: &str, subject: Option<&str>) -> Self {
        let known = STYLES.iter().find(|(name, ..)| *name == row);
        let (color, marker) = known
            .map(|(_, color, marker)| (*color, *marker))
            .unwrap_or(OTHERS[index % OTHERS.len()]);
        Self {
            row: row.to_string(),
            color,
            marker,
            emphasised: subject == Some(row),
        }
    }

    /// The looks of the rows of a figure.
    fn all<'a>(rows: impl IntoIterator<Item = &'a str>, subject: Option<&str>) -> Vec<Self> {
        let look = |(index, row)| Self::of(index, row, subject);
        rows.into_iter().enumerate().map(look).collect()
    }

    fn line(&self) -> ShapeStyle {
        self.color.stroke_width(if self.emphasised {
            px(4) as u32
        } else {
            px(2) as u32
        })
    }

    /// Draws the marker about a pixel.
    fn mark(&self, area: &Area, (x, y): (i32, i32)) -> Result<()> {
        let r = if self.emphasised { px(5) } else { px(4) };
        let fill = self.color.filled();
        let stroke = self.color.stroke_width(px(2) as u32);
        let polygon = |corners: &[(i32, i32)]| {
            let corners: Vec<_> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
            area.draw(&Polygon::new(corners, fill))
        };
        match self.marker {
            Marker::Circle => area.draw(&Circle::new((x, y), r, fill))?,
            Marker::Square => polygon(&[(-r, -r), (r, -r), (r, r), (-r, r)])?,
            Marker::Diamond => polygon(&[(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)])?,
            Marker::Up => polygon(&[(0, -r - 1), (r + 1, r), (-r - 1, r)])?,
            Marker::Down => polygon(&[(0, r + 1), (r + 1, -r), (-r - 1, -r)])?,
            Marker::Cross => {
                area.draw(&PathElement::new([(x - r, y - r), (x + r, y + r)], stroke))?;
                area.draw(&PathElement::new([(x - r, y + r), (x + r, y - r)], stroke))?;
            }
            Marker::Plus => {
                area.draw(&PathElement::new([(x - r, y), (x + r, y)], stroke))?;
                area.draw(&PathElement::new([(x, y - r), (x, y + r)], stroke))?;
            }
        }
        Ok(())
    }
}

/// An axis with its marks at given values. Plotters' own (`WithKeyPoints`) has no labels for an axis of `f64`.
struct Axis(RangedCoordf64, Vec<f64>);

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.0.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.1.clone()
    }

    fn range(&self) -> Range<f64> {
        self.0.range()
    }
}

/// Symbol before a label in the legend.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Line,
    Box,
}

/// Converts a length from pixels of the finished figure to pixels of the canvas.
fn px(length: i32) -> i32 {
    length * OVERSAMPLING as i32
}

fn font(size: i32) -> FontDesc<'static> {
    ("sans-serif", px(size)).into_font()
}

fn text_style(size: i32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    font(size).color(&BLACK).pos(Pos::new(horizontal, vertical))
}

fn text(area: &Area, text: &str, at: (i32, i32), style: &TextStyle) -> Result<()> {
    area.draw(&Text::new(text, at, style.clone()))?;
    Ok(())
}

/// Marks from `low` to `high` at a step of 1, 2 or 5 times a power of ten, about `wanted` of them.
fn ticks(low: f64, high: f64, wanted: f64) -> (Vec<f64>, f64) {
    let rough = ((high - low) / wanted).max(1e-6);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    ((first..=last).map(|i| i as f64 * step).collect(), step)
}

/// The least and the most of some numbers; infinity and minus infinity of none.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| {
        (a.min(v), b.max(v))
    })
}

/// A tick's text, with as many decimals as the step needs.
fn tick_text(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

type Chart<'a> = ChartContext<'a, Canvas<'a>, Cartesian2d<Axis, Axis>>;

/// A titled panel with its axes and grid: the range of x with its marks, the range of y with the wanted number of marks.
/// `descriptions` are the axis labels of x (may be empty) and y.
fn axes<'a>(
    area: &Area<'a>,
    title: &str,
    (x, x_marks): (Range<f64>, Vec<f64>),
    (y, wanted): (Range<f64>, f64),
    descriptions: [&str; 2],
    x_label: &dyn Fn(f64) -> String,
) -> Result<Chart<'a>> {
    let (y_marks, y_step) = ticks(y.start, y.end, wanted);
    let x_space = if descriptions[0].is_empty() { 30 } else { 48 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(17))
        .margin(px(8))
        .margin_left(px(16))
        .margin_right(px(20))
        .x_label_area_size(px(x_space))
        .y_label_area_size(px(68))
        .build_cartesian_2d(Axis(x.into(), x_marks), Axis(y.into(), y_marks))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(RGBColor(222, 222, 222).stroke_width(px(1) as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.stroke_width(px(1) as u32))
        .x_desc(descriptions[0])
        .y_desc(descriptions[1])
        .axis_desc_style(font(15))
        .label_style(font(14))
        .x_label_formatter(&|value| x_label(*value))
        .y_label_formatter(&|value| tick_text(*value, y_step))
        .draw()?;
    Ok(chart)
}

/// A titled panel over names: x counts them, from 0; `y` as in [`axes`].
fn named<'a>(
    area: &Area<'a>,
    title: &str,
    names: &[&str],
    y: (Range<f64>, f64),
    label: &str,
) -> Result<Chart<'a>> {
    let centres = (0..names.len()).map(|i| i as f64 + 0.5).collect();
    let x = (0.0..names.len() as f64, centres);
    axes(area, title, x, y, ["", label], &|centre| {
        names[centre as usize].to_owned()
    })
}

fn paint(canvas: Canvas, draw: impl Fn(&Area) -> Result<()>) -> Result<()> {
    embed_font()?;
    let area = canvas.into_drawing_area();
    area.fill(&WHITE)?;
    draw(&area)?;
    area.present()?;
    Ok(())
}

/// Draws a figure, as SVG if the path ends in `.svg`, else as PNG, with an atomic write. It is encoded in memory: an
/// encoder that writes to a file drops the last disk-full error.
fn save(
    path: &Path,
    (width, height): (u32, u32),
    draw: impl Fn(&Area) -> Result<()>,
) -> Result<()> {
    let context = || format!("draw {}", path.display());
    let size = (width * OVERSAMPLING, height * OVERSAMPLING);
    if path.extension().is_some_and(|end| end == "svg") {
        let mut text = String::new();
        let canvas = Canvas::Vectors(SVGBackend::with_string(&mut text, size));
        paint(canvas, draw).with_context(context)?;
        return write_atomic(path, text.as_bytes());
    }
    let mut pixels = RgbImage::new(size.0, size.1);
    let canvas = Canvas::Pixels(BitMapBackend::with_buffer(&mut pixels, size));
    paint(canvas, draw).with_context(context)?;
    let mut png = Cursor::new(Vec::new());
    thumbnail(&pixels, width, height)
        .write_to(&mut png, ImageFormat::Png)
        .with_context(context)?;
    write_atomic(path, png.get_ref())
}

fn embed_font() -> Result<()> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let register = || register_font("sans-serif", FontStyle::Normal, DEJAVU_SANS).is_ok();
    if *REGISTERED.get_or_init(register) {
        Ok(())
    } else {
        Err(anyhow!("the font in the binary is not a font"))
    }
}

/// Draws the title above and the legend below, and returns the area between them.
fn frame<'a>(area: &Area<'a>, title: &str, looks: &[Look], key: Key) -> Result<Area<'a>> {
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (width as i32, height as i32);
    let style = text_style(15, HPos::Left, VPos::Center);
    let (swatch, space) = (px(if key == Key::Line { 36 } else { 18 }), px(8));
    // Labels flow into as many centred lines as they need.
    let mut lines: Vec<(i32, Vec<(&Look, i32)>)> = Vec::new();
    for look in looks {
        let label = area.estimate_text_size(&look.row, &style)?.0 as i32;
        let wide = swatch + space + label + px(30);
        match lines.last_mut() {
            Some((used, line)) if *used + wide <= width - px(40) => {
                *used += wide;
                line.push((look, wide));
            }
            _ => lines.push((wide, vec![(look, wide)])),
        }
    }
    let line_height = px(26);
    let top = height - px(8) - line_height * lines.len() as i32;
    for (number, (used, line)) in lines.iter().enumerate() {
        let y = top + line_height * number as i32 + line_height / 2;
        let mut x = (width - used + px(30)) / 2;
        for (look, wide) in line {
            match key {
                Key::Line => {
                    area.draw(&PathElement::new([(x, y), (x + swatch, y)], look.line()))?;
                    look.mark(area, (x + swatch / 2, y))?;
                }
                Key::Box => {
                    let corners = [(x, y - px(7)), (x + swatch, y + px(7))];
                    area.draw(&Rectangle::new(corners, look.color.filled()))?;
                    if look.emphasised {
                        area.draw(&Rectangle::new(corners, BLACK.stroke_width(px(1) as u32)))?;
                    }
                }
            }
            text(area, &look.row, (x + swatch + space, y), &style)?;
            x += wide;
        }
    }
    let head = px(46);
    let style = text_style(21, HPos::Center, VPos::Center);
    text(area, title, (width / 2, head / 2), &style)?;
    let (_, rest) = area.split_vertically(head);
    Ok(rest.split_vertically(top - head).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pixels of a figure that was saved.
    pub(super) fn picture(path: &Path) -> RgbImage {
        image::open(path).unwrap().into_rgb8()
    }

    /// How many pixels of a part of a figure fulfil a condition.
    pub(super) fn count(
        picture: &RgbImage,
        (xs, ys): (Range<u32>, Range<u32>),
        is: impl Fn([u8; 3]) -> bool,
    ) -> usize {
        let pixel = |x, y| picture.get_pixel(x, y).0;
        ys.map(|y| xs.clone().filter(|x| is(pixel(*x, y))).count())
            .sum()
    }

    pub(super) fn dark(pixel: [u8; 3]) -> bool {
        pixel.iter().all(|channel| *channel < 80)
    }

    pub(super) fn png_size(path: &Path) -> (u32, u32) {
        image::image_dimensions(path).unwrap()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            ticks(0.0, 21.3, 5.0),
            (vec![0.0, 5.0, 10.0, 15.0, 20.0], 5.0)
        );
        assert_eq!(ticks(18.2, 28.9, 6.0).0, [20.0, 22.0, 24.0, 26.0, 28.0]);
        let (marks, step) = ticks(1.02, 1.48, 5.0);
        let texts: Vec<_> = marks.iter().map(|mark| tick_text(*mark, step)).collect();
        assert_eq!(texts, ["1.1", "1.2", "1.3", "1.4"]);
        assert_eq!(ticks(3.0, 3.0, 5.0).0, [3.0]);
    }

    #[test]
    fn known_rows_have_their_own_look() {
        for table in [&STYLES[..8], &STYLES[7..14]] {
            for (i, (a, color, marker)) in table.iter().enumerate() {
                for (b, other, other_marker) in &table[i + 1..] {
                    assert_ne!(color, other, "{a} and {b}");
                    assert!(marker != other_marker || *b == "ABKD" || *a == "ABKD");
                }
            }
        }
        assert_eq!(Look::of(5, "none", None).color, OTHERS[1].0);
        assert!(Look::of(5, "none", Some("none")).emphasised);
        assert!(!Look::of(0, "ABKD", Some("none")).emphasised);
    }

    #[test]
    fn averages_blocks() {
        let pixels = [[0; 3], [100; 3], [50; 3], [51; 3]].concat();
        let pixels = RgbImage::from_raw(2, 2, pixels).unwrap();
        assert_eq!(thumbnail(&pixels, 1, 1).into_raw(), [50; 3]);
    }
}
