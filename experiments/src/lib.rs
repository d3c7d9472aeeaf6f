//! The runner behind the `abkd` command: specs, plans, tasks, results, comparisons, pictures.

pub mod audit;
pub mod backend;
mod compare;
pub mod estimate;
mod evidence;
pub mod fetch;
pub mod inputs;
pub mod listing;
pub mod message;
pub mod own;
pub mod page;
pub mod plan;
pub mod plot;
pub mod preflight;
mod progress;
pub mod report;
pub mod results;
pub mod runner;
pub mod spec;
mod suggest;
pub mod task;
mod timing;
pub mod verify;
