//! Logits in host memory, which are copied only to write over those that others hold too.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

/// Rows in f32, one after the other.
pub(crate) enum Host {
    /// Flex's own memory, where a tensor is not the only one that it belongs to.
    Shared(FloatTensor<Flex>),
    Own(TensorData),
}

/// The values of `tensor`.
pub(crate) fn host(tensor: Tensor<2>) -> Host {
    if let Ok(flex) = tensor.clone().try_into_primitive::<Flex>() {
        drop(tensor);
        if !flex.is_unique() && flex.as_slice::<f32>().is_some() {
            return Host::Shared(flex);
        }
        let tensor = Tensor::<2>::from_primitive::<Flex>(flex);
        return Host::Own(tensor.into_data_dtype(DType::F32));
    }
    Host::Own(tensor.into_data_dtype(DType::F32))
}

pub(crate) fn f32s(host: &Host) -> &[f32] {
    match host {
        Host::Shared(flex) => flex.as_slice(),
        Host::Own(data) => data.as_slice().ok(),
    }
    .expect("read as f32")
}

pub(crate) fn f32s_mut(host: &mut Host) -> &mut [f32] {
    if let Host::Shared(flex) = host {
        *host = Host::Own(copy(flex));
    }
    match host {
        Host::Own(data) => data.as_mut_slice().expect("read as f32"),
        Host::Shared(_) => unreachable!("just copied"),
    }
}

impl From<Host> for TensorData {
    fn from(host: Host) -> Self {
        match host {
            Host::Shared(flex) => copy(&flex),
            Host::Own(data) => data,
        }
    }
}

/// Once; Burn's own copy of shared memory is made again where the allocator aligns it too loosely.
fn copy(flex: &FloatTensor<Flex>) -> TensorData {
    let values = flex.as_slice::<f32>().expect("read as f32");
    let values: Vec<f32> = values.par_iter().copied().collect();
    TensorData::new(values, flex.layout().shape().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

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
            (kept.clone().slice([1..3]), vec![2.0, 3.0, 4.0, 5.0], true),
            (
                kept.clone().transpose(),
                vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0],
                false,
            ),
            (all(), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], false),
            (all().slice([1..3]), vec![2.0, 3.0, 4.0, 5.0], false),
            (
                kept.clone().cast(DType::F64),
                vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
                false,
            ),
        ] {
            let shape = tensor.shape();
            let mut host = host(tensor);
            assert_eq!(matches!(host, Host::Shared(_)), shared);
            assert_eq!(f32s(&host), expected);
            f32s_mut(&mut host).fill(9.0);
            let written = TensorData::from(host);
            assert_eq!(*written.shape(), shape);
            assert_eq!(
                written.as_slice::<f32>().unwrap(),
                vec![9.0; expected.len()]
            );
        }
        assert_eq!(kept.into_data(), all().into_data());
    }
}
