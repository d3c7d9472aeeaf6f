//! Gradient checkpointing holds one layer's activations: peaks are read from the system, in a process of its own.

use abkd_host::peak_memory as peak;
use abkd_models::ModelConfig;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
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
    let ids: Vec<i32> = (0..b * t).map(|i| i * 7 % 100).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [b, t]), &model.device());
    let d_hidden = Tensor::<3>::ones([b, t, d], &Device::flex());
    let grads = model.checkpointed(ids.clone(), 1).backward(d_hidden);
    assert!(!grads.is_empty());
    let checkpointed = peak().unwrap() - start;
    let grads = model.hidden(ids, &[], None).sum().backward();
    let graph = peak().unwrap() - start;
    drop(grads);
    println!("MiB: {} and {}", checkpointed >> 20, graph >> 20);
    // 16 layers against one, its input's copies and the gradients.
    assert!(checkpointed * 5 < graph, "{checkpointed} {graph}");
}
