//! Comparison and pictures from the CSV files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::compare::{Comparison, References};
use crate::evidence::Evidence;
use crate::plot;
use crate::results::{CurvePoint, Table, best_point, read_curve, read_examples, read_masses};
use crate::runner::Places;
use crate::spec::{Kind, REPLACED, STUDENT, Spec, TEACHER};
use crate::timing;

/// Compares a table with the paper's, if the experiment names one, and writes the comparison; returns the table for a
/// terminal of `width` columns, or for a pipe.
///
/// # Errors
///
/// When there are no results yet, or a file is invalid.
pub fn compare(
    places: &Places,
    spec: &Spec,
    evidence: Option<Evidence>,
    width: Option<u16>,
) -> Result<String> {
    let e = &spec.experiment;
    match e.kind {
        Kind::Curve => return compare_curves(places, spec),
        Kind::Timing => return compare_timings(places, spec),
        Kind::Table => {}
    }
    let comparison = comparison(places, spec, evidence)?;
    comparison.write(&folder(places, spec, ".csv"))?;
    Ok(comparison.terminal(width))
}

/// A table beside the paper's, if the experiment names one, with the evidence from the scores of single answers.
///
/// # Errors
///
/// When there are no results yet, or a file is invalid.
pub fn comparison(places: &Places, spec: &Spec, evidence: Option<Evidence>) -> Result<Comparison> {
    let e = &spec.experiment;
    let ours = Table::read(&ours(places, spec, ".csv")).with_context(|| hint(spec))?;
    let paper = paper(places, spec, Table::read)?;
    let references = References {
        subject: e.subject().map(str::to_owned),
        unranked: vec![TEACHER.into(), STUDENT.into()],
    };
    let mut comparison = Comparison::new(
        &e.name,
        &spec.profile.name,
        &spec.profile.description,
        &ours,
        paper.as_ref(),
        references,
    )?;
    comparison.evidence = evidence;
    comparison.titles = spec.titles();
    if spec.starts_are_replaced() {
        comparison.remarks.push(REPLACED.into());
    }
    Ok(comparison)
}

/// What the scores of single answers say of a table, where they are there. Computing it takes seconds.
///
/// # Errors
///
/// A file that is not what it should be.
pub fn evidence(places: &Places, spec: &Spec) -> Result<Option<Evidence>> {
    if spec.experiment.kind != Kind::Table {
        return Ok(None);
    }
    // The scores lie beside the table that they belong to.
    let path = folder(places, spec, ".csv").join(format!("{}_examples.csv", spec.experiment.name));
    if !path.exists() {
        return Ok(None);
    }
    let e = &spec.experiment;
    let rows: Vec<&str> = e.rows.iter().map(|row| row.label.as_str()).collect();
    let paper = paper(places, spec, Table::read)?;
    let scores = read_examples(&path)?;
    let evidence = Evidence::new(&scores, &rows, paper.as_ref());
    Ok(evidence.map(|evidence| Evidence {
        titles: spec.titles(),
        ..evidence
    }))
}

/// Seconds per sample and ratios to SFT, ours and the paper's.
fn compare_timings(places: &Places, spec: &Spec) -> Result<String> {
    let e = &spec.experiment;
    let ours = timing::read(&ours(places, spec, ".json")).with_context(|| hint(spec))?;
    let paper = paper(places, spec, timing::read_paper)?;
    let text = timing::comparison(&ours.rows, paper.as_deref());
    let heading = format!(
        "# {}, profile `{}`\n\n{}\n\nMachine: {}.\n\n",
        e.title, spec.profile.name, spec.profile.description, ours.machine
    );
    let path = folder(places, spec, ".json").join(format!("{}_comparison.md", e.name));
    crate::results::write_atomic(&path, (heading + &text).as_bytes())?;
    Ok(text)
}

/// The best point of each mean curve, ours and the paper's.
fn compare_curves(places: &Places, spec: &Spec) -> Result<String> {
    let e = &spec.experiment;
    let ours = read_curve(&ours(places, spec, ".csv")).with_context(|| hint(spec))?;
    let paper = paper(places, spec, read_curve)?;
    let labels: Vec<&str> = e.rows.iter().map(|r| r.label.as_str()).collect();
    let cell = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
    let mut text = String::from("loss,best_validation_rouge_l");
    text += if paper.is_some() {
        ",paper_best_validation_rouge_l\n"
    } else {
        "\n"
    };
    let mut pairs = (Vec::new(), Vec::new());
    for label in labels {
        let a = best_point(&ours, label);
        text += &format!("{},{}", quoted(label), cell(a));
        if let Some(paper) = &paper {
            let b = best_point(paper, label);
            text += &format!(",{}", cell(b));
            if let (Some(a), Some(b)) = (a, b) {
                pairs.0.push(a);
                pairs.1.push(b);
            }
        }
        text.push('\n');
    }
    let path = folder(places, spec, ".csv").join(format!("{}_comparison.csv", e.name));
    crate::results::write_atomic(&path, text.as_bytes())?;
    if paper.is_none() {
        return Ok(text + &best_of_grid(spec, &ours));
    }
    let rho = abkd_metrics::stats::spearman(&pairs.0, &pairs.1);
    let rho = rho.map_or("not defined".into(), |r| format!("{r:.3}"));
    Ok(format!(
        "{text}Spearman's rho of the best points over {} losses: {rho}\n",
        pairs.0.len()
    ))
}

/// The best point of each row of a grid, a line each; nothing without a grid.
fn best_of_grid(spec: &Spec, curves: &[CurvePoint]) -> String {
    let mut best: Vec<(usize, &str, f64)> = Vec::new();
    for (point, row) in spec.grid.points.iter().zip(&spec.experiment.rows) {
        let Some(score) = best_point(curves, &row.label) else {
            continue;
        };
        match best.last_mut().filter(|(of, ..)| *of == point.row) {
            None => best.push((point.row, &row.label, score)),
            Some(last) if score > last.2 => *last = (point.row, &row.label, score),
            Some(_) => {}
        }
    }
    best.into_iter()
        .map(|(_, label, score)| format!("best: {label}: {score:.4}\n"))
        .collect()
}

/// A field of a CSV file.
fn quoted(text: &str) -> String {
    if text.contains([',', '"']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.into()
}

/// Draws the picture of an experiment; for a table, also its intervals and pairs. Returns the first picture's path.
///
/// # Errors
///
/// When there are no results yet, or a picture cannot be written.
pub fn draw(places: &Places, spec: &Spec, evidence: Option<&Evidence>) -> Result<PathBuf> {
    let path = places
        .figures
        .join(&spec.profile.name)
        .join(format!("{}.png", spec.experiment.name));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    draw_into(places, spec, evidence, &path)?;
    Ok(path)
}

/// As [`draw`], as PNG or SVG by the path's extension; returns the paths of all pictures.
pub(crate) fn draw_into(
    places: &Places,
    spec: &Spec,
    evidence: Option<&Evidence>,
    path: &Path,
) -> Result<Vec<PathBuf>> {
    let e = &spec.experiment;
    let mut drawn = vec![path.to_owned()];
    let profile = &spec.profile.name;
    let format = path.extension().unwrap_or_default().to_string_lossy();
    let beside = |end: &str| path.with_file_name(format!("{}_{end}.{format}", e.name));
    let masses = ours(places, spec, "_masses.csv");
    if masses.exists() {
        let to = beside("masses");
        plot::masses(&read_masses(&masses)?, &to, &e.title, e.subject())?;
        drawn.push(to);
    }
    match e.kind {
        Kind::Curve => {
            let ours = read_curve(&ours(places, spec, ".csv")).with_context(|| hint(spec))?;
            if !spec.grid.keys.is_empty() {
                let labels: Vec<&str> = e.rows.iter().map(|row| row.label.as_str()).collect();
                let untested = Table {
                    row_key: e.row_key.clone(),
                    cells: Vec::new(),
                };
                plot::grid(&spec.grid, &labels, &untested, None, &ours, path, &e.title)?;
                return Ok(drawn);
            }
            let paper = paper(places, spec, read_curve)?;
            let mut trainings = spec.recipes.iter().map(|recipe| &recipe.settings);
            let at = match trainings.all(|t| t.validate_every.or(t.max_updates).is_none()) {
                true => "epoch",
                false => "validation",
            };
            let words = plot::Words {
                title: &e.title,
                ours: &format!("Ours ({profile})"),
                at,
                score: "ROUGE-L F1 on Dolly validation (%)",
            };
            plot::curves(&ours, paper.as_deref(), path, &words, e.subject())?;
        }
        Kind::Timing => {
            let ours = timing::read(&ours(places, spec, ".json")).with_context(|| hint(spec))?;
            let paper = paper(places, spec, timing::read_paper)?.unwrap_or_default();
            let of = |method: &str| paper.iter().find(|(m, _)| m == method).map(|(_, s)| *s);
            let ratio = |method: &str| Some(of(method)? / of("SFT")?);
            plot::stacks(&ours.rows, ratio, path, &e.title, profile)?;
        }
        Kind::Table => {
            let ours = Table::read(&ours(places, spec, ".csv")).with_context(|| hint(spec))?;
            let paper = paper(places, spec, Table::read)?;
            let titles = spec.titles();
            if !spec.grid.keys.is_empty() {
                let curves = folder(places, spec, ".csv").join(format!("{}_curves.csv", e.name));
                let curves = if curves.exists() {
                    read_curve(&curves)?
                } else {
                    Vec::new()
                };
                let labels: Vec<&str> = e.rows.iter().map(|row| row.label.as_str()).collect();
                plot::grid(
                    &spec.grid, &labels, &ours, evidence, &curves, path, &e.title,
                )?;
                return Ok(drawn);
            }
            plot::bars(
                &ours,
                paper.as_ref(),
                path,
                &e.title,
                profile,
                e.subject(),
                &titles,
            )?;
            if let Some(evidence) = evidence {
                let (paper, to) = (paper.as_ref(), beside("intervals"));
                plot::intervals(evidence, paper, &to, &e.title, profile, e.subject())?;
                let pairs = beside("pairs");
                plot::matrix(evidence, &pairs, &e.title)?;
                drawn.extend([to, pairs]);
            }
        }
    }
    Ok(drawn)
}

/// Reads the paper's file, if the experiment names one.
fn paper<T>(
    places: &Places,
    spec: &Spec,
    read: impl Fn(&std::path::Path) -> Result<T>,
) -> Result<Option<T>> {
    let name = spec.experiment.paper.as_ref();
    name.map(|name| read(&places.paper(name))).transpose()
}

/// A file of our results: the complete ones, else the partial ones.
fn ours(places: &Places, spec: &Spec, end: &str) -> PathBuf {
    folder(places, spec, end).join(format!("{}{end}", spec.experiment.name))
}

/// The folder of a file of our results.
fn folder(places: &Places, spec: &Spec, end: &str) -> PathBuf {
    let name = format!("{}{end}", spec.experiment.name);
    if !places.result(spec, &name).exists() && places.partial(spec, &name).exists() {
        return places.partial(spec, "");
    }
    places.result(spec, "")
}

fn hint(spec: &Spec) -> String {
    format!(
        "no results yet? `abkd run {} --profile {}` makes them",
        spec.experiment.name, spec.profile.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_point_of_each_row_of_a_grid_is_named() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "rates", "tiny").unwrap();
        let point = |loss: &str, epoch, rouge_l| CurvePoint {
            loss: loss.into(),
            training_seed: Some(1),
            epoch,
            dolly_validation_rouge_l: rouge_l,
            validation_loss: None,
        };
        let curves = [
            point("FKLD, learning_rate 0.0001", 1, 11.0),
            point("FKLD, learning_rate 0.001", 1, 14.0),
            point("FKLD, learning_rate 0.001", 2, 13.0),
            point("FKLD, learning_rate 0.003", 2, 13.5),
            point("ABKD, learning_rate 0.003", 1, 9.0),
        ];
        assert_eq!(
            best_of_grid(&spec, &curves),
            "best: FKLD, learning_rate 0.001: 14.0000\nbest: ABKD, learning_rate 0.003: 9.0000\n"
        );
    }
}
