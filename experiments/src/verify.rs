//! `abkd verify`: compares this build with golden files of another implementation.

use std::path::Path;

use abkd_models::verify::Check;
use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::ValueEnum;

/// What to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// Values and gradients of the divergences (losses.json)
    Losses,
    /// ROUGE-L and exact match (rouge.json)
    Rouge,
    /// Logits and greedy tokens of a checkpoint (a folder with golden.json)
    Model,
    /// Training steps (a folder with golden.json, student/ and teacher/)
    Trajectory,
    /// MiniLLM's rewards, weights, whitening, losses and gradients (minillm.json)
    Minillm,
    /// Generalized Jensen divergence of GKD (gjsd.json)
    Gjsd,
    /// Learning rates, DistiLLM's threshold, the source of each DistiLLM update (data, fresh answers or buffer), replay
    /// buffer (schedules.json, distillm_schedule.json, replay_buffer.json)
    Schedule,
    /// Continued training with an adapter (lora_continue.json, with the folder lora_continue/ beside it)
    Adapter,
}

/// Compares every entry; `tolerance` replaces the built-in tolerances.
///
/// # Errors
///
/// Files that cannot be read or have a wrong format.
pub fn verify(
    subject: Subject,
    path: &Path,
    tolerance: Option<f64>,
    device: &Device,
) -> Result<Vec<Check>> {
    let mut checks = match subject {
        Subject::Losses => {
            let entries = abkd_losses::verify::verify_losses_on(path, device)?;
            entries
                .into_iter()
                .flat_map(|c| {
                    [("value", c.value_error), ("gradient", c.grad_error)].map(|(what, error)| {
                        Check {
                            name: format!("{}: {what}", c.name),
                            error,
                            tolerance: 1e-5,
                        }
                    })
                })
                .collect()
        }
        Subject::Rouge => abkd_metrics::verify::verify_rouge(path)?
            .into_iter()
            .map(|(name, error)| Check {
                name,
                error,
                tolerance: 1e-9,
            })
            .collect(),
        Subject::Model => abkd_models::verify::verify_model(path, device)?,
        Subject::Trajectory => abkd_training::verify::verify_trajectory(path, device)?,
        Subject::Minillm => abkd_training::verify::verify_minillm(path, device)?,
        Subject::Gjsd => abkd_training::verify::verify_gjsd(path, device)?,
        Subject::Schedule => abkd_training::verify::verify_schedule(path)?,
        Subject::Adapter => abkd_training::verify::verify_adapter(path, device)?,
    };
    if let Some(tolerance) = tolerance {
        for check in &mut checks {
            check.tolerance = tolerance;
        }
    }
    ensure!(
        !checks.is_empty(),
        "{}: there is nothing to check in it",
        path.display()
    );
    Ok(checks)
}
