//! Scores of generated text against references, and statistics over scores.
//!
//! - [`rouge`]: ROUGE-L as Google's `rouge_score` computes it with stemming;
//! - [`exact_match`]: equality after normalisation;
//! - [`stats`]: mean, standard deviation, quartiles, rank correlation;
//! - [`inference`]: intervals and tests of a table whose scores vary with trainings, sampling seeds and examples;
//! - [`verify`]: this crate against a file of scores made by `rouge_score`.

pub mod exact_match;
pub mod inference;
mod porter;
pub mod rouge;
pub mod stats;
pub mod verify;

use std::path::PathBuf;

/// What can go wrong when a golden file is read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a golden file of ROUGE-L cases.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// The file holds no case, so it can show nothing.
    #[error("{path}: `cases` is empty: there is nothing to check")]
    NoCases {
        /// The file.
        path: PathBuf,
    },
    /// A case has nothing to check, more than can be checked, or not one score for each reference.
    #[error("{path}: {case}: {what}")]
    Case {
        /// The file.
        path: PathBuf,
        /// The case's name.
        case: String,
        /// What is wrong with it.
        what: String,
    },
}
