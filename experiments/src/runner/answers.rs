//! The teacher's answers to the training prompts: written once, shared by all that train on them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use abkd_data::Sequence;
use abkd_models::LanguageModel;
use abkd_models::generate::{Decoding, generate};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{OneOff, RESULT, write_json};
use crate::inputs::Inputs;
use crate::progress::CellDisplay;

/// A line of `answers.jsonl`.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Index of the training example.
    example: usize,
    /// The answer's text.
    answer: String,
    /// The answer's tokens, its end included where it has one.
    tokens: Vec<u32>,
}

const FILE: &str = "answers.jsonl";
const PARTIAL: &str = "answers.partial.jsonl";
const SPENT: &str = "seconds.json";
/// Answers written at a time; also the grain of resuming.
const CHUNK: usize = 256;

/// Answers every training prompt; `None` when interrupted.
pub(super) fn write(
    dir: &Path,
    teacher: &LanguageModel,
    inputs: &Inputs,
    seed: u64,
    decoding: &Decoding,
    stop: &AtomicBool,
    shown: &mut CellDisplay,
) -> Result<Option<String>> {
    let sequences = &inputs.train.sequences;
    let partial = dir.join(PARTIAL);
    let place = || partial.display().to_string();
    let mut lines = whole_chunks(&partial)?;
    let mut seconds: f64 = if lines.is_empty() {
        0.0
    } else {
        super::read_json(&dir.join(SPENT)).unwrap_or(0.0)
    };
    fs::write(&partial, lines.concat()).with_context(place)?;
    shown.more(lines.len(), sequences.len(), || "answers".into());
    for chunk in sequences.chunks(CHUNK).skip(lines.len() / CHUNK) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let started = Instant::now();
        let begun = |s: &Sequence| abkd_data::begun(s.prompt(), &inputs.limits, inputs.bos);
        let prompts: Vec<Vec<u32>> = chunk.iter().map(begun).collect();
        let keys: Vec<u64> = chunk.iter().map(|s| s.example as u64).collect();
        let answers = generate(
            teacher,
            &prompts,
            &keys,
            seed,
            &[inputs.tokenizer.eos()],
            decoding,
            &mut |n| shown.more(n, sequences.len(), || "answers".into()),
        )?;
        seconds += started.elapsed().as_secs_f64();
        let mut text = String::new();
        for (sequence, tokens) in chunk.iter().zip(answers) {
            let end = tokens.len() - usize::from(tokens.last() == Some(&inputs.tokenizer.eos()));
            let line = Line {
                example: sequence.example,
                answer: inputs.tokenizer.decode(&tokens[..end])?,
                tokens,
            };
            let line = serde_json::to_string(&line)? + "\n";
            text += &line;
            lines.push(line);
        }
        let mut file = OpenOptions::new()
            .append(true)
            .open(&partial)
            .with_context(place)?;
        file.write_all(text.as_bytes()).with_context(place)?;
        write_json(&dir.join(SPENT), &seconds)?;
    }
    fs::rename(&partial, dir.join(FILE)).with_context(place)?;
    let written = OneOff {
        items: lines.len(),
        seconds,
    };
    write_json(&dir.join(RESULT), &written)?;
    Ok(Some(format!("{} answers", written.items)))
}

/// Lines of an earlier attempt, cut to whole chunks.
fn whole_chunks(partial: &Path) -> Result<Vec<String>> {
    if !partial.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(partial).with_context(|| partial.display().to_string())?;
    let mut lines: Vec<String> = text
        .split_inclusive('\n')
        .filter(|l| l.ends_with('\n'))
        .map(str::to_owned)
        .collect();
    lines.truncate(lines.len() / CHUNK * CHUNK);
    Ok(lines)
}

fn read_lines(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), i + 1))
        })
        .collect()
}

/// The training prompts with the teacher's answers in place of the data's.
pub(super) fn read(dir: &Path, sequences: &[Sequence]) -> Result<Vec<Sequence>> {
    let path = dir.join(FILE);
    let lines = read_lines(&path)?;
    ensure!(
        lines.len() == sequences.len(),
        "{}: {} answers for {} training prompts; remove the folder to write them again",
        path.display(),
        lines.len(),
        sequences.len()
    );
    Ok(sequences
        .iter()
        .zip(lines)
        .map(|(s, line)| s.with_answer(&line.tokens))
        .collect())
}
