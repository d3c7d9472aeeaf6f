//! GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
//!
//! Layout, names and initialisation follow the Hugging Face `GPT2LMHeadModel`; the head is the token
//! embedding unless `config.json` says otherwise. B = batch, T = tokens, N = tokens of all sequences,
//! d = `n_embd`, H = heads, dh = d / H.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Error;
use crate::activation::gelu_new;
use crate::architecture::{Architecture, Facts, Shape};
use crate::config::{Parameters, known, most};
use crate::decoder::{Dense, Layer, Norm, Parts};
use crate::keys::{Keys, Neutral, ids_to_json};
use crate::kv_cache::KvCache;
use crate::layers::{Conv1D, Embedding, LayerNorm, Precision, Projected};
use crate::ops;
use crate::params::to_vec;
use crate::span::{Heads, Span};

/// Names of one activation in `transformers`: the tanh form of GELU.
const ACTIVATIONS: &[&str] = &[
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_fast",
    "gelu_accurate",
];

/// Names that `transformers` accepts in place of GPT-2's own.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

/// Keys that leave the function unchanged with one value.
const NEUTRAL: &[(&str, Neutral)] = &[
    // formerly the width of the mask; today only `n_positions` matters
    ("n_ctx", Neutral::Any),
    ("n_special", Neutral::Zero),
    ("predict_special_tokens", Neutral::Any),
    // only the order of the operations
    ("reorder_and_upcast_attn", Neutral::Any),
    ("scale_attn_by_inverse_layer_idx", Neutral::False),
    ("scale_attn_weights", Neutral::True),
];

/// The keys of a GPT-2 `config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpt2Config {
    model_type: &'static str,
    /// V: rows of the token embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// d: width.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// H: attention heads.
    pub n_head: usize,
    /// Width of the MLP; 4d when absent.
    pub n_inner: Option<usize>,
    /// Epsilon of the layer norms.
    pub layer_norm_epsilon: f64,
    /// The tanh form of GELU, under one of its names.
    pub activation_function: String,
    /// Dropout after the embeddings.
    pub embd_pdrop: f64,
    /// Dropout on attention weights.
    pub attn_pdrop: f64,
    /// Dropout before each residual sum.
    pub resid_pdrop: f64,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
    /// First token of a text, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    #[serde(serialize_with = "ids_to_json")]
    pub eos_token_id: Vec<u32>,
    /// The same from `generation_config.json`.
    #[serde(skip)]
    pub(crate) generation_eos: Vec<u32>,
}

impl Gpt2Config {
    /// The keys that matter.
    pub(crate) const KEYS: &'static [&'static str] = &[
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "layer_norm_epsilon",
        "activation_function",
        "embd_pdrop",
        "attn_pdrop",
        "resid_pdrop",
        "initializer_range",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    ];

    /// Takes all keys, with the defaults of `transformers`.
    pub(crate) fn take(_: &str, keys: &mut Keys) -> Result<Self, Error> {
        for (other, key) in OTHER_NAMES {
            keys.rename(other, key)?;
        }
        let vocab_size = keys.size("vocab_size", Some(50257))?;
        let config = Self {
            model_type: "gpt2",
            vocab_size,
            n_positions: keys.size("n_positions", Some(1024))?,
            n_embd: keys.size("n_embd", Some(768))?,
            n_layer: keys.size("n_layer", Some(12))?,
            n_head: keys.size("n_head", Some(12))?,
            n_inner: keys.optional_size("n_inner")?,
            layer_norm_epsilon: keys.number("layer_norm_epsilon", Some(1e-5), 0.0..=1.0)?,
            activation_function: keys.word("activation_function", "gelu_new", ACTIVATIONS)?,
            embd_pdrop: keys.number("embd_pdrop", Some(0.1), 0.0..=1.0)?,
            attn_pdrop: keys.number("attn_pdrop", Some(0.1), 0.0..=1.0)?,
            resid_pdrop: keys.number("resid_pdrop", Some(0.1), 0.0..=1.0)?,
            initializer_range: keys.number("initializer_range", Some(0.02), 0.0..=1e3)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
            bos_token_id: keys.id("bos_token_id"),
            eos_token_id: keys.ids("eos_token_id", vocab_size)?,
            generation_eos: Vec::new(),
        };
        keys.pass(NEUTRAL)?;
        // heads for other tasks
        keys.pass_where(|key| key.starts_with("summary_"));
        known::pass(keys)?;
        Ok(config)
    }

    /// Width of the MLP.
    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    fn shape(&self) -> Heads {
        Heads {
            heads: self.n_head,
            kv_heads: self.n_head,
            dh: self.n_embd / self.n_head,
        }
    }
}

impl Shape for Gpt2Config {
    fn sizes(&self) -> Vec<(&'static str, Option<usize>, usize)> {
        vec![
            ("vocab_size", Some(self.vocab_size), most::VOCABULARY),
            ("n_positions", Some(self.n_positions), most::POSITIONS),
            ("n_embd", Some(self.n_embd), most::WIDTH),
            ("n_layer", Some(self.n_layer), most::LAYERS),
            ("n_head", Some(self.n_head), most::HEADS),
            ("n_inner", self.n_inner, most::INNER),
        ]
    }

    fn conflict(&self) -> Option<(&'static str, String, String)> {
        if !self.n_embd.is_multiple_of(self.n_head) {
            let hint = format!("it must divide n_embd, which is {}", self.n_embd);
            return Some(("n_head", self.n_head.to_string(), hint));
        }
        let dropouts = [
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
            ("resid_pdrop", self.resid_pdrop),
        ];
        let (key, p) = dropouts.into_iter().find(|(_, p)| *p >= 1.0)?;
        Some((key, p.to_string(), "a probability below 1".into()))
    }

    fn parameters(&self) -> Parameters {
        let (d, inner) = (self.n_embd, self.inner());
        let attention = 4 * d * d + 4 * d;
        let mlp = 2 * d * inner + inner + d;
        Parameters {
            embedding: (self.vocab_size + self.n_positions) * d,
            layer: attention + mlp + 4 * d,
            layers: self.n_layer,
            norm: 2 * d,
            head: if self.tie_word_embeddings {
                0
            } else {
                self.vocab_size * d
            },
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            positions: self.n_positions,
            width: self.n_embd,
            heads: self.n_head,
            layers: self.n_layer,
            initializer_range: self.initializer_range,
            tied: self.tie_word_embeddings,
            bos: self.bos_token_id,
            class: "GPT2LMHeadModel",
            prefix: "transformer.",
            embedding: "transformer.wte.weight",
        }
    }

    fn set_layers(&mut self, layers: usize) {
        self.n_layer = layers;
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
        let (v, d, inner) = (self.vocab_size, self.n_embd, self.inner());
        let first = [
            ("transformer.wte.weight".to_owned(), vec![v, d]),
            (
                "transformer.wpe.weight".to_owned(),
                vec![self.n_positions, d],
            ),
        ];
        let layers = (0..self.n_layer).flat_map(move |i| {
            let tensors = [
                ("ln_1.weight", vec![d]),
                ("ln_1.bias", vec![d]),
                ("attn.c_attn.weight", vec![d, 3 * d]),
                ("attn.c_attn.bias", vec![3 * d]),
                ("attn.c_proj.weight", vec![d, d]),
                ("attn.c_proj.bias", vec![d]),
                ("ln_2.weight", vec![d]),
                ("ln_2.bias", vec![d]),
                ("mlp.c_fc.weight", vec![d, inner]),
                ("mlp.c_fc.bias", vec![inner]),
                ("mlp.c_proj.weight", vec![inner, d]),
                ("mlp.c_proj.bias", vec![d]),
            ];
            tensors.map(|(name, shape)| (format!("transformer.h.{i}.{name}"), shape))
        });
        let norm = ["weight", "bias"].map(|name| (format!("transformer.ln_f.{name}"), vec![d]));
        let head = (!self.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![v, d]));
        Box::new(first.into_iter().chain(layers).chain(norm).chain(head))
    }

    fn is_buffer(&self, name: &str) -> bool {
        name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
    }

    fn smallest(&self) -> Value {
        json!({"model_type": "gpt2", "vocab_size": 2, "n_positions": 2, "n_embd": 2, "n_layer": 1, "n_head": 1})
    }
}

/// Multi-head causal self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values in one map: `[d, 3d]`.
    pub c_attn: Conv1D,
    /// Output map `[d, d]`.
    pub c_proj: Conv1D,
    attn_dropout: Dropout,
    resid_dropout: Dropout,
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
        let qkv = Projected::Joint(self.c_attn.forward(x));
        let y = span.attend(qkv, self.shape, cache, Some(&self.attn_dropout));
        ops::dropout::apply(self.c_proj.forward(y), &self.resid_dropout)
    }
}

/// Position-wise feed-forward network.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d, 4d]`
    pub c_fc: Conv1D,
    /// `[4d, d]`
    pub c_proj: Conv1D,
    dropout: Dropout,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = self.c_proj.forward(gelu_new(self.c_fc.forward(x)));
        ops::dropout::apply(y, &self.dropout)
    }
}

/// One pre-norm transformer block.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before attention.
    pub ln_1: LayerNorm,
    /// Attention.
    pub attn: Attention,
    /// Norm before the MLP.
    pub ln_2: LayerNorm,
    /// Feed-forward network.
    pub mlp: Mlp,
}

impl Block {
    fn new(config: &Gpt2Config, device: &Device) -> Self {
        let d = config.n_embd;
        let inner = config.inner();
        let dropout = |p: f64| DropoutConfig::new(p).init();
        Self {
            ln_1: LayerNorm::new(d, device),
            attn: Attention {
                c_attn: Conv1D::new(d, 3 * d, device),
                c_proj: Conv1D::new(d, d, device),
                attn_dropout: dropout(config.attn_pdrop),
                resid_dropout: dropout(config.resid_pdrop),
                shape: config.shape(),
            },
            ln_2: LayerNorm::new(d, device),
            mlp: Mlp {
                c_fc: Conv1D::new(d, inner, device),
                c_proj: Conv1D::new(inner, d, device),
                dropout: dropout(config.resid_pdrop),
            },
        }
    }
}

/// The stack below the head; the field names are the checkpoint's.
#[derive(Module, Debug)]
pub struct Transformer {
    /// Token embedding `[V, d]`.
    pub wte: Embedding,
    /// Position embedding `[n_positions, d]`.
    pub wpe: Embedding,
    drop: Dropout,
    /// Blocks.
    pub h: Vec<Block>,
    /// Final norm.
    pub ln_f: LayerNorm,
}

/// GPT-2 with its language-model head, tied or separate.
#[derive(Module, Debug)]
pub struct Gpt2 {
    /// The stack.
    pub transformer: Transformer,
    /// Head `[V, d]`; `None` where it is the token embedding.
    pub lm_head: Option<Embedding>,
    #[module(skip)]
    pub(crate) config: Box<Gpt2Config>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Gpt2 {
    /// A model of the given shape on `device`; norms are the identity, all else is zero.
    pub fn zeros(config: &Gpt2Config, device: &Device) -> Self {
        let d = config.n_embd;
        Self {
            transformer: Transformer {
                wte: Embedding::new(config.vocab_size, d, device),
                wpe: Embedding::new(config.n_positions, d, device),
                drop: DropoutConfig::new(config.embd_pdrop).init(),
                h: (0..config.n_layer)
                    .map(|_| Block::new(config, device))
                    .collect(),
                ln_f: LayerNorm::new(d, device),
            },
            lm_head: (!config.tie_word_embeddings)
                .then(|| Embedding::new(config.vocab_size, d, device)),
            config: Box::new(config.clone()),
            precision: Precision::F32,
        }
    }

    fn projections_mut(&mut self) -> impl Iterator<Item = &mut Conv1D> {
        self.transformer.h.iter_mut().flat_map(|block| {
            let (attn, mlp) = (&mut block.attn, &mut block.mlp);
            [
                &mut attn.c_attn,
                &mut attn.c_proj,
                &mut mlp.c_fc,
                &mut mlp.c_proj,
            ]
        })
    }
}

impl Architecture for Gpt2 {
    fn embedding(&self) -> &Param<Tensor<2>> {
        &self.transformer.wte.weight
    }

    fn head(&self) -> &Param<Tensor<2>> {
        let head = self.lm_head.as_ref();
        &head.unwrap_or(&self.transformer.wte).weight
    }

    fn layers(&self) -> usize {
        self.transformer.h.len()
    }

    /// Adds the embeddings of the positions: `[N, d] -> [N, d]`.
    fn enter(&self, tokens: Tensor<2>, span: &Span) -> Tensor<2> {
        let ([n, d], stack) = (tokens.dims(), &self.transformer);
        let places = stack.wpe.forward(span.ids(&tokens.device())); // [B or 1, T, d]
        let width = places.dims()[1];
        let x = tokens.reshape([n / width, width, d]) + places;
        ops::dropout::apply(x.reshape([n, d]), &stack.drop)
    }

    fn layer(
        &self,
        index: usize,
        x: Tensor<2>,
        span: &Span,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let (block, eps) = (&self.transformer.h[index], self.config.layer_norm_epsilon);
        let normed = block.ln_1.forward(x.clone(), eps);
        let cache = cache.map(|c| (c, index));
        let x = x + block.attn.forward(normed, span, cache);
        let normed = block.ln_2.forward(x.clone(), eps);
        x + block.mlp.forward(normed)
    }

    fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.transformer
            .ln_f
            .forward(x, self.config.layer_norm_epsilon)
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.projections_mut().for_each(|p| p.precision = precision);
    }

    fn without_dropout(&mut self) {
        self.transformer.drop.prob = 0.0;
        for block in &mut self.transformer.h {
            let (attn, mlp) = (&mut block.attn, &mut block.mlp);
            for dropout in [
                &mut attn.attn_dropout,
                &mut attn.resid_dropout,
                &mut mlp.dropout,
            ] {
                dropout.prob = 0.0;
            }
        }
    }

    fn each_weight(&mut self, f: &mut dyn FnMut(&mut Param<Tensor<2>>)) {
        self.projections_mut().for_each(|p| f(&mut p.weight));
    }

    fn keep_layers(&mut self, keep: &[usize]) {
        let layers = &self.transformer.h;
        self.transformer.h = keep.iter().map(|&i| layers[i].clone()).collect();
        self.config.n_layer = keep.len();
    }

    fn parts(&self) -> Parts {
        let (stack, config) = (&self.transformer, &self.config);
        let epsilon = config.layer_norm_epsilon;
        let layers = stack.h.iter().map(|block| Layer {
            norm_1: Norm::layer(&block.ln_1, epsilon),
            qkv: Dense::conv(&block.attn.c_attn),
            qk_norm: None,
            out: Dense::conv(&block.attn.c_proj),
            norm_2: Norm::layer(&block.ln_2, epsilon),
            up: Dense::conv(&block.mlp.c_fc),
            down: Dense::conv(&block.mlp.c_proj),
        });
        Parts {
            positions: Some(to_vec(stack.wpe.weight.val())),
            layers: layers.collect(),
            norm: Norm::layer(&stack.ln_f, epsilon),
            gated: false,
            heads: config.shape(),
            inner: config.inner(),
        }
    }
}
