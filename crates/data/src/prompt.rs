use crate::{ChatTemplate, Error, Example, Message, Role};

pub(crate) const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.";
pub(crate) const WITHOUT_INPUT: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
pub(crate) const INSTRUCTION: &str = "\n\n### Instruction:\n";
pub(crate) const INPUT: &str = "\n\n### Input:\n";
pub(crate) const RESPONSE: &str = "\n\n### Response:\n";

/// The prompt of an example: the template of the paper's data sets, with or without an input.
pub fn prompt(example: &Example) -> String {
    let Example {
        instruction, input, ..
    } = example;
    if input.is_empty() {
        format!("{WITHOUT_INPUT}{INSTRUCTION}{instruction}{RESPONSE}")
    } else {
        format!("{WITH_INPUT}{INSTRUCTION}{instruction}{INPUT}{input}{RESPONSE}")
    }
}

/// How examples are put as prompts.
pub enum PromptTemplate {
    /// As in the paper's data sets: [`prompt`].
    Paper,
    /// By the chat template of the tokenizer.
    Chat(Box<ChatTemplate>),
}

impl PromptTemplate {
    /// The prompt of an example.
    ///
    /// # Errors
    ///
    /// A chat template that refuses it, or fails.
    pub fn prompt(&self, example: &Example) -> Result<String, Error> {
        match self {
            Self::Paper => Ok(prompt(example)),
            Self::Chat(chat) => chat.render(&example.asked(), true),
        }
    }

    /// The prompt of an example and what follows it in training: the first reference; in a chat what the template adds to
    /// the prompt for it, if the rendering of the whole conversation begins with the prompt.
    pub(crate) fn answered(&self, example: &Example) -> Result<(String, String), Error> {
        let (prompt, answer) = (self.prompt(example)?, &example.outputs[0]);
        let Self::Chat(chat) = self else {
            return Ok((prompt, answer.clone()));
        };
        // Around an empty answer a template writes tokens all the same.
        if answer.trim().is_empty() {
            return Ok((prompt, String::new()));
        }
        let mut messages = example.asked();
        messages.push(Message {
            role: Role::Assistant,
            content: answer.clone(),
        });
        let whole = chat.render(&messages, false)?;
        let added = whole.strip_prefix(&prompt).unwrap_or(answer);
        Ok((prompt, added.to_owned()))
    }
}
