//! A user's own pair of models on the user's own data: `abkd distill`, `abkd eval` and `abkd generate`. None needs the
//! project's folder.
//!
//! `distill` does not train by itself: it writes a profile and an experiment, which the runner runs, and collects the
//! results in one folder: the student, its curve, scores and some answers.

mod ask;
mod card;
mod distill;
mod files;
mod place;
mod scores;
mod source;

use std::path::Path;

use abkd_data::{Columns, Date, PromptTemplate};
use anyhow::{Context, Result, ensure};
use clap::Args;

pub use ask::{Eval, Generate};
pub use distill::{Distill, Own};

use crate::inputs::prompt_template;
use crate::spec::Template;
use crate::suggest::with_nearest_key;

/// Maximum sequence length, as in the paper; less if the models have fewer positions.
const MAX_LENGTH: usize = 512;

/// Maximum prompt length for sequences of this length: half of it, as in the paper (of 512).
fn prompt_length(max_length: usize) -> usize {
    (max_length / 2).max(1)
}

/// How the data are put as prompts.
#[derive(Args)]
struct Prompting {
    /// Template of the prompts
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Template::Paper)]
    template: Template,
    /// The date that the chat template writes into prompts, if it writes one
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<Date>,
}

impl Prompting {
    /// The template; a chat template is read in the model's folder.
    fn read(&self, folder: &Path) -> Result<PromptTemplate> {
        ensure!(
            self.date.is_none() || !self.template.is_paper(),
            "--date: only a chat template uses a date; give --template chat, or leave it out"
        );
        prompt_template(
            self.template,
            self.date,
            Some(&folder.join("tokenizer.json")),
        )
        .context("--template chat")
    }
}

/// Parses column names of the command line.
fn columns(text: &str) -> Result<Columns, String> {
    text.parse()
        .map_err(|error: String| with_nearest_key(&error))
}

/// Parses `NAME=FILE`; NAME is the set's name in scores.
fn named(text: &str) -> Result<(String, std::path::PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err("wanted: NAME=FILE, e.g. mine=test.jsonl".into()),
    }
}
