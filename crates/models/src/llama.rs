//! LLaMA: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), with the
//! grouped-query attention of LLaMA 2 (Ainslie et al. 2023).
//!
//! Layout and names follow the Hugging Face `LlamaForCausalLM`. B = batch, T = tokens, N = tokens of all
//! sequences, d = `hidden_size`, H = query heads, K = key/value heads, dh = head width.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::Error;
use crate::activation::swiglu;
use crate::architecture::{Architecture, Facts, Shape};
use crate::config::{Parameters, known, most};
use crate::decoder::{self, Dense, Norm, Parts};
use crate::keys::{Keys, Neutral, ids_to_json};
use crate::kv_cache::KvCache;
use crate::layers::{Embedding, Linear, Precision, Projected, RmsNorm};
use crate::rope::{self, Angles, RopeScaling};
use crate::span::{Heads, Span};

/// Names of one activation in `transformers`.
const ACTIVATIONS: &[&str] = &["silu", "swish"];

/// Keys that leave the function unchanged with one value.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("attention_bias", Neutral::False),
    ("attention_dropout", Neutral::Zero),
    ("attn_pdrop", Neutral::Zero),
    ("embd_pdrop", Neutral::Zero),
    ("hidden_dropout", Neutral::Zero),
    ("is_llama_config", Neutral::Any),
    // of the first LLaMA files; today only `max_position_embeddings` matters
    ("max_sequence_length", Neutral::Any),
    // which layers have a sliding window, where there is one
    ("max_window_layers", Neutral::Any),
    ("mlp_bias", Neutral::False),
    ("partial_rotary_factor", Neutral::One),
    // in how many pieces the same products are computed
    ("pretraining_tp", Neutral::Any),
    ("qk_layernorm", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("resid_pdrop", Neutral::Zero),
    ("rope_interleaved", Neutral::False),
    ("use_mrope", Neutral::False),
    ("use_qk_norm", Neutral::False),
];

/// An architecture that is LLaMA but for some settings.
#[derive(Debug, PartialEq)]
struct Dialect {
    model_type: &'static str,
    /// In `transformers`.
    class: &'static str,
    /// Whether queries, keys and values have biases.
    qkv_bias: bool,
    /// Whether the heads of queries and keys are normalised.
    qk_norm: bool,
    /// Width of a head where the file does not say; `None` for d / H.
    head_dim: Option<usize>,
    /// Longest sequence where the file does not say.
    positions: usize,
    window: Window,
}

/// What `sliding_window` is.
#[derive(Debug, PartialEq)]
enum Window {
    /// Not set, or the file is refused.
    Unset,
    /// Not used, whatever it is.
    Unused,
    /// Used, and this where it is absent.
    Absent(usize),
}

const DIALECTS: [Dialect; 4] = [
    Dialect {
        model_type: "llama",
        class: "LlamaForCausalLM",
        qkv_bias: false,
        qk_norm: false,
        head_dim: None,
        positions: 2048,
        window: Window::Unset,
    },
    // Jiang et al., "Mistral 7B" (2023)
    Dialect {
        model_type: "mistral",
        class: "MistralForCausalLM",
        qkv_bias: false,
        qk_norm: false,
        head_dim: None,
        positions: 4096 * 32,
        window: Window::Absent(4096),
    },
    // Yang et al., "Qwen2 Technical Report" (2024); Qwen2.5 too
    Dialect {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        qkv_bias: true,
        qk_norm: false,
        head_dim: None,
        positions: 32768,
        window: Window::Unused,
    },
    // Yang et al., "Qwen3 Technical Report" (2025)
    Dialect {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        qkv_bias: false,
        qk_norm: true,
        head_dim: Some(128),
        positions: 32768,
        window: Window::Unused,
    },
];

impl Serialize for Dialect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.model_type.serialize(serializer)
    }
}

/// The keys of a LLaMA `config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LlamaConfig {
    #[serde(rename = "model_type")]
    dialect: &'static Dialect,
    /// V: rows of the token embedding.
    pub vocab_size: usize,
    /// d: width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H: query heads.
    pub num_attention_heads: usize,
    /// K: key/value heads; H when absent.
    pub num_key_value_heads: Option<usize>,
    /// dh: d / H when absent.
    pub head_dim: Option<usize>,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies. Together with `rope_scaling` it is the layout of transformers 4, which 5 reads too.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// How many tokens a token sees, where a Mistral has such a limit. Sequences are no longer than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<Option<usize>>,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
    /// The sigmoid-weighted linear unit, under one of its names.
    pub hidden_act: String,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// First token of a text, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    #[serde(serialize_with = "ids_to_json")]
    pub eos_token_id: Vec<u32>,
    /// The same from `generation_config.json`.
    #[serde(skip)]
    pub(crate) generation_eos: Vec<u32>,
}

impl LlamaConfig {
    /// The keys that matter.
    pub(crate) const KEYS: &'static [&'static str] = &[
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "sliding_window",
        "tie_word_embeddings",
        "hidden_act",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
    ];

    /// Takes all keys, with the defaults of `transformers`; most sizes have no default.
    pub(crate) fn take(model_type: &str, keys: &mut Keys) -> Result<Self, Error> {
        let known = DIALECTS.iter().find(|d| d.model_type == model_type);
        let dialect = known.expect("every `model_type` of Llama's architecture has a dialect");
        let vocab_size = keys.size("vocab_size", None)?;
        let max_position_embeddings =
            keys.size("max_position_embeddings", Some(dialect.positions))?;
        let sliding_window = match dialect.window {
            Window::Unset => None,
            // `transformers` reads it with `use_sliding_window` alone, which is refused
            Window::Unused => {
                keys.pass_where(|key| key == "sliding_window");
                None
            }
            Window::Absent(size) if !keys.has("sliding_window") => Some(Some(size)),
            Window::Absent(_) => Some(keys.optional_size("sliding_window")?),
        };
        let (rope_theta, rope_scaling) = rope::take(keys, max_position_embeddings)?;
        let config = Self {
            dialect,
            sliding_window,
            vocab_size,
            hidden_size: keys.size("hidden_size", None)?,
            intermediate_size: keys.size("intermediate_size", None)?,
            num_hidden_layers: keys.size("num_hidden_layers", None)?,
            num_attention_heads: keys.size("num_attention_heads", None)?,
            num_key_value_heads: keys.optional_size("num_key_value_heads")?,
            head_dim: keys.optional_size("head_dim")?.or(dialect.head_dim),
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps", Some(1e-6), 0.0..=1.0)?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            hidden_act: keys.word("hidden_act", "silu", ACTIVATIONS)?,
            initializer_range: keys.number("initializer_range", Some(0.02), 0.0..=1e3)?,
            bos_token_id: keys.id("bos_token_id"),
            eos_token_id: keys.ids("eos_token_id", vocab_size)?,
            generation_eos: Vec::new(),
        };
        keys.pass(NEUTRAL)?;
        known::pass(keys)?;
        Ok(config)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_width(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Longest sequence: within the window, where there is one, every token sees all before it.
    fn positions(&self) -> usize {
        let window = self.sliding_window.flatten();
        let longest = self.max_position_embeddings;
        window.map_or(longest, |window| window.min(longest))
    }

    fn shape(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            dh: self.head_width(),
        }
    }
}

impl Shape for LlamaConfig {
    fn sizes(&self) -> Vec<(&'static str, Option<usize>, usize)> {
        let positions = Some(self.max_position_embeddings);
        vec![
            ("vocab_size", Some(self.vocab_size), most::VOCABULARY),
            ("hidden_size", Some(self.hidden_size), most::WIDTH),
            (
                "intermediate_size",
                Some(self.intermediate_size),
                most::INNER,
            ),
            (
                "num_hidden_layers",
                Some(self.num_hidden_layers),
                most::LAYERS,
            ),
            (
                "num_attention_heads",
                Some(self.num_attention_heads),
                most::HEADS,
            ),
            ("num_key_value_heads", self.num_key_value_heads, most::HEADS),
            ("head_dim", self.head_dim, most::HEAD),
            ("max_position_embeddings", positions, most::POSITIONS),
            (
                "sliding_window",
                self.sliding_window.flatten(),
                most::POSITIONS,
            ),
        ]
    }

    fn conflict(&self) -> Option<(&'static str, String, String)> {
        let (heads, kv) = (self.num_attention_heads, self.kv_heads());
        if !heads.is_multiple_of(kv) {
            let hint = format!("it must divide num_attention_heads, which is {heads}");
            return Some(("num_key_value_heads", kv.to_string(), hint));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            let hint = format!(
                "it must divide hidden_size, which is {}, or head_dim must be given",
                self.hidden_size
            );
            return Some(("num_attention_heads", heads.to_string(), hint));
        }
        let dh = self.head_width();
        if dh == 0 || !dh.is_multiple_of(2) {
            let hint = "rotary embeddings need an even width; absent, it is hidden_size / num_attention_heads";
            return Some(("head_dim", dh.to_string(), hint.into()));
        }
        None
    }

    fn parameters(&self) -> Parameters {
        let (d, heads) = (self.hidden_size, self.shape());
        let mut attention = 2 * d * heads.dh * (heads.heads + heads.kv_heads);
        if self.dialect.qkv_bias {
            attention += heads.dh * (heads.heads + 2 * heads.kv_heads);
        }
        if self.dialect.qk_norm {
            attention += 2 * heads.dh;
        }
        let table = self.vocab_size * d;
        Parameters {
            embedding: table,
            layer: attention + 3 * d * self.intermediate_size + 2 * d,
            layers: self.num_hidden_layers,
            norm: d,
            head: if self.tie_word_embeddings { 0 } else { table },
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            positions: self.positions(),
            width: self.hidden_size,
            heads: self.num_attention_heads,
            layers: self.num_hidden_layers,
            initializer_range: self.initializer_range,
            tied: self.tie_word_embeddings,
            bos: self.bos_token_id,
            class: self.dialect.class,
            prefix: "model.",
            embedding: "model.embed_tokens.weight",
        }
    }

    fn set_layers(&mut self, layers: usize) {
        self.num_hidden_layers = layers;
    }

    fn set_vocabulary(&mut self, tokens: usize) {
        let known = |id: &u32| (*id as usize) < tokens;
        self.vocab_size = tokens;
        self.bos_token_id = self.bos_token_id.filter(known);
        self.eos_token_id.retain(known);
        self.generation_eos.retain(known);
    }

    fn eos(&self) -> (&[u32], &[u32]) {
        (&self.eos_token_id, &self.generation_eos)
    }

    fn set_generation_eos(&mut self, ids: Vec<u32>) {
        self.generation_eos = ids;
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = (String, Vec<usize>)>> {
        let (v, d, inner) = (self.vocab_size, self.hidden_size, self.intermediate_size);
        let dh = self.head_width();
        let (q, kv) = (self.num_attention_heads * dh, self.kv_heads() * dh);
        let (biased, normed) = (self.dialect.qkv_bias, self.dialect.qk_norm);
        let first = ("model.embed_tokens.weight".to_owned(), vec![v, d]);
        let layers = (0..self.num_hidden_layers).flat_map(move |i| {
            let tensors = [
                ("input_layernorm", vec![d], None),
                ("self_attn.q_proj", vec![q, d], Some(q)),
                ("self_attn.k_proj", vec![kv, d], Some(kv)),
                ("self_attn.v_proj", vec![kv, d], Some(kv)),
                ("self_attn.o_proj", vec![d, q], None),
                ("self_attn.q_norm", vec![dh], None),
                ("self_attn.k_norm", vec![dh], None),
                ("post_attention_layernorm", vec![d], None),
                ("mlp.gate_proj", vec![inner, d], None),
                ("mlp.up_proj", vec![inner, d], None),
                ("mlp.down_proj", vec![d, inner], None),
            ];
            let there = move |name: &str| {
                normed || !["self_attn.q_norm", "self_attn.k_norm"].contains(&name)
            };
            let tensors = tensors.into_iter().filter(move |(name, ..)| there(name));
            tensors.flat_map(move |(name, shape, bias)| {
                let name = format!("model.layers.{i}.{name}");
                let bias = bias.filter(|_| biased);
                let bias = bias.map(|width| (format!("{name}.bias"), vec![width]));
                std::iter::once((format!("{name}.weight"), shape)).chain(bias)
            })
        });
        let norm = ("model.norm.weight".to_owned(), vec![d]);
        let head = (!self.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![v, d]));
        let first = std::iter::once(first);
        Box::new(first.chain(layers).chain([norm]).chain(head))
    }

    fn is_buffer(&self, name: &str) -> bool {
        name.ends_with("rotary_emb.inv_freq")
    }

    fn smallest(&self) -> Value {
        json!({
            "model_type": self.dialect.model_type, "vocab_size": 2, "hidden_size": 2, "intermediate_size": 2,
            "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 2,
        })
    }
}

/// Grouped-query causal self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d, H dh]`
    pub q_proj: Linear,
    /// `[d, K dh]`
    pub k_proj: Linear,
    /// `[d, K dh]`
    pub v_proj: Linear,
    /// `[H dh, d]`
    pub o_proj: Linear,
    /// Of each head of queries, `[dh]`, if any.
    pub q_norm: Option<RmsNorm>,
    /// Of each head of keys, `[dh]`, if any.
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    shape: Heads,
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<2>,
        epsilon: f64,
        span: &Span,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<2> {
        let mut qkv = Linear::together([&self.q_proj, &self.k_proj, &self.v_proj], x);
        if let (Some(of_q), Some(of_k)) = (&self.q_norm, &self.k_norm) {
            let dh = self.shape.dh;
            let heads = |norm: &RmsNorm, x: Tensor<2>| {
                let [n, width] = x.dims();
                let heads = x.reshape([n * width / dh, dh]);
                norm.forward(heads, epsilon).reshape([n, width])
            };
            let [q, k, v] = qkv.apart(self.shape);
            qkv = Projected::Apart([heads(of_q, q), heads(of_k, k), v]);
        }
        let y = span.attend(qkv, self.shape, cache, None);
        self.o_proj.forward(y)
    }
}

/// SwiGLU feed-forward network (Shazeer 2020).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d, intermediate]`
    pub gate_proj: Linear,
    /// `[d, intermediate]`
    pub up_proj: Linear,
    /// `[intermediate, d]`
    pub down_proj: Linear,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let gate_and_up = Linear::together([&self.gate_proj, &self.up_proj], x);
        self.down_proj.forward(swiglu(gate_and_up))
    }
}

/// One pre-norm decoder layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward network.
    pub mlp: Mlp,
}

impl Layer {
    fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let shape = config.shape();
        let (q, kv) = (shape.heads * shape.dh, shape.kv_heads * shape.dh);
        let (biased, normed) = (config.dialect.qkv_bias, config.dialect.qk_norm);
        Self {
            input_layernorm: RmsNorm::new(d, device),
            self_attn: Attention {
                q_proj: Linear::new(d, q, device).with_bias(biased),
                k_proj: Linear::new(d, kv, device).with_bias(biased),
                v_proj: Linear::new(d, kv, device).with_bias(biased),
                o_proj: Linear::new(q, d, device),
                q_norm: normed.then(|| RmsNorm::new(shape.dh, device)),
                k_norm: normed.then(|| RmsNorm::new(shape.dh, device)),
                shape,
            },
            post_attention_layernorm: RmsNorm::new(d, device),
            mlp: Mlp {
                gate_proj: Linear::new(d, inner, device),
                up_proj: Linear::new(d, inner, device),
                down_proj: Linear::new(inner, d, device),
            },
        }
    }
}

impl Layer {
    /// The projections by block and name.
    fn projections_mut(&mut self) -> [(&'static str, &'static str, &mut Linear); 7] {
        let (attn, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            ("self_attn", "q_proj", &mut attn.q_proj),
            ("self_attn", "k_proj", &mut attn.k_proj),
            ("self_attn", "v_proj", &mut attn.v_proj),
            ("self_attn", "o_proj", &mut attn.o_proj),
            ("mlp", "gate_proj", &mut mlp.gate_proj),
            ("mlp", "up_proj", &mut mlp.up_proj),
            ("mlp", "down_proj", &mut mlp.down_proj),
        ]
    }
}

/// The stack below the head; the field names are the checkpoint's.
#[derive(Module, Debug)]
pub struct Stack {
    /// Token embedding `[V, d]`.
    pub embed_tokens: Embedding,
    /// Layers.
    pub layers: Vec<Layer>,
    /// Final norm.
    pub norm: RmsNorm,
}

/// LLaMA with its language-model head, tied or separate.
#[derive(Module, Debug)]
pub struct Llama {
    /// The stack.
    pub model: Stack,
    /// Head `[V, d]`; `None` where it is the token embedding.
    pub lm_head: Option<Embedding>,
    #[module(skip)]
    pub(crate) config: Box<LlamaConfig>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Llama {
    /// A model of the given shape on `device`; norms are the identity, all else is zero.
    pub fn zeros(config: &LlamaConfig, device: &Device) -> Self {
        let (v, d) = (config.vocab_size, config.hidden_size);
        Self {
            model: Stack {
                embed_tokens: Embedding::new(v, d, device),
                layers: (0..config.num_hidden_layers)
                    .map(|_| Layer::new(config, device))
                    .collect(),
                norm: RmsNorm::new(d, device),
            },
            lm_head: (!config.tie_word_embeddings).then(|| Embedding::new(v, d, device)),
            config: Box::new(config.clone()),
            precision: Precision::F32,
        }
    }
}

impl Architecture for Llama {
    fn embedding(&self) -> &Param<Tensor<2>> {
        &self.model.embed_tokens.weight
    }

    fn head(&self) -> &Param<Tensor<2>> {
        &self
            .lm_head
            .as_ref()
            .unwrap_or(&self.model.embed_tokens)
            .weight
    }

    fn layers(&self) -> usize {
        self.model.layers.len()
    }

    fn layer(
        &self,
        index: usize,
        x: Tensor<2>,
        span: &Span,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let (layer, eps) = (&self.model.layers[index], self.config.rms_norm_eps);
        let normed = layer.input_layernorm.forward(x.clone(), eps);
        let cache = cache.map(|c| (c, index));
        let x = x + layer.self_attn.forward(normed, eps, span, cache);
        let normed = layer.post_attention_layernorm.forward(x.clone(), eps);
        x + layer.mlp.forward(normed)
    }

    fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.norm.forward(x, self.config.rms_norm_eps)
    }

    fn angles(&self) -> Option<Angles> {
        Some(Angles {
            theta: self.config.rope_theta,
            scaling: self.config.rope_scaling,
            dh: self.config.head_width(),
        })
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        for (_, _, linear) in self.adaptable_mut() {
            linear.precision = precision;
        }
    }

    fn each_weight(&mut self, f: &mut dyn FnMut(&mut Param<Tensor<2>>)) {
        for (_, _, linear) in self.adaptable_mut() {
            f(&mut linear.weight);
        }
    }

    fn keep_layers(&mut self, keep: &[usize]) {
        let layers = &self.model.layers;
        self.model.layers = keep.iter().map(|&i| layers[i].clone()).collect();
        self.config.num_hidden_layers = keep.len();
    }

    fn adaptable_mut(&mut self) -> Vec<(String, &'static str, &mut Linear)> {
        let layers = self.model.layers.iter_mut().enumerate();
        let each = layers.flat_map(|(i, layer)| {
            let projections = layer.projections_mut();
            projections.map(|(block, name, linear)| {
                let path = format!("model.layers.{i}.{block}.{name}");
                (path, name, linear)
            })
        });
        each.collect()
    }

    fn parts(&self) -> Parts {
        let (stack, config) = (&self.model, &self.config);
        let epsilon = config.rms_norm_eps;
        let layers = stack.layers.iter().map(|layer| {
            let (attn, mlp) = (&layer.self_attn, &layer.mlp);
            decoder::Layer {
                norm_1: Norm::rms(&layer.input_layernorm, epsilon),
                qkv: Dense::side_by_side(&[&attn.q_proj, &attn.k_proj, &attn.v_proj]),
                qk_norm: attn
                    .q_norm
                    .as_ref()
                    .zip(attn.k_norm.as_ref())
                    .map(|(q, k)| [q, k].map(|norm| Norm::rms(norm, epsilon))),
                out: Dense::side_by_side(&[&attn.o_proj]),
                norm_2: Norm::rms(&layer.post_attention_layernorm, epsilon),
                up: Dense::side_by_side(&[&mlp.gate_proj, &mlp.up_proj]),
                down: Dense::side_by_side(&[&mlp.down_proj]),
            }
        });
        Parts {
            positions: None,
            layers: layers.collect(),
            norm: Norm::rms(&stack.norm, epsilon),
            gated: true,
            heads: config.shape(),
            inner: config.intermediate_size,
        }
    }
}
