//! `steps.jsonl`: one line an update.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// Writes the lines; the first error is kept for [`close`](Self::close).
pub(super) struct StepLog {
    path: PathBuf,
    done: u64,
    file: Option<File>,
    error: Option<std::io::Error>,
}

impl StepLog {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            done: 0,
            file: None,
            error: None,
        }
    }

    /// The run goes on after this step: lines of later ones are written anew.
    pub(super) fn cut_after(&mut self, step: usize) {
        self.done = step as u64;
    }

    pub(super) fn write(&mut self, line: &Value) {
        if let Err(error) = self.try_write(line) {
            self.error.get_or_insert(error);
        }
    }

    fn try_write(&mut self, line: &Value) -> std::io::Result<()> {
        if self.file.is_none() {
            let kept = if self.done == 0 {
                String::new()
            } else {
                kept_lines(
                    &fs::read_to_string(&self.path).unwrap_or_default(),
                    self.done,
                )
            };
            let mut file = File::create(&self.path)?;
            file.write_all(kept.as_bytes())?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => writeln!(file, "{line}"),
            None => Ok(()),
        }
    }

    /// What the lines have under these keys, summed over all of them: those of attempts before this one, too.
    pub(super) fn close<const N: usize>(self, keys: [&str; N]) -> Result<[u64; N]> {
        if let Some(error) = self.error {
            return Err(error).with_context(|| self.path.display().to_string());
        }
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let mut sums = [0; N];
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += line[key].as_u64().unwrap_or(0);
            }
        }
        Ok(sums)
    }
}

fn kept_lines(text: &str, done: u64) -> String {
    text.lines()
        .filter(|line| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|v| v["step"].as_u64().is_some_and(|s| s <= done))
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resumed_run_repeats_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steps.jsonl");
        let mut log = StepLog::new(&path);
        for step in 1..=3 {
            log.write(&json!({ "step": step, "rows": 10 * step }));
        }
        assert_eq!(log.close(["rows"]).unwrap(), [60]);
        let mut log = StepLog::new(&path);
        log.cut_after(2);
        log.write(&json!({ "step": 3, "again": true, "rows": 7 }));
        assert_eq!(log.close(["rows", "others"]).unwrap(), [37, 0]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(2).unwrap().contains("again"));
    }
}
