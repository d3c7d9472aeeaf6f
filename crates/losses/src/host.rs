//! Logits in host memory. They are copied only for a write to memory that other tensors share.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Element, Tensor, TensorData};
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
            Err(_) => Memory::Own(tensor.into_data_as::<L>()),
        };
        Self {
            memory,
            read_as: PhantomData,
        }
    }

    pub fn read(&self) -> &[L] {
        match &self.memory {
            Memory::Shared(flex) => flex.as_slice(),
            Memory::Own(data) => data.as_slice().ok(),
        }
        .expect("read in this type")
    }

    pub fn write(&mut self) -> &mut [L] {
        self.own().as_mut_slice().expect("read in this type")
    }

    pub fn into_data(mut self) -> TensorData {
        std::mem::replace(self.own(), TensorData::new(Vec::<L>::new(), [0]))
    }

    fn own(&mut self) -> &mut TensorData {
        if let Memory::Shared(flex) = &self.memory {
            // One copy; Burn's own copy of shared memory is copied again where the allocator's alignment is too small.
            let values: Vec<L> = self.read().par_iter().copied().collect();
            let shape = flex.layout().shape().clone();
            self.memory = Memory::Own(TensorData::new(values, shape));
        }
        match &mut self.memory {
            Memory::Own(data) => data,
            Memory::Shared(_) => unreachable!("just copied"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

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
            let written = host.into_data();
            assert_eq!(*written.shape(), shape);
            assert_eq!(
                written.as_slice::<f32>().unwrap(),
                vec![9.0; expected.len()]
            );
        }
        assert_eq!(kept.into_data(), all().into_data());
    }
}
