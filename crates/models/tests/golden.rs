//! Logits and greedy tokens against `transformers`, and the errors of broken checkpoints.

mod common;

use std::path::Path;

use abkd_models::generate::{Decoding, generate};
use abkd_models::{Error, LanguageModel, Precision, checkpoint, lora, verify};
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{goldens, load};

/// A checkpoint of each architecture and dialect.
const ARCHITECTURES: [&str; 6] = [
    "gpt2-tiny",
    "llama-tiny",
    "llama-tied-tiny",
    "mistral-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
];

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for name in ARCHITECTURES {
        for check in verify::verify_model(&goldens().join(name), &Device::flex()).unwrap() {
            assert!(check.error <= check.tolerance, "{name}: {check:?}");
        }
    }
}

#[test]
fn half_precision_stays_near_and_is_not_the_same() {
    for name in ["gpt2-tiny", "llama-tiny"] {
        let exact = load(name);
        let half = exact.clone().with_precision(Precision::Bf16);
        let logits = |model: &LanguageModel| {
            let ids = Tensor::<2, Int>::from_ints([[5, 9, 2, 7, 11]], &Device::flex());
            let hidden = model.hidden(ids, &[], None);
            let d = hidden.dims()[2];
            model.logits(hidden.reshape([5, d]))
        };
        let largest: f32 = logits(&exact).abs().max().into_scalar();
        let error: f32 = (logits(&exact) - logits(&half)).abs().max().into_scalar();
        assert!(
            error > 0.0 && error < 0.05 * largest,
            "{name}: {error} of {largest}"
        );
    }
}

#[test]
fn an_adapter_of_peft_gives_pefts_logits_and_is_written_as_peft_writes_it() {
    let dir = goldens().join("llama-tiny-lora");
    let adapted = lora::load(load("llama-tiny"), &dir).unwrap();
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = golden["input_ids"].as_array().unwrap();
    let ids: Vec<i32> = rows
        .iter()
        .flat_map(|r| r.as_array().unwrap())
        .map(|v| v.as_i64().unwrap() as i32)
        .collect();
    let width = ids.len() / rows.len();
    let expected: Vec<f64> = serde_json::from_value(golden["logits"].clone()).unwrap();
    let logits = |model: &LanguageModel| -> Vec<f32> {
        let ids = TensorData::new(ids.clone(), [rows.len(), width]);
        let ids = Tensor::<2, Int>::from_data(ids, &Device::flex());
        let hidden = model.hidden(ids, &[], None);
        let [b, t, d] = hidden.dims();
        let logits = model.logits(hidden.reshape([b * t, d]));
        logits.into_data().as_slice().unwrap().to_vec()
    };
    let error = |found: Vec<f32>| {
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().zip(&expected);
        pairs.fold(0.0f64, |e, (a, b)| e.max((f64::from(*a) - b).abs()))
    };
    assert!(error(logits(&adapted)) < 1e-4);
    assert!(error(logits(&lora::merge(adapted.clone()))) < 1e-4);
    assert!(error(logits(&load("llama-tiny"))) > 1e-2);

    let written = tempfile::tempdir().unwrap();
    let config = lora::LoraConfig {
        r: 2,
        alpha: 6.0,
        dropout: 0.0,
        target_modules: vec!["q_proj".into(), "v_proj".into()],
        start: lora::Start::Continue,
    };
    lora::save(&adapted, &config, "llama-tiny", written.path()).unwrap();
    let tensors = |dir: &Path| {
        let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = file
            .tensors()
            .into_iter()
            .map(|(n, v)| (n, v.shape().to_vec(), v.data().to_vec()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(tensors(written.path()), tensors(&dir));

    // errors name what does not fit
    let broken = tempfile::tempdir().unwrap();
    let copy = |key: &str, value: serde_json::Value| {
        let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        std::fs::write(broken.path().join("adapter_config.json"), json.to_string()).unwrap();
        std::fs::copy(
            dir.join("adapter_model.safetensors"),
            broken.path().join("adapter_model.safetensors"),
        )
        .unwrap();
        let loaded = lora::load(load("llama-tiny"), broken.path());
        loaded.unwrap_err().to_string()
    };
    assert!(copy("r", 3.into()).contains("rank"));
    assert!(copy("use_dora", true.into()).contains("use_dora"));
    assert!(copy("target_modules", serde_json::json!(["q_proj"])).contains("v_proj"));
}

#[test]
fn a_saved_checkpoint_loads_with_the_same_numbers() {
    for name in ARCHITECTURES {
        let dir = tempfile::tempdir().unwrap();
        let model = load(name);
        checkpoint::save(&model, dir.path(), checkpoint::StoredAs::F32).unwrap();
        let again = checkpoint::load(dir.path(), &Device::flex()).unwrap();
        assert_eq!(
            abkd_models::params::values(&model),
            abkd_models::params::values(&again)
        );
        assert_eq!(model.config(), again.config());
        std::fs::copy(
            goldens().join(name).join("golden.json"),
            dir.path().join("golden.json"),
        )
        .unwrap();
        checkpoint::save(&model, dir.path(), checkpoint::StoredAs::Bf16).unwrap();
        let checks = verify::verify_model(dir.path(), &Device::flex()).unwrap();
        assert!(
            checks[0].error > 0.0 && checks[0].error < 0.1,
            "bf16 rounds, and not much: {checks:?}"
        );
    }
}

#[test]
fn an_answer_does_not_depend_on_its_batch() {
    let model = load("llama-tied-tiny");
    let prompts: Vec<Vec<u32>> = (0..9u32)
        .map(|i| (0..=i % 5).map(|k| (7 * i + k) % 96).collect())
        .collect();
    let keys: Vec<u64> = (0..9).collect();
    let run = |batch_size, order: &[usize]| {
        let decoding = Decoding {
            batch_size,
            max_new_tokens: 20,
            ..Decoding::sampling()
        };
        let prompts: Vec<_> = order.iter().map(|&i| prompts[i].clone()).collect();
        let keys: Vec<_> = order.iter().map(|&i| keys[i]).collect();
        generate(&model, &prompts, &keys, 10, &[96], &decoding, &mut |_| {}).unwrap()
    };
    let forward: Vec<usize> = (0..9).collect();
    let backward: Vec<usize> = (0..9).rev().collect();
    let one = run(1, &forward);
    assert_eq!(one, run(9, &forward));
    assert_eq!(one, run(4, &forward));
    assert_eq!(one, run(4, &backward).into_iter().rev().collect::<Vec<_>>());
    let decoding = Decoding {
        max_new_tokens: 20,
        ..Decoding::sampling()
    };
    let other = generate(&model, &prompts, &keys, 11, &[96], &decoding, &mut |_| {}).unwrap();
    assert_ne!(one, other, "another seed gives other answers");
}

fn broken(change: impl FnOnce(&Path)) -> Error {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(
            goldens().join("gpt2-tiny").join(file),
            dir.path().join(file),
        )
        .unwrap();
    }
    change(dir.path());
    checkpoint::load(dir.path(), &Device::flex()).unwrap_err()
}

fn edit_config(dir: &Path, key: &str, value: serde_json::Value) {
    let path = dir.join("config.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_broken_checkpoint_is_an_error_that_names_the_place() {
    let error = broken(|dir| {
        let path = dir.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");

    let error = broken(|dir| edit_config(dir, "n_layer", 3.into()));
    assert!(
        error.to_string().contains("transformer.h.2.ln_1.weight"),
        "{error}"
    );

    let error = broken(|dir| edit_config(dir, "n_layer", 1.into()));
    assert!(
        error.to_string().contains("no place") && error.to_string().contains("h.1."),
        "{error}"
    );

    let error = broken(|dir| edit_config(dir, "vocab_size", 98.into()));
    assert!(
        error.to_string().contains("wte.weight") && error.to_string().contains("[98, 32]"),
        "{error}"
    );

    let error = broken(|dir| edit_config(dir, "activation_function", "relu".into()));
    assert!(error.to_string().contains("activation_function"), "{error}");

    let error = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn sharded_and_half_precision_files_are_read() {
    use safetensors::{Dtype, tensor::TensorView};
    let dir = tempfile::tempdir().unwrap();
    let model = load("gpt2-tiny");
    std::fs::copy(
        goldens().join("gpt2-tiny/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let values = abkd_models::params::values(&model);
    let mut map = serde_json::Map::new();
    for (part, chunk) in values.chunks(values.len().div_ceil(2)).enumerate() {
        let name = format!("model-{part}.safetensors");
        // the first part as f16, the second as f32
        let stored: Vec<_> = chunk
            .iter()
            .map(|(n, shape, data)| {
                map.insert(n.clone(), name.clone().into());
                if part == 0 {
                    let bytes: Vec<u8> = data
                        .iter()
                        .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
                        .collect();
                    (n, shape, Dtype::F16, bytes)
                } else {
                    (
                        n,
                        shape,
                        Dtype::F32,
                        data.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    )
                }
            })
            .collect();
        let views = stored.iter().map(|(n, shape, dtype, bytes)| {
            (
                n.as_str(),
                TensorView::new(*dtype, shape.to_vec(), bytes).unwrap(),
            )
        });
        std::fs::write(
            dir.path().join(name),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let again = checkpoint::load(dir.path(), &Device::flex()).unwrap();
    for ((name, _, a), (_, _, b)) in values.iter().zip(abkd_models::params::values(&again)) {
        let worst = a
            .iter()
            .zip(&b)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-3, "{name}: {worst}");
    }
}
