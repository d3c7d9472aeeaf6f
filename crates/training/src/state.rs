//! Checkpoints of a run: everything that the next step depends on, written atomically.
//!
//! `<run>/state-<step>/` holds the student (`student.bpk`), the optimizer (`optimizer.bpk`) and
//! `state.json`. A folder gets its name when it is complete, and older ones go only then, so that a
//! run killed at any moment finds a whole one.

use std::fs;
use std::path::{Path, PathBuf};

use abkd_models::LanguageModel;
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::store::ModuleRecord;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::trainer::ValidationRecord;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Hash of all that the run depends on; another run's checkpoint is refused.
    pub fingerprint: String,
    /// Updates done. Data order, dropout and learning rate are functions of it.
    pub step: usize,
    /// Sum of the losses since the last validation.
    pub loss_sum: f64,
    /// One record for each validation.
    pub curve: Vec<ValidationRecord>,
    /// What the method remembers: replay buffer, rollouts, threshold.
    #[serde(default)]
    pub method: serde_json::Value,
}

const PREFIX: &str = "state-";

/// Writes a checkpoint and removes older ones.
///
/// # Errors
///
/// When the folder cannot be written; the checkpoint before is then still there.
pub fn save(
    run: &Path,
    state: &State,
    student: &LanguageModel,
    optimizer: &ModuleOptimizer,
) -> Result<(), Error> {
    let target = run.join(format!("{PREFIX}{:09}", state.step));
    let partial = run.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
    let fail = |e: burn::store::RecordError| Error::checkpoint(&partial, e);
    student
        .valid()
        .into_record()
        .save(partial.join("student.bpk"))
        .map_err(fail)?;
    optimizer
        .save(partial.join("optimizer.bpk"))
        .map_err(fail)?;
    let json = serde_json::to_vec_pretty(state).map_err(|e| Error::checkpoint(&partial, e))?;
    fs::write(partial.join("state.json"), json).map_err(Error::io(&partial))?;
    if target.exists() {
        fs::remove_dir_all(&target).map_err(Error::io(&target))?;
    }
    fs::rename(&partial, &target).map_err(Error::io(&target))?;
    for old in checkpoints(run)? {
        if old != target {
            fs::remove_dir_all(&old).map_err(Error::io(&old))?;
        }
    }
    Ok(())
}

/// The newest checkpoint's state and folder, if there is one.
///
/// # Errors
///
/// When it belongs to another run or cannot be read.
pub fn find(run: &Path, fingerprint: &str) -> Result<Option<(State, PathBuf)>, Error> {
    let Some(dir) = checkpoints(run)?.pop() else {
        return Ok(None);
    };
    let path = dir.join("state.json");
    let text = fs::read(&path).map_err(Error::io(&path))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e))?;
    if state.fingerprint != fingerprint {
        return Err(Error::checkpoint(
            &dir,
            format!(
                "this checkpoint belongs to another run (its fingerprint is {}, this run's is {fingerprint}); remove the folder to start anew",
                state.fingerprint
            ),
        ));
    }
    Ok(Some((state, dir)))
}

/// Loads student and optimizer from a checkpoint folder. `student` gives shape and device;
/// `optimizer` makes the optimizer for the loaded student.
///
/// # Errors
///
/// When a file is missing, damaged or of another shape.
pub fn load(
    dir: &Path,
    student: LanguageModel,
    optimizer: impl FnOnce(&LanguageModel) -> ModuleOptimizer,
) -> Result<(LanguageModel, ModuleOptimizer), Error> {
    let fail = |e: burn::store::RecordError| {
        Error::checkpoint(dir, format!("{e}; remove the folder to start anew"))
    };
    let record = ModuleRecord::load(dir.join("student.bpk")).map_err(fail)?;
    let student = student.try_load_record(record).map_err(fail)?;
    let optimizer = optimizer(&student)
        .load(dir.join("optimizer.bpk"))
        .map_err(fail)?;
    Ok((student, optimizer))
}

/// Complete checkpoint folders, oldest first.
fn checkpoints(run: &Path) -> Result<Vec<PathBuf>, Error> {
    if !run.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(run).map_err(Error::io(run))? {
        let entry = entry.map_err(Error::io(run))?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
