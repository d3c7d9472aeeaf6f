//! ImitKD: Lin et al., "Autoregressive Knowledge Distillation through Imitation Learning" (EMNLP 2020), with the teacher's
//! full distribution (their "full" loss): forward KL, by default, on a mixture of the data and the student's own answers,
//! whose share grows.
//!
//! A sequence of an update keeps the data's response with probability `last_share^(step / steps)`; else the student
//! answers the prompt.

use abkd_data::Sequence;
use abkd_data::rng::Rng;
use abkd_losses::Divergence;
use serde::{Deserialize, Serialize};

use super::on_policy::{self, Labels};
use super::{Behaviour, Driver, Entry, Loss, Moment, Parts, Sampled, parse};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared};

pub(super) const ENTRY: Entry = Entry {
    id: "imitkd",
    about: "the student's own answers replace a growing share of the data's; default forward KL",
    build: |loss, settings| {
        let settings: ImitKdSettings = parse(settings)?;
        settings.check()?;
        let loss = loss.unwrap_or(Loss::new(Divergence::forward_kl()));
        Ok(Box::new(Method { loss, settings }))
    },
};

/// Settings of ImitKD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ImitKdSettings {
    /// Share of the data's responses at the end of the run (the paper's r): 0.005.
    last_share: f64,
    /// Temperature of the student's answers.
    temperature: f64,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    max_new_tokens: Option<usize>,
}

impl Default for ImitKdSettings {
    fn default() -> Self {
        Self {
            last_share: 0.005,
            temperature: 1.0,
            max_new_tokens: None,
        }
    }
}

impl ImitKdSettings {
    fn check(&self) -> Result<(), String> {
        if !(self.last_share > 0.0 && self.last_share <= 1.0) {
            return Err(format!(
                "last_share = {}: it must lie above 0 and be at most 1",
                self.last_share
            ));
        }
        on_policy::check_sampling(self.temperature, self.max_new_tokens)
    }

    /// Share of the data's responses in an update; `step` is counted from 0.
    fn share(&self, step: usize, steps: usize) -> f64 {
        self.last_share.powf(step as f64 / steps.max(1) as f64)
    }
}

#[derive(Debug)]
struct Method {
    loss: Loss,
    settings: ImitKdSettings,
}

impl Behaviour for Method {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, Some(self.loss), &self.settings)
    }

    fn driver(&self, kd_ratio: f64) -> Box<dyn Driver> {
        Box::new(ImitKd {
            objective: self.loss.objective(kd_ratio),
            settings: self.settings.clone(),
        })
    }

    fn sampled(&self) -> Vec<Sampled> {
        // 1 minus the mean of r^x over the run, x from 0 to 1.
        let r = self.settings.last_share;
        let data = if r < 1.0 { (r - 1.0) / r.ln() } else { 1.0 };
        vec![Sampled::by_student(
            1.0 - data,
            self.settings.max_new_tokens,
        )]
    }
}

struct ImitKd {
    objective: Objective,
    settings: ImitKdSettings,
}

impl Driver for ImitKd {
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        let share = self.settings.share(at.step, at.steps);
        let mut coins = Rng::new(&[at.settings.seed, at.step as u64, 4]);
        let own: Vec<bool> = data
            .sequences
            .iter()
            .map(|_| coins.uniform() >= share)
            .collect();
        let asked: Vec<&Sequence> = chosen(&data.sequences, &own);
        let mut mixed = None;
        if !asked.is_empty() {
            let (temperature, most) = (self.settings.temperature, self.settings.max_new_tokens);
            let mut answers = on_policy::sample(at, &asked, temperature, most)?.into_iter();
            let both = data.sequences.iter().zip(&own);
            let both = both.filter_map(|(s, own)| match own {
                true => answers.next(),
                false => Some((*s).clone()),
            });
            mixed = Some(both.collect::<Vec<Sequence>>());
        }
        let (labels, objective) = (Labels::Expected, &self.objective);
        let term = on_policy::term(at, mixed.as_deref(), labels, objective, data);
        Ok(vec![term])
    }
}

fn chosen<'a>(sequences: &[&'a Sequence], which: &[bool]) -> Vec<&'a Sequence> {
    let both = sequences.iter().zip(which);
    both.filter(|(_, w)| **w).map(|(s, _)| *s).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datas_share_falls_from_all_to_the_last() {
        let settings: ImitKdSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings.share(0, 100), 1.0);
        assert!((settings.share(50, 100) - 0.005f64.sqrt()).abs() < 1e-12);
        assert!((settings.share(100, 100) - 0.005).abs() < 1e-12);
        for wrong in [
            "{\"last_share\":0.0}",
            "{\"last_share\":1.5}",
            "{\"temperature\":0.0}",
        ] {
            let settings: ImitKdSettings = serde_json::from_str(wrong).unwrap();
            assert!(settings.check().is_err(), "{wrong}");
        }
    }
}
