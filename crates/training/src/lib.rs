//! One training loop for fine-tuning and distillation.
//!
//! A step computes the hidden states of all tokens, selects the rows that predict a response
//! token, and applies head and loss to those rows alone, a chunk at a time ([`head`]). A checkpoint
//! holds the whole state of a run, with the optimizer and the position in the data ([`state`]). All
//! randomness is a function of (seed, step), so a run that was killed and resumed ends with the same
//! bits as an uninterrupted one.

mod ahead;
pub mod cache;
mod error;
pub mod evaluate;
mod folders;
pub mod head;
mod kept;
mod log;
pub mod methods;
pub mod optim;
mod settings;
pub mod state;
pub mod step;
pub mod timing;
pub mod trainer;
pub mod verify;

pub use ahead::Prepared;
pub use error::Error;
pub use head::Objective;
pub use methods::Method;
pub use settings::{KeepBest, Schedule, Settings};
pub use trainer::{Event, Outcome, TrainRun, Validation, ValidationRecord, train};
