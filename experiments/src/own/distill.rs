//! `abkd distill`: from the arguments to a run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use abkd_data::{Columns, read_columns};
use abkd_host::files::sha256_of_file;
use abkd_losses::Divergence;
use abkd_models::ModelConfig;
use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use super::files::{Found, RunFiles, Student, name_of};
use super::source::NamedModel;
use super::{MAX_LENGTH, Prompting, columns, named};
use crate::backend::Cards;
use crate::inputs::{Inputs, hash_checkpoint, leave_out_padding};
use crate::message::{describe, say};
use crate::plan::Plan;
use crate::runner::Places;
use crate::spec::{Layers, Spec};
use crate::{backend, preflight};

/// Maximum number of held-out examples if no validation data are given.
const MOST_HELD_OUT: usize = 500;
/// The set that is scored if no test set is given.
const VALIDATION: &str = "validation";

/// Arguments of `abkd distill`.
#[derive(Args)]
pub struct Distill {
    /// The teacher: a Hugging Face folder, or OWNER/NAME on the Hub
    #[arg(value_name = "TEACHER")]
    pub(super) teacher: String,
    /// The student: a folder or a Hub name; `layers:10`, ten evenly spaced layers of the teacher; or `layers:0,1,2,29`,
    /// these layers
    #[arg(value_name = "STUDENT")]
    pub(super) student: String,
    /// Training data: JSONL, or Parquet named .parquet, with instruction, input and output, or prompt and completion, or
    /// messages
    #[arg(long, value_name = "FILE")]
    pub(super) data: PathBuf,
    /// Validation data [default: the last 5% of the training data, at most 500 examples]
    #[arg(long, value_name = "FILE")]
    pub(super) valid: Option<PathBuf>,
    /// A test set; may be given several times. Without any, the validation data are scored
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    pub(super) test: Vec<(String, PathBuf)>,
    /// Names of the columns in all files, e.g. instruction=question,output=answer
    #[arg(long, value_name = "COLUMN=NAME,...", value_parser = columns)]
    pub(super) columns: Option<Columns>,
    #[command(flatten)]
    pub(super) prompting: Prompting,
    /// Loss and its parameters, e.g. ab:0.2,0.7 or ab:alpha=0.2,beta=0.7 or fkld; `abkd list losses` shows them
    /// [default: ab:0.2,0.7, or the method's own]
    #[arg(long, value_name = "LOSS")]
    loss: Option<Divergence>,
    /// Method; `abkd list methods` shows them
    #[arg(long, default_value = "kd")]
    pub(super) method: String,
    /// Epochs of distillation
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) epochs: usize,
    /// Learning rate of the student; the default is the paper's for training all weights, without an adapter
    #[arg(
        long,
        value_name = "RATE",
        default_value = "5e-4",
        allow_negative_numbers = true
    )]
    pub(super) lr: f64,
    /// Examples per update
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) batch: usize,
    /// Epochs of fine-tuning that initialise the student [default: 1 for layers:..., else 0]
    #[arg(long, value_name = "N")]
    init_epochs: Option<usize>,
    /// Epochs of fine-tuning of the teacher, with a learning rate of 5e-5; 0: none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) teacher_epochs: usize,
    /// Train a low-rank adapter of this rank instead of all weights; it is merged into the resulting weights
    #[arg(long, value_name = "RANK")]
    pub(super) lora: Option<usize>,
    /// Maximum tokens of an example, half of them for the prompt [default: 512, or the models' positions if fewer]
    #[arg(long, value_name = "N")]
    pub(super) max_length: Option<usize>,
    /// Maximum tokens of an answer in validation and tests [default: half of --max-length]
    #[arg(long, value_name = "N")]
    pub(super) max_new_tokens: Option<usize>,
    /// Where to compute: flex, tch, tch-cuda, cuda or wgpu
    #[arg(long, value_name = "NAME", default_value = "flex")]
    pub(super) backend: String,
    /// Cards to compute on, e.g. 0, cuda:1 or 0,1; several share the tasks [default: the first]
    #[arg(long, value_name = "CARDS")]
    device: Option<Cards>,
    /// Number format of the matrix products
    #[arg(long, value_name = "NUMBERS", default_value = "f32", value_parser = ["f32", "bf16"])]
    pub(super) precision: String,
    /// Folder of the run: new or empty, or from the same command, which then resumes
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Show what would run and its cost, then stop
    #[arg(long)]
    pub dry_run: bool,
}

/// A run of a user's own pair, checked.
pub struct Own {
    /// The folders: all below the run's folder.
    pub places: Places,
    /// The experiment and the profile.
    pub spec: Spec,
    /// The inputs of the experiment.
    pub inputs: Inputs,
    /// The tasks of the experiment.
    pub plan: Plan,
    pub(super) files: RunFiles,
    pub(super) found: Found,
}

impl Distill {
    /// The divergence, if the method has one to choose.
    pub(super) fn divergence(&self) -> Option<Divergence> {
        let paper = (self.method == "kd").then_some(Divergence::alpha_beta(0.2, 0.7));
        self.loss.or(paper)
    }

    /// Label of the student in tables.
    pub(super) fn label(&self) -> &str {
        match (self.method.as_str(), self.divergence()) {
            ("kd" | "abkd", Some(divergence)) => divergence.label(),
            (method, _) => method,
        }
    }

    /// Epochs of the student's fine-tuning; a selection of another model's layers needs one to be a language model.
    pub(super) fn init_epochs(&self) -> usize {
        let cut = self.student.starts_with(LAYERS);
        self.init_epochs.unwrap_or(usize::from(cut))
    }

    /// The sets that are scored, with their files; the validation set, without a file, if none is given.
    pub(super) fn sets(&self) -> impl Iterator<Item = (&str, Option<&PathBuf>)> {
        let none = self.test.is_empty().then_some((VALIDATION, None));
        let given = self
            .test
            .iter()
            .map(|(name, file)| (name.as_str(), Some(file)));
        given.chain(none)
    }

    /// Checks all that the arguments name and returns the run. Writes only files fetched from the Hub.
    ///
    /// # Errors
    ///
    /// The first wrong input, with the argument that it comes from.
    pub fn prepare(&self) -> Result<Own> {
        let cards = self.device.clone().unwrap_or_default();
        backend::devices(cards.backend(&self.backend), &cards).context("--backend")?;
        let found = self.find()?;
        let files = RunFiles::of(self, &found)?;
        let told = |error: anyhow::Error| anyhow!(files.by_argument(&describe(&error)));
        let places = Places {
            root: self.out.clone(),
            runs: self.out.join("runs"),
            results: self.out.join("results"),
            figures: self.out.join("figures"),
        };
        let of = (files.experiment.clone(), files.profile.clone());
        let mut spec = Spec::of(&self.out, of.0, of.1).map_err(told)?;
        leave_out_padding(&self.out, &mut spec);
        spec.use_cards(cards);
        files.check(&self.out)?;
        let inputs = preflight::load(&places, &spec).map_err(told)?;
        let plan = Plan::new(&places.root, &spec, &inputs.hashes)?;
        Ok(Own {
            places,
            spec,
            inputs,
            plan,
            files,
            found,
        })
    }

    /// Reads the files that the arguments name, data first: data are cheap, models may have to be fetched.
    fn find(&self) -> Result<Found> {
        let mut names = BTreeSet::new();
        for (name, _) in &self.test {
            ensure!(names.insert(name), "--test {name}: it is given twice");
        }
        let columns = self.columns.clone().unwrap_or_default();
        let mut facts = Vec::new();
        let mut count = |argument: &str, file: &Path| -> Result<usize> {
            let examples = read_columns(file, &columns).with_context(|| argument.to_owned())?;
            let hash = sha256_of_file(file).with_context(|| file.display().to_string())?;
            let (name, count) = (name_of(file), examples.len());
            facts.push((name, format!("{count} examples, SHA-256 {hash}")));
            Ok(count)
        };
        let all = count("--data", &self.data)?;
        let valid = self
            .valid
            .as_ref()
            .map(|file| count("--valid", file))
            .transpose()?;
        for (name, file) in &self.test {
            count(&format!("--test {name}"), file)?;
        }
        let held_out = match valid {
            Some(_) => None,
            None => Some(held_out(all).with_context(|| {
                format!("--data {}: it has 1 example, and none is left to validate with; give --valid FILE", self.data.display())
            })?),
        };
        let teacher = NamedModel::find(&self.teacher, "TEACHER")?;
        self.prompting.read(&teacher.folder)?;
        let student = match self.student.strip_prefix(LAYERS) {
            Some(text) => Student::Layers(layers(text)?),
            None => Student::Checkpoint(NamedModel::find(&self.student, "STUDENT")?),
        };
        let mut models = vec![("teacher", &teacher)];
        if let Student::Checkpoint(model) = &student {
            models.push(("student", model));
        }
        let mut positions = MAX_LENGTH;
        for (who, model) in models {
            // Errors of a configuration are left to the check of the whole run.
            if let Ok(config) = ModelConfig::read(&model.folder.join("config.json")) {
                positions = positions.min(config.max_positions());
            }
            let hash = hash_checkpoint(&model.folder)?;
            let what = format!("{}, checkpoint {hash}", model.name());
            facts.push((who.into(), what));
        }
        Ok(Found {
            teacher,
            student,
            positions,
            held_out,
            valid: valid.or(held_out).unwrap_or_default(),
            facts,
        })
    }
}

/// Prefix of a student made of the teacher's layers.
const LAYERS: &str = "layers:";

fn layers(text: &str) -> Result<Layers> {
    let numbers = text.split(',').map(|number| number.trim().parse());
    let numbers: Vec<usize> = numbers.collect::<Result<_, _>>().map_err(|_| {
        anyhow!("STUDENT layers:{text}: wanted: how many, as layers:10, or which ones, as layers:0,1,2,29")
    })?;
    Ok(match numbers[..] {
        [count] => Layers::Count(count),
        _ => Layers::These(numbers),
    })
}

/// Number of held-out examples: 5%, at least 1 and at most 500; `None` for a single example.
fn held_out(all: usize) -> Option<usize> {
    (all > 1).then(|| (all / 20).clamp(1, MOST_HELD_OUT))
}

impl Own {
    /// Writes the run's files into its folder.
    ///
    /// # Errors
    ///
    /// A folder that cannot be written.
    pub fn write(&self) -> Result<()> {
        self.files.write(&self.places.root)
    }

    /// An error whose locations in the two files are replaced by arguments.
    pub fn by_argument(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!(self.files.by_argument(&describe(error)))
    }

    /// Prints the choices made for missing arguments.
    pub fn say_choices(&self, args: &Distill) {
        if let Some(held_out) = self.found.held_out {
            say(&format!(
                "the last {held_out} of {} examples are held out for validation (--valid FILE replaces them)",
                held_out + self.inputs.train_examples
            ));
        }
        if let (Student::Layers(_), None) = (&self.found.student, args.init_epochs) {
            say(
                "a selection of the teacher's layers is not yet a language model: the student is fine-tuned for 1 epoch \
                 first (--init-epochs)",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_is_held_out() {
        let counts = [1, 2, 39, 40, 2000, 1_000_000].map(held_out);
        assert_eq!(
            counts,
            [None, Some(1), Some(1), Some(2), Some(100), Some(500)]
        );
    }

    #[test]
    fn layers_are_a_number_or_a_list() {
        assert_eq!(layers("10").unwrap(), Layers::Count(10));
        assert_eq!(layers("0, 29").unwrap(), Layers::These(vec![0, 29]));
        for bad in ["", "a", "1,", "-1"] {
            assert!(layers(bad).unwrap_err().to_string().contains("layers:10"));
        }
    }
}
