//! What a plan will cost: parameters, tokens, FLOPs, memory, disk, time.
//!
//! Counts are exact where the data are at hand; FLOPs count the matrix products (2 a multiply-add,
//! backward twice forward; with adapters the frozen weights need no gradient of their own). Memory and
//! time on an accelerator are estimates, and their assumptions are printed with them.

mod cost;
mod print;
mod schedule;

use std::path::Path;

use abkd_models::ModelConfig;
use anyhow::Result;

use crate::inputs::{Inputs, base_shape};
use crate::plan::{Plan, Who, Work};
use crate::spec::Spec;

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
    /// Mean response, its end included.
    pub response: f64,
    /// Whether they were counted, and not assumed.
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

/// Models and lengths that all costs are made of.
pub struct Estimate<'a> {
    spec: &'a Spec,
    plan: &'a Plan,
    teacher: ModelConfig,
    student: ModelConfig,
    lengths: Lengths,
    /// Examples of each test set, by id; the paper's numbers where the data are not at hand.
    examples: Vec<(&'static str, usize)>,
}

impl<'a> Estimate<'a> {
    /// Gathers what the costs depend on.
    ///
    /// # Errors
    ///
    /// A model of which neither checkpoint nor shape is there.
    pub fn new(
        root: &Path,
        spec: &'a Spec,
        plan: &'a Plan,
        inputs: Option<&Inputs>,
    ) -> Result<Self> {
        let p = &spec.profile;
        let published = [
            ("dolly", 500),
            ("self_instruct", 242),
            ("vicuna", 80),
            ("super_natural", 1694),
            ("unnatural", 10_000),
        ];
        let examples = published.map(|(set, n)| {
            let counted = inputs.and_then(|i| i.tests.get(set)).map(|(e, _)| e.len());
            let assumed = p.data.test.map_or(n, |limit| limit.min(n));
            (set, counted.unwrap_or(assumed))
        });
        Ok(Self {
            spec,
            plan,
            teacher: base_shape(root, &p.teacher, &p.teacher)?,
            student: base_shape(root, &p.student, &p.teacher)?,
            lengths: Lengths::of(spec, inputs),
            examples: examples.into(),
        })
    }

    /// The cost of every cell of the plan, in its order.
    ///
    /// # Errors
    ///
    /// A row that is not valid.
    pub fn costs(&self) -> Result<Vec<Cost>> {
        self.plan
            .cells
            .iter()
            .map(|cell| self.cost(&cell.work))
            .collect()
    }

    fn cost(&self, work: &Work) -> Result<Cost> {
        let p = &self.spec.profile;
        Ok(match work {
            Work::Sft { who } => {
                let (settings, shape) = match who {
                    Who::Teacher => (&p.teacher_sft, &self.teacher),
                    _ => (&p.student_sft, &self.student),
                };
                let settings = settings.as_ref().unwrap_or(&p.distill);
                cost::training(self, &abkd_training::Method::Sft, settings, shape)
            }
            Work::TeacherHidden => cost::hidden(self),
            Work::TeacherAnswers { max_new_tokens } => {
                let new = self.lengths.response.min(*max_new_tokens as f64);
                cost::sampling(
                    &self.teacher,
                    self.lengths.sequences as f64,
                    self.lengths.prompt,
                    new,
                    p.evaluation.batch_size,
                )
            }
            Work::Distill { row, .. } | Work::Time { row, .. } => {
                let row = &self.spec.experiment.rows[*row];
                let mut settings = row.training(p)?;
                if matches!(work, Work::Time { .. }) {
                    settings = settings.measured(p.timing.warmup + p.timing.steps);
                }
                cost::training(self, &row.method(p)?, &settings, &self.student)
            }
            Work::Evaluate { who, dataset, .. } => {
                let shape = match who {
                    Who::Teacher => &self.teacher,
                    _ => &self.student,
                };
                let n = self
                    .examples
                    .iter()
                    .find(|(id, _)| *id == dataset.id())
                    .map_or(0, |(_, n)| *n);
                let new = self
                    .lengths
                    .response
                    .min(p.evaluation.max_new_tokens as f64);
                cost::sampling(
                    shape,
                    n as f64,
                    self.lengths.prompt,
                    new,
                    p.evaluation.batch_size,
                )
            }
        })
    }
}
