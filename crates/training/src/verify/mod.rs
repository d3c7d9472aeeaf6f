//! Checks against golden files of other implementations: the training step and the methods.

mod adapter;
mod gjsd;
mod minillm;
mod schedule;
mod trajectory;

use std::collections::BTreeMap;
use std::path::Path;

use abkd_data::{Sequence, collate};
use abkd_losses::{Divergence, Fidelity};
use abkd_models::verify::Check;
use abkd_models::{LanguageModel, Precision};
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::head::{CHUNK_BYTES, Objective, Rows, head_loss};
use crate::methods::Loss;
use crate::step::{StepReport, Teacher, Term, Update, update};
use crate::timing::Phases;
use crate::{Error, optim};

pub use adapter::verify_adapter;
pub use gjsd::verify_gjsd;
pub use minillm::verify_minillm;
pub use schedule::verify_schedule;
pub use trajectory::verify_trajectory;

/// A golden file with its checks.
struct Golden<'a> {
    path: &'a Path,
    checks: Vec<Check>,
}

impl<'a> Golden<'a> {
    fn read<T: DeserializeOwned>(path: &'a Path) -> Result<(Self, T), Error> {
        let text = std::fs::read(path).map_err(Error::io(path))?;
        let value = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(path, e))?;
        let checks = Vec::new();
        Ok((Self { path, checks }, value))
    }

    /// Refuses a file whose parts do not belong together.
    fn ensure(&self, good: bool, reason: impl FnOnce() -> String) -> Result<(), Error> {
        if good {
            Ok(())
        } else {
            Err(Error::checkpoint(self.path, reason()))
        }
    }

    fn same_length(&self, what: &str, ours: usize, theirs: usize) -> Result<(), Error> {
        self.ensure(ours == theirs, || {
            format!("{what} has {theirs} entries where {ours} belong")
        })
    }

    fn check(&mut self, name: String, error: f64, tolerance: f64) {
        self.checks.push(Check {
            name,
            error,
            tolerance,
        });
    }

    /// Largest error relative to `theirs`' largest entry; where that is small, the error is absolute.
    fn compare(
        &mut self,
        name: String,
        ours: &[f64],
        theirs: &[f64],
        tolerance: f64,
    ) -> Result<(), Error> {
        self.same_length(&name, ours.len(), theirs.len())?;
        let scale = largest(theirs.iter().copied()).max(1e-3);
        self.check(name, distance(ours, theirs) / scale, tolerance);
        Ok(())
    }

    /// How many of two lists differ: none may.
    fn equal<T: PartialEq>(&mut self, name: String, ours: &[T], theirs: &[T]) -> Result<(), Error> {
        self.same_length(&name, ours.len(), theirs.len())?;
        let different = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
        self.check(name, different as f64, 0.0);
        Ok(())
    }

    /// The checks; a file without any is refused.
    fn finish(self) -> Result<Vec<Check>, Error> {
        self.ensure(!self.checks.is_empty(), || {
            "there is nothing to check in it".into()
        })?;
        Ok(self.checks)
    }
}

/// Largest size; NaN if there is one.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    // `f64::max` would drop a NaN.
    values.map(f64::abs).fold(0.0, |a, b| {
        if a.is_nan() || b.is_nan() {
            f64::NAN
        } else {
            a.max(b)
        }
    })
}

/// Largest difference; NaN if there is one.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    largest(ours.iter().zip(theirs).map(|(a, b)| a - b))
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Logits as rows whose head is the identity: loss and gradients are then those of the logits.
fn rows_of_logits(logits: Vec<f32>, vocab: usize, device: &Device) -> Rows {
    let n = logits.len() / vocab;
    Rows {
        hidden: Tensor::from_data(TensorData::new(logits, [n, vocab]), device),
        head: Tensor::eye(vocab, device),
        precision: Precision::F32,
    }
}

/// Mean loss over rows of logits and its gradient in them.
fn mean_loss(
    objective: &Objective,
    student: &Rows,
    teacher: &Rows,
    labels: &[u32],
) -> Result<(f64, Vec<f64>), Error> {
    let scale = 1.0 / labels.len() as f64;
    let done = head_loss(
        objective,
        student,
        Some(teacher),
        labels,
        scale,
        false,
        CHUNK_BYTES,
    )?;
    let grad = done.d_hidden.into_data_as::<f32>();
    let grad = grad.as_slice::<f32>().expect("converted to f32 above");
    Ok((done.loss, widened(grad)))
}

/// Puts rows of `vocab` numbers at their places among `rows` rows; the others are 0.
fn spread(values: &[f64], places: &[usize], rows: usize, vocab: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * vocab];
    for (row, &place) in values.chunks(vocab).zip(places) {
        out[place * vocab..][..vocab].copy_from_slice(row);
    }
    out
}

/// Rows `places` of a flat matrix, in f32.
fn gather(values: &[f64], places: &[usize], vocab: usize) -> Vec<f32> {
    places
        .iter()
        .flat_map(|place| &values[place * vocab..][..vocab])
        .map(|&x| x as f32)
        .collect()
}

/// A batch of a golden run: inputs and the labels that follow them, -100 where none counts.
#[derive(Deserialize)]
struct GoldenBatch {
    input_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<i64>>,
    #[serde(default)]
    attention_mask: Option<Vec<Vec<u8>>>,
}

/// An update of a golden run.
#[derive(Deserialize)]
struct Entry {
    loss: f64,
    grad_norm: f64,
    lr: f64,
}

impl GoldenBatch {
    /// The sequences, each up to its last label; labels are next tokens without a gap.
    fn sequences(&self, golden: &Golden, vocab: usize) -> Result<Vec<Sequence>, Error> {
        let rows = self.input_ids.len();
        golden.same_length("labels", rows, self.labels.len())?;
        if let Some(mask) = &self.attention_mask {
            golden.same_length("attention_mask", rows, mask.len())?;
        }
        let sequence = |example: usize| {
            let (ids, labels) = (&self.input_ids[example], &self.labels[example]);
            golden.same_length("a row of labels", ids.len(), labels.len())?;
            let counted: Vec<usize> = (0..labels.len()).filter(|&t| labels[t] >= 0).collect();
            let (Some(&first), Some(&last)) = (counted.first(), counted.last()) else {
                return Err(Error::checkpoint(golden.path, "a sequence has no label"));
            };
            let tokens: Vec<u32> = ids[..=last]
                .iter()
                .copied()
                .chain(u32::try_from(labels[last]))
                .collect();
            golden.ensure(tokens.iter().all(|&t| (t as usize) < vocab), || {
                format!("a token is not below {vocab}, the size of the vocabulary")
            })?;
            let follow = (first..=last).all(|t| labels[t] == i64::from(tokens[t + 1]));
            golden.ensure(follow, || {
                "labels must be the next tokens, without a gap".into()
            })?;
            if let Some(mask) = &self.attention_mask {
                let real = mask[example].iter().take_while(|&&m| m == 1).count();
                golden.ensure(last < real, || "a label lies in the padding".into())?;
            }
            Ok(Sequence {
                example,
                tokens,
                prompt_len: first + 1,
            })
        };
        (0..rows).map(sequence).collect()
    }
}

/// A golden run of distillation.
struct GoldenRun<'a> {
    batches: &'a [GoldenBatch],
    log: &'a [Entry],
    lr: f64,
    loss: Loss,
    /// Of the losses and norms.
    tolerance: f64,
    /// Whether that is relative.
    relative: bool,
}

impl GoldenRun<'_> {
    /// Repeats the run (AdamW, weight decay 0.01, cosine to 1e-7, global norm 1) and compares every step.
    fn repeat(
        &self,
        golden: &mut Golden,
        teacher: &LanguageModel,
        mut student: LanguageModel,
    ) -> Result<LanguageModel, Error> {
        golden.same_length("log", self.batches.len(), self.log.len())?;
        let mut optimizer = optim::adamw(&student, 0.01, 0.999);
        let vocab = student.config().vocab_size();
        for (i, (data, entry)) in self.batches.iter().zip(self.log).enumerate() {
            let sequences = data.sequences(golden, vocab)?;
            golden.ensure(!sequences.is_empty(), || "a batch is empty".into())?;
            let rate = optim::cosine(i, self.log.len(), self.lr, 1e-7);
            let terms = [Term {
                batch: collate(&sequences.iter().collect::<Vec<_>>()),
                objective: self.loss.objective(1.0),
                weight: 1.0,
                from_data: false,
            }];
            let how = Update {
                learning_rate: rate,
                max_grad_norm: 1.0,
                micro_batch_size: None,
                parallel_micro_batches: 1,
                gradient_checkpointing: false,
                seed: i as u64,
                step: i,
            };
            let teacher = Some(Teacher {
                model: teacher,
                cache: None,
            });
            let report: StepReport;
            let none = Phases::default();
            (student, report) = update(student, &mut optimizer, teacher, &terms, &how, none)?;
            for (what, ours, theirs) in [
                ("loss", report.loss, entry.loss),
                ("gradient norm", report.grad_norm, entry.grad_norm),
            ] {
                let scale = if self.relative {
                    theirs.abs().max(1e-3)
                } else {
                    1.0
                };
                let error = (ours - theirs).abs() / scale;
                golden.check(format!("step {}: {what}", i + 1), error, self.tolerance);
            }
            let name = format!("step {}: learning rate", i + 1);
            golden.check(name, (rate - entry.lr).abs(), 1e-8);
        }
        Ok(student)
    }
}

/// The divergence of a golden run by its id and parameters, in its default form unless another is named.
fn golden_loss(
    golden: &Golden,
    id: &str,
    params: &BTreeMap<String, f64>,
    fidelity: Option<&str>,
) -> Result<Loss, Error> {
    let named = |e: abkd_losses::Error| Error::checkpoint(golden.path, e);
    let mut loss = Loss::new(Divergence::from_parts(id, params).map_err(named)?);
    if let Some(form) = fidelity {
        loss.fidelity = form.parse::<Fidelity>().map_err(named)?;
    }
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_the_largest_error_and_a_golden_0_an_absolute_one() {
        assert!(distance(&[1.0, f64::NAN, 2.0], &[1.0, 1.0, 1.0]).is_nan());
        assert!(distance(&[f64::NAN, 5.0], &[0.0, 0.0]).is_nan());
        let mut golden = Golden {
            path: Path::new("golden.json"),
            checks: Vec::new(),
        };
        golden.compare("a".into(), &[1e-9], &[0.0], 1e-5).unwrap();
        golden
            .compare("b".into(), &[110.0, 1.0], &[100.0, 1.0], 1e-5)
            .unwrap();
        golden
            .compare("c".into(), &[f64::NAN], &[1.0], 1e-5)
            .unwrap();
        golden
            .compare("d".into(), &[1.0], &[f64::NAN], 1e-5)
            .unwrap();
        let passed: Vec<bool> = golden
            .checks
            .iter()
            .map(|c| c.error <= c.tolerance)
            .collect();
        assert_eq!(passed, [true, false, false, false]);
        assert!((golden.checks[1].error - 0.1).abs() < 1e-12);
        let text = golden
            .compare("grad".into(), &[1.0], &[], 1e-5)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("golden.json") && text.contains("grad"),
            "{text}"
        );
    }
}
