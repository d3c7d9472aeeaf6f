//! The distillation methods of the paper's Tables 2 and 3, each a [`Driver`], in one training loop.
//!
//! A method gives the terms of each update: the sequences, and the objective on them. Its state
//! between updates is part of the checkpoint.

mod data;
pub(crate) mod distillm;
mod fixed;
pub(crate) mod gkd;
mod imitkd;
pub(crate) mod minillm;
mod on_policy;
mod opd;
pub(crate) mod replay;
mod seqkd;
mod sft;

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use abkd_data::{Sequence, Tokenizer};
use abkd_losses::{Divergence, Fidelity};
use abkd_models::LanguageModel;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::head::Objective;
use crate::step::Term;
use crate::timing::Phases;
use crate::{Error, Prepared, Settings};

/// A divergence in one of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// The divergence.
    pub divergence: Divergence,
    /// Paper or official form of the divergence.
    pub fidelity: Fidelity,
}

impl Loss {
    /// A divergence in its default form.
    pub fn new(divergence: Divergence) -> Self {
        Self {
            divergence,
            fidelity: divergence.default_fidelity(),
        }
    }

    pub(crate) fn objective(self, kd_ratio: f64) -> Objective {
        Objective::Distill {
            divergence: self.divergence,
            fidelity: self.fidelity,
            kd_ratio,
        }
    }
}

/// A method as listed by `abkd list methods`, and its constructor. A method is a file with an `Entry` and a line in [`ALL`].
pub struct Entry {
    /// Identifier in experiments and profiles.
    pub id: &'static str,
    /// One-line description.
    pub about: &'static str,
    /// Builds the method from a divergence, where a row names one, and its settings (a JSON object).
    build: fn(Option<Loss>, Value) -> Built,
}

/// A method, or the reason why it cannot be built.
type Built = Result<Box<dyn Behaviour>, String>;

/// All methods.
pub const ALL: [&Entry; 9] = [
    &sft::ENTRY,
    &data::KD,
    &seqkd::ENTRY,
    &imitkd::ENTRY,
    &gkd::ENTRY,
    &opd::ENTRY,
    &minillm::ENTRY,
    &distillm::ENTRY,
    &data::ABKD,
];

/// Behaviour of a method. The defaults are for a divergence on the data.
pub trait Behaviour: Debug + Send + Sync {
    /// Identifier, divergence and settings. Methods that train the same way have equal parts, whatever id built them.
    fn parts(&self) -> Parts;

    /// The driver that runs the method; `kd_ratio` is the share of the divergence in the loss on the data.
    fn driver(&self, kd_ratio: f64) -> Box<dyn Driver>;

    /// Checks the method's settings against those of the training; an error says what is wrong.
    fn check_run(&self, _: &Settings) -> Result<(), String> {
        Ok(())
    }

    /// Answers that the method samples during training.
    fn sampled(&self) -> Vec<Sampled> {
        Vec::new()
    }

    /// Limit of tokens of the teacher's answers; inner `None`: what `max_length` leaves after `max_prompt_length`. Outer
    /// `None`: the method does not train on the teacher's answers.
    fn teacher_answers(&self) -> Option<Option<usize>> {
        None
    }

    /// Whether training depends on the validation loss.
    fn follows_validation_loss(&self) -> bool {
        false
    }

    /// Whether the student has dropout in training.
    fn trains_with_dropout(&self) -> bool {
        true
    }

    /// Whether updates need the teacher.
    fn needs_teacher(&self) -> bool {
        true
    }

    /// Whether updates need the teacher's distributions on the unchanged data.
    fn uses_teacher_on_data(&self) -> bool {
        true
    }

    /// Number of batches that go through the models in an update.
    fn passes(&self) -> f64 {
        1.0
    }

    /// The method to use for timing, where it differs: work that recurs after many updates must recur within a short timed
    /// window.
    fn timed(&self, _batch_size: usize) -> Option<Box<dyn Behaviour>> {
        None
    }
}

/// Answers that a method samples during training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Whether the teacher samples instead of the student.
    pub by_teacher: bool,
    /// Mean number of answers per sequence of an update.
    pub share: f64,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    pub longest: Option<usize>,
}

impl Sampled {
    /// Answers of the student.
    fn by_student(share: f64, longest: Option<usize>) -> Self {
        Self {
            by_teacher: false,
            share,
            longest,
        }
    }
}

/// A method with its settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Method(Arc<dyn Behaviour>);

impl std::ops::Deref for Method {
    type Target = dyn Behaviour;
    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Method {
    /// Ids of the methods.
    pub fn ids() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|entry| entry.id)
    }

    /// Fine-tuning on the data.
    pub fn sft() -> Self {
        Self(Arc::new(sft::Sft))
    }

    /// Builds a method from its identifier, an optional divergence and its settings (a JSON object).
    ///
    /// # Errors
    ///
    /// [`Error::Method`]: an unknown identifier; a setting that the method does not have or that is out of
    /// range; a divergence for a method whose loss is fixed.
    pub fn from_parts(id: &str, loss: Option<Loss>, settings: Value) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Method {
            method: id.into(),
            reason,
        };
        let entry = ALL.iter().find(|entry| entry.id == id);
        let entry = entry.ok_or_else(|| refuse("no such method".into()))?;
        let built = (entry.build)(loss, settings).map_err(refuse)?;
        Ok(Self(built.into()))
    }

    /// Whether the loss on the data is a divergence whose share can be chosen; the rest is cross-entropy.
    pub fn takes_kd_ratio(&self) -> bool {
        self.parts().loss.is_some()
    }

    /// Checks the method's settings against those of the training.
    ///
    /// # Errors
    ///
    /// A replay buffer that is smaller than a batch; a comparison with a teacher where there is none.
    pub fn check_run(&self, settings: &Settings) -> Result<(), Error> {
        if settings.masses && !self.needs_teacher() {
            let reason = "the student is compared with its teacher, and this training has none; leave it out";
            return Err(Error::setting("masses", true, reason));
        }
        self.0.check_run(settings).map_err(|reason| Error::Method {
            method: self.parts().id.into(),
            reason,
        })
    }

    /// Refuses a run without a teacher where updates need one.
    pub(crate) fn check_teacher(&self, given: bool) -> Result<(), Error> {
        match given || !self.needs_teacher() {
            true => Ok(()),
            false => Err(Error::Method {
                method: self.parts().id.into(),
                reason: "its updates need a teacher, and this run has none".into(),
            }),
        }
    }

    /// Limit of tokens of the answers that the method or its teacher samples, `default` where its settings have none;
    /// `None` for a method without sampled answers.
    pub fn longest_answer(&self, default: usize) -> Option<usize> {
        let sampled = self.sampled().into_iter().map(|sampled| sampled.longest);
        let all = sampled.chain(self.teacher_answers());
        all.map(|longest| longest.unwrap_or(default)).max()
    }

    /// The method to use for timing.
    pub fn timed(&self, batch_size: usize) -> Self {
        match self.0.timed(batch_size) {
            Some(other) => Self(other.into()),
            None => self.clone(),
        }
    }
}

/// A method in its serialised form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    id: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss: Option<Loss>,
    #[serde(default)]
    settings: Value,
}

impl Parts {
    fn new(id: &'static str, loss: Option<Loss>, settings: &impl Serialize) -> Self {
        Self {
            id: id.into(),
            loss,
            // Settings are numbers and words, which always serialise.
            settings: serde_json::to_value(settings).unwrap_or_default(),
        }
    }
}

impl From<Method> for Parts {
    fn from(method: Method) -> Self {
        method.parts()
    }
}

impl TryFrom<Parts> for Method {
    type Error = Error;
    fn try_from(parts: Parts) -> Result<Self, Error> {
        Self::from_parts(&parts.id, parts.loss, parts.settings)
    }
}

/// Refuses a divergence for a method whose loss is fixed.
fn no_loss(loss: Option<Loss>) -> Result<(), String> {
    match loss {
        Some(_) => Err("its loss is fixed; remove `divergence` and `params`".into()),
        None => Ok(()),
    }
}

fn parse<T: serde::de::DeserializeOwned>(settings: Value) -> Result<T, String> {
    serde_json::from_value(settings).map_err(|e| format!("settings: {e}"))
}

fn check_share(key: &str, value: f64) -> Result<(), String> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key} = {value}: it must lie between 0 and 1")),
    }
}

fn check_not_negative(key: &str, value: f64) -> Result<(), String> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(format!("{key} = {value}: it must be 0 or more")),
    }
}

/// Inputs of the next update.
pub struct Moment<'a> {
    /// Updates done so far.
    pub step: usize,
    /// Updates of the whole run.
    pub steps: usize,
    /// Settings of the run.
    pub settings: &'a Settings,
    /// The student in training; sample from its `valid()`.
    pub student: &'a LanguageModel,
    /// The teacher.
    pub teacher: Option<&'a LanguageModel>,
    /// All training sequences.
    pub sequences: &'a [Sequence],
    /// Tokenizer of student and teacher.
    pub tokenizer: &'a Tokenizer,
    /// Limit of tokens of an answer unless the method sets its own.
    pub max_new_tokens: usize,
    /// Times of the phases, to add to.
    pub phases: &'a mut Phases,
}

/// A running method and its state.
pub trait Driver {
    /// The terms of the next update; `data` is the next batch of the epoch.
    ///
    /// # Errors
    ///
    /// When sampling fails.
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error>;

    /// Whether [`validated`](Self::validated) must be called once before the first update.
    fn wants_first_validation(&self) -> bool {
        false
    }

    /// Objective and weight of the term on plain text, where the run has some; `None`: no such term.
    fn on_text(&self, settings: &Settings) -> Option<(Objective, f64)> {
        Some((Objective::CrossEntropy, settings.lm_coef))
    }

    /// Receives the validation loss: before the first update if wanted, and at every validation.
    fn validated(&mut self, _loss: f64) {}

    /// State for a checkpoint.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Restores the state that [`state`](Self::state) returned.
    ///
    /// # Errors
    ///
    /// A state of another method or version.
    fn restore(&mut self, state: serde_json::Value) -> Result<(), serde_json::Error> {
        serde_json::from_value(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::Phase;

    #[test]
    fn every_id_builds_with_defaults() {
        for id in Method::ids() {
            Method::from_parts(id, None, serde_json::json!({})).unwrap();
        }
    }

    #[test]
    fn what_a_method_does_not_have_is_refused_by_name() {
        let error = |id, loss, settings| {
            Method::from_parts(id, loss, settings)
                .unwrap_err()
                .to_string()
        };
        let text = error("gkd", None, serde_json::json!({ "lamda": 0.5 }));
        assert!(text.contains("gkd") && text.contains("lamda") && text.contains("`lambda`"));
        let text = error("gkd", None, serde_json::json!({ "lambda": 1.5 }));
        assert!(text.contains("lambda"), "{text}");
        let text = error("sft", None, serde_json::json!({ "beta": 1 }));
        assert!(text.contains("beta"), "{text}");
        let loss = Some(Loss::new(Divergence::forward_kl()));
        assert!(error("minillm", loss, serde_json::json!({})).contains("divergence"));
        assert!(error("kdd", None, serde_json::json!({})).contains("kdd"));
    }

    #[test]
    fn a_setting_changes_what_files_hold_and_another_name_does_not() {
        let identity = |id, settings| {
            let method = Method::from_parts(id, None, settings).unwrap();
            serde_json::to_string(&method).unwrap()
        };
        for id in Method::ids() {
            let text = identity(id, serde_json::json!({}));
            let again: Method = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), text, "{id}");
        }
        let paper = Divergence::alpha_beta(0.2, 0.7);
        let kd = Method::from_parts("kd", Some(Loss::new(paper)), serde_json::json!({}));
        assert_eq!(
            serde_json::to_string(&kd.unwrap()).unwrap(),
            identity("abkd", serde_json::json!({}))
        );
        assert_ne!(
            identity("gkd", serde_json::json!({ "beta": 0.5 })),
            identity("gkd", serde_json::json!({}))
        );
        for (id, changed) in [
            ("gkd", serde_json::json!({ "answers": "fresh" })),
            ("gkd", serde_json::json!({ "capacity": 4000 })),
            ("minillm", serde_json::json!({ "reward_scaling": 1.0 })),
            ("minillm", serde_json::json!({ "whitening": "masked" })),
            ("minillm", serde_json::json!({ "data_term": "data" })),
            ("minillm", serde_json::json!({ "dropout": true })),
            (
                "distillm",
                serde_json::json!({ "replay_ratio": "constant" }),
            ),
        ] {
            let plain = identity(id, serde_json::json!({}));
            assert_ne!(identity(id, changed.clone()), plain, "{id} {changed}");
        }
    }

    #[test]
    fn distillms_divergence_is_the_rows() {
        let skew = Divergence::skew_forward_kl(0.1);
        let method = Method::from_parts("distillm", Some(Loss::new(skew)), serde_json::json!({}));
        assert_eq!(method.unwrap().parts().loss, Some(Loss::new(skew)));
    }

    /// Calls `f` with the first of `steps` updates: a toy model as student and teacher, two sequences.
    fn with_update(steps: usize, mut f: impl FnMut(&mut Moment, Prepared)) -> Phases {
        let config: abkd_models::ModelConfig = serde_json::from_str(
            r#"{"model_type":"llama","vocab_size":392,"hidden_size":4,"intermediate_size":4,"num_hidden_layers":1,"num_attention_heads":1}"#,
        )
        .unwrap();
        let model = config.init(1, &burn::tensor::Device::flex());
        let settings = Settings::new(1, 2, 1e-3);
        let sequences: Vec<Sequence> = (0..2)
            .map(|example| Sequence {
                example,
                tokens: vec![5, 6, 7],
                prompt_len: 2,
            })
            .collect();
        let mut phases = Phases::default();
        let data: Vec<&Sequence> = sequences.iter().collect();
        let data = Prepared {
            batch: abkd_data::collate(&data),
            sequences: data,
            text: None,
        };
        let mut at = Moment {
            step: 0,
            steps,
            settings: &settings,
            student: &model,
            teacher: Some(&model),
            sequences: &sequences,
            tokenizer: &Tokenizer::embedded(),
            max_new_tokens: 2,
            phases: &mut phases,
        };
        f(&mut at, data);
        phases
    }

    #[test]
    fn laying_sampled_answers_counts_as_data() {
        for (id, keys) in [
            (
                "minillm",
                serde_json::json!({ "rollouts": 2, "sampling_batch_size": 2 }),
            ),
            ("gkd", serde_json::json!({ "lambda": 1.0 })),
            ("distillm", serde_json::json!({ "first_threshold": 1.0 })),
        ] {
            let mut driver = Method::from_parts(id, None, keys).unwrap().driver(1.0);
            let phases = with_update(1, |at, data| {
                let terms = driver.terms(at, data).unwrap();
                assert!(!terms[0].from_data, "{id}");
            });
            for phase in [Phase::Data, Phase::Generation] {
                assert!(phases.seconds(phase) > 0.0, "{id}: {phase:?}");
            }
        }
    }

    #[test]
    fn distillm_counts_the_first_update_as_1() {
        let keys = serde_json::json!({ "first_threshold": 1.0, "capacity": 2 });
        let mut driver = Method::from_parts("distillm", None, keys)
            .unwrap()
            .driver(1.0);
        let mut sampled = || {
            let phases = with_update(1, |at, data| drop(driver.terms(at, data).unwrap()));
            phases.seconds(Phase::Generation) > 0.0
        };
        // The first update fills the buffer; then the share of fresh answers is 1 - 1/1 = 0.
        assert_eq!([sampled(), sampled()], [true, false]);
    }
}
