//! Sequences end to end give the hidden states and gradients of padded ones.

use abkd_models::lora::{self, LoraConfig};
use abkd_models::{LanguageModel, ModelConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use serde_json::{Value, json};

const D: usize = 24;

fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 50, "n_positions": 160, "n_embd": D, "n_layer": 2, "n_head": 3,
        "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "initializer_range": 0.1,
    })
}

/// Queries share key heads.
fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": D, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 160,
        "initializer_range": 0.1,
    })
}

/// With biases on queries, keys and values.
fn qwen2() -> Value {
    let mut config = llama();
    config["model_type"] = "qwen2".into();
    config
}

/// With norms on the heads of queries and keys.
fn qwen3() -> Value {
    let mut config = llama();
    config["model_type"] = "qwen3".into();
    config["head_dim"] = 6.into();
    config
}

fn model(config: Value, adapted: bool, device: &Device) -> LanguageModel {
    let config: ModelConfig = serde_json::from_value(config).unwrap();
    let mut model = config.init(3, device);
    if adapted {
        let config: LoraConfig = serde_json::from_value(
            json!({"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
        )
        .unwrap();
        model = lora::attach(model, &config, 1).unwrap();
    }
    model.train()
}

fn ids(n: usize) -> Vec<i32> {
    (0..n as i32).map(|i| i * 31 % 47).collect()
}

fn weights(n: usize) -> Vec<f32> {
    (0..n * D).map(|i| (i as f32 * 0.7).sin()).collect()
}

fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().as_slice::<f32>().unwrap().to_vec()
}

/// Hidden states, then the gradients of their weighted sum.
type Results = Vec<Vec<f32>>;

fn results(model: &LanguageModel, rows: Tensor<2>) -> Results {
    let n = rows.dims()[0];
    let weights = Tensor::from_data(TensorData::new(weights(n), [n, D]), &rows.device());
    let hidden = to_vec(rows.clone().inner());
    let mut grads = (rows * weights).sum().backward();
    let grads = GradientsParams::from_module(&mut grads, model);
    std::iter::once(hidden).chain(all(model, &grads)).collect()
}

fn all(model: &LanguageModel, grads: &GradientsParams) -> Results {
    struct All<'a>(&'a GradientsParams, Results);
    impl ModuleVisitor for All<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                self.1.push(to_vec(grad));
            }
        }
    }
    let mut all = All(grads, Vec::new());
    model.visit(&mut all);
    assert!(!all.1.is_empty());
    all.1
}

fn packed_ids(n: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(ids(n), [n]), device)
}

fn packed(model: &LanguageModel, lengths: &[usize]) -> Results {
    let ids = packed_ids(lengths.iter().sum(), &model.device());
    results(model, model.hidden_packed(ids, lengths))
}

fn padded(model: &LanguageModel, lengths: &[usize]) -> Results {
    let (rows, width) = (lengths.len(), *lengths.iter().max().unwrap());
    let all = ids(lengths.iter().sum());
    let (mut input, mut places) = (vec![0; rows * width], Vec::new());
    for (row, &length) in lengths.iter().enumerate() {
        let (start, first) = (row * width, places.len());
        input[start..start + length].copy_from_slice(&all[first..first + length]);
        places.extend((start..start + length).map(|place| place as i32));
    }
    let device = model.device();
    let n = places.len();
    let input = Tensor::<2, Int>::from_data(TensorData::new(input, [rows, width]), &device);
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [n]), &device);
    let hidden = model.hidden(input, &[], None).reshape([rows * width, D]);
    results(model, hidden.select(0, places))
}

/// Norm of the difference, relative to the norm: of the hidden states or of all gradients, whichever is worse.
fn error(a: &Results, b: &Results) -> f64 {
    let error = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        assert_eq!(a.len(), b.len());
        let (mut apart, mut norm) = (0.0, 0.0);
        for (a, b) in a.iter().zip(b) {
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(b) {
                apart += f64::from(a - b).powi(2);
                norm += f64::from(*b).powi(2);
            }
        }
        if norm == 0.0 {
            apart
        } else {
            (apart / norm).sqrt()
        }
    };
    error(&a[..1], &b[..1]).max(error(&a[1..], &b[1..]))
}

fn devices() -> Vec<Device> {
    std::iter::once(Device::flex())
        .chain(abkd_host::libtorch())
        .collect()
}

#[test]
fn packed_is_padded_for_all_architectures_and_adapters() {
    for device in devices() {
        for (config, adapted) in [
            (gpt2(), false),
            (llama(), false),
            (llama(), true),
            (qwen2(), false),
            (qwen2(), true),
            (qwen3(), false),
            (qwen3(), true),
        ] {
            let model = model(config, adapted, &device);
            for lengths in [&[5usize][..], &[1, 9, 4], &[150, 3, 70, 64, 65], &[8, 8]] {
                let error = error(&packed(&model, lengths), &padded(&model, lengths));
                assert!(error < 1e-6, "{device:?} {adapted} {lengths:?}: {error:e}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn packed_is_padded_for_any_lengths_in_micro_batches_of_any_size(
        lengths in prop::collection::vec(1usize..90, 1..7), size in 1usize..7,
    ) {
        for config in [gpt2(), llama()] {
            let model = model(config, false, &Device::flex());
            let whole = packed(&model, &lengths);
            prop_assert!(error(&whole, &padded(&model, &lengths)) < 1e-6);
            // A micro-batch has the same rows as the whole batch.
            let n: usize = lengths.iter().sum();
            let ids = packed_ids(n, &model.device());
            let mut first = 0;
            for part in lengths.chunks(size) {
                let end = first + part.iter().sum::<usize>();
                let rows = model.hidden_packed(ids.clone().narrow(0, first, end - first), part);
                let rows = to_vec(rows.inner());
                let same = vec![whole[0][first * D..end * D].to_vec()];
                prop_assert!(error(&vec![rows], &same) < 1e-6);
                first = end;
            }
        }
    }
}

/// Dropout depends on its seed alone.
#[test]
fn dropout_is_reproducible() {
    let mut config = gpt2();
    for key in ["attn_pdrop", "resid_pdrop", "embd_pdrop"] {
        config[key] = 0.3.into();
    }
    for device in devices() {
        let model = model(config.clone(), false, &device);
        let draw = |seed| {
            abkd_models::seed_dropout(seed);
            packed(&model, &[40, 9])
        };
        assert_eq!(draw(1), draw(1));
        assert!(error(&draw(1), &draw(2)) > 1e-2);
    }
}
