//! The distillation methods of the paper's Tables 2 and 3, each behind [`Driver`], over one loop.
//!
//! A method says what the terms of the next update are: which sequences, and what is minimised on
//! them. Whatever it remembers between updates is part of the checkpoint.

pub mod distillm;
mod fixed;
pub mod gkd;
pub mod minillm;
mod on_policy;
mod replay;

use abkd_data::{Sequence, Tokenizer};
use abkd_losses::{Divergence, Fidelity};
use abkd_models::LanguageModel;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::head::Objective;
use crate::step::Term;
use crate::timing::Phases;
use crate::{Error, Prepared, Settings};

pub use distillm::DistiLlmSettings;
pub use fixed::{NoSettings, SeqKdSettings};
pub use gkd::GkdSettings;
pub use minillm::MiniLlmSettings;
pub use on_policy::Labels;
pub use replay::ReplayBuffer;

/// A divergence in one of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Which.
    pub divergence: Divergence,
    /// Paper or official form.
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

/// A method with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub enum Method {
    /// Fine-tuning on the data: cross-entropy, no teacher.
    Sft,
    /// Distillation on the data: KD with forward KL (Hinton et al. 2015), ABKD with the alpha-beta
    /// divergence (Wang et al. 2025), or any other.
    Data(Loss),
    /// Training on the teacher's answers (Kim and Rush 2016).
    SeqKd(SeqKdSettings),
    /// On-policy distillation (Agarwal et al. 2024).
    Gkd(Loss, GkdSettings),
    /// Policy gradient on the reverse KL (Gu et al. 2024).
    MiniLlm(MiniLlmSettings),
    /// Adaptive off-policy sampling (Ko et al. 2024), by default with skew reverse KL.
    DistiLlm(Loss, DistiLlmSettings),
}

impl Method {
    /// Ids of the methods, with a line on each.
    pub const IDS: [(&'static str, &'static str); 7] = [
        ("sft", "cross-entropy on the data"),
        (
            "kd",
            "a divergence on the data, kd_ratio from the profile; default forward KL",
        ),
        (
            "seqkd",
            "cross-entropy on the teacher's answers; kd_ratio adds forward KL on them",
        ),
        (
            "gkd",
            "with probability lambda the student's own answers, by default through a replay buffer; Jensen divergence",
        ),
        (
            "minillm",
            "policy gradient on reverse KL: teacher-mixed rollouts, PPO clip, length norm",
        ),
        (
            "distillm",
            "replay buffer of the student's answers, adaptive share; default skew reverse KL",
        ),
        (
            "abkd",
            "the alpha-beta divergence on the data; `distillm` with divergence `ab` samples adaptively",
        ),
    ];

    /// Builds a method from its id, an optional loss and its settings (a JSON object).
    ///
    /// # Errors
    ///
    /// [`Error::Method`]: an unknown id; a setting that the method does not have or that is out of
    /// range; a loss given to a method that has none to choose.
    pub fn from_parts(
        id: &str,
        loss: Option<Loss>,
        settings: serde_json::Value,
    ) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Method {
            method: id.into(),
            reason,
        };
        let no_loss = |loss: Option<Loss>| match loss {
            Some(_) => Err(refuse(
                "its loss is its own; remove `divergence` and `params`".into(),
            )),
            None => Ok(()),
        };
        let method = match id {
            "sft" => {
                no_loss(loss)?;
                parse::<NoSettings>(id, settings)?;
                Self::Sft
            }
            "kd" => {
                parse::<NoSettings>(id, settings)?;
                Self::Data(loss.unwrap_or(Loss::new(Divergence::ForwardKl)))
            }
            "abkd" => {
                parse::<NoSettings>(id, settings)?;
                let paper = Divergence::AlphaBeta {
                    alpha: 0.2,
                    beta: 0.7,
                };
                Self::Data(loss.unwrap_or(Loss::new(paper)))
            }
            "seqkd" => {
                no_loss(loss)?;
                Self::SeqKd(parse(id, settings)?)
            }
            "gkd" => {
                let settings: GkdSettings = parse(id, settings)?;
                if loss.is_some() && settings.beta.is_some() {
                    return Err(refuse(
                        "`beta` is the Jensen divergence's; with a `divergence` of the row leave it out"
                            .into(),
                    ));
                }
                let loss = loss.unwrap_or_else(|| settings.default_loss());
                Self::Gkd(loss, settings)
            }
            "minillm" => {
                no_loss(loss)?;
                Self::MiniLlm(parse(id, settings)?)
            }
            "distillm" => {
                let skew = Divergence::SkewReverseKl { lambda: 0.1 };
                Self::DistiLlm(loss.unwrap_or(Loss::new(skew)), parse(id, settings)?)
            }
            _ => return Err(refuse("no such method".into())),
        };
        let checked = match &method {
            Self::SeqKd(s) => s.check(),
            Self::Gkd(_, s) => s.check(),
            Self::MiniLlm(s) => s.check(),
            Self::DistiLlm(_, s) => s.check(),
            Self::Sft | Self::Data(_) => Ok(()),
        };
        checked.map_err(refuse)?;
        Ok(method)
    }

    /// Checks the method's settings against those of the training.
    ///
    /// # Errors
    ///
    /// A replay buffer that is smaller than a batch.
    pub fn check_run(&self, settings: &Settings) -> Result<(), Error> {
        let (method, checked) = match self {
            Self::Gkd(_, s) => ("gkd", s.check_batch(settings.batch_size)),
            Self::DistiLlm(_, s) => (
                "distillm",
                replay::check_batch(s.capacity, settings.batch_size),
            ),
            Self::Sft | Self::Data(_) | Self::SeqKd(_) | Self::MiniLlm(_) => return Ok(()),
        };
        checked.map_err(|reason| Error::Method {
            method: method.into(),
            reason,
        })
    }

    /// Most tokens of the answers that it samples or that are sampled for it, `default` where its settings do not say;
    /// `None` for a method without answers.
    pub fn longest_answer(&self, default: usize) -> Option<usize> {
        let said = match self {
            Self::SeqKd(s) => s.max_new_tokens,
            Self::Gkd(_, s) => s.max_new_tokens,
            Self::MiniLlm(s) => s.max_new_tokens,
            Self::DistiLlm(_, s) => s.max_new_tokens,
            Self::Sft | Self::Data(_) => return None,
        };
        Some(said.unwrap_or(default))
    }

    /// Whether what it does depends on the validation loss.
    pub fn follows_validation_loss(&self) -> bool {
        matches!(self, Self::DistiLlm(_, s) if s.threshold_step > 0.0)
    }

    /// Whether the student's dropout acts while it is trained.
    pub fn trains_with_dropout(&self) -> bool {
        match self {
            Self::MiniLlm(s) => s.dropout,
            _ => true,
        }
    }

    /// Whether updates need the teacher.
    pub fn needs_teacher(&self) -> bool {
        match self {
            Self::Sft => false,
            Self::SeqKd(s) => s.kd_ratio > 0.0,
            _ => true,
        }
    }

    /// Whether updates compare with the teacher on the data as they are.
    pub fn uses_teacher_on_data(&self) -> bool {
        match self {
            Self::Sft | Self::SeqKd(_) => false,
            Self::MiniLlm(s) => s.data_term == minillm::DataTerm::Data,
            Self::Data(_) | Self::Gkd(..) | Self::DistiLlm(..) => true,
        }
    }

    /// What runs the method; `kd_ratio` is the share of the divergence in the loss on the data.
    pub fn driver(&self, kd_ratio: f64) -> Box<dyn Driver> {
        match self {
            Self::Sft => Box::new(fixed::Fixed::new(Objective::CrossEntropy)),
            Self::Data(loss) => Box::new(fixed::Fixed::new(loss.objective(kd_ratio))),
            Self::SeqKd(s) => Box::new(fixed::Fixed::new(s.objective())),
            Self::Gkd(loss, s) => Box::new(gkd::Gkd::new(loss.objective(kd_ratio), s.clone())),
            Self::MiniLlm(s) => Box::new(minillm::MiniLlm::new(s.clone())),
            Self::DistiLlm(loss, s) => {
                Box::new(distillm::DistiLlm::new(loss.objective(kd_ratio), s.clone()))
            }
        }
    }
}

/// A method as files hold it: equal where what is done is equal, whatever name it went by.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss: Option<Loss>,
    #[serde(default)]
    settings: Value,
}

impl From<Method> for Parts {
    fn from(method: Method) -> Self {
        let parts = |id: &str, loss: Option<Loss>, settings: Value| Self {
            id: id.into(),
            loss,
            settings,
        };
        let json = |settings: serde_json::Result<Value>| settings.unwrap_or_default();
        match method {
            Method::Sft => parts("sft", None, json!({})),
            Method::Data(loss) => parts("kd", Some(loss), json!({})),
            Method::SeqKd(s) => parts("seqkd", None, json(serde_json::to_value(s))),
            // `beta` is in the loss already.
            Method::Gkd(loss, s) => {
                let settings = GkdSettings { beta: None, ..s };
                parts("gkd", Some(loss), json(serde_json::to_value(settings)))
            }
            Method::MiniLlm(s) => parts("minillm", None, json(serde_json::to_value(s))),
            Method::DistiLlm(loss, s) => {
                parts("distillm", Some(loss), json(serde_json::to_value(s)))
            }
        }
    }
}

impl TryFrom<Parts> for Method {
    type Error = Error;
    fn try_from(parts: Parts) -> Result<Self, Error> {
        Self::from_parts(&parts.id, parts.loss, parts.settings)
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    method: &str,
    settings: serde_json::Value,
) -> Result<T, Error> {
    serde_json::from_value(settings).map_err(|e| Error::Method {
        method: method.into(),
        reason: format!("settings: {e}"),
    })
}

/// What the next update is made from.
pub struct Moment<'a> {
    /// Updates done so far.
    pub step: usize,
    /// Updates of the whole run.
    pub steps: usize,
    /// Settings of the run.
    pub settings: &'a Settings,
    /// The student in training; to sample from it, take its `valid()`.
    pub student: &'a LanguageModel,
    /// The teacher.
    pub teacher: Option<&'a LanguageModel>,
    /// All training sequences.
    pub sequences: &'a [Sequence],
    /// Tokenizer of both.
    pub tokenizer: &'a Tokenizer,
    /// Most tokens of an answer unless a method says otherwise.
    pub max_new_tokens: usize,
    /// Books the time.
    pub phases: &'a mut Phases,
}

/// A method at work.
pub trait Driver {
    /// The terms of the next update; `data` is what the epoch's order has for it.
    ///
    /// # Errors
    ///
    /// Sampling that fails.
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error>;

    /// Whether [`validated`](Self::validated) must be called once before the first update.
    fn wants_first_validation(&self) -> bool {
        false
    }

    /// What is minimised on plain text, where the run has some, and the term's weight; `None` for no such term.
    fn on_text(&self, settings: &Settings) -> Option<(Objective, f64)> {
        Some((Objective::CrossEntropy, settings.lm_coef))
    }

    /// Tells the validation loss: before the first update if wanted, and at every validation.
    fn validated(&mut self, _loss: f64) {}

    /// What it remembers, for a checkpoint.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes up what [`state`](Self::state) gave.
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
        for (id, _) in Method::IDS {
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
        let loss = Some(Loss::new(Divergence::ForwardKl));
        assert!(error("minillm", loss, serde_json::json!({})).contains("divergence"));
        assert!(error("kdd", None, serde_json::json!({})).contains("kdd"));
    }

    #[test]
    fn a_setting_changes_what_files_hold_and_another_name_does_not() {
        let identity = |id, settings| {
            let method = Method::from_parts(id, None, settings).unwrap();
            serde_json::to_string(&method).unwrap()
        };
        for (id, _) in Method::IDS {
            let text = identity(id, serde_json::json!({}));
            let again: Method = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), text, "{id}");
        }
        let paper = Divergence::AlphaBeta {
            alpha: 0.2,
            beta: 0.7,
        };
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
        let skew = Divergence::SkewForwardKl { lambda: 0.1 };
        let method = Method::from_parts("distillm", Some(Loss::new(skew)), serde_json::json!({}));
        let Method::DistiLlm(loss, _) = method.unwrap() else {
            panic!("another method");
        };
        assert_eq!(loss.divergence, skew);
    }

    /// Hands an update of `steps` to `f`: a toy model as student and teacher, two sequences.
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
        // The buffer fills; then the share of fresh answers, 1 - 1/1, is none.
        assert_eq!([sampled(), sampled()], [true, false]);
    }
}
