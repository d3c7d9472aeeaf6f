use super::*;
use burn::module::Module;

const GPT2: &str = r#"{"model_type":"gpt2","vocab_size":50,"n_positions":9,"n_embd":8,"n_layer":3,"n_head":2,"n_inner":16}"#;
const LLAMA: &str = r#"{"model_type":"llama","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":3,
    "num_attention_heads":4,"num_key_value_heads":2,"head_dim":2,"max_position_embeddings":9}"#;

/// Reads a file in which some keys have other values.
fn read_with(json: &str, changes: &[(&str, Value)]) -> Result<ModelConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let mut json: Value = serde_json::from_str(json).unwrap();
    for (key, value) in changes {
        json[key] = value.clone();
    }
    std::fs::write(&path, json.to_string()).unwrap();
    ModelConfig::read(&path).map_err(|error| error.to_string())
}

#[test]
fn a_size_out_of_range_is_refused_by_its_key() {
    for json in [GPT2, LLAMA] {
        // not a size
        assert!(read_with(json, &[("eos_token_id", 0.into())]).is_ok());
        let keys: serde_json::Map<String, Value> = serde_json::from_str(json).unwrap();
        for (key, _) in keys.iter().filter(|(_, value)| value.is_number()) {
            for size in [0, 1 << 30, 1 << 40, u64::MAX] {
                let error = read_with(json, &[(key, size.into())]).unwrap_err();
                let wanted =
                    format!("config.json: `{key}` is {size}, which is not supported (1 or more");
                assert!(error.contains(&wanted), "{error}");
            }
            for value in [
                Value::from(-1),
                Value::from(1.5),
                Value::from("8"),
                Value::from(1e300),
            ] {
                let error = read_with(json, &[(key, value.clone())]).unwrap_err();
                let wanted = format!("`{key}` is {value}, which is not supported (a whole number)");
                assert!(error.contains(&wanted), "{error}");
            }
        }
    }
    // each in its range, but too many parameters in all
    let large = [
        ("hidden_size", (1u64 << 17).into()),
        ("intermediate_size", (1u64 << 20).into()),
        ("num_hidden_layers", (1u64 << 12).into()),
    ];
    let error = read_with(LLAMA, &large).unwrap_err();
    assert!(error.contains("the number of parameters"), "{error}");
}

#[test]
fn heads_that_do_not_fit_are_refused_by_their_key() {
    let refused = |json, changes: &[(&str, Value)], wanted: &str| {
        let error = read_with(json, changes).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    };
    let absent = || ("head_dim", Value::Null);
    assert!(read_with(LLAMA, &[absent()]).is_ok());
    refused(GPT2, &[("n_head", 3.into())], "`n_head` is 3");
    refused(
        LLAMA,
        &[("num_key_value_heads", 3.into())],
        "`num_key_value_heads` is 3",
    );
    refused(LLAMA, &[("head_dim", 3.into())], "`head_dim` is 3");
    refused(
        LLAMA,
        &[absent(), ("hidden_size", 2.into())],
        "`num_attention_heads` is 4",
    );
}

#[test]
fn the_ends_of_a_text_are_those_of_generation() {
    let eos = |own: Value, generation: Option<Value>| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let mut json: Value = serde_json::from_str(GPT2).unwrap();
        json["eos_token_id"] = own;
        std::fs::write(&path, json.to_string()).unwrap();
        if let Some(generation) = generation {
            let path = dir.path().join("generation_config.json");
            std::fs::write(path, generation.to_string()).unwrap();
        }
        ModelConfig::read(&path).map(|config| (config.eos(), config.eos_ids()))
    };
    let ids = |ids: Value| Some(serde_json::json!({"eos_token_id": ids, "temperature": 0.6}));
    use serde_json::json;
    for (own, generation, all) in [
        (json!(null), None, vec![]),
        (json!([]), None, vec![]),
        (json!(3), None, vec![3]),
        (json!([3, 5]), None, vec![3, 5]),
        (json!(3), ids(json!([5, 3, 7])), vec![3, 5, 7]),
        (json!(3), ids(json!([5, 7])), vec![5, 7]),
        (json!(3), ids(json!(4)), vec![4]),
        // no ids in the file
        (json!(3), ids(json!(null)), vec![3]),
        (json!(3), Some(json!({})), vec![3]),
    ] {
        let found = eos(own, generation).unwrap();
        assert_eq!(found, (all.first().copied(), all));
    }
    for (own, generation, file) in [
        (json!(50), None, "/config.json"),
        (json!([3, -1]), None, "/config.json"),
        (json!(3), ids(json!([3, 50])), "/generation_config.json"),
        (json!(3), Some(json!([])), "/generation_config.json"),
    ] {
        let error = eos(own, generation).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
}

/// The names and shapes of a checkpoint are those that the model asks for.
#[test]
fn tensors_are_those_of_the_model() {
    let untied = |json: &str| json.replacen('{', r#"{"tie_word_embeddings":false,"#, 1);
    let tied = |json: &str| json.replacen('{', r#"{"tie_word_embeddings":true,"#, 1);
    for json in [tied(GPT2), untied(GPT2), tied(LLAMA), untied(LLAMA)] {
        let config: ModelConfig = serde_json::from_str(&json).unwrap();
        let list = crate::params::list(&config.zeros(&Device::flex()));
        let list: Vec<_> = list.into_iter().map(|p| (p.name, p.shape)).collect();
        assert_eq!(config.inner().tensors().collect::<Vec<_>>(), list);
    }
}

#[test]
fn parameters_are_counted_as_the_model_has_them() {
    for json in [
        r#"{"model_type":"gpt2","vocab_size":50,"n_positions":9,"n_embd":8,"n_layer":3,"n_head":2}"#,
        r#"{"model_type":"llama","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":3,
            "num_attention_heads":4,"num_key_value_heads":2}"#,
        r#"{"model_type":"llama","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":2,
            "num_attention_heads":2,"tie_word_embeddings":true}"#,
        r#"{"model_type":"gpt2","vocab_size":50,"n_positions":9,"n_embd":8,"n_layer":3,"n_head":2,"tie_word_embeddings":false}"#,
        r#"{"model_type":"qwen2","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":2,
            "num_attention_heads":2,"num_key_value_heads":1}"#,
        r#"{"model_type":"qwen3","vocab_size":50,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":2,
            "num_attention_heads":2}"#,
    ] {
        let config: ModelConfig = serde_json::from_str(json).unwrap();
        let model = config.zeros(&Device::flex());
        assert_eq!(config.parameters().total(), model.num_params(), "{json}");
    }
}
