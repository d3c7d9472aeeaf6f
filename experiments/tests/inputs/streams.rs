//! Folders, pipes and standard streams.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::root::{Root, text};

#[test]
fn folders_that_cannot_be_written_are_told_first() {
    for folder in ["figures", "results/ok", "runs"] {
        let root = Root::new();
        root.write(folder, "a file");
        for verb in ["plan", "run"] {
            let output = root.abkd(verb);
            let said = text(&output);
            assert!(!output.status.success(), "{said}");
            assert!(said.contains("a folder belongs there"), "{said}");
        }
        assert!(root.path("runs").is_file() || !root.path("runs").exists());
    }
}

#[test]
fn jobs_are_bounded() {
    let root = Root::new();
    let run = |words: &[&str]| {
        let output = root.command("run").args(words).output().unwrap();
        (output.status.code(), text(&output))
    };
    for jobs in ["0", "18446744073709551615", "100000"] {
        for words in [&["--jobs", jobs][..], &["--jobs", jobs, "--dry-run"]] {
            let (code, said) = run(words);
            assert!(
                code == Some(1) && said.contains("--jobs: jobs = "),
                "{said}"
            );
        }
    }
    let (code, said) = run(&["--jobs", "3", "--dry-run"]);
    assert!(
        code == Some(0) && said.contains("3 tasks run in parallel"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn what_is_no_plain_file_is_refused_and_not_waited_for() {
    let root = Root::new();
    let fifo = |name: &str| {
        let _ = fs::remove_file(root.path(name));
        let made = Command::new("mkfifo")
            .arg(root.path(name))
            .status()
            .unwrap();
        assert!(made.success());
    };
    let kept: Vec<(&str, Vec<u8>)> = [
        "experiments/small.toml",
        "experiments/profiles/ok.toml",
        "results/paper/table1.csv",
        "weights/t/config.json",
        "weights/t/tokenizer.json",
        "weights/s/model.safetensors",
    ]
    .into_iter()
    .map(|name| (name, fs::read(root.path(name)).unwrap()))
    .collect();
    for (name, bytes) in kept {
        fifo(name);
        let mut child = root
            .command("plan")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                child.kill().unwrap();
                panic!("{name}: it waits for a pipe");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(1), "{name}");
        let said = text(&child.wait_with_output().unwrap());
        assert!(said.contains("pipe"), "{name}: {said}");
        fs::remove_file(root.path(name)).unwrap();
        fs::write(root.path(name), bytes).unwrap();
    }
    assert!(root.abkd("plan").status.success());
    // a folder in a file's place
    fs::remove_file(root.path("experiments/profiles/ok.toml")).unwrap();
    fs::create_dir(root.path("experiments/profiles/ok.toml")).unwrap();
    root.refuses(&["ok.toml", "this is a folder"]);
}

#[cfg(target_os = "linux")]
#[test]
fn data_that_cannot_be_written_to_stdout_are_an_error() {
    let root = Root::new();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let list = || {
        let mut list = Command::new(env!("CARGO_BIN_EXE_abkd"));
        list.args(["list", "--root"]).arg(root.dir.path());
        list
    };
    let output = list().stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("stdout"), "{}", text(&output));
    let output = root.command("plan").stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let help = Command::new(env!("CARGO_BIN_EXE_abkd"))
        .arg("--help")
        .stdout(full())
        .output()
        .unwrap();
    assert!(!help.status.success());
    // a closed pipe, and a stderr that cannot be written
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = list().stdout(writer).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_pipe_gets_whole_lines_whatever_columns_says() {
    let root = Root::new();
    root.runs();
    let output = root
        .command("compare")
        .env("COLUMNS", "40")
        .output()
        .unwrap();
    let longest = text(&output).lines().map(|l| l.chars().count()).max();
    assert!(longest > Some(100), "{}", text(&output));
}
