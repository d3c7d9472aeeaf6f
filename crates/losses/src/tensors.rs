//! The functions on Burn's tensors.

use burn::tensor::{DType, Element, Tensor, TensorData};
use bytemuck::Pod;
use half::{bf16, f16};

#[cfg(feature = "cube")]
use crate::cube;
use crate::host::Host;
use crate::{Divergence, Error, Fidelity, Logits, Model, reference, row, view};

/// Values and gradients of a batch of rows.
pub struct Rows {
    /// `[N]`, nats. In f32 from the row kernel, whatever the logits' type; else in the student's type.
    pub value: Tensor<1>,
    /// `[N, V]`: gradient of each row's value in that row's student logits, in their type.
    pub grad: Tensor<2>,
    /// The values, if they were read from a card together with the rows' status codes.
    pub(crate) read: Option<Vec<f32>>,
}

impl Rows {
    pub(crate) fn new(value: Tensor<1>, grad: Tensor<2>) -> Self {
        Self {
            value,
            grad,
            read: None,
        }
    }

    /// The values in host memory, without another wait for a card whose kernel computed them.
    pub fn values(&self) -> Vec<f32> {
        self.read.clone().unwrap_or_else(|| {
            let data = self.value.clone().into_data_as::<f32>();
            data.as_slice().expect("converted to f32").to_vec()
        })
    }
}

/// Divergence of each row and its gradient in the student's logits.
///
/// # Shapes
///
/// - `logits`: `[N, V]` each, on a plain (not autodiff) device; the row kernel reads f16 and bf16 without a conversion where
///   both have the same type
///
/// # Errors
///
/// Shapes that differ; a row without a finite logit, or with NaN or `+inf`.
pub fn value_and_grad(
    divergence: &Divergence,
    fidelity: Fidelity,
    logits: Logits<Tensor<2>>,
) -> Result<Rows, Error> {
    check_shapes(&logits)?;
    let Logits { student, teacher } = logits;
    if student.dims()[0] > 0 && student.dims()[1] == 0 {
        return Err(Error::EmptyRow {
            model: Model::Student,
            row: 0,
        });
    }
    if !abkd_host::serves(&student.device()) {
        if let Some((view, divergence)) = divergence.seen(student.dims()[1]) {
            let logits = Logits { student, teacher };
            return view::tensors::seen(value_and_grad, &divergence, view, fidelity, logits);
        }
        #[cfg(feature = "cube")]
        if let Some(rows) = cube::divergence(divergence, fidelity, &student, &teacher) {
            return rows;
        }
        return reference::value_and_grad(divergence, fidelity, Logits { student, teacher });
    }
    let dtype = student.dtype();
    let kernel = match dtype {
        DType::F16 if teacher.dtype() == dtype => on_host::<f16>,
        DType::BF16 if teacher.dtype() == dtype => on_host::<bf16>,
        // Neither of the half types holds the other's numbers.
        _ => on_host::<f32>,
    };
    kernel(divergence, fidelity, Logits { student, teacher })
}

/// [`value_and_grad`] by the row kernel, with logits read as `L`.
fn on_host<L: row::Logit + Element + Pod>(
    divergence: &Divergence,
    fidelity: Fidelity,
    logits: Logits<Tensor<2>>,
) -> Result<Rows, Error> {
    let Logits { student, teacher } = logits;
    let vocab = student.dims()[1];
    let teacher = Host::<L>::new(teacher);
    let teacher = teacher.read();
    in_place(student, |student: &mut [L], value| {
        row::divergence(
            divergence,
            fidelity,
            Logits { student, teacher },
            vocab,
            value,
        )
    })
}

/// Values, and gradients in place of the student's logits, which are read as `L`.
fn in_place<L: Element + Pod>(
    student: Tensor<2>,
    kernel: impl FnOnce(&mut [L], &mut [f32]) -> Result<(), Error>,
) -> Result<Rows, Error> {
    let (device, dtype, n) = (student.device(), student.dtype(), student.dims()[0]);
    let mut logits = Host::<L>::new(student);
    let mut value = vec![0.0; n];
    kernel(logits.write(), &mut value)?;
    Ok(Rows::new(
        Tensor::from_data(TensorData::new(value, [n]), (&device, DType::F32)),
        logits.into_tensor(&device, dtype),
    ))
}

/// Divergence of each row: `[N]`, nats. See [`value_and_grad`].
///
/// # Errors
///
/// As [`value_and_grad`].
pub fn value(
    divergence: &Divergence,
    fidelity: Fidelity,
    logits: Logits<Tensor<2>>,
) -> Result<Tensor<1>, Error> {
    Ok(value_and_grad(divergence, fidelity, logits)?.value)
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
    if !abkd_host::serves(&student.device()) {
        #[cfg(feature = "cube")]
        if let Some(rows) = cube::cross_entropy(&student, labels) {
            return rows;
        }
        return reference::cross_entropy(student, labels);
    }
    let kernel = match student.dtype() {
        DType::F16 => labelled::<f16>,
        DType::BF16 => labelled::<bf16>,
        _ => labelled::<f32>,
    };
    kernel(student, labels)
}

/// [`cross_entropy_value_and_grad`] by the row kernel, with logits read as `L`.
fn labelled<L: row::Logit + Element + Pod>(
    student: Tensor<2>,
    labels: &[u32],
) -> Result<Rows, Error> {
    let vocab = student.dims()[1];
    in_place(student, |logits: &mut [L], value| {
        row::cross_entropy(logits, labels, vocab, value)
    })
}

pub(crate) fn check_shapes(Logits { student, teacher }: &Logits<Tensor<2>>) -> Result<(), Error> {
    if student.dims() == teacher.dims() {
        Ok(())
    } else {
        Err(Error::Shapes {
            student: student.dims(),
            teacher: teacher.dims(),
        })
    }
}
