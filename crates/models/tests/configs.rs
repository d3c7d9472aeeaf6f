//! `config.json` files of the Hub are read, and a key that changes what the model computes is honoured or refused.

use abkd_models::{ModelConfig, RopeScaling};
use serde_json::{Value, json};

fn read(config: &Value) -> Result<ModelConfig, String> {
    serde_json::from_value(config.clone()).map_err(|error| error.to_string())
}

fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

/// As transformers 5 writes it.
fn gpt2() -> Value {
    json!({
        "activation_function": "gelu_new", "add_cross_attention": false, "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0, "bos_token_id": 23, "dtype": "float32", "embd_pdrop": 0.0, "eos_token_id": 23,
        "initializer_range": 0.2, "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_embd": 12, "n_head": 2,
        "n_inner": null, "n_layer": 2, "n_positions": 64, "pad_token_id": null, "reorder_and_upcast_attn": false,
        "resid_pdrop": 0.0, "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true,
        "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
        "summary_type": "cls_index", "summary_use_proj": true, "tie_word_embeddings": true,
        "transformers_version": "5.24.0", "use_cache": true, "vocab_size": 24,
    })
}

/// As transformers 5 writes it.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "dtype": "float32", "eos_token_id": 23, "head_dim": 8, "hidden_act": "silu", "hidden_size": 16,
        "initializer_range": 0.2, "intermediate_size": 12, "max_position_embeddings": 64, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
        "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": false,
        "transformers_version": "5.24.0", "use_cache": true, "vocab_size": 24,
    })
}

/// The published files, as they are.
#[test]
fn files_of_the_hub_are_read() {
    let gpt2 = json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257,
    });
    let mut distilgpt2 = gpt2.clone();
    for (key, value) in [
        ("_num_labels", json!(1)),
        ("id2label", json!({"0": "LABEL_0"})),
        ("label2id", json!({"LABEL_0": 0})),
        ("n_layer", json!(6)),
    ] {
        distilgpt2[key] = value;
    }
    // an early file, which has every key
    let mut early = gpt2.clone();
    for (key, value) in [
        ("finetuning_task", json!(null)),
        ("is_decoder", json!(false)),
        ("n_special", json!(0)),
        ("num_labels", json!(1)),
        ("output_attentions", json!(false)),
        ("output_hidden_states", json!(false)),
        ("output_past", json!(true)),
        ("predict_special_tokens", json!(true)),
        ("pruned_heads", json!({})),
        ("torchscript", json!(false)),
        ("use_bfloat16", json!(false)),
        ("gradient_checkpointing", json!(false)),
        ("repetition_penalty", json!(1.0)),
        ("temperature", json!(1.0)),
        ("length_penalty", json!(1.0)),
        ("top_k", json!(50)),
    ] {
        early[key] = value;
    }
    let llama1 = json!({
        "architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_sequence_length": 2048,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": -1,
        "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.27.0.dev0", "use_cache": true,
        "vocab_size": 32000,
    });
    let llama2 = json!({
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 2,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000,
    });
    let llama31 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256,
    });
    let smollm2 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152,
    });
    let linear = json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 32013, "eos_token_id": 32014, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 16384,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": {"factor": 4.0, "type": "linear"},
        "rope_theta": 100000, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1", "use_cache": true, "vocab_size": 32256,
    });
    let mistral = json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000,
    });
    let qwen25 = json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936,
    });
    let qwen3 = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936,
    });
    for (name, file) in [
        ("qwen 3", &qwen3),
        ("mistral", &mistral),
        ("qwen 2.5", &qwen25),
        ("gpt2", &gpt2),
        ("distilgpt2", &distilgpt2),
        ("early gpt2", &early),
        ("llama 1", &llama1),
        ("llama 2", &llama2),
        ("llama 3.1", &llama31),
        ("smollm2", &smollm2),
        ("linear", &linear),
        ("gpt2 of 5", &self::gpt2()),
        ("llama of 5", &self::llama()),
    ] {
        if let Err(error) = read(file) {
            panic!("{name}: {error}");
        }
    }
    // Within the window attention is that of all tokens before; a file without the key has 4096, one with null none.
    let positions = |file: &Value| read(file).unwrap().max_positions();
    assert_eq!(positions(&mistral), 4096);
    let mut without = mistral.clone();
    without.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(positions(&without), 4096);
    assert_eq!(
        positions(&with(&mistral, "sliding_window", json!(null))),
        32768
    );
    assert_eq!(positions(&qwen25), 32768);
    let sliding = with(&qwen25, "use_sliding_window", json!(true));
    assert!(
        read(&sliding)
            .unwrap_err()
            .to_string()
            .contains("use_sliding_window")
    );
    let ModelConfig::Llama(config) = read(&llama31).unwrap() else {
        panic!("a llama")
    };
    assert_eq!(config.rope_theta, 5e5);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope_scaling, Some(scaling));
    assert_eq!(config.eos_token_id, [128001, 128008, 128009]);
    let ModelConfig::Llama(config) = read(&linear).unwrap() else {
        panic!("a llama")
    };
    assert_eq!(
        config.rope_scaling,
        Some(RopeScaling::Linear { factor: 4.0 })
    );
}

#[test]
fn a_key_that_changes_the_function_is_refused_by_its_name() {
    let both = [
        ("add_cross_attention", json!(true)),
        ("is_encoder_decoder", json!(true)),
        ("pruned_heads", json!({"0": [1]})),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4}),
        ),
        (
            "auto_map",
            json!({"AutoModelForCausalLM": "modeling.Model"}),
        ),
        ("transformers_weights", json!("other.safetensors")),
        ("sliding_window", json!(32)),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("is_causal", json!(false)),
        ("final_logit_softcapping", json!(30.0)),
        ("tie_word_embeddings", json!(null)),
        ("tie_word_embeddings", json!("true")),
        ("initializer_range", json!(-1.0)),
        ("eos_token_id", json!(24)),
        ("eos_token_id", json!([3, 24])),
        ("vocab_size", json!(null)),
        // unknown here
        ("logit_scale", json!(0.0625)),
        ("embedding_multiplier", json!(12.0)),
        ("residual_multiplier", json!(1.0)),
        ("a_key_of_tomorrow", json!(false)),
        ("model_type", json!("gemma")),
        ("model_type", json!(null)),
    ];
    let gpt2s = [
        ("activation_function", json!("gelu")),
        ("activation_function", json!("relu")),
        ("scale_attn_weights", json!(false)),
        ("scale_attn_weights", json!(null)),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("n_special", json!(3)),
        ("hidden_size", json!(24)),
        ("layer_norm_eps", json!(1e-3)),
        ("layer_norm_epsilon", json!("small")),
        ("attn_pdrop", json!(1.0)),
        ("rope_theta", json!(5e5)),
        ("num_key_value_heads", json!(1)),
    ];
    let llamas = [
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("attention_dropout", json!(0.1)),
        ("mlp_bias", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_interleaved", json!(true)),
        ("rope_theta", json!(5e5)),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 4.0})),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "rope_theta": 1e4}),
        ),
        ("qk_layernorm", json!(true)),
        ("rms_norm_eps", json!(null)),
        ("n_layer", json!(3)),
    ];
    for (config, own) in [(gpt2(), &gpt2s[..]), (llama(), &llamas[..])] {
        for (key, value) in both.iter().chain(own) {
            let error = match read(&with(&config, key, value.clone())) {
                Ok(read) => panic!("{key} = {value} is read as {read:?}"),
                Err(error) => error,
            };
            let named = error.contains(&format!("`{key}"))
                || error.contains(&format!("`rope_parameters.{key}"));
            assert!(named, "{key} = {value}: {error}");
        }
    }
}

#[test]
fn a_key_is_harmless_with_its_neutral_value() {
    let both = [
        ("add_cross_attention", json!(false)),
        ("sliding_window", json!(null)),
        ("use_sliding_window", json!(false)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("quantization_config", json!(null)),
        ("pruned_heads", json!({})),
        ("unsloth_version", json!("2024.9")),
        ("_attn_implementation_autoset", json!(true)),
        ("torch_dtype", json!("bfloat16")),
        ("use_cache", json!(false)),
        ("max_length", json!(4096)),
        ("pad_token_id", json!(-1)),
        ("bos_token_id", json!(null)),
        ("transformers_weights", json!("model.safetensors")),
        ("a_key_of_tomorrow", json!(null)),
    ];
    let gpt2s = [
        ("hidden_size", json!(12)),
        ("num_hidden_layers", json!(2)),
        ("reorder_and_upcast_attn", json!(true)),
        ("activation_function", json!("gelu_pytorch_tanh")),
    ];
    let llamas = [
        ("hidden_act", json!("swish")),
        ("pretraining_tp", json!(4)),
        ("rope_scaling", json!(null)),
        ("rope_theta", json!(10000)),
        ("partial_rotary_factor", json!(1.0)),
        ("original_max_position_embeddings", json!(32)),
    ];
    for (config, own) in [(gpt2(), &gpt2s[..]), (llama(), &llamas[..])] {
        for (key, value) in both.iter().chain(own) {
            if let Err(error) = read(&with(&config, key, value.clone())) {
                panic!("{key} = {value}: {error}");
            }
        }
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let scaled = with(
        &with(&llama(), "eos_token_id", json!([23, 20])),
        "rope_parameters",
        json!({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    );
    let untied = with(&gpt2(), "tie_word_embeddings", json!(false));
    let windowed = with(
        &with(&llama(), "model_type", json!("mistral")),
        "sliding_window",
        json!(9),
    );
    let endless = with(&windowed, "sliding_window", json!(null));
    let biased = with(&llama(), "model_type", json!("qwen2"));
    let normed = with(&llama(), "model_type", json!("qwen3"));
    for file in [
        gpt2(),
        untied,
        llama(),
        scaled,
        windowed,
        endless,
        biased,
        normed,
    ] {
        let config = read(&file).unwrap();
        let written = serde_json::to_value(&config).unwrap();
        assert_eq!(read(&written).unwrap(), config);
        // only keys of the architecture
        let model_type = written["model_type"].as_str().unwrap();
        let known = ModelConfig::keys(model_type);
        for key in written.as_object().unwrap().keys() {
            assert!(
                key == "model_type" || known.contains(&key.as_str()),
                "{key}"
            );
        }
    }
}
