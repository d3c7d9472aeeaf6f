//! The teacher's answers to the training prompts: written once, shared by all trainings that use them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use abkd_data::Sequence;
use abkd_host::chunks::{self, Chunks};
use abkd_models::LanguageModel;
use abkd_models::generate::{Decoding, generate};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::OneOff;
use super::proof::{self, Folder};
use crate::inputs::Inputs;
use crate::progress::TaskDisplay;
use crate::task::Answers;

/// The fields that are read back from a line of `answers.jsonl`.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Index of the training example.
    example: usize,
    /// The answer's text.
    answer: String,
    /// The answer's tokens, including its end-of-sequence token, if any.
    tokens: Vec<u32>,
}

/// An answer with its prompt and reference answers: a line of every `answers.jsonl`.
#[derive(Serialize)]
pub(super) struct Told<'a, A: Serialize> {
    #[serde(flatten)]
    pub answer: A,
    pub prompt: String,
    pub references: &'a [String],
}

pub(super) const FILE: &str = "answers.jsonl";
/// Answers per write; resuming starts at a multiple of it.
const CHUNK: usize = 256;

/// Answers every training prompt; `None` when interrupted.
pub(super) fn write(
    mut folder: Folder,
    id: &str,
    teacher: &LanguageModel,
    inputs: &Inputs,
    settings: &Answers,
    stop: &AtomicBool,
    shown: &mut TaskDisplay,
) -> Result<Option<String>> {
    let decoding = Decoding {
        max_new_tokens: settings.max_new_tokens,
        batch_size: settings.batch_size,
        ..Decoding::sampling()
    };
    let seed = settings.seed;
    let sequences = &inputs.train.sequences;
    let parts: Vec<&[Sequence]> = sequences.chunks(CHUNK).collect();
    let target = folder.dir.join(FILE);
    let mut chunks = Chunks::open(&target, id, &mut |index, text| {
        parts.get(index).map(|part| part.len()) == Some(bytecount(text))
    })?;
    if chunks.dropped() > 0 {
        shown.line(&again(chunks.dropped()));
    }
    let there = parts.iter().take(chunks.count()).map(|part| part.len());
    shown.more(there.sum(), sequences.len(), || "answers".into());
    for part in &parts[chunks.count()..] {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let started = Instant::now();
        let begun = |s: &Sequence| abkd_data::begun(s.prompt(), &inputs.limits, inputs.bos);
        let prompts: Vec<Vec<u32>> = part.iter().map(begun).collect();
        let keys: Vec<u64> = part.iter().map(|s| s.example as u64).collect();
        let ends = inputs.tokenizer.ends();
        let answers = generate(teacher, &prompts, &keys, seed, ends, &decoding, &mut |n| {
            shown.more(n, sequences.len(), || "answers".into())
        })?;
        let mut text = String::new();
        for (sequence, tokens) in part.iter().zip(answers) {
            let ended = tokens.last().is_some_and(|last| ends.contains(last));
            let end = tokens.len() - usize::from(ended);
            let (prompt, response) = sequence.tokens.split_at(sequence.prompt_len);
            let own = response.split(|t| ends.contains(t)).next();
            let line = Told {
                answer: Line {
                    example: sequence.example,
                    answer: inputs.tokenizer.decode(&tokens[..end])?,
                    tokens,
                },
                prompt: inputs.tokenizer.decode(prompt)?,
                references: &[inputs.tokenizer.decode(own.unwrap_or_default())?],
            };
            text += &(serde_json::to_string(&line)? + "\n");
        }
        chunks.append(text.as_bytes(), started.elapsed().as_secs_f64())?;
    }
    let written = OneOff {
        items: sequences.len(),
        seconds: chunks.seconds(),
    };
    folder.seal.add(FILE, chunks.finish()?);
    folder.finish(&written)?;
    chunks::forget(&target)?;
    Ok(Some(format!("{} answers", written.items)))
}

/// Message about a damaged partial file.
pub(super) fn again(dropped: u64) -> String {
    format!(
        "{dropped} bytes of an earlier attempt are incomplete or do not match their checksums, and are computed again"
    )
}

fn bytecount(text: &[u8]) -> usize {
    text.iter().filter(|&&b| b == b'\n').count()
}

/// The training prompts with the teacher's answers in place of the data's responses.
pub(super) fn read(
    runs: &Path,
    id: &str,
    sequences: &[Sequence],
    vocabulary: usize,
) -> Result<Vec<Sequence>> {
    let seal = proof::needed(runs, id)?;
    let dir = seal.folder();
    let text = seal.read(FILE).map_err(proof::changed)?;
    let path = dir.join(FILE);
    let place = |line: usize| format!("{}:{}", path.display(), line + 1);
    let again = format!("remove {} to have the answers written again", dir.display());
    let lines: Vec<&[u8]> = text.split_inclusive(|&b| b == b'\n').collect();
    ensure!(
        lines.len() == sequences.len(),
        "{}: {} answers for {} training prompts; {again}",
        path.display(),
        lines.len(),
        sequences.len()
    );
    let answered = sequences.iter().zip(lines).enumerate();
    answered
        .map(|(i, (sequence, line))| {
            let line: Line = serde_json::from_slice(line).with_context(|| place(i))?;
            ensure!(
                line.example == sequence.example,
                "{}: an answer to example {}, and example {} is wanted; {again}",
                place(i),
                line.example,
                sequence.example
            );
            if let Some(token) = line.tokens.iter().find(|&&t| t as usize >= vocabulary) {
                anyhow::bail!(
                    "{}: token {token} is outside of the vocabulary of {vocabulary}; {again}",
                    place(i)
                );
            }
            Ok(sequence.with_answer(&line.tokens))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use abkd_host::seal::Seal;

    use super::*;

    fn sequence(example: usize) -> Sequence {
        Sequence {
            example,
            tokens: vec![1, 2, 3, 4],
            prompt_len: 2,
        }
    }

    fn line(example: usize, tokens: &[u32]) -> String {
        format!("{{\"example\":{example},\"answer\":\"\",\"tokens\":{tokens:?}}}\n")
    }

    #[test]
    fn answers_are_read_only_where_they_are_sealed_and_of_the_training_data() {
        let runs = tempfile::tempdir().unwrap();
        let data = [sequence(3), sequence(5)];
        let read = || read(runs.path(), "answers-1", &data, 10);
        let dir = runs.path().join("answers-1");
        fs::create_dir(&dir).unwrap();
        let seal = |text: &str| {
            let mut seal = Seal::new(&dir, "answers-1");
            seal.write(FILE, text.as_bytes()).unwrap();
            seal.close().unwrap();
        };
        let good = line(3, &[7, 8]) + &line(5, &[9]);
        seal(&good);
        let answered = read().unwrap();
        assert_eq!(answered[0].tokens, [1, 2, 7, 8]);
        assert_eq!(answered[1].tokens, [1, 2, 9]);
        for (text, what) in [
            (line(3, &[7]), "1 answers for 2"),
            (
                line(5, &[7]) + &line(3, &[8]),
                "answers.jsonl:1: an answer to example 5",
            ),
            (
                line(3, &[7]) + &line(5, &[5000]),
                "answers.jsonl:2: token 5000",
            ),
            (line(3, &[7]) + "{}\n", "answers.jsonl:2"),
        ] {
            seal(&text);
            let error = format!("{:#}", read().unwrap_err());
            assert!(error.contains(what), "{error}");
        }
        seal(&good);
        fs::write(dir.join(FILE), line(3, &[7, 9]) + &line(5, &[9])).unwrap();
        let error = format!("{:#}", read().unwrap_err());
        assert!(
            error.contains("answers.jsonl") && error.contains("repeat the task"),
            "{error}"
        );
    }
}
