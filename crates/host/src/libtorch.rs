//! libtorch's tensors on the CPU as slices: the one place that reads and writes their memory.
#![allow(deprecated)] // Burn will drop libtorch one day

use burn::backend::tensor::FloatTensor;
use burn::backend::{LibTorch, TensorMetadata};
use burn::tensor::Element;

/// A tensor of libtorch.
pub type Primitive = FloatTensor<LibTorch>;

/// Whether the values lie in host memory, row after row, as numbers of this type.
pub fn is_dense<E: Element>(x: &Primitive) -> bool {
    !x.tensor.device().is_cuda() && x.tensor.is_contiguous() && x.dtype() == E::dtype()
}

/// The same values, row after row.
pub fn dense(x: Primitive) -> Primitive {
    if x.tensor.is_contiguous() {
        return x;
    }
    Primitive::new(x.tensor.contiguous())
}

/// The values.
///
/// # Panics
///
/// Where the tensor is not [dense](is_dense).
pub fn read<E: Element>(x: &Primitive) -> &[E] {
    assert!(is_dense::<E>(x));
    // SAFETY: as many numbers of this type lie there, as just checked, and live as long as `x`. libtorch writes only to
    // tensors that nothing else holds.
    unsafe { std::slice::from_raw_parts(x.tensor.data_ptr().cast(), x.tensor.numel()) }
}

/// The values, to be changed: of a copy, row after row, where another tensor uses the memory.
///
/// # Panics
///
/// Where the values are numbers of another type, or not in host memory.
pub fn write<E: Element>(x: &mut Primitive) -> &mut [E] {
    if !(x.tensor.is_contiguous() && x.can_mut()) {
        *x = Primitive::new(x.tensor.contiguous().copy());
    }
    assert!(is_dense::<E>(x));
    // SAFETY: as for `read`; any bits are a number, and no other tensor uses the memory.
    unsafe { std::slice::from_raw_parts_mut(x.tensor.data_ptr().cast(), x.tensor.numel()) }
}
