//! Errors, with the file and the tensor that they are about.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder for the cases holds something else.
    #[error("{path} holds `{entry}`, which is no part of the cases: name an empty folder")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        entry: String,
    },
    /// The cases are not those of this version.
    #[error(
        "{path}: these are not the cases of this version; write them again with `abkd check emit`"
    )]
    OtherCases {
        /// The file.
        path: PathBuf,
    },
    /// The answers cannot be judged.
    #[error("{path}: {what}")]
    Answers {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor's name.
        what: String,
    },
    /// A case of our own could not be computed.
    #[error("{0}")]
    Loss(#[from] abkd_losses::Error),
}
