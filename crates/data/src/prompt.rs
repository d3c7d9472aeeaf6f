use crate::Example;

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
