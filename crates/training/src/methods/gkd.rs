//! GKD: Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
//! Mistakes" (ICLR 2024), Algorithm 1.

use abkd_losses::{Divergence, Fidelity};
use serde::{Deserialize, Serialize};

use super::on_policy::{self, Labels, Sampling};
use super::{Driver, Loss, Moment};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared};

/// Settings of GKD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GkdSettings {
    /// Share of updates on the student's own answers: `mixed_alpha` of the released scripts.
    #[serde(default = "half")]
    pub lambda: f64,
    /// `beta` of the generalized Jensen divergence `beta KL(p, m) + (1 - beta) KL(q, m)`,
    /// `m = beta p + (1 - beta) q`. Default 0.1, the released script's `lambda` 0.9.
    #[serde(default)]
    pub beta: Option<f64>,
    /// Temperature of the student's answers.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Most tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    /// Which positions of an answer count.
    #[serde(default)]
    pub labels: Labels,
}

fn half() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}

impl GkdSettings {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.lambda) {
            return Err(format!(
                "lambda = {}: it must lie between 0 and 1",
                self.lambda
            ));
        }
        if let Some(beta) = self.beta.filter(|b| !(*b > 0.0 && *b < 1.0)) {
            return Err(format!(
                "beta = {beta}: it must lie between 0 and 1, both excluded"
            ));
        }
        Ok(())
    }

    /// The generalized Jensen divergence; ours weighs by `lambda = 1 - beta`.
    pub(super) fn default_loss(&self) -> Loss {
        Loss {
            divergence: Divergence::Jensen {
                lambda: 1.0 - self.beta.unwrap_or(0.1),
            },
            fidelity: Fidelity::Paper,
        }
    }
}

pub(super) struct Gkd {
    objective: Objective,
    settings: GkdSettings,
}

impl Gkd {
    pub(super) fn new(objective: Objective, settings: GkdSettings) -> Self {
        Self {
            objective,
            settings,
        }
    }
}

impl Driver for Gkd {
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        if on_policy::coin(at, 1) < self.settings.lambda {
            let sampling = Sampling {
                temperature: self.settings.temperature,
                max_new_tokens: self.settings.max_new_tokens,
            };
            let answers = on_policy::sample(at, &data.sequences, sampling)?;
            if let Some(batch) = on_policy::lay(at, &answers, self.settings.labels) {
                return Ok(vec![Term {
                    batch,
                    objective: self.objective.clone(),
                    weight: 1.0,
                    from_data: false,
                }]);
            }
        }
        Ok(vec![data.term(self.objective.clone())])
    }
}
