//! Our own values and gradients, token by token.

use abkd_losses::{Divergence, Fidelity, Logits, row};
use safetensors::tensor::Dtype;

use crate::Error;
use crate::cases::{Case, Owned, f32_bytes, serialize};

/// Values `[N]` and gradients `[N, V]` of single tokens.
pub(crate) struct Rows {
    pub value: Vec<f64>,
    pub grad: Vec<f64>,
}

/// A divergence of each token, with both models' logits divided by `temperature`.
pub(crate) fn divergence(
    case: &Case,
    divergence: &Divergence,
    fidelity: Fidelity,
    temperature: f64,
) -> Result<Rows, Error> {
    let vocab = case.shape[2];
    let mut grad = case.student.clone();
    let mut value = vec![0.0; grad.len() / vocab];
    let logits = Logits {
        student: &mut grad[..],
        teacher: &case.teacher[..],
    };
    let divergence = divergence.at_temperature(temperature, false);
    row::divergence(&divergence, fidelity, logits, vocab, &mut value)?;
    Ok(Rows {
        value: value.into_iter().map(f64::from).collect(),
        grad: grad.into_iter().map(f64::from).collect(),
    })
}

/// The cross-entropy of each token's label; 0 where there is none.
pub(crate) fn cross_entropy(case: &Case, labels: &[Option<u32>]) -> Result<Rows, Error> {
    let vocab = case.shape[2];
    let mut grad = case.student.clone();
    let mut value = vec![0.0; labels.len()];
    let tokens: Vec<u32> = labels.iter().map(|label| label.unwrap_or(0)).collect();
    row::cross_entropy(&mut grad, &tokens, vocab, &mut value)?;
    for (i, _) in labels
        .iter()
        .enumerate()
        .filter(|(_, label)| label.is_none())
    {
        value[i] = 0.0;
        grad[i * vocab..][..vocab].fill(0.0);
    }
    Ok(Rows {
        value: value.into_iter().map(f64::from).collect(),
        grad: grad.into_iter().map(f64::from).collect(),
    })
}

/// The file of every divergence's values and gradients in every case.
pub(crate) fn encode_right(cases: &[Case]) -> Result<Vec<u8>, Error> {
    let mut tensors = Vec::new();
    for case in cases {
        let [b, t, v] = case.shape;
        for d in Divergence::all() {
            let rows = divergence(case, &d, Fidelity::Paper, 1.0)?;
            for (part, numbers, shape) in [
                ("value", rows.value, vec![b, t]),
                ("grad", rows.grad, vec![b, t, v]),
            ] {
                let numbers: Vec<f32> = numbers.into_iter().map(|x| x as f32).collect();
                tensors.push(Owned {
                    name: format!("{}/{}.{part}", case.name, d.id()),
                    dtype: Dtype::F32,
                    shape,
                    bytes: f32_bytes(&numbers),
                });
            }
        }
    }
    Ok(serialize(&tensors))
}
