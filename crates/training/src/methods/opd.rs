//! On-policy distillation by policy gradient: the student answers the prompts, and each token of its answer is rewarded by an
//! estimate of minus the reverse KL at its place (Lu and Thinking Machines Lab, "On-Policy Distillation", 2025; the
//! estimators are Schulman's, "Approximating KL Divergence", 2020). Rewards are of a token alone: there is no discount, no
//! baseline and no clip, and each answer is trained on once.
//!
//! With r = p/q of the sampled token, `k1` rewards by `log r`, whose expected gradient is that of KL(q, p). `k3` rewards by
//! `-(r - 1 - log r)`, which varies less and never exceeds 0; its expected gradient is that of KL(q, p) - KL(p, q), since
//! `E[r grad log q] = -grad KL(p, q)`: small where the models nearly agree.
//!
//! `gkd` with reverse KL has the gradient of `k1` without the noise of the one token, from the whole distribution.

use abkd_host::choice;
use serde::{Deserialize, Serialize};

use super::on_policy::{self, Labels};
use super::{Behaviour, Driver, Entry, Moment, Parts, Sampled, no_loss, parse};
use crate::head::{Objective, PolicyRows};
use crate::step::Term;
use crate::{Error, Prepared};

pub(super) const ENTRY: Entry = Entry {
    id: "opd",
    about: "policy gradient on the student's own answers, rewarded token by token by minus the reverse KL",
    build: |loss, settings| {
        no_loss(loss)?;
        let settings: OpdSettings = parse(settings)?;
        on_policy::check_answers(settings.max_new_tokens)?;
        Ok(Box::new(settings))
    },
};

choice! {
    "estimator"
    /// How the reverse KL at a token's place is estimated from the token.
    #[derive(Default)]
    pub enum Estimator {
        /// log(q/p)
        #[default]
        K1 = "k1",
        /// p/q - 1 - log(p/q)
        K3 = "k3",
    }
}

impl Estimator {
    /// The reward of a token, from its log-probabilities.
    fn reward(self, log_q: f32, log_p: f32) -> f32 {
        let log_ratio = log_p - log_q;
        match self {
            Self::K1 => log_ratio,
            Self::K3 => log_ratio - log_ratio.exp_m1(),
        }
    }
}

/// Settings of on-policy distillation. Answers are drawn from the student itself, at temperature 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OpdSettings {
    estimator: Estimator,
    /// Limit of tokens of an answer; absent: what `max_length` leaves after `max_prompt_length`.
    max_new_tokens: Option<usize>,
}

impl Behaviour for OpdSettings {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, None, self)
    }

    fn driver(&self, _: f64) -> Box<dyn Driver> {
        Box::new(Opd(self.clone()))
    }

    fn sampled(&self) -> Vec<Sampled> {
        vec![Sampled::by_student(1.0, self.max_new_tokens)]
    }

    fn uses_teacher_on_data(&self) -> bool {
        false
    }

    /// The distribution that an answer is drawn from is the one that is trained.
    fn trains_with_dropout(&self) -> bool {
        false
    }

    /// One to score the answers, one to train on them.
    fn passes(&self) -> f64 {
        2.0
    }
}

struct Opd(OpdSettings);

impl Driver for Opd {
    fn terms(&mut self, at: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        let Self(settings) = self;
        let answers = on_policy::sample(at, &data.sequences, 1.0, settings.max_new_tokens)?;
        let batch = on_policy::lay(at, &answers, Labels::Expected)
            .expect("an answer has a token: the end of text at least");
        let [log_q, log_p] = on_policy::log_probs_of_both(at, &batch)?;
        let both = log_q.iter().zip(&log_p);
        let objective = Objective::Policy(PolicyRows {
            advantage: both
                .map(|(q, p)| settings.estimator.reward(*q, *p))
                .collect(),
            weight: vec![1.0; log_q.len()],
            old_log_prob: log_q,
            // An answer is trained on once, where its ratio is 1.
            clip: 1.0,
            single_step: false,
        });
        Ok(vec![Term::sampled(batch, objective)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abkd_losses::{Divergence, Fidelity, Logits, row};

    const STUDENT: [f32; 5] = [0.3, -1.0, 2.0, 0.5, 0.0];
    const TEACHER: [f32; 5] = [1.0, -2.0, 1.5, 0.0, 0.7];

    fn log_softmax(z: &[f32; 5]) -> [f32; 5] {
        let sum: f32 = z.iter().map(|z| z.exp()).sum();
        z.map(|z| z - sum.ln())
    }

    fn slope(divergence: Divergence) -> [f32; 5] {
        let mut grad = STUDENT;
        let logits = Logits {
            student: &mut grad[..],
            teacher: &TEACHER[..],
        };
        row::divergence(&divergence, Fidelity::Paper, logits, 5, &mut [0.0]).unwrap();
        grad
    }

    #[test]
    fn the_expected_gradient_is_that_of_the_divergence_that_the_estimator_stands_for() {
        let (log_q, log_p) = (log_softmax(&STUDENT), log_softmax(&TEACHER));
        let expected = |estimator: Estimator| {
            // sum over tokens of q (-reward) (onehot - q)
            let mut grad = [0.0; 5];
            for token in 0..5 {
                let q = log_q[token].exp();
                let loss = -estimator.reward(log_q[token], log_p[token]);
                for (j, grad) in grad.iter_mut().enumerate() {
                    *grad += q * loss * (f32::from(u8::from(j == token)) - log_q[j].exp());
                }
            }
            grad
        };
        let (reverse, forward) = (
            slope(Divergence::reverse_kl()),
            slope(Divergence::forward_kl()),
        );
        let (k1, k3) = (expected(Estimator::K1), expected(Estimator::K3));
        for j in 0..5 {
            assert!((k1[j] - reverse[j]).abs() < 1e-6, "{k1:?} {reverse:?}");
            let both = reverse[j] - forward[j];
            assert!(
                (k3[j] - both).abs() < 1e-6,
                "{k3:?} {reverse:?} {forward:?}"
            );
        }
        let reward = Estimator::K3.reward(-3.0, -0.5);
        assert!((reward - (2.5 - 2.5f32.exp() + 1.0)).abs() < 1e-5);
    }
}
