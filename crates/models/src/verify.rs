//! Checks a checkpoint against a golden file: logits and greedy tokens of another implementation.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;

use crate::generate::{Decoding, generate};
use crate::{Error, LanguageModel, checkpoint, params};

/// One compared quantity.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// Largest absolute error; for tokens, how many differ.
    pub error: f64,
    /// Error above which the check fails.
    pub tolerance: f64,
}

/// `golden.json` beside a checkpoint.
#[derive(Deserialize)]
struct Golden {
    input_ids: Vec<Vec<i32>>,
    attention_mask: Vec<Vec<u8>>,
    logits: Vec<f64>,
    prompt_ids: Vec<Vec<u32>>,
    prompt_mask: Vec<Vec<u8>>,
    greedy: Vec<Vec<u32>>,
    pad_and_eos: u32,
}

/// Compares the checkpoint in `dir` with `dir/golden.json`.
///
/// # Errors
///
/// When the files cannot be read or do not belong together.
pub fn verify_model(dir: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let path = dir.join("golden.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let golden: Golden = serde_json::from_str(&text).map_err(Error::json(&path))?;
    let model = checkpoint::load(dir, device)?;
    // Rounding grows with the logits: a deep model's are larger than a small one's.
    let largest = golden.logits.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    let tolerance = 1e-4 * (largest / 10.0).max(1.0);
    let mut checks: Vec<Check> = [("right", 0), ("left", 3)]
        .map(|(side, extra)| Check {
            name: format!("logits, {side} padding"),
            error: logits(&model, &golden, extra),
            tolerance,
        })
        .into();
    let prompts: Vec<Vec<u32>> = golden
        .prompt_ids
        .iter()
        .zip(&golden.prompt_mask)
        .map(|(ids, mask)| {
            ids.iter()
                .zip(mask)
                .filter(|(_, m)| **m == 1)
                .map(|(id, _)| *id)
                .collect()
        })
        .collect();
    for batch_size in [1, prompts.len()] {
        let decoding = Decoding {
            max_new_tokens: golden.greedy[0].len(),
            batch_size,
            ..Decoding::greedy()
        };
        let keys: Vec<u64> = (0..prompts.len() as u64).collect();
        let answers = generate(
            &model,
            &prompts,
            &keys,
            0,
            golden.pad_and_eos,
            &decoding,
            &mut |_| {},
        )?;
        let wrong: usize = answers
            .iter()
            .zip(&golden.greedy)
            .map(|(ours, theirs)| {
                let theirs: Vec<u32> = theirs
                    .iter()
                    .copied()
                    .take_while(|&t| t != golden.pad_and_eos)
                    .collect();
                let ours = ours.strip_suffix(&[golden.pad_and_eos]).unwrap_or(ours);
                ours.len().abs_diff(theirs.len())
                    + ours.iter().zip(&theirs).filter(|(a, b)| a != b).count()
            })
            .sum();
        checks.push(Check {
            name: format!("greedy tokens, batch of {batch_size}"),
            error: wrong as f64,
            tolerance: 0.0,
        });
    }
    Ok(checks)
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
            std::iter::repeat_n(golden.pad_and_eos as i32, extra).chain(row.iter().copied())
        })
        .collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, width + extra]), &device);
    let hidden = model.hidden(ids, &vec![extra; rows], None);
    let d = hidden.dims()[2];
    let ours = params::to_vec(model.logits(hidden.reshape([rows * (width + extra), d])));
    let mut largest: f64 = 0.0;
    for row in 0..rows {
        for t in (0..width).filter(|&t| golden.attention_mask[row][t] == 1) {
            let a = &ours[(row * (width + extra) + extra + t) * vocab..][..vocab];
            let b = &golden.logits[(row * width + t) * vocab..][..vocab];
            for (x, y) in a.iter().zip(b) {
                largest = largest.max((f64::from(*x) - y).abs());
            }
        }
    }
    largest
}
