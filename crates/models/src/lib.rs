//! GPT-2 and LLaMA on Burn: Hugging Face checkpoints in and out, a KV cache, and sampling.
//!
//! A model maps token ids to *hidden states*: `[B, T]` to `[B, T, d]`, or `[N]` to `[N, d]` where the N tokens of all
//! sequences lie end to end. The language-model head is applied separately ([`LanguageModel::logits`]), so that a training
//! step can apply it only to the rows that predict a response token.

mod activation;
mod architecture;
mod attention;
mod bf16;
pub mod checkpoint;
mod checkpointing;
mod config;
mod decoder;
mod draw;
mod error;
pub mod generate;
pub mod gpt2;
mod keys;
mod kv_cache;
mod layers;
pub mod llama;
pub mod lora;
mod on_device;
mod ops;
mod packed;
pub mod params;
mod rope;
mod rotary;
mod span;
pub mod verify;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

pub use architecture::{LanguageModel, ModelConfig};
pub use checkpointing::Checkpoints;
pub use config::Parameters;
pub use error::Error;
pub use kv_cache::KvCache;
pub use layers::Precision;
pub use ops::dropout::seed_dropout;
pub use rope::RopeScaling;
use span::Span;

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
        let [batch, width] = ids.dims();
        let past = cache.as_ref().map_or(0, |c| c.len());
        let span = Span::padded(width, past, left_pad, self.inner().angles(), &self.device());
        let tokens = self.tokens(ids.flatten(0, 1));
        let x = self.pass(tokens, &span, cache.as_deref_mut());
        if let Some(cache) = cache {
            cache.advance(width);
        }
        let d = x.dims()[1];
        x.reshape([batch, width, d])
    }

    /// [`hidden`](Self::hidden) of one token a row, `[B] -> [B, d]`, after those in the cache, which stay in place.
    fn step(&self, ids: Tensor<1, Int>, span: &Span, cache: &mut KvCache) -> Tensor<2> {
        self.pass(self.tokens(ids), span, Some(cache))
    }

    /// [`hidden`](Self::hidden) of sequences that lie end to end, without padding: everything but attention takes the
    /// tokens of all of them as rows of one matrix.
    ///
    /// # Shapes
    ///
    /// - `ids`: `[N]`; `lengths`, of the sequences: N in all
    /// - output: `[N, d]`
    pub fn hidden_packed(&self, ids: Tensor<1, Int>, lengths: &[usize]) -> Tensor<2> {
        self.hidden_of_tokens(self.tokens(ids), lengths)
    }

    /// [`hidden_packed`](Self::hidden_packed) of rows of the token embedding: `[N, d] -> [N, d]`.
    pub fn hidden_of_tokens(&self, tokens: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
        let span = Span::packed(lengths, self.inner().angles(), &self.device());
        self.pass(tokens, &span, None)
    }

    /// Final hidden states of rows of the token embedding: `[N, d] -> [N, d]`.
    fn pass(&self, tokens: Tensor<2>, span: &Span, mut cache: Option<&mut KvCache>) -> Tensor<2> {
        let model = self.inner();
        let mut x = model.enter(tokens, span);
        for index in 0..model.layers() {
            x = model.layer(index, x, span, cache.as_deref_mut());
        }
        model.norm(x)
    }

    /// Rows of the token embedding: `[N] -> [N, d]`.
    fn tokens(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.embedding().val().select(0, ids)
    }

    /// The token embedding `[V, d]`.
    pub fn embedding(&self) -> &Param<Tensor<2>> {
        self.inner().embedding()
    }

    /// The head's weight `[V, d]`: the token embedding itself where the two are tied.
    pub fn head(&self) -> &Param<Tensor<2>> {
        self.inner().head()
    }

    /// Logits of hidden states: `[N, d] -> [N, V]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.precision()
            .matmul(hidden, self.head().val().transpose())
    }

    /// Number type of the matrix products.
    pub fn precision(&self) -> Precision {
        self.inner().precision()
    }

    /// The same model with another number type in its matrix products.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.inner_mut().set_precision(precision);
        self
    }

    /// The same model without dropout, also while it is trained (PyTorch's eval mode with gradients). The configuration
    /// keeps its probabilities.
    pub fn without_dropout(mut self) -> Self {
        self.inner_mut().without_dropout();
        lora::without_dropout(&mut self);
        self
    }

    /// The same model for many passes over weights that do not change, and its head `[d, V]`: projections are held in the
    /// number type of their products.
    pub(crate) fn for_decoding(self) -> (Self, Tensor<2>) {
        let device = self.device();
        let ready = self.rounded_on(&device);
        let head = ready.precision().round(ready.head().val()).transpose();
        (ready, head)
    }

    /// The same model, not to be trained: on a card, projections are held in the number type of their products, which takes
    /// half the memory in bf16 and gives the same numbers.
    pub fn frozen(self) -> Self {
        let device = self.device();
        self.frozen_on(&device)
    }

    /// [`frozen`](Self::frozen) on another device. A card never holds the weights that are rounded, and each is moved there before
    /// the next is rounded.
    pub fn frozen_on(self, device: &Device) -> Self {
        let model = match abkd_host::serves(device) {
            true => self,
            false => self.rounded_on(device),
        };
        match model.device() == *device {
            true => model,
            false => model.to_device(device),
        }
    }

    fn rounded_on(mut self, device: &Device) -> Self {
        let precision = self.precision();
        if precision != Precision::F32 {
            let mut ready = |weight: &mut Param<Tensor<2>>| {
                *weight = weight.clone().map(|w| precision.round(w).to_device(device));
            };
            self.inner_mut().each_weight(&mut ready);
        }
        self
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.embedding().val().device()
    }

    /// A shallower model made of `count` of this one's layers, evenly spaced, first and last included.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when `count` is 0 or more than the model has.
    pub fn with_layers(&self, count: usize) -> Result<Self, Error> {
        let have = self.config().layers();
        if count == 0 || count > have {
            let reason = format!("the model has {have} layers");
            return Err(Error::setting("layers", count, reason));
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
        self.with_these_layers(&keep)
    }

    /// A shallower model made of the layers `keep` of this one, counted from 0, in ascending order.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when the list is empty, not ascending, or names a layer that the model does not have.
    pub fn with_these_layers(&self, keep: &[usize]) -> Result<Self, Error> {
        let have = self.config().layers();
        let ascending = keep.windows(2).all(|pair| pair[0] < pair[1]);
        if keep.is_empty() || !ascending || keep.iter().any(|&layer| layer >= have) {
            let last = have - 1;
            let reason = format!("the layers 0 to {last} in ascending order are possible");
            return Err(Error::setting("layers", format!("{keep:?}"), reason));
        }
        let mut model = self.clone();
        model.inner_mut().keep_layers(keep);
        Ok(model)
    }
}
