//! Tokens per second of sampling, on a model of SmolLM2's shape with 10 layers and drawn weights (the time does not depend on
//! them): `cargo bench -p abkd-models --bench sampling -- 16 64 128 f32 flex` (batch, tokens of a prompt, new tokens,
//! precision, backend). The end of a text never comes, so every row is sampled to its full length.

use std::time::Instant;

use abkd_models::generate::{Decoding, generate};
use abkd_models::{ModelConfig, Precision};
use burn::tensor::Device;

/// Batches of a run. They share the one-time setup: real runs have tens of batches.
const BATCHES: usize = 4;

const SMOLLM2_10: &str = r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 2048, "rope_theta": 100000.0, "tie_word_embeddings": true}"#;

fn main() {
    abkd_host::share_cores_with_libtorch();
    abkd_host::keep_freed_memory();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut sizes = args.iter().filter_map(|a| a.parse::<usize>().ok());
    let batch = sizes.next().unwrap_or(16);
    let prompt = sizes.next().unwrap_or(64);
    let new = sizes.next().unwrap_or(128);
    let has = |name: &str| args.iter().any(|a| a == name);
    let precision = if has("bf16") {
        Precision::Bf16
    } else {
        Precision::F32
    };
    let config: ModelConfig = serde_json::from_str(SMOLLM2_10).expect("a configuration");
    let model = config
        .init(1, &device(has("tch")))
        .with_precision(precision);
    let vocab = config.vocab_size() as u32;
    let prompts: Vec<Vec<u32>> = (0..(BATCHES * batch) as u32)
        .map(|row| {
            (0..prompt as u32)
                .map(|i| (row * 7919 + i * 104_729) % vocab)
                .collect()
        })
        .collect();
    let keys: Vec<u64> = (0..prompts.len() as u64).collect();
    let decoding = Decoding {
        max_new_tokens: new,
        batch_size: batch,
        ..Decoding::sampling()
    };
    let run = |rows: usize| {
        let begun = Instant::now();
        let (prompts, keys) = (&prompts[..rows], &keys[..rows]);
        let answers = generate(&model, prompts, keys, 1, &[vocab], &decoding, &mut |_| {})
            .expect("drawn weights give finite logits");
        let tokens: usize = answers.iter().map(Vec::len).sum();
        tokens as f64 / begun.elapsed().as_secs_f64()
    };
    run(batch); // warms up
    println!(
        "batch {batch}, prompts of {prompt}, {new} new tokens: {:.0} tokens/s",
        run(prompts.len())
    );
}

fn device(libtorch: bool) -> Device {
    if libtorch {
        abkd_host::libtorch().expect("this build has no libtorch: --features tch")
    } else {
        Device::flex()
    }
}
