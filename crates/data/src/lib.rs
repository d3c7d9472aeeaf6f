//! Instruction data: JSONL and Parquet sets and an embedded corpus, prompt templates, tokenizers, batches.

mod batch;
mod chat;
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
pub use chat::{ChatTemplate, Date};
pub use columns::Columns;
pub use corpus::{Sizes, embedded};
pub use encode::{Encoding, Limits, Sequence, begun, encode_prompts, encode_training};
pub use error::Error;
pub use jsonl::{read_answered, read_columns, read_jsonl};
pub use prompt::{PromptTemplate, prompt};
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
    /// The messages before the answer, where the data have them: a chat template renders them as they are, and
    /// `instruction` is their text in one.
    pub messages: Vec<Message>,
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// The text.
    pub content: String,
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What holds for the whole conversation.
    System,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::System, Self::User, Self::Assistant];

    /// The name in data and templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl Example {
    /// The messages before the answer: those of the data, else one of the user, which has the input after an empty line.
    pub fn asked(&self) -> Vec<Message> {
        if !self.messages.is_empty() {
            return self.messages.clone();
        }
        let content = match self.input.is_empty() {
            true => self.instruction.clone(),
            false => format!("{}\n\n{}", self.instruction, self.input),
        };
        vec![Message {
            role: Role::User,
            content,
        }]
    }
}
