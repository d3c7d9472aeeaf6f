use std::borrow::Cow;
use std::path::PathBuf;

use abkd_data::Batch;

/// What can go wrong in training and evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the models crate.
    #[error(transparent)]
    Model(#[from] abkd_models::Error),
    /// From the data crate.
    #[error(transparent)]
    Data(#[from] abkd_data::Error),
    /// From the losses crate.
    #[error(transparent)]
    Loss(#[from] abkd_losses::Error),
    /// A response token whose loss cannot be computed.
    #[error("{term}, example {example}: {source}")]
    Row {
        /// The sum that contains the token's loss: an update, counted from 1, or the validation.
        term: String,
        /// Index of the example that the token belongs to.
        example: usize,
        /// The cause and the row, counted from 0 over the term's rows.
        source: abkd_losses::Error,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A sealed file could not be read or written, or does not match its seal.
    #[error(transparent)]
    Seal(#[from] abkd_host::seal::Error),
    /// A checkpoint cannot be used.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Teacher and student have vocabularies of different sizes.
    #[error(
        "the teacher has a vocabulary of {teacher} tokens, the student of {student}; a divergence compares the two token by token, so both need the same tokenizer"
    )]
    Vocabulary {
        /// Rows of the teacher's head.
        teacher: usize,
        /// Rows of the student's head.
        student: usize,
    },
    /// A tokenizer has more ids than the model's vocabulary.
    #[error(
        "the tokenizer has {tokenizer} tokens, the model only {model}; do they belong together?"
    )]
    Tokenizer {
        /// Size of the tokenizer.
        tokenizer: usize,
        /// Size of the model.
        model: usize,
    },
    /// A loss or a gradient is NaN or infinite.
    #[error(
        "update {step}: {what} is {value}; lower the learning rate or look at the data of this update"
    )]
    NotFinite {
        /// The update, counted from 1.
        step: usize,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// No training example has a response token.
    #[error(
        "no training example has a response token left (of {examples}); raise max_length or look at the data"
    )]
    NoSequences {
        /// Examples given.
        examples: usize,
    },
    /// No document of the plain text has two tokens, so that none predicts a token.
    #[error(
        "no document of the plain text has two tokens (of {documents}), so nothing can be learned from it; look at the file, or leave it out"
    )]
    NoText {
        /// Documents given.
        documents: usize,
    },
    /// A method cannot be built from its settings, or lacks what it needs.
    #[error("method `{method}`: {reason}")]
    Method {
        /// Its id.
        method: String,
        /// Why not.
        reason: String,
    },
    /// A setting is out of range.
    #[error("`{key}` = {value}: {reason}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: Cow<'static, str>,
    },
}

impl Error {
    /// Converts an error's row within a chunk to the row over all chunks; `before` rows precede the chunk.
    pub(crate) fn in_chunk(before: usize) -> impl FnOnce(abkd_losses::Error) -> Self {
        move |mut error| {
            if let Some(row) = error.row_mut() {
                *row += before;
            }
            Self::Loss(error)
        }
    }

    /// Names the teacher in an error of the cross-entropy, which always names the student.
    pub(crate) fn of_teacher(mut self) -> Self {
        use abkd_losses::Error as E;
        if let Self::Loss(E::NotFinite { model, .. } | E::EmptyRow { model, .. }) = &mut self {
            *model = abkd_losses::Model::Teacher;
        }
        self
    }

    /// [`in_term`](Self::in_term) of an update, numbered from 0.
    pub(crate) fn in_update(
        step: usize,
        batch: &Batch,
        before: usize,
    ) -> impl FnOnce(Self) -> Self {
        Self::in_term(move || format!("update {}", step + 1), batch, before)
    }

    /// Adds the term and the example to an error in a row of `batch`; `before` rows of the same term precede the batch.
    pub(crate) fn in_term(
        term: impl FnOnce() -> String,
        batch: &Batch,
        before: usize,
    ) -> impl FnOnce(Self) -> Self {
        move |error| {
            let Self::Loss(mut source) = error else {
                return error;
            };
            let Some(row) = source.row_mut() else {
                return Self::Loss(source);
            };
            let example = batch.example_of(*row);
            *row += before;
            Self::Row {
                term: term(),
                example,
                source,
            }
        }
    }

    pub(crate) fn setting(
        key: &'static str,
        value: impl ToString,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Setting {
            key,
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A missing or damaged file, with the remedy; an error of the system keeps its own text.
    pub(crate) fn untrusted(error: abkd_host::seal::Error, remedy: &str) -> Self {
        use abkd_host::seal::Error as E;
        match error {
            E::Absent { path } => Self::checkpoint(path, format!("it is missing; {remedy}")),
            E::Broken { path, reason } => Self::checkpoint(path, format!("{reason}; {remedy}")),
            E::Io { .. } => Self::Seal(error),
        }
    }

    pub(crate) fn checkpoint(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Checkpoint {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}
