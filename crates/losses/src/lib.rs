//! Divergences between the next-token distributions of a teacher p and a student q, with their
//! gradients in the student's logits.
//!
//! Every divergence here is a sum `D = sum_v f(p_v, q_v)` over the vocabulary, in nats (AlphaNet and Renyi are built from
//! such sums). With `h = q df/dq` its gradient in the student's logits is `dD/dz_j = h_j - q_j sum_v h_v`. So a divergence is
//! two scalar formulas, and one row kernel serves all: [`row`], on slices in host memory.
//!
//! ```
//! use abkd_losses::{Divergence, Fidelity, Logits, row};
//!
//! // Two rows of three logits. The gradient takes the place of the student's.
//! let mut student = [0.0f32, 1.0, 2.0, 0.5, 0.5, 0.5];
//! let teacher = [0.0f32, 2.0, 1.0, 0.5, 0.5, 0.5];
//! let mut value = [0.0; 2];
//! let logits = Logits { student: &mut student[..], teacher: &teacher[..] };
//! row::divergence(&Divergence::alpha_beta(0.2, 0.7), Fidelity::Paper, logits, 3, &mut value)?;
//! assert!(value[0] > 0.0 && value[1] == 0.0);
//! assert!(student[1] < 0.0 && student[2] > 0.0 && student[3] == 0.0);
//! # Ok::<(), abkd_losses::Error>(())
//! ```
//!
//! Everything is computed in log space: values and gradients are finite for logits up to 1e4 in size (exponents saturate at
//! 60, which matters only for a negative alpha, beta or alpha + beta). An entry that is `-inf` in either model is left out of
//! the sums, as in the published code, and each softmax runs over its own model's other entries.
//!
//! The caller applies the mask over tokens and the mean over them: N rows of V logits in, N values out.
//!
//! # Features
//!
//! None by default: the row kernel, without a tensor library.
//!
//! - `burn`: functions on Burn's tensors, `value_and_grad` and the differentiable `divergence`. The row
//!   kernel serves tensors in host memory, `reference` computes the same with tensor operations on any backend, and serves
//!   the rest.
//! - `tch`: the row kernel serves libtorch's CPU tensors, too.
//! - `wgpu`, `cuda`: the row kernel on GPUs.

#[cfg(feature = "burn")]
mod choice;
#[cfg(feature = "cube")]
mod cube;
mod divergence;
mod divergences;
mod error;
mod fidelity;
#[cfg(feature = "burn")]
mod host;
#[cfg(feature = "burn")]
mod op;
mod pointwise;
#[cfg(feature = "burn")]
pub mod reference;
pub mod row;
#[cfg(feature = "burn")]
mod tensors;
#[cfg(feature = "burn")]
pub mod verify;
mod view;

#[cfg(feature = "burn")]
pub use choice::Choice;
pub use divergence::Divergence;
pub use error::{Error, Model};
pub use fidelity::Fidelity;
#[cfg(feature = "burn")]
pub use op::{cross_entropy, divergence};
#[cfg(feature = "burn")]
pub use tensors::{Rows, cross_entropy_value_and_grad, value, value_and_grad};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The logits of both models, by name: a divergence with teacher and student exchanged is another divergence.
#[derive(Clone, Copy, Debug)]
pub struct Logits<S, T = S> {
    /// Of the model that is trained, q.
    pub student: S,
    /// Of the model that is imitated, p.
    pub teacher: T,
}
