//! The traits of an architecture, and the list of the supported ones.

use std::fmt::Debug;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use serde_json::Value;

use crate::config::Parameters;
use crate::decoder::Parts;
use crate::keys::Keys;
use crate::kv_cache::KvCache;
use crate::layers::{Linear, Precision};
use crate::rope::Angles;
use crate::span::Span;
use crate::{Error, gpt2, llama};

/// The keys of an architecture's `config.json` that matter. Each type also has `KEYS`, their names, and `take`, which takes
/// all keys of a file: each is honoured, known to be harmless, or refused.
pub(crate) trait Shape: Debug {
    /// Every size: its key, value and largest supported value; `None` where the file may omit the key and does.
    fn sizes(&self) -> Vec<(&'static str, Option<usize>, usize)>;
    /// A key whose value conflicts with other keys, its value, and what would be right.
    fn conflict(&self) -> Option<(&'static str, String, String)>;
    fn parameters(&self) -> Parameters;
    fn facts(&self) -> Facts;
    fn set_layers(&mut self, layers: usize);
    /// Sets the size of the vocabulary; ids beyond it begin and end no text.
    fn set_vocabulary(&mut self, tokens: usize);
    /// Tokens that end a text: those of `config.json`, and those of `generation_config.json`.
    fn eos(&self) -> (&[u32], &[u32]);
    fn set_generation_eos(&mut self, ids: Vec<u32>);
    /// Name and stored shape of every tensor, in the model's order.
    fn tensors(&self) -> Box<dyn Iterator<Item = (String, Vec<usize>)>>;
    /// Whether a tensor is a buffer that older versions of `transformers` stored: masks, which are the same in all
    /// checkpoints, and the frequencies of the rotary embedding, which follow from `config.json`.
    fn is_buffer(&self, name: &str) -> bool;
    /// The smallest `config.json` of the architecture.
    fn smallest(&self) -> Value;
}

/// Facts that other modules need about a configuration.
pub(crate) struct Facts {
    /// V: rows of the token embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub positions: usize,
    /// d: width of a hidden state.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    pub layers: usize,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Whether head and token embedding are one tensor.
    pub tied: bool,
    pub bos: Option<u32>,
    /// The class in `transformers`.
    pub class: &'static str,
    /// Prefix of the names of the tensors below the head.
    pub prefix: &'static str,
    /// Name of the token embedding.
    pub embedding: &'static str,
}

/// A model: embeddings, layers, a norm, a head. N = tokens of all sequences.
pub(crate) trait Architecture {
    /// The token embedding `[V, d]`.
    fn embedding(&self) -> &Param<Tensor<2>>;
    /// The head's weight `[V, d]`: the token embedding itself where the two are tied.
    fn head(&self) -> &Param<Tensor<2>>;
    /// Number of layers.
    fn layers(&self) -> usize;
    /// Input of the first layer: `[N, d] -> [N, d]`.
    fn enter(&self, tokens: Tensor<2>, _span: &Span) -> Tensor<2> {
        tokens
    }
    /// One layer: `[N, d] -> [N, d]`
    fn layer(
        &self,
        index: usize,
        x: Tensor<2>,
        span: &Span,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2>;
    /// The final norm: `[N, d] -> [N, d]`
    fn norm(&self, x: Tensor<2>) -> Tensor<2>;
    /// Angles of the rotary embedding, where there is one.
    fn angles(&self) -> Option<Angles> {
        None
    }
    /// Number type of the matrix products.
    fn precision(&self) -> Precision;
    fn set_precision(&mut self, precision: Precision);
    /// Turns dropout off; the configuration keeps its probabilities.
    fn without_dropout(&mut self) {}
    /// Calls `f` with the weight of each projection, without the head.
    fn each_weight(&mut self, f: &mut dyn FnMut(&mut Param<Tensor<2>>));
    /// Keeps only these layers, in ascending order.
    fn keep_layers(&mut self, keep: &[usize]);
    /// The projections that may have an adapter, by path and name.
    fn adaptable_mut(&mut self) -> Vec<(String, &'static str, &mut Linear)> {
        Vec::new()
    }
    /// The parts of the decoder in host memory.
    fn parts(&self) -> Parts;
}

macro_rules! architectures {
    ($($(#[$doc:meta])* $name:ident($($id:literal),+) = $module:ident::{$model:ident, $config:ident},)*) => {
        /// A causal language model of one of the supported architectures.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant)]
        pub enum LanguageModel {
            $($(#[$doc])* $name($module::$model),)*
        }

        /// The `config.json` of a Hugging Face checkpoint, selected by its `model_type`.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum ModelConfig {
            $($(#[$doc])* $name($module::$config),)*
        }

        impl LanguageModel {
            pub(crate) fn inner(&self) -> &dyn Architecture {
                match self {
                    $(Self::$name(model) => model,)*
                }
            }

            pub(crate) fn inner_mut(&mut self) -> &mut dyn Architecture {
                match self {
                    $(Self::$name(model) => model,)*
                }
            }

            /// The configuration that the model was built from.
            pub fn config(&self) -> ModelConfig {
                match self {
                    $(Self::$name(model) => ModelConfig::$name((*model.config).clone()),)*
                }
            }

            /// Maps all parameters, under the names of a checkpoint: the enum adds nothing to a name.
            pub(crate) fn map_parameters<M: ModuleMapper>(self, mapper: &mut M) -> Self {
                match self {
                    $(Self::$name(model) => Self::$name(model.map(mapper)),)*
                }
            }

            /// The same, read-only.
            pub(crate) fn visit_parameters<V: ModuleVisitor>(&self, visitor: &mut V) {
                match self {
                    $(Self::$name(model) => model.visit(visitor),)*
                }
            }
        }

        impl ModelConfig {
            /// Every supported `model_type`.
            pub const TYPES: &[&str] = &[$($($id),+),*];

            pub(crate) fn inner(&self) -> &dyn Shape {
                match self {
                    $(Self::$name(config) => config,)*
                }
            }

            pub(crate) fn inner_mut(&mut self) -> &mut dyn Shape {
                match self {
                    $(Self::$name(config) => config,)*
                }
            }

            /// Takes the keys of a file of this `model_type`.
            pub(crate) fn take(model_type: &str, keys: &mut Keys) -> Option<Result<Self, Error>> {
                match model_type {
                    $($($id)|+ => Some($module::$config::take(model_type, keys).map(Self::$name)),)*
                    _ => None,
                }
            }

            /// The keys that matter in a `config.json` of this `model_type`; none where it is not supported.
            pub fn keys(model_type: &str) -> &'static [&'static str] {
                match model_type {
                    $($($id)|+ => $module::$config::KEYS,)*
                    _ => &[],
                }
            }

            /// A model of this shape with all weights zero (norms the identity).
            pub fn zeros(&self, device: &Device) -> LanguageModel {
                match self {
                    $(Self::$name(config) => LanguageModel::$name($module::$model::zeros(config, device)),)*
                }
            }
        }
    };
}

architectures! {
    /// GPT-2 (Radford et al. 2019).
    Gpt2("gpt2") = gpt2::{Gpt2, Gpt2Config},
    /// LLaMA (Touvron et al. 2023), and what is LLaMA but for some settings.
    Llama("llama", "mistral", "qwen2", "qwen3") = llama::{Llama, LlamaConfig},
}
