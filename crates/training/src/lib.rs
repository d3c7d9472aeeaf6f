//! One training loop for fine-tuning and distillation.
//!
//! A step goes from token ids to hidden states, from there to the rows that predict a response
//! token, and applies head and loss to those rows alone, a chunk at a time ([`head`]). Everything that
//! a run consists of, optimizer state and position in the data included, is in its checkpoint
//! ([`state`]); all randomness is a function of (seed, step), so a run that was killed and started
//! again ends with the same bits as one that was not.

mod ahead;
pub mod cache;
mod error;
pub mod evaluate;
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
