//! Checks the training step against a golden trajectory: losses, gradient norms, learning rates.

use std::path::Path;

use abkd_data::Batch;
use abkd_losses::{Divergence, Fidelity};
use abkd_models::checkpoint;
use abkd_models::verify::Check;
use burn::module::Module;
use burn::tensor::Device;
use serde::Deserialize;

use crate::head::Objective;
use crate::step::{self, Teacher, Term, Update};
use crate::timing::Phases;
use crate::{Error, optim};

#[derive(Deserialize)]
struct Golden {
    lr: f64,
    batches: Vec<GoldenBatch>,
    log: Vec<Entry>,
}

#[derive(Deserialize)]
struct GoldenBatch {
    input_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<i64>>,
}

#[derive(Deserialize)]
struct Entry {
    loss: f64,
    grad_norm: f64,
    lr: f64,
}

/// Repeats the training run of `dir/golden.json` from `dir/student` with `dir/teacher`
/// (alpha-beta divergence, alpha 0.2, beta 0.7) and compares every step.
///
/// # Errors
///
/// When the files cannot be read or do not belong together.
pub fn verify_trajectory(dir: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let path = dir.join("golden.json");
    let text = std::fs::read(&path).map_err(Error::io(&path))?;
    let golden: Golden = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e))?;
    let teacher = checkpoint::load(&dir.join("teacher"), device)?;
    let mut student = checkpoint::load(&dir.join("student"), device)?.train();
    let mut optimizer = optim::adamw(&student, 0.01, 0.999);
    let objective = || Objective::Distill {
        divergence: Divergence::AlphaBeta {
            alpha: 0.2,
            beta: 0.7,
        },
        fidelity: Fidelity::Paper,
        kd_ratio: 1.0,
    };
    let mut checks = Vec::new();
    for (i, (batch, entry)) in golden.batches.iter().zip(&golden.log).enumerate() {
        let rate = optim::cosine(i, golden.log.len(), golden.lr, 1e-7);
        let report;
        (student, report) = step::update(
            student,
            &mut optimizer,
            Some(Teacher {
                model: &teacher,
                cache: None,
            }),
            &[Term {
                batch: to_batch(batch),
                objective: objective(),
                weight: 1.0,
                from_data: false,
            }],
            &Update {
                learning_rate: rate,
                max_grad_norm: 1.0,
                micro_batch_size: None,
                parallel_micro_batches: 1,
                gradient_checkpointing: false,
                seed: i as u64,
                step: i,
            },
            Phases::default(),
        )?;
        let mut compare = |what: &str, ours: f64, theirs: f64, tolerance: f64| {
            let error = (ours - theirs).abs();
            checks.push(Check {
                name: format!("step {}: {what}", i + 1),
                error,
                tolerance,
            });
        };
        compare("loss", report.loss, entry.loss, 1e-3);
        compare("gradient norm", report.grad_norm, entry.grad_norm, 1e-3);
        compare("learning rate", rate, entry.lr, 1e-8);
    }
    Ok(checks)
}

fn to_batch(golden: &GoldenBatch) -> Batch {
    let width = golden.input_ids[0].len();
    let targets = golden
        .labels
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, label)| **label >= 0)
        .map(|(at, label)| (at, *label as u32))
        .collect();
    Batch {
        examples: (0..golden.input_ids.len()).collect(),
        input_ids: golden.input_ids.concat(),
        lengths: vec![width; golden.input_ids.len()],
        targets,
    }
}
