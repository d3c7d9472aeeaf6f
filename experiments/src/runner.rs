//! Runs the tasks of a plan: several in parallel, each at most once; interrupted tasks are resumed.

mod answers;
mod calibrate;
mod executor;
mod fold;
mod outcome;
mod proof;
mod publish;
mod slurm;
mod worker;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use abkd_host::files;
use abkd_training::ValidationRecord;
use abkd_training::evaluate;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

pub use self::calibrate::calibrate;
use self::executor::{Board, caught, execute};
pub use self::fold::write_results;
pub use self::outcome::{Answered, FinishedEvaluation, TrainedStudent, evaluations, student};
use self::proof::Standing;
pub use self::publish::publish;
pub use self::slurm::{Slurm, Submission};
use self::worker::Worker;
pub(crate) use self::worker::lines;
use crate::backend::Cards;
use crate::inputs::{Inputs, identity};
use crate::plan::{Plan, Planned};
use crate::progress::Display;
use crate::results::PARTIAL;
use crate::spec::Spec;
use crate::task::{self, Sources};

/// The folders of a project.
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
    /// This project, with the folders of runs, results and figures below another one.
    #[cfg(test)]
    pub(crate) fn below(folder: &Path) -> Self {
        Self {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
            runs: folder.join("runs"),
            results: folder.join("results"),
            figures: folder.join("figures"),
        }
    }

    /// The folder of a profile's tasks.
    pub fn runs_of(&self, spec: &Spec) -> PathBuf {
        self.runs.join(&spec.profile.name)
    }

    /// A file of a profile's results.
    pub fn result(&self, spec: &Spec, name: &str) -> PathBuf {
        self.results.join(&spec.profile.name).join(name)
    }

    /// A file of partial results, in a folder next to the complete ones.
    pub fn partial(&self, spec: &Spec, name: &str) -> PathBuf {
        self.result(spec, PARTIAL).join(name)
    }

    /// A file of the paper's results.
    pub fn paper(&self, name: &str) -> PathBuf {
        self.root.join("results/paper").join(name)
    }
}

/// Result of a training task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// One record per epoch.
    pub curve: Vec<ValidationRecord>,
    /// Share of the teacher's hidden states that came from the cache; absent without a teacher.
    pub cached_share: Option<f64>,
}

/// Result of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Evaluated {
    /// Means over the answers.
    #[serde(flatten)]
    score: evaluate::Score,
    /// ROUGE-L of each answer.
    examples: Vec<f64>,
}

/// Result of a task whose output is shared by many others: its time, over all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct OneOff {
    /// Sequences.
    items: usize,
    seconds: f64,
}

const RESULT: &str = "result.json";
/// Folder in which updates are timed.
const SCRATCH: &str = "scratch";

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// All tasks are done.
    Finished,
    /// Stopped by the user; finished work is saved.
    Interrupted,
    /// The tasks were submitted to a cluster, which runs them later.
    Submitted,
    /// The scripts of a dry run.
    Shown(Vec<String>),
}

/// Who runs the tasks.
pub enum How<'a> {
    /// This process.
    Local,
    /// A Slurm cluster.
    Slurm(Slurm<'a>),
    /// Nobody: only folds finished tasks.
    Fold,
}

/// Whether a task is done; large files are checked by length only.
pub fn is_done(places: &Places, spec: &Spec, planned: &Planned) -> bool {
    let dir = places.runs_of(spec).join(&planned.id);
    matches!(Standing::of(&dir, &planned.id), Ok(Standing::Finished(_)))
}

/// Which tasks of a plan are done, as [`is_done`] says.
pub fn done(places: &Places, spec: &Spec, plan: &Plan) -> Vec<bool> {
    let tasks = plan.tasks.iter();
    tasks.map(|task| is_done(places, spec, task)).collect()
}

/// Runs all tasks that are not done yet and writes the results after each.
///
/// # Errors
///
/// The first error of a task; other workers finish their current task.
pub fn run(
    places: &Places,
    spec: &Spec,
    plan: &Plan,
    inputs: &Inputs,
    how: How,
    stop: &AtomicBool,
) -> Result<Ended> {
    let runs = places.runs_of(spec);
    if let How::Slurm(slurm) = &how
        && slurm.submission.dry_run
    {
        let done = done(places, spec, plan);
        let lines = slurm.submit(plan, &done, &|_| Ok(()))?;
        return Ok(Ended::Shown(lines));
    }
    files::create_folder(&runs).with_context(|| runs.display().to_string())?;
    let _lock = lock(&runs)?;
    let results = places.result(spec, "");
    fs::create_dir_all(&results)
        // fail now, not after hours of work
        .and_then(|()| tempfile::tempfile_in(&results))
        .with_context(|| format!("results cannot be written to {}", results.display()))?;
    let figures = places.figures.join(&spec.profile.name);
    for folder in [&results, &places.partial(spec, ""), &figures] {
        files::sweep(folder).with_context(|| folder.display().to_string())?;
    }
    let (done, again) = proof::survey(&runs, plan)?;
    let finished = done.iter().filter(|d| **d).count();
    let jobs = spec.jobs().min(plan.tasks.len().max(1));
    let display = Display::new(plan.tasks.len(), finished, jobs);
    report_inputs(&display, inputs, finished, plan);
    again.iter().for_each(|line| display.line(line));
    let sources = &Sources::of(&places.root, spec);
    let ended = match how {
        How::Fold if finished == plan.tasks.len() => Ended::Finished,
        How::Fold => Ended::Interrupted,
        How::Slurm(slurm) => {
            let begin = |planned: &Planned| {
                let content = task::content(&planned.id, &planned.task, sources)?;
                proof::Folder::begin(&runs.join(&planned.id), &planned.id, &content).map(drop)
            };
            let lines = slurm.submit(plan, &done, &begin)?;
            lines.iter().for_each(|line| display.line(line));
            Ended::Submitted
        }
        How::Local => {
            let devices = crate::backend::devices(&spec.profile.backend, &spec.cards)?;
            let workers = AtomicUsize::new(0);
            let worker = || {
                // Workers share the cards evenly.
                let number = workers.fetch_add(1, Ordering::Relaxed);
                let mut worker = Worker {
                    runs: &runs,
                    sources,
                    inputs,
                    device: devices[number % devices.len()].clone(),
                    stop,
                    loaded: None,
                };
                let display = &display;
                move |planned: &Planned, board: &Board| {
                    let mut shown = display.task(&planned.id);
                    let told = caught(|| worker.perform(&planned.id, &planned.task, &mut shown))
                        .with_context(|| format!("task {}", planned.id))?;
                    let Some(told) = told else {
                        return Ok(false);
                    };
                    shown.finish(planned.kind(), &board.left(planned), &told);
                    write_results(places, spec, plan)?;
                    Ok(true)
                }
            };
            execute(plan, &done, jobs, stop, worker)?
        }
    };
    write_results(places, spec, plan)?;
    Ok(ended)
}

/// Runs the task of a folder, from its file alone, on the first of `cards`.
///
/// # Errors
///
/// A task file that differs from the planned one; data or models that are missing or differ from the planned ones;
/// another process that runs the task; the errors of the task itself.
pub fn run_task(
    folder: &Path,
    root: Option<&Path>,
    cards: &Cards,
    stop: &AtomicBool,
) -> Result<Ended> {
    let (id, task, mut sources) = task::read(folder)?;
    if let Some(root) = root {
        sources.root = root.into();
    }
    let folder = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
    let runs = files::folder_of(&folder);
    let _shared = lock_shared(&runs)?;
    let file = folder.join(task::FILE);
    let mine = File::open(&file).with_context(|| file.display().to_string())?;
    mine.try_lock()
        .map_err(|_| anyhow!("{}: another process runs this task", folder.display()))?;
    let display = Display::new(1, 0, 1);
    if let Standing::Finished(_) = Standing::of(&folder, &id)? {
        display.line(&format!("{id} is done already"));
        return Ok(Ended::Finished);
    }
    for need in task.needs() {
        proof::needed(&runs, need).with_context(|| format!("{id} needs {need}"))?;
    }
    for (side, planned) in task.bases() {
        let found = identity(&sources.root, sources.model(side), &sources.teacher)?;
        ensure!(
            found == *planned,
            "the {} is not the one that {id} was planned for; plan the experiment again",
            side.section()
        );
    }
    let inputs = Inputs::load(&sources.wanted(&task))?;
    let mut worker = Worker {
        runs: &runs,
        sources: &sources,
        inputs: &inputs,
        device: crate::backend::device(&task.backend, cards)?,
        stop,
        loaded: None,
    };
    let mut shown = display.task(&id);
    let told = caught(|| worker.perform(&id, &task, &mut shown))?;
    let Some(told) = told else {
        return Ok(Ended::Interrupted);
    };
    shown.finish(String::new(), &[], &told);
    Ok(Ended::Finished)
}

fn report_inputs(display: &Display, inputs: &Inputs, finished: usize, plan: &Plan) {
    display.line(&format!(
        "{} training sequences, {} validation examples; {finished} of {} tasks are done",
        inputs.train.sequences.len(),
        inputs.valid.len(),
        plan.tasks.len()
    ));
    if !inputs.train.skipped.is_empty() {
        display.line(&format!(
            "skipped {} of {} training examples: no response token is left after cutting to max_length",
            inputs.train.skipped.len(),
            inputs.train_examples
        ));
    }
}

fn lock_file(runs: &Path) -> Result<File> {
    let path = runs.join(".lock");
    File::create(&path).with_context(|| path.display().to_string())
}

/// Refuses a second run on the same folder. Closing the file releases the lock.
fn lock(runs: &Path) -> Result<File> {
    let file = lock_file(runs)?;
    file.try_lock().map_err(|_| {
        anyhow!("{}: another run works on this folder; wait for it, or give this one its own with --runs", runs.display())
    })?;
    Ok(file)
}

/// How long a task waits for a run that has just submitted it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Several tasks may run in the same folder, but not in parallel with a run of all tasks.
fn lock_shared(runs: &Path) -> Result<File> {
    let file = lock_file(runs)?;
    let begun = Instant::now();
    while file.try_lock_shared().is_err() {
        if begun.elapsed() > PATIENCE {
            bail!(
                "{}: a run works on all tasks of this folder; wait for it",
                runs.display()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(file)
}
