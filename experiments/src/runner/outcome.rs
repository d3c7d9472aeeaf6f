//! Results of finished tasks, for display.

use std::sync::atomic::AtomicBool;

use abkd_models::LanguageModel;
use abkd_training::ValidationRecord;
use abkd_training::evaluate::Score;
use anyhow::{Context, Result};
use serde::Deserialize;

use super::worker::Worker;
use super::{Evaluated, Places, Trained, answers, proof};
use crate::inputs::Inputs;
use crate::plan::{Plan, Planned, Who};
use crate::spec::Spec;
use crate::task::{Model, Sources, Task, TaskId, Work};

/// A finished evaluation.
pub struct FinishedEvaluation {
    /// The model that gave the answers.
    pub who: Who,
    /// Id of the test set.
    pub dataset: String,
    /// Means over the answers.
    pub score: Score,
    /// ROUGE-L of each answer.
    pub rouge_l: Vec<f64>,
    /// The answers, as JSONL.
    answers: Vec<u8>,
}

/// A line of an evaluation's answers.
#[derive(Deserialize)]
pub struct Answered {
    /// Index of the example in its set.
    pub example: usize,
    /// The answer's text.
    pub answer: String,
    /// Best ROUGE-L F1 over the references, x 100.
    pub rouge_l: f64,
    /// The prompt.
    pub prompt: String,
    /// The reference answers.
    pub references: Vec<String>,
}

impl FinishedEvaluation {
    /// The first `count` answers.
    ///
    /// # Errors
    ///
    /// A line that is no answer.
    pub fn first(&self, count: usize) -> Result<Vec<Answered>> {
        let lines = self.answers.split(|&b| b == b'\n');
        let lines = lines.filter(|line| !line.is_empty()).take(count);
        lines
            .map(|line| Ok(serde_json::from_slice(line)?))
            .collect()
    }
}

/// The finished evaluations of a plan, in its order.
///
/// # Errors
///
/// A file that does not match its seal.
pub fn evaluations(places: &Places, spec: &Spec, plan: &Plan) -> Result<Vec<FinishedEvaluation>> {
    let runs = places.runs_of(spec);
    let mut all = Vec::new();
    for (planned, work) in plan.works() {
        let Work::Evaluate(evaluation) = work else {
            continue;
        };
        let Some(Evaluated { score, examples }) = proof::result(&runs, &planned.id)? else {
            continue;
        };
        let seal = proof::needed(&runs, &planned.id)?;
        let read = || seal.read(answers::FILE).map_err(proof::changed);
        for &who in &planned.of {
            all.push(FinishedEvaluation {
                who,
                dataset: evaluation.dataset.clone(),
                score,
                rouge_l: examples.clone(),
                answers: read()?,
            });
        }
    }
    Ok(all)
}

/// The first row's student.
pub struct TrainedStudent<'a> {
    /// The task that trained it.
    pub id: &'a TaskId,
    /// One record per validation.
    pub curve: Vec<ValidationRecord>,
    model: &'a Model,
    /// A task that evaluates the student.
    task: &'a Task,
}

/// The first row's student.
///
/// # Errors
///
/// When the student is not trained, or the plan evaluates it on no set.
pub fn student<'a>(places: &Places, spec: &Spec, plan: &'a Plan) -> Result<TrainedStudent<'a>> {
    let of_row = |planned: &Planned| matches!(planned.of[..], [Who::Row { row: 0, .. }, ..]);
    let mut works = plan.works().filter(|(planned, _)| of_row(planned));
    let evaluated = works.find_map(|(planned, work)| match work {
        Work::Evaluate(evaluation) => Some((&planned.task, &evaluation.model)),
        _ => None,
    });
    let (task, model) = evaluated.context("the plan evaluates no student")?;
    let id = model.task().context("the student is trained")?;
    let trained: Option<Trained> = proof::result(&places.runs_of(spec), id)?;
    Ok(TrainedStudent {
        id,
        curve: trained.context("the student is not trained yet")?.curve,
        model,
        task,
    })
}

impl TrainedStudent<'_> {
    /// The model, its adapter merged.
    ///
    /// # Errors
    ///
    /// Weights that do not match their seal.
    pub fn load(&self, places: &Places, spec: &Spec, inputs: &Inputs) -> Result<LanguageModel> {
        let worker = Worker {
            runs: &places.runs_of(spec),
            sources: &Sources::of(&places.root, spec),
            inputs,
            device: crate::backend::device(&spec.profile.backend, &spec.cards)?,
            stop: &AtomicBool::new(false),
            loaded: None,
        };
        worker.asked(self.model, self.task)
    }
}
