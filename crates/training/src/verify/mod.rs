//! Checks against golden files of other implementations: the training step and the methods.

mod adapter;
mod gjsd;
mod minillm;
mod run;
mod schedule;
mod trajectory;

use std::path::Path;

use abkd_host::files;
use abkd_models::Precision;
use abkd_models::verify::{Check, worse};
use burn::tensor::{Device, Tensor, TensorData};
use serde::de::DeserializeOwned;

use crate::Error;
use crate::head::{CHUNK_BYTES, Objective, Rows, head_loss};

pub use adapter::verify_adapter;
pub use gjsd::verify_gjsd;
pub use minillm::verify_minillm;
pub use schedule::verify_schedule;
pub use trajectory::verify_trajectory;

/// Largest vocabulary of rows of logits: their head is a square matrix of that size.
const WIDEST: usize = 1 << 12;

/// Scale of a list's relative error where all its entries are smaller.
const SMALL: f64 = 1e-3;

/// A golden file with its checks.
struct Golden<'a> {
    path: &'a Path,
    checks: Vec<Check>,
}

impl<'a> Golden<'a> {
    fn read<T: DeserializeOwned>(path: &'a Path) -> Result<(Self, T), Error> {
        let text = files::read(path, files::TEXT_LIMIT).map_err(Error::io(path))?;
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

    /// Refuses an empty list.
    fn not_empty<T>(&self, what: &str, list: &[T]) -> Result<(), Error> {
        self.ensure(!list.is_empty(), || {
            format!("{what} is empty: there is nothing to check")
        })
    }

    /// Refuses a matrix that does not have `n` rows of `width` entries.
    fn matrix<T>(&self, what: &str, rows: &[Vec<T>], n: usize, width: usize) -> Result<(), Error> {
        self.same_length(what, n, rows.len())?;
        for (row, entries) in rows.iter().enumerate() {
            self.ensure(entries.len() == width, || {
                format!(
                    "{what}, row {row} has {} entries where {width} belong",
                    entries.len()
                )
            })?;
        }
        Ok(())
    }

    /// Refuses logits that are not `n` rows of `vocab` finite f32 values.
    fn logits(&self, what: &str, values: &[f64], n: usize, vocab: usize) -> Result<(), Error> {
        self.ensure((1..=WIDEST).contains(&vocab), || {
            format!("vocab is {vocab}; 1 to {WIDEST} are checked")
        })?;
        self.ensure(n.checked_mul(vocab) == Some(values.len()), || {
            format!(
                "{what} has {} entries where {n} rows of {vocab} belong",
                values.len()
            )
        })?;
        let bad = values.iter().position(|&x| !(x as f32).is_finite());
        self.ensure(bad.is_none(), || {
            format!(
                "{what}, entry {}: no number of f32",
                bad.unwrap_or_default()
            )
        })
    }

    /// The rows with a label, and the labels.
    fn labels(
        &self,
        what: &str,
        labels: &[i64],
        vocab: usize,
    ) -> Result<(Vec<usize>, Vec<u32>), Error> {
        let mut counted = (Vec::new(), Vec::new());
        for (row, &label) in labels.iter().enumerate().filter(|(_, l)| **l >= 0) {
            let label = u32::try_from(label).ok().filter(|&l| (l as usize) < vocab);
            let label = label.ok_or_else(|| {
                let reason = format!("{what}, entry {row}: {} is not below {vocab}", labels[row]);
                Error::checkpoint(self.path, reason)
            })?;
            counted.0.push(row);
            counted.1.push(label);
        }
        self.ensure(!counted.0.is_empty(), || {
            format!("{what}: no label counts, so there is nothing to check")
        })?;
        Ok(counted)
    }

    /// The result of a computation on the file's numbers; an error names the file and the place in it.
    fn computed<T>(&self, place: &str, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|e| Error::checkpoint(self.path, format!("{place}: {e}")))
    }

    fn check(&mut self, name: String, error: f64, tolerance: f64) {
        self.checks.push(Check {
            name,
            error,
            tolerance,
        });
    }

    /// Checks the largest error relative to `theirs`' largest entry, or to [`SMALL`] if that is larger.
    fn compare(
        &mut self,
        name: String,
        ours: &[f64],
        theirs: &[f64],
        tolerance: f64,
    ) -> Result<(), Error> {
        self.same_length(&name, ours.len(), theirs.len())?;
        self.not_empty(&name, theirs)?;
        let scale = largest(theirs.iter().copied().chain([SMALL]));
        self.check(name, distance(ours, theirs) / scale, tolerance);
        Ok(())
    }

    /// Checks that two lists are equal; the error is the number of different entries.
    fn equal<T: PartialEq>(&mut self, name: String, ours: &[T], theirs: &[T]) -> Result<(), Error> {
        self.same_length(&name, ours.len(), theirs.len())?;
        let different = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
        self.check(name, different as f64, 0.0);
        Ok(())
    }

    /// Returns the checks; a file without any is refused.
    fn finish(self) -> Result<Vec<Check>, Error> {
        self.ensure(!self.checks.is_empty(), || {
            "there is nothing to check in it".into()
        })?;
        Ok(self.checks)
    }
}

/// Largest absolute value; NaN if any value is NaN.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.map(f64::abs).fold(0.0, worse)
}

/// Largest absolute difference; NaN if any difference is NaN.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    largest(ours.iter().zip(theirs).map(|(a, b)| a - b))
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Logits as hidden states with the identity as head: loss and gradients are then those of the logits.
fn rows_of_logits(logits: Vec<f32>, vocab: usize, device: &Device) -> Rows {
    let n = logits.len() / vocab;
    Rows {
        hidden: Tensor::from_data(TensorData::new(logits, [n, vocab]), device),
        head: Tensor::eye(vocab, device),
        precision: Precision::F32,
    }
}

/// Mean loss over rows of logits and its gradient in the logits.
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

/// Scatters rows of `vocab` numbers to `places` among `rows` rows; the other rows are 0.
fn spread(values: &[f64], places: &[usize], rows: usize, vocab: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * vocab];
    for (row, &place) in values.chunks(vocab).zip(places) {
        out[place * vocab..][..vocab].copy_from_slice(row);
    }
    out
}

/// Gathers the rows `places` of a flat matrix, in f32.
fn gather(values: &[f64], places: &[usize], vocab: usize) -> Vec<f32> {
    places
        .iter()
        .flat_map(|place| &values[place * vocab..][..vocab])
        .map(|&x| x as f32)
        .collect()
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
        let text = golden.compare("grad".into(), &[], &[], 1e-5).unwrap_err();
        assert!(text.to_string().contains("nothing to check"), "{text}");
    }
}
