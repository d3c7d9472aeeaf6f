//! Folders of a run that are written whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use abkd_host::files;
use abkd_host::seal::Seal;

use crate::Error;

/// Publishes a sealed folder in place of `replaces`; `write` makes its files in a folder of another name.
pub(crate) fn publish(
    target: &Path,
    task: &str,
    replaces: &[PathBuf],
    write: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let partial = files::temporary(target).map_err(Error::io(target))?;
    // Left by a failed attempt.
    files::remove_folder(&partial).map_err(Error::io(&partial))?;
    files::create_folder(&partial).map_err(Error::io(&partial))?;
    write(&partial)?;
    Ok(Seal::publish(&partial, target, task, replaces)?)
}

/// Entries of a run's folder whose names start with `prefix`, sorted; none without a folder.
pub(crate) fn entries(run: &Path, prefix: &str) -> Result<Vec<PathBuf>, Error> {
    if !run.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(run).map_err(Error::io(run))? {
        let entry = entry.map_err(Error::io(run))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
