//! Divergences between the next-token distributions of a teacher p and a student q, with their
//! gradients in the student's logits.
//!
//! Every divergence here has the form `D = sum_v f(p_v, q_v)`, summed over the vocabulary, in nats. With
//! `h = q df/dq` its gradient in the student's logits is `dD/dz_j = h_j - q_j sum_v h_v`. So a
//! divergence is two scalar formulas, and one row kernel serves all: [`row`] on the CPU, `cube` on wgpu
//! and CUDA devices (with the features of these names). [`reference`] says the same as tensor operations
//! for any backend, and serves the rest.
//!
//! Everything is worked out in log space: values and gradients are finite for logits up to 1e4 in
//! size (exponents saturate at 60, which matters only for a negative alpha, beta or alpha + beta). An
//! entry that is `-inf` in either model is left out of the sums, as in the published code, and each
//! softmax runs over the other entries.
//!
//! The mask over tokens and the mean over them are the caller's: `[N, V]` in, `[N]` out.

#[cfg(feature = "cube")]
mod cube;
mod divergence;
mod error;
mod host;
mod op;
mod pointwise;
pub mod reference;
pub mod row;
pub mod verify;

use burn::tensor::{Tensor, TensorData};

pub use divergence::{Divergence, Fidelity};
pub use error::{Error, Model};
pub use op::{cross_entropy, divergence};

use self::host::{f32s, f32s_mut, host};

/// Values and gradients of a batch of rows.
pub struct Rows {
    /// `[N]`, nats.
    pub value: Tensor<1>,
    /// `[N, V]`: gradient of each row's value in that row's student logits.
    pub grad: Tensor<2>,
}

/// Divergence of each row and its gradient in the student's logits.
///
/// # Shapes
///
/// - `student`, `teacher`: logits `[N, V]` on a plain (not autodiff) device
///
/// # Errors
///
/// Shapes that differ; a row without a finite logit, or with NaN or `+inf`.
pub fn value_and_grad(
    divergence: &Divergence,
    fidelity: Fidelity,
    student: Tensor<2>,
    teacher: Tensor<2>,
) -> Result<Rows, Error> {
    check_shapes(&student, &teacher)?;
    if student.dims()[0] > 0 && student.dims()[1] == 0 {
        return Err(Error::EmptyRow {
            model: Model::Student,
            row: 0,
        });
    }
    let device = student.device();
    if !abkd_host::serves(&device) {
        #[cfg(feature = "cube")]
        if let Some(rows) = cube::divergence(divergence, fidelity, &student, &teacher) {
            return rows;
        }
        return reference::value_and_grad(divergence, fidelity, student, teacher);
    }
    let [n, vocab] = student.dims();
    let mut logits = host(student);
    let teacher = host(teacher);
    let mut values = vec![0.0; n];
    row::divergence(
        divergence,
        fidelity,
        f32s_mut(&mut logits),
        f32s(&teacher),
        vocab,
        &mut values,
    )?;
    Ok(Rows {
        value: Tensor::from_data(TensorData::new(values, [n]), &device),
        grad: Tensor::from_data(logits, &device),
    })
}

/// Divergence of each row: `[N]`, nats. See [`value_and_grad`].
///
/// # Errors
///
/// As [`value_and_grad`].
pub fn value(
    divergence: &Divergence,
    fidelity: Fidelity,
    student: Tensor<2>,
    teacher: Tensor<2>,
) -> Result<Tensor<1>, Error> {
    Ok(value_and_grad(divergence, fidelity, student, teacher)?.value)
}

/// Cross-entropy `-log q[label]` of each row and its gradient `q - onehot(label)`.
///
/// # Shapes
///
/// - `student`: logits `[N, V]` on a plain device; `labels`: N token ids below V
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`; a label that is not a token.
pub fn cross_entropy_value_and_grad(student: Tensor<2>, labels: &[u32]) -> Result<Rows, Error> {
    let [n, vocab] = student.dims();
    if labels.len() != n {
        return Err(Error::LabelCount {
            labels: labels.len(),
            rows: n,
        });
    }
    if let Some((row, &label)) = labels
        .iter()
        .enumerate()
        .find(|(_, l)| **l as usize >= vocab)
    {
        return Err(Error::Label { row, label, vocab });
    }
    let device = student.device();
    if !abkd_host::serves(&device) {
        #[cfg(feature = "cube")]
        if let Some(rows) = cube::cross_entropy(&student, labels) {
            return rows;
        }
        return reference::cross_entropy(student, labels);
    }
    let mut logits = host(student);
    let mut values = vec![0.0; n];
    row::cross_entropy(f32s_mut(&mut logits), labels, vocab, &mut values)?;
    Ok(Rows {
        value: Tensor::from_data(TensorData::new(values, [n]), &device),
        grad: Tensor::from_data(logits, &device),
    })
}

pub(crate) fn check_shapes(student: &Tensor<2>, teacher: &Tensor<2>) -> Result<(), Error> {
    if student.dims() == teacher.dims() {
        Ok(())
    } else {
        Err(Error::Shapes {
            student: student.dims(),
            teacher: teacher.dims(),
        })
    }
}
