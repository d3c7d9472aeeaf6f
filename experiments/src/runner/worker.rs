//! Does one cell after the other.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use abkd_data::{Example, Sequence};
use abkd_models::generate::Decoding;
use abkd_models::{LanguageModel, checkpoint, lora};
use abkd_training::cache::{self, TeacherCache};
use abkd_training::evaluate::{self, Answer};
use abkd_training::trainer::student_dir;
use abkd_training::{Event, Method, Outcome, Settings, TrainRun, Validation, train};
use anyhow::{Context, Result};
use burn::tensor::Device;
use serde::Serialize;

use super::board::{Board, Status, kind};
use super::step_log::StepLog;
use super::{OneOff, Places, RESULT, Trained, answers, write_json, write_results};
use crate::inputs::{Inputs, base_model};
use crate::plan::{Cell, Plan, Who, Work};
use crate::progress::{CellDisplay, Display};
use crate::results::write_atomic;
use crate::spec::{ModelSpec, Row, Spec, Start};
use crate::timing;

pub(super) struct Worker<'a> {
    pub places: &'a Places,
    pub spec: &'a Spec,
    pub plan: &'a Plan,
    pub inputs: &'a Inputs,
    pub device: Device,
    /// How validation answers are drawn.
    pub decoding: Decoding,
    pub display: &'a Display,
    pub stop: &'a AtomicBool,
}

impl Worker<'_> {
    pub fn work(&self, board: &Board) -> Result<()> {
        let mut loaded: Option<(Who, LanguageModel)> = None;
        while let Some(index) = board.next(self.stop) {
            let cell = &self.plan.cells[index];
            let mut shown = self.display.cell(&cell.id);
            let result = self
                .run_cell(cell, &mut loaded, &mut shown)
                .with_context(|| format!("cell {}", cell.id))?;
            let Some(result) = result else {
                board.set(index, Status::Waiting);
                return Ok(());
            };
            board.set(index, Status::Done);
            shown.finish(kind(&cell.work), &board.left(), &result);
            write_results(self.places, self.spec, self.plan)?;
        }
        Ok(())
    }

    /// Runs a cell; gives a line about its result, or `None` when it was interrupted.
    fn run_cell(
        &self,
        cell: &Cell,
        loaded: &mut Option<(Who, LanguageModel)>,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let dir = self.places.runs_of(self.spec).join(&cell.id);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        write_json(&dir.join("cell.json"), &cell.spec)?;
        let profile = &self.spec.profile;
        match cell.work {
            Work::Sft { who } => {
                let (settings, model) = match who {
                    Who::Teacher => (&profile.teacher_sft, &profile.teacher),
                    _ => (&profile.student_sft, &profile.student),
                };
                let job = Job {
                    settings: settings.clone().context("planned without its settings")?,
                    method: Method::Sft,
                    student: self.base(model)?,
                    teacher: None,
                    cache: None,
                    sequences: Cow::Borrowed(&self.inputs.train.sequences),
                    with_text: false,
                };
                self.train(cell, &dir, &job, shown)
            }
            Work::TeacherHidden => self.teacher_hidden(cell, &dir, shown),
            Work::TeacherAnswers { max_new_tokens } => {
                let teacher = self.model(Who::Teacher)?;
                let decoding = Decoding {
                    max_new_tokens,
                    batch_size: profile.evaluation.batch_size,
                    ..Decoding::sampling()
                };
                let seed = profile.distill.seed;
                answers::write(
                    &dir,
                    &teacher,
                    self.inputs,
                    seed,
                    &decoding,
                    self.stop,
                    shown,
                )
            }
            Work::Distill { row, seed } => {
                let mut job = self.job(row)?;
                job.settings.seed = seed;
                self.train(cell, &dir, &job, shown)
            }
            Work::Time { row, repeat } => {
                let mut job = self.job(row)?;
                job.method = timing::method(job.method, job.settings.batch_size);
                // Never resumed: what was timed before a stop is not comparable.
                let scratch = dir.join("scratch");
                remove_folder(&scratch)?;
                let mut timing = timing::Timing::new(&profile.timing);
                let seed = job.settings.seed + repeat as u64;
                let settings = timing::settings(&job.settings, &profile.timing, seed);
                let outcome = train(
                    TrainRun {
                        settings: &settings,
                        validation: Validation {
                            examples: &[],
                            prompts: &[],
                            sequences: &self.inputs.valid_sequences.sequences,
                            decoding: &self.decoding,
                            seed: 0,
                        },
                        ..self.run(cell, &scratch, &job)
                    },
                    &mut |event| {
                        if let Event::Step {
                            step,
                            steps,
                            report,
                            ..
                        } = event
                        {
                            timing.add(step, &report);
                            shown.at(step, steps, || "timing".into());
                        }
                    },
                )?;
                remove_folder(&scratch)?;
                if outcome == Outcome::Interrupted {
                    return Ok(None);
                }
                write_json(&dir.join(RESULT), &timing)?;
                Ok(Some(format!(
                    "{:.4} s a sample",
                    timing.seconds_per_sample()
                )))
            }
            Work::Evaluate { who, dataset, seed } => {
                if loaded.as_ref().is_none_or(|(w, _)| *w != who) {
                    *loaded = Some((who, self.model(who)?));
                }
                let (_, model) = loaded.as_ref().context("just loaded")?;
                let (examples, prompts) = self.inputs.test(dataset);
                let answers = evaluate::evaluate(
                    model,
                    &self.inputs.tokenizer,
                    examples,
                    prompts,
                    seed,
                    &profile.evaluation.decoding(),
                    &mut |n| shown.more(n, examples.len(), || "answers".into()),
                )?;
                write_answers(&dir.join("answers.jsonl"), &answers, examples)?;
                let score = evaluate::score(&answers);
                write_json(&dir.join(RESULT), &score)?;
                Ok(Some(format!("ROUGE-L {:.2}", score.rouge_l)))
            }
        }
    }

    fn teacher_hidden(
        &self,
        cell: &Cell,
        dir: &Path,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let profile = &self.spec.profile;
        let sequences = &self.inputs.train.sequences;
        let begun = Instant::now();
        let finished = cache::write(
            dir,
            &cell.id,
            &self.model(Who::Teacher)?,
            sequences,
            profile.distill.batch_size,
            profile.teacher_cache,
            self.stop,
            &mut |n| shown.more(n, sequences.len(), || "hidden states".into()),
        )?;
        let spent = dir.join("seconds.json");
        let before: f64 = super::read_json(&spent).unwrap_or(0.0);
        let seconds = before + begun.elapsed().as_secs_f64();
        write_json(&spent, &seconds)?;
        if !finished {
            return Ok(None);
        }
        let written = OneOff {
            items: sequences.len(),
            seconds,
        };
        write_json(&dir.join(RESULT), &written)?;
        let size = TeacherCache::open(dir, &cell.id)?.size();
        Ok(Some(format!("{:.1} MB", size as f64 / 1e6)))
    }

    /// What a row's student is trained on and with.
    fn job(&self, row: usize) -> Result<Job<'_>> {
        let profile = &self.spec.profile;
        let row = &self.spec.experiment.rows[row];
        let method = row.method(profile)?;
        let sequences = match &method {
            Method::SeqKd(settings) => {
                let tokens = settings
                    .max_new_tokens
                    .unwrap_or(profile.data.max_new_tokens());
                let cell = self.plan.answers(tokens).context("planned with SeqKD")?;
                let dir = self.places.runs_of(self.spec).join(&cell.id);
                Cow::Owned(answers::read(&dir, &self.inputs.train.sequences)?)
            }
            _ => Cow::Borrowed(self.inputs.train.sequences.as_slice()),
        };
        let cache = match self.plan.hidden() {
            Some(cell) if method.uses_teacher_on_data() => {
                let dir = self.places.runs_of(self.spec).join(&cell.id);
                Some(TeacherCache::open(&dir, &cell.id)?)
            }
            _ => None,
        };
        Ok(Job {
            cache,
            settings: row.training(profile)?,
            teacher: method
                .needs_teacher()
                .then(|| self.model(Who::Teacher))
                .transpose()?,
            method,
            student: self.student_of(row)?,
            sequences,
            with_text: row.with_text(profile)?,
        })
    }

    fn run<'a>(&'a self, cell: &'a Cell, dir: &'a Path, job: &'a Job) -> TrainRun<'a> {
        let profile = &self.spec.profile;
        TrainRun {
            dir,
            fingerprint: &cell.id,
            settings: &job.settings,
            method: &job.method,
            kd_ratio: profile.kd_ratio,
            max_new_tokens: profile.data.max_new_tokens(),
            base: cell.spec["start"].as_str().unwrap_or("base"),
            student: job.student.clone(),
            teacher: job.teacher.as_ref(),
            cache: job.cache.as_ref(),
            sequences: &job.sequences,
            tokenizer: &self.inputs.tokenizer,
            text: job.with_text.then_some(self.inputs.text.as_ref()).flatten(),
            validation: Validation {
                examples: &self.inputs.valid,
                prompts: &self.inputs.valid_prompts,
                sequences: &self.inputs.valid_sequences.sequences,
                decoding: &self.decoding,
                seed: profile.validation.seed,
            },
            checkpoint_every: Duration::from_secs(60),
            stop: self.stop,
        }
    }

    fn train(
        &self,
        cell: &Cell,
        dir: &Path,
        job: &Job,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let mut log = StepLog::new(&dir.join("steps.jsonl"));
        let outcome = train(self.run(cell, dir, job), &mut |event| match event {
            Event::Resumed { step } => {
                log.cut_after(step);
                shown.line(&format!("goes on after step {step}"));
            }
            Event::Step {
                step,
                steps,
                report,
                learning_rate,
            } => {
                log.write(&serde_json::json!({
                    "step": step, "loss": report.loss, "grad_norm": report.grad_norm,
                    "learning_rate": learning_rate, "tokens": report.tokens,
                    "teacher_rows": report.teacher_tokens, "cached_rows": report.cached_tokens,
                    "seconds": report.phases.total(),
                }));
                shown.at(step, steps, || format!("loss {:.3}", report.loss));
            }
            Event::Validating(_) => {}
            Event::Validated(record) => {
                let rouge = record
                    .validation_rouge_l
                    .map_or(String::new(), |r| format!(", validation ROUGE-L {r:.2}"));
                let loss = record
                    .validation_loss
                    .map_or(String::new(), |l| format!(", validation loss {l:.3}"));
                shown.line(&format!(
                    "epoch {}: training loss {:.3}{loss}{rouge}",
                    record.epoch, record.train_loss
                ));
            }
        })?;
        let [asked, cached] = log.close(["teacher_rows", "cached_rows"])?;
        let cached_share = (asked > 0).then(|| cached as f64 / asked as f64);
        match outcome {
            Outcome::Interrupted => Ok(None),
            Outcome::Finished { curve } => {
                let last = curve.last().and_then(|r| r.validation_rouge_l);
                complete_student(&student_dir(dir), &self.inputs.companions)?;
                write_json(
                    &dir.join(RESULT),
                    &Trained {
                        curve,
                        cached_share,
                    },
                )?;
                remove_states(dir)?;
                let mut told =
                    last.map_or("trained".into(), |r| format!("validation ROUGE-L {r:.2}"));
                if let Some(share) = cached_share {
                    let percent = 100.0 * share;
                    told += &format!(", {percent:.0}% of the teacher's states from the cache");
                }
                Ok(Some(told))
            }
        }
    }

    /// A model to be asked, its adapter folded in.
    fn model(&self, who: Who) -> Result<LanguageModel> {
        let Some(dir) = self.folder(who) else {
            return self.base(match who {
                Who::Teacher => &self.spec.profile.teacher,
                _ => &self.spec.profile.student,
            });
        };
        let model = match who {
            Who::Teacher => self.trained(&dir, || self.base(&self.spec.profile.teacher)),
            Who::Student => self.initialised(),
            Who::Row { row, .. } => self.trained(&dir, || self.under_adapter(row)),
        };
        Ok(lora::merge(model?))
    }

    /// The folder of a model that a cell trains.
    fn folder(&self, who: Who) -> Option<PathBuf> {
        let cell = self.plan.model(who)?;
        Some(student_dir(&self.places.runs_of(self.spec).join(&cell.id)))
    }

    /// The model that a training has left in `dir`: all weights, or an adapter on `base`.
    fn trained(
        &self,
        dir: &Path,
        base: impl FnOnce() -> Result<LanguageModel>,
    ) -> Result<LanguageModel> {
        if lora::is_adapter(dir) {
            return Ok(lora::load(base()?, dir)?);
        }
        let model = checkpoint::load(dir, &self.device)?;
        Ok(model.with_precision(self.spec.profile.precision))
    }

    /// The initialised student; an adapter that initialised it is not folded in.
    fn initialised(&self) -> Result<LanguageModel> {
        let base = || self.base(&self.spec.profile.student);
        match self.folder(Who::Student) {
            Some(dir) => self.trained(&dir, base),
            None => base(),
        }
    }

    /// The student that a row starts from.
    fn student_of(&self, row: &Row) -> Result<LanguageModel> {
        match row.start(&self.spec.profile) {
            Start::Init => self.initialised(),
            Start::Base => self.base(&self.spec.profile.student),
        }
    }

    /// What the adapter of a row's student sits on: an adapter that was trained on sits where it sat before.
    fn under_adapter(&self, row: usize) -> Result<LanguageModel> {
        let row = &self.spec.experiment.rows[row];
        let lora = row.training(&self.spec.profile)?.lora;
        let goes_on = lora.is_some_and(|l| l.start == lora::Start::Continue)
            && row.start(&self.spec.profile) == Start::Init
            && self
                .folder(Who::Student)
                .is_some_and(|dir| lora::is_adapter(&dir));
        if goes_on {
            return self.base(&self.spec.profile.student);
        }
        Ok(lora::merge(self.student_of(row)?))
    }

    fn base(&self, model: &ModelSpec) -> Result<LanguageModel> {
        let profile = &self.spec.profile;
        let model = base_model(&self.places.root, model, &profile.teacher, &self.device)?;
        Ok(model.with_precision(profile.precision))
    }
}

/// What a training works on.
struct Job<'a> {
    settings: Settings,
    method: Method,
    student: LanguageModel,
    teacher: Option<LanguageModel>,
    cache: Option<TeacherCache>,
    sequences: Cow<'a, [Sequence]>,
    /// Whether the language-modelling term is added, where the profile has text.
    with_text: bool,
}

fn remove_folder(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

/// A finished cell needs its optimizer state no longer.
fn remove_states(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("state-") {
            fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

/// Puts the files beside a student's weights that make its folder a whole Hugging Face folder.
fn complete_student(dir: &Path, companions: &[(&str, Vec<u8>)]) -> Result<()> {
    for (name, bytes) in companions {
        write_atomic(&dir.join(name), bytes)?;
    }
    Ok(())
}

/// A line of an evaluation's `answers.jsonl`: what was asked, what was answered, and what it was compared with.
#[derive(Serialize)]
struct AnswerLine<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    prompt: String,
    references: &'a [String],
}

fn write_answers(path: &Path, answers: &[Answer], examples: &[Example]) -> Result<()> {
    let mut text = Vec::new();
    for (answer, example) in answers.iter().zip(examples) {
        let line = AnswerLine {
            answer,
            prompt: abkd_data::prompt(example),
            references: &example.outputs,
        };
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    write_atomic(path, &text)
}
