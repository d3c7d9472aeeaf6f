//! The student's model card: its models, settings and scores. It names files without their folders, because it may be
//! published.

use abkd_data::{Example, PromptTemplate};
use abkd_host::files;
use abkd_training::Settings;
use anyhow::Result;
use askama::Template;

use super::distill::{Distill, Own};
use super::files::{Student, name_of};
use super::scores::{Scored, markdown};
use crate::results::markdown_cell;

#[derive(Template)]
#[template(path = "card.md")]
struct Card {
    title: String,
    teacher: String,
    /// Repositories on the Hub.
    bases: Vec<String>,
    /// Whether prompts are made by the tokenizer's chat template.
    chat: bool,
    template: String,
    scores: String,
    facts: Vec<(String, String)>,
}

impl Own {
    /// The card of the student trained by the task `id`.
    pub(super) fn card(&self, args: &Distill, id: &str, scored: &[Scored]) -> Result<String> {
        let found = &self.found;
        let mut models = vec![&found.teacher];
        if let Student::Checkpoint(model) = &found.student {
            models.push(model);
        }
        let out = std::path::absolute(&self.places.root)?;
        let prompt = self.inputs.template.prompt(&Example {
            instruction: "What is asked".into(),
            input: String::new(),
            outputs: Vec::new(),
            messages: Vec::new(),
        })?;
        let facts = self.facts(args, id).into_iter();
        let facts = facts.map(|(name, what)| (markdown_cell(&name), markdown_cell(&what)));
        let card = Card {
            title: name_of(&out),
            teacher: found.teacher.name(),
            bases: models.iter().filter_map(|m| m.hub.clone()).collect(),
            chat: matches!(self.inputs.template, PromptTemplate::Chat(_)),
            template: prompt,
            scores: markdown(scored),
            facts: facts.collect(),
        };
        Ok(card.render()?)
    }

    /// Facts about the training, by name.
    fn facts(&self, args: &Distill, id: &str) -> Vec<(String, String)> {
        let (found, p) = (&self.found, &self.spec.profile);
        let mut facts = Vec::new();
        let mut fact = |name: &str, what: String| facts.push((name.to_owned(), what));
        fact("models", found.pair());
        if let Some(sft) = &p.teacher_sft {
            fact("teacher, fine-tuned first", told(sft));
        }
        if let Some(sft) = &p.student_sft {
            fact("student, fine-tuned first", told(sft));
        }
        let loss = args.divergence().map(|d| {
            let params = d.params().into_iter();
            let params: Vec<String> = params.map(|(k, v)| format!(", {k} = {v}")).collect();
            format!("{}: `{}`{}", d.label(), d.formula(), params.concat())
        });
        fact("method", args.method.clone());
        fact("loss", loss.unwrap_or("the method's own".into()));
        fact("distillation", told(&p.distill));
        fact(
            "prompts",
            match &self.inputs.template {
                PromptTemplate::Paper => "the instruction template of the paper's data".into(),
                PromptTemplate::Chat(chat) => {
                    let date = chat.date().map_or(String::new(), |d| format!(", of {d}"));
                    let hash = files::sha256(chat.text().as_bytes());
                    let file = name_of(chat.path());
                    format!("the tokenizer's chat template ({file}){date}, SHA-256 {hash}")
                }
            },
        );
        fact("longest sequence", format!("{} tokens", p.data.max_length));
        if let Some(held_out) = found.held_out {
            let (data, left) = (name_of(&args.data), self.inputs.train_examples);
            let what = format!("the last {held_out} of {data}, the first {left} are trained on");
            fact("validation", what);
        }
        found
            .facts
            .iter()
            .for_each(|(name, what)| fact(name, what.clone()));
        let version = env!("CARGO_PKG_VERSION");
        let what = format!(
            "abkd {version}, {} {}, task {id}",
            p.backend, args.precision
        );
        fact("program", what);
        facts
    }
}

/// Settings of a training as text.
fn told(settings: &Settings) -> String {
    let adapter = settings.lora.as_ref().map_or(String::new(), |lora| {
        format!(", adapter of rank {}, merged", lora.r)
    });
    format!(
        "epochs {}, batch size {}, learning rate {}{adapter}, seed {}",
        settings.epochs, settings.batch_size, settings.learning_rate, settings.seed
    )
}
