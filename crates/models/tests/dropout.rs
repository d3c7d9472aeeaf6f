//! Dropout of a model in training, and a model without.

use abkd_models::lora;
use abkd_models::{LanguageModel, ModelConfig};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::json;

fn model(config: serde_json::Value) -> LanguageModel {
    let config: ModelConfig = serde_json::from_value(config).unwrap();
    config.init(3, &Device::flex())
}

fn hidden(model: &LanguageModel) -> Vec<f32> {
    let ids: Vec<i32> = (0..12).map(|i| i * 7 % 50).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, 6]), &model.device());
    model
        .hidden(ids, &[], None)
        .into_data()
        .as_slice()
        .unwrap()
        .to_vec()
}

/// Adds 0.1 to all parameters.
struct Shift;
impl ModuleMapper for Shift {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|x| x + 0.1)
    }
}

#[test]
fn a_model_without_dropout_computes_in_training_what_it_computes_otherwise() {
    let gpt2 = |embd: f64, attn: f64, resid: f64| {
        model(json!({
            "model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2,
            "embd_pdrop": embd, "attn_pdrop": attn, "resid_pdrop": resid, "initializer_range": 0.2,
        }))
    };
    let llama = || {
        model(json!({
            "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16, "initializer_range": 0.2,
        }))
    };
    let adapted = |dropout: f64| {
        let adapters =
            serde_json::from_value(json!({ "r": 4, "alpha": 8, "dropout": dropout })).unwrap();
        // B is 0 in a new adapter, which then changes nothing.
        lora::attach(llama(), &adapters, 1).unwrap().map(&mut Shift)
    };
    let never = || gpt2(0.0, 0.0, 0.0);
    // each with a model of the same weights that never had dropout
    for (name, model, never) in [
        ("embeddings", gpt2(0.5, 0.0, 0.0), never()),
        ("attention", gpt2(0.0, 0.5, 0.0), never()),
        ("residuals", gpt2(0.0, 0.0, 0.5), never()),
        ("adapters", adapted(0.5), adapted(0.0)),
    ] {
        let plain = hidden(&model);
        assert!(hidden(&model.clone().train()) != plain, "{name}");
        let without = model.clone().without_dropout();
        let trained = hidden(&without.clone().train());
        assert!(trained == hidden(&never.train()), "{name}");
        // A pass with a graph rounds differently from one without.
        let apart = |a: f32, (x, y): (&f32, &f32)| a.max((x - y).abs());
        let error = trained.iter().zip(&plain).fold(0.0, apart);
        let largest = plain.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        assert!(error < 1e-6 * largest, "{name}: {error} of {largest}");
        let configs =
            [model.config(), without.config()].map(|c| serde_json::to_string(&c).unwrap());
        assert_eq!(configs[0], configs[1], "{name}");
    }
}
