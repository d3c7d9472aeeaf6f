//! The `config.json` of a checkpoint: every key is honoured, known to be harmless, or refused.

mod gpt2;
mod known;
mod llama;

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::gpt2::{Gpt2, Gpt2Config};
use crate::keys::{self, Keys};
use crate::llama::{Llama, LlamaConfig};
use crate::{Error, LanguageModel};

/// The `config.json` of a Hugging Face checkpoint, told apart by its `model_type`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum ModelConfig {
    /// `"model_type": "gpt2"`
    Gpt2(Gpt2Config),
    /// `"model_type": "llama"`
    Llama(LlamaConfig),
}

/// Largest sizes that are built. They are several times those of any model, and small enough that no product of them
/// overflows.
struct Most {
    vocabulary: usize,
    positions: usize,
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    /// Width of a head.
    head: usize,
    parameters: usize,
}

const MOST: Most = Most {
    vocabulary: 1 << 24,
    positions: 1 << 24,
    width: 1 << 17,
    inner: 1 << 20,
    layers: 1 << 12,
    heads: 1 << 12,
    head: 1 << 14,
    parameters: 1 << 41,
};

/// Numbers of parameters by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Token and position embeddings.
    pub embedding: usize,
    /// One layer.
    pub layer: usize,
    /// Number of layers.
    pub layers: usize,
    /// Final norm.
    pub norm: usize,
    /// Head, where it is not the token embedding.
    pub head: usize,
}

impl Parameters {
    /// All.
    pub fn total(&self) -> usize {
        let layers = self.layer.saturating_mul(self.layers);
        (self.embedding + self.norm + self.head).saturating_add(layers)
    }
}

impl<'de> Deserialize<'de> for ModelConfig {
    /// From the keys of a `config.json`, under the same rules as a file.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_keys(Path::new("config.json"), value).map_err(|error| {
            // Whoever has the text knows the file.
            serde::de::Error::custom(error.without_path())
        })
    }
}

impl ModelConfig {
    /// Reads a `config.json`, and which tokens end a text from the `generation_config.json` beside it, where there is one.
    ///
    /// # Errors
    ///
    /// When a file is missing or no such configuration; when a key asks for something that is not built, or is not known.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut config = Self::from_keys(path, keys::read(path)?)?;
        let generation = path.with_file_name("generation_config.json");
        if path.ends_with("config.json") && generation.symlink_metadata().is_ok() {
            let mut keys = Keys::new(&generation, keys::read(&generation)?)?;
            let ids = keys.ids("eos_token_id", config.vocab_size())?;
            match &mut config {
                Self::Gpt2(c) => c.generation_eos = ids,
                Self::Llama(c) => c.generation_eos = ids,
            }
        }
        Ok(config)
    }

    fn from_keys(path: &Path, value: Value) -> Result<Self, Error> {
        let mut keys = Keys::new(path, value)?;
        let config = match keys.take("model_type") {
            Some(Value::String(name)) if name == "gpt2" => {
                Gpt2Config::take(&mut keys).map(Self::Gpt2)?
            }
            Some(Value::String(name)) if name == "llama" => {
                LlamaConfig::take(&mut keys).map(Self::Llama)?
            }
            other => {
                let value = other.map_or("absent".into(), |value| value.to_string());
                return Err(keys.refuse("model_type", value, "gpt2 and llama are built"));
            }
        };
        config.check(path)?;
        keys.finish()?;
        Ok(config)
    }

    /// The keys that matter of a `config.json` of this `model_type`; none where it is not built.
    pub fn keys(model_type: &str) -> &'static [&'static str] {
        match model_type {
            "gpt2" => Gpt2Config::KEYS,
            "llama" => LlamaConfig::KEYS,
            _ => &[],
        }
    }

    /// Checks that the configuration is one that is built and consistent; `path` is for the message. What was read has been
    /// checked.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] names the key.
    pub fn check(&self, path: &Path) -> Result<(), Error> {
        let refuse = |key: &str, value: String, hint: String| {
            Err(Error::Unsupported {
                path: path.into(),
                key: key.into(),
                value,
                hint,
            })
        };
        let sizes = match self {
            Self::Gpt2(c) => c.sizes(),
            Self::Llama(c) => c.sizes(),
        };
        // First, since some divide others below, and products of larger ones overflow.
        for (key, size, most) in sizes {
            if let Some(size) = size.filter(|size| !(1..=most).contains(size)) {
                let hint =
                    format!("1 or more, as in the checkpoint's own file, and at most {most}");
                return refuse(key, size.to_string(), hint);
            }
        }
        let conflict = match self {
            Self::Gpt2(c) => c.conflict(),
            Self::Llama(c) => c.conflict(),
        };
        if let Some((key, value, hint)) = conflict {
            return refuse(key, value, hint);
        }
        let total = self.parameters().total();
        if total > MOST.parameters {
            let hint = format!("at most {} are built", MOST.parameters);
            return refuse("the number of parameters", total.to_string(), hint);
        }
        Ok(())
    }

    /// A model of this shape with all weights zero (norms the identity).
    pub fn zeros(&self, device: &Device) -> LanguageModel {
        match self {
            Self::Gpt2(c) => LanguageModel::Gpt2(Gpt2::zeros(c, device)),
            Self::Llama(c) => LanguageModel::Llama(Llama::zeros(c, device)),
        }
    }

    /// A model with freshly drawn weights: normal with standard deviation `initializer_range`, the
    /// maps that feed a residual sum scaled by `1 / sqrt(2 layers)` (GPT-2's rule), biases zero,
    /// norms the identity. The numbers depend on `seed` and the tensor's name alone.
    pub fn init(&self, seed: u64, device: &Device) -> LanguageModel {
        let std = match self {
            Self::Gpt2(c) => c.initializer_range,
            Self::Llama(c) => c.initializer_range,
        };
        crate::params::draw(self.zeros(device), seed, std)
    }

    /// Numbers of parameters by part, without building the model.
    pub fn parameters(&self) -> Parameters {
        match self {
            Self::Gpt2(c) => {
                let (d, inner) = (c.n_embd, c.n_inner.unwrap_or(4 * c.n_embd));
                let attention = 4 * d * d + 4 * d;
                let mlp = 2 * d * inner + inner + d;
                Parameters {
                    embedding: (c.vocab_size + c.n_positions) * d,
                    layer: attention + mlp + 4 * d,
                    layers: c.n_layer,
                    norm: 2 * d,
                    head: if c.tie_word_embeddings {
                        0
                    } else {
                        c.vocab_size * d
                    },
                }
            }
            Self::Llama(c) => {
                let d = c.hidden_size;
                let kv = c.num_key_value_heads.unwrap_or(c.num_attention_heads);
                let dh = c.head_dim.unwrap_or(d / c.num_attention_heads);
                let attention = 2 * d * dh * (c.num_attention_heads + kv);
                let table = c.vocab_size * d;
                Parameters {
                    embedding: table,
                    layer: attention + 3 * d * c.intermediate_size + 2 * d,
                    layers: c.num_hidden_layers,
                    norm: d,
                    head: if c.tie_word_embeddings { 0 } else { table },
                }
            }
        }
    }

    /// The same shape with another number of layers.
    pub fn with_layers(mut self, layers: usize) -> Self {
        match &mut self {
            Self::Gpt2(c) => c.n_layer = layers,
            Self::Llama(c) => c.num_hidden_layers = layers,
        }
        self
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        match self {
            Self::Gpt2(c) => c.n_head,
            Self::Llama(c) => c.num_attention_heads,
        }
    }

    /// V: rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Gpt2(c) => c.vocab_size,
            Self::Llama(c) => c.vocab_size,
        }
    }

    /// Longest sequence that the model takes.
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Gpt2(c) => c.n_positions,
            Self::Llama(c) => c.max_position_embeddings,
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        match self {
            Self::Gpt2(c) => c.n_layer,
            Self::Llama(c) => c.num_hidden_layers,
        }
    }

    /// d: width of a hidden state.
    pub fn width(&self) -> usize {
        match self {
            Self::Gpt2(c) => c.n_embd,
            Self::Llama(c) => c.hidden_size,
        }
    }

    /// The tokens that end a text, where the folder names some: those of `generation_config.json`, which `transformers`
    /// generates by, or else those of `config.json`. The first of `config.json` comes first where both name it.
    pub fn eos_ids(&self) -> Vec<u32> {
        let (own, generation) = match self {
            Self::Gpt2(c) => (&c.eos_token_id, &c.generation_eos),
            Self::Llama(c) => (&c.eos_token_id, &c.generation_eos),
        };
        if generation.is_empty() {
            return own.clone();
        }
        let mut ids = generation.clone();
        if let Some(place) = ids.iter().position(|id| own.first() == Some(id)) {
            ids[..=place].rotate_right(1);
        }
        ids
    }

    /// The first of [`eos_ids`](Self::eos_ids): the one that ends the texts of training.
    pub fn eos(&self) -> Option<u32> {
        self.eos_ids().first().copied()
    }

    /// The token that begins a text, where the folder names one.
    pub(crate) fn bos(&self) -> Option<u32> {
        match self {
            Self::Gpt2(c) => c.bos_token_id,
            Self::Llama(c) => c.bos_token_id,
        }
    }

    /// Name and stored shape of every tensor, in the model's order.
    pub(crate) fn tensors(&self) -> Box<dyn Iterator<Item = (String, Vec<usize>)>> {
        match self {
            Self::Gpt2(c) => Box::new(c.clone().tensors()),
            Self::Llama(c) => Box::new(c.clone().tensors()),
        }
    }

    /// The prefix of the tensors below the head, and the name of the token embedding.
    pub(crate) fn stack(&self) -> (&'static str, &'static str) {
        match self {
            Self::Gpt2(_) => ("transformer.", "transformer.wte.weight"),
            Self::Llama(_) => ("model.", "model.embed_tokens.weight"),
        }
    }

    /// Whether a tensor is a buffer that older versions of `transformers` stored: masks, which are the same in all
    /// checkpoints, and the frequencies of the rotary embedding, which follow from `config.json`.
    pub(crate) fn is_buffer(&self, name: &str) -> bool {
        match self {
            Self::Gpt2(_) => name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
            Self::Llama(_) => name.ends_with("rotary_emb.inv_freq"),
        }
    }

    /// The class name in `transformers`.
    pub(crate) fn architecture(&self) -> &'static str {
        match self {
            Self::Gpt2(_) => "GPT2LMHeadModel",
            Self::Llama(_) => "LlamaForCausalLM",
        }
    }

    /// Whether head and token embedding are one tensor.
    pub(crate) fn tied(&self) -> bool {
        match self {
            Self::Gpt2(c) => c.tie_word_embeddings,
            Self::Llama(c) => c.tie_word_embeddings,
        }
    }
}

#[cfg(test)]
mod tests;
