//! Adapter folders in the layout of Python's `peft`: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{LoraConfig, Start, adapter, attach};
use crate::checkpoint::{ADAPTER, Mapped, Stored, StoredAs, write_json, write_tensors};
use crate::keys::{self, Keys, Neutral};
use crate::params::{to_vec, transpose};
use crate::{Error, LanguageModel};

const WEIGHTS: &str = "adapter_model.safetensors";

/// Keys that leave the function unchanged: with any value, or with one.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("alora_invocation_tokens", Neutral::Empty),
    ("alpha_pattern", Neutral::Empty),
    ("arrow_config", Neutral::Unset),
    ("auto_mapping", Neutral::Any),
    // the caller chooses the base model
    ("base_model_name_or_path", Neutral::Any),
    ("bias", Neutral::Words(&["none"])),
    ("corda_config", Neutral::Unset),
    ("enable_lora", Neutral::Unset),
    ("ensure_weight_tying", Neutral::Any),
    // how the adapter was drawn
    ("eva_config", Neutral::Any),
    ("exclude_modules", Neutral::Empty),
    ("fan_in_fan_out", Neutral::False),
    ("inference_mode", Neutral::Any),
    // these keep the base's weights; adapters of the other kinds need the base as the method has changed it
    (
        "init_lora_weights",
        Neutral::FlagOrWords(&["gaussian", "eva", "orthogonal"]),
    ),
    ("kasa_config", Neutral::Unset),
    ("layer_replication", Neutral::Empty),
    ("layers_pattern", Neutral::Empty),
    ("layers_to_transform", Neutral::Empty),
    ("loftq_config", Neutral::Empty),
    ("lora_bias", Neutral::False),
    ("lora_ga_config", Neutral::Unset),
    ("megatron_config", Neutral::Unset),
    ("megatron_core", Neutral::Any),
    ("merge_weights", Neutral::Any),
    ("modules_to_save", Neutral::Empty),
    ("monteclora_config", Neutral::Unset),
    ("peft_version", Neutral::Any),
    ("qalora_group_size", Neutral::Any),
    ("rank_pattern", Neutral::Empty),
    ("revision", Neutral::Any),
    ("runtime_config", Neutral::Any),
    ("target_parameters", Neutral::Empty),
    ("task_type", Neutral::Words(&["CAUSAL_LM"])),
    ("trainable_token_indices", Neutral::Empty),
    ("use_bdlora", Neutral::Unset),
    ("use_dora", Neutral::False),
    ("use_qalora", Neutral::False),
    ("use_rslora", Neutral::False),
    ("velora_config", Neutral::Unset),
];

fn peft_name(path: &str, factor: char) -> String {
    format!("base_model.model.{path}.lora_{factor}.weight")
}

/// The adapters' tensors with PEFT's names, shapes and layout.
pub fn tensors(model: &LanguageModel) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut tensors = Vec::new();
    let mut model = model.clone();
    for (path, _, linear) in model.inner_mut().adaptable_mut() {
        if let Some(adapter) = &linear.adapter {
            for (factor, tensor) in [('A', &adapter.a), ('B', &adapter.b)] {
                let [rows, cols] = tensor.dims();
                // PEFT keeps [out, in], as PyTorch's Linear.
                let stored = transpose(&to_vec(tensor.val()), rows, cols);
                tensors.push((peft_name(&path, factor), vec![cols, rows], stored));
            }
        }
    }
    tensors
}

/// Writes the adapters of `model` in PEFT's layout into `dir` (created if absent). `base` is their base model: a folder or a
/// name on the Hub.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn save(
    model: &LanguageModel,
    config: &LoraConfig,
    base: &str,
    dir: &Path,
) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    write_tensors(&dir.join(WEIGHTS), tensors(model), StoredAs::F32)?;
    let peft = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_dora": false,
        "use_rslora": false,
        "inference_mode": true,
    });
    write_json(&dir.join(ADAPTER), &peft)
}

/// Reads an adapter folder onto `base`, which must be the model that it was trained on.
///
/// # Errors
///
/// Files that are missing or corrupt; a rank, shape or layer that does not fit `base`; a kind of adapter that is not
/// supported.
pub fn load(base: LanguageModel, dir: &Path) -> Result<LanguageModel, Error> {
    load_trainable(base, dir).map(|(model, _)| model)
}

/// As [`load`], with the adapter's configuration. `base` is frozen, the adapter's own `A` and `B` are trainable.
///
/// # Errors
///
/// As [`load`].
pub fn load_trainable(
    mut base: LanguageModel,
    dir: &Path,
) -> Result<(LanguageModel, LoraConfig), Error> {
    let path = dir.join(ADAPTER);
    let config = read(&path)?;
    let weights = dir.join(WEIGHTS);
    let file = Mapped::open(weights.clone())?;
    let mut stored = file.tensors()?;
    // Checked before adapters of the rank in the file are allocated.
    let mut factors = BTreeMap::new();
    for (layer, name, linear) in base.inner_mut().adaptable_mut() {
        if config.target_modules.iter().any(|target| target == name) {
            let [input, output] = linear.weight.dims();
            let a = factor(&mut stored, &weights, &layer, 'A', [config.r, input])?;
            let b = factor(&mut stored, &weights, &layer, 'B', [output, config.r])?;
            factors.insert(layer, (a, b));
        }
    }
    if !factors.is_empty() && !stored.is_empty() {
        return Err(Error::UnusedTensors {
            path: weights,
            names: stored.into_keys().collect(),
        });
    }
    let device = base.device();
    let mut model = attach(base, &config, 0).map_err(|error| match error {
        Error::Setting { key, value, reason } => Error::Unsupported {
            path,
            key: key.trim_start_matches("lora.").into(),
            value,
            hint: reason,
        },
        error => error,
    })?;
    for (layer, _, linear) in model.inner_mut().adaptable_mut() {
        if let Some((a, b)) = factors.remove(&layer) {
            linear.adapter = Some(adapter(a, b, linear.weight.dims(), &config, &device));
        }
    }
    Ok((model, config))
}

/// A stored factor, `[out, in]` as in PyTorch, in the layout of a product `[in, out]`.
fn factor(
    stored: &mut BTreeMap<String, Stored>,
    path: &Path,
    layer: &str,
    letter: char,
    shape: [usize; 2],
) -> Result<Vec<f32>, Error> {
    let name = peft_name(layer, letter);
    let Some(tensor) = stored.remove(&name) else {
        return Err(Error::MissingTensors {
            path: path.into(),
            names: vec![name],
        });
    };
    if tensor.shape() != shape {
        return Err(Error::AdapterShape {
            path: path.into(),
            name,
            expected: shape.to_vec(),
            found: tensor.shape().to_vec(),
        });
    }
    Ok(transpose(&tensor.values(&name)?, shape[0], shape[1]))
}

/// Reads an `adapter_config.json`: every key is honoured, known to be harmless, or refused.
fn read(path: &Path) -> Result<LoraConfig, Error> {
    let mut keys = Keys::new(path, keys::read(path)?)?;
    keys.word("peft_type", "", &["LORA"])?;
    let config = LoraConfig {
        r: keys.size("r", None)?,
        alpha: keys.number("lora_alpha", None, 1e-9..=1e9)?,
        dropout: keys.number("lora_dropout", Some(0.0), 0.0..=0.999)?,
        target_modules: targets(&mut keys)?,
        start: Start::Continue,
    };
    if config.r == 0 {
        return Err(keys.refuse("r", 0, "the rank must be 1 or more"));
    }
    keys.pass(NEUTRAL)?;
    keys.finish()?;
    Ok(config)
}

fn targets(keys: &mut Keys) -> Result<Vec<String>, Error> {
    const KEY: &str = "target_modules";
    let value = keys.take(KEY).unwrap_or_default();
    let names = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut targets: Vec<String> = Vec::new();
    for name in names.iter().filter_map(Value::as_str) {
        if !targets.iter().any(|target| target == name) {
            targets.push(name.into());
        }
    }
    if targets.is_empty() || !names.iter().all(Value::is_string) {
        return Err(keys.refuse(KEY, &value, "a list of the names of layers"));
    }
    Ok(targets)
}
