//! Gradient checkpointing holds one layer's activations: peaks are read from the system, in a process of its own.

use abkd_host::peak_memory as peak;
use abkd_models::ModelConfig;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::json;

#[test]
fn the_peak_is_far_below_that_of_the_graph() {
    let Some(start) = peak() else {
        return; // not Linux
    };
    let config: ModelConfig = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }))
    .unwrap();
    let model = config.init(1, &Device::flex()).train();
    let (b, t, d) = (8, 256, 64);
    let n = b * t;
    let tokens: Vec<f32> = (0..n * d).map(|i| (i as f32).sin()).collect();
    let tokens = Tensor::<2>::from_data(TensorData::new(tokens, [n, d]), &Device::flex());
    let lengths = vec![t; b];
    let d_hidden = Tensor::<2>::ones([n, d], &Device::flex());
    let pass = model.checkpointed(tokens.clone(), &lengths);
    let (grads, _) = pass.backward(d_hidden);
    assert!(!grads.is_empty());
    let checkpointed = peak().unwrap() - start;
    let tokens = Tensor::from_inner(tokens).require_grad();
    let grads = model.hidden_of_tokens(tokens, &lengths).sum().backward();
    let graph = peak().unwrap() - start;
    drop(grads);
    println!("MiB: {} and {}", checkpointed >> 20, graph >> 20);
    // Activations of 16 layers against those of one layer, the kept inputs and the gradients.
    assert!(checkpointed * 4 < graph, "{checkpointed} {graph}");
}
