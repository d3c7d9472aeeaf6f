//! What a run reads: all that is wrong is said before anything runs, by `plan` and `run` alike, and nothing is silently
//! different. Everything is made in a folder of the test's own.

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

/// Everything that is shipped is found right before anything is loaded.
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
