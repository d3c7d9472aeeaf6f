//! Another implementation's answers.

use std::collections::BTreeMap;
use std::path::Path;

use abkd_host::files;
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::Error;
use crate::cases::{Case, TYPICAL};

/// The answer to a case.
pub(crate) struct Answer {
    pub loss: f64,
    /// `[B, T, V]`
    pub grad: Vec<f64>,
}

/// Answers by the name of their case.
pub(crate) type Answers = BTreeMap<&'static str, Answer>;

pub(crate) fn read(path: &Path, cases: &[Case]) -> Result<Answers, Error> {
    let bad = |what: String| Error::Answers {
        path: path.to_path_buf(),
        what,
    };
    let bytes = files::read(path, 1 << 30).map_err(|source| Error::File {
        path: path.to_path_buf(),
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| bad(format!("not a safetensors file ({error})")))?;
    let known = |name: &&str| {
        let mut names = cases
            .iter()
            .flat_map(|case| ["loss", "grad"].map(|part| format!("{}.{part}", case.name)));
        names.any(|known| known == **name)
    };
    if let Some(other) = file.names().iter().find(|name| !known(name)) {
        return Err(bad(format!(
            "`{other}` is no answer: the tensors are CASE.loss and CASE.grad, with the cases {}",
            names(cases)
        )));
    }
    let mut answers = Answers::new();
    for case in cases {
        let tensor = |part: &str| file.tensor(&format!("{}.{part}", case.name)).ok();
        let (loss, grad) = match (tensor("loss"), tensor("grad")) {
            (Some(loss), Some(grad)) => (loss, grad),
            (None, None) => continue,
            (loss, _) => {
                let missing = if loss.is_some() { "grad" } else { "loss" };
                return Err(bad(format!("`{}.{missing}` is missing", case.name)));
            }
        };
        let numbers = |view: &TensorView, part: &str| {
            decode(view).ok_or_else(|| {
                let dtype = view.dtype();
                bad(format!(
                    "`{}.{part}` has the type {dtype:?}; F64, F32, BF16 and F16 are read",
                    case.name
                ))
            })
        };
        let loss = numbers(&loss, "loss")?;
        let &[loss] = loss.as_slice() else {
            return Err(bad(format!(
                "`{}.loss` has {} numbers, and a loss is one",
                case.name,
                loss.len()
            )));
        };
        if grad.shape() != case.shape {
            return Err(bad(format!(
                "`{}.grad` has the shape {:?}, and the student's logits {:?}",
                case.name,
                grad.shape(),
                case.shape
            )));
        }
        let grad = numbers(&grad, "grad")?;
        answers.insert(case.name, Answer { loss, grad });
    }
    if !answers.contains_key(TYPICAL) {
        return Err(bad(format!(
            "`{TYPICAL}.loss` and `{TYPICAL}.grad` are missing: without them nothing can be said"
        )));
    }
    Ok(answers)
}

fn names(cases: &[Case]) -> String {
    let names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.join(", ")
}

fn decode(view: &TensorView) -> Option<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
        let (parts, []) = bytes.as_chunks::<N>() else {
            return None;
        };
        Some(parts.iter().map(|part| of(*part)).collect())
    }
    let bytes = view.data();
    match view.dtype() {
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::F32 => each(bytes, |x| f32::from_le_bytes(x).into()),
        Dtype::BF16 => each(bytes, |x| bf16::from_le_bytes(x).into()),
        Dtype::F16 => each(bytes, |x| f16::from_le_bytes(x).into()),
        _ => None,
    }
}
