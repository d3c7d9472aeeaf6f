//! How long the cells of a plan will take here: a few updates and answers of each kind, measured with
//! as many of them side by side as the plan's cells will run.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use abkd_data::Sequence;
use abkd_models::LanguageModel;
use abkd_models::generate::{Decoding, generate};
use abkd_training::{Event, Method, Settings, TrainRun, Validation, train};
use anyhow::{Result, anyhow};

use super::Places;
use crate::inputs::{Inputs, base_model};
use crate::plan::{Plan, Who, Work};
use crate::spec::Spec;
use crate::timing;

/// Updates that are not counted, and updates that are.
const WARMUP: usize = 2;
const COUNTED: usize = 12;

#[derive(Clone, Copy)]
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
    let mut tasks: Vec<Task> = Vec::new();
    let sft = [
        (Who::Teacher, &p.teacher_sft),
        (Who::Student, &p.student_sft),
    ];
    tasks.extend(
        sft.iter()
            .filter(|(_, s)| s.is_some())
            .map(|(who, _)| Task::Updates(Trained::Sft(*who))),
    );
    tasks.extend((0..spec.experiment.rows.len()).map(|i| Task::Updates(Trained::Row(i))));
    tasks.extend([Task::Answers(Who::Student), Task::Answers(Who::Teacher)]);
    let next = AtomicUsize::new(0);
    let rates: Mutex<Vec<Option<f64>>> = Mutex::new(vec![None; tasks.len()]);
    let jobs = p.jobs.min(tasks.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let device = crate::backend::device(&p.backend)?;
                    let base = |who: Who| {
                        let model = if who == Who::Teacher {
                            &p.teacher
                        } else {
                            &p.student
                        };
                        let model = base_model(&places.root, model, &p.teacher, &device)?;
                        Ok::<_, anyhow::Error>(model.with_precision(p.precision))
                    };
                    let (teacher, student) = (base(Who::Teacher)?, base(Who::Student)?);
                    let measure = Measure {
                        spec,
                        inputs,
                        teacher,
                        student,
                    };
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(i) else {
                            return Ok(());
                        };
                        let rate = match task {
                            Task::Updates(what) => measure.update(*what)?,
                            Task::Answers(who) => measure.answer(*who)?,
                        };
                        rates.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(rate);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|w| {
            w.join()
                .unwrap_or_else(|_| Err(anyhow!("a worker panicked; this is a bug")))
        })
    })?;
    let rates = rates.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rate = |wanted: &dyn Fn(&Task) -> bool| {
        let found = tasks.iter().zip(&rates).find(|(t, _)| wanted(t));
        found.and_then(|(_, r)| *r).unwrap_or(0.0)
    };
    let update = |what: Trained| rate(&|t| matches!(t, Task::Updates(w) if *w == what));
    let answer = |teacher: bool| {
        rate(&|t| matches!(t, Task::Answers(who) if (*who == Who::Teacher) == teacher))
    };
    let n = inputs.train.sequences.len();
    let training = |settings: &Settings, a_step: f64, teacher: bool| {
        let steps = settings.epochs * settings.steps_an_epoch(n);
        let answers = settings.epochs * inputs.valid.len();
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
                Work::TeacherAnswers { .. } => n as f64 * answer(true),
                Work::Distill { row } => {
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

struct Measure<'a> {
    spec: &'a Spec,
    inputs: &'a Inputs,
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
        let settings = Settings {
            epochs: 1,
            steps_per_epoch: Some(WARMUP + COUNTED),
            ..settings
        };
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
                sequences: &self.inputs.train.sequences,
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
        let prompts: Vec<Vec<u32>> = chosen
            .iter()
            .map(|s| s.tokens[..s.prompt_len].to_vec())
            .collect();
        let keys: Vec<u64> = (0..prompts.len() as u64).collect();
        let begun = Instant::now();
        let eos = self.inputs.tokenizer.eos();
        generate(model, &prompts, &keys, 1, eos, &decoding, &mut |_| {})?;
        Ok(begun.elapsed().as_secs_f64() / prompts.len() as f64)
    }
}
