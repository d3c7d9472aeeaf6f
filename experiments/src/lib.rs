//! The runner behind the `abkd` command: specs, plans, cells, results, comparisons, pictures.

pub mod audit;
pub mod backend;
pub mod compare;
pub mod estimate;
pub mod evidence;
pub mod fetch;
pub mod inputs;
pub mod listing;
pub mod message;
pub mod page;
pub mod plan;
pub mod plot;
pub mod preflight;
pub mod progress;
pub mod report;
pub mod results;
pub mod runner;
pub mod spec;
pub mod suggest;
pub mod task;
pub mod timing;
pub mod verify;
