//! Cost of a plan: parameters, tokens, FLOPs, memory, disk, time.
//!
//! Counts are exact if the data are available; FLOPs count the matrix products (2 per multiply-add,
//! backward twice forward; with adapters, frozen weights have no gradient). Memory and
//! time on an accelerator are estimates, and their assumptions are printed with them.

mod cost;
mod print;
mod schedule;

use std::collections::BTreeMap;
use std::path::Path;

use abkd_models::ModelConfig;
use anyhow::Result;

use crate::inputs::{Inputs, base_shape};
use crate::plan::{Plan, Planned, Who};
use crate::spec::Spec;
use crate::task::Work;

pub use cost::{Cost, Memory};
pub use print::{Accelerator, report};
pub use schedule::makespan;

/// Lengths of the data, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Training sequences.
    pub sequences: usize,
    /// Mean prompt.
    pub prompt: f64,
    /// Mean response, including its end-of-sequence token.
    pub response: f64,
    /// Whether the lengths are counted rather than assumed.
    pub counted: bool,
}

impl Lengths {
    /// Counts the training data; without it, Dolly under GPT-2's tokenizer is assumed.
    pub fn of(spec: &Spec, inputs: Option<&Inputs>) -> Self {
        let Some(inputs) = inputs else {
            let all = 11_435;
            return Self {
                sequences: spec.profile.data.train.map_or(all, |n| n.min(all)),
                prompt: 71.3,
                response: 81.1,
                counted: false,
            };
        };
        let sequences = &inputs.train.sequences;
        let n = sequences.len() as f64;
        let prompt = sequences.iter().map(|s| s.prompt_len as f64).sum::<f64>() / n;
        let all = sequences.iter().map(|s| s.tokens.len() as f64).sum::<f64>() / n;
        Self {
            sequences: sequences.len(),
            prompt,
            response: all - prompt,
            counted: true,
        }
    }
}

/// Models and lengths that all costs depend on.
pub struct Estimate<'a> {
    spec: &'a Spec,
    plan: &'a Plan,
    teacher: ModelConfig,
    student: ModelConfig,
    lengths: Lengths,
    /// Examples of each test set, by id; the paper's numbers if the data are not available.
    examples: BTreeMap<String, usize>,
}

impl<'a> Estimate<'a> {
    /// Gathers what the costs depend on.
    ///
    /// # Errors
    ///
    /// A model with neither checkpoint nor shape.
    pub fn new(
        root: &Path,
        spec: &'a Spec,
        plan: &'a Plan,
        inputs: Option<&Inputs>,
    ) -> Result<Self> {
        let p = &spec.profile;
        let examples = spec.tests.iter().map(|set| {
            let counted = inputs.map(|i| i.test(&set.id).0.len());
            let all = set.examples.unwrap_or(0);
            let assumed = p.data.test.map_or(all, |limit| limit.min(all));
            (set.id.clone(), counted.unwrap_or(assumed))
        });
        Ok(Self {
            spec,
            plan,
            teacher: base_shape(root, &p.teacher, &p.teacher)?,
            student: base_shape(root, &p.student, &p.teacher)?,
            lengths: Lengths::of(spec, inputs),
            examples: examples.collect(),
        })
    }

    /// The cost of every task of the plan, in its order.
    pub fn costs(&self) -> Vec<Cost> {
        self.plan.tasks.iter().map(|task| self.cost(task)).collect()
    }

    fn cost(&self, planned: &Planned) -> Cost {
        let shape = match planned.of.first() {
            Some(Who::Teacher) => &self.teacher,
            _ => &self.student,
        };
        match &planned.task.work {
            Work::Train(t) => cost::training(self, &t.method, &t.settings, shape),
            Work::Time(timed) => {
                let (training, timing) = (&timed.training, &timed.timing);
                let settings = training.settings.measured(timing.warmup + timing.steps);
                cost::training(self, &training.method, &settings, shape)
            }
            Work::TeacherHidden(_) => cost::hidden(self),
            Work::TeacherAnswers(answers) => {
                let new = self.lengths.response.min(answers.max_new_tokens as f64);
                let n = self.lengths.sequences as f64;
                cost::sampling(self, shape, n, self.lengths.prompt, new, answers.batch_size)
            }
            Work::Evaluate(e) => {
                let n = self.examples.get(&e.dataset).copied().unwrap_or(0) as f64;
                let new = self.lengths.response.min(e.decoding.max_new_tokens as f64);
                cost::sampling(
                    self,
                    shape,
                    n,
                    self.lengths.prompt,
                    new,
                    e.decoding.batch_size,
                )
            }
        }
    }
}
