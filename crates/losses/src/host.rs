//! Logits in host memory. They are copied only for a write to memory that other tensors share.

#[cfg(feature = "tch")]
use abkd_host::libtorch;
use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use bytemuck::Pod;
use rayon::prelude::*;
use std::marker::PhantomData;

/// Rows of `L`, one after the other.
pub(crate) struct Host<L> {
    memory: Memory,
    read_as: PhantomData<L>,
}

enum Memory {
    /// Flex's memory, where other tensors share it.
    Shared(FloatTensor<Flex>),
    /// libtorch's memory.
    #[cfg(feature = "tch")]
    Libtorch(libtorch::Primitive),
    Own(TensorData),
}

impl<L: Element + Pod> Host<L> {
    /// The values of `tensor`, converted where they are of another type.
    pub fn new(tensor: Tensor<2>) -> Self {
        let memory = match tensor.clone().try_into_primitive::<Flex>() {
            Ok(flex) => {
                drop(tensor);
                if !flex.is_unique() && flex.as_slice::<L>().is_some() {
                    Memory::Shared(flex)
                } else {
                    let tensor = Tensor::<2>::from_primitive::<Flex>(flex);
                    Memory::Own(tensor.into_data_as::<L>())
                }
            }
            Err(_) => elsewhere::<L>(tensor),
        };
        Self {
            memory,
            read_as: PhantomData,
        }
    }

    pub fn read(&self) -> &[L] {
        match &self.memory {
            Memory::Shared(flex) => flex.as_slice(),
            #[cfg(feature = "tch")]
            Memory::Libtorch(dense) => Some(libtorch::read(dense)),
            Memory::Own(data) => data.as_slice().ok(),
        }
        .expect("read in this type")
    }

    pub fn write(&mut self) -> &mut [L] {
        if let Memory::Shared(flex) = &self.memory {
            // One copy; Burn's own copy of shared memory is copied again where the allocator's alignment is too small.
            let values: Vec<L> = self.read().par_iter().copied().collect();
            let shape = flex.layout().shape().clone();
            self.memory = Memory::Own(TensorData::new(values, shape));
        }
        match &mut self.memory {
            Memory::Own(data) => data.as_mut_slice().expect("read in this type"),
            #[cfg(feature = "tch")]
            Memory::Libtorch(dense) => libtorch::write(dense),
            Memory::Shared(_) => unreachable!("just copied"),
        }
    }

    pub fn into_tensor(self, device: &Device, dtype: DType) -> Tensor<2> {
        match self.memory {
            Memory::Own(data) => Tensor::from_data(data, (device, dtype)),
            #[cfg(feature = "tch")]
            Memory::Libtorch(dense) => {
                #[allow(deprecated)] // Burn will drop libtorch one day
                Tensor::from_primitive::<burn::backend::LibTorch>(dense)
            }
            Memory::Shared(flex) => Tensor::from_primitive::<Flex>(flex),
        }
    }
}

/// The memory of a tensor that is not Flex's.
fn elsewhere<L: Element + Pod>(tensor: Tensor<2>) -> Memory {
    #[cfg(feature = "tch")]
    #[allow(deprecated)] // Burn will drop libtorch one day
    if let Ok(x) = tensor
        .clone()
        .try_into_primitive::<burn::backend::LibTorch>()
        && libtorch::is_dense::<L>(&x)
    {
        return Memory::Libtorch(x);
    }
    Memory::Own(tensor.into_data_as::<L>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_read_as_they_are_and_what_others_hold_stays() {
        let device = Device::flex();
        let all = || {
            let rows = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]];
            Tensor::<2>::from_floats(rows, &device)
        };
        let kept = all();
        for (tensor, expected, shared) in [
            (kept.clone(), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], true),
            (kept.clone().narrow(0, 1, 2), vec![2.0, 3.0, 4.0, 5.0], true),
            (
                kept.clone().transpose(),
                vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0],
                false,
            ),
            (all(), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], false),
            (all().narrow(0, 1, 2), vec![2.0, 3.0, 4.0, 5.0], false),
            (
                kept.clone().cast(DType::F64),
                vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
                false,
            ),
        ] {
            let shape = tensor.shape();
            let mut host = Host::<f32>::new(tensor);
            assert_eq!(matches!(host.memory, Memory::Shared(_)), shared);
            assert_eq!(host.read(), expected);
            host.write().fill(9.0);
            let written = host.into_tensor(&device, DType::F32).into_data();
            assert_eq!(*written.shape(), shape);
            assert_eq!(
                written.as_slice::<f32>().unwrap(),
                vec![9.0; expected.len()]
            );
        }
        assert_eq!(kept.into_data(), all().into_data());
    }

    #[cfg(feature = "tch")]
    #[test]
    fn libtorchs_memory_is_used_as_it_is_and_what_others_hold_stays() {
        let device = abkd_host::libtorch().unwrap();
        let rows = || Tensor::<2>::from_floats([[0.0, 1.0], [2.0, 3.0]], &device);
        let kept = rows();
        for (tensor, in_place) in [
            (kept.clone(), true),
            (rows(), true),
            (kept.clone().transpose(), false),
            (kept.clone().cast(DType::BF16), false),
        ] {
            let (before, dtype) = (tensor.clone().into_data_as::<f32>(), tensor.dtype());
            let mut host = Host::<f32>::new(tensor);
            assert_eq!(matches!(host.memory, Memory::Libtorch(_)), in_place);
            assert_eq!(host.read(), before.as_slice::<f32>().unwrap());
            host.write().fill(9.0);
            let written = host.into_tensor(&device, dtype);
            assert_eq!(written.dtype(), dtype);
            assert_eq!(
                written.into_data_as::<f32>().as_slice::<f32>().unwrap(),
                [9.0; 4]
            );
        }
        assert_eq!(kept.into_data(), rows().into_data());
    }
}
