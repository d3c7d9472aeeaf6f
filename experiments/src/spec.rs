//! What an experiment is: a TOML file that names rows and columns, and a profile that names the scale.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use abkd_data::TestSet;
use abkd_losses::{Divergence, Fidelity};
use abkd_models::ModelConfig;
use abkd_models::generate::Decoding;
use abkd_training::{Objective, Settings};
use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::suggest::{nearest, with_nearest_key};

/// A table or figure of the paper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name, also of its results.
    pub name: String,
    /// Heading of its table and pictures.
    pub title: String,
    /// What it yields.
    pub kind: Kind,
    /// First column of its CSV, as in the paper's: `loss` or `method`.
    #[serde(default = "defaults::row_key")]
    pub row_key: String,
    /// CSV of the paper's numbers in `results/paper`.
    pub paper: String,
    /// Test sets, in the order of the table.
    pub datasets: Vec<String>,
    /// Sampling seeds of the evaluation.
    pub seeds: Vec<u64>,
    /// Whether teacher and initialised student are evaluated too.
    #[serde(default)]
    pub references: bool,
    /// Rows of the table, or curves of the figure.
    pub rows: Vec<Row>,
}

/// What an experiment yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Scores on the test sets.
    Table,
    /// Validation curves.
    Curve,
}

/// One row: a student trained one way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Label, as in the paper.
    pub label: String,
    /// Id of the divergence; `abkd list losses` shows them.
    pub divergence: String,
    /// Its parameters, e.g. `{ alpha = 0.2, beta = 0.7 }`.
    #[serde(default)]
    pub params: BTreeMap<String, f64>,
    /// `paper` or `official`; the documented default when absent.
    #[serde(default)]
    pub fidelity: Option<String>,
}

impl Row {
    /// The loss that the row names.
    ///
    /// # Errors
    ///
    /// An unknown divergence, parameter or form; a parameter out of range.
    pub fn objective(&self, kd_ratio: f64) -> Result<Objective> {
        let context = || format!("row `{}`", self.label);
        let divergence =
            Divergence::from_parts(&self.divergence, &self.params).with_context(context)?;
        divergence.validate().with_context(context)?;
        let fidelity = match self.fidelity.as_deref() {
            None => divergence.default_fidelity(),
            Some("paper") => Fidelity::Paper,
            Some("official") => Fidelity::Official,
            Some(other) => bail!(
                "row `{}`: unknown fidelity `{other}`; known: paper, official{}",
                self.label,
                nearest(other, ["paper", "official"])
            ),
        };
        Ok(Objective::Distill {
            divergence,
            fidelity,
            kd_ratio,
        })
    }
}

/// The scale at which experiments run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name, also of its folders below results and figures.
    pub name: String,
    /// One sentence for `abkd list`.
    pub description: String,
    /// Where the computation happens: `flex`.
    #[serde(default = "defaults::backend")]
    pub backend: String,
    /// Cells run side by side.
    #[serde(default = "defaults::jobs")]
    pub jobs: usize,
    /// Replaces an experiment's seeds.
    #[serde(default)]
    pub seeds: Option<Vec<u64>>,
    /// Share of the divergence in the loss.
    #[serde(default = "defaults::kd_ratio")]
    pub kd_ratio: f64,
    /// Data.
    pub data: DataSpec,
    /// Teacher.
    pub teacher: ModelSpec,
    /// Student.
    pub student: ModelSpec,
    /// Fine-tuning of the teacher; absent: it is used as it is.
    #[serde(default)]
    pub teacher_sft: Option<Settings>,
    /// Fine-tuning that initialises the student; absent: it is used as it is.
    #[serde(default)]
    pub student_sft: Option<Settings>,
    /// Distillation.
    pub distill: Settings,
    /// What is measured after each epoch.
    pub validation: ValidationSpec,
    /// How the test sets are answered.
    pub evaluation: DecodingSpec,
}

/// Where data come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// `embedded` (generated, needs no file) or `folder`.
    pub source: Source,
    /// Folder of the sets; absent: the environment variable `ABKD_DATA`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// `tokenizer.json`; absent: the teacher checkpoint's.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Seed of the embedded corpus.
    #[serde(default)]
    pub seed: u64,
    /// Use the first so many training examples.
    #[serde(default)]
    pub train: Option<usize>,
    /// Use the first so many validation examples.
    #[serde(default)]
    pub valid: Option<usize>,
    /// Use the first so many examples of each test set.
    #[serde(default)]
    pub test: Option<usize>,
    /// A longer prompt is cut to its first so many tokens.
    #[serde(default = "defaults::max_prompt_length")]
    pub max_prompt_length: usize,
    /// A longer sequence is cut.
    #[serde(default = "defaults::max_length")]
    pub max_length: usize,
}

/// Source of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The generated corpus.
    Embedded,
    /// JSONL files.
    Folder,
}

/// Where a model comes from: exactly one of the keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// A Hugging Face folder.
    #[serde(default)]
    pub checkpoint: Option<PathBuf>,
    /// So many of the teacher checkpoint's layers, evenly spaced (student only).
    #[serde(default)]
    pub layers: Option<usize>,
    /// Fresh weights in the shape of a GPT-2 `config.json`.
    #[serde(default)]
    pub gpt2: Option<toml::Table>,
    /// Fresh weights in the shape of a LLaMA `config.json`.
    #[serde(default)]
    pub llama: Option<toml::Table>,
    /// Seed of fresh weights.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
}

impl ModelSpec {
    /// The shape of a model with fresh weights; `None` for other sources.
    ///
    /// # Errors
    ///
    /// A key that the architecture does not have, or a value that is not built.
    pub fn fresh(&self, path: &Path) -> Result<Option<ModelConfig>> {
        let (model_type, table) = match (&self.gpt2, &self.llama) {
            (Some(table), None) => ("gpt2", table),
            (None, Some(table)) => ("llama", table),
            _ => return Ok(None),
        };
        let mut json = serde_json::to_value(table)?;
        json["model_type"] = model_type.into();
        let config: ModelConfig = serde_json::from_value(json)
            .with_context(|| format!("{}: section `{model_type}`", path.display()))?;
        let known = serde_json::to_value(&config)?;
        for key in table.keys() {
            let keys = known
                .as_object()
                .into_iter()
                .flat_map(|o| o.keys().map(String::as_str));
            ensure!(
                known.get(key).is_some(),
                "{}: section `{model_type}`: unknown key `{key}`{}",
                path.display(),
                nearest(key, keys)
            );
        }
        config.check(path)?;
        Ok(Some(config))
    }

    fn check(&self, who: &str, path: &Path) -> Result<()> {
        let given = [
            self.checkpoint.is_some(),
            self.layers.is_some(),
            self.gpt2.is_some(),
            self.llama.is_some(),
        ];
        ensure!(
            given.into_iter().filter(|g| *g).count() == 1,
            "{}: [{who}] needs exactly one of checkpoint, layers, gpt2, llama",
            path.display()
        );
        ensure!(
            who == "student" || self.layers.is_none(),
            "{}: [teacher] cannot be made of layers",
            path.display()
        );
        self.fresh(path).map(|_| ())
    }
}

/// What is measured after each epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSpec {
    /// Use the first so many validation examples.
    pub examples: usize,
    /// Seed of the draws.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Rows decoded together.
    #[serde(default = "defaults::decode_batch")]
    pub batch_size: usize,
}

impl ValidationSpec {
    /// Sampling without the n-gram rule, as the published code validates.
    pub fn decoding(&self) -> Decoding {
        Decoding {
            max_new_tokens: self.max_new_tokens,
            batch_size: self.batch_size,
            ..Decoding::sampling()
        }
    }
}

/// How answers are drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingSpec {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Divides the logits.
    #[serde(default = "defaults::one")]
    pub temperature: f64,
    /// 0 is off.
    #[serde(default)]
    pub top_k: usize,
    /// 1 is off.
    #[serde(default = "defaults::one")]
    pub top_p: f64,
    /// 0 is off.
    #[serde(default = "defaults::ngram")]
    pub no_repeat_ngram_size: usize,
    /// Rows decoded together.
    #[serde(default = "defaults::decode_batch")]
    pub batch_size: usize,
}

impl DecodingSpec {
    /// As the models crate wants it.
    pub fn decoding(&self) -> Decoding {
        Decoding {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            batch_size: self.batch_size,
        }
    }
}

mod defaults {
    pub fn row_key() -> String {
        "loss".into()
    }
    pub fn backend() -> String {
        "flex".into()
    }
    pub fn jobs() -> usize {
        1
    }
    pub fn kd_ratio() -> f64 {
        1.0
    }
    pub fn max_prompt_length() -> usize {
        256
    }
    pub fn max_length() -> usize {
        512
    }
    pub fn seed() -> u64 {
        10
    }
    pub fn decode_batch() -> usize {
        32
    }
    pub fn one() -> f64 {
        1.0
    }
    pub fn ngram() -> usize {
        6
    }
}

/// An experiment at a scale, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Spec {
    /// The experiment.
    pub experiment: Experiment,
    /// The profile.
    pub profile: Profile,
}

impl Spec {
    /// Reads and checks `experiments/<experiment>.toml` and `experiments/profiles/<profile>.toml`
    /// below `root`; either may be a path instead.
    ///
    /// # Errors
    ///
    /// An unknown name or key (with the nearest known one), a value out of range, each with its file.
    pub fn load(root: &Path, experiment: &str, profile: &str) -> Result<Self> {
        let folder = root.join("experiments");
        let experiment_path = find(&folder, experiment, "experiment")?;
        let profile_path = find(&folder.join("profiles"), profile, "profile")?;
        let mut spec = Self {
            experiment: read_toml(&experiment_path)?,
            profile: read_toml(&profile_path)?,
        };
        if let Some(seeds) = spec.profile.seeds.clone() {
            spec.experiment.seeds = seeds;
        }
        spec.check_experiment(&experiment_path)?;
        spec.check_profile(&profile_path)?;
        Ok(spec)
    }

    fn check_experiment(&self, path: &Path) -> Result<()> {
        let place = path.display();
        let e = &self.experiment;
        ensure!(!e.rows.is_empty(), "{place}: no [[rows]]");
        ensure!(
            e.kind == Kind::Curve || !e.seeds.is_empty(),
            "{place}: `seeds` is empty; give at least one sampling seed, e.g. seeds = [10]"
        );
        ensure!(
            e.kind == Kind::Curve || !e.datasets.is_empty(),
            "{place}: `datasets` is empty; `abkd list datasets` shows them"
        );
        let mut seen = std::collections::BTreeSet::new();
        for seed in &e.seeds {
            ensure!(seen.insert(seed), "{place}: seed {seed} is given twice");
        }
        for row in &e.rows {
            row.objective(self.profile.kd_ratio)
                .with_context(|| place.to_string())?;
            ensure!(
                e.rows.iter().filter(|r| r.label == row.label).count() == 1,
                "{place}: two rows are labelled `{}`",
                row.label
            );
        }
        self.datasets().with_context(|| place.to_string())?;
        Ok(())
    }

    fn check_profile(&self, path: &Path) -> Result<()> {
        let place = || path.display().to_string();
        let p = &self.profile;
        p.teacher.check("teacher", path)?;
        p.student.check("student", path)?;
        ensure!(
            p.student.layers.is_none() || p.teacher.checkpoint.is_some(),
            "{}: [student] layers needs a teacher checkpoint to take them from",
            place()
        );
        for (name, settings) in [
            ("teacher_sft", &p.teacher_sft),
            ("student_sft", &p.student_sft),
            ("distill", &Some(p.distill.clone())),
        ] {
            if let Some(settings) = settings {
                settings
                    .validate()
                    .with_context(|| format!("{}: [{name}]", place()))?;
            }
        }
        ensure!(
            (0.0..=1.0).contains(&p.kd_ratio),
            "{}: kd_ratio = {}: it must lie between 0 and 1",
            place(),
            p.kd_ratio
        );
        ensure!(p.jobs > 0, "{}: jobs = 0: it must be 1 or more", place());
        crate::backend::device(&p.backend).with_context(place)?;
        ensure!(
            p.data.max_prompt_length < p.data.max_length,
            "{}: [data] max_prompt_length must be below max_length",
            place()
        );
        Ok(())
    }

    /// The test sets of the table.
    ///
    /// # Errors
    ///
    /// An unknown name.
    pub fn datasets(&self) -> Result<Vec<TestSet>> {
        self.experiment
            .datasets
            .iter()
            .map(|id| Ok(id.parse::<TestSet>()?))
            .collect()
    }
}

/// The file that a name or path stands for.
fn find(folder: &Path, name: &str, what: &str) -> Result<PathBuf> {
    if name.ends_with(".toml") {
        return Ok(PathBuf::from(name));
    }
    let path = folder.join(format!("{name}.toml"));
    if path.exists() {
        return Ok(path);
    }
    let known = names(folder)?;
    bail!(
        "unknown {what} `{name}`{}; known: {}",
        nearest(name, known.iter().map(String::as_str)),
        known.join(", ")
    );
}

/// The names of the TOML files in a folder.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!(
            "{}: run abkd in the project's folder, or name it with --root",
            folder.display()
        )
    })?;
    let mut names: Vec<String> = entries
        .filter_map(|e| {
            e.ok()?
                .file_name()
                .to_str()?
                .strip_suffix(".toml")
                .map(str::to_owned)
        })
        // the runner's own manifest lies beside the experiments
        .filter(|name| name != "Cargo")
        .collect();
    names.sort();
    Ok(names)
}

/// Reads a TOML file; an error names file, line and the nearest known key.
///
/// # Errors
///
/// When it cannot be read or does not have the shape of `T`.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |s| text[..s.start].matches('\n').count() + 1);
        anyhow::anyhow!(
            "{}:{line}: {}",
            path.display(),
            with_nearest_key(error.message())
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn every_shipped_file_is_a_valid_spec() {
        let experiments = names(&root().join("experiments")).unwrap();
        let profiles = names(&root().join("experiments/profiles")).unwrap();
        assert!(
            experiments.contains(&"table1".to_owned()) && profiles.contains(&"tiny".to_owned())
        );
        for experiment in &experiments {
            for profile in &profiles {
                Spec::load(&root(), experiment, profile).unwrap();
            }
        }
    }

    fn broken(from: &str, to: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(root().join("experiments/table1.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        let path = dir.path().join("e.toml");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        format!(
            "{:#}",
            Spec::load(&root(), path.to_str().unwrap(), "tiny").unwrap_err()
        )
    }

    #[test]
    fn what_a_user_mistypes_is_named_with_its_place() {
        let error = broken("seeds =", "seedz =");
        assert!(
            error.contains("e.toml:") && error.contains("did you mean `seeds`"),
            "{error}"
        );
        let error = broken("[10, 20, 30, 40, 50]", "[]");
        assert!(error.contains("`seeds` is empty"), "{error}");
        let error = broken("\"fkld\"", "\"fkdl\"");
        assert!(error.contains("fkdl") && error.contains("fkld"), "{error}");
        let error = broken("\"vicuna\"", "\"vicunia\"");
        assert!(
            error.contains("vicunia") && error.contains("vicuna"),
            "{error}"
        );
        let error = broken("alpha = 0.2", "alpha = nan");
        assert!(error.contains("alpha"), "{error}");
        let error = broken("alpha = 0.2", "alfa = 0.2");
        assert!(error.contains("alfa") && error.contains("alpha"), "{error}");
        let error = format!("{:#}", Spec::load(&root(), "table1", "tinny").unwrap_err());
        assert!(error.contains("did you mean `tiny`"), "{error}");
    }
}
