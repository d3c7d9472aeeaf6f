//! The student that a run keeps: the weights of the best validation so far, which are the run's result at its end.
//!
//! `<run>/validation-<n>/` holds the weights of the best validation so far, `<run>/student/` the best of the finished run.
//! The seals of both name the run and the validation.

use std::path::{Path, PathBuf};

use abkd_host::files;
use abkd_host::seal::Seal;

use crate::state::State;
use crate::trainer::{ValidationRecord, best_validation};
use crate::{Error, KeepBest, folders};

const PREFIX: &str = "validation-";

/// The folder in which a finished run leaves its student.
pub fn student_dir(run: &Path) -> PathBuf {
    run.join("student")
}

/// Checks all files of a finished run's student and returns its seal.
///
/// # Errors
///
/// When the student is missing, damaged or not from the curve's best validation.
pub fn student_seal(
    run: &Path,
    fingerprint: &str,
    curve: &[ValidationRecord],
    keep: KeepBest,
) -> Result<Seal, Error> {
    let best = best_validation(curve, keep);
    check(run, &student_dir(run), fingerprint, best)
}

/// Publishes the weights of a validation; `write` writes them into a folder.
pub(crate) fn publish(
    run: &Path,
    fingerprint: &str,
    number: usize,
    write: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let target = validation_dir(run, number);
    folders::publish(&target, &task(fingerprint, number), &[], write)
}

/// Removes weights that a run starting or resuming at `state` must not find: those of later or surpassed validations.
pub(crate) fn sweep(run: &Path, state: &State, keep: KeepBest, steps: usize) -> Result<(), Error> {
    let mut left = surpassed(run, &state.curve, keep)?;
    if state.step < steps {
        left.push(student_dir(run));
    }
    left.iter()
        .try_for_each(|old| files::remove_folder(old).map_err(Error::io(old)))
}

/// Refuses to resume at `state` when the best weights so far are damaged.
pub(crate) fn check_best(
    run: &Path,
    state: &State,
    keep: KeepBest,
    steps: usize,
) -> Result<(), Error> {
    let best = best_validation(&state.curve, keep);
    if best == 0 || (keep == KeepBest::Last && state.step < steps) {
        return Ok(());
    }
    let dir = validation_dir(run, best);
    // A run killed at its end has renamed the folder already.
    let named = state.step == steps && !dir.exists();
    let dir = if named { student_dir(run) } else { dir };
    check(run, &dir, &state.fingerprint, best).map(drop)
}

/// Renames the best validation's folder to `student`.
pub(crate) fn finish(run: &Path, state: &State, keep: KeepBest) -> Result<(), Error> {
    let best = best_validation(&state.curve, keep);
    let (from, target) = (validation_dir(run, best), student_dir(run));
    if from.exists() {
        files::remove_folder(&target).map_err(Error::io(&target))?;
        files::publish(&from, &target, &surpassed(run, &state.curve, keep)?)
            .map_err(Error::io(&target))?;
    }
    student_seal(run, &state.fingerprint, &state.curve, keep).map(drop)
}

/// The weights of all validations but the best.
pub(crate) fn surpassed(
    run: &Path,
    curve: &[ValidationRecord],
    keep: KeepBest,
) -> Result<Vec<PathBuf>, Error> {
    let best = validation_dir(run, best_validation(curve, keep));
    let mut found = folders::entries(run, PREFIX)?;
    found.retain(|dir| *dir != best);
    Ok(found)
}

fn check(run: &Path, dir: &Path, fingerprint: &str, number: usize) -> Result<Seal, Error> {
    let anew = format!(
        "these are the best weights so far; remove {} to restart the training",
        run.display()
    );
    Seal::open(dir, &task(fingerprint, number))
        .and_then(|seal| seal.check_all().map(|()| seal))
        .map_err(|error| Error::untrusted(error, &anew))
}

fn task(fingerprint: &str, number: usize) -> String {
    format!("{fingerprint}, validation {number}")
}

fn validation_dir(run: &Path, number: usize) -> PathBuf {
    run.join(format!("{PREFIX}{number}"))
}
