//! Comparison and pictures from the CSV files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::compare::{Comparison, References};
use crate::evidence::Evidence;
use crate::plot;
use crate::results::{
    CurvePoint, Table, best_point, csv_bytes, read_curve, read_examples, read_masses, write_atomic,
};
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
    comparison.write(&folder(places, spec))?;
    Ok(comparison.terminal(width))
}

/// A table beside the paper's, if the experiment names one, with the evidence from the scores of single answers.
///
/// # Errors
///
/// When there are no results yet, or a file is invalid.
pub fn comparison(places: &Places, spec: &Spec, evidence: Option<Evidence>) -> Result<Comparison> {
    let e = &spec.experiment;
    let ours = read(places, spec, ".csv", Table::read)?;
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
    let path = ours(places, spec, "_examples.csv");
    if !path.exists() {
        return Ok(None);
    }
    let paper = paper(places, spec, Table::read)?;
    let scores = read_examples(&path)?;
    let evidence = Evidence::new(&scores, &spec.experiment.labels(), paper.as_ref());
    let subject = spec.experiment.subject.as_deref();
    let claimed = subject.filter(|_| paper.is_none());
    Ok(evidence.map(|evidence| Evidence {
        titles: spec.titles(),
        ..evidence.claiming(claimed)
    }))
}

/// Seconds per sample and ratios to SFT, ours and the paper's.
fn compare_timings(places: &Places, spec: &Spec) -> Result<String> {
    let e = &spec.experiment;
    let timed = read(places, spec, ".json", timing::read)?;
    let paper = paper(places, spec, timing::read_paper)?;
    let text = timing::comparison(&timed.rows, paper.as_deref());
    let heading = format!(
        "# {}, profile `{}`\n\n{}\n\nMachine: {}.\n\n",
        e.title, spec.profile.name, spec.profile.description, timed.machine
    );
    let path = ours(places, spec, "_comparison.md");
    write_atomic(&path, (heading + &text).as_bytes())?;
    Ok(text)
}

/// The best point of each mean curve, ours and the paper's.
fn compare_curves(places: &Places, spec: &Spec) -> Result<String> {
    let curves = read(places, spec, ".csv", read_curve)?;
    let paper = paper(places, spec, read_curve)?;
    let labels = spec.experiment.labels();
    let theirs = |label| best_point(paper.as_deref()?, label);
    let best = labels
        .iter()
        .map(|row| (best_point(&curves, row), theirs(*row)));
    let best: Vec<(Option<f64>, Option<f64>)> = best.collect();
    let mut header = vec!["loss", "best_validation_rouge_l"];
    if paper.is_some() {
        header.push("paper_best_validation_rouge_l");
    }
    let lines = labels.iter().zip(&best).map(|(row, (ours, theirs))| {
        let mut line = vec![(*row).into(), (*ours).into()];
        if paper.is_some() {
            line.push((*theirs).into());
        }
        line
    });
    let bytes = csv_bytes(&header, lines)?;
    write_atomic(&ours(places, spec, "_comparison.csv"), &bytes)?;
    let text = String::from_utf8(bytes)?;
    if paper.is_none() {
        return Ok(text + &best_of_grid(spec, &curves));
    }
    let both = best
        .into_iter()
        .filter_map(|(ours, theirs)| ours.zip(theirs));
    let (ours, theirs): (Vec<f64>, Vec<f64>) = both.unzip();
    let rho = abkd_metrics::stats::spearman(&ours, &theirs);
    let rho = rho.map_or("not defined".into(), |r| format!("{r:.3}"));
    Ok(format!(
        "{text}Spearman's rho of the best points over {} losses: {rho}\n",
        ours.len()
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
    let table = || read(places, spec, ".csv", Table::read);
    let curve = || read(places, spec, ".csv", read_curve);
    match e.kind {
        Kind::Table | Kind::Curve if !spec.grid.keys.is_empty() => {
            let curves = ours(places, spec, "_curves.csv");
            let untested = Table {
                row_key: e.row_key.clone(),
                cells: Vec::new(),
            };
            let (table, curves) = match e.kind {
                Kind::Table if curves.exists() => (table()?, read_curve(&curves)?),
                Kind::Table => (table()?, Vec::new()),
                _ => (untested, curve()?),
            };
            let (grid, labels) = (&spec.grid, e.labels());
            plot::grid(grid, &labels, &table, evidence, &curves, path, &e.title)?;
        }
        Kind::Curve => {
            let (curve, paper) = (curve()?, paper(places, spec, read_curve)?);
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
            plot::curves(&curve, paper.as_deref(), path, &words, e.subject())?;
        }
        Kind::Timing => {
            let timed = read(places, spec, ".json", timing::read)?;
            let paper = paper(places, spec, timing::read_paper)?.unwrap_or_default();
            let of = |method: &str| paper.iter().find(|(m, _)| m == method).map(|(_, s)| *s);
            let ratio = |method: &str| Some(of(method)? / of("SFT")?);
            plot::stacks(&timed.rows, ratio, path, &e.title, profile)?;
        }
        Kind::Table => {
            let (table, paper) = (table()?, paper(places, spec, Table::read)?);
            let (paper, titles) = (paper.as_ref(), spec.titles());
            plot::bars(&table, paper, path, &e.title, profile, e.subject(), &titles)?;
            if let Some(evidence) = evidence {
                let to = beside("intervals");
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

/// Reads a file of our results.
fn read<T>(
    places: &Places,
    spec: &Spec,
    end: &str,
    read: impl Fn(&Path) -> Result<T>,
) -> Result<T> {
    let path = ours(places, spec, end);
    read(&path).map_err(|error| match path.exists() {
        true => error,
        false => error.context(format!(
            "no results yet? `abkd run {} --profile {}` makes them",
            spec.experiment.name, spec.profile.name
        )),
    })
}

/// A file of our results.
fn ours(places: &Places, spec: &Spec, end: &str) -> PathBuf {
    folder(places, spec).join(format!("{}{end}", spec.experiment.name))
}

/// The folder of our results: the complete ones, else the partial ones.
fn folder(places: &Places, spec: &Spec) -> PathBuf {
    let end = match spec.experiment.kind {
        Kind::Timing => "json",
        Kind::Table | Kind::Curve => "csv",
    };
    let name = format!("{}.{end}", spec.experiment.name);
    if !places.result(spec, &name).exists() && places.partial(spec, &name).exists() {
        return places.partial(spec, "");
    }
    places.result(spec, "")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_an_absent_file_asks_for_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let spec = Spec::load(&places.root, "table1", "tiny").unwrap();
        let said = || format!("{:#}", compare(&places, &spec, None, None).unwrap_err());
        assert!(
            said().contains("`abkd run table1 --profile tiny`"),
            "{}",
            said()
        );
        fs::create_dir_all(places.result(&spec, "")).unwrap();
        fs::write(places.result(&spec, "table1.csv"), "loss\n").unwrap();
        assert!(
            said().contains("wrong header") && !said().contains("abkd run"),
            "{}",
            said()
        );
    }

    #[test]
    fn all_files_are_read_from_the_folder_of_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let spec = Spec::load(&places.root, "collapse", "tiny").unwrap();
        fs::create_dir_all(places.partial(&spec, "")).unwrap();
        let (table, masses) = ("collapse.csv", "collapse_masses.csv");
        fs::write(places.partial(&spec, masses), "").unwrap();
        fs::write(places.result(&spec, table), "").unwrap();
        assert_eq!(
            ours(&places, &spec, "_masses.csv"),
            places.result(&spec, masses)
        );
        fs::rename(places.result(&spec, table), places.partial(&spec, table)).unwrap();
        assert_eq!(
            ours(&places, &spec, "_masses.csv"),
            places.partial(&spec, masses)
        );
    }

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
