//! Compares both implementations with a golden file.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

use crate::{Divergence, Error, Fidelity, Rows, reference, value_and_grad};

/// One compared entry of a golden file.
#[derive(Clone, Debug)]
pub struct Check {
    /// Case, loss and implementation.
    pub name: String,
    /// Relative error of the mean value.
    pub value_error: f64,
    /// Largest error of the gradient, relative to its largest entry.
    pub grad_error: f64,
}

#[derive(Deserialize)]
struct Case {
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

/// Checks every entry of a golden file with the row kernel and with the tensor operations. The golden
/// values are those of the released code, so the official forms are compared.
///
/// # Errors
///
/// When the file cannot be read, has another format or names an unknown loss.
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
    let text = std::fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    let cases: Vec<Case> = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    let mut checks = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        for golden in &case.results {
            let divergence = parse(&golden.loss)
                .ok_or_else(|| fail(format!("case {}: unknown loss `{}`", i + 1, golden.loss)))?;
            for (form, name) in [(true, "row kernel"), (false, "reference")] {
                let (value_error, grad_error) = compare(case, golden, &divergence, form, device)?;
                let name = format!("case {} {} {name}", i + 1, golden.loss);
                checks.push(Check {
                    name,
                    value_error,
                    grad_error,
                });
            }
        }
    }
    Ok(checks)
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
    let (student, teacher) = (rows(&case.student_logits), rows(&case.teacher_logits));
    let Rows { value, grad } = if kernel {
        value_and_grad(d, Fidelity::Official, student, teacher)?
    } else {
        reference::value_and_grad(d, Fidelity::Official, student, teacher)?
    };
    let n = kept.len() as f64;
    let mean = f64::from(value.mean().into_scalar::<f32>());
    let grad = grad.into_data_as::<f32>();
    let grad = grad.as_slice::<f32>().expect("read as f32");
    let largest = golden.grad.iter().fold(0.0f64, |a, g| a.max(g.abs()));
    let mut grad_error = 0.0f64;
    for (at, &row) in kept.iter().enumerate() {
        for v in 0..case.vocab {
            let ours = f64::from(grad[at * case.vocab + v]) / n;
            grad_error = grad_error.max((ours - golden.grad[row * case.vocab + v]).abs() / largest);
        }
    }
    Ok(((mean - golden.value).abs() / golden.value.abs(), grad_error))
}

/// `ab(0.2,0.7)` and the like.
fn parse(name: &str) -> Option<Divergence> {
    let (id, rest) = name.split_once('(').unwrap_or((name, ""));
    let numbers = rest
        .trim_end_matches(')')
        .split(',')
        .filter(|s| !s.is_empty());
    let numbers: Vec<f64> = numbers
        .map(|s| s.trim().parse().ok())
        .collect::<Option<_>>()?;
    let id = match id {
        "fkl" => "fkld",
        "rkl" => "rkld",
        "js" => "jensen",
        "sfkl" => "skew_fkl",
        "srkl" => "skew_rkl",
        other => other,
    };
    let plain = Divergence::from_parts(id, &BTreeMap::new()).ok()?;
    let keys = plain.params().into_iter().map(|(k, _)| k.to_owned());
    Divergence::from_parts(id, &keys.zip(numbers).collect()).ok()
}
