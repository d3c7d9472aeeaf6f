use std::path::PathBuf;

/// Errors of the data crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file of a data set is missing.
    #[error(
        "{path}: missing; it holds {what}. Set ABKD_DATA to a folder with dolly/, self-inst/, vicuna/, sinst/ and uinst/ (Hugging Face Hub: MiniLLM/dolly, self-inst, Vicuna, sinst, uinst)"
    )]
    MissingSet {
        /// The file.
        path: PathBuf,
        /// What the file holds.
        what: String,
    },
    /// A line of a JSONL file is not an example.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A file is damaged or of another format, or does not hold what it should.
    #[error("{path}: {reason}")]
    File {
        /// The file, or `embedded tokenizer`.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A row of a Parquet file is not an example.
    #[error("{path}: row {row}: {what}")]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, counted from 1 over all row groups.
        row: usize,
        /// What is wrong.
        what: String,
    },
    /// A JSONL file holds no example.
    #[error(
        "{path}: holds no example: it is empty or has blank lines alone; a line is {{\"instruction\": \"...\", \"input\": \"...\", \"output\": \"...\"}}"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A chat template is missing, cannot be read, or fails.
    #[error("{place}: {what}")]
    Template {
        /// The file, and the line where it is known.
        place: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// An example cannot be put as a prompt.
    #[error("example {example}: {source}")]
    Example {
        /// Number of the example in its set, from 1.
        example: usize,
        /// The cause.
        source: Box<Error>,
    },
    /// A repository has no file of this name.
    #[error("{url}: {reason}")]
    NoFile {
        /// Address of the file.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A file could not be fetched.
    #[error("{url}: {reason}")]
    Hub {
        /// Address of the file.
        url: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            reason: reason.into(),
        }
    }
}
