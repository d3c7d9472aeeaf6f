//! Estimates the time of a plan's tasks on this machine: a few updates and answers of each kind, measured
//! with as many in parallel as the plan's tasks will run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use abkd_data::Sequence;
use abkd_models::LanguageModel;
use abkd_models::generate::{Decoding, generate};
use abkd_training::cache::{self, CacheMode, TeacherCache};
use abkd_training::{Event, TrainRun, Validation, train};
use anyhow::{Result, anyhow};

use super::Places;
use crate::inputs::checkpoints::Side;
use crate::inputs::{Inputs, base_model};
use crate::plan::{Plan, Planned, Who};
use crate::spec::{ModelSpec, Spec};
use crate::task::{Timed, Training, Work};

/// Warm-up updates, and measured updates.
const WARMUP: usize = 2;
const COUNTED: usize = 12;

/// Quantity to measure.
#[derive(Clone, Copy)]
enum Measured<'a> {
    /// Seconds per update of a training.
    Updates(&'a Training, Side),
    /// Seconds per answer of a model.
    Answers(Side),
}

/// Estimated seconds of each task of the plan.
///
/// # Errors
///
/// Models that cannot be loaded, steps that fail.
pub fn calibrate(places: &Places, spec: &Spec, plan: &Plan, inputs: &Inputs) -> Result<Vec<f64>> {
    // One of each kind; trainings of models that other tasks wait for have the machine to themselves.
    let (mut first, mut rest) = (BTreeMap::new(), BTreeMap::new());
    for (planned, work) in plan.works() {
        let Some((training, side)) = updates(planned, work) else {
            continue;
        };
        let alone = !matches!(planned.of[0], Who::Row { .. });
        let kinds = if alone { &mut first } else { &mut rest };
        kinds.insert(planned.kind(), Measured::Updates(training, side));
    }
    for side in [Side::Student, Side::Teacher] {
        rest.insert(side.section().to_owned(), Measured::Answers(side));
    }
    let scratch = tempfile::tempdir()?;
    let sample = Sample::new(places, spec, inputs, scratch.path())?;
    let hidden = sample.seconds_a_sequence;
    let mut rates = measure_all(places, spec, inputs, &sample, &first, 1)?;
    rates.extend(measure_all(
        places,
        spec,
        inputs,
        &sample,
        &rest,
        spec.jobs(),
    )?);
    let rate = |kind: &str| rates.get(kind).copied().unwrap_or(0.0);
    let n = inputs.train.sequences.len();
    let seconds = |planned: &Planned| {
        let side = side_of(planned).section();
        match &planned.task.work {
            Work::Train(training) => {
                let settings = &training.settings;
                let answers = settings.validations(n) * inputs.valid.len();
                settings.updates(n) as f64 * rate(&planned.kind()) + answers as f64 * rate(side)
            }
            Work::Time(timed) => {
                let updates = timed.timing.warmup + timed.timing.steps;
                updates as f64 * rate(&planned.kind())
            }
            Work::TeacherHidden(_) => n as f64 * hidden,
            Work::TeacherAnswers(_) => n as f64 * rate(side),
            Work::Evaluate(e) => inputs.test(&e.dataset).0.len() as f64 * rate(side),
        }
    };
    Ok(plan.tasks.iter().map(seconds).collect())
}

/// The side whose model a task trains or evaluates.
fn side_of(planned: &Planned) -> Side {
    match planned.of[0] {
        Who::Teacher => Side::Teacher,
        _ => Side::Student,
    }
}

/// The training that a task runs or times, if any.
fn updates<'a>(planned: &'a Planned, work: &'a Work) -> Option<(&'a Training, Side)> {
    let training = match work {
        Work::Train(training) | Work::Time(Timed { training, .. }) => training,
        _ => return None,
    };
    Some((training, side_of(planned)))
}

/// Enough training sequences for the measured updates, and the teacher's hidden states of them.
struct Sample<'a> {
    sequences: &'a [Sequence],
    cache: Option<TeacherCache>,
    seconds_a_sequence: f64,
}

impl<'a> Sample<'a> {
    fn new(places: &Places, spec: &Spec, inputs: &'a Inputs, scratch: &Path) -> Result<Self> {
        let p = &spec.profile;
        let all = &inputs.train.sequences;
        let largest = [&p.teacher_sft, &p.student_sft, &Some(p.distill.clone())]
            .into_iter()
            .flatten()
            .map(|s| s.batch_size)
            .max()
            .unwrap_or(1);
        let sequences = &all[..all.len().min((WARMUP + COUNTED) * largest)];
        if p.teacher_cache == CacheMode::Off {
            return Ok(Self {
                sequences,
                cache: None,
                seconds_a_sequence: 0.0,
            });
        }
        let device = crate::backend::device(&p.backend, &spec.cards)?;
        let teacher =
            base_model(&places.root, &p.teacher, &p.teacher, &device)?.with_precision(p.precision);
        let begun = Instant::now();
        cache::write(
            scratch,
            "calibration",
            &teacher,
            sequences,
            p.distill.batch_size,
            p.teacher_cache,
            &AtomicBool::new(false),
            &mut |_| {},
        )?;
        let seconds_a_sequence = begun.elapsed().as_secs_f64() / sequences.len() as f64;
        Ok(Self {
            sequences,
            cache: Some(TeacherCache::open(scratch, "calibration")?),
            seconds_a_sequence,
        })
    }
}

/// Measures each of `wanted`, `jobs` of them in parallel.
fn measure_all(
    places: &Places,
    spec: &Spec,
    inputs: &Inputs,
    sample: &Sample,
    wanted: &BTreeMap<String, Measured>,
    jobs: usize,
) -> Result<BTreeMap<String, f64>> {
    let p = &spec.profile;
    let next = Mutex::new(wanted.iter());
    let rates = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        let device = crate::backend::device(&p.backend, &spec.cards)?;
        let base = |model: &ModelSpec| {
            let model = base_model(&places.root, model, &p.teacher, &device)?;
            Ok::<_, anyhow::Error>(model.with_precision(p.precision))
        };
        let measure = Measure {
            spec,
            inputs,
            sample,
            teacher: base(&p.teacher)?,
            student: base(&p.student)?,
        };
        let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some((kind, measured)) = take() {
            let rate = match measured {
                Measured::Updates(training, side) => measure.update(training, *side)?,
                Measured::Answers(side) => measure.answer(*side)?,
            };
            let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
            rates.insert(kind.clone(), rate);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(wanted.len()))
            .map(|_| scope.spawn(work))
            .collect();
        workers.into_iter().try_for_each(|w| {
            w.join()
                .unwrap_or_else(|_| Err(anyhow!("a worker panicked; this is a bug")))
        })
    })?;
    Ok(rates.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Measure<'a> {
    spec: &'a Spec,
    inputs: &'a Inputs,
    sample: &'a Sample<'a>,
    teacher: LanguageModel,
    student: LanguageModel,
}

impl Measure<'_> {
    fn model(&self, side: Side) -> &LanguageModel {
        match side {
            Side::Teacher => &self.teacher,
            Side::Student => &self.student,
        }
    }

    /// Seconds per update, measured on a short training that starts from a base model.
    fn update(&self, training: &Training, side: Side) -> Result<f64> {
        let p = &self.spec.profile;
        let settings = training.settings.measured(WARMUP + COUNTED);
        let method = training.method.timed(training.settings.batch_size);
        let scratch = tempfile::tempdir()?;
        let mut begun = None;
        let mut last = (0, Instant::now());
        train(
            TrainRun {
                dir: scratch.path(),
                fingerprint: "calibration",
                settings: &settings,
                method: &method,
                kd_ratio: training.kd_ratio,
                max_new_tokens: p.data.max_new_tokens(),
                base: "base",
                student: self.model(side).clone(),
                teacher: Some(&self.teacher),
                cache: self
                    .sample
                    .cache
                    .as_ref()
                    .filter(|_| method.uses_teacher_on_data()),
                sequences: self.sample.sequences,
                tokenizer: &self.inputs.tokenizer,
                text: None,
                validation: Validation {
                    examples: &[],
                    prompts: &[],
                    sequences: self
                        .inputs
                        .valid_sequences
                        .sequences
                        .get(..1)
                        .unwrap_or_default(),
                    decoding: &Decoding::greedy(),
                    seed: 0,
                },
                beside: &[],
                checkpoint_every: Duration::MAX,
                stop: &AtomicBool::new(false),
            },
            &mut |event| {
                if let Event::Step { step, .. } = event {
                    if step == WARMUP {
                        begun = Some(Instant::now());
                    }
                    last = (step, Instant::now());
                }
            },
        )?;
        let counted = last.0.saturating_sub(WARMUP).max(1) as f64;
        Ok(begun.map_or(0.0, |b| (last.1 - b).as_secs_f64() / counted))
    }

    /// Seconds per answer of the training data's mean length.
    fn answer(&self, side: Side) -> Result<f64> {
        let p = &self.spec.profile;
        let model = self.model(side);
        let sequences = &self.inputs.train.sequences;
        let response: usize = sequences
            .iter()
            .map(|s| s.tokens.len() - s.prompt_len)
            .sum();
        let decoding = Decoding {
            max_new_tokens: response.div_ceil(sequences.len()),
            batch_size: p.evaluation.batch_size,
            ..p.evaluation.decoding()
        };
        let chosen: Vec<&Sequence> = sequences.iter().take(p.evaluation.batch_size).collect();
        let prompts: Vec<Vec<u32>> = chosen.iter().map(|s| s.prompt().to_vec()).collect();
        let keys: Vec<u64> = (0..prompts.len() as u64).collect();
        let begun = Instant::now();
        let ends = self.inputs.tokenizer.ends();
        generate(model, &prompts, &keys, 1, ends, &decoding, &mut |_| {})?;
        Ok(begun.elapsed().as_secs_f64() / prompts.len() as f64)
    }
}
