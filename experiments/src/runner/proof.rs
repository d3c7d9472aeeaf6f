//! Which cells are finished: those whose folder carries the seal of their id and holds what the seal says.
//!
//! Results, answers and the cell's own file are checked at the start of a run, weights and hidden states when a cell that
//! is still to run needs them. A finished cell that is damaged is not finished: it is done again, and this is said. The
//! log of steps is in no seal: nothing reads it once the cell is finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use abkd_host::seal::{Error, Seal};
use abkd_host::{chunks, files};
use abkd_training::trainer::student_dir;
use abkd_training::{cache, state};
use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RESULT, SCRATCH, TASK, answers};
use crate::plan::{Cell, Plan};

/// The seal of a finished cell. Once it was found, its result comes from memory.
pub(super) struct Finished {
    dir: PathBuf,
    seal: Seal,
}

/// How far a cell is.
pub(super) enum Standing {
    Finished(Finished),
    /// Never begun, or begun.
    Open,
    /// Finished once, but this is wrong.
    Damaged(String),
}

impl Standing {
    /// Of the cell `id` in its folder.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, which does not say that it is damaged.
    pub(super) fn of(dir: &Path, id: &str) -> Result<Self> {
        match light(dir, id) {
            Ok(Some(finished)) => Ok(Self::Finished(finished)),
            Ok(None) => Ok(Self::Open),
            Err(Error::Absent { .. }) if !dir.join(RESULT).exists() => Ok(Self::Open),
            Err(error @ Error::Io { .. }) => Err(error.into()),
            Err(error) => Ok(Self::Damaged(error.to_string())),
        }
    }
}

/// Checks all but what is large, and of that the length.
fn light(dir: &Path, id: &str) -> Result<Option<Finished>, Error> {
    let seal = Seal::open(dir, id)?;
    // The teacher's hidden states are sealed before their cell.
    if !seal.holds(RESULT) {
        return Ok(None);
    }
    for name in seal.names() {
        if name.contains('/') || name.ends_with(".bin") {
            seal.check_length(name)?;
        } else {
            seal.check(name)?;
        }
    }
    let dir = dir.into();
    Ok(Some(Finished { dir, seal }))
}

impl Finished {
    /// Checks everything.
    fn check(&self) -> Result<(), Error> {
        self.seal.check_all()
    }

    /// Removes what was needed only until the cell was finished, and a kill has left.
    fn sweep(&self) -> Result<()> {
        let mut left = state::checkpoints(&self.dir)?;
        left.push(self.dir.join(SCRATCH));
        for old in &left {
            files::remove_folder(old).with_context(|| old.display().to_string())?;
        }
        for name in [answers::FILE, cache::ROWS] {
            chunks::forget(&self.dir.join(name))?;
        }
        Ok(())
    }
}

/// Which cells are finished, and a line for each that is to be done again.
///
/// # Errors
///
/// Files that cannot be read or removed.
pub(super) fn survey(runs: &Path, plan: &Plan) -> Result<(Vec<bool>, Vec<String>)> {
    files::sweep(runs).with_context(|| runs.display().to_string())?;
    let mut lines = Vec::new();
    let mut again = |cell: &Cell, why: &str| {
        lines.push(format!("{} is done again: {why}", cell.id));
    };
    let mut finished = Vec::new();
    for cell in &plan.cells {
        let dir = runs.join(&cell.id);
        for folder in [&dir, &student_dir(&dir)] {
            files::sweep(folder).with_context(|| folder.display().to_string())?;
        }
        finished.push(match Standing::of(&dir, &cell.id)? {
            Standing::Finished(finished) => Some(finished),
            Standing::Open => None,
            Standing::Damaged(why) => {
                again(cell, &why);
                None
            }
        });
    }
    // From the last on: what a cell needs comes before it.
    for (index, cell) in plan.cells.iter().enumerate().rev() {
        if finished[index].is_some() {
            continue;
        }
        for &need in &cell.needs {
            match finished[need].as_ref().map(Finished::check) {
                None | Some(Ok(())) => {}
                Some(Err(error @ Error::Io { .. })) => return Err(error.into()),
                Some(Err(error)) => {
                    again(&plan.cells[need], &error.to_string());
                    finished[need] = None;
                }
            }
        }
    }
    for finished in finished.iter().flatten() {
        finished.sweep()?;
    }
    Ok((finished.iter().map(Option::is_some).collect(), lines))
}

/// What a finished cell left for others, checked: their folder.
///
/// # Errors
///
/// Files that are not what was written, which only a change during the run can be.
pub(super) fn needed(runs: &Path, id: &str) -> Result<(PathBuf, Seal)> {
    let dir = runs.join(id);
    let seal = Seal::open(&dir, id).and_then(|seal| seal.check_all().map(|()| seal));
    Ok((dir, seal.map_err(changed)?))
}

/// Tells how to go on where a file has changed since the start of the run.
pub(super) fn changed(error: Error) -> anyhow::Error {
    match error {
        Error::Io { .. } => error.into(),
        error => anyhow!("{error}; the same command does the cell again by itself"),
    }
}

/// Results that were checked, by folder.
static RESULTS: Mutex<BTreeMap<PathBuf, Vec<u8>>> = Mutex::new(BTreeMap::new());

fn remember(dir: PathBuf, result: Vec<u8>) {
    let mut results = RESULTS.lock().unwrap_or_else(PoisonError::into_inner);
    results.insert(dir, result);
}

/// The result of a cell, if it is finished.
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
            let Standing::Finished(finished) = Standing::of(&dir, id)? else {
                return Ok(None);
            };
            let text = finished.seal.read(RESULT)?;
            remember(dir.clone(), text.clone());
            text
        }
    };
    let result = serde_json::from_slice(&text);
    Ok(Some(
        result.with_context(|| dir.join(RESULT).display().to_string())?,
    ))
}

/// A cell at work: what it leaves is sealed at its end.
pub(super) struct Folder<'a> {
    pub dir: &'a Path,
    seal: Seal,
}

impl<'a> Folder<'a> {
    /// Makes the folder and says in it what the cell is.
    pub(super) fn begin(dir: &'a Path, cell: &Cell) -> Result<Self> {
        files::create_folder(dir).with_context(|| dir.display().to_string())?;
        let mut seal = Seal::new(dir, &cell.id);
        seal.write(TASK, &json(&cell.spec)?)?;
        Ok(Self { dir, seal })
    }

    /// The seal, to add files to.
    pub(super) fn seal(&mut self) -> &mut Seal {
        &mut self.seal
    }

    /// Writes the result; from now on the cell is finished.
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
    use crate::plan::{Who, Work};
    use crate::spec::Spec;

    /// A small plan of which all cells are finished; those that train have a student.
    fn finished() -> (tempfile::TempDir, Plan) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut spec = Spec::load(&root, "table1", "tiny").unwrap();
        spec.experiment.rows.truncate(1);
        spec.experiment.seeds.truncate(1);
        spec.profile.training_seeds = Some(vec![1]);
        let plan = Plan::new(&root, &spec, &Default::default()).unwrap();
        let runs = tempfile::tempdir().unwrap();
        for cell in &plan.cells {
            let dir = runs.path().join(&cell.id);
            let mut folder = Folder::begin(&dir, cell).unwrap();
            if matches!(cell.work, Work::Sft { .. } | Work::Distill { .. }) {
                fs::create_dir(dir.join("student")).unwrap();
                let seal = folder.seal();
                seal.write("student/model.safetensors", b"weights").unwrap();
            }
            folder.finish(&json!({ "of": cell.id })).unwrap();
        }
        (runs, plan)
    }

    fn of(plan: &Plan, work: impl Fn(&Work) -> bool) -> usize {
        plan.cells.iter().position(|c| work(&c.work)).unwrap()
    }

    /// Cells that are to be done, and what is said.
    fn open(runs: &Path, plan: &Plan) -> (Vec<usize>, String) {
        let (done, lines) = survey(runs, plan).unwrap();
        let open = (0..done.len()).filter(|&i| !done[i]).collect();
        (open, lines.join("\n"))
    }

    #[test]
    fn a_finished_cell_with_a_damaged_file_is_done_again_and_this_is_said() {
        let (runs, plan) = finished();
        let runs = runs.path();
        assert_eq!(open(runs, &plan), (vec![], String::new()));
        let index = of(&plan, |w| matches!(w, Work::Evaluate { .. }));
        let (cell, other) = (&plan.cells[index].id, &plan.cells[index + 1].id);
        for name in [RESULT, TASK, "seal.json"] {
            let path = runs.join(cell).join(name);
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
                assert!(
                    said.contains("is done again") && said.contains(name),
                    "{said}"
                );
            }
            fs::write(&path, content).unwrap();
        }
        // A whole folder of another cell.
        fs::rename(runs.join(cell), runs.join("aside")).unwrap();
        fs::rename(runs.join(other), runs.join(cell)).unwrap();
        let (open, said) = open(runs, &plan);
        assert_eq!(open, [index, index + 1]);
        assert!(said.contains(&format!("belongs to {other}")), "{said}");
    }

    #[test]
    fn weights_are_checked_where_a_cell_that_is_still_to_run_needs_them() {
        let (runs, plan) = finished();
        let runs = runs.path();
        let teacher = of(&plan, |w| *w == Work::Sft { who: Who::Teacher });
        let weights = runs.join(&plan.cells[teacher].id);
        let weights = weights.join("student/model.safetensors");
        fs::write(&weights, "WEIGHTS").unwrap();
        assert!(open(runs, &plan).0.is_empty());
        let answers = plan
            .cells
            .iter()
            .position(|c| c.needs == [teacher] && matches!(c.work, Work::Evaluate { .. }));
        let answers = answers.unwrap();
        fs::remove_dir_all(runs.join(&plan.cells[answers].id)).unwrap();
        let (todo, said) = open(runs, &plan);
        assert_eq!(todo, [teacher, answers]);
        assert!(said.contains("model.safetensors"), "{said}");
        let error = needed(runs, &plan.cells[teacher].id).unwrap_err();
        assert!(format!("{error:#}").contains("model.safetensors"));
        // A length is checked always.
        fs::write(&weights, "").unwrap();
        assert_eq!(open(runs, &plan).0, [teacher, answers]);
    }

    #[test]
    fn a_result_is_read_once_and_what_a_kill_has_left_is_swept() {
        let (runs, plan) = finished();
        let runs = runs.path();
        let (trained, evaluated) = (&plan.cells[0], plan.cells.last().unwrap());
        for name in ["state-000000007", ".tmp-99999999-state-000000003", SCRATCH] {
            fs::create_dir(runs.join(&trained.id).join(name)).unwrap();
            fs::write(runs.join(&trained.id).join(name).join("x"), "").unwrap();
        }
        let student = student_dir(&runs.join(&trained.id));
        for folder in [runs, &student] {
            fs::write(folder.join(".tmp-99999999-x"), "").unwrap();
        }
        fs::write(runs.join(&evaluated.id).join("answers.jsonl.sums"), "").unwrap();
        assert!(open(runs, &plan).0.is_empty());
        let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!(names(&runs.join(&trained.id)), 4);
        assert_eq!(names(&student), 1);
        assert_eq!(names(&runs.join(&evaluated.id)), 3);
        assert_eq!(names(runs), plan.cells.len());

        let read = |cell: &Cell| result::<Value>(runs, &cell.id).unwrap();
        assert_eq!(read(evaluated).unwrap()["of"], evaluated.id.as_str());
        fs::remove_dir_all(runs.join(&evaluated.id)).unwrap();
        assert!(read(evaluated).is_some());
        assert!(result::<Value>(runs, "unknown").unwrap().is_none());
    }
}
