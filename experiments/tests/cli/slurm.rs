//! The Slurm executor with a mock scheduler that only records submitted jobs, and `abkd task` on the recorded jobs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::project::{Project, text};

/// Mock Slurm commands that accept jobs and run none: scripts go to `jobs/`, the queue is a file.
struct Scheduler {
    dir: tempfile::TempDir,
}

const SBATCH: &str = r#"#!/bin/bash
if [ "$1" = --version ]; then echo slurm 0; exit; fi
cd "$(dirname "$0")"
n=$(($(ls jobs | wc -l) + 100))
cp "${@: -1}" "jobs/$n.sh"
echo "$@" >> calls
echo "$n;cluster"
"#;

const SQUEUE: &str = r#"#!/bin/bash
if [ "$1" = --version ]; then echo slurm 0; exit; fi
cat "$(dirname "$0")/queue"
"#;

impl Scheduler {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("jobs")).unwrap();
        fs::write(dir.path().join("queue"), "").unwrap();
        for (name, script) in [("sbatch", SBATCH), ("squeue", SQUEUE)] {
            let path = dir.path().join(name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir }
    }

    fn submit(&self, project: &Project, more: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        let mut command = project.command("run");
        command.args(["--executor", "slurm"]).args(more);
        command.env("PATH", format!("{}:{path}", self.dir.path().display()));
        command.output().unwrap()
    }

    /// Job numbers and scripts, in order.
    fn jobs(&self) -> Vec<(u32, PathBuf)> {
        let jobs = fs::read_dir(self.dir.path().join("jobs")).unwrap();
        let mut jobs: Vec<(u32, PathBuf)> = jobs
            .map(|entry| {
                let path = entry.unwrap().path();
                let number = path.file_stem().unwrap().to_str().unwrap().parse();
                (number.unwrap(), path)
            })
            .collect();
        jobs.sort();
        jobs
    }

    fn forget(&self) {
        for (_, path) in self.jobs() {
            fs::remove_file(path).unwrap();
        }
    }
}

/// Runs a job as Slurm does: all elements of an array, one after the other.
fn run(script: &PathBuf) -> Vec<Output> {
    let content = fs::read_to_string(script).unwrap();
    let array = content
        .lines()
        .find_map(|l| l.strip_prefix("#SBATCH --array=0-"));
    let last: usize = array.map_or(0, |last| last.parse().unwrap());
    let element = |index: usize| {
        let mut command = Command::new("bash");
        command
            .arg(script)
            .env("SLURM_ARRAY_TASK_ID", index.to_string());
        command.output().unwrap()
    };
    (0..=last).map(element).collect()
}

#[test]
fn jobs_give_the_bits_of_a_local_run_and_only_what_is_missing_is_submitted() {
    let (local, project, slurm) = (Project::new(), Project::new(), Scheduler::new());
    assert!(local.run().status.success());

    // A dry run shows scripts and writes nothing.
    let output = slurm.submit(&project, &["--dry-run"]);
    assert!(
        output.status.success() && text(&output).contains("#SBATCH --array"),
        "{}",
        text(&output)
    );
    assert!(!project.path("runs").exists() && slurm.jobs().is_empty());

    let output = slurm.submit(&project, &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("21 tasks submitted"),
        "{}",
        text(&output)
    );
    let jobs = slurm.jobs();
    // Queued tasks are not submitted again: only the fold is.
    let known = fs::read_to_string(project.path("runs/micro/slurm/jobs")).unwrap();
    let numbers: Vec<&str> = known.lines().filter_map(|l| l.split(' ').nth(1)).collect();
    assert_eq!(numbers.len(), 21);
    fs::write(slurm.dir.path().join("queue"), numbers.join("\n")).unwrap();
    slurm.forget();
    let output = slurm.submit(&project, &[]);
    assert!(
        text(&output).contains("0 tasks submitted"),
        "{}",
        text(&output)
    );
    assert_eq!(slurm.jobs().len(), 1);
    fs::write(slurm.dir.path().join("queue"), "").unwrap();
    slurm.forget();

    // The queue was lost: all tasks are submitted. Only the teacher's job runs.
    assert!(slurm.submit(&project, &[]).status.success());
    assert_eq!(slurm.jobs().len(), jobs.len());
    let first = run(&slurm.jobs()[0].1);
    assert!(
        first.iter().all(|o| o.status.success()),
        "{}",
        text(&first[0])
    );
    slurm.forget();
    let output = slurm.submit(&project, &[]);
    assert!(
        text(&output).contains(&format!("{} tasks submitted", 21 - first.len())),
        "{}",
        text(&output)
    );
    for (_, script) in slurm.jobs() {
        for output in run(&script) {
            assert!(
                output.status.success(),
                "{}: {}",
                script.display(),
                text(&output)
            );
        }
    }
    assert_eq!(local.outcome(), project.outcome());
    assert!(project.path("figures/micro/small.png").exists());
}

#[test]
fn without_slurm_nothing_is_written() {
    let project = Project::new();
    let mut command = project.command("run");
    command
        .args(["--executor", "slurm"])
        .env("PATH", project.dir.path());
    let output = command.output().unwrap();
    assert!(!output.status.success());
    assert!(
        text(&output).contains("sbatch: not found"),
        "{}",
        text(&output)
    );
    let tasks = fs::read_dir(project.path("runs/micro")).map_or(0, |found| {
        found
            .filter(|e| e.as_ref().unwrap().path().is_dir())
            .count()
    });
    assert_eq!(tasks, 0);
}

#[test]
fn a_task_that_cannot_be_run_says_why() {
    let (project, slurm) = (Project::new(), Scheduler::new());
    assert!(slurm.submit(&project, &[]).status.success());
    let tasks = || {
        fs::read_dir(project.path("runs/micro"))
            .unwrap()
            .map(|e| e.unwrap().path())
    };
    let named = |begin: &str| {
        let is = |path: &PathBuf| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(begin)
        };
        tasks().find(is).unwrap()
    };
    let task = |folder: &PathBuf| {
        let output = Command::new(env!("CARGO_BIN_EXE_abkd"))
            .arg("task")
            .arg(folder)
            .output()
            .unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let (code, said) = task(&named("distill-fkld"));
    assert!(code == 1 && said.contains("needs student-sft"), "{said}");
    let teacher = named("teacher-sft");
    let file = teacher.join("task.json");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        whole.replacen("\"batch_size\": 8", "\"batch_size\": 4", 1),
    )
    .unwrap();
    let (code, said) = task(&teacher);
    assert!(
        code == 1 && said.contains("changed since it was planned"),
        "{said}"
    );
    fs::write(&file, &whole).unwrap();
    // Data that differ from the planned ones.
    fs::write(&file, whole.replacen("\"seed\": 0", "\"seed\": 7", 1)).unwrap();
    let (code, said) = task(&teacher);
    assert!(
        code == 1 && said.contains("the data have changed"),
        "{said}"
    );
    // Limits of the sources that differ from those of the task.
    let limit = "\"max_length\": 192";
    let (task_and_more, rest) = whole.rsplit_once(limit).unwrap();
    assert!(task_and_more.contains(limit));
    let other = format!("{task_and_more}\"max_length\": 190{rest}");
    fs::write(&file, other).unwrap();
    let (code, said) = task(&teacher);
    assert!(
        code == 1 && said.contains("max_length = 192, and now 96 and 190"),
        "{said}"
    );
    fs::write(&file, &whole).unwrap();
    let (code, said) = task(&teacher);
    assert!(code == 0 && said.contains("ROUGE-L"), "{said}");
    let (code, said) = task(&teacher);
    assert!(code == 0 && said.contains("done already"), "{said}");
    let (code, said) = task(&project.path("absent"));
    assert!(code == 1 && said.contains("task.json"), "{said}");
}
