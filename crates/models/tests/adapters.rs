//! Adapter folders: every key of `adapter_config.json` is honoured, known to be harmless, or refused.

mod common;

use abkd_models::lora;
use common::{Folder, load};
use serde_json::{Value, json};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

fn read(folder: &Folder) -> Result<(), String> {
    let loaded = lora::load(load("llama-tiny"), folder.dir());
    loaded.map(|_| ()).map_err(|error| error.to_string())
}

fn with(key: &str, value: Value) -> Folder {
    let folder = Folder::of("llama-tiny-lora");
    folder.edit(CONFIG, key, value);
    folder
}

#[test]
fn a_key_that_changes_the_function_is_refused_by_its_name() {
    for (key, value) in [
        ("use_rslora", json!(true)),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0])),
        ("layers_to_transform", json!(0)),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("exclude_modules", json!(["v_proj"])),
        ("target_parameters", json!(["x"])),
        ("trainable_token_indices", json!([3])),
        ("alora_invocation_tokens", json!([3])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("corda_config", json!({})),
        ("peft_type", json!("IA3")),
        ("peft_type", json!(null)),
        ("task_type", json!("SEQ_CLS")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!([])),
        ("target_modules", json!(null)),
        ("target_modules", json!(["q_proj", 3])),
        ("target_modules", json!(["q_proj", "v_proj", "x_proj"])),
        ("r", json!(0)),
        ("r", json!(-2)),
        ("r", json!(null)),
        ("lora_alpha", json!(null)),
        ("lora_alpha", json!(0)),
        ("lora_dropout", json!(1.0)),
        ("a_key_of_tomorrow", json!(1)),
    ] {
        let Err(error) = read(&with(key, value.clone())) else {
            panic!("{key} = {value} is read")
        };
        let named = error.contains(&format!("`{key}`")) && error.contains(CONFIG);
        assert!(named, "{key} = {value}: {error}");
    }
}

#[test]
fn a_key_is_harmless_with_its_neutral_value() {
    for (key, value) in [
        ("use_rslora", json!(false)),
        ("bias", json!("none")),
        ("rank_pattern", json!({})),
        ("modules_to_save", json!(null)),
        ("modules_to_save", json!([])),
        ("layers_to_transform", json!(null)),
        ("init_lora_weights", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("runtime_config", json!({"ephemeral_gpu_offload": false})),
        ("revision", json!("main")),
        ("a_key_of_tomorrow", json!(null)),
        ("target_modules", json!(["q_proj", "v_proj", "q_proj"])),
    ] {
        if let Err(error) = read(&with(key, value.clone())) {
            panic!("{key} = {value}: {error}");
        }
    }
}

#[test]
fn a_rank_is_compared_with_the_weights_before_room_is_made_for_it() {
    let begun = std::time::Instant::now();
    for r in [3, 1u64 << 30, 1 << 60] {
        let error = read(&with("r", json!(r))).unwrap_err();
        assert!(
            error.contains(WEIGHTS) && error.contains("of this rank"),
            "{error}"
        );
    }
    let config = lora::LoraConfig {
        r: 1 << 40,
        alpha: 1.0,
        dropout: 0.0,
        target_modules: vec!["q_proj".into()],
        start: lora::Start::Continue,
    };
    let error = lora::attach(load("llama-tiny"), &config, 1).unwrap_err();
    assert!(error.to_string().contains("`lora.r`"), "{error}");
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn a_layer_that_is_named_twice_is_refused_by_its_name() {
    let config = lora::LoraConfig {
        r: 2,
        alpha: 1.0,
        dropout: 0.0,
        target_modules: ["q_proj", "v_proj", "q_proj"].map(String::from).to_vec(),
        start: lora::Start::Continue,
    };
    let error = config.validate().unwrap_err().to_string();
    assert!(
        error.contains("`lora.target_modules` = q_proj") && error.contains("twice"),
        "{error}"
    );
}

#[test]
fn files_that_are_none_are_refused() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n";
    for file in [CONFIG, WEIGHTS] {
        let folder = Folder::of("llama-tiny-lora");
        std::fs::write(folder.path(file), pointer).unwrap();
        let error = read(&folder).unwrap_err();
        assert!(
            error.contains(file) && error.contains("git lfs pull"),
            "{error}"
        );
        folder.remove(file);
        std::fs::create_dir(folder.path(file)).unwrap();
        let error = read(&folder).unwrap_err();
        assert!(
            error.contains(file) && error.contains("this is a folder"),
            "{error}"
        );
    }
    let folder = Folder::of("llama-tiny-lora");
    let mut tensors = folder.tensors(WEIGHTS);
    tensors.push(("base_model.model.lm_head.weight".into(), vec![1], vec![0.0]));
    folder.set_tensors(WEIGHTS, &tensors);
    let error = read(&folder).unwrap_err();
    assert!(error.contains("base_model.model.lm_head.weight"), "{error}");
}
