//! Inputs of a run: all mistakes are reported before anything runs, by `plan` and `run` alike, and no input changes
//! silently. Each test creates its own folder.

mod checkpoints;
mod files;
mod own;
mod root;
mod rows;
mod streams;
mod tasks;

use std::path::Path;
use std::process::Command;

use self::root::text;

/// All shipped files pass the checks of `plan`.
#[test]
fn shipped_files_have_no_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (experiment, profile) in [
        ("table1", "tiny"),
        ("table2", "tiny"),
        ("table3", "tiny"),
        ("figure1", "tiny"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_abkd"))
            .args(["plan", experiment, "--profile", profile, "--root"])
            .arg(&root)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}
