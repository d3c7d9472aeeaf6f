//! MiniLLM: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models" (ICLR 2024).
//!
//! A round samples answers from a mixture of teacher and student, scores every token by the reward
//! `(log p - log q) / reward_scaling`, and makes several passes over them: PPO's clipped policy gradient with
//! importance weights and length-normalised rewards-to-go, the single-step reverse KL, and a supervised
//! term, cross-entropy and forward KL half each.
//!
//! Defaults are the released scripts', which depart from the paper: rewards are divided by 0.5 and in effect not clipped;
//! whitening includes the zeros of the padding; the student has no dropout; the supervised term is on plain text and
//! absent without it. Differences from the released code: rewards are whitened over the whole update, not over the
//! micro-batches that all GPUs run at the same time; each mean is over the tokens of the whole update, not a mean of
//! micro-batch means.

use abkd_data::rng::Rng;
use abkd_data::{Sequence, collate};
use abkd_host::choice;
use abkd_losses::{Divergence, Fidelity};
use abkd_models::generate::Sampler;
use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::on_policy::{self, prompts, with_answers};
use super::{
    Behaviour, Driver, Entry, Moment, Parts, Sampled, check_not_negative, check_share, no_loss,
    parse,
};
use crate::head::{Objective, PolicyRows};
use crate::step::Term;
use crate::timing::Phase;
use crate::{Error, Prepared, Settings};

pub(super) const ENTRY: Entry = Entry {
    id: "minillm",
    about: "policy gradient on reverse KL: teacher-mixed rollouts, PPO clip, length norm",
    build: |loss, settings| {
        no_loss(loss)?;
        let settings: MiniLlmSettings = parse(settings)?;
        settings.check()?;
        Ok(Box::new(settings))
    },
};

impl Behaviour for MiniLlmSettings {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, None, self)
    }

    fn driver(&self, _: f64) -> Box<dyn Driver> {
        Box::new(MiniLlm::new(self.clone()))
    }

    fn sampled(&self) -> Vec<Sampled> {
        let share = 1.0 / self.inner_epochs as f64;
        let by_student = Sampled::by_student(share, self.max_new_tokens);
        let by_teacher = Sampled {
            by_teacher: true,
            ..by_student
        };
        vec![by_student, by_teacher]
    }

    fn trains_with_dropout(&self) -> bool {
        self.dropout
    }

    fn uses_teacher_on_data(&self) -> bool {
        self.data_term == DataTerm::Data
    }

    /// One batch of rollouts, and one of the data with the supervised term on it.
    fn passes(&self) -> f64 {
        match self.data_term {
            DataTerm::Data => 2.0,
            DataTerm::Text | DataTerm::None => 1.0,
        }
    }

    /// A round has one batch of rollouts, so that a timed window holds whole rounds. The share of sampling stays one answer
    /// per `inner_epochs` sequences.
    fn timed(&self, batch_size: usize) -> Option<Box<dyn Behaviour>> {
        Some(Box::new(Self {
            rollouts: batch_size,
            ..self.clone()
        }))
    }
}

choice! {
    "whitening"
    /// Mean and variance that whiten the rewards-to-go.
    #[derive(Default)]
    pub enum Whitening {
        /// As released: over a matrix of answers x `max_new_tokens` with zeros as padding. The mean over the tokens alone is
        /// then not 0.
        #[default]
        Padded = "padded",
        /// Over the tokens alone.
        Masked = "masked",
    }
}

choice! {
    "data_term"
    /// Data of the supervised term. A run's plain text is used for no other term.
    #[derive(Default)]
    pub enum DataTerm {
        /// As released: plain text if the run has some, else no supervised term.
        #[default]
        Text = "text",
        /// The training data.
        Data = "data",
        /// No supervised term.
        None = "none",
    }
}

/// Settings of MiniLLM. Defaults are the released scripts'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MiniLlmSettings {
    /// Answers sampled per round.
    pub rollouts: usize,
    /// Passes over a round's answers.
    pub inner_epochs: usize,
    /// Weight of the teacher in the sampling mixture (the paper's alpha).
    pub teacher_mix: f64,
    /// Discount of later rewards.
    pub gamma: f64,
    /// Rewards are divided by this.
    pub reward_scaling: f64,
    /// Scaled rewards are clipped to +- this; 0: no clip.
    pub reward_clip: f64,
    /// PPO's clip of the ratio.
    pub ppo_clip: f64,
    /// Whether the reward-to-go is divided by the number of tokens left.
    pub length_norm: bool,
    /// Mean and variance that whiten the rewards-to-go of an update.
    pub whitening: Whitening,
    /// Whether the single-step reverse KL is added.
    pub single_step: bool,
    /// Data of the supervised term.
    pub data_term: DataTerm,
    /// Share of the forward KL in the supervised term; the rest is cross-entropy.
    pub kd_ratio: f64,
    /// Weight of the supervised term.
    pub lm_coef: f64,
    /// Whether the student has dropout in training.
    pub dropout: bool,
    /// Temperature of sampling.
    pub temperature: f64,
    /// Batch size of sampling.
    pub sampling_batch_size: usize,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    pub max_new_tokens: Option<usize>,
}

/// Limit of answers per round and similar counts: more is a typing error.
const LARGEST: usize = 1_000_000;

impl Default for MiniLlmSettings {
    fn default() -> Self {
        Self {
            rollouts: 256,
            inner_epochs: 4,
            teacher_mix: 0.2,
            gamma: 0.95,
            reward_scaling: 0.5,
            reward_clip: 100.0,
            ppo_clip: 0.2,
            length_norm: true,
            whitening: Whitening::default(),
            single_step: true,
            data_term: DataTerm::default(),
            kd_ratio: 0.5,
            lm_coef: 1.0,
            dropout: false,
            temperature: 1.0,
            sampling_batch_size: 64,
            max_new_tokens: None,
        }
    }
}

impl MiniLlmSettings {
    pub(crate) fn check(&self) -> Result<(), String> {
        for (key, value) in [
            ("rollouts", self.rollouts),
            ("inner_epochs", self.inner_epochs),
            ("sampling_batch_size", self.sampling_batch_size),
        ] {
            if value == 0 {
                return Err(format!("{key} = 0: it must be 1 or more"));
            }
            if value > LARGEST {
                return Err(format!("{key} = {value}: it must be {LARGEST} or less"));
            }
        }
        on_policy::check_sampling(self.temperature, self.max_new_tokens)?;
        check_share("teacher_mix", self.teacher_mix)?;
        check_share("gamma", self.gamma)?;
        check_share("kd_ratio", self.kd_ratio)?;
        if !(self.reward_scaling.is_finite() && self.reward_scaling > 0.0) {
            return Err(format!(
                "reward_scaling = {}: rewards are divided by it; it must be a positive number, and 1 leaves them as they are",
                self.reward_scaling
            ));
        }
        check_not_negative("reward_clip", self.reward_clip)?;
        check_not_negative("ppo_clip", self.ppo_clip)?;
        check_not_negative("lm_coef", self.lm_coef)
    }
}

/// Per-token scores of a sampled answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenScores {
    /// `log q` of each token when it was sampled.
    pub log_prob: Vec<f32>,
    /// Importance weight of each token: `q` over the sampling mixture.
    pub weight: Vec<f32>,
    /// Reward-to-go of each token.
    pub reward_to_go: Vec<f32>,
}

impl TokenScores {
    /// From the log-probabilities of an answer's tokens at sampling time: `log_q` of the student, `log_p` of the teacher.
    pub fn new(settings: &MiniLlmSettings, log_q: &[f32], log_p: &[f32]) -> Self {
        Self {
            log_prob: log_q.to_vec(),
            weight: importance_weights(log_q, log_p, settings.teacher_mix),
            reward_to_go: rewards_to_go(settings, &rewards(settings, log_q, log_p)),
        }
    }
}

/// A sampled answer and the scores of its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rollout {
    sequence: Sequence,
    tokens: TokenScores,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    round: Option<usize>,
    rollouts: Vec<Rollout>,
}

pub(super) struct MiniLlm {
    settings: MiniLlmSettings,
    state: State,
}

/// Position of an update in the rounds.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    round: usize,
    inner_epoch: usize,
    index: usize,
}

impl MiniLlm {
    pub(super) fn new(settings: MiniLlmSettings) -> Self {
        Self {
            settings,
            state: State::default(),
        }
    }

    /// A round has `inner_epochs` passes of whole batches.
    fn place(&self, step: usize, batch_size: usize) -> Place {
        let batches = (self.settings.rollouts / batch_size).max(1);
        let round = batches * self.settings.inner_epochs;
        Place {
            round: step / round,
            inner_epoch: step % round / batches,
            index: step % batches,
        }
    }

    fn sample_round(&mut self, at: &mut Moment, round: usize) -> Result<(), Error> {
        let n = self.settings.rollouts;
        let chosen = prompts_of_round(at, round, n);
        let teacher = at.teacher.expect("MiniLLM has a teacher");
        let settings = &self.settings;
        let mix = settings.teacher_mix;
        let decoding = on_policy::decoding(
            at,
            settings.temperature,
            settings.max_new_tokens,
            settings.sampling_batch_size,
        );
        let student = &at.student.valid();
        let models = [(student, 1.0 - mix), (teacher, mix)];
        let models = if mix == 0.0 { &models[..1] } else { &models };
        let keys: Vec<u64> = (0..n as u64).collect();
        let (seed, ends) = (on_policy::sampling_seed(at), at.tokenizer.ends());
        let step = at.step;
        self.state.rollouts = at.phases.time(Phase::Generation, || {
            let answers = Sampler::mixture(models)?.generate(
                &prompts(&chosen),
                &keys,
                seed,
                ends,
                &decoding,
                &mut |_| {},
            )?;
            let sequences = with_answers(&chosen, answers);
            score(settings, student, teacher, sequences, step)
        })?;
        self.state.round = Some(round);
        Ok(())
    }

    /// The policy gradient on answers of at most `width` tokens, with advantages whitened over these answers.
    fn term(&self, chosen: Vec<&Rollout>, width: usize) -> Term {
        let tokens: Vec<&TokenScores> = chosen.iter().map(|r| &r.tokens).collect();
        let policy = policy_rows(&self.settings, &tokens, width);
        let sequences: Vec<&Sequence> = chosen.iter().map(|r| &r.sequence).collect();
        Term::sampled(collate(&sequences), Objective::Policy(policy))
    }
}

/// The prompts of a round: the next `n` of an infinite sequence of shuffled epochs over the data.
fn prompts_of_round<'a>(at: &Moment<'a>, round: usize, n: usize) -> Vec<&'a Sequence> {
    let total = at.sequences.len();
    let mut pass: Option<(usize, Vec<usize>)> = None;
    (round * n..(round + 1) * n)
        .map(|k| {
            let number = k / total;
            if pass.as_ref().is_none_or(|(p, _)| *p != number) {
                let mut order: Vec<usize> = (0..total).collect();
                Rng::new(&[at.settings.seed, number as u64, 4]).shuffle(&mut order);
                pass = Some((number, order));
            }
            let (_, order) = pass.as_ref().expect("just set");
            &at.sequences[order[k % total]]
        })
        .collect()
}

/// Log-probabilities, importance weights and rewards-to-go of sampled answers; `step` is for errors.
fn score(
    settings: &MiniLlmSettings,
    student: &abkd_models::LanguageModel,
    teacher: &abkd_models::LanguageModel,
    sequences: Vec<Sequence>,
    step: usize,
) -> Result<Vec<Rollout>, Error> {
    let mut rollouts = Vec::with_capacity(sequences.len());
    for part in sequences.chunks(settings.sampling_batch_size) {
        let laid = collate(&part.iter().collect::<Vec<_>>());
        let [log_q, log_p] = on_policy::score(student, teacher, &laid, step)?;
        let mut start = 0;
        for sequence in part {
            let end = start + sequence.tokens.len() - sequence.prompt_len;
            let (log_q, log_p) = (&log_q[start..end], &log_p[start..end]);
            rollouts.push(Rollout {
                sequence: sequence.clone(),
                tokens: TokenScores::new(settings, log_q, log_p),
            });
            start = end;
        }
    }
    Ok(rollouts)
}

/// `q / ((1 - mix) q + mix p)` of every token.
pub fn importance_weights(log_q: &[f32], log_p: &[f32], mix: f64) -> Vec<f32> {
    let weight = |(q, p): (&f32, &f32)| {
        let ratio = (f64::from(*p) - f64::from(*q)).exp();
        (1.0 / ((1.0 - mix) + mix * ratio)) as f32
    };
    log_q.iter().zip(log_p).map(weight).collect()
}

/// `(log p - log q) / reward_scaling` of every token, clipped to +- `reward_clip`.
pub fn rewards(settings: &MiniLlmSettings, log_q: &[f32], log_p: &[f32]) -> Vec<f64> {
    let limit = if settings.reward_clip > 0.0 {
        settings.reward_clip
    } else {
        f64::INFINITY
    };
    let reward = |(q, p): (&f32, &f32)| {
        ((f64::from(*p) - f64::from(*q)) / settings.reward_scaling).clamp(-limit, limit)
    };
    log_q.iter().zip(log_p).map(reward).collect()
}

/// `sum_{s >= t} gamma^(s - t) r_s`, divided by the number of tokens left if `length_norm`.
pub fn rewards_to_go(settings: &MiniLlmSettings, rewards: &[f64]) -> Vec<f32> {
    let n = rewards.len();
    let mut sum = 0.0;
    let mut out = vec![0.0; n];
    for t in (0..n).rev() {
        sum = rewards[t] + settings.gamma * sum;
        let left = if settings.length_norm { n - t } else { 1 };
        out[t] = (sum / left as f64) as f32;
    }
    out
}

/// Inputs of the policy loss for the tokens of an update's answers, one answer after the other. `width` is the limit of
/// tokens of an answer.
pub fn policy_rows(
    settings: &MiniLlmSettings,
    answers: &[&TokenScores],
    width: usize,
) -> PolicyRows {
    let gather =
        |f: fn(&TokenScores) -> &Vec<f32>| answers.iter().flat_map(|a| f(a).clone()).collect();
    let mut advantage: Vec<f32> = gather(|a| &a.reward_to_go);
    let entries = match settings.whitening {
        Whitening::Padded => (answers.len() * width).max(advantage.len()),
        Whitening::Masked => advantage.len(),
    };
    whiten(&mut advantage, entries);
    PolicyRows {
        old_log_prob: gather(|a| &a.log_prob),
        advantage,
        weight: gather(|a| &a.weight),
        clip: settings.ppo_clip as f32,
        single_step: settings.single_step,
    }
}

/// Whitens `values`, padded with zeros to `entries` entries: mean 0 and variance 1 over all entries.
fn whiten(values: &mut [f32], entries: usize) {
    let n = entries as f64;
    let zeros = n - values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let variance = (squares + zeros * mean.powi(2)) / n;
    let scale = 1.0 / (variance + 1e-8).sqrt();
    for x in values {
        *x = ((f64::from(*x) - mean) * scale) as f32;
    }
}

/// `(1 - kd_ratio) x cross-entropy + kd_ratio x forward KL`.
pub fn supervised(settings: &MiniLlmSettings) -> Objective {
    Objective::Distill {
        divergence: Divergence::forward_kl(),
        fidelity: Fidelity::Paper,
        kd_ratio: settings.kd_ratio,
    }
}

impl Driver for MiniLlm {
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        let size = data.sequences.len();
        let place = self.place(at.step, size);
        if self.state.round != Some(place.round) {
            self.sample_round(at, place.round)?;
        }
        let key = [
            at.settings.seed,
            place.round as u64,
            place.inner_epoch as u64,
            5,
        ];
        let width = self.settings.max_new_tokens.unwrap_or(at.max_new_tokens);
        let rollouts = at.phases.time(Phase::Data, || {
            let mut order: Vec<usize> = (0..self.state.rollouts.len()).collect();
            Rng::new(&key).shuffle(&mut order);
            let chosen = order.iter().skip(place.index * size).take(size);
            let chosen = chosen.map(|&i| &self.state.rollouts[i]).collect();
            self.term(chosen, width)
        });
        let mut terms = vec![rollouts];
        if self.settings.data_term == DataTerm::Data {
            terms.push(Term {
                weight: self.settings.lm_coef,
                ..data.term(supervised(&self.settings))
            });
        }
        Ok(terms)
    }

    fn on_text(&self, _: &Settings) -> Option<(Objective, f64)> {
        let on_text = self.settings.data_term == DataTerm::Text;
        on_text.then(|| (supervised(&self.settings), self.settings.lm_coef))
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

    fn settings() -> MiniLlmSettings {
        MiniLlmSettings::default()
    }

    #[test]
    fn a_reward_to_go_is_discounted_cut_and_divided_by_the_tokens_left() {
        let settings = MiniLlmSettings {
            gamma: 0.5,
            reward_clip: 1.0,
            ..settings()
        };
        // (log p - log q) / 0.5: rewards 0.5, -3 (cut to -1), 0.25
        let (log_q, log_p) = ([-1.0, -0.5, -1.0], [-0.75, -2.0, -0.875]);
        let to_go = |settings| rewards_to_go(settings, &rewards(settings, &log_q, &log_p));
        let got = to_go(&settings);
        // from the end: 0.25 / 1; (-1 + 0.125) / 2; (0.5 - 0.4375) / 3
        let expected = [0.0625 / 3.0, -0.4375, 0.25];
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{got:?}");
        }
        let plain = MiniLlmSettings {
            length_norm: false,
            reward_clip: 0.0,
            ..settings
        };
        let got = to_go(&plain);
        assert!((got[0] - (0.5 + 0.5 * (-3.0 + 0.5 * 0.25))).abs() < 1e-6);
    }

    #[test]
    fn an_importance_weight_is_the_student_over_the_mixture() {
        // q = 0.5, p = 0.1: 0.5 / (0.8 x 0.5 + 0.2 x 0.1)
        let weights = importance_weights(&[0.5f32.ln()], &[0.1f32.ln()], 0.2);
        assert!((weights[0] - 0.5 / 0.42).abs() < 1e-5);
        assert_eq!(
            importance_weights(&[-1.0, -2.0], &[-1.0, -2.0], 0.2),
            [1.0, 1.0]
        );
        assert_eq!(importance_weights(&[-1.0], &[-5.0], 0.0), [1.0]);
    }

    #[test]
    fn the_ratio_counts_within_its_clip() {
        let rows = PolicyRows {
            old_log_prob: vec![-1.0; 4],
            advantage: vec![2.0, 2.0, -2.0, -2.0],
            weight: vec![1.0; 4],
            clip: 0.2,
            single_step: false,
        };
        let at = |row, ratio: f32| rows.token(row, -1.0 + ratio.ln());
        let near = |(a, b): (f32, f32), (c, d): (f32, f32)| {
            assert!(
                (a - c).abs() < 1e-5 && (b - d).abs() < 1e-5,
                "{a} {b} {c} {d}"
            );
        };
        near(at(0, 1.1), (-2.2, -2.2)); // within the clip
        near(at(1, 1.5), (-2.4, 0.0)); // advantage > 0, ratio above the clip: no gradient
        near(at(1, 0.5), (-1.0, -1.0)); // advantage > 0, ratio below the clip: full gradient
        near(at(2, 1.5), (3.0, 3.0)); // advantage < 0, ratio above the clip: full gradient
        near(at(3, 0.5), (1.6, 0.0)); // advantage < 0, ratio below the clip: no gradient
    }

    #[test]
    fn rounds_have_inner_epochs_of_whole_batches() {
        let method = MiniLlm::new(MiniLlmSettings {
            rollouts: 10,
            inner_epochs: 2,
            ..settings()
        });
        let places: Vec<(usize, usize, usize)> = (0..6)
            .map(|step| method.place(step, 4))
            .map(|p| (p.round, p.inner_epoch, p.index))
            .collect();
        assert_eq!(
            places,
            [
                (0, 0, 0),
                (0, 0, 1),
                (0, 1, 0),
                (0, 1, 1),
                (1, 0, 0),
                (1, 0, 1)
            ]
        );
    }

    #[test]
    fn whitening_gives_mean_0_and_variance_1_with_or_without_the_padding() {
        for zeros in [0, 3] {
            let mut values = vec![1.0, 2.0, 3.0, 6.0];
            whiten(&mut values, 4 + zeros);
            // Whitened value of a padding zero, by extrapolation from the values 1 and 2.
            let zero = values[0] - (values[1] - values[0]);
            let all: Vec<f32> = values
                .into_iter()
                .chain(std::iter::repeat_n(zero, zeros))
                .collect();
            let n = all.len() as f32;
            let mean: f32 = all.iter().sum::<f32>() / n;
            let variance: f32 = all.iter().map(|x| x * x).sum::<f32>() / n;
            assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn rewards_are_not_divided_by_0_and_unknown_words_are_named() {
        let none = MiniLlmSettings {
            reward_scaling: 0.0,
            ..settings()
        };
        let text = none.check().unwrap_err();
        assert!(text.contains("reward_scaling = 0"), "{text}");
        for (key, known) in [("whitening", "masked"), ("data_term", "text")] {
            let text = serde_json::from_str::<MiniLlmSettings>(&format!(r#"{{"{key}":"x"}}"#))
                .unwrap_err()
                .to_string();
            assert!(text.contains(key) && text.contains(known), "{text}");
        }
    }

    #[test]
    fn the_supervised_term_is_on_what_the_setting_says() {
        let run: Settings =
            serde_json::from_str(r#"{"epochs":1,"batch_size":2,"learning_rate":1e-3}"#).unwrap();
        let with = |data_term| {
            MiniLlm::new(MiniLlmSettings {
                data_term,
                lm_coef: 0.3,
                ..settings()
            })
        };
        let (objective, weight) = with(DataTerm::Text).on_text(&run).unwrap();
        assert_eq!((objective, weight), (supervised(&settings()), 0.3));
        assert!(with(DataTerm::Data).on_text(&run).is_none());
        assert!(with(DataTerm::None).on_text(&run).is_none());
    }
}
