use std::path::PathBuf;

/// What can go wrong with a model, its files or its generation.
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
    /// A JSON file does not hold what it should.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// A file is truncated or corrupt.
    #[error("{path}: not a valid safetensors file ({reason}); fetch or write it again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A configuration asks for something that is not supported.
    #[error("{path}: `{key}` is {value}, which is not supported ({hint})")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        hint: String,
    },
    /// Tensors that the model needs are not in the checkpoint.
    #[error("{path}: {} tensor(s) of the model are missing, first `{}`; does config.json belong to these weights?", names.len(), names[0])]
    MissingTensors {
        /// The checkpoint.
        path: PathBuf,
        /// Every missing name.
        names: Vec<String>,
    },
    /// Tensors of the checkpoint have no place in the model.
    #[error("{path}: {} tensor(s) have no place in the model, first `{}`; does config.json belong to these weights?", names.len(), names[0])]
    UnusedTensors {
        /// The checkpoint.
        path: PathBuf,
        /// Every unused name.
        names: Vec<String>,
    },
    /// Two tensors of a checkpoint are one in the model, and differ.
    #[error(
        "{path}: tensor `{name}` differs from {other}, but the model has only one of them ({hint})"
    )]
    Differs {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor that has no place.
        name: String,
        /// The tensor that has a place.
        other: String,
        /// What to do.
        hint: String,
    },
    /// There are no weights that can be read.
    #[error("{path}: there is neither model.safetensors nor model.safetensors.index.json{hint}")]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is there instead, and what to do.
        hint: String,
    },
    /// An index does not fit the files that it lists.
    #[error("{path}: `{key}` is in `{shard}`: {reason}")]
    Index {
        /// The index.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The file that the index names.
        shard: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A golden file cannot be used for a comparison.
    #[error("{path}: {place}: {reason}; write the file again")]
    Golden {
        /// The file.
        path: PathBuf,
        /// Key and index.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor `{name}` has shape {found:?}, config.json says {expected:?}")]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape from the configuration, as stored in the file.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// An adapter has another rank, or belongs to another base model.
    #[error(
        "{path}: tensor `{name}` has shape {found:?}, base model and adapter_config.json say {expected:?}; is this the adapter of this base, and of this rank?"
    )]
    AdapterShape {
        /// The adapter's weights.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape that fits.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// A setting is out of range.
    #[error("`{key}` = {value}: {reason}")]
    Setting {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
        /// Why it is refused.
        reason: String,
    },
    /// A prompt has no token.
    #[error("example {example}: its prompt is empty; it needs at least one token")]
    EmptyPrompt {
        /// The example's index.
        example: u64,
    },
    /// A prompt and its answer do not fit the model's positions.
    #[error(
        "example {example}: {prompt} prompt tokens and {new} new ones exceed the model's {positions} positions; lower max_new_tokens or max_prompt_length"
    )]
    TooLong {
        /// The example's index.
        example: u64,
        /// Prompt tokens.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// The model's limit.
        positions: usize,
    },
    /// A prompt has a token that is not in the model's vocabulary.
    #[error(
        "example {example}: token {token} of its prompt is outside of the model's vocabulary of {vocabulary}; is this the model's tokenizer?"
    )]
    Vocabulary {
        /// The example's index.
        example: u64,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The model's logits are no longer finite numbers.
    #[error(
        "example {example}: the model's logits have no finite value at position {position}; the weights hold NaN or infinity"
    )]
    NotFinite {
        /// The example's index.
        example: u64,
        /// Position of the token to be drawn.
        position: usize,
    },
    /// Captured decoding steps give other tokens than plain ones.
    #[error(
        "captured decoding steps give other tokens than plain ones on this device, which is a bug; set ABKD_GRAPHS=off to decode without graphs"
    )]
    Graph,
}

impl Error {
    /// The message, without the file of an unsupported key.
    pub(crate) fn without_path(&self) -> String {
        let text = self.to_string();
        match self {
            Self::Unsupported { path, .. } => {
                let path = format!("{}: ", path.display());
                text.strip_prefix(&path).unwrap_or(&text).to_owned()
            }
            _ => text,
        }
    }

    pub(crate) fn setting(
        key: impl Into<String>,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Setting {
            key: key.into(),
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn json(path: impl Into<PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |source| Self::Json { path, source }
    }
}
