//! Instruction data: JSONL and Parquet sets and an embedded corpus, the prompt template, tokenizers, batches.

mod batch;
mod columns;
pub mod corpus;
mod encode;
mod error;
pub mod hub;
pub mod indexed;
mod jsonl;
mod parquet;
mod prompt;
pub use abkd_host::rng;
mod sets;
mod tokenizer;

pub use batch::{Batch, batches_of_epoch, collate};
pub use columns::Columns;
pub use corpus::{Sizes, embedded};
pub use encode::{Encoding, Limits, Sequence, begun, encode_prompts, encode_training};
pub use error::Error;
pub use jsonl::{read_answered, read_columns, read_jsonl};
pub use prompt::prompt;
pub use sets::{DataSets, TestFile, from_folder};
pub use tokenizer::Tokenizer;

/// An instruction with one or more reference answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The instruction.
    pub instruction: String,
    /// Context of the instruction; may be empty.
    pub input: String,
    /// Reference answers, at least one; training uses the first.
    pub outputs: Vec<String>,
}
