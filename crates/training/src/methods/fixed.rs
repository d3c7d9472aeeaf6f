//! SFT, KD, ABKD and SeqKD: one objective on given sequences. For SeqKD these are the teacher's answers.

use abkd_losses::Divergence;
use serde::{Deserialize, Serialize};

use super::on_policy::check_answers;
use super::{Driver, Loss, Moment};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared};

/// For methods without settings of their own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Settings of SeqKD (Kim and Rush 2016).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeqKdSettings {
    /// Share of the forward KL on the teacher's answers: 0 as in the official script, 0.5 in MiniLLM's.
    #[serde(default)]
    pub kd_ratio: f64,
    /// Most tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
}

impl SeqKdSettings {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.kd_ratio) {
            return Err(format!(
                "kd_ratio = {}: it must lie between 0 and 1",
                self.kd_ratio
            ));
        }
        check_answers(self.max_new_tokens)
    }

    pub(super) fn objective(&self) -> Objective {
        if self.kd_ratio == 0.0 {
            Objective::CrossEntropy
        } else {
            Loss::new(Divergence::ForwardKl).objective(self.kd_ratio)
        }
    }
}

pub(super) struct Fixed(Objective);

impl Fixed {
    pub(super) fn new(objective: Objective) -> Self {
        Self(objective)
    }
}

impl Driver for Fixed {
    fn terms(&mut self, _: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        Ok(vec![data.term(self.0.clone())])
    }
}
