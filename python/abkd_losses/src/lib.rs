//! The row kernel on the memory of PyTorch's CPU tensors. Private to the package: `abkd_losses/__init__.py` checks device,
//! type and layout of what it passes, and keeps the tensors alive during a call.

use std::slice;

use abkd_losses::{Divergence, Error, Fidelity, Logits, row};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::prelude::*;

fn value_error(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn read(loss: &str, fidelity: Option<&str>) -> Result<(Divergence, Fidelity), Error> {
    let divergence: Divergence = loss.parse()?;
    let fidelity = match fidelity {
        Some(name) => name.parse()?,
        None => divergence.default_fidelity(),
    };
    Ok((divergence, fidelity))
}

/// Addresses of a call's memory.
#[derive(Clone, Copy, FromPyObject)]
struct Memory {
    /// The student's logits.
    student: usize,
    /// The gradient's buffer, of the same type.
    grad: usize,
    /// 0 where there is no teacher.
    teacher: usize,
    value: usize,
    rows: usize,
    vocab: usize,
}

/// Runs on memory whose logits are of the type `L`.
trait Job {
    fn run<L: row::Logit>(
        self,
        student: &mut [L],
        teacher: &[L],
        vocab: usize,
        value: &mut [f32],
    ) -> Result<(), Error>;
}

/// # Safety
///
/// The addresses are those of contiguous memory of this type and these lengths, which nothing else writes, and nothing else
/// reads the gradient's and the values', during the call.
unsafe fn on<L: row::Logit>(job: impl Job, memory: Memory) -> Result<(), Error> {
    let Memory { rows, vocab, .. } = memory;
    if rows == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise; memory of a length above 0 has an address.
    let (student, grad, value) = unsafe {
        in_large_pages(memory.grad, rows * vocab * size_of::<L>());
        (
            slice::from_raw_parts(memory.student as *const L, rows * vocab),
            slice::from_raw_parts_mut(memory.grad as *mut L, rows * vocab),
            slice::from_raw_parts_mut(memory.value as *mut f32, rows),
        )
    };
    let parts = grad
        .par_chunks_mut(vocab.max(1))
        .zip(student.par_chunks(vocab.max(1)));
    parts.for_each(|(grad, student)| grad.copy_from_slice(student));
    let teacher = match memory.teacher {
        0 => &[],
        // SAFETY: as above.
        at => unsafe { slice::from_raw_parts(at as *const L, rows * vocab) },
    };
    job.run(grad, teacher, vocab, value)
}

/// Asks for large pages under fresh memory: the system clears pages one by one, and small ones take longer than the kernel.
///
/// # Safety
///
/// The memory is that of one allocation.
unsafe fn in_large_pages(at: usize, len: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let (from, to) = (at.next_multiple_of(PAGE), (at + len) / PAGE * PAGE);
        if from < to {
            // SAFETY: whole pages within the allocation; their contents stay.
            unsafe { libc::madvise(from as *mut _, to - from, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, len);
}

fn run(py: Python, job: impl Job + Send, dtype: &str, memory: Memory) -> PyResult<()> {
    py.detach(|| {
        // SAFETY: the package passes the memory of tensors of this type, and holds them.
        unsafe {
            match dtype {
                "float16" => on::<f16>(job, memory),
                "bfloat16" => on::<bf16>(job, memory),
                _ => on::<f32>(job, memory),
            }
        }
    })
    .map_err(value_error)
}

struct Diverge(Divergence, Fidelity);

impl Job for Diverge {
    fn run<L: row::Logit>(
        self,
        student: &mut [L],
        teacher: &[L],
        vocab: usize,
        value: &mut [f32],
    ) -> Result<(), Error> {
        row::divergence(&self.0, self.1, Logits { student, teacher }, vocab, value)
    }
}

struct Label(Vec<u32>);

impl Job for Label {
    fn run<L: row::Logit>(
        self,
        student: &mut [L],
        _: &[L],
        vocab: usize,
        value: &mut [f32],
    ) -> Result<(), Error> {
        row::cross_entropy(student, &self.0, vocab, value)
    }
}

#[pymodule]
mod _native {
    use super::*;

    #[pyfunction]
    fn divergence(
        py: Python,
        loss: &str,
        fidelity: Option<&str>,
        dtype: &str,
        memory: Memory,
    ) -> PyResult<()> {
        let (divergence, fidelity) = read(loss, fidelity).map_err(value_error)?;
        run(py, Diverge(divergence, fidelity), dtype, memory)
    }

    #[pyfunction]
    fn cross_entropy(py: Python, labels: Vec<u32>, dtype: &str, memory: Memory) -> PyResult<()> {
        run(py, Label(labels), dtype, memory)
    }

    /// Id, formula and parameters of every divergence.
    #[pyfunction]
    fn divergences() -> Vec<(&'static str, &'static str, Vec<(&'static str, f64)>)> {
        Divergence::all()
            .map(|d| (d.id(), d.formula(), d.params()))
            .collect()
    }
}
