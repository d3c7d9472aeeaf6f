//! LLaMA: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), with the
//! grouped-query attention of LLaMA 2 (Ainslie et al. 2023).
//!
//! Layout and names follow the Hugging Face `LlamaForCausalLM`. B = batch, T = tokens, N = tokens of all
//! sequences, d = `hidden_size`, H = query heads, K = key/value heads, dh = head width.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use crate::activation::swiglu;
use crate::keys::ids_to_json;
use crate::kv_cache::KvCache;
use crate::layers::{Embedding, Linear, Precision, RmsNorm};
use crate::rope::{Angles, RopeScaling};
use crate::span::{Heads, Span};

/// The keys of a LLaMA `config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LlamaConfig {
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
    /// Base of the rotary frequencies. With `rope_scaling` it is the layout of transformers 4, which 5 reads too.
    pub rope_theta: f64,
    /// What becomes of the frequencies.
    pub rope_scaling: Option<RopeScaling>,
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
    /// Those of `generation_config.json`.
    #[serde(skip)]
    pub(crate) generation_eos: Vec<u32>,
}

impl LlamaConfig {
    pub(crate) fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(crate) fn head_width(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    pub(crate) fn angles(&self) -> Angles {
        Angles {
            theta: self.rope_theta,
            scaling: self.rope_scaling,
            dh: self.head_width(),
        }
    }

    /// Name and stored shape of every tensor, in the model's order.
    pub(crate) fn tensors(self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (v, d, inner) = (self.vocab_size, self.hidden_size, self.intermediate_size);
        let dh = self.head_width();
        let (q, kv) = (self.num_attention_heads * dh, self.kv_heads() * dh);
        let first = ("model.embed_tokens.weight".to_owned(), vec![v, d]);
        let layers = (0..self.num_hidden_layers).flat_map(move |i| {
            let tensors = [
                ("input_layernorm", vec![d]),
                ("self_attn.q_proj", vec![q, d]),
                ("self_attn.k_proj", vec![kv, d]),
                ("self_attn.v_proj", vec![kv, d]),
                ("self_attn.o_proj", vec![d, q]),
                ("post_attention_layernorm", vec![d]),
                ("mlp.gate_proj", vec![inner, d]),
                ("mlp.up_proj", vec![inner, d]),
                ("mlp.down_proj", vec![d, inner]),
            ];
            tensors.map(|(name, shape)| (format!("model.layers.{i}.{name}.weight"), shape))
        });
        let norm = ("model.norm.weight".to_owned(), vec![d]);
        let head = (!self.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![v, d]));
        std::iter::once(first)
            .chain(layers)
            .chain([norm])
            .chain(head)
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
    #[module(skip)]
    shape: Heads,
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<2>,
        span: &Span,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<2> {
        let qkv = Linear::together([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let y = span.attend(qkv, self.shape, cache, None);
        self.o_proj.forward(y)
    }
}

/// Cosines and sines of the rotary embedding (Su et al. 2021) for the positions of one pass.
pub(crate) struct Rotary {
    cos: Tensor<4>, // [B or 1, 1, T, dh]
    sin: Tensor<4>,
}

impl Rotary {
    /// For positions `[rows, T]`.
    pub(crate) fn new(positions: &[usize], rows: usize, angles: Angles, device: &Device) -> Self {
        let dh = angles.dh;
        let half = dh / 2;
        let width = positions.len() / rows;
        let frequencies = angles.frequencies();
        let table = |f: fn(f64) -> f64| {
            let mut values = Vec::with_capacity(positions.len() * dh);
            for &position in positions {
                values.extend(frequencies.iter().map(|x| f(position as f64 * x) as f32));
                values.extend_from_within(values.len() - half..);
            }
            Tensor::from_data(TensorData::new(values, [rows, 1, width, dh]), device)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Rotates the pair (i, i + dh/2) of every head: `x cos + (-x2, x1) sin`.
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, h, t, dh] = x.dims();
        let half = dh / 2;
        let first = x.clone().slice([0..b, 0..h, 0..t, 0..half]);
        let second = x.clone().slice([0..b, 0..h, 0..t, half..dh]);
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        x * self.cos.clone() + turned * self.sin.clone()
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
        let shape = Heads {
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            dh: config.head_width(),
        };
        let (q, kv) = (shape.heads * shape.dh, shape.kv_heads * shape.dh);
        Self {
            input_layernorm: RmsNorm::new(d, device),
            self_attn: Attention {
                q_proj: Linear::new(d, q, device),
                k_proj: Linear::new(d, kv, device),
                v_proj: Linear::new(d, kv, device),
                o_proj: Linear::new(q, d, device),
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
    /// The projections by name.
    pub(crate) fn projections(&self) -> [(&'static str, &Linear); 7] {
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        [
            ("q_proj", &attn.q_proj),
            ("k_proj", &attn.k_proj),
            ("v_proj", &attn.v_proj),
            ("o_proj", &attn.o_proj),
            ("gate_proj", &mlp.gate_proj),
            ("up_proj", &mlp.up_proj),
            ("down_proj", &mlp.down_proj),
        ]
    }

    /// The same to be changed, with the block that they are in.
    pub(crate) fn projections_mut(&mut self) -> [(&'static str, &'static str, &mut Linear); 7] {
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
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.projections_mut().for_each(|p| p.precision = precision);
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let layers = self.model.layers.iter_mut();
        layers.flat_map(|l| l.projections_mut().map(|(_, _, linear)| linear))
    }

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

    pub(crate) fn head(&self) -> &Param<Tensor<2>> {
        &self
            .lm_head
            .as_ref()
            .unwrap_or(&self.model.embed_tokens)
            .weight
    }

    pub(crate) fn angles(&self) -> Angles {
        self.config.angles()
    }

    /// One layer: `[N, d] -> [N, d]`
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<2>,
        span: &Span,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let (layer, eps) = (&self.model.layers[index], self.config.rms_norm_eps);
        let normed = layer.input_layernorm.forward(x.clone(), eps);
        let cache = cache.map(|c| (c, index));
        let x = x + layer.self_attn.forward(normed, span, cache);
        let normed = layer.post_attention_layernorm.forward(x.clone(), eps);
        x + layer.mlp.forward(normed)
    }

    pub(crate) fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.norm.forward(x, self.config.rms_norm_eps)
    }
}
