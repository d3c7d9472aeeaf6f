//! Runs the cells of a plan: several side by side, each at most once, resuming what was begun.

mod answers;
mod board;
mod calibrate;
mod proof;
mod publish;
mod worker;

use std::any::Any;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use abkd_host::files;
use abkd_training::ValidationRecord;
use abkd_training::evaluate;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use self::board::Board;
pub use self::calibrate::calibrate;
use self::proof::Standing;
pub use self::publish::publish;
use self::worker::Worker;
use crate::inputs::Inputs;
use crate::plan::{Cell, Plan, Who, Work, row_label};
use crate::progress::Display;
use crate::results::{self, CurvePoint, Score};
use crate::spec::{Kind, Spec};
use crate::timing::{self, Timing};

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The project's folder.
    pub root: PathBuf,
    /// Checkpoints, answers and logs.
    pub runs: PathBuf,
    /// CSV.
    pub results: PathBuf,
    /// PNG.
    pub figures: PathBuf,
}

impl Places {
    /// The folder of a profile's cells.
    pub fn runs_of(&self, spec: &Spec) -> PathBuf {
        self.runs.join(&spec.profile.name)
    }

    /// A file of a profile's results.
    pub fn result(&self, spec: &Spec, name: &str) -> PathBuf {
        self.results.join(&spec.profile.name).join(name)
    }

    /// A file of results that are not whole yet, beside those that are.
    pub fn partial(&self, spec: &Spec, name: &str) -> PathBuf {
        self.result(spec, PARTIAL).join(name)
    }

    /// A file of the paper's results.
    pub fn paper(&self, name: &str) -> PathBuf {
        self.root.join("results/paper").join(name)
    }
}

/// What a training cell leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// One record an epoch.
    pub curve: Vec<ValidationRecord>,
    /// Share of the teacher's hidden states that came from the cache; absent where no teacher was asked.
    #[serde(default)]
    pub cached_share: Option<f64>,
}

/// What an evaluation leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Evaluated {
    /// Means over the answers.
    #[serde(flatten)]
    score: evaluate::Score,
    /// ROUGE-L of each answer.
    examples: Vec<f64>,
}

/// What a cell leaves that works something out for many others: its time, over all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct OneOff {
    /// Sequences.
    items: usize,
    seconds: f64,
}

const RESULT: &str = "result.json";
/// What the cell is.
const TASK: &str = "cell.json";
/// Where updates are timed.
const SCRATCH: &str = "scratch";

/// The folder of results that are not whole yet, below those of their profile.
const PARTIAL: &str = "partial";

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// All cells are done.
    Finished,
    /// Stopped by the user; what was done is saved.
    Interrupted,
}

/// Whether a cell is done, as far as its files show without those that are large.
pub fn is_done(places: &Places, spec: &Spec, cell: &Cell) -> bool {
    let dir = places.runs_of(spec).join(&cell.id);
    matches!(Standing::of(&dir, &cell.id), Ok(Standing::Finished(_)))
}

/// Runs all cells that are not done yet and writes the results after each.
///
/// # Errors
///
/// The first error of a cell; the others finish the cell that they are at.
pub fn run(
    places: &Places,
    spec: &Spec,
    plan: &Plan,
    inputs: &Inputs,
    stop: &AtomicBool,
) -> Result<Ended> {
    let runs = places.runs_of(spec);
    files::create_folder(&runs).with_context(|| runs.display().to_string())?;
    let _lock = lock(&runs)?;
    let results = places.result(spec, "");
    fs::create_dir_all(&results)
        // found out now, and not after hours of work
        .and_then(|()| tempfile::tempfile_in(&results))
        .with_context(|| format!("results cannot be written to {}", results.display()))?;
    let figures = places.figures.join(&spec.profile.name);
    for folder in [&results, &places.partial(spec, ""), &figures] {
        files::sweep(folder).with_context(|| folder.display().to_string())?;
    }
    let device = crate::backend::device(&spec.profile.backend)?;
    let (done, again) = proof::survey(&runs, plan)?;
    let finished = done.iter().filter(|d| **d).count();
    let jobs = spec.jobs().min(plan.cells.len().max(1));
    let display = Display::new(plan.cells.len(), finished, jobs);
    report_inputs(&display, inputs, finished, plan);
    again.iter().for_each(|line| display.line(line));
    let board = Board::new(plan, &done);
    let outcome: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                scope.spawn(|| {
                    let worker = Worker {
                        places,
                        spec,
                        plan,
                        inputs,
                        device: device.clone(),
                        decoding: spec.profile.validation.decoding(),
                        display: &display,
                        stop,
                    };
                    board.attend(|| worker.work(&board))
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|panic| Err(panicked(&*panic))))
            .collect()
    });
    outcome.into_iter().collect::<Result<()>>()?;
    write_results(places, spec, plan)?;
    Ok(if board.all_done() {
        Ended::Finished
    } else {
        Ended::Interrupted
    })
}

/// What a worker's panic is to the user.
fn panicked(panic: &(dyn Any + Send)) -> anyhow::Error {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    anyhow!(
        "a worker panicked, which is a bug: {}",
        said.unwrap_or("it said nothing")
    )
}

fn report_inputs(display: &Display, inputs: &Inputs, finished: usize, plan: &Plan) {
    display.line(&format!(
        "{} training sequences, {} validation examples; {finished} of {} cells are done",
        inputs.train.sequences.len(),
        inputs.valid.len(),
        plan.cells.len()
    ));
    if !inputs.train.skipped.is_empty() {
        display.line(&format!(
            "skipped {} of {} training examples: no response token is left after cutting to max_length",
            inputs.train.skipped.len(),
            inputs.train_examples
        ));
    }
}

/// Refuses a second run on the same folder. The lock goes when the file is closed.
fn lock(runs: &Path) -> Result<File> {
    let path = runs.join(".lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.try_lock().map_err(|_| {
        anyhow!("{}: another run works on this folder; wait for it, or give this one its own with --runs", runs.display())
    })?;
    Ok(file)
}

/// Folds what is done into the CSV files of the experiment, beside those of an earlier run: [`publish`] puts them in
/// place. Safe to call from several workers.
///
/// # Errors
///
/// A result that cannot be read, a CSV that cannot be written.
pub fn write_results(places: &Places, spec: &Spec, plan: &Plan) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runs = places.runs_of(spec);
    let name = &spec.experiment.name;
    let mut curves = Vec::new();
    let mut scores = Vec::new();
    let mut timings: Vec<(usize, Timing)> = Vec::new();
    for (cell, work) in plan
        .cells
        .iter()
        .flat_map(|c| c.works().map(move |w| (c, w)))
    {
        match work {
            Work::Distill { row, seed } => {
                let Some(trained) = proof::result::<Trained>(&runs, &cell.id)? else {
                    continue;
                };
                let loss = row_label(spec, Who::Row { row, seed });
                curves.extend(trained.curve.into_iter().filter_map(|r| {
                    let point = CurvePoint {
                        loss: loss.clone(),
                        training_seed: Some(seed),
                        epoch: r.epoch as u32,
                        dolly_validation_rouge_l: r.validation_rouge_l?,
                        validation_loss: r.validation_loss,
                    };
                    Some((row, point))
                }));
            }
            Work::Evaluate { who, dataset, seed } => {
                let Some(found) = proof::result::<Evaluated>(&runs, &cell.id)? else {
                    continue;
                };
                let (place, training_seed) = match who {
                    Who::Teacher => (0, None),
                    Who::Student => (1, None),
                    Who::Row { row, seed } => (2 + row, Some(seed)),
                };
                let Evaluated { score, examples } = found;
                let score = Score {
                    experiment: name.clone(),
                    row: row_label(spec, who),
                    training_seed,
                    dataset: dataset.id().into(),
                    sampling_seed: seed,
                    n: score.n as u64,
                    rouge_l: score.rouge_l,
                    exact_match: score.exact_match,
                    mean_tokens: score.mean_tokens,
                    examples,
                };
                scores.push((place, score));
            }
            Work::Time { row, .. } => {
                timings.extend(proof::result(&runs, &cell.id)?.map(|timing| (row, timing)));
            }
            Work::Sft { .. } | Work::TeacherAnswers { .. } | Work::TeacherHidden => {}
        }
    }
    let file = |end: &str| places.partial(spec, &format!("{name}{end}"));
    match spec.experiment.kind {
        Kind::Curve if !curves.is_empty() => results::write_curve(&file(".csv"), &in_order(curves)),
        Kind::Table if !scores.is_empty() => {
            let scores = in_order(scores);
            results::write_scores(&file("_scores.csv"), &scores)?;
            results::write_examples(&file("_examples.csv"), &scores)?;
            results::fold(&scores, &spec.experiment.row_key)?.write(&file(".csv"))
        }
        Kind::Timing if !timings.is_empty() => {
            let costs = one_off_costs(&runs, plan)?;
            timing::write(&file(""), spec, &timings, costs)
        }
        _ => Ok(()),
    }
}

/// What cells of rows yield, in the order of the rows: a cell that rows share comes early for the later ones.
fn in_order<K: Ord, T>(mut keyed: Vec<(K, T)>) -> Vec<T> {
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, value)| value).collect()
}

/// What the teacher's one-off cells took, seconds a sequence.
fn one_off_costs(runs: &Path, plan: &Plan) -> Result<timing::OneOffCosts> {
    let mut costs = timing::OneOffCosts::default();
    for cell in &plan.cells {
        let cost = match cell.work {
            Work::TeacherAnswers { .. } => &mut costs.answer,
            Work::TeacherHidden => &mut costs.hidden,
            _ => continue,
        };
        if let Some(done) = proof::result::<OneOff>(runs, &cell.id)? {
            *cost = done.seconds / done.items.max(1) as f64;
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_reported_with_what_it_said() {
        let fixed = std::panic::catch_unwind(|| panic!("no room")).unwrap_err();
        let cell = 7;
        let formatted = std::panic::catch_unwind(|| panic!("no cell {cell}")).unwrap_err();
        for (panic, said) in [(fixed, "no room"), (formatted, "no cell 7")] {
            let text = panicked(&*panic).to_string();
            assert!(text.ends_with(said), "{text}");
        }
    }
}
