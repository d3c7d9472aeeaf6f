//! The profile and the experiment of `abkd distill`. A line that comes from an argument names it in a comment, so that an
//! error can name the argument: the files are written only after all checks.

use std::path::{Path, PathBuf};
use std::{fs, io};

use abkd_host::files;
use anyhow::{Context, Result, bail, ensure};
use toml::Value;

use super::distill::Distill;
use super::source::NamedModel;
use super::{MAX_LENGTH, prompt_length};
use crate::spec::{Layers, Template, TomlFile};

/// Maximum number of validation answers per epoch.
const MOST_VALIDATED: usize = 500;
/// Learning rate of the teacher's fine-tuning, as in the paper.
const TEACHER_RATE: f64 = 5e-5;

/// Source of the student.
pub(super) enum Student {
    Checkpoint(NamedModel),
    Layers(Layers),
}

/// Models and data that the arguments name.
pub(super) struct Found {
    pub teacher: NamedModel,
    pub student: Student,
    /// The smaller number of positions of the two models.
    pub positions: usize,
    /// Number of examples held out of the training data.
    pub held_out: Option<usize>,
    /// Number of validation examples.
    pub valid: usize,
    /// Each input's name, and its size and hash.
    pub facts: Vec<(String, String)>,
}

/// The two files of a run.
pub(super) struct RunFiles {
    pub experiment: TomlFile,
    pub profile: TomlFile,
}

/// A value in TOML syntax.
fn toml(value: impl Into<Value>) -> String {
    value.into().to_string()
}

/// A line of a file, with the argument that it comes from.
fn line(key: &str, value: impl Into<Value>, argument: &str) -> String {
    format!("{key} = {}  # {argument}\n", value.into())
}

/// An absolute path.
fn path(path: &Path) -> Result<String> {
    let whole = fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let text = whole.to_str();
    let text = text.with_context(|| format!("{}: its name is not UTF-8", whole.display()))?;
    Ok(text.to_owned())
}

impl RunFiles {
    pub fn of(args: &Distill, found: &Found) -> Result<Self> {
        let file = |name: &str, text: &str| TomlFile::of(&args.out.join(name), text);
        Ok(Self {
            experiment: file("experiment.toml", &experiment(args, found)),
            profile: file("profile.toml", &profile(args, found)?),
        })
    }

    fn both(&self) -> [&TomlFile; 2] {
        [&self.experiment, &self.profile]
    }

    /// A message with `FILE:LINE` replaced by the argument that the line comes from.
    pub fn by_argument(&self, message: &str) -> String {
        let mut message = message.to_owned();
        for file in self.both() {
            // Last lines first: `:1` is a prefix of `:10`.
            let lines: Vec<&str> = file.text().lines().collect();
            for (index, line) in lines.iter().enumerate().rev() {
                if let Some((_, argument)) = line.rsplit_once("  # ") {
                    let place = format!("{}:{}", file.path().display(), index + 1);
                    message = message.replace(&place, argument);
                }
            }
        }
        message
    }

    /// Refuses a folder that holds anything else than this run.
    pub fn check(&self, out: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(out) else {
            ensure!(
                !out.exists(),
                "--out {}: this is no folder that can be read",
                out.display()
            );
            return Ok(());
        };
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        let names = names.with_context(|| format!("--out {}", out.display()))?;
        for file in self.both() {
            if file.path().exists() {
                self.check_same(file)?;
            }
        }
        // The profile is written last: a kill before that leaves only the experiment.
        let begun = |name: &std::ffi::OsString| {
            let name = name.to_string_lossy();
            name == "experiment.toml" || name.starts_with(files::TEMPORARY)
        };
        ensure!(
            self.profile.path().exists() || names.iter().all(begun),
            "--out {}: it is not empty, and it holds no run of `abkd distill`; name a new folder",
            out.display()
        );
        Ok(())
    }

    /// Refuses a file of another run.
    fn check_same(&self, file: &TomlFile) -> Result<()> {
        let path = file.path();
        let there = files::read_text(path).with_context(|| path.display().to_string())?;
        let (old, new): (Vec<_>, Vec<_>) = (there.lines().collect(), file.text().lines().collect());
        let mut lines = 0..old.len().max(new.len());
        let Some(index) = lines.find(|&index| old.get(index) != new.get(index)) else {
            return Ok(());
        };
        let end = &"the end of the file";
        bail!(
            "{}:{}: the folder holds another run: this line is `{}`, and this command would write `{}`; name \
             a new --out, or remove the folder",
            path.display(),
            index + 1,
            old.get(index).unwrap_or(end),
            new.get(index).unwrap_or(end)
        );
    }

    /// Writes both, the profile last: it marks the folder as this run's.
    pub fn write(&self, out: &Path) -> Result<()> {
        files::create_folder(out)
            .and_then(|()| files::sweep(out))
            .with_context(|| out.display().to_string())?;
        for file in self.both() {
            let path: PathBuf = file.path().into();
            if !path.exists() {
                files::write(&path, file.text().as_bytes())
                    .with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
}

fn experiment(args: &Distill, found: &Found) -> String {
    let mut text = String::from("# Written by `abkd distill`.\nname = \"distill\"\n");
    let title = format!("{}, by {}", found.pair(), args.label());
    text += &format!("title = {}\nkind = \"table\"\n", toml(title));
    let sets: Vec<Value> = args.sets().map(|(name, _)| name.into()).collect();
    text += &line("datasets", sets, "--test");
    text += "seeds = [10]\nreferences = true\n\n[[rows]]  # --method, --loss\n";
    text += &line("label", args.label(), "--method");
    text += &line("method", args.method.as_str(), "--method");
    if let Some(divergence) = args.divergence() {
        text += &line("divergence", divergence.id(), "--loss");
        let params = divergence.params().into_iter();
        let params: Vec<String> = params.map(|(k, v)| format!("{k} = {}", toml(v))).collect();
        if !params.is_empty() {
            text += &format!("params = {{ {} }}  # --loss\n", params.join(", "));
        }
    }
    text
}

fn profile(args: &Distill, found: &Found) -> Result<String> {
    let mut text = String::from(
        "# Written by `abkd distill`. The same again, in this folder:\n\
         #   abkd run ./experiment.toml -p ./profile.toml\n",
    );
    for (name, what) in &found.facts {
        // A comment stays one line, whatever the file's name.
        text += &format!("# {}: {}\n", name.escape_debug(), what.escape_debug());
    }
    let description = format!("{}, on {}", found.pair(), name_of(&args.data));
    let length = args.max_length.unwrap_or(MAX_LENGTH.min(found.positions));
    let prompt = prompt_length(length);
    let new = args
        .max_new_tokens
        .unwrap_or(length.saturating_sub(prompt).max(1));
    text += &format!("name = \"own\"\ndescription = {}\n", toml(description));
    text += &line("backend", args.backend.as_str(), "--backend");
    text += &line("precision", args.precision.as_str(), "--precision");
    text += "\n[data]\nsource = \"folder\"\n";
    text += &line("train_file", path(&args.data)?, "--data");
    if let Some(file) = &args.valid {
        text += &line("valid_file", path(file)?, "--valid");
    }
    if let Some(held_out) = found.held_out {
        text += &format!("hold_out = {held_out}  # --data\n");
    }
    let columns = match &args.columns {
        Some(columns) => line("columns", Value::try_from(columns)?, "--columns"),
        None => String::new(),
    };
    text += &columns;
    if args.prompting.template == Template::Chat {
        text += "template = \"chat\"  # --template\n";
    }
    if let Some(date) = args.prompting.date {
        text += &line("date", date.to_string(), "--date");
    }
    text += &format!(
        "max_prompt_length = {prompt}  # --max-length\nmax_length = {}  # --max-length\n",
        length
    );
    for (name, file) in args.sets() {
        let (label, file, last) = match file {
            Some(file) => (name, file, None),
            None => (
                "Validation",
                args.valid.as_ref().unwrap_or(&args.data),
                found.held_out,
            ),
        };
        text += &format!(
            "\n[datasets.{}]  # --test\nlabel = {}\n",
            toml(name),
            toml(label)
        );
        text += &(line("path", path(file)?, "--test") + &columns);
        if let Some(last) = last {
            text += &format!("last = {last}\n");
        }
    }
    text += "\n[teacher]  # TEACHER\n";
    text += &source(&found.teacher, "TEACHER")?;
    text += "\n[student]  # STUDENT\n";
    text += &match &found.student {
        Student::Checkpoint(model) => source(model, "STUDENT")?,
        Student::Layers(layers) => format!("layers = {layers}  # STUDENT\n"),
    };
    let training = |section: &str, flag: &str, epochs: usize, rate: (f64, &str)| {
        let (rate, of) = rate;
        format!(
            "\n[{section}]  # {flag}, --batch\nepochs = {epochs}  # {flag}\nbatch_size = {}  # --batch\nlearning_rate = {}{of}\n",
            args.batch,
            toml(rate)
        )
    };
    if args.teacher_epochs > 0 {
        let rate = (TEACHER_RATE, "");
        text += &training("teacher_sft", "--teacher-epochs", args.teacher_epochs, rate);
        text += "keep_best = \"loss\"\n";
    }
    let rate = (args.lr, "  # --lr");
    if args.init_epochs() > 0 {
        text += &training("student_sft", "--init-epochs", args.init_epochs(), rate);
        text += "keep_best = \"loss\"\n";
    }
    text += &training("distill", "--epochs", args.epochs, rate);
    if let Some(rank) = args.lora {
        // The paper's scale and dropout.
        text += &format!(
            "\n[distill.lora]  # --lora\nr = {rank}  # --lora\nalpha = {}  # --lora\ndropout = 0.1\n",
            rank.saturating_mul(4)
        );
    }
    text += &format!(
        "\n[validation]\nexamples = {}\nmax_new_tokens = {new}  # --max-new-tokens\n\n[evaluation]\nmax_new_tokens = {new}  # --max-new-tokens\n",
        found.valid.min(MOST_VALIDATED),
    );
    Ok(text)
}

fn source(model: &NamedModel, argument: &str) -> Result<String> {
    let mut text = line("checkpoint", path(&model.folder)?, argument);
    if let Some(hub) = &model.hub {
        text += &line("hub", hub.as_str(), argument);
    }
    Ok(text)
}

/// The name of a file without its folders.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into()
}

impl Found {
    /// Teacher and student as text.
    pub fn pair(&self) -> String {
        let student = match &self.student {
            Student::Checkpoint(model) => model.name(),
            Student::Layers(Layers::Count(count)) => format!("{count} of its layers"),
            Student::Layers(Layers::These(layers)) => format!("its layers {layers:?}"),
        };
        format!("{} -> {student}", self.teacher.name())
    }
}
