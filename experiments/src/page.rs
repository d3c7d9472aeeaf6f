//! The report: one HTML file that needs no network. Verdicts first, then tables, pictures, trainings, answers side by side,
//! and provenance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use abkd_host::files;
use abkd_training::Settings;
use anyhow::{Context, Result};
use askama::Template;
use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;
use crate::plan::{Plan, Planned, Who, row_label};
use crate::plot::{Update, training};
use crate::report::{self, draw_into};
use crate::results::write_atomic;
use crate::runner::{Answered, Places, is_done};
use crate::spec::{Kind, Spec};
use crate::task::Work;

/// Examples per set that are shown with their answers.
const EXAMPLES: usize = 12;

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    profile: String,
    description: String,
    /// Claim, verdict, reason.
    claims: Vec<(String, &'static str, String)>,
    notes: Vec<String>,
    sections: Vec<Section>,
    /// JSON, safe inside of a script.
    answers: String,
    provenance: Vec<(&'static str, String)>,
    tasks: Vec<(String, String)>,
}

#[derive(Default)]
struct Section {
    title: String,
    anchor: String,
    text: String,
    /// Tables with their headings, which may be empty.
    grids: Vec<(String, Vec<Vec<String>>)>,
    lines: Vec<String>,
    /// SVG.
    pictures: Vec<String>,
}

impl Section {
    fn new(title: &str) -> Self {
        Self {
            title: title.into(),
            anchor: title.to_lowercase().replace(' ', "-"),
            ..Self::default()
        }
    }
}

/// A line of a training's log.
#[derive(Deserialize)]
struct Logged {
    step: usize,
    loss: f64,
    grad_norm: f64,
}

/// An example with the answers of all rows.
#[derive(Serialize)]
struct Shown {
    set: String,
    prompt: String,
    references: Vec<String>,
    answers: Vec<Given>,
}

#[derive(Serialize)]
struct Given {
    row: String,
    score: f64,
    answer: String,
}

/// Writes the report of an experiment; returns its path. The plan, with the number of training sequences, is absent if
/// inputs are missing: the report then has no trainings and no answers.
///
/// # Errors
///
/// No results yet; an invalid file; a file that cannot be written.
pub fn write(
    places: &Places,
    spec: &Spec,
    plan: Option<(&Plan, usize)>,
    out: Option<&Path>,
) -> Result<PathBuf> {
    let e = &spec.experiment;
    let mut page = Page {
        title: e.title.clone(),
        profile: spec.profile.name.clone(),
        description: spec.profile.description.clone(),
        claims: Vec::new(),
        notes: spec.notes(),
        sections: Vec::new(),
        answers: String::new(),
        provenance: provenance(places, spec),
        tasks: Vec::new(),
    };
    let evidence = report::evidence(places, spec)?;
    let mut pictures = Section::new("Pictures");
    let scratch = tempfile::tempdir()?;
    for path in draw_into(
        places,
        spec,
        evidence.as_ref(),
        &scratch.path().join(format!("{}.svg", e.name)),
    )? {
        pictures.pictures.push(svg(&path)?);
    }
    if e.kind == Kind::Table {
        tables(places, spec, evidence, &mut page)?;
    }
    page.sections.push(pictures);
    match plan {
        Some((plan, sequences)) => {
            page.sections.extend(trainings(places, spec, plan, sequences, scratch.path())?);
            page.answers = answers(places, spec, plan)?;
            page.tasks = tasks(plan)?;
        }
        None => page.notes.push(
            "The inputs of the experiment are missing, so its trainings and answers cannot be identified and are not shown."
                .into(),
        ),
    }
    let path = match out {
        Some(path) => path.into(),
        None => places.result(spec, &format!("{}_report.html", e.name)),
    };
    let html = page.render().context("the report's template")?;
    write_atomic(&path, html.as_bytes())?;
    Ok(path)
}

/// Verdicts, intervals and scores.
fn tables(places: &Places, spec: &Spec, evidence: Option<Evidence>, page: &mut Page) -> Result<()> {
    let comparison = report::comparison(places, spec, evidence)?;
    if let Some(evidence) = &comparison.evidence {
        page.claims = evidence
            .claims
            .iter()
            .map(|c| (evidence.text(c), c.verdict.name(), c.reason.clone()))
            .collect();
        page.notes.push(evidence.note());
        let mut section = Section::new("Intervals");
        section.text = comparison.interval_note();
        let grid = evidence.interval_grid(&comparison.row_key, ' ');
        section.grids.push((String::new(), grid));
        section.lines = evidence.closing();
        page.sections.push(section);
    }
    let mut section = Section::new("Scores");
    section.text = comparison.note();
    section.grids = comparison.grids();
    section.lines = comparison.closing();
    page.sections.push(section);
    Ok(())
}

/// An SVG file from its `<svg>` element on.
fn svg(path: &Path) -> Result<String> {
    let text = files::read_text(path).with_context(|| path.display().to_string())?;
    Ok(text
        .find("<svg")
        .map_or(text.as_str(), |at| &text[at..])
        .to_owned())
}

/// The rows' trainings that have begun, as a figure of their logs.
fn trainings(
    places: &Places,
    spec: &Spec,
    plan: &Plan,
    sequences: usize,
    scratch: &Path,
) -> Result<Option<Section>> {
    let mut rows: Vec<(String, Vec<Update>)> = Vec::new();
    for (planned, work) in plan.works() {
        let (Work::Train(task), Some(&who @ Who::Row { .. })) = (work, planned.of.first()) else {
            continue;
        };
        let log = places.runs_of(spec).join(&planned.id).join("steps.jsonl");
        let Ok(text) = files::read_text(&log) else {
            continue;
        };
        let updates = updates(&text, &task.settings, sequences);
        let label = row_label(spec, who);
        match rows.iter_mut().find(|(row, _)| *row == label) {
            Some((_, all)) => all.extend(updates),
            None => rows.push((label, updates)),
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let path = scratch.join("training.svg");
    training(&rows, &path, spec.experiment.subject())?;
    let mut section = Section::new("Trainings");
    section.text = "Means over the trainings of a row, and over equal parts of them.".into();
    section.pictures.push(svg(&path)?);
    Ok(Some(section))
}

/// The updates in the log of a training over `sequences` sequences.
fn updates(log: &str, settings: &Settings, sequences: usize) -> Vec<Update> {
    let all = settings.updates(sequences).max(1) as f64;
    // The last line of a log still being written may be torn.
    let lines = log.lines().filter_map(|l| serde_json::from_str(l).ok());
    lines
        .map(|line: Logged| Update {
            at: line.step as f64 / all,
            loss: line.loss,
            grad_norm: line.grad_norm,
            clipped: line.grad_norm > settings.max_grad_norm,
        })
        .collect()
}

/// The first examples of each set with the answers of all models, as JSON.
fn answers(places: &Places, spec: &Spec, plan: &Plan) -> Result<String> {
    let mut shown: BTreeMap<(usize, usize), Shown> = BTreeMap::new();
    let (first_seed, titles) = (spec.experiment.seeds.first(), spec.titles());
    for (planned, work) in plan.works() {
        let Work::Evaluate(evaluation) = work else {
            continue;
        };
        if Some(&evaluation.seed) != first_seed || !is_done(places, spec, planned) {
            continue;
        }
        let Some(row) = first_training(spec, planned) else {
            continue;
        };
        let set = spec
            .tests
            .iter()
            .position(|set| set.id == evaluation.dataset);
        let path = places.runs_of(spec).join(&planned.id).join("answers.jsonl");
        let text = files::read_text(&path).with_context(|| path.display().to_string())?;
        for line in text.lines().take(EXAMPLES) {
            let line: Answered =
                serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let place = (set.unwrap_or_default(), line.example);
            let example = shown.entry(place).or_insert_with(|| Shown {
                set: titles.of(&evaluation.dataset).into(),
                prompt: line.prompt,
                references: line.references,
                answers: Vec::new(),
            });
            example.answers.push(Given {
                row: row.clone(),
                score: line.rouge_l,
                answer: line.answer,
            });
        }
    }
    if shown.is_empty() {
        return Ok(String::new());
    }
    let json = serde_json::to_string(&shown.into_values().collect::<Vec<_>>())?;
    // An answer must not end the script element that holds it.
    Ok(json.replace('<', "\\u003c"))
}

/// Label of the model that a task evaluates; `None` for all but the first training of a row.
fn first_training(spec: &Spec, planned: &Planned) -> Option<String> {
    let who = *planned.of.first()?;
    if let Who::Row { row, seed } = who
        && spec.recipes[row].seeds.first() != Some(&seed)
    {
        return None;
    }
    Some(row_label(spec, who))
}

/// The trainings of the plan: identifier, and task as JSON.
fn tasks(plan: &Plan) -> Result<Vec<(String, String)>> {
    plan.works()
        .filter(|(_, work)| matches!(work, Work::Train(_)))
        .map(|(planned, _)| {
            let value = serde_json::to_string_pretty(&planned.task)?;
            Ok((planned.id.clone(), value))
        })
        .collect()
}

/// Provenance of the results: program, backend, seeds, commit, hashes.
fn provenance(places: &Places, spec: &Spec) -> Vec<(&'static str, String)> {
    let p = &spec.profile;
    let mut facts = vec![
        ("program", format!("abkd {}", env!("CARGO_PKG_VERSION"))),
        ("machine that wrote this", crate::timing::machine()),
        (
            "backend",
            format!("{}, {:?}", p.backend, p.precision).to_lowercase(),
        ),
        (
            "experiment",
            format!(
                "{}, sampling seeds {:?}",
                spec.experiment.name, spec.experiment.seeds
            ),
        ),
    ];
    if let Some(seeds) = &p.training_seeds {
        facts.push(("training seeds", format!("{seeds:?}")));
    }
    if let Some(commit) = commit(&places.root) {
        facts.push(("commit", commit));
    }
    for end in [".csv", "_scores.csv", "_examples.csv"] {
        let path = places.result(spec, &format!("{}{end}", spec.experiment.name));
        if let Ok(hash) = files::sha256_of_file(&path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            facts.push(("SHA-256", format!("{hash}  {name}")));
        }
    }
    facts
}

/// The commit of the project's folder; notes files that differ from it.
fn commit(root: &Path) -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(root)
            .args(words)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let head = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() {
        head
    } else {
        format!("{head}, with changed files")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_that_is_half_done_ends_in_the_middle() {
        let settings = r#"{"epochs":2,"batch_size":4,"learning_rate":1e-3,"max_grad_norm":1.0}"#;
        let settings: Settings = serde_json::from_str(settings).unwrap();
        let line = |step: usize, norm: f64| {
            format!("{{\"step\":{step},\"loss\":2.0,\"grad_norm\":{norm}}}\n")
        };
        let log = line(1, 0.5) + &line(2, 1.5) + "{\"step\":3,\"lo";
        let updates = updates(&log, &settings, 8);
        let at: Vec<(f64, bool)> = updates.iter().map(|u| (u.at, u.clipped)).collect();
        assert_eq!(at, [(0.25, false), (0.5, true)]);
    }
}
