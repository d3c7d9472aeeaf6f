use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Example, PromptTemplate, Tokenizer};

/// Limits of prompts and sequences, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// A longer prompt is cut to its first `max_prompt_length` tokens.
    pub max_prompt_length: usize,
    /// A longer sequence (prompt, response, end of text) is cut at the end.
    pub max_length: usize,
}

/// Prompt, response and end of text as tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Index of the sequence's example.
    pub example: usize,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens.
    pub prompt_len: usize,
}

impl Sequence {
    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The same prompt with another response.
    pub fn with_answer(&self, answer: &[u32]) -> Self {
        Self {
            tokens: [self.prompt(), answer].concat(),
            ..*self
        }
    }
}

/// Encoded training examples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// One sequence per example with a response token.
    pub sequences: Vec<Sequence>,
    /// Indices of the examples without a response token.
    pub skipped: Vec<usize>,
}

/// Encodes examples for training: `tokens(prompt + response) + end`, split at the length of
/// `tokens(prompt)`. The first reference is the response. In a chat the response is what the template adds for it: it ends
/// with the last token that ends an answer, or with the end of text if the template writes no such token.
///
/// # Errors
///
/// When the tokenizer or the chat template fails.
pub fn encode_training(
    examples: &[Example],
    tokenizer: &Tokenizer,
    template: &PromptTemplate,
    limits: &Limits,
) -> Result<Encoding, Error> {
    let encoded: Vec<Option<Sequence>> = examples
        .par_iter()
        .enumerate()
        .map(|(example, e)| {
            let (text, answer) = template.answered(e).map_err(of_example(example))?;
            let head = tokenizer.encode(&text)?;
            let full = tokenizer.encode(&(text + &answer))?;
            let (full, end) = match template {
                PromptTemplate::Paper => (&full[..], Some(tokenizer.eos())),
                PromptTemplate::Chat(_) => ended(&full, head.len(), tokenizer),
            };
            Ok(cut(example, &head, full, end, limits))
        })
        .collect::<Result<_, Error>>()?;
    let mut result = Encoding::default();
    for (example, sequence) in encoded.into_iter().enumerate() {
        match sequence {
            Some(sequence) => result.sequences.push(sequence),
            None => result.skipped.push(example),
        }
    }
    Ok(result)
}

/// The tokens up to the last one after the prompt that ends an answer; else all, and the end of text to append. What a
/// template writes after that token, a line feed mostly, begins the next message.
fn ended<'a>(full: &'a [u32], prompt: usize, tokenizer: &Tokenizer) -> (&'a [u32], Option<u32>) {
    let response = full.get(prompt..).unwrap_or_default();
    match response.iter().rposition(|t| tokenizer.ends().contains(t)) {
        Some(last) => (&full[..=prompt + last], None),
        None => (full, Some(tokenizer.eos())),
    }
}

fn of_example(example: usize) -> impl Fn(Error) -> Error {
    move |source| Error::Example {
        example: example + 1,
        source: source.into(),
    }
}

fn cut(
    example: usize,
    head: &[u32],
    full: &[u32],
    end: Option<u32>,
    limits: &Limits,
) -> Option<Sequence> {
    let response = full.get(head.len()..).unwrap_or_default();
    let kept = &head[..head.len().min(limits.max_prompt_length)];
    let mut tokens: Vec<u32> = kept.iter().chain(response).copied().chain(end).collect();
    tokens.truncate(limits.max_length);
    let prompt_len = kept.len();
    // An empty response is skipped: its end of text alone would teach empty answers.
    let usable = !response.is_empty() && prompt_len > 0 && tokens.len() > prompt_len;
    usable.then_some(Sequence {
        example,
        tokens,
        prompt_len,
    })
}

/// Prompts as tokens, each after `bos` if given, cut to the first `max_prompt_length` tokens.
///
/// # Errors
///
/// When the tokenizer or the chat template fails.
pub fn encode_prompts(
    examples: &[Example],
    tokenizer: &Tokenizer,
    template: &PromptTemplate,
    limits: &Limits,
    bos: Option<u32>,
) -> Result<Vec<Vec<u32>>, Error> {
    examples
        .par_iter()
        .enumerate()
        .map(|(example, e)| {
            let text = template.prompt(e).map_err(of_example(example))?;
            Ok(begun(&tokenizer.encode(&text)?, limits, bos))
        })
        .collect()
}

/// A prompt's tokens after `bos` if given, cut to the first `max_prompt_length` tokens.
pub fn begun(prompt: &[u32], limits: &Limits, bos: Option<u32>) -> Vec<u32> {
    let all = bos.into_iter().chain(prompt.iter().copied());
    all.take(limits.max_prompt_length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_counts_towards_the_prompt() {
        let limits = Limits {
            max_prompt_length: 3,
            max_length: 5,
        };
        assert_eq!(begun(&[4, 5, 6], &limits, Some(1)), [1, 4, 5]);
        assert_eq!(begun(&[4, 5, 6], &limits, None), [4, 5, 6]);
    }

    #[test]
    fn prompt_and_sequence_are_cut() {
        let limits = Limits {
            max_prompt_length: 3,
            max_length: 5,
        };
        let full = [1, 2, 3, 4, 5, 6, 7];
        let sequence = cut(0, &full[..4], &full, Some(9), &limits).unwrap();
        assert_eq!(
            (sequence.tokens, sequence.prompt_len),
            (vec![1, 2, 3, 5, 6], 3)
        );
        let limits = Limits {
            max_prompt_length: 8,
            max_length: 8,
        };
        let sequence = cut(0, &full[..4], &full, Some(9), &limits).unwrap();
        assert_eq!(
            (sequence.tokens, sequence.prompt_len),
            (vec![1, 2, 3, 4, 5, 6, 7, 9], 4)
        );
        assert_eq!(cut(0, &full, &full, Some(9), &limits), None);
        let limits = Limits {
            max_prompt_length: 4,
            max_length: 4,
        };
        assert_eq!(cut(0, &full[..4], &full, Some(9), &limits), None);
    }
}
