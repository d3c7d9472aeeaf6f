//! GPT-2 and LLaMA on Burn: Hugging Face checkpoints in and out, a KV cache, and sampling.
//!
//! A model maps token ids `[B, T]` to *hidden states* `[B, T, d]`. The language-model head is
//! applied apart ([`LanguageModel::logits`]), so that a training step can apply it only to the rows
//! that predict a response token.
#![allow(clippy::module_name_repetitions)]

mod activation;
mod attention;
pub mod checkpoint;
mod checkpointing;
mod config;
mod decoder;
mod draw;
mod error;
pub mod generate;
pub mod gpt2;
mod kv_cache;
mod layers;
pub mod llama;
pub mod lora;
mod ops;
mod packed;
pub mod params;
pub mod verify;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

pub use checkpointing::Checkpoints;
pub use config::{ModelConfig, Parameters};
pub use error::Error;
pub use kv_cache::KvCache;
pub use layers::Precision;
use layers::Span;

/// A causal language model of one of the supported architectures.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum LanguageModel {
    /// GPT-2 (Radford et al. 2019).
    Gpt2(gpt2::Gpt2),
    /// LLaMA (Touvron et al. 2023).
    Llama(llama::Llama),
}

impl LanguageModel {
    /// Final hidden states, after the last norm.
    ///
    /// # Shapes
    ///
    /// - `ids`: `[B, T]`; the columns follow what `cache` already holds.
    /// - `left_pad`: how many of a row's first positions (over the whole sequence, cache included)
    ///   are padding; empty when no row is left-padded. Right padding needs no mention: attention is
    ///   causal.
    /// - output: `[B, T, d]`
    pub fn hidden(
        &self,
        ids: Tensor<2, Int>,
        left_pad: &[usize],
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let width = ids.dims()[1];
        let span = self.span(width, cache.as_ref().map_or(0, |c| c.len()), left_pad);
        let mut x = self.embed(ids, &span);
        for index in 0..self.layers() {
            x = self.layer(index, x, &span, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.advance(width);
        }
        self.norm(x)
    }

    fn span(&self, width: usize, past: usize, left_pad: &[usize]) -> Span {
        match self {
            Self::Gpt2(m) => m.span(width, past, left_pad),
            Self::Llama(m) => m.span(width, past, left_pad),
        }
    }

    fn embed(&self, ids: Tensor<2, Int>, span: &Span) -> Tensor<3> {
        match self {
            Self::Gpt2(m) => m.embed(ids, span),
            Self::Llama(m) => m.embed(ids),
        }
    }

    fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        span: &Span,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        match self {
            Self::Gpt2(m) => m.layer(index, x, span, cache),
            Self::Llama(m) => m.layer(index, x, span, cache),
        }
    }

    fn norm(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gpt2(m) => m.norm(x),
            Self::Llama(m) => m.norm(x),
        }
    }

    fn layers(&self) -> usize {
        match self {
            Self::Gpt2(m) => m.transformer.h.len(),
            Self::Llama(m) => m.model.layers.len(),
        }
    }

    /// The head's weight `[V, d]`: the token embedding itself where the two are tied.
    pub fn head(&self) -> &Param<Tensor<2>> {
        match self {
            Self::Gpt2(m) => &m.transformer.wte.weight,
            Self::Llama(m) => m.head(),
        }
    }

    /// Logits of hidden states: `[N, d] -> [N, V]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.precision()
            .matmul(hidden, self.head().val().transpose())
    }

    /// Numbers of the matrix products.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Gpt2(m) => m.precision,
            Self::Llama(m) => m.precision,
        }
    }

    /// The same model with other numbers in its matrix products.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        match &mut self {
            Self::Gpt2(m) => m.set_precision(precision),
            Self::Llama(m) => m.set_precision(precision),
        }
        self
    }

    /// The same model without dropout, also while it is trained (PyTorch's eval mode with gradients). The configuration
    /// keeps its probabilities.
    pub fn without_dropout(mut self) -> Self {
        if let Self::Gpt2(m) = &mut self {
            m.without_dropout();
        }
        lora::without_dropout(&mut self);
        self
    }

    /// The same model for many passes over weights that do not change, and its head `[d, V]`: projections are held in
    /// the numbers of their products.
    pub(crate) fn for_decoding(mut self) -> (Self, Tensor<2>) {
        let precision = self.precision();
        if precision != Precision::F32 {
            let ready = |weight: &mut Param<Tensor<2>>| {
                *weight = Param::from_tensor(precision.round(weight.val()));
            };
            match &mut self {
                Self::Gpt2(m) => m.projections_mut().for_each(|p| ready(&mut p.weight)),
                Self::Llama(m) => m.projections_mut().for_each(|p| ready(&mut p.weight)),
            }
        }
        let head = precision.round(self.head().val()).transpose();
        (self, head)
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> ModelConfig {
        match self {
            Self::Gpt2(m) => ModelConfig::Gpt2((*m.config).clone()),
            Self::Llama(m) => ModelConfig::Llama((*m.config).clone()),
        }
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        match self {
            Self::Gpt2(m) => m.transformer.wte.weight.val().device(),
            Self::Llama(m) => m.model.embed_tokens.weight.val().device(),
        }
    }

    /// A shallower model made of some of this one's layers, evenly spaced, first and last included.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when `count` is 0 or more than the model has.
    pub fn with_layers(&self, count: usize) -> Result<Self, Error> {
        let have = self.config().layers();
        if count == 0 || count > have {
            return Err(Error::Setting {
                key: "layers".into(),
                value: count.to_string(),
                reason: format!("the model has {have} layers"),
            });
        }
        let keep: Vec<usize> = (0..count)
            .map(|i| {
                if count == 1 {
                    0
                } else {
                    (i * (have - 1) + (count - 1) / 2) / (count - 1)
                }
            })
            .collect();
        Ok(match self.clone() {
            Self::Gpt2(mut m) => {
                m.transformer.h = keep.iter().map(|&i| m.transformer.h[i].clone()).collect();
                m.config.n_layer = count;
                Self::Gpt2(m)
            }
            Self::Llama(mut m) => {
                m.model.layers = keep.iter().map(|&i| m.model.layers[i].clone()).collect();
                m.config.num_hidden_layers = count;
                Self::Llama(m)
            }
        })
    }
}
