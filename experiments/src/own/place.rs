//! Collects the results in one folder when all tasks are done: student, curve, scores, answers.

use abkd_host::files;
use abkd_host::seal::{Error, Seal};
use abkd_models::checkpoint::{self, StoredAs};
use abkd_training::ValidationRecord;
use anyhow::{Context, Result};

use super::distill::{Distill, Own};
use super::scores::{self, Scored};
use crate::message::say;
use crate::plan::Who;
use crate::plot;
use crate::results::CurvePoint;
use crate::runner::{FinishedEvaluation, evaluations, student};

/// Examples of a set whose answers are shown.
const SHOWN: usize = 5;

impl Own {
    /// Writes student, curve, scores and answers to the run's folder; returns the summary to print.
    ///
    /// # Errors
    ///
    /// A result that cannot be read, a file that cannot be written.
    pub fn place(&self, args: &Distill) -> Result<String> {
        let out = &self.places.root;
        let evaluations = evaluations(&self.places, &self.spec, &self.plan)?;
        let scored = self.scored(&evaluations);
        scores::write(&out.join("scores.csv"), &scored)?;
        let answers = out.join("answers.md");
        files::write(&answers, self.answers(&evaluations)?.as_bytes())
            .with_context(|| answers.display().to_string())?;
        self.place_student(args, &scored)?;
        let mut told = scores::table(&scored);
        told.push('\n');
        for (what, file) in [
            ("student", "student"),
            ("scores", "scores.csv"),
            ("answers", "answers.md"),
            ("curve", "curve.png"),
        ] {
            told += &format!("{what:8} {}\n", out.join(file).display());
        }
        Ok(told)
    }

    fn label(&self, who: Who) -> &'static str {
        match who {
            Who::Teacher => "teacher",
            Who::Student if self.spec.profile.student_sft.is_some() => "student fine-tuned",
            Who::Student => "student before",
            Who::Row { .. } => "student distilled",
        }
    }

    /// Scores per set: the teacher, the student before distillation, the distilled student.
    fn scored(&self, evaluations: &[FinishedEvaluation]) -> Vec<Scored> {
        let mut all = Vec::new();
        for set in &self.spec.tests {
            let of_set: Vec<_> = evaluations.iter().filter(|e| e.dataset == set.id).collect();
            let mut who: Vec<Who> = of_set.iter().map(|e| e.who).collect();
            who.dedup();
            for who in who {
                let seeds = of_set.iter().filter(|e| e.who == who);
                let seeds: Vec<_> = seeds.map(|e| (e.score, e.rouge_l.clone())).collect();
                all.push(Scored::new(self.label(who), &set.id, &seeds));
            }
        }
        all
    }

    /// The first examples of each set with the answers of all models.
    fn answers(&self, evaluations: &[FinishedEvaluation]) -> Result<String> {
        let mut text = format!("# Answers: {}\n", self.found.pair());
        for set in &self.spec.tests {
            text += &format!("\n## {}\n", set.id);
            let of_set = evaluations.iter().filter(|e| e.dataset == set.id);
            let of_set = of_set.map(|e| Ok((e.who, e.first(SHOWN)?)));
            let of_set: Vec<_> = of_set.collect::<Result<_>>()?;
            let Some((_, examples)) = of_set.first() else {
                continue;
            };
            for (index, example) in examples.iter().enumerate() {
                text += &format!("\n### Example {}\n\n", example.example + 1);
                text += &quoted(asked(&example.prompt));
                for reference in &example.references {
                    text += &format!("\nReference:\n\n{}", quoted(reference));
                }
                for (who, answers) in &of_set {
                    let Some(answer) = answers.get(index) else {
                        continue;
                    };
                    text += &format!(
                        "\n{} (ROUGE-L {:.1}):\n\n{}",
                        self.label(*who),
                        answer.rouge_l,
                        quoted(&answer.answer)
                    );
                }
            }
        }
        Ok(text)
    }

    /// Writes the student's folder, complete and sealed, and its curve; keeps a folder that is already complete.
    fn place_student(&self, args: &Distill, scored: &[Scored]) -> Result<()> {
        let student = student(&self.places, &self.spec, &self.plan)?;
        let id = student.id;
        self.draw(args, &student.curve)?;
        let folder = self.places.root.join("student");
        let place = || folder.display().to_string();
        match Seal::open(&folder, id).and_then(|seal| seal.check_all()) {
            Ok(()) => return Ok(()),
            Err(Error::Absent { .. }) if !folder.exists() => {}
            Err(error) => say(&format!("the student is written again: {error}")),
        }
        files::remove_folder(&folder).with_context(place)?;
        let partial = files::temporary(&folder).with_context(place)?;
        let model = student.load(&self.places, &self.spec, &self.inputs)?;
        checkpoint::save(&model, &partial, StoredAs::F32)?;
        let card = self.card(args, id, scored)?;
        let beside = self.inputs.companions.iter();
        let beside = beside.map(|(name, content)| (*name, content.as_slice()));
        for (name, content) in beside.chain([("README.md", card.as_bytes())]) {
            files::write(&partial.join(name), content).with_context(place)?;
        }
        Seal::publish(&partial, &folder, id, &[])?;
        Ok(())
    }

    /// Draws the validation scores of the distillation.
    fn draw(&self, args: &Distill, curve: &[ValidationRecord]) -> Result<()> {
        let points = curve.iter().filter_map(|record| {
            Some(CurvePoint {
                loss: args.label().into(),
                training_seed: None,
                epoch: record.epoch as u32,
                dolly_validation_rouge_l: record.validation_rouge_l?,
                validation_loss: record.validation_loss,
            })
        });
        let points: Vec<CurvePoint> = points.collect();
        let path = self.places.root.join("curve.png");
        let words = plot::Words {
            title: "Validation ROUGE-L during distillation",
            ours: &self.found.pair(),
            at: "epoch",
            score: "ROUGE-L F1 on the validation data (%)",
        };
        plot::curves(&points, None, &path, &words, None)
    }
}

/// An example's instruction, without the prompt template.
fn asked(prompt: &str) -> &str {
    let from = prompt.split_once("### Instruction:\n");
    let from = from.map_or(prompt, |(_, asked)| asked);
    from.strip_suffix("\n\n### Response:\n").unwrap_or(from)
}

/// Text as a Markdown block quote.
fn quoted(text: &str) -> String {
    match text.trim().is_empty() {
        true => "> (nothing)\n".into(),
        false => text.lines().map(|line| format!("> {line}\n")).collect(),
    }
}
