//! The `config.json` of a checkpoint: every key is honoured, known to be harmless, or refused.

pub(crate) mod known;

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::keys::{self, Keys};
use crate::{Error, LanguageModel, ModelConfig};

/// Largest supported sizes. They are several times those of any model, and small enough that no product of them overflows.
pub(crate) mod most {
    pub const VOCABULARY: usize = 1 << 24;
    pub const POSITIONS: usize = 1 << 24;
    pub const WIDTH: usize = 1 << 17;
    pub const INNER: usize = 1 << 20;
    pub const LAYERS: usize = 1 << 12;
    pub const HEADS: usize = 1 << 12;
    /// Width of a head.
    pub const HEAD: usize = 1 << 14;
    pub const PARAMETERS: usize = 1 << 41;
}

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
    /// Sum of all parts.
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
            // This path is a placeholder: only the caller knows the file.
            serde::de::Error::custom(error.without_path())
        })
    }
}

impl ModelConfig {
    /// Reads a `config.json`, and the tokens that end a text from the `generation_config.json` beside it, if there is one.
    ///
    /// # Errors
    ///
    /// When a file is missing or no such configuration; when a key asks for something that is not supported, or is unknown.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut config = Self::from_keys(path, keys::read(path)?)?;
        let generation = path.with_file_name("generation_config.json");
        if path.ends_with("config.json") && generation.symlink_metadata().is_ok() {
            let mut keys = Keys::new(&generation, keys::read(&generation)?)?;
            let ids = keys.ids("eos_token_id", config.vocab_size())?;
            config.inner_mut().set_generation_eos(ids);
        }
        Ok(config)
    }

    fn from_keys(path: &Path, value: Value) -> Result<Self, Error> {
        let mut keys = Keys::new(path, value)?;
        let model_type = keys.take("model_type");
        let name = model_type.as_ref().and_then(Value::as_str);
        let Some(config) = name.and_then(|name| Self::take(name, &mut keys)) else {
            let value = model_type.map_or("absent".into(), |value| value.to_string());
            let hint = format!("built are {}", Self::TYPES.join(", "));
            return Err(keys.refuse("model_type", value, &hint));
        };
        let config = config?;
        config.check(path)?;
        keys.finish()?;
        Ok(config)
    }

    /// Checks that the configuration is supported and consistent; `path` is for the message. A configuration that was read is
    /// already checked.
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
        // Sizes first, since some divide others below, and products of larger ones overflow.
        for (key, size, most) in self.inner().sizes() {
            if let Some(size) = size.filter(|size| !(1..=most).contains(size)) {
                let hint =
                    format!("1 or more, as in the checkpoint's own file, and at most {most}");
                return refuse(key, size.to_string(), hint);
            }
        }
        if let Some((key, value, hint)) = self.inner().conflict() {
            return refuse(key, value, hint);
        }
        let total = self.parameters().total();
        if total > most::PARAMETERS {
            let hint = format!("at most {}", most::PARAMETERS);
            return refuse("the number of parameters", total.to_string(), hint);
        }
        Ok(())
    }

    /// A model with freshly drawn weights: normal with standard deviation `initializer_range`, the
    /// maps that feed a residual sum scaled by `1 / sqrt(2 layers)` (GPT-2's rule), biases zero,
    /// norms the identity. The numbers depend on `seed` and the tensor's name alone.
    pub fn init(&self, seed: u64, device: &Device) -> LanguageModel {
        let std = self.inner().facts().initializer_range;
        crate::params::draw(self.zeros(device), seed, std)
    }

    /// Numbers of parameters by part, without building the model.
    pub fn parameters(&self) -> Parameters {
        self.inner().parameters()
    }

    /// The smallest model of the same architecture, for trials.
    pub fn smallest(&self) -> Self {
        serde_json::from_value(self.inner().smallest()).expect("it is built")
    }

    /// The same shape with another number of layers.
    pub fn with_layers(mut self, layers: usize) -> Self {
        self.inner_mut().set_layers(layers);
        self
    }

    /// The same shape with a vocabulary of `tokens`, if it has more.
    pub fn with_vocabulary(mut self, tokens: usize) -> Self {
        if tokens < self.vocab_size() {
            self.inner_mut().set_vocabulary(tokens);
        }
        self
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.inner().facts().heads
    }

    /// V: rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        self.inner().facts().vocab_size
    }

    /// Longest sequence that the model takes.
    pub fn max_positions(&self) -> usize {
        self.inner().facts().positions
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.inner().facts().layers
    }

    /// d: width of a hidden state.
    pub fn width(&self) -> usize {
        self.inner().facts().width
    }

    /// The tokens that end a text, if the folder names any: those of `generation_config.json`, which `transformers` uses for
    /// generation, or else those of `config.json`. The first one of `config.json` comes first if both files name it.
    pub fn eos_ids(&self) -> Vec<u32> {
        let (own, generation) = self.inner().eos();
        if generation.is_empty() {
            return own.to_vec();
        }
        let mut ids = generation.to_vec();
        if let Some(place) = ids.iter().position(|id| own.first() == Some(id)) {
            ids[..=place].rotate_right(1);
        }
        ids
    }

    /// The first of [`eos_ids`](Self::eos_ids): the one that ends the texts of training.
    pub fn eos(&self) -> Option<u32> {
        self.eos_ids().first().copied()
    }
}

#[cfg(test)]
mod tests;
