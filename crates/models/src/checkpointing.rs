//! Gradient checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"), one layer at a time.
//!
//! The forward pass keeps the input of each layer and nothing else. The backward pass recomputes a layer and its gradients
//! before it goes on to the layer below. One more forward pass limits the peak to one layer's activations, however many
//! layers there are. (Burn's own setting of this name recomputes only cheap operations, and keeps the results of all
//! products.)

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;

use crate::LanguageModel;
use crate::ops::dropout;
use crate::span::Span;

/// A forward pass of a model on an autodiff device, without its graph.
pub struct Checkpoints<'a> {
    model: &'a LanguageModel,
    /// Rows of the token embedding `[N, d]`, on the plain device.
    tokens: Tensor<2>,
    span: Span,
    /// Inputs of the layers, then the last one's output, `[N, d]`; on the plain device.
    inputs: Vec<Tensor<2>>,
    /// The thread's state of dropout before the embeddings and before each layer: a recomputed layer drops the same numbers.
    draws: Vec<u64>,
}

impl LanguageModel {
    /// [`hidden_of_tokens`](Self::hidden_of_tokens), but only the layers' inputs are kept. `tokens` is on the plain device.
    pub fn checkpointed(&self, tokens: Tensor<2>, lengths: &[usize]) -> Checkpoints<'_> {
        let mut pass = Checkpoints {
            model: self,
            span: Span::packed(lengths, self.inner().angles(), &self.device()),
            tokens,
            inputs: Vec::new(),
            draws: vec![dropout::state()],
        };
        let mut x = without_graph(pass.tokens.clone(), |x| pass.enter(x));
        for index in 0..self.inner().layers() {
            pass.draws.push(dropout::state());
            let y = without_graph(x.clone(), |x| pass.layer(index, x));
            pass.inputs.push(x);
            x = y;
        }
        pass.inputs.push(x);
        pass
    }
}

impl Checkpoints<'_> {
    /// Final hidden states `[N, d]` on the plain device.
    pub fn hidden(&self) -> Tensor<2> {
        let last = self.inputs.last().expect("the last layer's output");
        without_graph(last.clone(), |x| self.model.inner().norm(x))
    }

    /// Gradients of the parameters and of the tokens' rows, from the hidden states' gradient `d_hidden` `[N, d]`, on the
    /// plain device.
    pub fn backward(mut self, d_hidden: Tensor<2>) -> (GradientsParams, Tensor<2>) {
        let mut sum = GradientsAccumulator::new();
        // The product's gradient in y is d_y.
        let mut backward = |y: Tensor<2>, d_y: Tensor<2>| {
            let mut grads = (y * Tensor::from_inner(d_y)).sum().backward();
            let params = GradientsParams::from_module(&mut grads, self.model);
            sum.accumulate(self.model, params);
            grads
        };
        let mut d_y = d_hidden;
        while let Some(x) = self.inputs.pop() {
            let x = Tensor::from_inner(x).require_grad();
            let index = self.inputs.len();
            let y = if index == self.model.inner().layers() {
                self.model.inner().norm(x.clone())
            } else {
                dropout::resume(self.draws[index + 1]);
                self.layer(index, x.clone())
            };
            let mut grads = backward(y, d_y);
            d_y = x.grad_remove(&mut grads).expect("asked for above");
        }
        let tokens = Tensor::from_inner(self.tokens.clone()).require_grad();
        dropout::resume(self.draws[0]);
        let mut grads = backward(self.enter(tokens.clone()), d_y);
        let d_tokens = tokens.grad_remove(&mut grads).expect("asked for above");
        (sum.grads(), d_tokens)
    }

    fn enter(&self, tokens: Tensor<2>) -> Tensor<2> {
        self.model.inner().enter(tokens, &self.span)
    }

    fn layer(&self, index: usize, x: Tensor<2>) -> Tensor<2> {
        self.model.inner().layer(index, x, &self.span, None)
    }
}

/// `f` of `x` on the autodiff device, where dropout is active. Burn keeps a dropped graph in memory until a backward pass
/// runs near it: this function runs one from `x`.
fn without_graph(x: Tensor<2>, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    let x = Tensor::from_inner(x).require_grad();
    let y = f(x.clone()).inner();
    let [n, d] = x.dims();
    let _ = x.reshape([n * d]).backward();
    y
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, ParamId};
    use burn::tensor::{Device, TensorData};
    use serde_json::json;

    use super::*;
    use crate::{ModelConfig, lora, params, seed_dropout};

    /// The same pass with its graph.
    fn with_graph(
        model: &LanguageModel,
        tokens: Tensor<2>,
        lengths: &[usize],
        d_hidden: Tensor<2>,
    ) -> (Vec<f32>, Vec<f32>) {
        let tokens = Tensor::from_inner(tokens).require_grad();
        let hidden = model.hidden_of_tokens(tokens.clone(), lengths);
        let mut grads = (hidden * Tensor::from_inner(d_hidden)).sum().backward();
        let params = GradientsParams::from_module(&mut grads, model);
        let d_tokens = tokens.grad_remove(&mut grads).unwrap();
        (values(model, params), params::to_vec(d_tokens))
    }

    fn values(model: &LanguageModel, grads: GradientsParams) -> Vec<f32> {
        struct All<'a>(&'a GradientsParams, Vec<f32>);
        impl burn::module::ModuleVisitor for All<'_> {
            fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
                let id: ParamId = param.id;
                if let Some(grad) = self.0.get::<D>(id) {
                    self.1.extend(params::to_vec(grad));
                }
            }
        }
        let mut all = All(&grads, Vec::new());
        model.visit(&mut all);
        all.1
    }

    #[test]
    fn gradients_are_those_of_the_pass_with_its_graph() {
        let gpt2 = json!({
            "model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 3, "n_head": 2,
            "attn_pdrop": 0.2, "resid_pdrop": 0.2, "embd_pdrop": 0.2,
        });
        let llama = json!({
            "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 16,
        });
        let adapters: lora::LoraConfig =
            serde_json::from_value(json!({"r": 4, "alpha": 8, "dropout": 0.3})).unwrap();
        for (config, adapters) in [(gpt2, None), (llama.clone(), None), (llama, Some(adapters))] {
            let config: ModelConfig = serde_json::from_value(config).unwrap();
            let mut model = config.init(3, &Device::flex());
            if let Some(adapters) = &adapters {
                model = lora::attach(model, adapters, 1).unwrap();
            }
            let model = model.train();
            let wave = |step: f32| {
                let values: Vec<f32> = (0..12 * 16).map(|i| (i as f32 * step).sin()).collect();
                Tensor::<2>::from_data(TensorData::new(values, [12, 16]), &Device::flex())
            };
            let (tokens, d_hidden) = (wave(0.3), wave(1.0));
            let lengths = [7, 1, 4];
            seed_dropout(7);
            let pass = model.checkpointed(tokens.clone(), &lengths);
            assert_eq!(pass.inputs.len(), 4);
            let (grads, d_tokens) = pass.backward(d_hidden.clone());
            let ours = (values(&model, grads), params::to_vec(d_tokens));
            assert!(ours.0.iter().chain(&ours.1).any(|&x| x != 0.0));
            seed_dropout(7);
            assert_eq!(ours, with_graph(&model, tokens, &lengths, d_hidden));
        }
    }
}
