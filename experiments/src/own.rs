//! A user's own pair of models on the user's own data: `abkd distill`, `abkd eval` and `abkd generate`. None needs the
//! project's folder.
//!
//! `distill` trains nothing itself: it writes a profile and an experiment, which the runner runs, and puts what a user is
//! after in one place: the student, its curve, scores and some answers.

mod ask;
mod card;
mod distill;
mod files;
mod place;
mod scores;
mod source;

use abkd_data::Columns;

pub use ask::{Eval, Generate};
pub use distill::{Distill, Own};

use crate::suggest::with_nearest_key;

/// Longest sequence where the models have as many positions: the paper's.
const MAX_LENGTH: usize = 512;

/// Where prompts are cut, of sequences of this length: the paper's prompts have half of its 512.
fn prompt_length(max_length: usize) -> usize {
    (max_length / 2).max(1)
}

/// Names of columns as the command line has them.
fn columns(text: &str) -> Result<Columns, String> {
    text.parse()
        .map_err(|error: String| with_nearest_key(&error))
}

/// A file with the name that it has in scores.
fn named(text: &str) -> Result<(String, std::path::PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err("wanted: NAME=FILE, e.g. mine=test.jsonl".into()),
    }
}
