//! Runs the cells of a plan: several side by side, each at most once, resuming what was begun.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use abkd_models::{LanguageModel, checkpoint};
use abkd_training::evaluate::{self, Answer};
use abkd_training::trainer::student_dir;
use abkd_training::{
    EpochRecord, Event, Objective, Outcome, Settings, TrainRun, Validation, train,
};
use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::inputs::{Inputs, base_model};
use crate::plan::{Cell, Plan, Who, Work, row_label};
use crate::progress::{CellDisplay, Display};
use crate::results::{self, CurvePoint, Score, write_atomic};
use crate::spec::{Kind, Spec};

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

    /// A file of the paper's results.
    pub fn paper(&self, name: &str) -> PathBuf {
        self.root.join("results/paper").join(name)
    }
}

/// What a training cell leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// One record an epoch.
    pub curve: Vec<EpochRecord>,
}

const RESULT: &str = "result.json";

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// All cells are done.
    Finished,
    /// Stopped by the user; what was done is saved.
    Interrupted,
}

/// Whether a cell is done.
pub fn is_done(places: &Places, spec: &Spec, cell: &Cell) -> bool {
    places.runs_of(spec).join(&cell.id).join(RESULT).exists()
}

/// Runs all cells that are not done yet and writes the results after each.
///
/// # Errors
///
/// The first error of a cell; the others stop at their next checkpoint.
pub fn run(
    places: &Places,
    spec: &Spec,
    plan: &Plan,
    inputs: &Inputs,
    stop: &AtomicBool,
) -> Result<Ended> {
    let runs = places.runs_of(spec);
    fs::create_dir_all(&runs).with_context(|| runs.display().to_string())?;
    let _lock = lock(&runs)?;
    let results = places.result(spec, "");
    fs::create_dir_all(&results)
        // found out now, and not after hours of work
        .and_then(|()| tempfile::tempfile_in(&results))
        .with_context(|| format!("results cannot be written to {}", results.display()))?;
    let device = crate::backend::device(&spec.profile.backend)?;
    let done: Vec<bool> = plan
        .cells
        .iter()
        .map(|c| is_done(places, spec, c))
        .collect();
    let finished = done.iter().filter(|d| **d).count();
    let jobs = spec.profile.jobs;
    let display = Display::new(plan.cells.len(), finished, jobs);
    report_inputs(&display, inputs, finished, plan);
    let board = Board::new(plan, &done);
    let failed = AtomicBool::new(false);
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
                        display: &display,
                        stop,
                    };
                    let result = worker.work(&board);
                    if result.is_err() {
                        failed.store(true, Ordering::Relaxed);
                        board.abandon();
                    }
                    result
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| {
                w.join()
                    .unwrap_or_else(|_| Err(anyhow!("a worker panicked; this is a bug")))
            })
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    Running,
    Done,
}

/// Who does what.
struct Board<'a> {
    plan: &'a Plan,
    status: Mutex<(Vec<Status>, bool)>,
    changed: Condvar,
}

impl<'a> Board<'a> {
    fn new(plan: &'a Plan, done: &[bool]) -> Self {
        let status = done
            .iter()
            .map(|d| if *d { Status::Done } else { Status::Waiting })
            .collect();
        Self {
            plan,
            status: Mutex::new((status, false)),
            changed: Condvar::new(),
        }
    }

    /// The first cell whose needs are done; waits while there may be one later.
    fn next(&self, stop: &AtomicBool) -> Option<usize> {
        let mut guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (status, abandoned) = &mut *guard;
            if *abandoned || stop.load(Ordering::Relaxed) {
                return None;
            }
            let ready = (0..status.len()).find(|&i| {
                status[i] == Status::Waiting
                    && self.plan.cells[i]
                        .needs
                        .iter()
                        .all(|&n| status[n] == Status::Done)
            });
            if let Some(i) = ready {
                status[i] = Status::Running;
                return Some(i);
            }
            if !status.contains(&Status::Waiting) {
                return None;
            }
            let wait = self.changed.wait_timeout(guard, Duration::from_millis(200));
            guard = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set(&self, index: usize, value: Status) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).0[index] = value;
        self.changed.notify_all();
    }

    fn abandon(&self) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    fn all_done(&self) -> bool {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.iter().all(|s| *s == Status::Done)
    }

    /// Kinds of the cells still to do, for the estimate of the time left.
    fn left(&self) -> Vec<String> {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        guard
            .0
            .iter()
            .zip(&self.plan.cells)
            .filter(|(s, _)| **s != Status::Done)
            .map(|(_, c)| kind(&c.work))
            .collect()
    }
}

/// Cells of one kind take about the same time.
fn kind(work: &Work) -> String {
    match work {
        Work::TeacherSft => "teacher".into(),
        Work::StudentSft => "student".into(),
        Work::Distill { .. } => "distill".into(),
        Work::Evaluate { who, dataset, .. } => {
            format!(
                "evaluate {} {}",
                dataset.id(),
                u8::from(*who == Who::Teacher)
            )
        }
    }
}

struct Worker<'a> {
    places: &'a Places,
    spec: &'a Spec,
    plan: &'a Plan,
    inputs: &'a Inputs,
    device: Device,
    display: &'a Display,
    stop: &'a AtomicBool,
}

impl Worker<'_> {
    fn work(&self, board: &Board) -> Result<()> {
        let mut loaded: Option<(Who, LanguageModel)> = None;
        while let Some(index) = board.next(self.stop) {
            let cell = &self.plan.cells[index];
            let mut shown = self.display.cell(&cell.id);
            let result = self
                .run_cell(cell, &mut loaded, &mut shown)
                .with_context(|| format!("cell {}", cell.id))?;
            let Some(result) = result else {
                board.set(index, Status::Waiting);
                return Ok(());
            };
            board.set(index, Status::Done);
            shown.finish(kind(&cell.work), &board.left(), &result);
            write_results(self.places, self.spec, self.plan)?;
        }
        Ok(())
    }

    /// Runs a cell; gives a line about its result, or `None` when it was interrupted.
    fn run_cell(
        &self,
        cell: &Cell,
        loaded: &mut Option<(Who, LanguageModel)>,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let dir = self.places.runs_of(self.spec).join(&cell.id);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        write_json(&dir.join("cell.json"), &cell.spec)?;
        let profile = &self.spec.profile;
        match cell.work {
            Work::TeacherSft => {
                let settings = profile
                    .teacher_sft
                    .as_ref()
                    .context("planned without teacher_sft")?;
                let start = base_model(
                    &self.places.root,
                    &profile.teacher,
                    &profile.teacher,
                    &self.device,
                )?;
                self.train(
                    cell,
                    &dir,
                    settings,
                    &Objective::CrossEntropy,
                    start,
                    None,
                    shown,
                )
            }
            Work::StudentSft => {
                let settings = profile
                    .student_sft
                    .as_ref()
                    .context("planned without student_sft")?;
                let start = base_model(
                    &self.places.root,
                    &profile.student,
                    &profile.teacher,
                    &self.device,
                )?;
                self.train(
                    cell,
                    &dir,
                    settings,
                    &Objective::CrossEntropy,
                    start,
                    None,
                    shown,
                )
            }
            Work::Distill { row } => {
                let objective = self.spec.experiment.rows[row].objective(profile.kd_ratio)?;
                let teacher = self.model(Who::Teacher)?;
                let start = self.model(Who::Student)?;
                self.train(
                    cell,
                    &dir,
                    &profile.distill,
                    &objective,
                    start,
                    Some(&teacher),
                    shown,
                )
            }
            Work::Evaluate { who, dataset, seed } => {
                if loaded.as_ref().is_none_or(|(w, _)| *w != who) {
                    *loaded = Some((who, self.model(who)?));
                }
                let (_, model) = loaded.as_ref().context("just loaded")?;
                let (examples, prompts) = self.inputs.test(dataset);
                let answers = evaluate::evaluate(
                    model,
                    &self.inputs.tokenizer,
                    examples,
                    prompts,
                    seed,
                    &profile.evaluation.decoding(),
                    &mut |n| shown.more(n, examples.len(), || "answers".into()),
                )?;
                write_answers(&dir.join("answers.jsonl"), &answers)?;
                let score = evaluate::score(&answers);
                write_json(&dir.join(RESULT), &score)?;
                Ok(Some(format!("ROUGE-L {:.2}", score.rouge_l)))
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn train(
        &self,
        cell: &Cell,
        dir: &Path,
        settings: &Settings,
        objective: &Objective,
        student: LanguageModel,
        teacher: Option<&LanguageModel>,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let validation = &self.spec.profile.validation;
        let log_path = dir.join("steps.jsonl");
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| log_path.display().to_string())?;
        let mut log_error = None;
        let outcome = train(
            TrainRun {
                dir,
                fingerprint: &cell.id,
                settings,
                objective,
                student,
                teacher,
                sequences: &self.inputs.train.sequences,
                tokenizer: &self.inputs.tokenizer,
                validation: Validation {
                    examples: &self.inputs.valid,
                    prompts: &self.inputs.valid_prompts,
                    sequences: &self.inputs.valid_sequences.sequences,
                    decoding: &validation.decoding(),
                    seed: validation.seed,
                },
                checkpoint_every: Duration::from_secs(60),
                stop: self.stop,
            },
            &mut |event| match event {
                Event::Resumed { step } => shown.line(&format!("goes on after step {step}")),
                Event::Step {
                    step,
                    steps,
                    report,
                    learning_rate,
                } => {
                    let line = serde_json::json!({
                        "step": step, "loss": report.loss, "grad_norm": report.grad_norm,
                        "learning_rate": learning_rate, "tokens": report.tokens,
                    });
                    if let Err(error) = writeln!(log, "{line}") {
                        log_error.get_or_insert(error);
                    }
                    shown.at(step, steps, || format!("loss {:.3}", report.loss));
                }
                Event::Validating(_) => {}
                Event::Epoch(record) => {
                    let rouge = record
                        .validation_rouge_l
                        .map_or(String::new(), |r| format!(", validation ROUGE-L {r:.2}"));
                    shown.line(&format!(
                        "epoch {}: training loss {:.3}, validation loss {:.3}{rouge}",
                        record.epoch, record.train_loss, record.validation_loss
                    ));
                }
            },
        )?;
        if let Some(error) = log_error {
            return Err(error).with_context(|| log_path.display().to_string());
        }
        match outcome {
            Outcome::Interrupted => Ok(None),
            Outcome::Finished { curve } => {
                let last = curve.last().and_then(|r| r.validation_rouge_l);
                write_json(&dir.join(RESULT), &Trained { curve })?;
                remove_states(dir)?;
                Ok(Some(last.map_or("trained".into(), |r| {
                    format!("validation ROUGE-L {r:.2}")
                })))
            }
        }
    }

    fn model(&self, who: Who) -> Result<LanguageModel> {
        let profile = &self.spec.profile;
        match self.plan.model(who) {
            Some(cell) => {
                let dir = student_dir(&self.places.runs_of(self.spec).join(&cell.id));
                Ok(checkpoint::load(&dir, &self.device)?)
            }
            None => {
                let model = if who == Who::Teacher {
                    &profile.teacher
                } else {
                    &profile.student
                };
                base_model(&self.places.root, model, &profile.teacher, &self.device)
            }
        }
    }
}

/// A finished cell needs its optimizer state no longer.
fn remove_states(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("state-") {
            fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write_atomic(path, &text)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

fn write_answers(path: &Path, answers: &[Answer]) -> Result<()> {
    let mut text = Vec::new();
    for answer in answers {
        serde_json::to_writer(&mut text, answer)?;
        text.push(b'\n');
    }
    write_atomic(path, &text)
}

/// Folds what is done into the CSV files of the experiment. Safe to call from several workers.
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
    let done = plan
        .cells
        .iter()
        .map(|c| (c, runs.join(&c.id).join(RESULT)))
        .filter(|(_, p)| p.exists());
    for (cell, path) in done {
        match cell.work {
            Work::Distill { row } => {
                let trained: Trained = read_json(&path)?;
                let loss = row_label(spec, Who::Row(row));
                curves.extend(trained.curve.into_iter().filter_map(|r| {
                    Some(CurvePoint {
                        loss: loss.clone(),
                        epoch: r.epoch as u32,
                        dolly_validation_rouge_l: r.validation_rouge_l?,
                        validation_loss: Some(r.validation_loss),
                    })
                }));
            }
            Work::Evaluate { who, dataset, seed } => {
                let score: evaluate::Score = read_json(&path)?;
                scores.push(Score {
                    experiment: name.clone(),
                    row: row_label(spec, who),
                    dataset: dataset.id().into(),
                    seed,
                    n: score.n as u64,
                    rouge_l: score.rouge_l,
                    exact_match: score.exact_match,
                    mean_tokens: score.mean_tokens,
                });
            }
            Work::TeacherSft | Work::StudentSft => {}
        }
    }
    match spec.experiment.kind {
        Kind::Curve if !curves.is_empty() => {
            results::write_curve(&places.result(spec, &format!("{name}.csv")), &curves)
        }
        Kind::Table if !scores.is_empty() => {
            results::write_scores(&places.result(spec, &format!("{name}_scores.csv")), &scores)?;
            results::fold(&scores, &spec.experiment.row_key)?
                .write(&places.result(spec, &format!("{name}.csv")))
        }
        _ => Ok(()),
    }
}

/// Refuses a spec whose inputs are only partly there.
///
/// # Errors
///
/// When a base model is missing.
pub fn check_inputs(places: &Places, spec: &Spec) -> Result<()> {
    for model in [&spec.profile.teacher, &spec.profile.student] {
        if let Some(dir) = &model.checkpoint {
            let path = places.root.join(dir).join("config.json");
            ensure!(
                path.exists(),
                "{}: the checkpoint is not there; `make weights` fetches it (README, \"Real data\")",
                path.display()
            );
        }
    }
    Ok(())
}
