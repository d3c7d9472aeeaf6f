//! The training step: losses, gradient norms, learning rates of a run.

use std::collections::BTreeMap;
use std::path::Path;

use abkd_models::checkpoint;
use abkd_models::verify::Check;
use burn::module::Module;
use burn::tensor::Device;
use serde::Deserialize;

use super::Golden;
use super::run::{Entry, GoldenBatch, GoldenRun, golden_loss};
use crate::Error;

#[derive(Deserialize)]
struct File {
    lr: f64,
    /// Id of the divergence; absent: alpha-beta with alpha 0.2 and beta 0.7.
    #[serde(default)]
    divergence: Option<String>,
    #[serde(default)]
    params: BTreeMap<String, f64>,
    #[serde(default)]
    fidelity: Option<String>,
    batches: Vec<GoldenBatch>,
    log: Vec<Entry>,
}

/// Repeats the training run of `dir/golden.json` from `dir/student` with `dir/teacher` and compares every step. The file's
/// `divergence`, `params` and `fidelity` give the loss; absent: the alpha-beta divergence with alpha 0.2 and beta 0.7.
///
/// # Errors
///
/// When the files cannot be read or do not belong together.
pub fn verify_trajectory(dir: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let path = dir.join("golden.json");
    let (mut golden, file) = Golden::read::<File>(&path)?;
    golden.ensure(file.divergence.is_some() || file.params.is_empty(), || {
        "`params` belong to a `divergence`, and there is none".into()
    })?;
    let id = file.divergence.as_deref().unwrap_or("ab");
    let loss = golden_loss(&golden, id, &file.params, file.fidelity.as_deref())?;
    let teacher = checkpoint::load(&dir.join("teacher"), device)?;
    let student = checkpoint::load(&dir.join("student"), device)?;
    let run = GoldenRun {
        batches: &file.batches,
        log: &file.log,
        lr: file.lr,
        loss,
        tolerance: 1e-3,
        relative: false,
    };
    run.repeat(&mut golden, &teacher, student.train())?;
    golden.finish()
}
