//! The training loop.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use abkd_data::indexed::IndexedTokens;
use abkd_data::{Batch, Example, Sequence, Tokenizer, collate};
use abkd_host::{KeptMemory, files};
use abkd_models::LanguageModel;
use abkd_models::checkpoint::{self, StoredAs};
use abkd_models::generate::{Decoding, Sampler};
use abkd_models::lora;
use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::cache::TeacherCache;
use crate::head::Masses;
pub use crate::kept::{student_dir, student_seal};
use crate::log::StepLog;
use crate::methods::Moment;
use crate::optim::AdamW;
use crate::state::{self, Saver, State};
use crate::step::{Teacher, Term, Update};
use crate::timing::{Phase, Phases};
use crate::{Error, KeepBest, Method, Settings, ahead, evaluate, kept, optim, step};

/// Inputs of each validation.
pub struct Validation<'a> {
    /// Examples to answer.
    pub examples: &'a [Example],
    /// Their prompts as tokens.
    pub prompts: &'a [Vec<u32>],
    /// Sequences for the cross-entropy, of the same or other examples.
    pub sequences: &'a [Sequence],
    /// How answers are sampled.
    pub decoding: &'a Decoding,
    /// Seed of the sampling.
    pub seed: u64,
}

/// One point of a validation curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Number of the validation, counted from 1: equals the epoch unless `validate_every` or `max_updates` is set.
    pub epoch: usize,
    /// Updates done.
    pub step: usize,
    /// Mean training loss since the previous validation.
    pub train_loss: f64,
    /// Mean cross-entropy per response token, nats; absent where no validation sequence has a response token.
    pub validation_loss: Option<f64>,
    /// Validation ROUGE-L, 0 to 100; absent where no answers are sampled.
    pub validation_rouge_l: Option<f64>,
    /// Student and teacher on the validation sequences; absent unless [`Settings::masses`] asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masses: Option<Masses>,
}

/// Inputs of a training run.
pub struct TrainRun<'a> {
    /// Folder of the run's checkpoints and of its result.
    pub dir: &'a Path,
    /// Hash of all inputs that the result depends on.
    pub fingerprint: &'a str,
    /// Settings.
    pub settings: &'a Settings,
    /// Training or distillation method.
    pub method: &'a Method,
    /// Share of the divergence in the loss on the data.
    pub kd_ratio: f64,
    /// Limit of tokens of an answer that a method samples.
    pub max_new_tokens: usize,
    /// Name or path of the initial student, for an adapter's `base_model_name_or_path`.
    pub base: &'a str,
    /// The student before training, on a plain device. If it has adapters, `start` of
    /// [`LoraConfig`](abkd_models::lora::LoraConfig) decides whether they are trained on or merged; without adapters in
    /// `settings` they are merged and all weights are trained.
    pub student: LanguageModel,
    /// The teacher, on a plain device.
    pub teacher: Option<&'a LanguageModel>,
    /// The teacher's hidden states of `sequences`.
    pub cache: Option<&'a TeacherCache>,
    /// Training data.
    pub sequences: &'a [Sequence],
    /// Plain text for a supervised term beside the method's, e.g. OpenWebText; absent: no such term.
    pub text: Option<&'a IndexedTokens>,
    /// Tokenizer of student and teacher.
    pub tokenizer: &'a Tokenizer,
    /// Inputs of each validation.
    pub validation: Validation<'a>,
    /// Names and contents of files beside the student's weights, such as the tokenizer. They are written with the weights,
    /// under the same seal.
    pub beside: &'a [(&'static str, Vec<u8>)],
    /// Minimum time between checkpoints that are not at a validation; raised where saving takes more than a twentieth of
    /// it.
    pub checkpoint_every: Duration,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// Progress report of a running training.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run resumes from a checkpoint.
    Resumed {
        /// Updates already done.
        step: usize,
    },
    /// An update is done.
    Step {
        /// Updates done.
        step: usize,
        /// Updates in all.
        steps: usize,
        /// Report of the update.
        report: step::StepReport,
        /// Learning rate of the update.
        learning_rate: f64,
    },
    /// Validation answers sampled since the last event of this kind.
    Validating(usize),
    /// A validation is done.
    Validated(ValidationRecord),
}

/// How a run ended.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// The kept student is in `dir/student`.
    Finished {
        /// One record per validation.
        curve: Vec<ValidationRecord>,
        /// Response tokens that the teacher's distribution was needed for.
        teacher_tokens: u64,
        /// The part of `teacher_tokens` whose hidden states were in the cache.
        cached_tokens: u64,
    },
    /// Stopped through `stop`; a checkpoint is written.
    Interrupted,
}

/// Trains until done or stopped; resumes from the newest checkpoint in `run.dir` if there is one.
///
/// # Errors
///
/// Unusable settings, data or checkpoints; NaN or infinite losses; folders that cannot be written.
pub fn train(run: TrainRun, observe: &mut dyn FnMut(Event)) -> Result<Outcome, Error> {
    let settings = run.settings;
    settings.check_run(run.sequences.len())?;
    run.method.check_run(settings)?;
    run.method.check_teacher(run.teacher.is_some())?;
    check_vocabulary(&run)?;
    if run.sequences.is_empty() {
        return Err(Error::NoSequences { examples: 0 });
    }
    if let Some(text) = run.text
        && (0..text.len()).all(|i| text.text(i).tokens.len() < 2)
    {
        let documents = text.len();
        return Err(Error::NoText { documents });
    }
    settings.check_validation(
        run.validation.sequences.iter().any(has_response),
        !run.validation.examples.is_empty(),
    )?;
    files::create_folder(run.dir).map_err(Error::io(run.dir))?;
    files::sweep(run.dir).map_err(Error::io(run.dir))?;
    let steps = settings.updates(run.sequences.len());
    let mut driver = run.method.driver(run.kd_ratio);
    let (mut state, mut student, mut optimizer) = begin(&run, steps, observe)?;
    let mut log = StepLog::open(run.dir, &state.log)?;
    if !state.method.is_null() {
        driver
            .restore(state.method.take())
            .map_err(|e| Error::checkpoint(run.dir, e))?;
    }
    if driver.wants_first_validation()
        && let Some(batches) = batches(&run)
    {
        driver.validated(step::cross_entropy(&student.valid(), &batches)?);
    }
    let teacher = run.teacher.map(|model| Teacher {
        model,
        cache: run.cache,
    });
    let mut memory = KeptMemory::begin();
    let mut saved = state.step;
    std::thread::scope(|scope| {
        let (prepared, thread) = ahead::prepare(scope, &run, state.step..steps);
        // On a processor, writing would take the training's cores and memory.
        let beside = !abkd_host::serves(&student.device().without_autodiff());
        let mut saver = Saver::new(scope, run.checkpoint_every, beside);
        while state.step < steps {
            let mut phases = Phases::default();
            let Ok(mut data) = phases.time(Phase::Data, || prepared.recv()) else {
                let panic = thread.join().expect_err("every update is prepared");
                std::panic::resume_unwind(panic)
            };
            let text = data.text.take();
            let mut terms = driver.terms(
                &mut Moment {
                    step: state.step,
                    steps,
                    settings,
                    student: &student,
                    teacher: run.teacher,
                    sequences: run.sequences,
                    tokenizer: run.tokenizer,
                    max_new_tokens: run.max_new_tokens,
                    phases: &mut phases,
                },
                data,
            )?;
            terms.extend(
                text.zip(driver.on_text(settings))
                    .map(|(batch, (objective, weight))| Term {
                        weight,
                        ..Term::sampled(batch, objective)
                    }),
            );
            let how = Update {
                learning_rate: settings.rate(state.step, steps),
                max_grad_norm: settings.max_grad_norm,
                micro_batch_size: settings.micro_batch_size,
                parallel_micro_batches: settings.parallel_micro_batches.unwrap_or(1),
                gradient_checkpointing: settings.gradient_checkpointing,
                seed: settings.seed ^ (state.step as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
                step: state.step,
            };
            let report;
            (student, report) =
                step::update(student, &mut optimizer, teacher, &terms, &how, phases)?;
            memory.after_update();
            state.step += 1;
            state.loss_sum += report.loss;
            state.teacher_tokens += report.teacher_tokens as u64;
            state.cached_tokens += report.cached_tokens as u64;
            log.write(&serde_json::json!({
                "step": state.step, "loss": report.loss, "grad_norm": report.grad_norm,
                "learning_rate": how.learning_rate, "tokens": report.tokens,
                "teacher_rows": report.teacher_tokens, "cached_rows": report.cached_tokens,
                "seconds": report.phases.total(),
            }))?;
            observe(Event::Step {
                step: state.step,
                steps,
                report,
                learning_rate: how.learning_rate,
            });
            let validates = settings.validates_after(state.step, run.sequences.len());
            if validates {
                validate(&run, &mut state, &student, steps, observe)?;
                if let Some(loss) = state.curve.last().and_then(|r| r.validation_loss) {
                    driver.validated(loss);
                }
            }
            let stop = run.stop.load(Ordering::Relaxed);
            let due = saver.due()?;
            if (due || stop || validates) && saved != state.step {
                saver.wait()?;
                state.method = driver.state();
                state.log = log.mark()?;
                // Removed with this save, not earlier: until then the run may resume from the previous checkpoint.
                let surpassed = kept::surpassed(run.dir, &state.curve, settings.keep_best)?;
                saver.save(run.dir, &state, &student, &optimizer, surpassed)?;
                saved = state.step;
            }
            if stop && state.step < steps {
                saver.wait()?;
                return Ok(Outcome::Interrupted);
            }
        }
        saver.wait()?;
        kept::finish(run.dir, &state, settings.keep_best)?;
        Ok(Outcome::Finished {
            curve: state.curve,
            teacher_tokens: state.teacher_tokens,
            cached_tokens: state.cached_tokens,
        })
    })
}

/// State, student and optimizer at the newest checkpoint, or at the start.
fn begin(
    run: &TrainRun,
    steps: usize,
    observe: &mut dyn FnMut(Event),
) -> Result<(State, LanguageModel, AdamW), Error> {
    let settings = run.settings;
    let mut student = run.student.clone();
    student = match &settings.lora {
        Some(config) => lora::adapt(student, config, settings.seed)?,
        None => lora::merge(student),
    };
    if !run.method.trains_with_dropout() {
        student = student.without_dropout();
    }
    let student = student.train();
    let make_optimizer =
        |student: &LanguageModel| optim::adamw(student, settings.weight_decay, settings.beta_2);
    if let Some((state, seal)) = state::find(run.dir, run.fingerprint)? {
        kept::check_best(run.dir, &state, settings.keep_best, steps)?;
        kept::sweep(run.dir, &state, settings.keep_best, steps)?;
        let (student, optimizer) = state::load(&seal, student, make_optimizer)?;
        observe(Event::Resumed { step: state.step });
        return Ok((state, student, optimizer));
    }
    let state = State {
        fingerprint: run.fingerprint.into(),
        ..State::default()
    };
    kept::sweep(run.dir, &state, settings.keep_best, steps)?;
    let optimizer = make_optimizer(&student);
    Ok((state, student, optimizer))
}

fn check_vocabulary(run: &TrainRun) -> Result<(), Error> {
    let student = run.student.config().vocab_size();
    if let Some(teacher) = run.teacher {
        let teacher = teacher.config().vocab_size();
        if teacher != student {
            return Err(Error::Vocabulary { teacher, student });
        }
    }
    if run.tokenizer.vocab_size() > student {
        return Err(Error::Tokenizer {
            tokenizer: run.tokenizer.vocab_size(),
            model: student,
        });
    }
    Ok(())
}

/// Validates the student, records the scores and keeps the weights if they are the best so far.
fn validate(
    run: &TrainRun,
    state: &mut State,
    student: &LanguageModel,
    steps: usize,
    observe: &mut dyn FnMut(Event),
) -> Result<(), Error> {
    let plain = student.valid();
    let validation = &run.validation;
    let batches = batches(run);
    let batches = batches.as_deref();
    let loss = batches.map(|batches| step::cross_entropy(&plain, batches));
    let validation_loss = loss.transpose()?;
    let validation_rouge_l = if validation.examples.is_empty() {
        None
    } else {
        let answers = evaluate::evaluate(
            &mut Sampler::new(&plain),
            run.tokenizer,
            validation.examples,
            validation.prompts,
            validation.seed,
            validation.decoding,
            &mut |n| observe(Event::Validating(n)),
        )?;
        Some(evaluate::score(&answers).rouge_l)
    };
    let teacher = run.teacher.filter(|_| run.settings.masses);
    let compared = teacher.zip(batches);
    let before = state.curve.last().map_or(0, |r| r.step);
    let record = ValidationRecord {
        epoch: state.curve.len() + 1,
        step: state.step,
        train_loss: state.loss_sum / (state.step - before) as f64,
        validation_loss,
        validation_rouge_l,
        masses: compared.map(|(teacher, batches)| Masses::of(&plain, teacher, batches)),
    };
    state.loss_sum = 0.0;
    state.curve.push(record.clone());
    let keep = run.settings.keep_best;
    let candidate = keep != KeepBest::Last || state.step == steps;
    if candidate && best_validation(&state.curve, keep) == record.epoch {
        kept::publish(run.dir, run.fingerprint, record.epoch, |dir| {
            match &run.settings.lora {
                Some(config) => lora::save(&plain, config, run.base, dir)?,
                None => checkpoint::save(&plain, dir, StoredAs::F32)?,
            }
            run.beside.iter().try_for_each(|(name, content)| {
                let path = dir.join(name);
                std::fs::write(&path, content).map_err(Error::io(&path))
            })
        })?;
    }
    observe(Event::Validated(record));
    Ok(())
}

fn has_response(sequence: &Sequence) -> bool {
    sequence.tokens.len() > sequence.prompt_len
}

/// The validation sequences; `None` where none has a response token: a mean over no tokens is undefined.
fn batches(run: &TrainRun) -> Option<Vec<Batch>> {
    let mut sorted: Vec<&Sequence> = run.validation.sequences.iter().collect();
    if !sorted.iter().any(|s| has_response(s)) {
        return None;
    }
    sorted.sort_by_key(|s| s.tokens.len());
    let batches = sorted.chunks(run.settings.batch_size);
    Some(batches.map(collate).collect())
}

/// Number of the first validation with the best score, counted from 1; of the last one for [`KeepBest::Last`]; 0 for none.
pub fn best_validation(curve: &[ValidationRecord], keep: KeepBest) -> usize {
    let figure = |r: &ValidationRecord| match (keep, r.validation_rouge_l) {
        (KeepBest::Last, _) => r.epoch as f64,
        (KeepBest::RougeL, Some(rouge)) => rouge,
        _ => r.validation_loss.map_or(f64::NEG_INFINITY, |loss| -loss),
    };
    curve
        .iter()
        .fold(None::<&ValidationRecord>, |best, r| match best {
            Some(b) if figure(b) >= figure(r) => best,
            _ => Some(r),
        })
        .map_or(0, |r| r.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: usize, loss: f64, rouge: Option<f64>) -> ValidationRecord {
        ValidationRecord {
            epoch,
            step: 10 * epoch,
            train_loss: 0.0,
            validation_loss: Some(loss),
            validation_rouge_l: rouge,
            masses: None,
        }
    }

    #[test]
    fn the_first_best_validation_is_kept() {
        let curve = [
            record(1, 3.0, Some(10.0)),
            record(2, 1.0, Some(12.0)),
            record(3, 2.0, Some(12.0)),
            record(4, 2.5, Some(11.0)),
        ];
        assert_eq!(best_validation(&curve, KeepBest::RougeL), 2);
        assert_eq!(best_validation(&curve, KeepBest::Loss), 2);
        assert_eq!(best_validation(&curve[..1], KeepBest::Loss), 1);
        assert_eq!(best_validation(&curve, KeepBest::Last), 4);
        let unanswered = [record(1, 3.0, None), record(2, 2.0, None)];
        assert_eq!(best_validation(&unanswered, KeepBest::RougeL), 2);
    }
}
