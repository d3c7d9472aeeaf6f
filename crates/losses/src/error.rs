//! Errors, with the names and values that say where they occurred.

use std::path::PathBuf;

/// Which of the two models a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The model that is trained, q.
    Student,
    /// The model that is imitated, p.
    Teacher,
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Model::Student => "student",
            Model::Teacher => "teacher",
        })
    }
}

impl Error {
    /// The row that it is about.
    pub fn row_mut(&mut self) -> Option<&mut usize> {
        match self {
            Self::NotFinite { row, .. }
            | Self::EmptyRow { row, .. }
            | Self::Label { row, .. }
            | Self::ImpossibleLabel { row, .. } => Some(row),
            _ => None,
        }
    }
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No divergence has this id.
    #[error("unknown loss `{id}`: did you mean `{nearest}`? The losses are {known}")]
    UnknownLoss {
        /// What was asked for.
        id: String,
        /// The id that is spelled most like it.
        nearest: &'static str,
        /// All ids.
        known: String,
    },
    /// A divergence's text whose parameters cannot be read.
    #[error("loss `{text}`: {what}")]
    LossText {
        /// What was given.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// The divergence has no parameter of this name.
    #[error("loss `{id}` has no parameter `{name}`; it has {known}")]
    UnknownParameter {
        /// The divergence.
        id: &'static str,
        /// What was given.
        name: String,
        /// The parameters that it has, or "none".
        known: String,
    },
    /// A parameter is outside its range.
    #[error("loss `{id}`: {name} = {value} is not {range}")]
    Parameter {
        /// The divergence.
        id: &'static str,
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it has to be.
        range: &'static str,
    },
    /// No fidelity has this name.
    #[error("unknown fidelity `{0}`: it is `paper` or `official`")]
    UnknownFidelity(String),
    /// Student and teacher logits differ in shape.
    #[error("student logits are {student:?}, teacher logits {teacher:?}: the shapes must be equal")]
    Shapes {
        /// Shape of the student's logits.
        student: [usize; 2],
        /// Shape of the teacher's logits.
        teacher: [usize; 2],
    },
    /// A logit is NaN or +inf (-inf is allowed: it leaves an entry out).
    #[error("{model} logits, row {row}: a logit is NaN or +inf")]
    NotFinite {
        /// Whose logits.
        model: Model,
        /// The first such row.
        row: usize,
    },
    /// A row without any finite logit has no distribution.
    #[error("{model} logits, row {row}: no finite logit")]
    EmptyRow {
        /// Whose logits.
        model: Model,
        /// The first such row.
        row: usize,
    },
    /// The numbers of labels and of rows differ.
    #[error("{labels} labels for {rows} rows")]
    LabelCount {
        /// Labels given.
        labels: usize,
        /// Rows given.
        rows: usize,
    },
    /// A label lies outside the vocabulary.
    #[error("row {row}: label {label} is outside the vocabulary of {vocab}")]
    Label {
        /// The row.
        row: usize,
        /// Its label.
        label: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The student's logit of a label is -inf: its cross-entropy is infinite.
    #[error("row {row}: the student's logit of label {label} is -inf, its cross-entropy infinite")]
    ImpossibleLabel {
        /// The row.
        row: usize,
        /// Its label.
        label: u32,
    },
    /// A golden file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A golden file does not have the expected form.
    #[error("{path}: {what}")]
    Golden {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}
