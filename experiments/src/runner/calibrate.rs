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
use abkd_training::cache::{self, TeacherCache};
use abkd_training::{Event, TrainRun, Validation, train};
use anyhow::{Result, anyhow};
use burn::tensor::Device;

use super::Places;
use crate::inputs::checkpoints::Side;
use crate::inputs::{Inputs, base_model};
use crate::plan::{Plan, Planned, Who};
use crate::spec::Spec;
use crate::task::{Training, Work};

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
        let Some(training) = work.training() else {
            continue;
        };
        let alone = !matches!(planned.of[0], Who::Row { .. });
        let kinds = if alone { &mut first } else { &mut rest };
        kinds.insert(planned.kind(), Measured::Updates(training, planned.side()));
    }
    for side in plan.tasks.iter().map(Planned::side) {
        rest.insert(side.section().to_owned(), Measured::Answers(side));
    }
    let scratch = tempfile::tempdir()?;
    let sample = Sample::new(places, spec, plan, inputs, scratch.path())?;
    let mut rates = sample.measure(&first, 1)?;
    rates.extend(sample.measure(&rest, spec.jobs())?);
    let rate = |kind: &str| rates.get(kind).copied().unwrap_or(0.0);
    let n = inputs.train.sequences.len();
    let seconds = |planned: &Planned| {
        let side = planned.side().section();
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
            Work::TeacherHidden(_) => n as f64 * sample.hidden,
            Work::TeacherAnswers(_) => n as f64 * rate(side),
            Work::Evaluate(e) => inputs.test(&e.dataset).0.len() as f64 * rate(side),
        }
    };
    Ok(plan.tasks.iter().map(seconds).collect())
}

/// What is measured on, and how.
struct Sample<'a> {
    places: &'a Places,
    spec: &'a Spec,
    inputs: &'a Inputs,
    /// Enough training sequences for the measured updates.
    sequences: &'a [Sequence],
    /// The teacher's hidden states of them, if a training uses them.
    cache: Option<TeacherCache>,
    /// Seconds per sequence to compute these.
    hidden: f64,
}

impl<'a> Sample<'a> {
    fn new(
        places: &'a Places,
        spec: &'a Spec,
        plan: &Plan,
        inputs: &'a Inputs,
        scratch: &Path,
    ) -> Result<Self> {
        let p = &spec.profile;
        let all = &inputs.train.sequences;
        let trainings = plan.works().filter_map(|(_, work)| work.training());
        let largest = trainings.map(|t| t.settings.batch_size).max().unwrap_or(1);
        let wanted = largest.saturating_mul(WARMUP + COUNTED);
        let mut sample = Self {
            places,
            spec,
            inputs,
            sequences: &all[..all.len().min(wanted)],
            cache: None,
            hidden: 0.0,
        };
        let cached = |(_, work): (&Planned, &Work)| matches!(work, Work::TeacherHidden(_));
        if !plan.works().any(cached) {
            return Ok(sample);
        }
        let device = crate::backend::device(&p.backend, &spec.cards)?;
        let teacher = sample.model(Side::Teacher, &device)?;
        let begun = Instant::now();
        cache::write(
            scratch,
            "calibration",
            &teacher,
            sample.sequences,
            p.distill.batch_size,
            p.teacher_cache,
            &AtomicBool::new(false),
            &mut |_| {},
        )?;
        sample.hidden = begun.elapsed().as_secs_f64() / sample.sequences.len() as f64;
        sample.cache = Some(TeacherCache::open(scratch, "calibration")?);
        Ok(sample)
    }

    /// The base model of a side.
    fn model(&self, side: Side, device: &Device) -> Result<LanguageModel> {
        let p = &self.spec.profile;
        let model = base_model(&self.places.root, side.of(self.spec), &p.teacher, device)?;
        Ok(model.with_precision(p.precision))
    }

    /// Measures each of `wanted`, `jobs` of them in parallel.
    fn measure(
        &self,
        wanted: &BTreeMap<String, Measured>,
        jobs: usize,
    ) -> Result<BTreeMap<String, f64>> {
        let next = Mutex::new(wanted.iter());
        let rates = Mutex::new(BTreeMap::new());
        let work = || -> Result<()> {
            let device = crate::backend::device(&self.spec.profile.backend, &self.spec.cards)?;
            let teacher = self.model(Side::Teacher, &device)?;
            let student = self.model(Side::Student, &device)?;
            let of = |side: Side| match side {
                Side::Teacher => &teacher,
                Side::Student => &student,
            };
            let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some((kind, measured)) = take() {
                let rate = match measured {
                    Measured::Updates(training, side) => {
                        self.update(training, of(*side), &teacher)?
                    }
                    Measured::Answers(side) => self.answer(of(*side))?,
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

    /// Seconds per update, measured on a short training that starts from a base model.
    fn update(
        &self,
        training: &Training,
        student: &LanguageModel,
        teacher: &LanguageModel,
    ) -> Result<f64> {
        let p = &self.spec.profile;
        let settings = training.settings.measured(WARMUP + COUNTED);
        let method = training.method.timed(training.settings.batch_size);
        let scratch = tempfile::tempdir()?;
        let mut times = vec![Instant::now()];
        train(
            TrainRun {
                dir: scratch.path(),
                fingerprint: "calibration",
                settings: &settings,
                method: &method,
                kd_ratio: training.kd_ratio,
                max_new_tokens: p.data.max_new_tokens(),
                base: "base",
                student: student.clone(),
                teacher: training.teacher.as_ref().map(|_| teacher),
                cache: training.hidden.as_ref().and(self.cache.as_ref()),
                sequences: self.sequences,
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
                if let Event::Step { .. } = event {
                    times.push(Instant::now());
                }
            },
        )?;
        Ok(seconds_an_update(&times))
    }

    /// Seconds per answer of the training data's mean length, or of as many tokens as the model has positions for.
    fn answer(&self, model: &LanguageModel) -> Result<f64> {
        let p = &self.spec.profile;
        let sequences = &self.inputs.train.sequences;
        let response: usize = sequences
            .iter()
            .map(|s| s.tokens.len() - s.prompt_len)
            .sum();
        let chosen = sequences.iter().take(p.evaluation.batch_size);
        let prompts: Vec<Vec<u32>> = chosen.map(|s| s.prompt().to_vec()).collect();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let room = model.config().max_positions().saturating_sub(longest);
        let decoding = Decoding {
            max_new_tokens: response.div_ceil(sequences.len()).min(room),
            ..p.evaluation.decoding()
        };
        let keys: Vec<u64> = (0..prompts.len() as u64).collect();
        let begun = Instant::now();
        let ends = self.inputs.tokenizer.ends();
        generate(model, &prompts, &keys, 1, ends, &decoding, &mut |_| {})?;
        Ok(begun.elapsed().as_secs_f64() / prompts.len() as f64)
    }
}

/// Seconds per update, from the times of the start and of the end of each update: after the warm-up, or of all updates where
/// there are not more.
fn seconds_an_update(times: &[Instant]) -> f64 {
    let updates = times.len() - 1;
    let skipped = if updates > WARMUP { WARMUP } else { 0 };
    let counted = times[updates] - times[skipped];
    counted.as_secs_f64() / (updates - skipped).max(1) as f64
}

#[cfg(test)]
mod tests {
    use abkd_training::cache::CacheMode;

    use super::*;

    #[test]
    fn updates_after_the_warm_up_are_timed_or_all_where_there_are_few() {
        let begun = Instant::now();
        let times = [0, 10, 20, 21, 23].map(|s| begun + Duration::from_secs(s));
        assert_eq!(seconds_an_update(&times), 1.5);
        assert_eq!(seconds_an_update(&times[..3]), 10.0);
        assert_eq!(seconds_an_update(&times[..1]), 0.0);
    }

    #[test]
    fn the_sample_is_large_enough_for_the_largest_batch_of_a_row() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut spec = Spec::load(&root, "table1", "tiny").unwrap();
        // Without the teacher's hidden states, nothing is computed.
        spec.profile.teacher_cache = CacheMode::Off;
        spec.recipes[0].settings.batch_size = 100;
        let inputs = Inputs::of(&root, &spec).unwrap();
        let plan = Plan::new(&root, &spec, &inputs.hashes).unwrap();
        let places = Places::below(&root);
        let sample = Sample::new(&places, &spec, &plan, &inputs, &root).unwrap();
        assert_eq!(sample.sequences.len(), 100 * (WARMUP + COUNTED));
    }
}
