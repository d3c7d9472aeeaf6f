//! `steps.jsonl`: one line per update, append-only. A checkpoint holds the file's length and hash, so that a resumed run
//! cuts off later lines and repeats none.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use abkd_host::files;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

/// Length and hash of the log at a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    bytes: u64,
    sha256: String,
}

pub(crate) struct StepLog {
    file: File,
    path: PathBuf,
    bytes: u64,
    hasher: Sha256,
}

impl StepLog {
    /// Continues after the bytes of a checkpoint's `mark`; the default mark starts an empty log.
    ///
    /// # Errors
    ///
    /// When the log does not match `mark`, or cannot be read or written.
    pub fn open(dir: &Path, mark: &Mark) -> Result<Self, Error> {
        let path = dir.join("steps.jsonl");
        let mut file = files::open_to_extend(&path).map_err(Error::io(&path))?;
        let mut kept = Vec::new();
        (&mut file)
            .take(mark.bytes)
            .read_to_end(&mut kept)
            .map_err(Error::io(&path))?;
        if mark.bytes > 0 && files::sha256(&kept) != mark.sha256 {
            return Err(Error::checkpoint(
                path,
                format!(
                    "its first {} bytes differ from those at the checkpoint; remove {} to restart the training",
                    mark.bytes,
                    dir.display()
                ),
            ));
        }
        file.set_len(mark.bytes)
            .and_then(|()| file.seek(SeekFrom::Start(mark.bytes)))
            .map_err(Error::io(&path))?;
        Ok(Self {
            file,
            path,
            bytes: mark.bytes,
            hasher: Sha256::new_with_prefix(kept),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    ///
    /// When the whole line cannot be written.
    pub fn write(&mut self, line: &serde_json::Value) -> Result<(), Error> {
        let line = format!("{line}\n");
        let written = self.file.write_all(line.as_bytes());
        written.map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        self.hasher.update(line);
        Ok(())
    }

    /// Syncs the log to the disk, so that it survives a power cut, and returns its mark.
    ///
    /// # Errors
    ///
    /// When the log cannot be synced.
    pub fn mark(&self) -> Result<Mark, Error> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok(Mark {
            bytes: self.bytes,
            sha256: files::hex(&self.hasher.clone().finalize()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_goes_on_repeats_no_line_and_keeps_no_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steps.jsonl");
        fs::write(&path, "of an attempt that left no checkpoint\n").unwrap();
        let mut log = StepLog::open(dir.path(), &Mark::default()).unwrap();
        log.write(&json!({ "step": 1 })).unwrap();
        log.write(&json!({ "step": 2 })).unwrap();
        let mark = log.mark().unwrap();
        log.write(&json!({ "step": 3 })).unwrap();
        drop(log);
        let torn = fs::read_to_string(&path).unwrap();
        fs::write(&path, &torn[..torn.len() - 3]).unwrap();
        let mut log = StepLog::open(dir.path(), &mark).unwrap();
        log.write(&json!({ "step": 3, "again": true })).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1}\n{\"step\":2}\n{\"again\":true,\"step\":3}\n"
        );
        // A mark can be opened again after later lines, which are cut off.
        assert_eq!(
            StepLog::open(dir.path(), &mark).unwrap().mark().unwrap(),
            mark
        );
    }

    #[test]
    fn a_log_that_was_changed_cut_or_removed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steps.jsonl");
        let mut log = StepLog::open(dir.path(), &Mark::default()).unwrap();
        log.write(&json!({ "step": 1 })).unwrap();
        let mark = log.mark().unwrap();
        let refused = || {
            let error = StepLog::open(dir.path(), &mark).err().unwrap().to_string();
            assert!(
                error.contains("steps.jsonl") && error.contains("remove"),
                "{error}"
            );
        };
        fs::write(&path, "{\"step\":2}\n").unwrap();
        refused();
        fs::write(&path, "{\"step\"").unwrap();
        refused();
        fs::remove_file(&path).unwrap();
        refused();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_line_that_cannot_be_written_is_an_error_at_once() {
        let file = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut log = StepLog {
            file,
            path: "steps.jsonl".into(),
            bytes: 0,
            hasher: Sha256::new(),
        };
        let error = log.write(&json!({ "step": 1 })).unwrap_err().to_string();
        assert!(error.contains("steps.jsonl"), "{error}");
        assert_eq!(log.bytes, 0);
    }
}
