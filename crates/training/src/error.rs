use std::path::PathBuf;

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
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A checkpoint cannot be used.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Teacher and student do not speak the same tokens.
    #[error(
        "the teacher has a vocabulary of {teacher} tokens, the student of {student}; a divergence compares the two token by token, so both need the same tokenizer"
    )]
    Vocabulary {
        /// Rows of the teacher's head.
        teacher: usize,
        /// Rows of the student's head.
        student: usize,
    },
    /// A tokenizer has ids that a model does not know.
    #[error(
        "the tokenizer has {tokenizer} tokens, the model only {model}; do they belong together?"
    )]
    Tokenizer {
        /// Size of the tokenizer.
        tokenizer: usize,
        /// Size of the model.
        model: usize,
    },
    /// A loss or a gradient is not a number any more.
    #[error(
        "step {step}: {what} is {value}; lower the learning rate or look at the data of this step"
    )]
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// There is nothing to train on.
    #[error(
        "no training example has a response token left (of {examples}); raise max_length or look at the data"
    )]
    NoSequences {
        /// Examples given.
        examples: usize,
    },
    /// A method cannot be built as it is described.
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
        reason: &'static str,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn checkpoint(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Checkpoint {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}
