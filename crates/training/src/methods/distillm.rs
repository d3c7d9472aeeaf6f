//! DistiLLM: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models"
//! (ICML 2024): skew divergences and adaptive off-policy sampling (Algorithm 1).

use std::collections::VecDeque;

use abkd_data::Sequence;
use abkd_data::rng::Rng;
use serde::{Deserialize, Serialize};

use super::on_policy::{self, Labels, Sampling};
use super::{Driver, Moment};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared};

/// Settings of DistiLLM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistiLlmSettings {
    /// Sequences that the replay buffer holds.
    #[serde(default = "defaults::capacity")]
    pub capacity: usize,
    /// Share of updates on the student's answers at the start.
    #[serde(default)]
    pub first_threshold: f64,
    /// Rise of the share when the validation loss has grown.
    #[serde(default = "defaults::tenth")]
    pub threshold_step: f64,
    /// By how much the validation loss must exceed its reference for that.
    #[serde(default = "defaults::tenth")]
    pub loss_margin: f64,
    /// Temperature of the student's answers.
    #[serde(default = "defaults::one")]
    pub temperature: f64,
    /// Most tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    /// Which positions of an answer count.
    #[serde(default)]
    pub labels: Labels,
}

mod defaults {
    pub fn capacity() -> usize {
        1000
    }
    pub fn tenth() -> f64 {
        0.1
    }
    pub fn one() -> f64 {
        1.0
    }
}

impl DistiLlmSettings {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.capacity == 0 {
            return Err("capacity = 0: the replay buffer must hold something".into());
        }
        for (key, value) in [
            ("first_threshold", self.first_threshold),
            ("threshold_step", self.threshold_step),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("{key} = {value}: it must lie between 0 and 1"));
            }
        }
        if !(self.loss_margin.is_finite() && self.loss_margin >= 0.0) {
            return Err(format!(
                "loss_margin = {}: it must be 0 or more",
                self.loss_margin
            ));
        }
        Ok(())
    }
}

/// Where the sequences of an update come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Data,
    Fresh,
    Buffer,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Share of updates on the student's answers, fresh or from the buffer.
    threshold: f64,
    /// Validation loss when the threshold was last set.
    reference: Option<f64>,
    /// The student's answers, oldest first.
    buffer: VecDeque<Sequence>,
}

impl State {
    /// Raises the threshold when the loss exceeds the reference by the margin; the reference is then
    /// that loss, as in the released code.
    fn validated(&mut self, loss: f64, settings: &DistiLlmSettings) {
        match self.reference {
            None => self.reference = Some(loss),
            Some(reference) if loss >= reference + settings.loss_margin => {
                self.threshold = (self.threshold + settings.threshold_step).min(1.0);
                self.reference = Some(loss);
            }
            Some(_) => {}
        }
    }

    /// A fresh share that falls linearly over the run; the rest of the threshold's share comes from
    /// the buffer, once it is full.
    fn source(&self, coin: f64, step: usize, steps: usize, capacity: usize) -> Source {
        let fresh = self.threshold * (1.0 - step as f64 / steps as f64);
        let full = self.buffer.len() >= capacity;
        if coin < fresh || (coin < self.threshold && !full) {
            Source::Fresh
        } else if coin < self.threshold {
            Source::Buffer
        } else {
            Source::Data
        }
    }

    fn push(&mut self, sequences: &[Sequence], capacity: usize) {
        self.buffer.extend(sequences.iter().cloned());
        while self.buffer.len() > capacity {
            self.buffer.pop_front();
        }
    }

    /// `n` different sequences of the buffer (all, if it holds no more).
    fn draw(&self, n: usize, rng: &mut Rng) -> Vec<Sequence> {
        let mut order: Vec<usize> = (0..self.buffer.len()).collect();
        rng.shuffle(&mut order);
        order
            .into_iter()
            .take(n)
            .map(|i| self.buffer[i].clone())
            .collect()
    }
}

pub(super) struct DistiLlm {
    objective: Objective,
    settings: DistiLlmSettings,
    state: State,
}

impl DistiLlm {
    pub(super) fn new(objective: Objective, settings: DistiLlmSettings) -> Self {
        let state = State {
            threshold: settings.first_threshold,
            ..State::default()
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
        let capacity = self.settings.capacity;
        let coin = on_policy::coin(at, 2);
        let answers = match self.state.source(coin, at.step, at.steps, capacity) {
            Source::Data => Vec::new(),
            Source::Fresh => {
                let sampling = Sampling {
                    temperature: self.settings.temperature,
                    max_new_tokens: self.settings.max_new_tokens,
                };
                let answers = on_policy::sample(at, &data.sequences, sampling)?;
                self.state.push(&answers, capacity);
                answers
            }
            Source::Buffer => {
                let mut rng = Rng::new(&[at.settings.seed, at.step as u64, 3]);
                self.state.draw(data.sequences.len(), &mut rng)
            }
        };
        let objective = self.objective.clone();
        match on_policy::lay(at, &answers, self.settings.labels) {
            Some(batch) => Ok(vec![Term {
                batch,
                objective,
                weight: 1.0,
                from_data: false,
            }]),
            None => Ok(vec![data.term(objective)]),
        }
    }

    fn wants_first_validation(&self) -> bool {
        self.state.reference.is_none()
    }

    fn validated(&mut self, loss: f64) {
        self.state.validated(loss, &self.settings);
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

    fn settings() -> DistiLlmSettings {
        serde_json::from_str("{}").unwrap()
    }

    fn sequence(token: u32) -> Sequence {
        Sequence {
            example: token as usize,
            tokens: vec![token, 1],
            prompt_len: 1,
        }
    }

    #[test]
    fn the_threshold_rises_by_a_tenth_when_the_loss_grows_by_the_margin() {
        let mut state = State::default();
        let settings = settings();
        let mut thresholds = Vec::new();
        // reference 2.0; 2.05 is within the margin; 2.2 is not and becomes the reference
        for loss in [2.0, 2.05, 2.2, 2.25, 1.0, 2.35] {
            state.validated(loss, &settings);
            thresholds.push((10.0 * state.threshold).round());
        }
        assert_eq!(thresholds, [0.0, 0.0, 1.0, 1.0, 1.0, 2.0]);
        for k in 1..20 {
            state.validated(10.0 * f64::from(k), &settings);
        }
        assert_eq!(state.threshold, 1.0);
    }

    #[test]
    fn the_fresh_share_falls_and_the_buffer_takes_over_once_full() {
        let mut state = State {
            threshold: 0.4,
            ..State::default()
        };
        // not full: everything below the threshold is fresh
        assert_eq!(state.source(0.39, 50, 100, 2), Source::Fresh);
        assert_eq!(state.source(0.41, 50, 100, 2), Source::Data);
        state.push(&[sequence(1), sequence(2)], 2);
        // full, half-way: fresh below 0.4 x 0.5
        assert_eq!(state.source(0.19, 50, 100, 2), Source::Fresh);
        assert_eq!(state.source(0.21, 50, 100, 2), Source::Buffer);
        assert_eq!(state.source(0.41, 50, 100, 2), Source::Data);
        assert_eq!(state.source(0.01, 99, 100, 2), Source::Buffer);
    }

    #[test]
    fn the_buffer_forgets_the_oldest_and_draws_without_repetition() {
        let mut state = State::default();
        state.push(&[1, 2, 3, 4, 5].map(sequence), 3);
        let mut drawn: Vec<usize> = state
            .draw(3, &mut Rng::new(&[1]))
            .iter()
            .map(|s| s.example)
            .collect();
        drawn.sort_unstable();
        assert_eq!(drawn, [3, 4, 5]);
        assert_eq!(state.draw(2, &mut Rng::new(&[1])).len(), 2);
    }
}
