//! The profile's file: models, data, budget, backend.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use abkd_data::{Columns, Date};
use abkd_models::generate::Decoding;
use abkd_models::{ModelConfig, Precision};
use abkd_training::Settings;
use abkd_training::cache::CacheMode;
use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::blame::culprit;
use super::shape::{bounded, shape};
use super::{Start, TestSet, TextTerm};

/// The scale at which experiments run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name, also of its folders below results and figures.
    pub name: String,
    /// One sentence for `abkd list`.
    pub description: String,
    /// Where the computation happens: `flex`, `tch`, `cuda` or `wgpu`.
    #[serde(default = "defaults::backend")]
    pub backend: String,
    /// Number format of the matrix products: `f32` or `bf16`. Master weights, norms, attention weights and
    /// divergences are f32 either way.
    #[serde(default)]
    pub precision: Precision,
    /// Number of tasks that run in parallel.
    #[serde(default = "defaults::jobs")]
    pub jobs: usize,
    /// Replaces an experiment's seeds.
    pub seeds: Option<Vec<u64>>,
    /// Training seeds of a row: data order, dropout, sampling during training. Each seed trains its own student.
    /// Absent: one training, with the seed of its settings. Teacher and initialised student are always trained once.
    pub training_seeds: Option<Vec<u64>>,
    /// How the teacher's hidden states of the training data are cached for all losses and epochs: `f32`,
    /// `bf16` or `off`.
    #[serde(default)]
    pub teacher_cache: CacheMode,
    /// Share of the divergence in the loss.
    #[serde(default = "defaults::kd_ratio")]
    pub kd_ratio: f64,
    /// Data.
    pub data: DataSpec,
    /// Teacher.
    pub teacher: ModelSpec,
    /// Student.
    pub student: ModelSpec,
    /// Fine-tuning of the teacher, if any.
    pub teacher_sft: Option<Settings>,
    /// Fine-tuning that initialises the student, if any.
    pub student_sft: Option<Settings>,
    /// Distillation.
    pub distill: Settings,
    /// Validation after each epoch.
    pub validation: ValidationSpec,
    /// Decoding of the answers to the test sets.
    pub evaluation: DecodingSpec,
    /// Overrides for a method at this scale, by method id.
    #[serde(default)]
    pub methods: BTreeMap<String, MethodSpec>,
    /// How steps are timed (Table 3).
    #[serde(default)]
    pub timing: TimingSpec,
    /// Test sets in addition to `experiments/datasets.toml`; a set with the same id replaces that file's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub datasets: BTreeMap<String, TestSet>,
    /// How jobs are submitted with `--executor slurm`.
    #[serde(default)]
    pub slurm: SlurmSpec,
    /// Overrides of this file's keys for an experiment that names a pair.
    #[serde(default, skip_serializing)]
    pub pairs: BTreeMap<String, toml::Table>,
}

/// Overrides for a method at a scale.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodSpec {
    /// Settings of the method.
    pub settings: toml::Table,
    /// Settings of the training.
    pub train: toml::Table,
    /// Which student its rows start from.
    pub start: Option<Start>,
    /// Whether its rows have the language-modelling term on plain text.
    pub text: Option<TextTerm>,
}

/// How jobs are submitted to Slurm; absent keys are left to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlurmSpec {
    /// Partition.
    pub partition: Option<String>,
    /// Generic resources of a task, e.g. `gpu:1`.
    pub gres: Option<String>,
    /// Time limit of a task, in sbatch's format. A task that hits the limit resumes when submitted again.
    pub time: Option<String>,
    /// Account.
    pub account: Option<String>,
    /// Memory of a task, e.g. `32G`.
    pub mem: Option<String>,
    /// Cores of a task.
    pub cpus_per_task: Option<usize>,
    /// Tasks of an array that run at a time.
    pub at_once: Option<usize>,
    /// Lines of shell before the task, e.g. `module load cuda`.
    pub setup: Vec<String>,
}

/// How steps are timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimingSpec {
    /// Warm-up updates at the start of each repeat; not timed.
    pub warmup: usize,
    /// Timed updates in each repeat.
    pub steps: usize,
    /// Repeats; the methods alternate, so that a machine that slows down affects all of them.
    pub repeats: usize,
}

impl Default for TimingSpec {
    fn default() -> Self {
        Self {
            warmup: 4,
            steps: 16,
            repeats: 3,
        }
    }
}

/// Where data come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// `embedded` (generated, needs no file) or `folder`.
    pub source: Source,
    /// Folder of the sets; absent: the environment variable `ABKD_DATA`.
    pub path: Option<PathBuf>,
    /// JSONL or Parquet file of the training data, in place of the folder's training set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_file: Option<PathBuf>,
    /// JSONL or Parquet file of the validation data, in place of the folder's validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_file: Option<PathBuf>,
    /// The last N examples of `train_file` are held out as validation data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<usize>,
    /// Column names of `train_file` and `valid_file`, where they differ from the default ones, e.g.
    /// `{ instruction = "question", output = "answer" }`.
    #[serde(default, skip_serializing_if = "Columns::is_default")]
    pub columns: Columns,
    /// Template of the prompts: `paper`, or `chat`, the chat template of the tokenizer.
    #[serde(default, skip_serializing_if = "Template::is_paper")]
    pub template: Template,
    /// The date that a chat template writes into prompts, `YYYY-MM-DD`; only for one that writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<Date>,
    /// `tokenizer.json`; absent: the teacher checkpoint's.
    pub tokenizer: Option<PathBuf>,
    /// Indexed token files (without suffix) of the training data, e.g. `MiniLLM/dolly-processed`, in place
    /// of the folder's training set; encoded with the same tokenizer.
    pub train_tokens: Option<PathBuf>,
    /// Indexed token files (without suffix) of plain text, e.g. OpenWebText: distillation then has a
    /// language-modelling term of weight `lm_coef`.
    pub text: Option<PathBuf>,
    /// Seed of the embedded corpus.
    #[serde(default)]
    pub seed: u64,
    /// Use the first N training examples; the embedded corpus generates N.
    pub train: Option<usize>,
    /// Use the first N validation examples; `[validation] examples` may take fewer.
    pub valid: Option<usize>,
    /// Use the first N examples of each test set.
    pub test: Option<usize>,
    /// A longer prompt is truncated to its first N tokens.
    #[serde(default = "defaults::max_prompt_length")]
    pub max_prompt_length: usize,
    /// A longer sequence is truncated.
    #[serde(default = "defaults::max_length")]
    pub max_length: usize,
}

impl DataSpec {
    /// Maximum tokens of an answer: `max_length` minus `max_prompt_length`.
    pub fn max_new_tokens(&self) -> usize {
        self.max_length - self.max_prompt_length
    }
}

/// Template of the prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// The instruction template of the paper's data
    #[default]
    Paper,
    /// The chat template of the model's tokenizer
    Chat,
}

impl Template {
    /// Whether it is the paper's, the default.
    pub fn is_paper(&self) -> bool {
        *self == Self::Paper
    }
}

/// Source of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The generated corpus.
    Embedded,
    /// JSONL or Parquet files.
    Folder,
}

/// Where a model comes from: `checkpoint`, `layers` or a shape (`gpt2`, `llama`) for fresh weights. A shape
/// beside a checkpoint declares the checkpoint's shape, so that a plan can be made without the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// A Hugging Face folder.
    pub checkpoint: Option<PathBuf>,
    /// Repository on the Hugging Face Hub that `abkd fetch weights` puts into `checkpoint`.
    pub hub: Option<String>,
    /// Revision of `hub`: a branch, tag or commit.
    pub revision: Option<String>,
    /// Layers of the teacher checkpoint that the student is made of (student only).
    pub layers: Option<Layers>,
    /// Shape, as the keys of a GPT-2 `config.json`.
    pub gpt2: Option<toml::Table>,
    /// Shape, as the keys of a LLaMA `config.json`.
    pub llama: Option<toml::Table>,
    /// Seed of fresh weights.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Number of tokens whose rows of embedding and head are kept; absent: all. It follows from the tokenizer, and no file sets
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<usize>,
}

/// Some layers of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// This many layers, evenly spaced, first and last included.
    Count(usize),
    /// These layers, counted from 0, ascending.
    These(Vec<usize>),
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::These(layers) => write!(f, "{layers:?}"),
        }
    }
}

impl Layers {
    /// Whether there is at least one layer, and the indices ascend strictly.
    fn are_some(&self) -> bool {
        let Self::These(layers) = self else {
            return self.count() > 0;
        };
        !layers.is_empty() && layers.is_sorted_by(|a, b| a < b)
    }

    /// Minimum number of layers of the whole model.
    pub fn needs(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::These(layers) => layers.last().map_or(0, |last| last.saturating_add(1)),
        }
    }

    /// Number of layers.
    pub fn count(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::These(layers) => layers.len(),
        }
    }
}

impl ModelSpec {
    /// The shape without the rows beyond the vocabulary that is kept.
    pub(crate) fn cut(&self, shape: ModelConfig) -> ModelConfig {
        match self.vocabulary {
            Some(tokens) => shape.with_vocabulary(tokens),
            None => shape,
        }
    }

    /// The shape of a model with fresh weights; `None` for other sources.
    ///
    /// # Errors
    ///
    /// A key that the architecture does not have, or an unsupported value.
    pub fn fresh(&self) -> Result<Option<ModelConfig>> {
        if self.checkpoint.is_some() {
            return Ok(None);
        }
        self.declared()
    }

    /// The shape that the file declares, if any.
    ///
    /// # Errors
    ///
    /// A key that the architecture does not have, or an unsupported value.
    pub fn declared(&self) -> Result<Option<ModelConfig>> {
        self.section().map_or(Ok(None), |(model_type, table)| {
            Ok(Some(self.cut(shape(model_type, table)?)))
        })
    }

    /// The section of the shape, if there is one.
    fn section(&self) -> Option<(&'static str, &toml::Table)> {
        match (&self.gpt2, &self.llama) {
            (Some(table), None) => Some(("gpt2", table)),
            (None, Some(table)) => Some(("llama", table)),
            _ => None,
        }
    }

    /// Whether this is a language model before any training here: neither fresh weights nor a selection of layers.
    pub fn is_pretrained(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Checks the section; an error is the path of keys to the wrong value, and a message.
    pub(super) fn check(&self, who: &str) -> Result<(), (Vec<String>, String)> {
        let shapes = usize::from(self.gpt2.is_some()) + usize::from(self.llama.is_some());
        let sources = match (&self.checkpoint, &self.layers) {
            (Some(_), None) => shapes <= 1,
            (None, Some(_)) => shapes == 0,
            (None, None) => shapes == 1,
            (Some(_), Some(_)) => false,
        };
        let refuse = |key: &str, what: &str| Err((vec![key.to_owned()], format!("{key}: {what}")));
        if !sources {
            return Err((
                Vec::new(),
                "it needs exactly one of checkpoint, layers, gpt2, llama; a checkpoint may add its shape as gpt2 or llama".into(),
            ));
        }
        if self.vocabulary.is_some() {
            return refuse("vocabulary", "leave it out: it follows from the tokenizer");
        }
        if self.hub.is_some() && self.checkpoint.is_none() {
            return refuse(
                "hub",
                "it needs checkpoint, the folder that it is fetched into",
            );
        }
        if self.revision.is_some() && self.hub.is_none() {
            return refuse("revision", "it needs hub");
        }
        if who != "student" && self.layers.is_some() {
            return refuse("layers", "the teacher cannot be made of layers");
        }
        if self
            .layers
            .as_ref()
            .is_some_and(|layers| !layers.are_some())
        {
            return refuse(
                "layers",
                "wanted: how many (1 or more), or which ones, counted from 0 and ascending, e.g. [0, 1, 29]",
            );
        }
        let Some((section, table)) = self.section() else {
            return Ok(());
        };
        let wrong = |table: &toml::Table| {
            shape(section, table)
                .and_then(|config| bounded(table, &config))
                .err()
                .map(|error| format!("{error:#}"))
        };
        let Some(message) = wrong(table) else {
            return Ok(());
        };
        let mut keys = vec![section.to_owned()];
        keys.extend(culprit(table, &message, wrong));
        Err((keys, message))
    }
}

/// Validation after each epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSpec {
    /// Use the first N validation examples.
    pub examples: usize,
    /// Sampling seed.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Maximum tokens of an answer.
    pub max_new_tokens: usize,
    /// Rows decoded together.
    #[serde(default = "defaults::decode_batch")]
    pub batch_size: usize,
}

impl ValidationSpec {
    /// Sampling without the n-gram rule, as in the published code's validation.
    pub fn decoding(&self) -> Decoding {
        Decoding {
            max_new_tokens: self.max_new_tokens,
            batch_size: self.batch_size,
            ..Decoding::sampling()
        }
    }
}

/// How answers are decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingSpec {
    /// Whether prompts for test and teacher answers begin with the beginning-of-sequence token, as in the released
    /// OpenLLaMA2 evaluation; training prompts never have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bos: bool,
    /// Maximum tokens of an answer.
    pub max_new_tokens: usize,
    /// Divides the logits; above 0. Greedy decoding is `top_k = 1`.
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
    /// Converts to the type of the models crate.
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
