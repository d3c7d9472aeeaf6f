//! MiniLLM's rewards, weights, whitening and losses.

use std::path::Path;

use abkd_models::verify::Check;
use burn::tensor::Device;
use serde::Deserialize;

use super::{Golden, gather, mean_loss, rows_of_logits, spread, widened};
use crate::Error;
use crate::head::{CHUNK_BYTES, Objective, PolicyRows, log_probs};
use crate::methods::minillm::{
    MiniLlmSettings, TokenScores, Whitening, policy_rows, rewards, supervised,
};

const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
    #[serde(default)]
    data_term: Option<DataTerm>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    width: usize,
    vocab: usize,
    eos: u32,
    responses: Vec<Vec<u32>>,
    mask: Vec<Vec<u8>>,
    student_logits_at_sampling: Vec<f64>,
    student_logits: Vec<f64>,
    teacher_logits: Vec<f64>,
    log_q_at_sampling: Vec<Vec<f64>>,
    log_q: Vec<Vec<f64>>,
    log_p: Vec<Vec<f64>>,
    reg_loss: f64,
    reg_grad: Vec<f64>,
    variants: Vec<Variant>,
}

#[derive(Deserialize)]
struct Variant {
    teacher_mix: Option<f64>,
    reward_scaling: Option<f64>,
    reward_clip: Option<f64>,
    gamma: f64,
    ppo_clip: f64,
    weights: Vec<Vec<f64>>,
    rewards: Vec<Vec<f64>>,
    rewards_to_go: Vec<Vec<f64>>,
    padded: Whitened,
    masked: Whitened,
}

#[derive(Deserialize)]
struct Whitened {
    advantages: Vec<Vec<f64>>,
    pg_loss: f64,
    total: f64,
    grad: Vec<f64>,
}

#[derive(Deserialize)]
struct DataTerm {
    vocab: usize,
    labels: Vec<Vec<i64>>,
    student_logits: Vec<f64>,
    teacher_logits: Vec<f64>,
    results: Vec<DataResult>,
}

#[derive(Deserialize)]
struct DataResult {
    kd_ratio: f64,
    loss: f64,
    grad: Vec<f64>,
}

/// Recomputes every number of `minillm.json` from its logits and compares.
///
/// # Errors
///
/// When the file cannot be read or has another format.
pub fn verify_minillm(path: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let (mut golden, file) = Golden::read::<File>(path)?;
    golden.not_empty("cases", &file.cases)?;
    for case in &file.cases {
        check_case(&mut golden, case, device)?;
    }
    if let Some(term) = &file.data_term {
        check_data_term(&mut golden, term, device)?;
    }
    golden.finish()
}

/// The counted tokens of a case, one answer after the other.
struct Tokens {
    /// Counted tokens of each answer.
    lengths: Vec<usize>,
    /// Indices of the counted tokens in the flat `[batch, width]` matrix.
    places: Vec<usize>,
    labels: Vec<u32>,
}

impl Tokens {
    fn new(golden: &mut Golden, case: &Case) -> Result<Self, Error> {
        let (name, width, vocab) = (&case.name, case.width, case.vocab);
        let place = |what: &str| format!("case `{name}`: {what}");
        golden.ensure(width > 0, || place("width is 0"))?;
        golden.not_empty(&place("responses"), &case.responses)?;
        let n = case.responses.len();
        golden.matrix(&place("responses"), &case.responses, n, width)?;
        golden.matrix(&place("mask"), &case.mask, n, width)?;
        golden.not_empty(&place("variants"), &case.variants)?;
        let outside = case
            .responses
            .iter()
            .flatten()
            .find(|t| **t as usize >= vocab);
        golden.ensure(outside.is_none(), || {
            place(&format!(
                "the token {} is not below {vocab}",
                outside.copied().unwrap_or_default()
            ))
        })?;
        // An answer ends with its first end of text, which is counted.
        let length = |r: &Vec<u32>| {
            let end = r.iter().position(|&t| t == case.eos);
            end.map_or(width, |at| at + 1)
        };
        let lengths: Vec<usize> = case.responses.iter().map(length).collect();
        let mask: Vec<Vec<u8>> = lengths
            .iter()
            .map(|&n| (0..width).map(|t| u8::from(t < n)).collect())
            .collect();
        golden.equal(
            format!("{name}: counted tokens"),
            &mask.concat(),
            &case.mask.concat(),
        )?;
        let places: Vec<usize> = (0..lengths.len())
            .flat_map(|row| (0..lengths[row]).map(move |t| row * width + t))
            .collect();
        let all = case.responses.concat();
        let labels = places.iter().map(|&at| all[at]).collect();
        Ok(Self {
            lengths,
            places,
            labels,
        })
    }

    /// The counted entries of a `[batch, width]` matrix.
    fn counted(
        &self,
        golden: &Golden,
        what: &str,
        rows: &[Vec<f64>],
        width: usize,
    ) -> Result<Vec<f64>, Error> {
        golden.matrix(what, rows, self.lengths.len(), width)?;
        let all = rows.concat();
        Ok(self.places.iter().map(|&at| all[at]).collect())
    }

    /// Splits `values` into one slice per answer.
    fn by_answer<'a>(&self, values: &'a [f32]) -> Vec<&'a [f32]> {
        let mut rest = values;
        let cut = |&n: &usize| {
            let (answer, after) = rest.split_at(n);
            rest = after;
            answer
        };
        self.lengths.iter().map(cut).collect()
    }
}

fn check_case(golden: &mut Golden, case: &Case, device: &Device) -> Result<(), Error> {
    let (name, width, vocab) = (&case.name, case.width, case.vocab);
    let tokens = Tokens::new(golden, case)?;
    let n = tokens.lengths.len() * width;
    let rows = |golden: &Golden, what: &str, logits: &[f64]| {
        golden.logits(&format!("case `{name}`: {what}"), logits, n, vocab)?;
        let logits = gather(logits, &tokens.places, vocab);
        Ok::<_, Error>(rows_of_logits(logits, vocab, device))
    };
    let sampling = rows(
        golden,
        "student_logits_at_sampling",
        &case.student_logits_at_sampling,
    )?;
    let student = rows(golden, "student_logits", &case.student_logits)?;
    let teacher = rows(golden, "teacher_logits", &case.teacher_logits)?;
    let mut log_prob = |what: &str, rows, theirs: &[Vec<f64>]| {
        let ours = log_probs(rows, &tokens.labels, CHUNK_BYTES);
        let ours = golden.computed(&format!("case `{name}`: {what}"), ours)?;
        let theirs = tokens.counted(golden, what, theirs, width)?;
        golden.compare(
            format!("{name}: {what}"),
            &widened(&ours),
            &theirs,
            TOLERANCE,
        )?;
        Ok::<_, Error>(ours)
    };
    let log_q = log_prob("log_q_at_sampling", &sampling, &case.log_q_at_sampling)?;
    log_prob("log_q", &student, &case.log_q)?;
    let log_p = log_prob("log_p", &teacher, &case.log_p)?;

    let single_step = Objective::Policy(PolicyRows {
        advantage: vec![0.0; log_q.len()],
        weight: vec![1.0; log_q.len()],
        old_log_prob: log_q.clone(),
        clip: 0.2,
        single_step: true,
    });
    let computed = mean_loss(&single_step, &student, &teacher, &tokens.labels);
    let (loss, grad) = golden.computed(&format!("case `{name}`: reg_loss"), computed)?;
    golden.compare(
        format!("{name}: reg_loss"),
        &[loss],
        &[case.reg_loss],
        TOLERANCE,
    )?;
    let grad = spread(&grad, &tokens.places, n, vocab);
    golden.compare(
        format!("{name}: reg_grad"),
        &grad,
        &case.reg_grad,
        TOLERANCE,
    )?;

    for (i, variant) in case.variants.iter().enumerate() {
        let name = |what: &str| format!("{name}, variant {}: {what}", i + 1);
        let mut settings = MiniLlmSettings {
            teacher_mix: variant.teacher_mix.unwrap_or(0.0),
            reward_scaling: variant.reward_scaling.unwrap_or(1.0),
            reward_clip: variant.reward_clip.unwrap_or(0.0),
            gamma: variant.gamma,
            ppo_clip: variant.ppo_clip,
            ..MiniLlmSettings::default()
        };
        settings
            .check()
            .map_err(|reason| Error::checkpoint(golden.path, reason))?;
        let by_answer = |values| tokens.by_answer(values);
        let answers: Vec<TokenScores> = by_answer(&log_q)
            .into_iter()
            .zip(by_answer(&log_p))
            .map(|(q, p)| TokenScores::new(&settings, q, p))
            .collect();
        let all = |f: fn(&TokenScores) -> &Vec<f32>| {
            let all: Vec<f32> = answers.iter().flat_map(|a| f(a).clone()).collect();
            widened(&all)
        };
        for (what, ours, theirs) in [
            ("weights", all(|a| &a.weight), &variant.weights),
            (
                "rewards",
                rewards(&settings, &log_q, &log_p),
                &variant.rewards,
            ),
            (
                "rewards to go",
                all(|a| &a.reward_to_go),
                &variant.rewards_to_go,
            ),
        ] {
            let theirs = tokens.counted(golden, what, theirs, width)?;
            golden.compare(name(what), &ours, &theirs, TOLERANCE)?;
        }
        for (whitening, theirs) in [
            (Whitening::Padded, &variant.padded),
            (Whitening::Masked, &variant.masked),
        ] {
            settings.whitening = whitening;
            let word: &str = whitening.into();
            let name = |what: &str| name(&format!("{word} {what}"));
            let answers: Vec<&TokenScores> = answers.iter().collect();
            let mut policy = policy_rows(&settings, &answers, width);
            let counted = tokens.counted(golden, "advantages", &theirs.advantages, width)?;
            golden.compare(
                name("advantages"),
                &widened(&policy.advantage),
                &counted,
                TOLERANCE,
            )?;
            policy.single_step = false;
            let loss = |policy: &PolicyRows| {
                let objective = Objective::Policy(policy.clone());
                mean_loss(&objective, &student, &teacher, &tokens.labels)
            };
            let (pg_loss, _) = golden.computed(&name("pg_loss"), loss(&policy))?;
            policy.single_step = true;
            let (total, grad) = golden.computed(&name("total"), loss(&policy))?;
            let grad = spread(&grad, &tokens.places, n, vocab);
            // Compared as one list: pg_loss alone nearly cancels to 0, so its relative error would be large.
            golden.compare(
                name("pg_loss, total"),
                &[pg_loss, total],
                &[theirs.pg_loss, theirs.total],
                TOLERANCE,
            )?;
            golden.compare(name("gradient"), &grad, &theirs.grad, TOLERANCE)?;
        }
    }
    Ok(())
}

fn check_data_term(golden: &mut Golden, term: &DataTerm, device: &Device) -> Result<(), Error> {
    let width = term.labels.first().map_or(0, Vec::len);
    golden.matrix("data_term: labels", &term.labels, term.labels.len(), width)?;
    golden.not_empty("data_term: results", &term.results)?;
    let labels = term.labels.concat();
    let (n, vocab) = (labels.len(), term.vocab);
    for (what, logits) in [
        ("data_term: student_logits", &term.student_logits),
        ("data_term: teacher_logits", &term.teacher_logits),
    ] {
        golden.logits(what, logits, n, vocab)?;
    }
    let (places, labels) = golden.labels("data_term: labels", &labels, vocab)?;
    let rows = |logits| rows_of_logits(gather(logits, &places, vocab), vocab, device);
    let (student, teacher) = (rows(&term.student_logits), rows(&term.teacher_logits));
    let entropy = mean_entropy(&gather(&term.teacher_logits, &places, vocab), vocab);
    for result in &term.results {
        let settings = MiniLlmSettings {
            kd_ratio: result.kd_ratio,
            ..MiniLlmSettings::default()
        };
        settings
            .check()
            .map_err(|reason| Error::checkpoint(golden.path, reason))?;
        let computed = mean_loss(&supervised(&settings), &student, &teacher, &labels);
        let (loss, grad) = golden.computed("data_term", computed)?;
        let name = |what| format!("term on the data, kd_ratio {}: {what}", result.kd_ratio);
        // The released code has the teacher's cross-entropy instead of the KL: larger by the teacher's entropy.
        let loss = loss + result.kd_ratio * entropy;
        golden.compare(name("loss"), &[loss], &[result.loss], TOLERANCE)?;
        let grad = spread(&grad, &places, n, vocab);
        golden.compare(name("gradient"), &grad, &result.grad, TOLERANCE)?;
    }
    Ok(())
}

/// Mean entropy of the rows' distributions, nats.
fn mean_entropy(logits: &[f32], vocab: usize) -> f64 {
    let entropy = |row: &[f32]| {
        let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        row.iter()
            .map(|x| (x - log_sum).exp() * (log_sum - x))
            .sum::<f64>()
    };
    let rows = logits.chunks(vocab);
    let n = rows.len() as f64;
    rows.map(entropy).sum::<f64>() / n
}
