//! SeqKD: Kim and Rush, "Sequence-Level Knowledge Distillation" (EMNLP 2016): training on the teacher's answers.

use abkd_losses::Divergence;
use serde::{Deserialize, Serialize};

use super::fixed::Fixed;
use super::on_policy::check_answers;
use super::{Behaviour, Driver, Entry, Loss, Parts, check_share, no_loss, parse};
use crate::head::Objective;

pub(super) const ENTRY: Entry = Entry {
    id: "seqkd",
    about: "cross-entropy on the teacher's answers; kd_ratio adds forward KL on them",
    build: |loss, settings| {
        no_loss(loss)?;
        let settings: SeqKdSettings = parse(settings)?;
        settings.check()?;
        Ok(Box::new(settings))
    },
};

/// Settings of SeqKD (Kim and Rush 2016).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SeqKdSettings {
    /// Share of the forward KL on the teacher's answers: 0 (default) in the official script, 0.5 in MiniLLM's.
    kd_ratio: f64,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    max_new_tokens: Option<usize>,
}

impl SeqKdSettings {
    fn check(&self) -> Result<(), String> {
        check_share("kd_ratio", self.kd_ratio)?;
        check_answers(self.max_new_tokens)
    }

    fn objective(&self) -> Objective {
        if self.kd_ratio == 0.0 {
            Objective::CrossEntropy
        } else {
            Loss::new(Divergence::forward_kl()).objective(self.kd_ratio)
        }
    }
}

impl Behaviour for SeqKdSettings {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, None, self)
    }

    fn driver(&self, _: f64) -> Box<dyn Driver> {
        Box::new(Fixed(self.objective()))
    }

    fn teacher_answers(&self) -> Option<Option<usize>> {
        Some(self.max_new_tokens)
    }

    fn needs_teacher(&self) -> bool {
        self.kd_ratio > 0.0
    }

    fn uses_teacher_on_data(&self) -> bool {
        false
    }
}
