//! Compares both implementations with a golden file.

use std::collections::BTreeMap;
use std::path::Path;

use abkd_host::files;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

use crate::{Divergence, Error, Fidelity, Logits, Rows, reference, value_and_grad};

/// A golden number below this is a rounding error of 0 in f64, and has no digits to compare.
const NOISE: f64 = 1e-14;
/// Errors of values are relative to this where the value is smaller: its terms are numbers of order 1 in f32.
const SMALL: f64 = 1e-2;

/// One compared entry of a golden file.
#[derive(Clone, Debug)]
pub struct Check {
    /// Case, loss and implementation.
    pub name: String,
    /// Error of the mean value, relative to it, or to 0.01 where it is smaller.
    pub value_error: f64,
    /// Largest error of the gradient, relative to its largest entry, or to 0.01 where that is 0.
    pub grad_error: f64,
}

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    batch: Option<usize>,
    #[serde(default)]
    seq: Option<usize>,
    vocab: usize,
    student_logits: Vec<f32>,
    teacher_logits: Vec<f32>,
    labels: Vec<i64>,
    results: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    loss: String,
    value: f64,
    grad: Vec<f64>,
}

impl Case {
    /// Refuses a case whose parts do not belong together.
    fn check(&self) -> Result<(), String> {
        let (n, vocab) = (self.labels.len(), self.vocab);
        if vocab == 0 || n == 0 {
            return Err("`vocab` and the number of `labels` must be 1 or more".into());
        }
        if let (Some(batch), Some(seq)) = (self.batch, self.seq)
            && batch.checked_mul(seq) != Some(n)
        {
            return Err(format!(
                "`labels` has {n} entries, `batch` {batch} and `seq` {seq} make another number"
            ));
        }
        let outside = |l: &i64| usize::try_from(*l).is_ok_and(|l| l >= vocab);
        if let Some(at) = self.labels.iter().position(outside) {
            return Err(format!(
                "`labels`, entry {at}: {} is not below `vocab`, which is {vocab}",
                self.labels[at]
            ));
        }
        let logits = [
            ("student_logits", &self.student_logits),
            ("teacher_logits", &self.teacher_logits),
        ];
        for (key, values) in logits {
            self.check_length(key, values.len())?;
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                return Err(format!("`{key}`, entry {at}: no number of f32"));
            }
        }
        if self.results.is_empty() {
            return Err("`results` is empty: there is nothing to check".into());
        }
        for (i, golden) in self.results.iter().enumerate() {
            let grad = format!("results[{i}].grad");
            self.check_length(&grad, golden.grad.len())?;
        }
        Ok(())
    }

    fn check_length(&self, key: &str, found: usize) -> Result<(), String> {
        let (n, vocab) = (self.labels.len(), self.vocab);
        if n.checked_mul(vocab) == Some(found) {
            return Ok(());
        }
        Err(format!(
            "`{key}` has {found} entries; {n} labels and a vocabulary of {vocab} take {}",
            n as u128 * vocab as u128
        ))
    }
}

/// Checks every entry of a golden file with the row kernel and with the tensor operations. The golden
/// values are those of the released code, so the official forms are compared.
///
/// # Errors
///
/// When the file cannot be read, has another format or nothing to check, or names an unknown loss.
pub fn verify_losses(path: &Path) -> Result<Vec<Check>, Error> {
    verify_losses_on(path, &Device::flex())
}

/// The same with the kernel that serves a device, and with the tensor operations there.
///
/// # Errors
///
/// As [`verify_losses`].
pub fn verify_losses_on(path: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let fail = |what: String| Error::Golden {
        path: path.into(),
        what,
    };
    let text = files::read(path, files::TEXT_LIMIT).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    let cases: Vec<Case> = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    if cases.is_empty() {
        return Err(fail("it has no case: there is nothing to check".into()));
    }
    let mut checks = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let place = format!("case {}", i + 1);
        case.check()
            .map_err(|what| fail(format!("{place}: {what}")))?;
        for golden in &case.results {
            let place = format!("{place} {}", golden.loss);
            let divergence =
                parse(&golden.loss).map_err(|what| fail(format!("{place}: {what}")))?;
            for (form, name) in [(true, "row kernel"), (false, "reference")] {
                let compared = compare(case, golden, &divergence, form, device);
                let (value_error, grad_error) =
                    compared.map_err(|e| fail(format!("{place}: {e}")))?;
                checks.push(Check {
                    name: format!("{place} {name}"),
                    value_error,
                    grad_error,
                });
            }
        }
    }
    Ok(checks)
}

/// The larger of two errors; NaN if one is, which `f64::max` would drop.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn compare(
    case: &Case,
    golden: &Golden,
    d: &Divergence,
    kernel: bool,
    device: &Device,
) -> Result<(f64, f64), Error> {
    // Only rows with a label reach a divergence.
    let kept: Vec<usize> = (0..case.labels.len())
        .filter(|&r| case.labels[r] >= 0)
        .collect();
    let rows = |logits: &[f32]| {
        let data: Vec<f32> = kept
            .iter()
            .flat_map(|r| logits[r * case.vocab..][..case.vocab].to_vec())
            .collect();
        Tensor::<2>::from_data(TensorData::new(data, [kept.len(), case.vocab]), device)
    };
    let mut ours = vec![0.0; golden.grad.len()];
    let mut mean = 0.0;
    if !kept.is_empty() {
        let (student, teacher) = (rows(&case.student_logits), rows(&case.teacher_logits));
        let Rows { value, grad, .. } = if kernel {
            value_and_grad(d, Fidelity::Official, Logits { student, teacher })?
        } else {
            reference::value_and_grad(d, Fidelity::Official, Logits { student, teacher })?
        };
        let n = kept.len() as f64;
        mean = f64::from(value.mean().into_scalar::<f32>());
        let grad = grad.into_data_as::<f32>();
        let grad = grad.as_slice::<f32>().expect("read as f32");
        for (row, &place) in grad.chunks(case.vocab).zip(&kept) {
            for (ours, g) in ours[place * case.vocab..].iter_mut().zip(row) {
                *ours = f64::from(*g) / n;
            }
        }
    }
    let largest = golden.grad.iter().fold(0.0, |a, g| larger(a, g.abs()));
    let scale = if largest < NOISE { SMALL } else { largest };
    let differences = ours.iter().zip(&golden.grad).map(|(a, b)| (a - b).abs());
    let grad_error = differences.fold(0.0, larger) / scale;
    let value_error = (mean - golden.value).abs() / larger(golden.value.abs(), SMALL);
    Ok((value_error, grad_error))
}

/// Reads a golden loss name such as `ab(0.2,0.7)`.
fn parse(name: &str) -> Result<Divergence, String> {
    let (id, numbers) = match name.split_once('(') {
        None => (name, Vec::new()),
        Some((id, rest)) => {
            let numbers = rest.strip_suffix(')').and_then(|inner| {
                let number = |s: &str| s.trim().parse().ok().filter(|x: &f64| x.is_finite());
                inner.split(',').map(number).collect::<Option<Vec<_>>>()
            });
            let numbers = numbers.ok_or_else(|| {
                "the parentheses in its name must hold numbers with commas between them".to_owned()
            })?;
            (id, numbers)
        }
    };
    let of_golden = |d: &Divergence| d.definition().golden == Some(id);
    let id = Divergence::all().find(of_golden).map_or(id, |d| d.id());
    let plain = Divergence::from_parts(id, &BTreeMap::new()).map_err(|e| e.to_string())?;
    let keys: Vec<String> = plain
        .params()
        .into_iter()
        .map(|(k, _)| k.to_owned())
        .collect();
    if !numbers.is_empty() && numbers.len() != keys.len() {
        return Err(format!(
            "it has {} numbers in its name and {} parameters",
            numbers.len(),
            keys.len()
        ));
    }
    Divergence::from_parts(id, &keys.into_iter().zip(numbers).collect()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Two rows of three tokens, the first one ignored; equal distributions unless `teacher` says otherwise.
    fn plain() -> Value {
        let logits = json!([0.5, -1.0, 0.25, 1.5, 0.75, -0.5]);
        json!([{
            "batch": 1, "seq": 2, "vocab": 3, "labels": [-100, 2],
            "student_logits": logits, "teacher_logits": logits,
            "results": [{ "loss": "rkl", "value": 0.0, "grad": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0] }],
        }])
    }

    fn verify(json: &Value) -> Result<Vec<Check>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden.json");
        std::fs::write(&path, json.to_string()).unwrap();
        verify_losses(&path).map_err(|e| {
            let text = e.to_string();
            assert!(text.contains("golden.json: "), "{text}");
            text
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut json = plain();
        *json.pointer_mut(pointer).expect("a place in it") = value;
        json
    }

    fn passes(checks: &[Check]) -> bool {
        // not `error > limit`: NaN fails
        checks
            .iter()
            .all(|c| c.value_error <= 1e-5 && c.grad_error <= 1e-5)
    }

    #[test]
    fn a_golden_0_is_a_number_like_any_other() {
        // The official forward KL is a cross-entropy, which is not 0 here.
        let all = ["rkl", "tvd", "js(0.1)", "js(0.9)"];
        for loss in all {
            let checks = verify(&with("/0/results/0/loss", json!(loss))).unwrap();
            assert!(checks.len() == 2 && passes(&checks), "{checks:?}");
        }
        let noise = with("/0/results/0/grad/4", json!(4.2e-18));
        assert!(passes(&verify(&noise).unwrap()));
        let ignored = with("/0/labels", json!([-100, -100]));
        assert!(passes(&verify(&ignored).unwrap()));
        for (pointer, value) in [
            ("/0/results/0/value", json!(1e-6)),
            ("/0/results/0/grad/4", json!(1e-6)),
            // of the ignored row, which has no gradient
            ("/0/results/0/grad/0", json!(1e-6)),
            ("/0/teacher_logits/3", json!(1.25)),
        ] {
            let checks = verify(&with(pointer, value)).unwrap();
            assert!(!passes(&checks), "{pointer}: {checks:?}");
        }
    }

    #[test]
    fn a_nan_is_the_larger_error() {
        for (a, b) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::NAN, f64::NAN)] {
            assert!(larger(a, b).is_nan());
        }
        assert_eq!([larger(1.0, 2.0), larger(2.0, 1.0)], [2.0, 2.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        for (pointer, value, says) in [
            (
                "/0/student_logits",
                json!([1.0]),
                "case 1: `student_logits` has 1 entries",
            ),
            (
                "/0/teacher_logits",
                json!([]),
                "case 1: `teacher_logits` has 0 entries",
            ),
            ("/0/student_logits/3", json!(1e300), "number out of range"),
            ("/0/student_logits/3", json!(null), "null"),
            (
                "/0/results/0/grad",
                json!([0.0, 0.0]),
                "`results[0].grad` has 2",
            ),
            ("/0/results/0/value", json!("0"), "invalid type"),
            (
                "/0/results/0/loss",
                json!("rkld2"),
                "case 1 rkld2: unknown loss",
            ),
            (
                "/0/results/0/loss",
                json!("ab(0.2)"),
                "1 numbers in its name and 2 parameters",
            ),
            ("/0/results/0/loss", json!("ab(1,2,3)"), "3 numbers"),
            (
                "/0/results/0/loss",
                json!("ab(NaN,1)"),
                "numbers with commas",
            ),
            ("/0/results/0/loss", json!("ab(1,2"), "numbers with commas"),
            ("/0/results/0/loss", json!("js(1.5)"), "lambda"),
            ("/0/results", json!([]), "nothing to check"),
            ("/0/labels/1", json!(3), "`labels`, entry 1: 3 is not below"),
            ("/0/labels", json!([]), "1 or more"),
            ("/0/labels", json!([1]), "`batch` 1 and `seq` 2"),
            ("/0/vocab", json!(0), "1 or more"),
            ("/0/vocab", json!(u64::MAX), "student_logits"),
            ("/0/vocab", json!(-3), "invalid value"),
            ("/0/batch", json!(u64::MAX), "another number"),
            ("", json!([]), "nothing to check"),
            ("", json!({}), "invalid type"),
        ] {
            let error = verify(&with(pointer, value)).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
