//! Tasks on a Slurm cluster: job arrays of `abkd task FOLDER`, each after the arrays that it needs, then one job that folds.
//!
//! Tasks with the same needs share an array. A failed task stops only the tasks that need it. Tasks already in the queue
//! are not submitted again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use abkd_host::files;
use anyhow::{Context, Result, bail, ensure};

use crate::plan::{Plan, Planned};
use crate::spec::SlurmSpec;
use crate::task::TaskId;

/// Folder of scripts, logs and job numbers, next to the task folders.
const FOLDER: &str = "slurm";
/// File of the submitted tasks' jobs; each line is `task job`.
const JOBS: &str = "jobs";
/// Maximum tasks of an array: Slurm's default limit (`MaxArraySize`).
const LARGEST: usize = 1000;

/// Parameters of a submission.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Path of the program, valid on every node.
    pub program: PathBuf,
    /// The folder that holds the tasks' folders.
    pub runs: PathBuf,
    /// Name of the experiment, for names of jobs.
    pub experiment: String,
    /// Arguments of the command that folds.
    pub fold: Vec<String>,
    /// Whether scripts are only printed.
    pub dry_run: bool,
}

/// A Slurm cluster and a submission to it.
pub struct Slurm<'a> {
    /// The profile's section.
    pub spec: &'a SlurmSpec,
    /// The submission.
    pub submission: Submission,
}

/// A job array.
struct Array<'a> {
    tasks: Vec<&'a Planned>,
    /// Tasks that must have succeeded.
    needs: Vec<&'a TaskId>,
}

impl Slurm<'_> {
    /// Submits tasks that are neither done nor in the queue; `begin` writes a task's folder. Returns report lines, or the
    /// scripts for a dry run.
    ///
    /// # Errors
    ///
    /// No Slurm on this machine, found before anything is written; an error of Slurm.
    pub fn submit(
        &self,
        plan: &Plan,
        done: &[bool],
        begin: &dyn Fn(&Planned) -> Result<()>,
    ) -> Result<Vec<String>> {
        let dry = self.submission.dry_run;
        if !dry {
            for tool in ["sbatch", "squeue"] {
                command(tool, &["--version".into()])?;
            }
        }
        let folder = self.submission.runs.join(FOLDER);
        let known = fs::read_to_string(folder.join(JOBS)).unwrap_or_default();
        let queue = if dry { BTreeSet::new() } else { queue()? };
        let mut jobs: BTreeMap<TaskId, String> = known
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, job)| queue.contains(*job))
            .map(|(id, job)| (id.to_owned(), job.to_owned()))
            .collect();
        let waiting = jobs.len();
        let open: Vec<&Planned> = plan
            .tasks
            .iter()
            .zip(done)
            .filter(|(planned, done)| !**done && !jobs.contains_key(&planned.id))
            .map(|(planned, _)| planned)
            .collect();
        let arrays = arrays(plan, done, &open);
        if !dry {
            files::create_folder(&folder).with_context(|| folder.display().to_string())?;
            open.iter().try_for_each(|planned| begin(planned))?;
        }
        let mut lines = Vec::new();
        for (number, array) in arrays.iter().enumerate() {
            let script = self.script(&folder, number, array);
            let needs: Vec<&str> = array
                .needs
                .iter()
                .filter_map(|need| jobs.get(*need).map(String::as_str))
                .collect();
            let job = self.one(
                &folder,
                &format!("{number:03}"),
                &script,
                "afterok",
                &needs,
                &mut lines,
            )?;
            let job = job.unwrap_or_else(|| format!("JOB{number:03}"));
            for (index, planned) in array.tasks.iter().enumerate() {
                jobs.insert(planned.id.clone(), format!("{job}_{index}"));
            }
            if !dry {
                save(&folder, &jobs)?;
            }
        }
        let script = self.folding(&folder);
        let all: BTreeSet<&str> = jobs.values().map(String::as_str).collect();
        let of_arrays: BTreeSet<&str> =
            all.iter().filter_map(|job| job.split('_').next()).collect();
        let all: Vec<&str> = of_arrays.into_iter().collect();
        self.one(&folder, "fold", &script, "afterany", &all, &mut lines)?;
        if !dry {
            lines.push(format!(
                "{} tasks submitted in {} job arrays, {waiting} are in the queue already, {} are done; logs are in {}",
                open.len(),
                arrays.len(),
                done.iter().filter(|d| **d).count(),
                folder.display()
            ));
        }
        Ok(lines)
    }

    /// Submits a script after other jobs; returns the job's number, `None` for a dry run.
    fn one(
        &self,
        folder: &Path,
        name: &str,
        script: &str,
        after: &str,
        needs: &[&str],
        lines: &mut Vec<String>,
    ) -> Result<Option<String>> {
        let path = folder.join(format!("{name}.sh"));
        let mut words = vec!["--parsable".to_owned()];
        if !needs.is_empty() {
            words.push(format!("--dependency={after}:{}", needs.join(":")));
        }
        words.push(path.display().to_string());
        if self.submission.dry_run {
            lines.push(format!(
                "# {}\n{script}\n# sbatch {}\n",
                path.display(),
                words.join(" ")
            ));
            return Ok(None);
        }
        files::write(&path, script.as_bytes()).with_context(|| path.display().to_string())?;
        let told = command("sbatch", &words)?;
        let job = told.trim().split(';').next().unwrap_or_default();
        ensure!(
            !job.is_empty() && job.bytes().all(|b| b.is_ascii_digit()),
            "sbatch: `{}` is not a job's number",
            told.trim()
        );
        Ok(Some(job.to_owned()))
    }

    fn header(&self, folder: &Path, name: &str, log: &str) -> String {
        let spec = self.spec;
        let mut text = String::from("#!/bin/bash\n");
        let mut option = |key: &str, value: &str| {
            let _ = writeln!(text, "#SBATCH --{key}={value}");
        };
        option(
            "job-name",
            &format!("abkd-{}-{name}", self.submission.experiment),
        );
        option("output", &log_file(folder, log));
        option("open-mode", "append");
        option("kill-on-invalid-dep", "yes");
        for (key, value) in [
            ("partition", &spec.partition),
            ("gres", &spec.gres),
            ("time", &spec.time),
            ("account", &spec.account),
            ("mem", &spec.mem),
        ] {
            if let Some(value) = value {
                option(key, value);
            }
        }
        if let Some(cpus) = spec.cpus_per_task {
            option("cpus-per-task", &cpus.to_string());
        }
        text
    }

    /// The set-up lines and the command.
    fn body(&self, command: &str) -> String {
        let mut text = String::from("set -euo pipefail\n");
        for line in &self.spec.setup {
            text += line;
            text.push('\n');
        }
        text + command + "\n"
    }

    fn script(&self, folder: &Path, number: usize, array: &Array) -> String {
        let name = format!("{number:03}");
        let mut text = self.header(folder, &name, &format!("{name}-%a.log"));
        let limit = self.spec.at_once.map_or(String::new(), |n| format!("%{n}"));
        let _ = writeln!(text, "#SBATCH --array=0-{}{limit}", array.tasks.len() - 1);
        text += "tasks=(\n";
        for planned in &array.tasks {
            let _ = writeln!(text, "  {}", quoted(&planned.id));
        }
        text += ")\n";
        let runs = quoted(&self.submission.runs.display().to_string());
        let program = quoted(&self.submission.program.display().to_string());
        text + &self.body(&format!(
            "exec {program} task {runs}/\"${{tasks[$SLURM_ARRAY_TASK_ID]}}\""
        ))
    }

    fn folding(&self, folder: &Path) -> String {
        let words = self.submission.fold.iter().map(|word| quoted(word));
        let program = quoted(&self.submission.program.display().to_string());
        let command: Vec<String> = [program].into_iter().chain(words).collect();
        let text = self.header(folder, "fold", "fold.log");
        text + &self.body(&format!("exec {}", command.join(" ")))
    }
}

/// Value of `--output` in a script. In it, sbatch replaces `%` with a letter, ends the line at `#`, and takes quotes and
/// backslashes away.
fn log_file(folder: &Path, log: &str) -> String {
    let folder = folder.display().to_string().replace('%', "%%");
    let path = format!("{folder}/{log}");
    if !path.contains(|c: char| c.is_whitespace() || "#'\"\\".contains(c)) {
        return path;
    }
    format!("\"{}\"", path.replace('\\', r"\\").replace('"', r#"\""#))
}

/// A word quoted for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Groups tasks with the same needs, in the plan's order: each array follows the arrays that it needs.
fn arrays<'a>(plan: &'a Plan, done: &[bool], open: &[&'a Planned]) -> Vec<Array<'a>> {
    let mut arrays: Vec<Array> = Vec::new();
    for &planned in open {
        let needs: Vec<&TaskId> = planned
            .needs
            .iter()
            .filter(|&&need| !done[need])
            .map(|&need| &plan.tasks[need].id)
            .collect();
        let fits = |array: &&mut Array| array.needs == needs && array.tasks.len() < LARGEST;
        match arrays.iter_mut().find(fits) {
            Some(array) => array.tasks.push(planned),
            None => arrays.push(Array {
                tasks: vec![planned],
                needs,
            }),
        }
    }
    arrays
}

/// Writes the job of each task.
fn save(folder: &Path, jobs: &BTreeMap<TaskId, String>) -> Result<()> {
    let lines: String = jobs
        .iter()
        .map(|(id, job)| format!("{id} {job}\n"))
        .collect();
    let path = folder.join(JOBS);
    files::write(&path, lines.as_bytes()).with_context(|| path.display().to_string())
}

/// Numbers of the jobs in the queue, one per array task.
fn queue() -> Result<BTreeSet<String>> {
    let words = ["--noheader", "--array", "--format=%i"].map(String::from);
    let told = command("squeue", &words)?;
    Ok(told.split_whitespace().map(str::to_owned).collect())
}

/// Stdout of a command.
fn command(name: &str, words: &[String]) -> Result<String> {
    let output = match Command::new(name).args(words).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "{name}: not found; --executor slurm needs Slurm's commands, on a machine that submits jobs"
            )
        }
        Err(error) => return Err(error).with_context(|| name.to_owned()),
    };
    ensure!(
        output.status.success(),
        "{name} {}: {}: {}",
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    fn plan() -> Plan {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "table2", "tiny").unwrap();
        Plan::new(&root, &spec, &Default::default()).unwrap()
    }

    fn scripts(spec: &SlurmSpec, plan: &Plan, done: &[bool]) -> String {
        let slurm = Slurm {
            spec,
            submission: Submission {
                program: "/opt/it's/abkd".into(),
                runs: "/shared/my runs/tiny".into(),
                experiment: "table2".into(),
                fold: ["run", "table2", "--executor", "fold"]
                    .map(String::from)
                    .to_vec(),
                dry_run: true,
            },
        };
        let begin = |_: &Planned| bail!("a dry run writes nothing");
        slurm.submit(plan, done, &begin).unwrap().join("\n")
    }

    #[test]
    fn every_task_is_in_one_array_after_those_that_it_needs() {
        let plan = plan();
        let none = vec![false; plan.tasks.len()];
        let open: Vec<&Planned> = plan.tasks.iter().collect();
        let arrays = arrays(&plan, &none, &open);
        let mut seen = BTreeSet::new();
        for array in &arrays {
            assert!(array.needs.iter().all(|need| seen.contains(*need)));
            for planned in &array.tasks {
                assert!(seen.insert(planned.id.clone()), "{}", planned.id);
            }
        }
        assert_eq!(seen.len(), plan.tasks.len());
        assert!(
            arrays.len() < plan.tasks.len() / 5,
            "evaluations of a model share an array"
        );
    }

    #[test]
    fn scripts_hold_the_settings_the_tasks_and_their_dependencies() {
        let plan = plan();
        let mut done = vec![false; plan.tasks.len()];
        let spec = SlurmSpec {
            partition: Some("gpu".into()),
            gres: Some("gpu:1".into()),
            time: Some("04:00:00".into()),
            at_once: Some(8),
            setup: vec!["module load cuda".into()],
            ..SlurmSpec::default()
        };
        let text = scripts(&spec, &plan, &done);
        for part in [
            "#SBATCH --partition=gpu\n",
            "#SBATCH --gres=gpu:1\n",
            "#SBATCH --time=04:00:00\n",
            "#SBATCH --output=\"/shared/my runs/tiny/slurm/000-%a.log\"\n",
            "%8\n",
            "module load cuda\n",
            r"exec '/opt/it'\''s/abkd' task '/shared/my runs/tiny'/",
            "# sbatch --parsable --dependency=afterok:JOB000_0",
            "'run' 'table2' '--executor' 'fold'",
            "--dependency=afterany:JOB000",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        for planned in &plan.tasks {
            assert_eq!(
                text.matches(&format!("'{}'", planned.id)).count(),
                1,
                "{}",
                planned.id
            );
        }
        // A finished task is neither submitted nor waited for.
        done[0] = true;
        let text = scripts(&spec, &plan, &done);
        assert!(!text.contains(&format!("'{}'", plan.tasks[0].id)));
    }

    #[test]
    fn the_path_of_a_log_is_quoted_where_sbatch_would_read_it_otherwise() {
        for (folder, written) in [
            ("/runs/tiny", "/runs/tiny/000-%a.log"),
            ("/50%/a", "/50%%/a/000-%a.log"),
            ("/my runs", "\"/my runs/000-%a.log\""),
            ("/run#1", "\"/run#1/000-%a.log\""),
            ("/it's", "\"/it's/000-%a.log\""),
            (r#"/a"b\c"#, r#""/a\"b\\c/000-%a.log""#),
        ] {
            assert_eq!(log_file(Path::new(folder), "000-%a.log"), written);
        }
    }
}
