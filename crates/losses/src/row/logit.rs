//! The types of logits that the kernel reads.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A logit: f32, f16 or bf16. The kernel works in f32; a gradient is rounded to the logits' type.
pub trait Logit: sealed::Sealed + Copy + Send + Sync {
    /// A row in f32; in `scratch` where it has to be converted.
    #[doc(hidden)]
    fn read<'a>(row: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];

    /// Fills a row through `fill`, which finds the row in f32 in its argument if that was the last one read into `scratch`.
    #[doc(hidden)]
    fn write(row: &mut [Self], scratch: &mut Vec<f32>, fill: impl FnOnce(&mut [f32]));
}

/// The student's and the teacher's logits of a call.
pub enum AnyLogits<'a> {
    F32(&'a mut [f32], &'a [f32]),
    F16(&'a mut [f16], &'a [f16]),
    Bf16(&'a mut [bf16], &'a [bf16]),
}

mod sealed {
    use super::{AnyLogits, bf16, f16};

    pub trait Sealed: Sized {
        /// Logits without their type.
        fn hide<'a>(student: &'a mut [Self], teacher: &'a [Self]) -> AnyLogits<'a>;
    }

    macro_rules! sealed {
        ($ty:ty, $variant:ident) => {
            impl Sealed for $ty {
                fn hide<'a>(student: &'a mut [Self], teacher: &'a [Self]) -> AnyLogits<'a> {
                    AnyLogits::$variant(student, teacher)
                }
            }
        };
    }

    sealed!(f32, F32);
    sealed!(f16, F16);
    sealed!(bf16, Bf16);
}

impl Logit for f32 {
    fn read<'a>(row: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        row
    }

    fn write(row: &mut [f32], _: &mut Vec<f32>, fill: impl FnOnce(&mut [f32])) {
        fill(row);
    }
}

macro_rules! half_logit {
    ($ty:ty) => {
        impl Logit for $ty {
            fn read<'a>(row: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
                scratch.resize(row.len(), 0.0);
                row.convert_to_f32_slice(scratch);
                scratch
            }

            fn write(row: &mut [Self], scratch: &mut Vec<f32>, fill: impl FnOnce(&mut [f32])) {
                scratch.resize(row.len(), 0.0);
                fill(scratch);
                row.convert_from_f32_slice(scratch);
            }
        }
    };
}

half_logit!(f16);
half_logit!(bf16);
