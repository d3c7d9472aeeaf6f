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

use crate::inputs::checkpoints::Side;
use crate::inputs::{Inputs, base_shape};
use crate::plan::{Plan, Planned};
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
        let shape = match planned.side() {
            Side::Teacher => &self.teacher,
            Side::Student => &self.student,
        };
        match &planned.task.work {
            Work::Train(training) => cost::training(self, training, shape),
            Work::Time(timed) => cost::training(self, &timed.measured(), shape),
            Work::TeacherHidden(_) => cost::hidden(self),
            Work::TeacherAnswers(answers) => {
                let n = self.lengths.sequences as f64;
                cost::sampling(self, shape, n, answers.max_new_tokens, answers.batch_size)
            }
            Work::Evaluate(e) => {
                let n = self.examples.get(&e.dataset).copied().unwrap_or(0) as f64;
                let how = &e.decoding;
                cost::sampling(self, shape, n, how.max_new_tokens, how.batch_size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use abkd_training::cache::CacheMode;

    use super::*;

    /// The updates of `crates/training/tests/cuda.rs`: 16 sequences of 512 tokens whole, or 8 by two, half of them responses.
    #[test]
    fn launches_and_memory_on_a_card_are_those_of_the_driver_that_counts() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let table = std::fs::read_to_string(root.join("results/bench/cuda.csv")).unwrap();
        // launches, waits, bytes read, bytes uploaded, peak in GB
        let counted = |case: &str| {
            let line = table
                .lines()
                .find_map(|l| l.strip_prefix(&format!("\"{case}\",")));
            let numbers = line.unwrap().split(',').map(|x| x.parse::<f64>().unwrap());
            let numbers: Vec<f64> = numbers.collect();
            (numbers[0], numbers[4])
        };
        let estimated = |profile: &str, teacher: bool, cached: bool| {
            let table = if profile == "paper-gpt2" {
                "table1"
            } else {
                "table2"
            };
            let mut spec = Spec::load(&root, table, profile).unwrap();
            spec.profile.teacher_cache = if cached {
                CacheMode::Bf16
            } else {
                CacheMode::Off
            };
            let plan = Plan::new(&root, &spec, &BTreeMap::new()).unwrap();
            let mut estimate = Estimate::new(&root, &spec, &plan, None).unwrap();
            estimate.lengths.prompt = 256.0;
            estimate.lengths.response = 256.0;
            let mut trainings = plan.tasks.iter().filter_map(|planned| {
                let Work::Train(training) = &planned.task.work else {
                    return None;
                };
                let distilled = training.method.needs_teacher();
                let like = distilled != teacher && training.method.sampled().is_empty();
                like.then_some(training)
            });
            let training = trainings.next().unwrap();
            let mut training = training.clone();
            let settings = &mut training.settings;
            let adapted = settings.lora.is_some();
            settings.batch_size = if adapted { 8 } else { 16 };
            settings.micro_batch_size = adapted.then_some(2);
            settings.gradient_checkpointing = adapted || teacher;
            let shape = if teacher {
                &estimate.teacher
            } else {
                &estimate.student
            };
            let cost = cost::training(&estimate, &training, shape);
            let launches = cost.launches / cost.updates as f64;
            (launches, cost.memory.total() / 1e9)
        };
        for (case, profile, teacher, cached) in [
            (
                "update, GPT-2 ABKD, teacher live",
                "paper-gpt2",
                false,
                false,
            ),
            (
                "update, GPT-2 ABKD, teacher cached",
                "paper-gpt2",
                false,
                true,
            ),
            ("update, XL SFT", "paper-gpt2", true, false),
            ("update, 7B LoRA SFT", "paper-openllama2", true, false),
            (
                "update, 3B LoRA ABKD, 7B live",
                "paper-openllama2",
                false,
                false,
            ),
            (
                "update, 3B LoRA ABKD, 7B cached",
                "paper-openllama2",
                false,
                true,
            ),
        ] {
            let (is, said) = (counted(case), estimated(profile, teacher, cached));
            for ratio in [said.0 / is.0, said.1 / is.1] {
                assert!(
                    (0.85..1.15).contains(&ratio),
                    "{case}: {said:?}, counted {is:?}"
                );
            }
        }
    }
}
