//! Checks a checkpoint against a golden file: logits and greedy tokens of another implementation.

use std::path::Path;

use abkd_host::files;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;

use crate::generate::{Decoding, generate};
use crate::{Error, LanguageModel, ModelConfig, checkpoint, params};

/// One compared quantity.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// Largest error; for tokens, how many differ. NaN where a number is NaN, which is outside every tolerance.
    pub error: f64,
    /// Error above which the check fails.
    pub tolerance: f64,
}

/// Errors of logits are absolute up to a largest logit of this, and relative to the largest above it, as rounding is.
const SCALE: f64 = 10.0;
const TOLERANCE: f64 = 1e-4;
/// Largest golden file.
const LIMIT: u64 = 128 << 20;
/// Columns of padding before every row in the second comparison.
const EXTRA: usize = 3;

/// `golden.json` beside a checkpoint.
#[derive(Deserialize)]
struct Golden {
    /// `[B, T]`
    input_ids: Vec<Vec<u32>>,
    /// 1 where a token is, 0 after it: `[B, T]`
    attention_mask: Vec<Vec<u8>>,
    /// `[B, T, V]`
    logits: Vec<f64>,
    /// Of other texts, `[n, m]`.
    prompt_ids: Vec<Vec<u32>>,
    /// 1 where a token is: `[n, m]`
    prompt_mask: Vec<Vec<u8>>,
    /// The likeliest tokens after each prompt, `[n, k]`.
    greedy: Vec<Vec<u32>>,
    pad_and_eos: u32,
}

impl Golden {
    /// # Errors
    ///
    /// A file that cannot be compared, or that compares nothing.
    fn check(&self, path: &Path, config: &ModelConfig) -> Result<(), Error> {
        let (vocab, positions) = (config.vocab_size(), config.max_positions());
        let refuse = |place: String, reason: String| {
            Err(Error::Golden {
                path: path.into(),
                place,
                reason,
            })
        };
        for (key, rows) in [
            ("input_ids", &self.input_ids),
            ("prompt_ids", &self.prompt_ids),
            ("greedy", &self.greedy),
        ] {
            let Some(first) = rows.first().filter(|row| !row.is_empty()) else {
                return refuse(key.into(), "there is nothing in it to compare".into());
            };
            for (i, row) in rows.iter().enumerate() {
                let place = |column: usize| format!("{key}[{i}][{column}]");
                if row.len() != first.len() {
                    let reason = format!("{} ids, the first row has {}", row.len(), first.len());
                    return refuse(format!("{key}[{i}]"), reason);
                }
                if let Some(t) = row.iter().position(|&id| id as usize >= vocab) {
                    let reason = format!("{} is outside of the vocabulary of {vocab}", row[t]);
                    return refuse(place(t), reason);
                }
            }
        }
        for (key, masks, ids) in [
            ("attention_mask", &self.attention_mask, &self.input_ids),
            ("prompt_mask", &self.prompt_mask, &self.prompt_ids),
        ] {
            if masks.len() != ids.len() {
                let reason = format!("{} rows for {} of ids", masks.len(), ids.len());
                return refuse(key.into(), reason);
            }
            for (i, (mask, ids)) in masks.iter().zip(ids).enumerate() {
                let place = format!("{key}[{i}]");
                if mask.len() != ids.len() {
                    let reason = format!("{} entries for {} ids", mask.len(), ids.len());
                    return refuse(place, reason);
                }
                if mask.iter().any(|&m| m > 1) || !mask.contains(&1) {
                    return refuse(
                        place,
                        "it must hold only 0 and 1, and at least one 1".into(),
                    );
                }
                if key == "attention_mask" && mask.windows(2).any(|pair| pair[0] < pair[1]) {
                    return refuse(place, "the padding is to come after the tokens".into());
                }
            }
        }
        let (rows, width) = (self.input_ids.len(), self.input_ids[0].len());
        if width > positions {
            let reason = format!("{width} ids, and the model has {positions} positions");
            return refuse("input_ids[0]".into(), reason);
        }
        if self.logits.len() != rows * width * vocab {
            let reason = format!(
                "{} numbers, but {rows} rows of {width} tokens with {vocab} logits each need {}",
                self.logits.len(),
                rows * width * vocab
            );
            return refuse("logits".into(), reason);
        }
        let (prompts, answers) = (self.prompt_ids.len(), self.greedy.len());
        if prompts != answers {
            let reason = format!("{answers} rows for {prompts} of prompt_ids");
            return refuse("greedy".into(), reason);
        }
        let length = self.prompt_ids[0].len() + self.greedy[0].len();
        if length > positions {
            let reason =
                format!("{length} ids with prompt_ids, and the model has {positions} positions");
            return refuse("greedy[0]".into(), reason);
        }
        if self.pad_and_eos as usize >= vocab {
            let reason = format!(
                "{} is outside of the vocabulary of {vocab}",
                self.pad_and_eos
            );
            return refuse("pad_and_eos".into(), reason);
        }
        Ok(())
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        let rows = self.prompt_ids.iter().zip(&self.prompt_mask);
        rows.map(|(ids, mask)| {
            let seen = ids.iter().zip(mask).filter(|(_, m)| **m == 1);
            seen.map(|(id, _)| *id).collect()
        })
        .collect()
    }
}

/// Compares the checkpoint in `dir` with `dir/golden.json`.
///
/// # Errors
///
/// When the files cannot be read or do not belong together, or when there is nothing to compare.
pub fn verify_model(dir: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let path = dir.join("golden.json");
    let text = files::read(&path, LIMIT).map_err(Error::io(&path))?;
    let golden: Golden = serde_json::from_slice(&text).map_err(Error::json(&path))?;
    let model = checkpoint::load(dir, device)?;
    let config = model.config();
    golden.check(&path, &config)?;
    let mut checks: Vec<Check> = [("right", 0), ("left", EXTRA)]
        .map(|(side, extra)| Check {
            name: format!("logits, {side} padding"),
            error: logits(&model, &golden, extra),
            tolerance: TOLERANCE,
        })
        .into();
    let prompts = golden.prompts();
    let keys: Vec<u64> = (0..prompts.len() as u64).collect();
    let mut ends = config.eos_ids();
    ends.push(golden.pad_and_eos);
    for batch_size in [1, prompts.len()] {
        let decoding = Decoding {
            max_new_tokens: golden.greedy[0].len(),
            batch_size,
            ..Decoding::greedy()
        };
        let error = match generate(&model, &prompts, &keys, 0, &ends, &decoding, &mut |_| {}) {
            Ok(answers) => wrong(&answers, &golden.greedy, &ends) as f64,
            Err(Error::NotFinite { .. }) => f64::NAN,
            Err(error) => return Err(error),
        };
        checks.push(Check {
            name: format!("greedy tokens, batch of {batch_size}"),
            error,
            tolerance: 0.0,
        });
    }
    Ok(checks)
}

/// Number of tokens that differ.
fn wrong(ours: &[Vec<u32>], theirs: &[Vec<u32>], ends: &[u32]) -> usize {
    let pairs = ours.iter().zip(theirs);
    pairs
        .map(|(ours, theirs)| {
            // What follows the end is padding.
            let end = theirs.iter().position(|t| ends.contains(t));
            let theirs = &theirs[..end.map_or(theirs.len(), |end| end + 1)];
            let differ = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
            ours.len().abs_diff(theirs.len()) + differ
        })
        .sum()
}

/// Largest error over real positions, with `extra` columns of padding put before every row.
fn logits(model: &LanguageModel, golden: &Golden, extra: usize) -> f64 {
    let rows = golden.input_ids.len();
    let width = golden.input_ids[0].len();
    let vocab = golden.logits.len() / (rows * width);
    let device = model.device();
    let ids: Vec<i32> = golden
        .input_ids
        .iter()
        .flat_map(|row| {
            let padding = std::iter::repeat_n(golden.pad_and_eos, extra);
            padding.chain(row.iter().copied()).map(|id| id as i32)
        })
        .collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, width + extra]), &device);
    let hidden = model.hidden(ids, &vec![extra; rows], None);
    let d = hidden.dims()[2];
    let ours = params::to_vec(model.logits(hidden.reshape([rows * (width + extra), d])));
    let mut largest = 0.0;
    for row in 0..rows {
        for t in (0..width).filter(|&t| golden.attention_mask[row][t] == 1) {
            let a = &ours[(row * (width + extra) + extra + t) * vocab..][..vocab];
            let b = &golden.logits[(row * width + t) * vocab..][..vocab];
            largest = worse(largest, error(a, b));
        }
    }
    largest
}

/// Largest error of a row of logits: absolute, or relative to the largest of them where that is above [`SCALE`].
fn error(ours: &[f32], theirs: &[f64]) -> f64 {
    let size = theirs.iter().fold(0.0, |size, x| worse(size, x.abs()));
    let pairs = ours.iter().zip(theirs);
    let error = pairs.fold(0.0, |e, (x, y)| worse(e, (f64::from(*x) - y).abs()));
    error / (size / SCALE).max(1.0)
}

/// The larger of two errors. NaN, which `f64::max` drops, is worse than any.
pub fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a >= b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_no_number_is_worse_than_any() {
        assert_eq!(worse(1.0, 2.0), 2.0);
        assert_eq!(worse(2.0, 1.0), 2.0);
        assert!(worse(1.0, f64::NAN).is_nan() && worse(f64::NAN, 1.0).is_nan());
        assert!(error(&[f32::NAN, 1.0], &[0.0, 1.0]).is_nan());
        assert!(error(&[1.0, f32::NAN], &[1.0, 1.0]).is_nan());
        assert_eq!(error(&[f32::INFINITY], &[1.0]), f64::INFINITY);
    }

    #[test]
    fn answers_are_compared_up_to_their_end() {
        let theirs = [vec![1, 2, 9, 0], vec![3, 4, 5, 6]];
        assert_eq!(
            wrong(&[vec![1, 2, 9], vec![3, 4, 5, 6]], &theirs, &[8, 9]),
            0
        );
        assert_eq!(wrong(&[vec![1, 2, 9], vec![3, 7, 5]], &theirs, &[8, 9]), 2);
        assert_eq!(
            wrong(&[vec![1, 2, 8], vec![3, 4, 5, 6]], &theirs, &[8, 9]),
            1
        );
    }

    #[test]
    fn errors_are_relative_to_the_largest_logit_where_that_is_large() {
        assert!((error(&[1.5, 2.0], &[1.0, 2.0]) - 0.5).abs() < 1e-12);
        assert!((error(&[1.5, 100.0], &[1.0, 100.0]) - 0.05).abs() < 1e-12);
    }
}
