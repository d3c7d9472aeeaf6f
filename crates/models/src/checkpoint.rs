//! Hugging Face checkpoint folders: `config.json` and `model.safetensors`, or several files with
//! `model.safetensors.index.json`. Read as f32, f16 or bf16; written as f32 or bf16.

mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use abkd_host::files;
use burn::tensor::Device;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};

use crate::architecture::Facts;
use crate::{Error, LanguageModel, ModelConfig, params};

use weights::Weights;
pub use weights::weight_files;
pub(crate) use weights::{Mapped, Stored};

/// The file that marks a folder as an adapter's.
pub(crate) const ADAPTER: &str = "adapter_config.json";
/// The head, where it is not tied to the token embedding.
const HEAD: &str = "lm_head.weight";

/// Reads the checkpoint in the folder `dir`.
///
/// # Errors
///
/// When a file is missing, truncated or corrupt; when a tensor is missing, has another shape than
/// `config.json` says, or has no place in the model.
pub fn load(dir: &Path, device: &Device) -> Result<LanguageModel, Error> {
    load_tokens(dir, usize::MAX, device)
}

/// [`load`] with the first `tokens` rows of token embedding and head, if there are more. Some checkpoints are padded: they have
/// more rows than their tokenizer has tokens.
///
/// # Errors
///
/// As [`load`].
pub fn load_tokens(dir: &Path, tokens: usize, device: &Device) -> Result<LanguageModel, Error> {
    if dir.join(ADAPTER).exists() {
        return Err(Error::Unsupported {
            path: dir.into(),
            key: ADAPTER.into(),
            value: "in a checkpoint's folder".into(),
            hint: "`transformers` reads such a folder as an adapter on another model; give that model's folder, or move the adapter's files elsewhere"
                .into(),
        });
    }
    let config = ModelConfig::read(&dir.join("config.json"))?;
    let weights = Weights::open(dir)?;
    let tensors = checked(named(weights.tensors()?, &config), dir, &config)?;
    let embedding = config.inner().facts().embedding;
    let cut = config.with_vocabulary(tokens);
    params::replace(cut.zeros(device), |name, shape| {
        let tensor = tensors.get(name).expect("checked against the same names");
        let mut values = tensor.values(name)?;
        if name == embedding || name == HEAD {
            values.truncate(shape.iter().product());
        }
        Ok(Some(values))
    })
}

/// The tensors under the names that `transformers` writes today. Checkpoints without a head, such as the first of GPT-2, lack
/// the prefix.
fn named<'a>(
    tensors: BTreeMap<String, Stored<'a>>,
    config: &ModelConfig,
) -> BTreeMap<String, Stored<'a>> {
    let prefix = config.inner().facts().prefix;
    if tensors.keys().any(|name| name.starts_with(prefix)) {
        return tensors;
    }
    let full = |name: String| {
        if name == HEAD {
            name
        } else {
            format!("{prefix}{name}")
        }
    };
    tensors
        .into_iter()
        .map(|(name, tensor)| (full(name), tensor))
        .collect()
}

/// The model's tensors and no others, each with the shape that `config.json` says. They are checked before the model is
/// allocated, because the sizes of a damaged file may exceed the memory.
fn checked<'a>(
    mut tensors: BTreeMap<String, Stored<'a>>,
    dir: &Path,
    config: &ModelConfig,
) -> Result<BTreeMap<String, Stored<'a>>, Error> {
    let Facts {
        tied, embedding, ..
    } = config.inner().facts();
    if tied && let Some(head) = tensors.remove(HEAD) {
        match tensors.get(embedding) {
            None => {
                tensors.insert(embedding.into(), head);
            }
            Some(known) if head.equals(HEAD, known, embedding)? => {}
            Some(_) => {
                return Err(Error::Differs {
                    path: head.path.into(),
                    name: HEAD.into(),
                    other: format!("`{embedding}`"),
                    hint: "set `tie_word_embeddings` to false in config.json if the head was trained apart".into(),
                });
            }
        }
    }
    let (mut used, mut missing) = (BTreeMap::new(), Vec::new());
    for (name, shape) in config.inner().tensors() {
        let Some(tensor) = tensors.remove(&name) else {
            missing.push(name);
            continue;
        };
        if tensor.shape() != shape {
            return Err(Error::Shape {
                path: tensor.path.into(),
                name,
                expected: shape,
                found: tensor.shape().to_vec(),
            });
        }
        used.insert(name, tensor);
    }
    if !missing.is_empty() {
        return Err(Error::MissingTensors {
            path: dir.into(),
            names: missing,
        });
    }
    tensors.retain(|name, _| !config.inner().is_buffer(name));
    if !tensors.is_empty() {
        return Err(Error::UnusedTensors {
            path: dir.into(),
            names: tensors.into_keys().collect(),
        });
    }
    Ok(used)
}

/// How [`save`] stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// 4 bytes, exact.
    F32,
    /// 2 bytes, rounded to nearest.
    Bf16,
}

/// Writes `model.safetensors`, `config.json` and `generation_config.json` into the folder `dir` (created if absent) such that
/// `transformers` loads the same function, and ends texts at the same tokens. Each file appears under its name only when
/// complete.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn save(model: &LanguageModel, dir: &Path, stored: StoredAs) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let path = dir.join("model.safetensors");
    write_tensors(&path, params::values(model), stored)?;

    let config = model.config();
    let mut json = serde_json::to_value(&config).map_err(Error::json(dir))?;
    json["architectures"] = serde_json::json!([config.inner().facts().class]);
    json["dtype"] = match stored {
        StoredAs::F32 => "float32",
        StoredAs::Bf16 => "bfloat16",
    }
    .into();
    write_json(&dir.join("config.json"), &json)?;

    let mut json = serde_json::json!({});
    if let Some(bos) = config.inner().facts().bos {
        json["bos_token_id"] = bos.into();
    }
    match &config.eos_ids()[..] {
        [] => {}
        [eos] => json["eos_token_id"] = (*eos).into(),
        ids => json["eos_token_id"] = ids.into(),
    }
    // Written even if it is empty, so that no file of an earlier model stays.
    write_json(&dir.join("generation_config.json"), &json)
}

/// Atomic write of a safetensors file.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    stored: StoredAs,
) -> Result<(), Error> {
    let bytes_of = |values: Vec<f32>| -> Vec<u8> {
        let values = values.iter();
        match stored {
            StoredAs::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            StoredAs::Bf16 => values
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect(),
        }
    };
    let dtype = match stored {
        StoredAs::F32 => Dtype::F32,
        StoredAs::Bf16 => Dtype::BF16,
    };
    let tensors = tensors.into_iter();
    let tensors: Vec<_> = tensors
        .map(|(name, shape, values)| (name, shape, bytes_of(values)))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(dtype, shape.clone(), bytes).expect("length follows from shape");
        (name.as_str(), view)
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let serialized = safetensors::serialize(views, metadata).map_err(|e| Error::Corrupt {
        path: path.into(),
        reason: e.to_string(),
    })?;
    files::write(path, &serialized).map_err(Error::io(path))
}

/// Atomic write of a JSON file.
pub(crate) fn write_json(path: &Path, json: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(json).map_err(Error::json(path))? + "\n";
    files::write(path, text.as_bytes()).map_err(Error::io(path))
}
