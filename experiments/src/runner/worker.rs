//! Runs tasks one after the other.

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use abkd_data::{Example, PromptTemplate};
use abkd_host::files;
use abkd_host::seal::Seal;
use abkd_models::generate::Sampler;
use abkd_models::{LanguageModel, checkpoint, lora};
use abkd_training::cache::{self, TeacherCache};
use abkd_training::evaluate::{self, Answer};
use abkd_training::trainer::{student_dir, student_seal};
use abkd_training::{Event, Outcome, TrainRun, Validation, state, train};
use anyhow::{Context, Result, ensure};
use burn::tensor::Device;

use super::answers::{self, Told};
use super::proof::{self, Folder};
use super::{Evaluated, OneOff, SCRATCH, Trained};
use crate::inputs::{Inputs, base_model};
use crate::progress::TaskDisplay;
use crate::task::{self, Evaluation, Hidden, Model, Sources, Task, TaskId, Timed, Training, Work};
use crate::timing;

/// Runs tasks one after the other.
pub(super) struct Worker<'a> {
    /// The folder that holds the tasks' folders.
    pub runs: &'a Path,
    pub sources: &'a Sources,
    pub inputs: &'a Inputs,
    pub device: Device,
    pub stop: &'a AtomicBool,
    /// The model of the last evaluation, kept because a model's evaluations follow each other.
    pub loaded: Option<(Model, Sampler)>,
}

impl Worker<'_> {
    /// Runs a task; returns a line about its result, or `None` when it was interrupted.
    pub fn perform(
        &mut self,
        id: &TaskId,
        task: &Task,
        shown: &mut TaskDisplay,
    ) -> Result<Option<String>> {
        self.check_data(task)?;
        if !matches!(task.work, Work::Evaluate(_)) {
            // Frees memory for the training.
            self.loaded = None;
        }
        let dir = self.runs.join(id);
        let earlier = Seal::open(&dir, id).ok();
        let folder = Folder::begin(&dir, id, &task::content(id, task, self.sources)?)?;
        let told = self.work(id, task, folder, shown)?;
        // The next task needs blocks of other sizes.
        abkd_host::return_freed_memory();
        if let (Some(earlier), Some(_)) = (earlier, &told) {
            for name in proof::changes(&earlier, &dir, id)? {
                shown.line(&format!(
                    "{name} differs from the file that an earlier run of this task wrote: another processor or library \
                     rounds in another order. Finished tasks that used the earlier file keep their results"
                ));
            }
        }
        Ok(told)
    }

    fn work(
        &mut self,
        id: &TaskId,
        task: &Task,
        folder: Folder,
        shown: &mut TaskDisplay,
    ) -> Result<Option<String>> {
        match &task.work {
            Work::Train(training) => self.train(id, task, training, folder, shown),
            Work::TeacherHidden(hidden) => self.teacher_hidden(id, task, hidden, folder, shown),
            Work::TeacherAnswers(answers) => {
                let teacher = self.asked(&answers.teacher, task)?;
                answers::write(folder, id, &teacher, self.inputs, answers, self.stop, shown)
            }
            Work::Time(timed) => self.time(id, task, timed, folder, shown),
            Work::Evaluate(evaluation) => self.evaluate(task, evaluation, folder, shown),
        }
    }

    /// Refuses data that differ from those that the task was planned for.
    fn check_data(&self, task: &Task) -> Result<()> {
        for (name, planned) in task.data() {
            let found = self
                .inputs
                .hashes
                .get(name)
                .map_or("nothing", String::as_str);
            ensure!(
                found == planned,
                "{name}: the data have changed since the task was planned (hash {planned}, and now {found}); plan the \
                 experiment again"
            );
        }
        // The hashes are those of texts, which these limits cut.
        let (planned, found) = (task.limits, self.inputs.limits);
        ensure!(
            found == planned,
            "the length limits have changed since the task was planned (max_prompt_length = {}, max_length = {}, and now {} and \
             {}); plan the experiment again",
            planned.max_prompt_length,
            planned.max_length,
            found.max_prompt_length,
            found.max_length
        );
        Ok(())
    }

    fn time(
        &self,
        id: &TaskId,
        task: &Task,
        timed: &Timed,
        folder: Folder,
        shown: &mut TaskDisplay,
    ) -> Result<Option<String>> {
        // Never resumed: timings from before an interruption are not comparable.
        let scratch = folder.dir.join(SCRATCH);
        remove_folder(&scratch)?;
        let training = timed.measured();
        let mut timing = timing::Timing::new(&timed.timing);
        let answered = (&[][..], &[][..]);
        let outcome = self.run(id, task, &training, &scratch, answered, &mut |event| {
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
        })?;
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

    fn evaluate(
        &mut self,
        task: &Task,
        evaluation: &Evaluation,
        mut folder: Folder,
        shown: &mut TaskDisplay,
    ) -> Result<Option<String>> {
        if self
            .loaded
            .as_ref()
            .is_none_or(|(m, _)| *m != evaluation.model)
        {
            let model = self.asked(&evaluation.model, task)?;
            self.loaded = Some((evaluation.model.clone(), Sampler::new(&model)));
        }
        let (_, model) = self.loaded.as_mut().context("just loaded")?;
        let (examples, prompts) = self.inputs.test(&evaluation.dataset);
        let answers = evaluate::evaluate(
            model,
            &self.inputs.tokenizer,
            examples,
            prompts,
            evaluation.seed,
            &evaluation.decoding.decoding(),
            &mut |n| shown.more(n, examples.len(), || "answers".into()),
        )?;
        let text = lines(&answers, examples, &self.inputs.template)?;
        folder.seal.write(answers::FILE, &text)?;
        let score = evaluate::score(&answers);
        folder.finish(&Evaluated {
            score,
            examples: answers.iter().map(|a| a.rouge_l).collect(),
        })?;
        Ok(Some(format!("ROUGE-L {:.2}", score.rouge_l)))
    }

    fn teacher_hidden(
        &self,
        id: &TaskId,
        task: &Task,
        hidden: &Hidden,
        mut folder: Folder,
        shown: &mut TaskDisplay,
    ) -> Result<Option<String>> {
        let sequences = &self.inputs.train.sequences;
        let written = cache::write(
            folder.dir,
            id,
            &self.asked(&hidden.teacher, task)?,
            sequences,
            hidden.batch_size,
            hidden.mode,
            self.stop,
            &mut |n| shown.more(n, sequences.len(), || "hidden states".into()),
        )?;
        let Some(written) = written else {
            return Ok(None);
        };
        if written.dropped > 0 {
            shown.line(&answers::again(written.dropped));
        }
        let size = TeacherCache::open(folder.dir, id)?.size();
        folder.seal.enclose("", &written.seal);
        folder.finish(&OneOff {
            items: sequences.len(),
            seconds: written.seconds,
        })?;
        Ok(Some(format!("{:.1} MB", size as f64 / 1e6)))
    }

    /// Loads models and data of a training, and trains. `answered`: examples and prompts of the validation answers.
    fn run(
        &self,
        id: &TaskId,
        task: &Task,
        training: &Training,
        dir: &Path,
        answered: (&[Example], &[Vec<u32>]),
        observe: &mut dyn FnMut(Event),
    ) -> Result<Outcome> {
        let student = self.student(training, task)?;
        let sequences = match &training.answers {
            Some(id) => {
                let sequences = &self.inputs.train.sequences;
                let vocabulary = student.config().vocab_size();
                Cow::Owned(answers::read(self.runs, id, sequences, vocabulary)?)
            }
            None => Cow::Borrowed(self.inputs.train.sequences.as_slice()),
        };
        let cache = match &training.hidden {
            Some(id) => Some(TeacherCache::open(&self.runs.join(id), id)?),
            None => None,
        };
        let teacher = match &training.teacher {
            Some(teacher) => {
                let mut teacher = self.merged(teacher, task)?;
                if training.needs_head_alone() {
                    teacher = teacher.with_layers(1)?;
                }
                Some(teacher.frozen_on(&self.device))
            }
            None => None,
        };
        let run = TrainRun {
            dir,
            fingerprint: id,
            settings: &training.settings,
            method: &training.method,
            kd_ratio: training.kd_ratio,
            max_new_tokens: task.limits.max_length - task.limits.max_prompt_length,
            base: training.student.task().map_or("base", String::as_str),
            student,
            teacher: teacher.as_ref(),
            cache: cache.as_ref(),
            sequences: &sequences,
            tokenizer: &self.inputs.tokenizer,
            text: training.text.as_ref().and(self.inputs.text.as_ref()),
            validation: Validation {
                examples: answered.0,
                prompts: answered.1,
                sequences: &self.inputs.valid_sequences.sequences,
                decoding: &training.validation.decoding(),
                seed: training.validation.seed,
            },
            beside: &self.inputs.companions,
            checkpoint_every: Duration::from_secs(60),
            stop: self.stop,
        };
        Ok(train(run, observe)?)
    }

    fn train(
        &self,
        id: &TaskId,
        task: &Task,
        training: &Training,
        mut folder: Folder,
        shown: &mut TaskDisplay,
    ) -> Result<Option<String>> {
        let dir = folder.dir;
        let answered = (&self.inputs.valid[..], &self.inputs.valid_prompts[..]);
        let outcome = self.run(
            id,
            task,
            training,
            dir,
            answered,
            &mut |event| match event {
                Event::Resumed { step } => shown.line(&format!("resumes after step {step}")),
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
            },
        )?;
        let Outcome::Finished {
            curve,
            teacher_tokens,
            cached_tokens,
        } = outcome
        else {
            return Ok(None);
        };
        let student = student_seal(dir, id, &curve, training.settings.keep_best)?;
        let cached_share =
            (teacher_tokens > 0).then(|| cached_tokens as f64 / teacher_tokens as f64);
        let last = curve.last().and_then(|r| r.validation_rouge_l);
        folder.seal.enclose(STUDENT, &student);
        folder.finish(&Trained {
            curve,
            cached_share,
        })?;
        // A finished task no longer needs its optimizer state.
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

    /// A model for inference, its adapter merged.
    pub(super) fn asked(&self, model: &Model, task: &Task) -> Result<LanguageModel> {
        Ok(self.merged(model, task)?.frozen_on(&self.device))
    }

    /// A model with its adapter merged, on the device of [`Self::in_memory`].
    fn merged(&self, model: &Model, task: &Task) -> Result<LanguageModel> {
        Ok(lora::merge(self.load(model, task, &self.in_memory())?))
    }

    /// The initial model of a training. With an adapter, the frozen weights are rounded for a card, as in [`Self::asked`].
    fn student(&self, training: &Training, task: &Task) -> Result<LanguageModel> {
        let Some(adapter) = &training.settings.lora else {
            return self.load(&training.student, task, &self.device);
        };
        let mut student = self.load(&training.student, task, &self.in_memory())?;
        if adapter.start == lora::Start::Merge {
            student = lora::merge(student);
        }
        Ok(student.frozen_on(&self.device))
    }

    /// The device on which weights are loaded before they are rounded for a card: always in host memory.
    fn in_memory(&self) -> Device {
        match abkd_host::serves(&self.device) {
            true => self.device.clone(),
            false => Device::flex(),
        }
    }

    /// A model with its adapter, if it has one; the files of a task that made it are checked.
    fn load(&self, model: &Model, task: &Task, device: &Device) -> Result<LanguageModel> {
        let (id, adapter_on) = match model {
            Model::Base { side, .. } => {
                let (source, teacher) = (self.sources.model(*side), &self.sources.teacher);
                let model = base_model(&self.sources.root, source, teacher, device)?;
                return Ok(model.with_precision(task.precision));
            }
            Model::Trained { task, adapter_on } => (task, adapter_on),
        };
        let dir = student_dir(proof::needed(self.runs, id)?.folder());
        if let Some(on) = adapter_on {
            let base = lora::merge(self.load(on, task, device)?);
            return Ok(lora::load(base, &dir)?);
        }
        Ok(checkpoint::load(&dir, device)?.with_precision(task.precision))
    }
}

/// Name of the student's folder inside its task's folder.
const STUDENT: &str = "student";

fn remove_folder(dir: &Path) -> Result<()> {
    files::remove_folder(dir).with_context(|| dir.display().to_string())
}

/// Content of an evaluation's `answers.jsonl`.
pub(crate) fn lines(
    answers: &[Answer],
    examples: &[Example],
    template: &PromptTemplate,
) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for (answer, example) in answers.iter().zip(examples) {
        let line = Told {
            answer,
            prompt: template.prompt(example)?,
            references: &example.outputs,
        };
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    Ok(text)
}
