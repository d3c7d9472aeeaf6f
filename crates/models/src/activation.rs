//! Activations of the two architectures: our own operations where they are served, Burn's elsewhere.

use burn::tensor::{Tensor, activation};

use crate::layers::Projected;
use crate::ops::{self, DOUBLE_ROOT};

/// SwiGLU's product: `silu(gate) up`.
pub(crate) fn swiglu(gate_and_up: Projected<2>) -> Tensor<2> {
    match gate_and_up {
        Projected::Joint(both) => ops::swiglu_joint(both),
        Projected::Apart([gate, up]) if ops::serve_rows(&gate.device()) => ops::swiglu(gate, up),
        Projected::Apart([gate, up]) => activation::silu(gate) * up,
    }
}

/// The tanh form of GELU (Hendrycks and Gimpel 2016), as GPT-2 uses it:
/// `x (1 + tanh u) / 2 = x sigmoid(2 u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`. The sigmoid form is
/// equal, and faster than the tanh.
pub(crate) fn gelu_new(x: Tensor<2>) -> Tensor<2> {
    if ops::serve_rows(&x.device()) {
        return ops::gelu_new(x);
    }
    let inner = (x.clone().square() * (0.044715 * DOUBLE_ROOT) + DOUBLE_ROOT) * x.clone();
    x * activation::sigmoid(inner)
}
