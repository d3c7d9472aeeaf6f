//! How long the cells of a plan will take here: a few updates and answers of each kind, measured with
//! as many of them side by side as the plan's cells will run.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use abkd_data::Sequence;
use abkd_models::LanguageModel;
use abkd_models::generate::{Decoding, generate};
use abkd_training::cache::{self, CacheMode, TeacherCache};
use abkd_training::{Event, Method, Settings, TrainRun, Validation, train};
use anyhow::{Result, anyhow};

use super::Places;
use crate::inputs::{Inputs, base_model};
use crate::plan::{Plan, Who, Work};
use crate::spec::{ModelSpec, Spec};
use crate::timing;

/// Updates that are not counted, and updates that are.
const WARMUP: usize = 2;
const COUNTED: usize = 12;

#[derive(Clone, Copy, PartialEq)]
enum Task {
    Updates(Trained),
    Answers(Who),
}

#[derive(Clone, Copy, PartialEq)]
enum Trained {
    Sft(Who),
    Row(usize),
}

/// Seconds that each cell of the plan will take.
///
/// # Errors
///
/// Models that cannot be loaded, steps that fail.
pub fn calibrate(places: &Places, spec: &Spec, plan: &Plan, inputs: &Inputs) -> Result<Vec<f64>> {
    let p = &spec.profile;
    let sft = [
        (Who::Teacher, &p.teacher_sft),
        (Who::Student, &p.student_sft),
    ];
    let first: Vec<Task> = sft
        .iter()
        .filter(|(_, s)| s.is_some())
        .map(|(who, _)| Task::Updates(Trained::Sft(*who)))
        .collect();
    let mut rest: Vec<Task> = (0..spec.experiment.rows.len())
        .map(|i| Task::Updates(Trained::Row(i)))
        .collect();
    rest.extend([Task::Answers(Who::Student), Task::Answers(Who::Teacher)]);
    // The teacher's fine-tuning has the machine to itself for most of its time.
    let jobs = spec.jobs();
    let scratch = tempfile::tempdir()?;
    let sample = Sample::new(places, spec, inputs, scratch.path())?;
    let hidden = sample.seconds_a_sequence;
    let mut rates = measure_all(places, spec, inputs, &sample, &first, 1)?;
    rates.extend(measure_all(places, spec, inputs, &sample, &rest, jobs)?);
    let tasks = [first, rest].concat();
    let rate = |wanted: &dyn Fn(&Task) -> bool| {
        let found = tasks.iter().zip(&rates).find(|(t, _)| wanted(t));
        found.map_or(0.0, |(_, r)| *r)
    };
    let update = |what: Trained| rate(&|t| matches!(t, Task::Updates(w) if *w == what));
    let answer = |teacher: bool| {
        rate(&|t| matches!(t, Task::Answers(who) if (*who == Who::Teacher) == teacher))
    };
    let n = inputs.train.sequences.len();
    let training = |settings: &Settings, a_step: f64, teacher: bool| {
        let steps = settings.updates(n);
        let answers = settings.validations(n) * inputs.valid.len();
        steps as f64 * a_step + answers as f64 * answer(teacher)
    };
    plan.cells
        .iter()
        .map(|cell| {
            Ok(match &cell.work {
                Work::Sft { who } => {
                    let (_, settings) = sft[usize::from(*who != Who::Teacher)];
                    settings.as_ref().map_or(0.0, |s| {
                        training(s, update(Trained::Sft(*who)), *who == Who::Teacher)
                    })
                }
                Work::TeacherHidden => n as f64 * hidden,
                Work::TeacherAnswers { .. } => n as f64 * answer(true),
                Work::Distill { row, .. } => {
                    let settings = spec.experiment.rows[*row].training(p)?;
                    training(&settings, update(Trained::Row(*row)), false)
                }
                Work::Time { row, .. } => {
                    (p.timing.warmup + p.timing.steps) as f64 * update(Trained::Row(*row))
                }
                Work::Evaluate { who, dataset, .. } => {
                    let examples = inputs.test(*dataset).0.len() as f64;
                    examples * answer(*who == Who::Teacher)
                }
            })
        })
        .collect()
}

/// Training sequences enough for the measured updates, and the teacher's hidden states of them.
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
        let device = crate::backend::device(&p.backend)?;
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

/// Measures each task, `jobs` of them side by side.
fn measure_all(
    places: &Places,
    spec: &Spec,
    inputs: &Inputs,
    sample: &Sample,
    tasks: &[Task],
    jobs: usize,
) -> Result<Vec<f64>> {
    let p = &spec.profile;
    let next = AtomicUsize::new(0);
    let rates: Mutex<Vec<f64>> = Mutex::new(vec![0.0; tasks.len()]);
    let work = || -> Result<()> {
        let device = crate::backend::device(&p.backend)?;
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
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let index = tasks.iter().position(|t| t == task).unwrap_or_default();
            let rate = match task {
                Task::Updates(what) => measure.update(*what)?,
                Task::Answers(who) => measure.answer(*who)?,
            };
            rates.lock().unwrap_or_else(PoisonError::into_inner)[index] = rate;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(tasks.len()))
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
    /// Seconds an update.
    fn update(&self, what: Trained) -> Result<f64> {
        let p = &self.spec.profile;
        let (method, settings, start) = match what {
            Trained::Sft(who) => {
                let (settings, model) = match who {
                    Who::Teacher => (&p.teacher_sft, &self.teacher),
                    _ => (&p.student_sft, &self.student),
                };
                let settings = settings.clone().unwrap_or_else(|| p.distill.clone());
                (Method::Sft, settings, model)
            }
            Trained::Row(i) => {
                let row = &self.spec.experiment.rows[i];
                let settings = row.training(p)?;
                let method = timing::method(row.method(p)?, settings.batch_size);
                (method, settings, &self.student)
            }
        };
        let settings = settings.measured(WARMUP + COUNTED);
        let scratch = tempfile::tempdir()?;
        let mut begun = None;
        let mut last = (0, Instant::now());
        train(
            TrainRun {
                dir: scratch.path(),
                fingerprint: "calibration",
                settings: &settings,
                method: &method,
                kd_ratio: p.kd_ratio,
                max_new_tokens: p.data.max_new_tokens(),
                base: "base",
                student: start.clone(),
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
                    sequences: &self.inputs.valid_sequences.sequences[..1],
                    decoding: &Decoding::greedy(),
                    seed: 0,
                },
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

    /// Seconds an answer as long as the data's are on average.
    fn answer(&self, who: Who) -> Result<f64> {
        let p = &self.spec.profile;
        let model = if who == Who::Teacher {
            &self.teacher
        } else {
            &self.student
        };
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
        let eos = self.inputs.tokenizer.eos();
        generate(model, &prompts, &keys, 1, &[eos], &decoding, &mut |_| {})?;
        Ok(begun.elapsed().as_secs_f64() / prompts.len() as f64)
    }
}
