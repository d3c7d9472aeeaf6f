//! A small form of the fault campaign (`make faults`, docs/faults.md): a handful of each kind of fault.

use std::path::Path;
use std::process::Command;

#[cfg(target_os = "linux")]
#[test]
fn a_disturbed_run_ends_with_the_same_bits_or_a_remedy() {
    for tool in ["python3", "cc"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("skipped: there is no {tool}");
            return;
        }
    }
    let campaign = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/faults/campaign.py");
    let output = Command::new("python3")
        .arg(campaign)
        .args(["--small", "--minutes", "2", "--abkd"])
        .arg(env!("CARGO_BIN_EXE_abkd"))
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{text}");
    // Each kind was tried.
    for what in [
        "corruption, flip",
        "power cuts: 3",
        "injected errors",
        "killed at a change",
        "signals: ",
        "stderr closed",
        "0 failures",
    ] {
        assert!(text.contains(what), "{what}: {text}");
    }
}
