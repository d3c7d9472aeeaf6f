//! GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
//!
//! Layout, names and initialisation follow the Hugging Face `GPT2LMHeadModel`; the head is the token
//! embedding unless `config.json` says otherwise. B = batch, T = tokens, N = tokens of all sequences,
//! d = `n_embd`, H = heads, dh = d / H.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use crate::activation::gelu_new;
use crate::keys::ids_to_json;
use crate::kv_cache::KvCache;
use crate::layers::{Conv1D, Embedding, LayerNorm, Precision, Projected};
use crate::span::{Heads, Span};

/// The keys of a GPT-2 `config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpt2Config {
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
    /// Those of `generation_config.json`.
    #[serde(skip)]
    pub(crate) generation_eos: Vec<u32>,
}

impl Gpt2Config {
    /// Width of the MLP.
    pub(crate) fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Name and shape of every tensor, in the model's order.
    pub(crate) fn tensors(self) -> impl Iterator<Item = (String, Vec<usize>)> {
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
        first.into_iter().chain(layers).chain(norm).chain(head)
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
        self.resid_dropout.forward(self.c_proj.forward(y))
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
        self.dropout
            .forward(self.c_proj.forward(gelu_new(self.c_fc.forward(x))))
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
                shape: Heads {
                    heads: config.n_head,
                    kv_heads: config.n_head,
                    dh: d / config.n_head,
                },
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
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.projections_mut().for_each(|p| p.precision = precision);
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Conv1D> {
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

    /// Turns dropout off; the configuration keeps its probabilities.
    pub(crate) fn without_dropout(&mut self) {
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

    pub(crate) fn head(&self) -> &Param<Tensor<2>> {
        let head = self.lm_head.as_ref();
        &head.unwrap_or(&self.transformer.wte).weight
    }

    /// Adds the embeddings of the positions: `[N, d] -> [N, d]`.
    pub(crate) fn enter(&self, tokens: Tensor<2>, span: &Span) -> Tensor<2> {
        let ([n, d], stack) = (tokens.dims(), &self.transformer);
        let places = stack.wpe.forward(span.ids(&tokens.device())); // [B or 1, T, d]
        let width = places.dims()[1];
        let x = tokens.reshape([n / width, width, d]) + places;
        stack.drop.forward(x.reshape([n, d]))
    }

    /// One block: `[N, d] -> [N, d]`
    pub(crate) fn layer(
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

    pub(crate) fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.transformer
            .ln_f
            .forward(x, self.config.layer_norm_epsilon)
    }
}
