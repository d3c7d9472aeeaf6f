//! What is made from the CSV files once they are there: comparison and pictures.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::compare::Comparison;
use crate::plot;
use crate::results::{CurvePoint, Table, mean_curve, read_curve};
use crate::runner::Places;
use crate::spec::{Kind, Spec};
use crate::timing;

/// Compares a table with the paper's and writes the comparison; gives the table for the terminal.
///
/// # Errors
///
/// When there are no results yet, or a file is not what it should be.
pub fn compare(places: &Places, spec: &Spec) -> Result<String> {
    let e = &spec.experiment;
    match e.kind {
        Kind::Curve => return compare_curves(places, spec),
        Kind::Timing => return compare_timings(places, spec),
        Kind::Table => {}
    }
    let ours = places.result(spec, &format!("{}.csv", e.name));
    let mut comparison = Comparison::read(
        &e.name,
        &spec.profile.name,
        &spec.profile.description,
        &ours,
        &places.paper(&e.paper),
    )
    .with_context(|| hint(spec))?;
    if spec.starts_are_replaced() {
        comparison.remarks.push(
            "Every row starts from the initialised student: the base of this profile is no language model.".into(),
        );
    }
    comparison.write(&places.result(spec, ""))?;
    let width = std::io::stdout()
        .is_terminal()
        .then(terminal_width)
        .flatten();
    Ok(comparison.terminal(width))
}

/// Seconds a sample and ratios to SFT, ours and the paper's.
fn compare_timings(places: &Places, spec: &Spec) -> Result<String> {
    let e = &spec.experiment;
    let ours = timing::read(&places.result(spec, &e.name)).with_context(|| hint(spec))?;
    let paper = timing::read_paper(&places.paper(&e.paper))?;
    let text = timing::comparison(&ours.rows, &paper);
    let heading = format!(
        "# {}, profile `{}`\n\n{}\n\nMachine: {}.\n\n",
        e.title, spec.profile.name, spec.profile.description, ours.machine
    );
    let path = places.result(spec, &format!("{}_comparison.md", e.name));
    crate::results::write_atomic(&path, (heading + &text).as_bytes())?;
    Ok(text)
}

/// The best point of each mean curve, ours and the paper's.
fn compare_curves(places: &Places, spec: &Spec) -> Result<String> {
    let e = &spec.experiment;
    let ours =
        read_curve(&places.result(spec, &format!("{}.csv", e.name))).with_context(|| hint(spec))?;
    let paper = read_curve(&places.paper(&e.paper))?;
    let best = |points: &[CurvePoint], loss: &str| {
        let curve = mean_curve(points, loss).into_iter().map(|p| p.mean);
        curve.fold(None, |a: Option<f64>, x| Some(a.map_or(x, |a| a.max(x))))
    };
    let labels: Vec<&str> = e.rows.iter().map(|r| r.label.as_str()).collect();
    let mut text = String::from("loss,best_validation_rouge_l,paper_best_validation_rouge_l\n");
    let mut pairs = (Vec::new(), Vec::new());
    for label in labels {
        let (a, b) = (best(&ours, label), best(&paper, label));
        let cell = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
        text += &format!("{label},{},{}\n", cell(a), cell(b));
        if let (Some(a), Some(b)) = (a, b) {
            pairs.0.push(a);
            pairs.1.push(b);
        }
    }
    let path = places.result(spec, &format!("{}_comparison.csv", e.name));
    crate::results::write_atomic(&path, text.as_bytes())?;
    let rho = abkd_metrics::stats::spearman(&pairs.0, &pairs.1);
    let rho = rho.map_or("not defined".into(), |r| format!("{r:.3}"));
    Ok(format!(
        "{text}Spearman's rho of the best points over {} losses: {rho}\n",
        pairs.0.len()
    ))
}

/// Draws the picture of an experiment; gives its path.
///
/// # Errors
///
/// When there are no results yet, or the picture cannot be written.
pub fn draw(places: &Places, spec: &Spec) -> Result<PathBuf> {
    let e = &spec.experiment;
    let path = places
        .figures
        .join(&spec.profile.name)
        .join(format!("{}.png", e.name));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let ours = places.result(spec, &format!("{}.csv", e.name));
    let paper = places.paper(&e.paper);
    match e.kind {
        Kind::Curve => {
            let ours = read_curve(&ours).with_context(|| hint(spec))?;
            plot::figure1(&ours, Some(&read_curve(&paper)?), &path, &spec.profile.name)?;
        }
        Kind::Timing => {
            let ours = timing::read(&places.result(spec, &e.name)).with_context(|| hint(spec))?;
            let paper = timing::read_paper(&paper)?;
            let of = |method: &str| paper.iter().find(|(m, _)| m == method).map(|(_, s)| *s);
            let ratio = |method: &str| Some(of(method)? / of("SFT")?);
            plot::stacks(&ours.rows, ratio, &path, &e.title, &spec.profile.name)?;
        }
        Kind::Table => {
            let ours = Table::read(&ours).with_context(|| hint(spec))?;
            plot::bars(
                &ours,
                Some(&Table::read(&paper)?),
                &path,
                &e.title,
                &spec.profile.name,
            )?;
        }
    }
    Ok(path)
}

fn hint(spec: &Spec) -> String {
    format!(
        "no results yet? `abkd run {} --profile {}` makes them",
        spec.experiment.name, spec.profile.name
    )
}

fn terminal_width() -> Option<u16> {
    std::env::var("COLUMNS").ok()?.parse().ok()
}
