//! GKD: Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
//! Mistakes" (ICLR 2024), Algorithm 1, as the ABKD scripts run it.
//!
//! Two defaults are the released code's, each with a setting for the paper's version: answers are pushed into a replay
//! buffer, from which the batch is drawn; the Jensen divergence has `beta` 0.9. Unlike in the released code, a run has one
//! buffer and one draw of the source per update, not one of each per GPU.

use abkd_data::Sequence;
use abkd_host::choice;
use abkd_losses::{Divergence, Fidelity};
use serde::{Deserialize, Serialize};

use super::on_policy::{self, Labels};
use super::replay::{self, ReplayBuffer};
use super::{Behaviour, Driver, Entry, Loss, Moment, Parts, Sampled, check_share, parse};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared, Settings};

pub(super) const ENTRY: Entry = Entry {
    id: "gkd",
    about: "with probability lambda the student's own answers, by default through a replay buffer; Jensen divergence",
    build: |loss, settings| {
        let settings: GkdSettings = parse(settings)?;
        if loss.is_some() && settings.beta.is_some() {
            return Err(
                "`beta` is a parameter of the Jensen divergence; leave it out where the row has a `divergence`"
                    .into(),
            );
        }
        settings.check()?;
        let loss = loss.unwrap_or_else(|| settings.default_loss());
        // The divergence holds beta.
        let settings = GkdSettings {
            beta: None,
            ..settings
        };
        Ok(Box::new(Method { loss, settings }))
    },
};

#[derive(Debug)]
struct Method {
    loss: Loss,
    settings: GkdSettings,
}

impl Behaviour for Method {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, Some(self.loss), &self.settings)
    }

    fn driver(&self, kd_ratio: f64) -> Box<dyn Driver> {
        Box::new(Gkd::new(
            self.loss.objective(kd_ratio),
            self.settings.clone(),
        ))
    }

    fn check_run(&self, settings: &Settings) -> Result<(), String> {
        self.settings.check_batch(settings.batch_size)
    }

    fn sampled(&self) -> Vec<Sampled> {
        let s = &self.settings;
        vec![Sampled::by_student(s.lambda, s.max_new_tokens)]
    }
}

choice! {
    "answers"
    /// Which answers an on-policy update trains on.
    #[derive(Default)]
    pub enum Answers {
        /// The released code: the update's new answers are pushed into a replay buffer, then the batch is drawn from it.
        #[default]
        Buffer = "buffer",
        /// The GKD paper: the answers sampled for the update.
        Fresh = "fresh",
    }
}

/// Settings of GKD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GkdSettings {
    /// Share of updates on the student's own answers: `mixed_alpha` of the released scripts.
    pub lambda: f64,
    /// `beta` of the generalized Jensen divergence `beta KL(p, m) + (1 - beta) KL(q, m)`,
    /// `m = beta p + (1 - beta) q`. Default 0.9: `lam` 0.1 of the ABKD code (DistiLLM's: `lam` 0.9, which is `beta` 0.1).
    pub beta: Option<f64>,
    /// Which answers an on-policy update trains on.
    pub answers: Answers,
    /// Sequences that the replay buffer holds.
    pub capacity: usize,
    /// Temperature of the student's answers.
    pub temperature: f64,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    pub max_new_tokens: Option<usize>,
    /// Which positions of an answer count.
    pub labels: Labels,
}

impl Default for GkdSettings {
    fn default() -> Self {
        Self {
            lambda: 0.5,
            beta: None,
            answers: Answers::default(),
            capacity: 1000,
            temperature: 1.0,
            max_new_tokens: None,
            labels: Labels::default(),
        }
    }
}

impl GkdSettings {
    fn check(&self) -> Result<(), String> {
        check_share("lambda", self.lambda)?;
        if let Some(beta) = self.beta.filter(|b| !(*b > 0.0 && *b < 1.0)) {
            return Err(format!(
                "beta = {beta}: it must lie between 0 and 1, both excluded"
            ));
        }
        on_policy::check_sampling(self.temperature, self.max_new_tokens)?;
        replay::check_capacity(self.capacity)
    }

    fn check_batch(&self, batch_size: usize) -> Result<(), String> {
        match self.answers {
            Answers::Buffer => replay::check_batch(self.capacity, batch_size),
            Answers::Fresh => Ok(()),
        }
    }

    /// The generalized Jensen divergence; this project's parameter is `lambda = 1 - beta`.
    pub(crate) fn default_loss(&self) -> Loss {
        Loss {
            divergence: Divergence::jensen(self.beta.map_or(0.1, |beta| 1.0 - beta)),
            fidelity: Fidelity::Paper,
        }
    }
}

struct Gkd {
    objective: Objective,
    settings: GkdSettings,
    buffer: ReplayBuffer<Sequence>,
}

impl Gkd {
    fn new(objective: Objective, settings: GkdSettings) -> Self {
        Self {
            objective,
            buffer: ReplayBuffer::new(settings.capacity),
            settings,
        }
    }
}

/// Whether an update trains on the student's answers, decided by a uniform number in [0, 1).
pub fn is_on_policy(number: f64, lambda: f64) -> bool {
    number < lambda
}

impl Driver for Gkd {
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        let settings = &self.settings;
        let mut answers = None;
        if is_on_policy(on_policy::coin(at, 1), settings.lambda) {
            let (temperature, most) = (settings.temperature, settings.max_new_tokens);
            let mut new = on_policy::sample(at, &data.sequences, temperature, most)?;
            if settings.answers == Answers::Buffer {
                let n = new.len();
                self.buffer.push(new);
                let drawn = self.buffer.draw(n, &mut on_policy::draws(at));
                new = drawn.expect("a batch was pushed, and the buffer holds one");
            }
            answers = Some(new);
        }
        let (labels, objective) = (settings.labels, &self.objective);
        let term = on_policy::term(at, answers.as_deref(), labels, objective, data);
        Ok(vec![term])
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!(self.buffer)
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), serde_json::Error> {
        self.buffer = serde_json::from_value(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_abkds_unless_beta_says_otherwise() {
        let lambda = |json: &str| {
            let settings: GkdSettings = serde_json::from_str(json).unwrap();
            let divergence = settings.default_loss().divergence;
            assert_eq!(divergence.id(), "jensen");
            divergence.param("lambda").unwrap()
        };
        assert_eq!(lambda("{}"), 0.1);
        assert!((lambda(r#"{"beta":0.1}"#) - 0.9).abs() < 1e-12);
    }

    #[test]
    fn a_buffer_below_a_batch_is_refused_where_it_is_used() {
        let settings = |json: &str| serde_json::from_str::<GkdSettings>(json).unwrap();
        let text = settings(r#"{"capacity":7}"#).check_batch(8).unwrap_err();
        assert!(
            text.contains("capacity = 7") && text.contains('8'),
            "{text}"
        );
        settings(r#"{"capacity":7,"answers":"fresh"}"#)
            .check_batch(8)
            .unwrap();
        let text = serde_json::from_str::<GkdSettings>(r#"{"answers":"new"}"#)
            .unwrap_err()
            .to_string();
        for part in ["answers", "`new`", "buffer", "fresh"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
