//! Settings of a training run.

use abkd_host::choice;
use abkd_models::lora::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::{Error, optim};

choice! {
    "keep_best"
    /// Which validation's weights are kept.
    pub enum KeepBest {
        /// Lowest validation cross-entropy.
        Loss = "loss",
        /// Highest validation ROUGE-L.
        RougeL = "rouge_l",
        /// The last validation, whatever its scores.
        Last = "last",
    }
}

choice! {
    "schedule"
    /// How the learning rate changes from update to update.
    #[derive(Default)]
    pub enum Schedule {
        /// Half a cosine from `learning_rate` to `min_learning_rate`, without warm-up.
        #[default]
        Cosine = "cosine",
        /// Linear from 0 over `warmup` updates, then constant; `min_learning_rate` is unused.
        ConstantWarmup = "constant_warmup",
        /// Linear from 0 over `warmup` updates, then half a cosine to 0; `min_learning_rate` is unused.
        CosineWarmup = "cosine_warmup",
    }
}

/// Settings of a training run. The defaults are those of the protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Passes over the data.
    pub epochs: usize,
    /// Sequences per update.
    pub batch_size: usize,
    /// Highest learning rate: at the first update, or at the first one after the warm-up.
    pub learning_rate: f64,
    /// Final learning rate of the schedule `cosine`.
    #[serde(default = "defaults::min_learning_rate")]
    pub min_learning_rate: f64,
    /// How the learning rate changes.
    #[serde(default, skip_serializing_if = "defaults::is_cosine")]
    pub schedule: Schedule,
    /// Updates of the warm-up: the learning rate rises from 0 at the first update; absent: no warm-up. Only with a schedule
    /// that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<usize>,
    /// AdamW's second beta.
    #[serde(
        default = "defaults::beta_2",
        skip_serializing_if = "defaults::is_beta_2"
    )]
    pub beta_2: f64,
    /// AdamW's weight decay, on matrices only.
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Sequences of a micro-batch, which goes through the models at once; absent: the whole batch. The loss
    /// is the mean over all tokens of the update either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Micro-batches that run in parallel, each on a thread; absent: 1. Changes time and memory, not the result, and helps
    /// on the CPU only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_micro_batches: Option<usize>,
    /// Whether the student's layers are recomputed one by one in the backward pass: memory for the activations of one
    /// layer instead of all, for about a third more time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// Low-rank adapters, the only trained weights; absent: all weights are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Weight of the language-modelling term, where the run has plain text.
    #[serde(
        default = "defaults::lm_coef",
        skip_serializing_if = "defaults::is_lm_coef"
    )]
    pub lm_coef: f64,
    /// Limit of the global gradient norm.
    #[serde(default = "defaults::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Limit of updates per epoch; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_per_epoch: Option<usize>,
    /// Limit of updates of the whole run; absent: no limit. The schedule of the learning rate ends there, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_updates: Option<usize>,
    /// Updates between validations; absent: one validation per epoch. A validation follows the last update in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<usize>,
    /// Whether each validation measures where the student's probability mass lies beside the teacher's ([`Masses`]). Changes
    /// nothing else.
    ///
    /// [`Masses`]: crate::head::Masses
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masses: bool,
    /// Which validation's weights are kept.
    #[serde(default = "defaults::keep_best")]
    pub keep_best: KeepBest,
    /// Seed of data order and dropout.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
}

/// Limit of epochs, sequences per batch and similar counts: more is a typing error, and products of them overflow.
const LARGEST: usize = 1_000_000;
/// Limit of settings that count updates.
const MOST_UPDATES: usize = 1_000_000_000;
/// Highest rank of an adapter: wider than any layer.
const HIGHEST_RANK: usize = 1 << 16;

mod defaults {
    use super::{KeepBest, Schedule};
    pub fn is_cosine(value: &Schedule) -> bool {
        *value == Schedule::Cosine
    }
    pub fn min_learning_rate() -> f64 {
        1e-7
    }
    pub fn beta_2() -> f64 {
        0.999
    }
    pub fn is_beta_2(value: &f64) -> bool {
        *value == beta_2()
    }
    pub fn lm_coef() -> f64 {
        1.0
    }
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
    /// Settings with defaults for all keys that have one.
    ///
    /// # Panics
    ///
    /// With a learning rate that is NaN or infinite.
    pub fn new(epochs: usize, batch_size: usize, learning_rate: f64) -> Self {
        let three = serde_json::json!({
            "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        });
        serde_json::from_value(three).expect("all other keys have defaults")
    }

    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] names the key.
    pub fn validate(&self) -> Result<(), Error> {
        for (key, value, least, most) in [
            ("epochs", Some(self.epochs), 1, LARGEST),
            ("batch_size", Some(self.batch_size), 1, LARGEST),
            ("micro_batch_size", self.micro_batch_size, 1, LARGEST),
            (
                "parallel_micro_batches",
                self.parallel_micro_batches,
                1,
                LARGEST,
            ),
            ("steps_per_epoch", self.steps_per_epoch, 1, MOST_UPDATES),
            ("max_updates", self.max_updates, 1, MOST_UPDATES),
            ("validate_every", self.validate_every, 1, MOST_UPDATES),
            ("warmup", self.warmup, 0, MOST_UPDATES),
        ] {
            let Some(value) = value else { continue };
            if value < least {
                return Err(Error::setting(key, value, "it must be 1 or more"));
            }
            if value > most {
                let reason = format!("it must be {most} or less");
                return Err(Error::setting(key, value, reason));
            }
        }
        if let (Schedule::Cosine, Some(warmup)) = (self.schedule, self.warmup) {
            let reason = "the schedule `cosine` has no warm-up; leave it out, or take schedule = \"cosine_warmup\" or \"constant_warmup\"";
            return Err(Error::setting("warmup", warmup, reason));
        }
        if !(0.0..1.0).contains(&self.beta_2) {
            let reason = "it must lie in [0, 1)";
            return Err(Error::setting("beta_2", self.beta_2, reason));
        }
        if let Some(lora) = &self.lora {
            lora.validate()?;
            if lora.r > HIGHEST_RANK {
                let reason = format!("the rank must be {HIGHEST_RANK} or less");
                return Err(Error::setting("lora.r", lora.r, reason));
            }
        }
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::setting(key, value, "it must be a positive number"));
            }
        }
        for (key, value) in [
            ("lm_coef", self.lm_coef),
            ("min_learning_rate", self.min_learning_rate),
            ("weight_decay", self.weight_decay),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::setting(key, value, "it must be 0 or more"));
            }
        }
        if self.schedule == Schedule::Cosine && self.min_learning_rate > self.learning_rate {
            let reason = format!(
                "the schedule ends there; it must be learning_rate = {} or less",
                self.learning_rate
            );
            let lowest = self.min_learning_rate;
            return Err(Error::setting("min_learning_rate", lowest, reason));
        }
        Ok(())
    }

    /// Checks that the score of `keep_best` is measured. `loss`: a validation sequence has a response token; `answers`:
    /// validation answers are sampled.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`]: the score of `keep_best` is not measured.
    pub fn check_validation(&self, loss: bool, answers: bool) -> Result<(), Error> {
        let measured = match self.keep_best {
            KeepBest::Last => true,
            KeepBest::Loss => loss,
            // Without answers the loss is used.
            KeepBest::RougeL => loss || answers,
        };
        if measured {
            return Ok(());
        }
        let word: &str = self.keep_best.into();
        let reason = "no validation example has a response token, so that nothing says which weights are best; give validation examples, or keep_best = \"last\"";
        Err(Error::setting("keep_best", format!("\"{word}\""), reason))
    }

    /// Checks the settings against the number of training sequences.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate), and for a warm-up that is longer than the run.
    pub fn check_run(&self, sequences: usize) -> Result<(), Error> {
        self.validate()?;
        let updates = self.updates(sequences);
        match self.warmup {
            Some(warmup) if warmup > updates => {
                let reason = format!("the run has {updates} updates; it must be that or less");
                Err(Error::setting("warmup", warmup, reason))
            }
            _ => Ok(()),
        }
    }

    /// Updates per epoch over `sequences` sequences: whole batches only, but at least one.
    pub fn steps_an_epoch(&self, sequences: usize) -> usize {
        let whole = (sequences / self.batch_size).max(1);
        self.steps_per_epoch.map_or(whole, |limit| limit.min(whole))
    }

    /// Updates of the whole run over `sequences` sequences.
    pub fn updates(&self, sequences: usize) -> usize {
        let all = self.epochs.saturating_mul(self.steps_an_epoch(sequences));
        self.max_updates.map_or(all, |limit| limit.min(all))
    }

    /// Settings for a timed run of `updates` updates or one epoch, whichever is less: without the warm-up, which may be
    /// longer, and with one validation at the end.
    pub fn measured(&self, updates: usize) -> Self {
        Self {
            epochs: 1,
            warmup: None,
            steps_per_epoch: None,
            max_updates: Some(updates),
            validate_every: Some(updates),
            masses: false,
            keep_best: KeepBest::Last,
            ..self.clone()
        }
    }

    /// Validations of the whole run over `sequences` sequences.
    pub fn validations(&self, sequences: usize) -> usize {
        self.updates(sequences)
            .div_ceil(self.validation_interval(sequences))
    }

    /// Whether a validation follows the first `step` updates.
    pub(crate) fn validates_after(&self, step: usize, sequences: usize) -> bool {
        step.is_multiple_of(self.validation_interval(sequences)) || step == self.updates(sequences)
    }

    fn validation_interval(&self, sequences: usize) -> usize {
        self.validate_every
            .unwrap_or_else(|| self.steps_an_epoch(sequences))
    }

    /// Learning rate of the update numbered `step` from 0, of `updates` in all.
    pub fn rate(&self, step: usize, updates: usize) -> f64 {
        let (peak, warmup) = (self.learning_rate, self.warmup.unwrap_or(0));
        match self.schedule {
            Schedule::Cosine => optim::cosine(step, updates, peak, self.min_learning_rate),
            Schedule::ConstantWarmup => optim::constant_warmup(step, warmup, peak),
            Schedule::CosineWarmup => optim::cosine_warmup(step, updates, warmup, peak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &str) -> Result<Settings, serde_json::Error> {
        serde_json::from_str(&format!(
            r#"{{"epochs":1,"batch_size":16,"learning_rate":1e-3{more}}}"#
        ))
    }

    #[test]
    fn only_whole_batches_count() {
        let settings = settings("").unwrap();
        assert_eq!(settings.steps_an_epoch(11_435), 714);
        assert_eq!(settings.steps_an_epoch(5), 1);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let mut settings = settings("").unwrap();
        settings.learning_rate = f64::NAN;
        let text = settings.validate().unwrap_err().to_string();
        assert!(text.contains("learning_rate"), "{text}");
    }

    #[test]
    fn what_no_run_can_have_is_refused_by_its_key() {
        for (key, value) in [
            ("epochs", "1000000000000"),
            ("batch_size", "0"),
            ("micro_batch_size", "0"),
            ("max_updates", "9000000000000000000"),
            ("learning_rate", "-1e-3"),
            ("min_learning_rate", "1.0"),
            ("weight_decay", "-0.1"),
        ] {
            let mut json = serde_json::to_value(settings("").unwrap()).unwrap();
            json[key] = serde_json::from_str(value).unwrap();
            let settings: Settings = serde_json::from_value(json).unwrap();
            let text = settings.validate().unwrap_err().to_string();
            assert!(text.contains(&format!("`{key}`")), "{text}");
        }
        let wide = settings(r#","lora":{"r":1000000000,"alpha":1.0}"#).unwrap();
        let text = wide.validate().unwrap_err().to_string();
        assert!(
            text.contains("lora.r") && text.contains("65536 or less"),
            "{text}"
        );
        // and unchecked counts saturate instead of wrapping
        let mut endless = settings("").unwrap();
        endless.epochs = usize::MAX;
        assert_eq!(endless.updates(16 * 9), usize::MAX);
    }

    #[test]
    fn what_is_kept_must_be_measured() {
        for (keep, loss, answers, good) in [
            ("loss", false, true, false),
            ("loss", true, false, true),
            ("rouge_l", false, false, false),
            ("rouge_l", false, true, true),
            ("last", false, false, true),
        ] {
            let settings = settings(&format!(r#","keep_best":"{keep}""#)).unwrap();
            let checked = settings.check_validation(loss, answers);
            assert_eq!(checked.is_ok(), good, "{keep} {loss} {answers}");
            if let Err(error) = checked {
                assert!(
                    error
                        .to_string()
                        .contains(&format!("`keep_best` = \"{keep}\""))
                );
            }
        }
    }

    #[test]
    fn an_unknown_word_is_named_with_its_key_and_the_known_ones() {
        for (key, known) in [("schedule", "cosine_warmup"), ("keep_best", "rouge_l")] {
            let text = settings(&format!(r#","{key}":"best""#))
                .unwrap_err()
                .to_string();
            for part in [key, "best", known] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn a_warm_up_needs_its_schedule_and_fits_the_run() {
        let cosine = settings(r#","warmup":5"#).unwrap();
        let text = cosine.validate().unwrap_err().to_string();
        assert!(
            text.contains("`warmup` = 5") && text.contains("cosine_warmup"),
            "{text}"
        );
        let warm = settings(r#","warmup":5,"schedule":"constant_warmup""#).unwrap();
        warm.validate().unwrap();
        warm.check_run(16 * 5).unwrap();
        let text = warm.check_run(16 * 4).unwrap_err().to_string();
        assert!(
            text.contains("`warmup` = 5") && text.contains('4'),
            "{text}"
        );
        let limited = Settings {
            max_updates: Some(4),
            ..warm
        };
        limited.check_run(16 * 5).unwrap_err();
    }

    #[test]
    fn a_limit_of_updates_ends_the_run_within_an_epoch_and_is_followed_by_a_validation() {
        let settings = settings(r#","max_updates":7,"validate_every":3"#).unwrap();
        assert_eq!(settings.updates(16 * 20), 7);
        assert_eq!(settings.updates(16 * 5), 5);
        let after = |sequences| -> Vec<usize> {
            (1..=settings.updates(sequences))
                .filter(|&step| settings.validates_after(step, sequences))
                .collect()
        };
        assert_eq!(after(16 * 20), [3, 6, 7]);
        assert_eq!(settings.validations(16 * 20), 3);
        let each_epoch = Settings {
            epochs: 3,
            validate_every: None,
            ..settings.clone()
        };
        let after: Vec<usize> = (1..=7)
            .filter(|&step| each_epoch.validates_after(step, 16 * 3))
            .collect();
        assert_eq!(after, [3, 6, 7]);
    }

    #[test]
    fn a_measured_run_is_short_and_has_no_warm_up() {
        let long =
            settings(r#","warmup":50,"schedule":"cosine_warmup","max_updates":200"#).unwrap();
        let short = long.measured(12);
        short.check_run(16 * 100).unwrap();
        assert_eq!(
            (short.updates(16 * 100), short.validations(16 * 100)),
            (12, 1)
        );
        assert_eq!(short.updates(16 * 5), 5);
    }

    #[test]
    fn defaults_are_not_written() {
        let text = serde_json::to_string(&settings("").unwrap()).unwrap();
        for key in ["schedule", "warmup", "max_updates", "validate_every"] {
            assert!(!text.contains(key), "{text}");
        }
        let other = settings(r#","warmup":5,"schedule":"constant_warmup""#).unwrap();
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), other);
    }
}
