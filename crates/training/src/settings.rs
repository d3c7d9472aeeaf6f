//! Settings of a training run.

use abkd_models::lora::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Which epoch's weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepBest {
    /// Lowest validation cross-entropy.
    Loss,
    /// Highest validation ROUGE-L.
    RougeL,
}

/// Settings of a training run. Defaults are the protocol's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Passes over the data.
    pub epochs: usize,
    /// Sequences an update.
    pub batch_size: usize,
    /// Learning rate of the first update.
    pub learning_rate: f64,
    /// Learning rate that the cosine ends at.
    #[serde(default = "defaults::min_learning_rate")]
    pub min_learning_rate: f64,
    /// AdamW's second beta.
    #[serde(
        default = "defaults::beta_2",
        skip_serializing_if = "defaults::is_beta_2"
    )]
    pub beta_2: f64,
    /// AdamW's decay of matrices.
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Sequences that go through the models at a time; absent: the whole batch. An update's mean is
    /// over all its tokens either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Micro-batches that go through the models at the same time, each on a thread; absent: 1. Changes time and memory,
    /// not the result, and helps on the CPU alone; with dropout the threads' draws mix, so a run is not repeatable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_micro_batches: Option<usize>,
    /// Whether the student's layers are worked out again in the backward pass, one at a time: memory for one layer's
    /// activations instead of all, for about a third more time. Not with `parallel_micro_batches`, whose draws mix.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// Low-rank adapters: they alone are trained; absent: all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Weight of the language-modelling term, where there is text.
    #[serde(
        default = "defaults::lm_coef",
        skip_serializing_if = "defaults::is_lm_coef"
    )]
    pub lm_coef: f64,
    /// Limit of the global gradient norm.
    #[serde(default = "defaults::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Stop after this many updates an epoch; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_per_epoch: Option<usize>,
    /// Which epoch's weights are kept.
    #[serde(default = "defaults::keep_best")]
    pub keep_best: KeepBest,
    /// Seed of data order and dropout.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
}

mod defaults {
    use super::KeepBest;
    pub fn min_learning_rate() -> f64 {
        1e-7
    }
    pub fn beta_2() -> f64 {
        0.999
    }
    #[allow(clippy::trivially_copy_pass_by_ref, clippy::float_cmp)] // serde's signature
    pub fn is_beta_2(value: &f64) -> bool {
        *value == beta_2()
    }
    pub fn lm_coef() -> f64 {
        1.0
    }
    #[allow(clippy::trivially_copy_pass_by_ref, clippy::float_cmp)] // serde's signature
    pub fn is_lm_coef(value: &f64) -> bool {
        *value == lm_coef()
    }
    pub fn weight_decay() -> f64 {
        0.01
    }
    pub fn max_grad_norm() -> f64 {
        1.0
    }
    pub fn keep_best() -> KeepBest {
        KeepBest::RougeL
    }
    pub fn seed() -> u64 {
        10
    }
}

impl Settings {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] names the key.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |key, value: String, reason| Err(Error::Setting { key, value, reason });
        for (key, value) in [("epochs", self.epochs), ("batch_size", self.batch_size)] {
            if value == 0 {
                return refuse(key, "0".into(), "it must be 1 or more");
            }
        }
        if self.micro_batch_size == Some(0) {
            return refuse("micro_batch_size", "0".into(), "it must be 1 or more");
        }
        if self.parallel_micro_batches == Some(0) {
            return refuse("parallel_micro_batches", "0".into(), "it must be 1 or more");
        }
        if self.gradient_checkpointing && self.parallel_micro_batches.is_some_and(|n| n > 1) {
            let reason = "layers that are worked out again would draw another dropout: leave parallel_micro_batches out";
            return refuse("gradient_checkpointing", "true".into(), reason);
        }
        if !(0.0..1.0).contains(&self.beta_2) {
            return refuse("beta_2", self.beta_2.to_string(), "it must lie in [0, 1)");
        }
        if let Some(lora) = &self.lora {
            lora.validate()?;
        }
        if self.steps_per_epoch == Some(0) {
            return refuse("steps_per_epoch", "0".into(), "it must be 1 or more");
        }
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return refuse(key, value.to_string(), "it must be a positive number");
            }
        }
        for (key, value) in [
            ("lm_coef", self.lm_coef),
            ("min_learning_rate", self.min_learning_rate),
            ("weight_decay", self.weight_decay),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(key, value.to_string(), "it must be 0 or more");
            }
        }
        Ok(())
    }

    /// Updates an epoch over `sequences` sequences: whole batches only, but at least one.
    pub fn steps_an_epoch(&self, sequences: usize) -> usize {
        let whole = (sequences / self.batch_size).max(1);
        self.steps_per_epoch.map_or(whole, |limit| limit.min(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_batches_count() {
        let settings: Settings =
            serde_json::from_str(r#"{"epochs":1,"batch_size":16,"learning_rate":1e-3}"#).unwrap();
        assert_eq!(settings.steps_an_epoch(11_435), 714);
        assert_eq!(settings.steps_an_epoch(5), 1);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let mut settings: Settings =
            serde_json::from_str(r#"{"epochs":1,"batch_size":16,"learning_rate":1e-3}"#).unwrap();
        settings.learning_rate = f64::NAN;
        assert!(
            settings
                .validate()
                .unwrap_err()
                .to_string()
                .contains("learning_rate")
        );
    }
}
