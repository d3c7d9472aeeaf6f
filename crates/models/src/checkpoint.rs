//! Hugging Face checkpoint folders: `config.json` and `model.safetensors`, or several files with
//! `model.safetensors.index.json`. Read as f32, f16 or bf16; written as f32 or bf16.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, LanguageModel, ModelConfig, params};

/// Reads the checkpoint in the folder `dir`.
///
/// # Errors
///
/// When a file is missing, truncated or corrupt; when a tensor is missing, has another shape than
/// `config.json` says, or has no place in the model.
pub fn load(dir: &Path, device: &Device) -> Result<LanguageModel, Error> {
    let config = ModelConfig::read(&dir.join("config.json"))?;
    let files = weight_files(dir)?;
    let maps: Vec<(PathBuf, Mmap)> = files
        .into_iter()
        .map(|path| {
            let file = File::open(&path).map_err(Error::io(&path))?;
            // SAFETY: the file is only read; a program that changes it meanwhile gets what it asks for.
            let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
            Ok((path, map))
        })
        .collect::<Result<_, Error>>()?;
    let mut tensors: BTreeMap<String, (&Path, TensorView)> = BTreeMap::new();
    for (path, map) in &maps {
        let file = SafeTensors::deserialize(map).map_err(|e| Error::Corrupt {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        tensors.extend(
            file.tensors()
                .into_iter()
                .map(|(name, view)| (name, (path.as_path(), view))),
        );
    }
    // The first GPT-2 checkpoints lack the prefix that `transformers` writes today.
    if matches!(config, ModelConfig::Gpt2(_))
        && !tensors.keys().any(|n| n.starts_with("transformer."))
    {
        tensors = tensors
            .into_iter()
            .map(|(n, v)| {
                (
                    if n == "lm_head.weight" {
                        n
                    } else {
                        format!("transformer.{n}")
                    },
                    v,
                )
            })
            .collect();
    }

    let mut missing = Vec::new();
    let mut used = BTreeSet::new();
    let model = params::replace(config.zeros(device), |name, shape| {
        let Some((path, view)) = tensors.get(name) else {
            missing.push(name.to_owned());
            return Ok(None);
        };
        if view.shape() != shape {
            return Err(Error::Shape {
                path: path.to_path_buf(),
                name: name.into(),
                expected: shape.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        used.insert(name.to_owned());
        to_f32(view, path, name).map(Some)
    })?;
    if !missing.is_empty() {
        return Err(Error::MissingTensors {
            path: dir.into(),
            names: missing,
        });
    }
    let unused: Vec<String> = tensors
        .into_keys()
        .filter(|n| !used.contains(n) && !ignorable(n, &config))
        .collect();
    if !unused.is_empty() {
        return Err(Error::UnusedTensors {
            path: dir.into(),
            names: unused,
        });
    }
    Ok(model)
}

/// How [`save`] stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// 4 bytes, exact.
    F32,
    /// 2 bytes, rounded to nearest.
    Bf16,
}

/// Writes `config.json` and `model.safetensors` into the folder `dir` (made if absent) such that
/// `transformers` loads them. The weights appear under their name only when complete.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn save(model: &LanguageModel, dir: &Path, stored: StoredAs) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let values = params::values(model);
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = values
        .into_iter()
        .map(|(name, shape, data)| {
            let bytes = match stored {
                StoredAs::F32 => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
                StoredAs::Bf16 => data
                    .iter()
                    .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
            };
            (name, shape, bytes)
        })
        .collect();
    let dtype = match stored {
        StoredAs::F32 => Dtype::F32,
        StoredAs::Bf16 => Dtype::BF16,
    };
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(dtype, shape.clone(), bytes).expect("length follows from shape");
        (name.as_str(), view)
    });
    let path = dir.join("model.safetensors");
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let serialized = safetensors::serialize(views, metadata).map_err(|e| Error::Corrupt {
        path: path.clone(),
        reason: e.to_string(),
    })?;
    write_atomically(&path, &serialized)?;

    let config = model.config();
    let path = dir.join("config.json");
    let mut json = serde_json::to_value(&config).map_err(Error::json(&path))?;
    json["architectures"] = serde_json::json!([config.architecture()]);
    json["dtype"] = match stored {
        StoredAs::F32 => "float32",
        StoredAs::Bf16 => "bfloat16",
    }
    .into();
    json["tie_word_embeddings"] = config.tied().into();
    let text = serde_json::to_string_pretty(&json).map_err(Error::json(&path))? + "\n";
    write_atomically(&path, text.as_bytes())
}

pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).map_err(Error::io(&partial))?;
    std::fs::rename(&partial, path).map_err(Error::io(path))
}

/// The weight files of a checkpoint folder.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(Error::json(&index))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Buffers that older versions of `transformers` stored, and a tied head stored twice.
fn ignorable(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || name.ends_with("rotary_emb.inv_freq")
        || (name == "lm_head.weight" && config.tied())
}

pub(crate) fn to_f32(view: &TensorView, path: &Path, name: &str) -> Result<Vec<f32>, Error> {
    let bytes = view.data();
    let halves = || bytes.as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F32 => Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()),
        Dtype::F16 => Ok(halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Ok(halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        other => Err(Error::Unsupported {
            path: path.into(),
            key: name.into(),
            value: format!("{other:?}"),
            hint: "f32, f16 and bf16 are read".into(),
        }),
    }
}
