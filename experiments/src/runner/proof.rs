//! Which tasks are finished: those whose folder has a seal with their id and the files of that seal.
//!
//! Results, answers and the task's own file are checked at the start of a run, weights and hidden states when an open
//! task needs them. A damaged task runs again, and a message says so. Weights and hidden states may be removed: the task
//! stays finished, and runs again when an open task needs them. The log of steps is not sealed: nothing reads it once the
//! task is finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use abkd_host::seal::{Error, Seal};
use abkd_host::{chunks, files};
use abkd_training::{cache, state};
use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RESULT, SCRATCH, answers};
use crate::plan::{Plan, Planned};
use crate::task;

/// Status of a task.
pub(super) enum Standing {
    /// Finished, with its seal.
    Finished(Seal),
    /// Not begun, or begun and not finished.
    Open,
    /// Finished once, but damaged: the reason.
    Damaged(String),
}

impl Standing {
    /// Status of the task `id` in its folder.
    ///
    /// # Errors
    ///
    /// A file that cannot be read; it may be intact.
    pub(super) fn of(dir: &Path, id: &str) -> Result<Self> {
        match light(dir, id) {
            Ok(Some(seal)) => Ok(Self::Finished(seal)),
            Ok(None) => Ok(Self::Open),
            Err(Error::Absent { .. }) if !dir.join(RESULT).exists() => Ok(Self::Open),
            Err(error @ Error::Io { .. }) => Err(error.into()),
            Err(error) => Ok(Self::Damaged(error.to_string())),
        }
    }
}

/// Whether a sealed file is large and serves other tasks: weights, hidden states.
fn is_large(name: &str) -> bool {
    name.contains('/') || name.ends_with(".bin")
}

/// Checks small files completely, and large files by length only, where they were not removed.
fn light(dir: &Path, id: &str) -> Result<Option<Seal>, Error> {
    let seal = Seal::open(dir, id)?;
    // The teacher's hidden states are sealed before their task is finished.
    if !seal.holds(RESULT) {
        return Ok(None);
    }
    for name in seal.names() {
        if is_large(name) {
            if dir.join(name).exists() {
                seal.check_length(name)?;
            }
        } else {
            seal.check(name)?;
        }
    }
    Ok(Some(seal))
}

/// Removes files needed only by an unfinished task, which a kill may have left behind.
fn sweep(dir: &Path) -> Result<()> {
    let mut left = state::checkpoints(dir)?;
    left.push(dir.join(SCRATCH));
    for old in &left {
        files::remove_folder(old).with_context(|| old.display().to_string())?;
    }
    for name in [answers::FILE, cache::ROWS] {
        chunks::forget(&dir.join(name))?;
    }
    Ok(())
}

/// Which tasks are finished, and a line for each that must run again.
///
/// # Errors
///
/// Files that cannot be read or removed.
pub(super) fn survey(runs: &Path, plan: &Plan) -> Result<(Vec<bool>, Vec<String>)> {
    files::sweep(runs).with_context(|| runs.display().to_string())?;
    let mut lines = Vec::new();
    let mut again = |task: &Planned, why: &str| {
        lines.push(format!("{} runs again: {why}", task.id));
    };
    let mut finished = Vec::new();
    for task in &plan.tasks {
        let dir = runs.join(&task.id);
        files::sweep(&dir).with_context(|| dir.display().to_string())?;
        finished.push(match Standing::of(&dir, &task.id)? {
            Standing::Finished(seal) => Some(seal),
            Standing::Open => None,
            Standing::Damaged(why) => {
                again(task, &why);
                None
            }
        });
    }
    // In reverse: the needs of a task precede it in the plan.
    for (index, task) in plan.tasks.iter().enumerate().rev() {
        if finished[index].is_some() {
            continue;
        }
        for &need in &task.needs {
            match finished[need].as_ref().map(Seal::check_all) {
                None | Some(Ok(())) => {}
                Some(Err(error @ Error::Io { .. })) => return Err(error.into()),
                Some(Err(error)) => {
                    again(&plan.tasks[need], &error.to_string());
                    finished[need] = None;
                }
            }
        }
    }
    for seal in finished.iter().flatten() {
        sweep(seal.folder())?;
    }
    Ok((finished.iter().map(Option::is_some).collect(), lines))
}

/// The seal of a finished task that another task needs; all files are checked.
///
/// # Errors
///
/// Files that do not match their seal: they have changed during the run.
pub(super) fn needed(runs: &Path, id: &str) -> Result<Seal> {
    let dir = runs.join(id);
    let seal = Seal::open(&dir, id).map_err(changed)?;
    if let Some(name) = seal
        .names()
        .find(|name| is_large(name) && !dir.join(name).exists())
    {
        bail!(
            "{}: it was removed; remove the folder {} to have the task run again",
            dir.join(name).display(),
            dir.display()
        );
    }
    seal.check_all().map_err(changed)?;
    Ok(seal)
}

/// Names of the files of weights and hidden states that differ between the latest run of a task and its earlier run, whose
/// seal is `earlier`.
///
/// # Errors
///
/// A seal that cannot be read.
pub(super) fn changes(earlier: &Seal, dir: &Path, id: &str) -> Result<Vec<String>> {
    let now = Seal::open(dir, id)?;
    let names = earlier.names().filter(|name| {
        let holds_numbers = name.ends_with(".bin") || name.ends_with(".safetensors");
        holds_numbers && earlier.proof_of(name) != now.proof_of(name)
    });
    Ok(names.map(String::from).collect())
}

/// Adds how to continue to an error of a file that has changed since the start of the run.
pub(super) fn changed(error: Error) -> anyhow::Error {
    match error {
        Error::Io { .. } => error.into(),
        error => anyhow!("{error}; run the same command to repeat the task"),
    }
}

/// Checked results, by folder.
static RESULTS: Mutex<BTreeMap<PathBuf, Vec<u8>>> = Mutex::new(BTreeMap::new());

fn remember(dir: PathBuf, result: Vec<u8>) {
    let mut results = RESULTS.lock().unwrap_or_else(PoisonError::into_inner);
    results.insert(dir, result);
}

/// The result of a task, if it is finished.
///
/// # Errors
///
/// A result that cannot be read.
pub(crate) fn result<T: DeserializeOwned>(runs: &Path, id: &str) -> Result<Option<T>> {
    let dir = runs.join(id);
    let known = {
        let results = RESULTS.lock().unwrap_or_else(PoisonError::into_inner);
        results.get(&dir).cloned()
    };
    let text = match known {
        Some(text) => text,
        None => {
            let Standing::Finished(seal) = Standing::of(&dir, id)? else {
                return Ok(None);
            };
            let text = seal.read(RESULT)?;
            remember(dir.clone(), text.clone());
            text
        }
    };
    let result = serde_json::from_slice(&text);
    Ok(Some(
        result.with_context(|| dir.join(RESULT).display().to_string())?,
    ))
}

/// The folder of a running task; sealed when the task finishes.
pub(super) struct Folder<'a> {
    pub dir: &'a Path,
    /// To add files to.
    pub seal: Seal,
}

impl<'a> Folder<'a> {
    /// Creates the folder and writes the task's file.
    pub(super) fn begin(dir: &'a Path, id: &str, task: &[u8]) -> Result<Self> {
        files::create_folder(dir).with_context(|| dir.display().to_string())?;
        let mut seal = Seal::new(dir, id);
        seal.write(task::FILE, task)?;
        Ok(Self { dir, seal })
    }

    /// Writes the result; from now on the task is finished.
    pub(super) fn finish(mut self, result: &impl Serialize) -> Result<()> {
        let text = json(result)?;
        self.seal.write(RESULT, &text)?;
        self.seal.close()?;
        remember(self.dir.into(), text);
        Ok(())
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::plan::Who;
    use crate::spec::Spec;
    use crate::task::Work;

    /// A small plan with all tasks finished; trainings have a student.
    fn finished() -> (tempfile::TempDir, Plan) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut spec = Spec::load(&root, "table1", "tiny").unwrap();
        spec.experiment.rows.truncate(1);
        spec.experiment.seeds.truncate(1);
        spec.profile.training_seeds = Some(vec![1]);
        spec.resolve().unwrap();
        let plan = Plan::new(&root, &spec, &Default::default()).unwrap();
        let runs = tempfile::tempdir().unwrap();
        for task in &plan.tasks {
            let dir = runs.path().join(&task.id);
            let mut folder = Folder::begin(&dir, &task.id, task.id.as_bytes()).unwrap();
            if matches!(task.task.work, Work::Train(_)) {
                fs::create_dir(dir.join("student")).unwrap();
                let seal = &mut folder.seal;
                seal.write("student/model.safetensors", b"weights").unwrap();
            }
            folder.finish(&json!({ "of": task.id })).unwrap();
        }
        (runs, plan)
    }

    fn of(plan: &Plan, work: impl Fn(&Work) -> bool) -> usize {
        plan.tasks.iter().position(|c| work(&c.task.work)).unwrap()
    }

    /// Open tasks, and the messages.
    fn open(runs: &Path, plan: &Plan) -> (Vec<usize>, String) {
        let (done, lines) = survey(runs, plan).unwrap();
        let open = (0..done.len()).filter(|&i| !done[i]).collect();
        (open, lines.join("\n"))
    }

    #[test]
    fn a_finished_task_with_a_damaged_file_is_done_again_and_this_is_said() {
        let (runs, plan) = finished();
        let runs = runs.path();
        assert_eq!(open(runs, &plan), (vec![], String::new()));
        let index = of(&plan, |w| matches!(w, Work::Evaluate(_)));
        let (task, other) = (&plan.tasks[index].id, &plan.tasks[index + 1].id);
        for name in [RESULT, task::FILE, "seal.json"] {
            let path = runs.join(task).join(name);
            let content = fs::read(&path).unwrap();
            let foreign = fs::read(runs.join(other).join(name)).unwrap();
            let mut flipped = content.clone();
            flipped[content.len() / 2] ^= 1;
            for changed in [
                Some(flipped),
                Some(content[1..].into()),
                Some(vec![]),
                Some(foreign),
                None,
            ] {
                match changed {
                    Some(changed) => fs::write(&path, changed).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                let (open, said) = open(runs, &plan);
                assert_eq!(open, [index], "{name}");
                assert!(said.contains("runs again") && said.contains(name), "{said}");
            }
            fs::write(&path, content).unwrap();
        }
        // A whole folder of another task.
        fs::rename(runs.join(task), runs.join("aside")).unwrap();
        fs::rename(runs.join(other), runs.join(task)).unwrap();
        let (open, said) = open(runs, &plan);
        assert_eq!(open, [index, index + 1]);
        assert!(said.contains(&format!("belongs to {other}")), "{said}");
    }

    #[test]
    fn weights_are_checked_where_a_task_that_is_still_to_run_needs_them() {
        let (runs, plan) = finished();
        let runs = runs.path();
        let teacher = plan
            .tasks
            .iter()
            .position(|t| t.of == [Who::Teacher])
            .unwrap();
        let weights = runs.join(&plan.tasks[teacher].id);
        let weights = weights.join("student/model.safetensors");
        fs::write(&weights, "WEIGHTS").unwrap();
        assert!(open(runs, &plan).0.is_empty());
        let answers = plan
            .tasks
            .iter()
            .position(|c| c.needs == [teacher] && matches!(c.task.work, Work::Evaluate(_)));
        let answers = answers.unwrap();
        fs::remove_dir_all(runs.join(&plan.tasks[answers].id)).unwrap();
        let (todo, said) = open(runs, &plan);
        assert_eq!(todo, [teacher, answers]);
        assert!(said.contains("model.safetensors"), "{said}");
        let error = needed(runs, &plan.tasks[teacher].id).unwrap_err();
        assert!(format!("{error:#}").contains("model.safetensors"));
        // The length is always checked.
        fs::write(&weights, "").unwrap();
        assert_eq!(open(runs, &plan).0, [teacher, answers]);
        // Weights that were removed are made again, where they are needed.
        fs::remove_file(&weights).unwrap();
        let (todo, said) = open(runs, &plan);
        assert_eq!(todo, [teacher, answers]);
        assert!(said.contains("it is missing"), "{said}");
        let error = needed(runs, &plan.tasks[teacher].id).unwrap_err();
        assert!(format!("{error:#}").contains("it was removed; remove the folder"));
    }

    #[test]
    fn without_its_weights_a_task_that_nothing_needs_is_finished() {
        let (runs, plan) = finished();
        let runs = runs.path();
        for planned in plan
            .works()
            .filter_map(|(p, w)| matches!(w, Work::Train(_)).then_some(p))
        {
            fs::remove_dir_all(runs.join(&planned.id).join("student")).unwrap();
        }
        assert_eq!(open(runs, &plan), (vec![], String::new()));
    }

    #[test]
    fn weights_that_come_out_different_the_second_time_are_named() {
        let runs = tempfile::tempdir().unwrap();
        let seal = |weights: &[u8], seconds: f64| {
            let mut folder = Folder::begin(runs.path(), "x", b"{}").unwrap();
            fs::create_dir_all(runs.path().join("student")).unwrap();
            folder
                .seal
                .write("student/model.safetensors", weights)
                .unwrap();
            folder.finish(&json!({ "seconds": seconds })).unwrap();
        };
        assert!(Seal::open(runs.path(), "x").is_err());
        seal(b"weights", 1.0);
        let before = Seal::open(runs.path(), "x").unwrap();
        seal(b"weights", 2.0);
        assert!(changes(&before, runs.path(), "x").unwrap().is_empty());
        seal(b"others", 2.0);
        assert_eq!(
            changes(&before, runs.path(), "x").unwrap(),
            ["student/model.safetensors"]
        );
    }

    #[test]
    fn a_result_is_read_once_and_what_a_kill_has_left_is_swept() {
        let (runs, plan) = finished();
        let runs = runs.path();
        let (trained, evaluated) = (&plan.tasks[0], plan.tasks.last().unwrap());
        for name in ["state-000000007", ".tmp-99999999-state-000000003", SCRATCH] {
            fs::create_dir(runs.join(&trained.id).join(name)).unwrap();
            fs::write(runs.join(&trained.id).join(name).join("x"), "").unwrap();
        }
        fs::write(runs.join(".tmp-99999999-x"), "").unwrap();
        fs::write(runs.join(&evaluated.id).join("answers.jsonl.sums"), "").unwrap();
        assert!(open(runs, &plan).0.is_empty());
        let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!(names(&runs.join(&trained.id)), 4);
        assert_eq!(names(&runs.join(&evaluated.id)), 3);
        assert_eq!(names(runs), plan.tasks.len());

        let read = |task: &Planned| result::<Value>(runs, &task.id).unwrap();
        assert_eq!(read(evaluated).unwrap()["of"], evaluated.id.as_str());
        fs::remove_dir_all(runs.join(&evaluated.id)).unwrap();
        assert!(read(evaluated).is_some());
        assert!(result::<Value>(runs, "unknown").unwrap().is_none());
    }
}
