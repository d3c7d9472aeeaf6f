//! Tensors as slices of host memory.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex};
use burn::tensor::{DType, Shape};

/// A backend whose tensors lie in host memory.
pub(super) trait Memory: Backend {
    /// The same numbers, row after row.
    fn dense(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Numbers of a dense tensor in f32.
    fn read(x: &FloatTensor<Self>) -> &[f32];

    /// A new tensor of f32 with arbitrary content.
    fn empty(shape: Shape) -> FloatTensor<Self>;

    /// Mutable numbers of a tensor from [`empty`](Self::empty) that nothing else holds.
    fn write(x: &mut FloatTensor<Self>) -> &mut [f32];
}

impl Memory for Flex {
    fn dense(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if x.is_contiguous() {
            x
        } else {
            x.to_contiguous()
        }
    }

    fn read(x: &FloatTensor<Self>) -> &[f32] {
        x.as_slice().expect("dense numbers in f32")
    }

    fn empty(shape: Shape) -> FloatTensor<Self> {
        FloatTensor::<Self>::empty(shape, DType::F32)
    }

    fn write(x: &mut FloatTensor<Self>) -> &mut [f32] {
        x.storage_mut()
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use abkd_host::libtorch;
    use burn::backend::LibTorch;

    use super::{DType, FloatTensor, Memory, Shape};

    impl Memory for LibTorch {
        fn dense(x: FloatTensor<Self>) -> FloatTensor<Self> {
            libtorch::dense(x)
        }

        fn read(x: &FloatTensor<Self>) -> &[f32] {
            libtorch::read(x)
        }

        fn empty(shape: Shape) -> FloatTensor<Self> {
            let device = Default::default();
            <Self as burn::backend::ops::FloatTensorOps<Self>>::float_empty(
                shape,
                &device,
                DType::F32.into(),
            )
        }

        fn write(x: &mut FloatTensor<Self>) -> &mut [f32] {
            libtorch::write(x)
        }
    }
}
