//! DistiLLM: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models"
//! (ICML 2024): skew divergences and adaptive off-policy sampling (Algorithm 1).
//!
//! Defaults are the released code's. Differences: a run has one buffer and one draw of the source per update, the released
//! code one of each per GPU; an update whose answers have no counted position, as empty ones under the released labels,
//! trains on the data instead.

use abkd_data::Sequence;
use abkd_host::choice;
use abkd_losses::Divergence;
use serde::{Deserialize, Serialize};

use super::on_policy::{self, Labels};
use super::replay::{self, ReplayBuffer};
use super::{
    Behaviour, Driver, Entry, Loss, Moment, Parts, Sampled, check_not_negative, check_share, parse,
};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared, Settings};

pub(super) const ENTRY: Entry = Entry {
    id: "distillm",
    about: "replay buffer of the student's answers, adaptive share; default skew reverse KL",
    build: |loss, settings| {
        let settings: DistiLlmSettings = parse(settings)?;
        settings.check()?;
        let skew = Divergence::skew_reverse_kl(0.1);
        let loss = loss.unwrap_or(Loss::new(skew));
        Ok(Box::new(Method { loss, settings }))
    },
};

#[derive(Debug)]
struct Method {
    loss: Loss,
    settings: DistiLlmSettings,
}

impl Behaviour for Method {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, Some(self.loss), &self.settings)
    }

    fn driver(&self, kd_ratio: f64) -> Box<dyn Driver> {
        let objective = self.loss.objective(kd_ratio);
        Box::new(DistiLlm::new(objective, self.settings.clone()))
    }

    fn check_run(&self, settings: &Settings) -> Result<(), String> {
        replay::check_batch(self.settings.capacity, settings.batch_size)
    }

    fn sampled(&self) -> Vec<Sampled> {
        // The threshold is not known beforehand: an estimate of 0.5, half of it fresh answers.
        vec![Sampled::by_student(0.25, self.settings.max_new_tokens)]
    }

    fn follows_validation_loss(&self) -> bool {
        self.settings.threshold_step > 0.0
    }

    /// The buffer holds one batch, so that it is full after the first answers and the share of fresh answers falls over the
    /// timed window as over a run.
    fn timed(&self, batch_size: usize) -> Option<Box<dyn Behaviour>> {
        Some(Box::new(Self {
            loss: self.loss,
            settings: DistiLlmSettings {
                capacity: batch_size,
                ..self.settings.clone()
            },
        }))
    }
}

choice! {
    "replay_ratio"
    /// How the share of updates on fresh answers changes over the run; the other updates below the threshold use the
    /// buffer.
    #[derive(Default)]
    pub enum ReplayRatio {
        /// `threshold x (1 - step / steps)`: more and more from the buffer.
        #[default]
        Decreasing = "decreasing",
        /// `threshold / 2`.
        Constant = "constant",
        /// `threshold x step / steps`.
        Increasing = "increasing",
    }
}

impl ReplayRatio {
    /// Share of updates on fresh answers. `step` is counted from 1, as in the released code, up to `steps`.
    pub fn fresh_share(self, threshold: f64, step: usize, steps: usize) -> f64 {
        let done = step as f64 / steps as f64;
        match self {
            Self::Decreasing => threshold * (1.0 - done),
            Self::Constant => threshold * 0.5,
            Self::Increasing => threshold * done,
        }
    }
}

/// Settings of DistiLLM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistiLlmSettings {
    /// Sequences that the replay buffer holds.
    pub capacity: usize,
    /// Share of updates on the student's answers at the start.
    pub first_threshold: f64,
    /// Increase of this share when the validation loss has grown.
    pub threshold_step: f64,
    /// Amount by which the validation loss must exceed its reference for an increase (`loss_eps` of the released code).
    pub loss_margin: f64,
    /// How the share of fresh answers changes over the run.
    pub replay_ratio: ReplayRatio,
    /// Temperature of the student's answers.
    pub temperature: f64,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    pub max_new_tokens: Option<usize>,
    /// Which positions of an answer count.
    pub labels: Labels,
}

impl Default for DistiLlmSettings {
    fn default() -> Self {
        Self {
            capacity: 1000,
            first_threshold: 0.0,
            threshold_step: 0.1,
            loss_margin: 0.1,
            replay_ratio: ReplayRatio::default(),
            temperature: 1.0,
            max_new_tokens: None,
            labels: Labels::default(),
        }
    }
}

impl DistiLlmSettings {
    fn check(&self) -> Result<(), String> {
        replay::check_capacity(self.capacity)?;
        on_policy::check_sampling(self.temperature, self.max_new_tokens)?;
        check_share("first_threshold", self.first_threshold)?;
        check_share("threshold_step", self.threshold_step)?;
        check_not_negative("loss_margin", self.loss_margin)
    }
}

/// Where the sequences of an update come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The data.
    Data,
    /// Answers that the student samples for this update; they are pushed into the buffer.
    Fresh,
    /// A draw from the buffer.
    Buffer,
}

/// The source of an update, decided by a uniform number in [0, 1): fresh answers if it is below `fresh_share`, or below
/// `threshold` while the buffer is not full; else the buffer if it is below `threshold`; else the data.
pub fn source(number: f64, fresh_share: f64, threshold: f64, buffer_is_full: bool) -> Source {
    if number < fresh_share || (number < threshold && !buffer_is_full) {
        Source::Fresh
    } else if number < threshold {
        Source::Buffer
    } else {
        Source::Data
    }
}

/// Share of updates on the student's answers, fresh or from the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    value: f64,
    /// Validation loss to compare with; absent before the first validation.
    reference: Option<f64>,
}

impl Threshold {
    /// The threshold before the first validation.
    pub fn new(first: f64) -> Self {
        Self {
            value: first,
            reference: None,
        }
    }

    /// The threshold.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The first loss, before any update, is the reference. A later loss that exceeds it by `margin` raises the threshold
    /// by `rise`, to 1 at most, and becomes the reference, as in the released code.
    pub fn validated(&mut self, loss: f64, rise: f64, margin: f64) {
        match self.reference {
            None => self.reference = Some(loss),
            Some(reference) if loss >= reference + margin => {
                self.value = (self.value + rise).min(1.0);
                self.reference = Some(loss);
            }
            Some(_) => {}
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    threshold: Threshold,
    buffer: ReplayBuffer<Sequence>,
}

pub(super) struct DistiLlm {
    objective: Objective,
    settings: DistiLlmSettings,
    state: State,
}

impl DistiLlm {
    pub(super) fn new(objective: Objective, settings: DistiLlmSettings) -> Self {
        let state = State {
            threshold: Threshold::new(settings.first_threshold),
            buffer: ReplayBuffer::new(settings.capacity),
        };
        Self {
            objective,
            settings,
            state,
        }
    }
}

impl Driver for DistiLlm {
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        let State { threshold, buffer } = &mut self.state;
        let threshold = threshold.value();
        let ratio = self.settings.replay_ratio;
        let share = ratio.fresh_share(threshold, at.step + 1, at.steps);
        let n = data.sequences.len();
        let answers = match source(on_policy::coin(at, 2), share, threshold, buffer.is_full()) {
            Source::Data => None,
            Source::Fresh => {
                let (temperature, most) = (self.settings.temperature, self.settings.max_new_tokens);
                let answers = on_policy::sample(at, &data.sequences, temperature, most)?;
                buffer.push(answers.iter().cloned());
                Some(answers)
            }
            Source::Buffer => buffer.draw(n, &mut on_policy::draws(at)),
        };
        let (labels, objective) = (self.settings.labels, &self.objective);
        let term = on_policy::term(at, answers.as_deref(), labels, objective, data);
        Ok(vec![term])
    }

    fn wants_first_validation(&self) -> bool {
        self.state.threshold.reference.is_none()
    }

    fn validated(&mut self, loss: f64) {
        let (rise, margin) = (self.settings.threshold_step, self.settings.loss_margin);
        self.state.threshold.validated(loss, rise, margin);
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!(self.state)
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), serde_json::Error> {
        self.state = serde_json::from_value(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_rises_by_a_tenth_when_the_loss_grows_by_the_margin() {
        let mut threshold = Threshold::new(0.0);
        let mut values = Vec::new();
        // reference 2.0; 2.05 is within the margin; 2.2 is not and becomes the reference
        for loss in [2.0, 2.05, 2.2, 2.25, 1.0, 2.35] {
            threshold.validated(loss, 0.1, 0.1);
            values.push((10.0 * threshold.value()).round());
        }
        assert_eq!(values, [0.0, 0.0, 1.0, 1.0, 1.0, 2.0]);
        for k in 1..20 {
            threshold.validated(10.0 * f64::from(k), 0.1, 0.1);
        }
        assert_eq!(threshold.value(), 1.0);
    }

    #[test]
    fn the_buffer_takes_over_once_full() {
        // buffer not full: fresh answers for all numbers below the threshold
        assert_eq!(source(0.39, 0.2, 0.4, false), Source::Fresh);
        assert_eq!(source(0.41, 0.2, 0.4, false), Source::Data);
        assert_eq!(source(0.19, 0.2, 0.4, true), Source::Fresh);
        assert_eq!(source(0.21, 0.2, 0.4, true), Source::Buffer);
        assert_eq!(source(0.41, 0.2, 0.4, true), Source::Data);
        // in the last update the share of fresh answers is 0
        let last = ReplayRatio::Decreasing.fresh_share(0.4, 100, 100);
        assert_eq!(source(0.0, last, 0.4, true), Source::Buffer);
    }

    #[test]
    fn an_unknown_ratio_is_named_with_the_known_ones() {
        let text = serde_json::from_str::<DistiLlmSettings>(r#"{"replay_ratio":"falling"}"#)
            .unwrap_err()
            .to_string();
        for part in ["replay_ratio", "falling", "decreasing", "increasing"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
