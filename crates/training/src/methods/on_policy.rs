//! The student's own answers as training sequences.

use abkd_data::rng::Rng;
use abkd_data::{Batch, Sequence, collate};
use abkd_host::choice;
use abkd_models::LanguageModel;
use abkd_models::generate::{Decoding, generate};
use burn::module::Module;

use super::Moment;
use crate::head::{Objective, chunk_bytes, log_probs};
use crate::step::{Term, labels, rows_of};
use crate::timing::Phase;
use crate::{Error, Prepared};

choice! {
    "labels"
    /// Which positions of a sampled answer count.
    #[derive(Default)]
    pub enum Labels {
        /// The positions that predict a token of the answer, its end of text included.
        #[default]
        Expected = "expected",
        /// As in the released code: one position late, so that the first token of the answer is left out and the position
        /// after the last one counts; the end of text is stripped from the answer.
        Official = "official",
    }
}

/// Checks the settings of sampling; an error says what is wrong.
pub(super) fn check_sampling(
    temperature: f64,
    max_new_tokens: Option<usize>,
) -> Result<(), String> {
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(format!(
            "temperature = {temperature}: it divides the logits; it must be a positive number"
        ));
    }
    check_answers(max_new_tokens)
}

/// Checks the limit of tokens of an answer; an error says what is wrong.
pub(super) fn check_answers(max_new_tokens: Option<usize>) -> Result<(), String> {
    match max_new_tokens {
        Some(0) => Err("max_new_tokens = 0: an answer has 1 token or more".into()),
        _ => Ok(()),
    }
}

/// A number in [0, 1) that depends on (seed, step, purpose) alone.
pub(super) fn coin(at: &Moment, purpose: u64) -> f64 {
    let bits = Rng::new(&[at.settings.seed, at.step as u64, purpose]).bits();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Random numbers for this update's draws from a replay buffer.
pub(super) fn draws(at: &Moment) -> Rng {
    Rng::new(&[at.settings.seed, at.step as u64, 3])
}

/// Seed for sampling this update's answers.
pub(super) fn sampling_seed(at: &Moment) -> u64 {
    Rng::new(&[at.settings.seed, at.step as u64, 0x5A3]).bits()
}

pub(super) fn decoding(
    at: &Moment,
    temperature: f64,
    max_new_tokens: Option<usize>,
    rows: usize,
) -> Decoding {
    Decoding {
        max_new_tokens: max_new_tokens.unwrap_or(at.max_new_tokens),
        temperature,
        batch_size: rows,
        ..Decoding::sampling()
    }
}

/// The student's answers to the prompts of `data`.
pub(super) fn sample(
    at: &mut Moment,
    data: &[&Sequence],
    temperature: f64,
    max_new_tokens: Option<usize>,
) -> Result<Vec<Sequence>, Error> {
    let decoding = decoding(at, temperature, max_new_tokens, data.len());
    let (student, ends, seed) = (at.student.valid(), at.tokenizer.ends(), sampling_seed(at));
    let answers = at.phases.time(Phase::Generation, || {
        let prompts = prompts(data);
        let keys: Vec<u64> = data.iter().map(|s| s.example as u64).collect();
        generate(
            &student,
            &prompts,
            &keys,
            seed,
            ends,
            &decoding,
            &mut |_| {},
        )
    })?;
    Ok(with_answers(data, answers))
}

pub(super) fn prompts(data: &[&Sequence]) -> Vec<Vec<u32>> {
    data.iter().map(|s| s.prompt().to_vec()).collect()
}

/// The prompts of `data`, each followed by its answer.
pub(super) fn with_answers(data: &[&Sequence], answers: Vec<Vec<u32>>) -> Vec<Sequence> {
    data.iter()
        .zip(answers)
        .map(|(s, answer)| s.with_answer(&answer))
        .collect()
}

/// Log-probabilities of a batch's labels by the student and by the teacher, `[2][N]`.
pub(super) fn log_probs_of_both(at: &mut Moment, batch: &Batch) -> Result<[Vec<f32>; 2], Error> {
    let (student, step) = (at.student.valid(), at.step);
    let teacher = at.teacher.expect("the method has a teacher");
    at.phases
        .time(Phase::Generation, || score(&student, teacher, batch, step))
}

/// [`log_probs_of_both`] of two models; `step` is for errors.
pub(super) fn score(
    student: &LanguageModel,
    teacher: &LanguageModel,
    batch: &Batch,
    step: usize,
) -> Result<[Vec<f32>; 2], Error> {
    let labels = labels(batch);
    let of = |model: &LanguageModel| {
        log_probs(
            &rows_of(model, batch),
            &labels,
            chunk_bytes(&model.device()),
        )
    };
    let log_q = of(student).map_err(Error::in_update(step, batch, 0))?;
    let log_p = of(teacher)
        .map_err(Error::of_teacher)
        .map_err(Error::in_update(step, batch, 0))?;
    Ok([log_q, log_p])
}

/// The term on sampled answers; on the data where there are none, or no position of them counts.
pub(super) fn term(
    at: &mut Moment,
    answers: Option<&[Sequence]>,
    labels: Labels,
    objective: &Objective,
    data: Prepared,
) -> Term {
    match answers.and_then(|answers| lay(at, answers, labels)) {
        Some(batch) => Term::sampled(batch, objective.clone()),
        None => data.term(objective.clone()),
    }
}

/// Collates sampled sequences; `None` when no position counts.
pub(super) fn lay(at: &mut Moment, sequences: &[Sequence], labels: Labels) -> Option<Batch> {
    let eos = at.tokenizer.eos();
    let laid = at
        .phases
        .time(Phase::Data, || labelled(sequences, labels, eos));
    (!laid.targets.is_empty()).then_some(laid)
}

fn labelled(sequences: &[Sequence], labels: Labels, eos: u32) -> Batch {
    match labels {
        Labels::Expected => collate(&sequences.iter().collect::<Vec<_>>()),
        Labels::Official => late_labels(sequences, eos),
    }
}

fn late_labels(sequences: &[Sequence], eos: u32) -> Batch {
    // An added end of text, so that the last token of the answer is an input.
    let longer: Vec<Sequence> = sequences
        .iter()
        .map(|s| {
            let mut tokens = s.tokens.clone();
            if tokens.last() != Some(&eos) || tokens.len() == s.prompt_len {
                tokens.push(eos);
            }
            Sequence {
                tokens,
                ..s.clone()
            }
        })
        .collect();
    let mut laid = collate(&longer.iter().collect::<Vec<_>>());
    let mut end = 0;
    laid.targets = longer
        .iter()
        .flat_map(|s| {
            let start = end;
            end += s.tokens.len() - 1;
            (s.prompt_len..s.tokens.len() - 1).map(move |t| (start + t, s.tokens[t]))
        })
        .collect();
    laid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[u32]) -> Sequence {
        Sequence {
            example: 0,
            tokens: tokens.to_vec(),
            prompt_len: 2,
        }
    }

    #[test]
    fn expected_labels_are_the_next_tokens_and_keep_the_end() {
        // prompt 1 2, answer 3 4, end 9
        let laid = labelled(&[sequence(&[1, 2, 3, 4, 9])], Labels::Expected, 9);
        assert_eq!(laid.input_ids, [1, 2, 3, 4]);
        assert_eq!(laid.targets, [(1, 3), (2, 4), (3, 9)]);
    }

    #[test]
    fn official_labels_sit_one_position_late() {
        let ended = labelled(&[sequence(&[1, 2, 3, 4, 9])], Labels::Official, 9);
        assert_eq!(ended.input_ids, [1, 2, 3, 4]);
        assert_eq!(ended.targets, [(2, 3), (3, 4)]);
        // a truncated answer has its last position too
        let cut = labelled(&[sequence(&[1, 2, 3, 4])], Labels::Official, 9);
        assert_eq!(cut.input_ids, [1, 2, 3, 4]);
        assert_eq!(cut.targets, [(2, 3), (3, 4)]);
        // only the end of text: no position counts
        let counted = |labels| labelled(&[sequence(&[1, 2, 9])], labels, 9).targets.len();
        assert_eq!(counted(Labels::Official), 0);
        assert_eq!(counted(Labels::Expected), 1);
    }
}
