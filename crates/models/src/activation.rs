//! Activations of the two architectures: on Flex operations of ours, elsewhere Burn's.

use burn::tensor::{Tensor, activation};

use crate::ops::{self, Activation, DOUBLE_ROOT};

/// SwiGLU's product: `silu(gate) up`.
pub(crate) fn swiglu(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    if ops::serve(&gate.device()) {
        return ops::activation(gate, Activation::Silu) * up;
    }
    activation::silu(gate) * up
}

/// The tanh form of GELU (Hendrycks and Gimpel 2016), as GPT-2 uses it:
/// `x (1 + tanh u) / 2 = x sigmoid(2 u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`. The sigmoid is the
/// same number, and faster than the tanh.
pub(crate) fn gelu_new(x: Tensor<3>) -> Tensor<3> {
    if ops::serve(&x.device()) {
        return ops::activation(x, Activation::Gelu);
    }
    let inner = (x.clone().square() * (0.044715 * DOUBLE_ROOT) + DOUBLE_ROOT) * x.clone();
    x * activation::sigmoid(inner)
}
