//! Continued training of an existing adapter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use abkd_models::lora::{self, LoraConfig, Start};
use abkd_models::verify::Check;
use abkd_models::{checkpoint, params};
use burn::module::Module;
use burn::tensor::Device;
use serde::Deserialize;

use super::run::{Entry, GoldenBatch, GoldenRun, golden_loss};
use super::{Golden, distance, widened};
use crate::Error;

#[derive(Deserialize)]
struct File {
    lr: f64,
    loss: GoldenLoss,
    lora: GoldenLora,
    batches: Vec<GoldenBatch>,
    log: Vec<Entry>,
    adapter_after: BTreeMap<String, GoldenTensor>,
}

#[derive(Deserialize)]
struct GoldenLoss {
    name: String,
    #[serde(flatten)]
    params: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct GoldenLora {
    r: usize,
    alpha: f64,
    dropout: f64,
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct GoldenTensor {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// Continues training the adapter of `lora_continue.json` and compares losses, gradient norms and the final adapter.
/// `path` is the file or the folder beside it, which holds `base`, `adapter` and `teacher`.
///
/// # Errors
///
/// When the files cannot be read or do not belong together.
pub fn verify_adapter(path: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let (dir, path): (PathBuf, PathBuf) = if path.is_dir() {
        (path.into(), path.with_extension("json"))
    } else {
        (path.with_extension(""), path.into())
    };
    let (mut golden, file) = Golden::read::<File>(&path)?;
    let loss = golden_loss(&golden, &file.loss.name, &file.loss.params, None)?;
    let config = LoraConfig {
        r: file.lora.r,
        alpha: file.lora.alpha,
        dropout: file.lora.dropout,
        target_modules: file.lora.targets,
        start: Start::Continue,
    };
    let teacher = checkpoint::load(&dir.join("teacher"), device)?;
    let base = checkpoint::load(&dir.join("base"), device)?;
    let (student, _) = lora::load_trainable(base, &dir.join("adapter"))?;
    let frozen = |model: &abkd_models::LanguageModel| {
        let all = params::values(model).into_iter();
        all.filter(|(name, ..)| !name.contains("adapter"))
            .collect::<Vec<_>>()
    };
    let before = frozen(&student);
    let adapted = lora::adapt(student, &config, 0).map_err(Error::from);
    let student = golden.computed("lora", adapted)?;
    let run = GoldenRun {
        batches: &file.batches,
        log: &file.log,
        lr: file.lr,
        loss,
        tolerance: 1e-5,
        relative: true,
    };
    let student = run.repeat(&mut golden, &teacher, student.train())?.valid();
    golden.equal("the frozen base".into(), &frozen(&student), &before)?;
    let ours = lora::tensors(&student);
    golden.same_length("adapter_after", ours.len(), file.adapter_after.len())?;
    for (name, shape, values) in ours {
        let theirs = file.adapter_after.get(&name);
        let Some(theirs) = theirs.filter(|t| t.shape == shape && t.values.len() == values.len())
        else {
            let reason = format!("adapter_after has no `{name}` of shape {shape:?}");
            return Err(Error::checkpoint(&path, reason));
        };
        let error = distance(&widened(&values), &theirs.values);
        golden.check(name, error, 1e-5);
    }
    golden.finish()
}
