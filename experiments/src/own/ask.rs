//! `abkd eval` and `abkd generate`: any model, decoded as the runner decodes its students.

use std::collections::BTreeSet;
use std::path::PathBuf;

use abkd_data::{
    Columns, Example, Limits, Message, PromptTemplate, Role, Tokenizer, encode_prompts,
    read_columns,
};
use abkd_host::files;
use abkd_models::generate::{Decoding, Sampler};
use abkd_models::{LanguageModel, ModelConfig, checkpoint};
use abkd_training::{Error, evaluate};
use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;

use super::scores::{self, Scored};
use super::source::NamedModel;
use super::{MAX_LENGTH, Prompting, columns, named, prompt_length};
use crate::inputs::read_tokenizer;
use crate::message::say;
use crate::progress::Display;
use crate::runner::lines;

/// Decoding batch size.
const BATCH: usize = 32;
/// Size of the n-grams that may not repeat, as in the paper's evaluation.
const NO_REPEAT: usize = 6;

/// How tokens are drawn.
#[derive(Args)]
struct Drawing {
    /// Divides the logits; 0 takes the most likely token
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    temperature: f64,
    /// Sample among the most likely tokens that together have this probability; 1 is off
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    top_p: f64,
}

impl Drawing {
    /// Refuses numbers out of range.
    fn check(&self) -> Result<()> {
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "--temperature {}: it must be 0 or more",
            self.temperature
        );
        ensure!(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "--top-p {}: it must lie above 0, and be 1 or less",
            self.top_p
        );
        Ok(())
    }

    fn decoding(&self, max_new_tokens: usize, batch_size: usize) -> Decoding {
        Decoding {
            max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            no_repeat_ngram_size: NO_REPEAT,
            batch_size,
            ..Decoding::sampling()
        }
    }
}

/// Arguments of `abkd eval`.
#[derive(Args)]
pub struct Eval {
    /// A Hugging Face folder, or OWNER/NAME on the Hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// A test set as JSONL, or as Parquet named .parquet; may be given several times
    #[arg(long, value_name = "NAME=FILE", value_parser = named, required = true)]
    test: Vec<(String, PathBuf)>,
    /// Names of the columns, e.g. instruction=question,output=answer
    #[arg(long, value_name = "COLUMN=NAME,...", value_parser = columns)]
    columns: Option<Columns>,
    #[command(flatten)]
    prompting: Prompting,
    /// Sampling seeds; each answers every example once
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "10"
    )]
    seeds: Vec<u64>,
    #[command(flatten)]
    drawing: Drawing,
    /// Maximum tokens of an answer [default: 256, or half of the model's positions if that is less]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Write the answers (NAME-sSEED.jsonl) and scores.csv into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Arguments of `abkd generate`.
#[derive(Args)]
pub struct Generate {
    /// A Hugging Face folder, or OWNER/NAME on the Hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// The instruction
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    #[command(flatten)]
    prompting: Prompting,
    /// A system message before the instruction, with --template chat
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Use the text alone, without a template
    #[arg(long, conflicts_with_all = ["template", "system"])]
    raw: bool,
    #[command(flatten)]
    drawing: Drawing,
    /// Maximum tokens of the answer [default: 256, or the positions left after the prompt if fewer]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling seed
    #[arg(long, value_name = "N", default_value_t = 10)]
    seed: u64,
}

/// A model with its tokenizer and the template of its prompts.
struct Loaded {
    name: String,
    model: LanguageModel,
    tokenizer: Tokenizer,
    template: PromptTemplate,
}

impl Loaded {
    fn of(name: &str, prompting: &Prompting) -> Result<Self> {
        let source = NamedModel::find(name, "MODEL")?;
        let template = prompting.read(&source.folder)?;
        let path = source.folder.join("tokenizer.json");
        ensure!(
            path.exists(),
            "MODEL: {}: not there; put the tokenizer.json that the model was trained with into its folder",
            path.display()
        );
        let config = ModelConfig::read(&source.folder.join("config.json")).context("MODEL")?;
        let tokenizer = read_tokenizer(&path, config.eos()).context("MODEL")?;
        let (tokens, known) = (tokenizer.vocab_size(), config.vocab_size());
        ensure!(
            tokens <= known,
            "MODEL: {}: {}",
            path.display(),
            Error::Tokenizer {
                tokenizer: tokens,
                model: known
            }
        );
        if tokens < known {
            say(&format!(
                "note: the tokenizer has {tokens} tokens: the other rows of embedding and head, {} of {known}, are left out",
                known - tokens
            ));
        }
        let model = checkpoint::load_tokens(&source.folder, tokens, &Device::flex());
        let model = model.context("MODEL")?;
        Ok(Self {
            name: source.name(),
            model,
            tokenizer,
            template,
        })
    }

    fn positions(&self) -> usize {
        self.model.config().max_positions()
    }
}

impl Eval {
    /// Answers the sets and scores the answers; returns the table.
    ///
    /// # Errors
    ///
    /// Data or a model that cannot be read, a folder that cannot be written.
    pub fn run(&self) -> Result<String> {
        self.drawing.check()?;
        let mut seen = BTreeSet::new();
        let mut sets = Vec::new();
        let columns = self.columns.clone().unwrap_or_default();
        for (name, file) in &self.test {
            ensure!(seen.insert(name), "--test {name}: it is given twice");
            ensure!(
                self.out.is_none() || files::is_file_name(name),
                "--test {name}: files in --out are named after it, so it must be a valid file name"
            );
            let examples = read_columns(file, &columns);
            sets.push((name, examples.with_context(|| format!("--test {name}"))?));
        }
        let seeds: BTreeSet<&u64> = self.seeds.iter().collect();
        ensure!(
            seeds.len() == self.seeds.len(),
            "--seeds: a seed is given twice"
        );
        if let Some(out) = &self.out {
            files::create_folder(out)
                .and_then(|()| tempfile::tempfile_in(out))
                .with_context(|| format!("--out {}", out.display()))?;
        }
        let loaded = Loaded::of(&self.model, &self.prompting)?;
        let length = MAX_LENGTH.min(loaded.positions());
        let half = prompt_length(length);
        let new = self.max_new_tokens.unwrap_or(length - half);
        let room = loaded.positions().saturating_sub(new);
        ensure!(
            new > 0 && room > 0,
            "--max-new-tokens {new}: the model has {} positions, and the prompt needs some of them",
            loaded.positions()
        );
        let limits = Limits {
            max_prompt_length: half.min(room),
            max_length: length,
        };
        let decoding = self.drawing.decoding(new, BATCH);
        let mut sampler = Sampler::new(&loaded.model);
        let mut scored = Vec::new();
        // Each seed of a set takes about the same time.
        let tasks = self.test.iter();
        let tasks = tasks.flat_map(|(name, _)| vec![name.clone(); self.seeds.len()]);
        let mut left: Vec<String> = tasks.collect();
        let display = Display::new(left.len(), 0, 1);
        for (name, examples) in sets {
            let (tokenizer, template) = (&loaded.tokenizer, &loaded.template);
            let prompts = encode_prompts(&examples, tokenizer, template, &limits, None)
                .with_context(|| format!("--test {name}"))?;
            let mut by_seed = Vec::new();
            for &seed in &self.seeds {
                let mut shown = display.task(&format!("{name}, seed {seed}"));
                let answers = evaluate::evaluate(
                    &mut sampler,
                    &loaded.tokenizer,
                    &examples,
                    &prompts,
                    seed,
                    &decoding,
                    &mut |n| shown.more(n, examples.len(), || "answers".into()),
                )?;
                if let Some(out) = &self.out {
                    let path = out.join(format!("{name}-s{seed}.jsonl"));
                    files::write(&path, &lines(&answers, &examples, template)?)
                        .with_context(|| path.display().to_string())?;
                }
                let score = evaluate::score(&answers);
                let kind = left.remove(0);
                shown.finish(kind, &left, &format!("ROUGE-L {:.2}", score.rouge_l));
                by_seed.push((score, answers.iter().map(|a| a.rouge_l).collect()));
            }
            scored.push(Scored::new(&loaded.name, name, &by_seed));
        }
        if let Some(out) = &self.out {
            scores::write(&out.join("scores.csv"), &scored)?;
        }
        Ok(scores::table(&scored))
    }
}

impl Generate {
    /// The arguments as an example.
    fn asked(&self) -> Example {
        let say = |role: Role, content: &String| Message {
            role,
            content: content.clone(),
        };
        let system = self.system.as_ref().map(|text| say(Role::System, text));
        Example {
            instruction: self.prompt.clone(),
            input: String::new(),
            outputs: Vec::new(),
            messages: system
                .into_iter()
                .chain([say(Role::User, &self.prompt)])
                .collect(),
        }
    }

    /// Returns the answer.
    ///
    /// # Errors
    ///
    /// A model that cannot be read, a prompt that is too long, a setting out of range.
    pub fn run(&self) -> Result<String> {
        self.drawing.check()?;
        ensure!(
            self.system.is_none() || !self.prompting.template.is_paper(),
            "--system: the paper's template has no system message; give --template chat, or put the text into --prompt"
        );
        let loaded = Loaded::of(&self.model, &self.prompting)?;
        let text = match self.raw {
            true => self.prompt.clone(),
            false => loaded.template.prompt(&self.asked()).context("--prompt")?,
        };
        let tokens = loaded.tokenizer.encode(&text)?;
        ensure!(
            !tokens.is_empty(),
            "--prompt: the text has no tokens, so there is nothing to continue"
        );
        let room = loaded.positions().saturating_sub(tokens.len());
        let new = self.max_new_tokens.unwrap_or(room.min(MAX_LENGTH / 2));
        ensure!(
            (1..=room).contains(&new),
            "--prompt of {} tokens, --max-new-tokens {new}: the model has {} positions for both, and an answer needs 1 or more",
            tokens.len(),
            loaded.positions()
        );
        let decoding = self.drawing.decoding(new, 1);
        let ends = loaded.tokenizer.ends();
        let mut sampler = Sampler::new(&loaded.model);
        let answers = sampler.generate(&[tokens], &[0], self.seed, ends, &decoding, &mut |_| {})?;
        let answer = answers.concat();
        let end = answer.iter().position(|t| ends.contains(t));
        let text = loaded
            .tokenizer
            .decode(&answer[..end.unwrap_or(answer.len())])?;
        Ok(text.trim().to_owned() + "\n")
    }
}
