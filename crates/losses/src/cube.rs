//! The row kernel on a device that CubeCL serves: WebGPU (Vulkan, Metal, DirectX) or CUDA. One cube per row, no softmax in
//! memory: one pass over the logits for both normalisers, one for the sums of f and h, one for the gradient. All of it in
//! f32, because WebGPU's shaders are limited to it.
//!
//! A divergence's definition names its formula here and the formula's numbers; a divergence without them is not served.

mod formulas;
mod kernel;
mod math;

use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

pub(crate) use self::formulas::Formula;

use self::formulas::NumbersLaunch;
use self::kernel::{cross_entropy_kernel, divergence_kernel, status};
use crate::divergences::Form;
use crate::error::Model;
use crate::{Divergence, Error, Fidelity, Rows, reference};

/// A formula, and its numbers a to d.
pub(crate) type Description = (Formula, [f64; 4]);

/// Units per cube; no more than WebGPU grants everywhere.
const UNITS: u32 = 256;
/// Largest number of cubes along one axis of a launch.
const MOST_CUBES: usize = 65_535;

/// See [`value_and_grad`](crate::value_and_grad); `None` where device or divergence is not served.
pub(crate) fn divergence(
    divergence: &Divergence,
    fidelity: Fidelity,
    student: &Tensor<2>,
    teacher: &Tensor<2>,
) -> Option<Result<Rows, Error>> {
    let work = Work {
        dtype: student.dtype(),
        student: on_device(student)?,
        teacher: on_device(teacher)?,
    };
    if let Form::Larger(members) = divergence.definition().form {
        let members = members(divergence.values());
        let [one, two] = members.map(|member| describe(&member, Fidelity::Paper));
        let (one, two) = (work.rows(one?), work.rows(two?));
        return Some(one.and_then(|one| Ok(reference::larger(one, two?, fidelity))));
    }
    Some(work.rows(describe(divergence, fidelity)?))
}

/// Formula and numbers; `None` for a divergence that is not served.
fn describe(divergence: &Divergence, fidelity: Fidelity) -> Option<Description> {
    match divergence.definition().form {
        Form::Sum { cube, .. } => cube?(divergence.values(), fidelity),
        Form::Rows { .. } | Form::Larger(_) => None,
    }
}

/// See [`cross_entropy_value_and_grad`](crate::cross_entropy_value_and_grad); `None` where the device is
/// not served. Labels are below the vocabulary's size.
pub(crate) fn cross_entropy(student: &Tensor<2>, labels: &[u32]) -> Option<Result<Rows, Error>> {
    let dtype = student.dtype();
    let ids = TensorData::new(labels.to_vec(), [labels.len()]);
    let ids = Tensor::<1, Int>::from_data(ids, (&student.device(), DType::U32));
    let ids = ids.try_into_primitive::<CubeBackend>().ok()?;
    let student = on_device(student)?;
    let out = Out::new(&student);
    let units = units(&student);
    cross_entropy_kernel::launch(
        &student.client.clone(),
        out.cubes(),
        CubeDim::new_1d(units),
        student.into_tensor_arg(),
        ids.into_tensor_arg(),
        out.value.clone().into_tensor_arg(),
        out.grad.clone().into_tensor_arg(),
        out.report.clone().into_tensor_arg(),
        units as usize,
    );
    Some(out.check(dtype, labels))
}

/// The logits in f32, row after row; `None` when they are on another device or there are none.
fn on_device(logits: &Tensor<2>) -> Option<CubeTensor> {
    if logits.dims().contains(&0) {
        return None;
    }
    let logits = logits.clone().try_into_primitive::<CubeBackend>().ok()?;
    let logits = Tensor::<2>::from_primitive::<CubeBackend>(logits).cast(DType::F32);
    let logits = logits.try_into_primitive::<CubeBackend>().ok()?;
    Some(into_contiguous(logits))
}

fn units(logits: &CubeTensor) -> u32 {
    let most = logits.client.properties().hardware.max_units_per_cube;
    // a power of 2: reductions halve the units until one is left
    1 << UNITS.min(most).ilog2()
}

struct Work {
    student: CubeTensor,
    teacher: CubeTensor,
    /// Type of the results.
    dtype: DType,
}

impl Work {
    fn rows(&self, (formula, numbers): Description) -> Result<Rows, Error> {
        let [a, b, c, d] = numbers.map(|x| x as f32);
        let out = Out::new(&self.student);
        let units = units(&self.student);
        divergence_kernel::launch(
            &self.student.client,
            out.cubes(),
            CubeDim::new_1d(units),
            self.student.clone().into_tensor_arg(),
            self.teacher.clone().into_tensor_arg(),
            out.value.clone().into_tensor_arg(),
            out.grad.clone().into_tensor_arg(),
            out.report.clone().into_tensor_arg(),
            NumbersLaunch::new(a, b, c, d),
            formula,
            units as usize,
        );
        out.check(self.dtype, &[])
    }
}

/// Outputs of a launch.
struct Out {
    value: CubeTensor,
    grad: CubeTensor,
    report: CubeTensor,
}

impl Out {
    fn new(logits: &CubeTensor) -> Self {
        let shape = logits.meta.shape();
        let rows = Shape::new([shape[0]]);
        let empty = |shape: Shape, dtype: DType| {
            empty_device_contiguous_dtype(
                logits.client.clone(),
                logits.device.clone(),
                shape,
                dtype,
            )
        };
        Self {
            value: empty(rows.clone(), DType::F32),
            grad: empty(shape.clone(), DType::F32),
            report: empty(rows, DType::U32),
        }
    }

    /// One cube per row; cubes beyond the last row end at once.
    fn cubes(&self) -> CubeCount {
        let rows = self.value.meta.shape()[0];
        let along = rows.min(MOST_CUBES);
        CubeCount::Static(along as u32, rows.div_ceil(along) as u32, 1)
    }

    fn check(self, dtype: DType, labels: &[u32]) -> Result<Rows, Error> {
        // Both at once: the host waits for the card once.
        let wanted = [&self.report, &self.value].map(|x| x.handle.clone());
        let read = self.report.client.read(wanted.to_vec());
        let read = read.unwrap_or_else(|error| panic!("reading from the card: {error}"));
        let (report, values) = (u32::from_bytes(&read[0]), f32::from_bytes(&read[1]));
        if let Some((row, &status)) = report.iter().enumerate().find(|(_, s)| **s != 0) {
            let model = match status {
                status::STUDENT_NOT_FINITE | status::STUDENT_EMPTY => Model::Student,
                _ => Model::Teacher,
            };
            return Err(match status {
                status::STUDENT_NOT_FINITE | status::TEACHER_NOT_FINITE => {
                    Error::NotFinite { model, row }
                }
                status::STUDENT_EMPTY | status::TEACHER_EMPTY => Error::EmptyRow { model, row },
                _ => Error::ImpossibleLabel {
                    row,
                    label: labels[row],
                },
            });
        }
        Ok(Rows {
            value: Tensor::<1>::from_primitive::<CubeBackend>(self.value).cast(dtype),
            grad: Tensor::<2>::from_primitive::<CubeBackend>(self.grad).cast(dtype),
            read: (dtype == DType::F32).then(|| values.to_vec()),
        })
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, DeviceKind};

    #[test]
    fn wgpu_is_served_for_every_divergence_that_describes_itself_and_flex_for_none() {
        let rows = |device: Device| Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 5.0]], &device);
        let (here, there) = (
            rows(Device::wgpu(DeviceKind::DefaultDevice)),
            rows(Device::flex()),
        );
        for d in Divergence::all() {
            let form = &d.definition().form;
            let served = matches!(form, Form::Sum { cube: Some(_), .. } | Form::Larger(_));
            for fidelity in [Fidelity::Paper, Fidelity::Official] {
                let rows = divergence(&d, fidelity, &here, &here);
                assert_eq!(rows.is_some(), served, "{d}");
                assert!(divergence(&d, fidelity, &there, &there).is_none(), "{d}");
            }
        }
        assert!(cross_entropy(&here, &[0, 1]).is_some());
        assert!(cross_entropy(&there, &[0, 1]).is_none());
    }
}
