//! The experiment's file: rows and columns.

use std::collections::BTreeMap;

use abkd_losses::{Divergence, Fidelity};
use abkd_training::methods::Loss;
use abkd_training::{Method, Settings};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Profile;
use super::shape::finite;
use crate::suggest::{nearest, with_nearest_key};

/// A table or figure of the paper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name, also of its results.
    pub name: String,
    /// Heading of its table and pictures.
    pub title: String,
    /// Kind of its results.
    pub kind: Kind,
    /// First column of its CSV, as in the paper's: `loss` or `method`.
    #[serde(default = "row_key")]
    pub row_key: String,
    /// CSV of the paper's numbers in `results/paper`; absent: the rows are ranked among themselves.
    pub paper: Option<String>,
    /// Label of the row that pictures emphasise and whose lead over the best other row is shown; absent: `ABKD`, if a row
    /// has this label.
    pub subject: Option<String>,
    /// The pair of models, where a profile has several (`[pairs.NAME]`).
    pub pair: Option<String>,
    /// Test sets, in the order of the table.
    #[serde(default)]
    pub datasets: Vec<String>,
    /// Sampling seeds of the evaluation.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// Training seeds of each row; absent: the profile's.
    pub training_seeds: Option<Vec<u64>>,
    /// Keys of the profile's `[evaluation]` that this experiment sets, e.g. `top_k = 1`.
    #[serde(default)]
    pub evaluation: toml::Table,
    /// Whether teacher and initialised student are evaluated too.
    #[serde(default)]
    pub references: bool,
    /// Lists of settings by their keys, e.g. `"params.alpha" = [0.2, 0.5]`: each row is run at each point of their product.
    #[serde(default)]
    pub grid: toml::Table,
    /// Rows of the table, or curves of the figure.
    pub rows: Vec<Row>,
}

fn row_key() -> String {
    "loss".into()
}

/// Label of the teacher in tables.
pub const TEACHER: &str = "Teacher";
/// Label of the initialised student in tables.
pub const STUDENT: &str = "Student (SFT)";

/// The subject where none is named: the paper's own method.
const SUBJECT: &str = "ABKD";

impl Experiment {
    /// Labels of the rows.
    pub fn labels(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.label.as_str()).collect()
    }

    /// Label of the row whose lead is shown, if there is one.
    pub fn subject(&self) -> Option<&str> {
        let usual = || self.labels().into_iter().find(|label| *label == SUBJECT);
        self.subject.as_deref().or_else(usual)
    }
}

/// Kind of an experiment's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Scores on the test sets.
    Table,
    /// Validation curves.
    Curve,
    /// Seconds per sample.
    Timing,
}

/// One row: a student trained one way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Label, as in the paper.
    pub label: String,
    /// Id of the method; `abkd list methods` shows them.
    #[serde(default = "kd")]
    pub method: String,
    /// Id of the divergence, where the method has one to choose; `abkd list losses` shows them.
    pub divergence: Option<String>,
    /// Its parameters, e.g. `{ alpha = 0.2, beta = 0.7 }`.
    #[serde(default)]
    pub params: BTreeMap<String, f64>,
    /// `paper` or `official`; the documented default when absent.
    pub fidelity: Option<String>,
    /// Settings of the method.
    #[serde(default)]
    pub settings: toml::Table,
    /// Settings of the training that differ from the profile's `[distill]`.
    #[serde(default)]
    pub train: toml::Table,
    /// Which student the training starts from; absent: as the profile says for the method, else `init`.
    pub start: Option<Start>,
    /// Share of the divergence in the loss on the data, the rest is cross-entropy; absent: the profile's.
    pub kd_ratio: Option<f64>,
    /// Whether the row has the language-modelling term on the profile's plain text; absent: as the profile says for the
    /// method, else `if_given`.
    pub text: Option<TextTerm>,
}

/// The student that a row starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The pretrained student before any fine-tuning. Where that is no language model (fresh weights, or some layers of
    /// the teacher), the initialised student instead.
    Base,
    /// The initialised student: fine-tuned as `[student_sft]` says.
    #[default]
    Init,
}

impl Start {
    /// Returns `base` for [`Start::Base`], `initialised` for [`Start::Init`].
    pub fn of<T>(self, base: T, initialised: T) -> T {
        match self {
            Self::Base => base,
            Self::Init => initialised,
        }
    }
}

/// Whether a row has the language-modelling term on plain text (`[data] text`, e.g. OpenWebText).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextTerm {
    /// Never.
    Off,
    /// Where the profile names a corpus.
    #[default]
    IfGiven,
    /// Always: a profile without a corpus is refused.
    On,
}

fn kd() -> String {
    "kd".into()
}

impl Row {
    /// A row of a method with nothing set.
    pub(super) fn of_method(id: &str) -> Self {
        Self {
            label: id.into(),
            method: id.into(),
            ..Self::default()
        }
    }

    /// The row's method with the profile's settings for it; the row's own settings win.
    ///
    /// # Errors
    ///
    /// An unknown method, divergence, parameter or form; a setting that is unknown or out of range.
    pub(super) fn method(&self, profile: &Profile) -> Result<Method> {
        self.method_settings(profile)
            .with_context(|| format!("row `{}`", self.label))
    }

    pub(super) fn method_settings(&self, profile: &Profile) -> Result<Method> {
        let own = profile.methods.get(&self.method);
        let mut settings = own.map_or_else(toml::Table::new, |own| own.settings.clone());
        settings.extend(self.settings.clone());
        finite(&settings)?;
        let settings = serde_json::to_value(settings)?;
        let loss = self.loss()?;
        Method::from_parts(&self.method, loss, settings).map_err(|error| {
            let ids: Vec<&str> = Method::ids().collect();
            if ids.contains(&self.method.as_str()) {
                return anyhow::anyhow!(with_nearest_key(&error.to_string()));
            }
            let near = nearest(&self.method, ids.iter().copied());
            anyhow::anyhow!("{error}{near}; known: {}", ids.join(", "))
        })
    }

    fn loss(&self) -> Result<Option<Loss>> {
        let Some(id) = &self.divergence else {
            if self.params.is_empty() && self.fidelity.is_none() {
                return Ok(None);
            }
            bail!("`params` and `fidelity` belong to a `divergence`, and there is none");
        };
        let divergence = Divergence::from_parts(id, &self.params)?;
        divergence.validate()?;
        let fidelity = match self.fidelity.as_deref() {
            None => divergence.default_fidelity(),
            Some("paper") => Fidelity::Paper,
            Some("official") => Fidelity::Official,
            Some(other) => bail!(
                "unknown fidelity `{other}`; known: paper, official{}",
                nearest(other, ["paper", "official"])
            ),
        };
        Ok(Some(Loss {
            divergence,
            fidelity,
        }))
    }

    /// The training's settings: the profile's `[distill]`, changed by its `[methods.NAME.train]` and then by the row's
    /// `train`.
    ///
    /// # Errors
    ///
    /// An unknown key or a value out of range.
    pub(super) fn training(&self, profile: &Profile) -> Result<Settings> {
        self.training_settings(profile)
            .with_context(|| format!("row `{}`: train", self.label))
    }

    pub(super) fn training_settings(&self, profile: &Profile) -> Result<Settings> {
        let mut settings = toml::Table::try_from(&profile.distill)?;
        if let Some(own) = profile.methods.get(&self.method) {
            settings.extend(own.train.clone());
        }
        settings.extend(self.train.clone());
        let settings: Settings = settings
            .try_into()
            .map_err(|e: toml::de::Error| anyhow::anyhow!(with_nearest_key(e.message())))?;
        settings.validate()?;
        Ok(settings)
    }

    /// Which student the training starts from, as the files say.
    pub(super) fn asked_start(&self, profile: &Profile) -> Start {
        let own = profile.methods.get(&self.method);
        self.start.or(own.and_then(|m| m.start)).unwrap_or_default()
    }

    /// Which student the training starts from; the initialised one if the base is no language model.
    pub(super) fn start(&self, profile: &Profile) -> Start {
        if profile.student.is_pretrained() {
            self.asked_start(profile)
        } else {
            Start::Init
        }
    }

    /// Whether the row has the language-modelling term on plain text.
    ///
    /// # Errors
    ///
    /// When the row requires the term and the profile has no corpus.
    pub(super) fn with_text(&self, profile: &Profile) -> Result<bool> {
        let own = profile.methods.get(&self.method);
        let given = profile.data.text.is_some();
        match self.text.or(own.and_then(|m| m.text)).unwrap_or_default() {
            TextTerm::Off => Ok(false),
            TextTerm::IfGiven => Ok(given),
            TextTerm::On if given => Ok(true),
            TextTerm::On => bail!(
                "row `{}`: text = \"on\": the profile names no corpus; give [data] text the prefix of token files, or \
                 use \"if_given\" or \"off\"",
                self.label
            ),
        }
    }

    /// Short name for ids of tasks: the method, or the divergence of plain distillation.
    pub(super) fn short(&self) -> &str {
        match (&self.divergence, self.method.as_str()) {
            (Some(divergence), "kd") => divergence,
            (_, method) => method,
        }
    }
}
