//! Does one cell after the other.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use abkd_data::{Example, Sequence};
use abkd_host::files;
use abkd_models::generate::Decoding;
use abkd_models::{LanguageModel, checkpoint, lora};
use abkd_training::cache::{self, TeacherCache};
use abkd_training::evaluate::{self, Answer};
use abkd_training::trainer::{student_dir, student_seal};
use abkd_training::{Event, Method, Outcome, Settings, TrainRun, Validation, state, train};
use anyhow::{Context, Result};
use burn::tensor::Device;

use super::answers::Told;
use super::board::{Board, Status, kind};
use super::proof::{self, Folder};
use super::{Evaluated, OneOff, Places, SCRATCH, Trained, answers, write_results};
use crate::inputs::{Inputs, base_model};
use crate::plan::{Cell, Plan, Who, Work};
use crate::progress::{CellDisplay, Display};
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
        let dir = self.runs().join(&cell.id);
        let mut folder = Folder::begin(&dir, cell)?;
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
                self.train(cell, folder, &job, shown)
            }
            Work::TeacherHidden => self.teacher_hidden(cell, folder, shown),
            Work::TeacherAnswers { max_new_tokens } => {
                let teacher = self.model(Who::Teacher)?;
                let decoding = Decoding {
                    max_new_tokens,
                    batch_size: profile.evaluation.batch_size,
                    ..Decoding::sampling()
                };
                let seed = profile.distill.seed;
                answers::write(
                    folder,
                    &cell.id,
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
                self.train(cell, folder, &job, shown)
            }
            Work::Time { row, repeat } => {
                let mut job = self.job(row)?;
                job.method = timing::method(job.method, job.settings.batch_size);
                // Never resumed: what was timed before a stop is not comparable.
                let scratch = dir.join(SCRATCH);
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
                folder.finish(&timing)?;
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
                let lines = lines(&answers, examples)?;
                folder.seal().write(answers::FILE, &lines)?;
                let score = evaluate::score(&answers);
                folder.finish(&Evaluated {
                    score,
                    examples: answers.iter().map(|a| a.rouge_l).collect(),
                })?;
                Ok(Some(format!("ROUGE-L {:.2}", score.rouge_l)))
            }
        }
    }

    fn teacher_hidden(
        &self,
        cell: &Cell,
        mut folder: Folder,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let profile = &self.spec.profile;
        let sequences = &self.inputs.train.sequences;
        let written = cache::write(
            folder.dir,
            &cell.id,
            &self.model(Who::Teacher)?,
            sequences,
            profile.distill.batch_size,
            profile.teacher_cache,
            self.stop,
            &mut |n| shown.more(n, sequences.len(), || "hidden states".into()),
        )?;
        let Some(written) = written else {
            return Ok(None);
        };
        if written.dropped > 0 {
            shown.line(&answers::again(written.dropped));
        }
        let size = TeacherCache::open(folder.dir, &cell.id)?.size();
        folder.seal().enclose("", &written.seal);
        folder.finish(&OneOff {
            items: sequences.len(),
            seconds: written.seconds,
        })?;
        Ok(Some(format!("{:.1} MB", size as f64 / 1e6)))
    }

    /// What a row's student is trained on and with.
    fn job(&self, row: usize) -> Result<Job<'_>> {
        let profile = &self.spec.profile;
        let row = &self.spec.experiment.rows[row];
        let method = row.method(profile)?;
        let student = self.student_of(row)?;
        let sequences = match &method {
            Method::SeqKd(settings) => {
                let tokens = settings
                    .max_new_tokens
                    .unwrap_or(profile.data.max_new_tokens());
                let cell = self.plan.answers(tokens).context("planned with SeqKD")?;
                let sequences = &self.inputs.train.sequences;
                let vocabulary = student.config().vocab_size();
                let answered = answers::read(&self.runs(), &cell.id, sequences, vocabulary);
                Cow::Owned(answered?)
            }
            _ => Cow::Borrowed(self.inputs.train.sequences.as_slice()),
        };
        let cache = match self.plan.hidden() {
            Some(cell) if method.uses_teacher_on_data() => {
                Some(TeacherCache::open(&self.runs().join(&cell.id), &cell.id)?)
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
            student,
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
        mut folder: Folder,
        job: &Job,
        shown: &mut CellDisplay,
    ) -> Result<Option<String>> {
        let dir = folder.dir;
        let outcome = train(self.run(cell, dir, job), &mut |event| match event {
            Event::Resumed { step } => shown.line(&format!("goes on after step {step}")),
            Event::Step {
                step,
                steps,
                report,
                ..
            } => shown.at(step, steps, || format!("loss {:.3}", report.loss)),
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
        let Outcome::Finished {
            curve,
            teacher_tokens,
            cached_tokens,
        } = outcome
        else {
            return Ok(None);
        };
        let student = student_seal(dir, &cell.id, &curve, job.settings.keep_best)?;
        let cached_share =
            (teacher_tokens > 0).then(|| cached_tokens as f64 / teacher_tokens as f64);
        let last = curve.last().and_then(|r| r.validation_rouge_l);
        folder.seal().enclose(STUDENT, &student);
        // What makes the student's folder a whole Hugging Face folder.
        for (name, bytes) in &self.inputs.companions {
            folder.seal().write(&format!("{STUDENT}/{name}"), bytes)?;
        }
        folder.finish(&Trained {
            curve,
            cached_share,
        })?;
        // A finished cell needs its optimizer state no longer.
        for state in state::checkpoints(dir)? {
            remove_folder(&state)?;
        }
        let mut told = last.map_or("trained".into(), |r| format!("validation ROUGE-L {r:.2}"));
        if let Some(share) = cached_share {
            let percent = 100.0 * share;
            told += &format!(", {percent:.0}% of the teacher's states from the cache");
        }
        Ok(Some(told))
    }

    fn runs(&self) -> PathBuf {
        self.places.runs_of(self.spec)
    }

    /// A model to be asked, its adapter folded in.
    fn model(&self, who: Who) -> Result<LanguageModel> {
        let Some(dir) = self.folder(who)? else {
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

    /// The folder of a model that a cell trains, its files checked.
    fn folder(&self, who: Who) -> Result<Option<PathBuf>> {
        let Some(cell) = self.plan.model(who) else {
            return Ok(None);
        };
        let (dir, _) = proof::needed(&self.runs(), &cell.id)?;
        Ok(Some(student_dir(&dir)))
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
        match self.folder(Who::Student)? {
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
                .folder(Who::Student)?
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

/// Name of the student's folder in that of its cell.
const STUDENT: &str = "student";

fn remove_folder(dir: &Path) -> Result<()> {
    files::remove_folder(dir).with_context(|| dir.display().to_string())
}

/// An evaluation's `answers.jsonl`.
fn lines(answers: &[Answer], examples: &[Example]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for (answer, example) in answers.iter().zip(examples) {
        let line = Told {
            answer,
            prompt: abkd_data::prompt(example),
            references: &example.outputs,
        };
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    Ok(text)
}
