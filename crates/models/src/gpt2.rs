//! GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
//!
//! Layout, names and initialisation follow the Hugging Face `GPT2LMHeadModel`; the head is the token
//! embedding. B = batch, T = tokens, N = tokens of all sequences,
//! d = `n_embd`, H = heads, dh = d / H.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::activation::gelu_new;
use crate::kv_cache::KvCache;
use crate::layers::{Conv1D, Embedding, LayerNorm, Precision, Projected};
use crate::span::{Heads, Span};

/// The keys of a GPT-2 `config.json` that matter here, with the defaults of `transformers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// V: rows of the token embedding.
    #[serde(default = "defaults::vocab_size")]
    pub vocab_size: usize,
    /// Longest sequence.
    #[serde(default = "defaults::n_positions")]
    pub n_positions: usize,
    /// d: width.
    #[serde(default = "defaults::n_embd")]
    pub n_embd: usize,
    /// Number of blocks.
    #[serde(default = "defaults::n_layer")]
    pub n_layer: usize,
    /// H: attention heads.
    #[serde(default = "defaults::n_head")]
    pub n_head: usize,
    /// Width of the MLP; 4d when absent.
    #[serde(default)]
    pub n_inner: Option<usize>,
    /// Epsilon of the layer norms.
    #[serde(default = "defaults::layer_norm_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Must be `gelu_new` (the tanh form).
    #[serde(default = "defaults::activation_function")]
    pub activation_function: String,
    /// Dropout after the embeddings.
    #[serde(default = "defaults::dropout")]
    pub embd_pdrop: f64,
    /// Dropout on attention weights.
    #[serde(default = "defaults::dropout")]
    pub attn_pdrop: f64,
    /// Dropout before each residual sum.
    #[serde(default = "defaults::dropout")]
    pub resid_pdrop: f64,
    /// Standard deviation of freshly drawn weights.
    #[serde(default = "defaults::initializer_range")]
    pub initializer_range: f64,
    /// First token of a text, if any.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// End of a text.
    #[serde(default)]
    pub eos_token_id: Option<u32>,
}

mod defaults {
    pub fn vocab_size() -> usize {
        50257
    }
    pub fn n_positions() -> usize {
        1024
    }
    pub fn n_embd() -> usize {
        768
    }
    pub fn n_layer() -> usize {
        12
    }
    pub fn n_head() -> usize {
        12
    }
    pub fn layer_norm_epsilon() -> f64 {
        1e-5
    }
    pub fn activation_function() -> String {
        "gelu_new".into()
    }
    pub fn dropout() -> f64 {
        0.1
    }
    pub fn initializer_range() -> f64 {
        0.02
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
        let inner = config.n_inner.unwrap_or(4 * d);
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
    /// Token embedding `[V, d]`, also the head.
    pub wte: Embedding,
    /// Position embedding `[n_positions, d]`.
    pub wpe: Embedding,
    drop: Dropout,
    /// Blocks.
    pub h: Vec<Block>,
    /// Final norm.
    pub ln_f: LayerNorm,
}

/// GPT-2 with its (tied) language-model head.
#[derive(Module, Debug)]
pub struct Gpt2 {
    /// The stack.
    pub transformer: Transformer,
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
            config: Box::new(config.clone()),
            precision: Precision::F32,
        }
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
