//! Answers of a model and their scores.

use abkd_data::{Example, Tokenizer};
use abkd_metrics::exact_match::exact_match_max;
use abkd_metrics::rouge::rouge_l_max;
use abkd_models::generate::{Decoding, Sampler};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Error;

/// One scored answer; a line of the answers' JSONL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Index of the example in its set.
    pub example: usize,
    /// The answer's text, cut at the first end of text and stripped.
    pub answer: String,
    /// Best ROUGE-L F1 over the references, x 100.
    pub rouge_l: f64,
    /// 100 if equal to a reference after normalisation, else 0.
    pub exact_match: f64,
    /// Tokens generated, the end of text included.
    pub tokens: usize,
}

/// Mean scores of a set's answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Number of examples.
    pub n: usize,
    /// ROUGE-L, 0 to 100.
    pub rouge_l: f64,
    /// Exact match, 0 to 100.
    pub exact_match: f64,
    /// Mean tokens per answer.
    pub mean_tokens: f64,
}

/// Answers every prompt and scores the answers.
///
/// # Errors
///
/// See [`Sampler::generate`].
pub fn evaluate(
    model: &mut Sampler,
    tokenizer: &Tokenizer,
    examples: &[Example],
    prompts: &[Vec<u32>],
    seed: u64,
    decoding: &Decoding,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Answer>, Error> {
    let keys: Vec<u64> = (0..examples.len() as u64).collect();
    let answers = model.generate(prompts, &keys, seed, tokenizer.ends(), decoding, progress)?;
    answers
        .into_par_iter()
        .zip(examples)
        .enumerate()
        .map(|(index, (tokens, example))| {
            let end = tokens
                .iter()
                .position(|t| tokenizer.ends().contains(t))
                .unwrap_or(tokens.len());
            let answer = tokenizer.decode(&tokens[..end])?.trim().to_owned();
            Ok(Answer {
                example: index,
                rouge_l: 100.0 * rouge_l_max(&answer, &example.outputs),
                exact_match: 100.0 * exact_match_max(&answer, &example.outputs),
                tokens: tokens.len(),
                answer,
            })
        })
        .collect()
}

/// Mean scores of a set's answers.
pub fn score(answers: &[Answer]) -> Score {
    let n = answers.len();
    let mean = |f: fn(&Answer) -> f64| answers.iter().map(f).sum::<f64>() / n.max(1) as f64;
    Score {
        n,
        rouge_l: mean(|a| a.rouge_l),
        exact_match: mean(|a| a.exact_match),
        mean_tokens: mean(|a| a.tokens as f64),
    }
}
