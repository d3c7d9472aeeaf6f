use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::gpt2::{Gpt2, Gpt2Config};
use crate::llama::{Llama, LlamaConfig};
use crate::{Error, LanguageModel};

/// The `config.json` of a Hugging Face checkpoint, told apart by its `model_type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum ModelConfig {
    /// `"model_type": "gpt2"`
    Gpt2(Gpt2Config),
    /// `"model_type": "llama"`
    Llama(LlamaConfig),
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
    /// All.
    pub fn total(&self) -> usize {
        self.embedding + self.layer * self.layers + self.norm + self.head
    }
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    ///
    /// When the file is missing, is not such a configuration, or asks for something that is not built.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: Self = serde_json::from_str(&text).map_err(Error::json(path))?;
        config.check(path)?;
        Ok(config)
    }

    /// Checks that the configuration is one that is built and consistent; `path` is for the message.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] names the key.
    pub fn check(&self, path: &Path) -> Result<(), Error> {
        let refuse = |key: &str, value: String, hint: &str| {
            Err(Error::Unsupported {
                path: path.into(),
                key: key.into(),
                value,
                hint: hint.into(),
            })
        };
        // First, since some divide others below.
        if let Some((key, _)) = self.sizes().into_iter().find(|(_, size)| *size == Some(0)) {
            return refuse(
                key,
                "0".into(),
                "1 or more, as in the checkpoint's own file",
            );
        }
        match self {
            Self::Gpt2(c) => {
                if c.activation_function != "gelu_new" {
                    return refuse(
                        "activation_function",
                        c.activation_function.clone(),
                        "only gelu_new",
                    );
                }
                if !c.n_embd.is_multiple_of(c.n_head) {
                    return refuse("n_head", c.n_head.to_string(), "it must divide n_embd");
                }
                for (key, p) in [
                    ("embd_pdrop", c.embd_pdrop),
                    ("attn_pdrop", c.attn_pdrop),
                    ("resid_pdrop", c.resid_pdrop),
                ] {
                    if !(0.0..1.0).contains(&p) {
                        return refuse(key, p.to_string(), "a probability below 1");
                    }
                }
            }
            Self::Llama(c) => {
                if c.rope_scaling.as_ref().is_some_and(|v| !v.is_null()) {
                    return refuse(
                        "rope_scaling",
                        "set".into(),
                        "only null: plain rotary embeddings",
                    );
                }
                if c.attention_bias || c.mlp_bias {
                    return refuse("attention_bias/mlp_bias", "true".into(), "only false");
                }
                if c.hidden_act != "silu" {
                    return refuse("hidden_act", c.hidden_act.clone(), "only silu");
                }
                let kv = c.num_key_value_heads.unwrap_or(c.num_attention_heads);
                if !c.num_attention_heads.is_multiple_of(kv) {
                    return refuse(
                        "num_key_value_heads",
                        kv.to_string(),
                        "it must divide num_attention_heads",
                    );
                }
                let dh = c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads);
                if dh == 0 || !dh.is_multiple_of(2) {
                    return refuse(
                        "head_dim",
                        dh.to_string(),
                        "rotary embeddings need an even width; absent, it is hidden_size / num_attention_heads",
                    );
                }
            }
        }
        Ok(())
    }

    /// Every size by its key; `None` where the file may leave it out and does.
    fn sizes(&self) -> Vec<(&'static str, Option<usize>)> {
        match self {
            Self::Gpt2(c) => vec![
                ("vocab_size", Some(c.vocab_size)),
                ("n_positions", Some(c.n_positions)),
                ("n_embd", Some(c.n_embd)),
                ("n_layer", Some(c.n_layer)),
                ("n_head", Some(c.n_head)),
                ("n_inner", c.n_inner),
            ],
            Self::Llama(c) => vec![
                ("vocab_size", Some(c.vocab_size)),
                ("hidden_size", Some(c.hidden_size)),
                ("intermediate_size", Some(c.intermediate_size)),
                ("num_hidden_layers", Some(c.num_hidden_layers)),
                ("num_attention_heads", Some(c.num_attention_heads)),
                ("num_key_value_heads", c.num_key_value_heads),
                ("head_dim", c.head_dim),
                ("max_position_embeddings", Some(c.max_position_embeddings)),
            ],
        }
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
                    head: 0,
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

    /// The end-of-text token, where the configuration names one.
    pub fn eos(&self) -> Option<u32> {
        match self {
            Self::Gpt2(c) => c.eos_token_id,
            Self::Llama(c) => c.eos_token_id,
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
            Self::Gpt2(_) => true,
            Self::Llama(c) => c.tie_word_embeddings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;

    const GPT2: &str = r#"{"model_type":"gpt2","vocab_size":50,"n_positions":9,"n_embd":8,"n_layer":3,"n_head":2,"n_inner":16}"#;
    const LLAMA: &str = r#"{"model_type":"llama","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":3,
        "num_attention_heads":4,"num_key_value_heads":2,"head_dim":2,"max_position_embeddings":9}"#;

    /// What is said of a file in which some keys have other values.
    fn read_with(json: &str, changes: &[(&str, serde_json::Value)]) -> Result<ModelConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
        for (key, value) in changes {
            json[key] = value.clone();
        }
        std::fs::write(&path, json.to_string()).unwrap();
        ModelConfig::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_size_of_0_is_refused_by_its_key() {
        for json in [GPT2, LLAMA] {
            // no size
            assert!(read_with(json, &[("eos_token_id", 0.into())]).is_ok());
            let keys: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(json).unwrap();
            for (key, _) in keys.iter().filter(|(_, value)| value.is_number()) {
                let error = read_with(json, &[(key, 0.into())]).unwrap_err();
                let wanted =
                    format!("config.json: `{key}` is 0, which is not supported (1 or more");
                assert!(error.contains(&wanted), "{error}");
            }
        }
    }

    #[test]
    fn heads_that_do_not_fit_are_refused_by_their_key() {
        let refused = |json, changes: &[(&str, serde_json::Value)], wanted: &str| {
            let error = read_with(json, changes).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        };
        let absent = || ("head_dim", serde_json::Value::Null);
        assert!(read_with(LLAMA, &[absent()]).is_ok());
        refused(GPT2, &[("n_head", 3.into())], "`n_head` is 3");
        refused(
            LLAMA,
            &[("num_key_value_heads", 3.into())],
            "`num_key_value_heads` is 3",
        );
        refused(LLAMA, &[("head_dim", 3.into())], "`head_dim` is 3");
        refused(
            LLAMA,
            &[absent(), ("hidden_size", 2.into())],
            "`head_dim` is 0",
        );
    }

    #[test]
    fn parameters_are_counted_as_the_model_has_them() {
        for json in [
            r#"{"model_type":"gpt2","vocab_size":50,"n_positions":9,"n_embd":8,"n_layer":3,"n_head":2}"#,
            r#"{"model_type":"llama","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":3,
                "num_attention_heads":4,"num_key_value_heads":2}"#,
            r#"{"model_type":"llama","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":2,
                "num_attention_heads":2,"tie_word_embeddings":true}"#,
        ] {
            let config: ModelConfig = serde_json::from_str(json).unwrap();
            let model = config.zeros(&Device::flex());
            assert_eq!(config.parameters().total(), model.num_params(), "{json}");
        }
    }
}
