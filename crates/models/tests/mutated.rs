//! Files of a checkpoint with some bytes or values changed: they are read or refused, in bounded time. Nothing panics, and no
//! size in a damaged file allocates memory. `PROPTEST_CASES` is the number of cases.

mod common;

use std::time::{Duration, Instant};

use abkd_models::lora;
use abkd_models::verify::verify_model;
use burn::tensor::Device;
use common::{Folder, load};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// Longest time that one folder may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Largest peak memory of the process.
const MEMORY: usize = 2 << 30;

/// A change to a file.
#[derive(Clone, Debug)]
enum Change {
    /// Replaces bytes.
    Bytes(Vec<(Index, u8)>),
    /// Truncates the file.
    Cut(Index),
    /// Inserts bytes.
    Insert(Index, Vec<u8>),
    /// Replaces a value in the file's JSON.
    Value(Index, Index, Value),
    /// Removes a key.
    Remove(Index),
    /// Adds a key.
    Add(String, Value),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    prop_oneof![
        2 => prop::collection::vec((index(), any::<u8>()), 1..8).prop_map(Change::Bytes),
        1 => index().prop_map(Change::Cut),
        1 => (index(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, b)| Change::Insert(at, b)),
        6 => (index(), index(), value()).prop_map(|(key, at, value)| Change::Value(key, at, value)),
        1 => index().prop_map(Change::Remove),
        1 => (key(), value()).prop_map(|(key, value)| Change::Add(key, value)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(0),
            json!(-1),
            json!(true),
            json!(""),
            json!("../../x"),
            json!("F64"),
            json!([]),
            json!({}),
            json!([[], 1]),
            json!(1e300),
            json!(u64::MAX),
            json!(i64::MIN),
            json!({"rope_type": "llama3"}),
        ]),
        (0u32..64).prop_map(|bits| json!(1u64 << bits)),
        any::<f64>().prop_map(|x| json!(x)),
        (0u64..200).prop_map(|x| json!(x)),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "n_inner",
        "head_dim",
        "hidden_size",
        "rope_scaling",
        "rope_parameters",
        "rope_theta",
        "tie_word_embeddings",
        "eos_token_id",
        "original_max_position_embeddings",
        "num_key_value_heads",
        "layer_types",
        "x",
        "",
    ])
    .prop_map(String::from)
}

/// JSON pointers to all values in a value.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.into());
    match value {
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                places(value, &format!("{at}/{i}"), all);
            }
        }
        Value::Object(table) => {
            for (key, value) in table {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{key}"), all);
            }
        }
        _ => {}
    }
}

fn change_json(json: &mut Value, change: &Change) {
    let Some(table) = json.as_object_mut() else {
        return;
    };
    let keys: Vec<String> = table.keys().cloned().collect();
    match change {
        Change::Value(key, at, value) => {
            let inside = &mut table[key.get(&keys)];
            let mut all = Vec::new();
            places(inside, "", &mut all);
            let place: &String = at.get(&all);
            *inside.pointer_mut(place).unwrap() = value.clone();
        }
        Change::Remove(key) => drop(table.remove(key.get(&keys))),
        Change::Add(key, value) => drop(table.insert(key.clone(), value.clone())),
        _ => {}
    }
}

/// Changes a JSON file, or the header of a safetensors file.
fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Bytes(places) => {
            // Half of them in the header.
            for (n, (at, byte)) in places.iter().enumerate() {
                let size = if n % 2 == 0 {
                    bytes.len()
                } else {
                    bytes.len().min(2000)
                };
                let at = at.index(size);
                bytes[at] = *byte;
            }
        }
        Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Change::Insert(at, more) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, more.iter().copied());
        }
        _ if bytes[0] == b'{' => {
            let mut json: Value = serde_json::from_slice(bytes).unwrap();
            change_json(&mut json, change);
            *bytes = json.to_string().into_bytes();
        }
        _ => {
            let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let mut json: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
            change_json(&mut json, change);
            let header = json.to_string().into_bytes();
            let length = header.len() as u64;
            bytes.splice(..end, length.to_le_bytes().into_iter().chain(header));
        }
    }
}

fn changed(folder: &Folder, file: &str, changes: &[Change]) {
    let mut bytes = std::fs::read(folder.path(file)).unwrap();
    for change in changes {
        // A change of JSON needs an intact file, so it is made only alone.
        let readable = matches!(
            change,
            Change::Bytes(_) | Change::Cut(_) | Change::Insert(..)
        );
        if !bytes.is_empty() && (readable || changes.len() == 1) {
            apply(&mut bytes, change);
        }
    }
    std::fs::write(folder.path(file), bytes).unwrap();
}

fn within_bounds(begun: Instant) {
    let taken = begun.elapsed();
    assert!(taken < LIMIT, "{taken:?}");
    let peak = abkd_host::peak_memory().unwrap_or_default();
    assert!(peak < MEMORY, "{peak} bytes");
}

proptest! {
    #[test]
    fn a_changed_checkpoint_is_read_or_refused(
        name in prop::sample::select(vec!["gpt2-tiny", "llama-tiny", "llama-tied-tiny"]),
        file in prop::sample::select(vec![
            "config.json", "config.json", "generation_config.json", "golden.json", "model.safetensors",
            "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        ]),
        changes in prop::collection::vec(change(), 1..3),
    ) {
        let folder = Folder::of(name);
        if file.contains("0000") || file.contains("index") {
            folder.shard();
        }
        changed(&folder, file, &changes);
        let begun = Instant::now();
        let result = verify_model(folder.dir(), &Device::flex());
        within_bounds(begun);
        // The error names the folder.
        if let Err(error) = result {
            let text = error.to_string();
            prop_assert!(text.contains(folder.dir().to_str().unwrap()), "{}", text);
        }
    }

    #[test]
    fn a_changed_adapter_is_read_or_refused(
        file in prop::sample::select(vec!["adapter_config.json", "adapter_model.safetensors"]),
        changes in prop::collection::vec(change(), 1..3),
    ) {
        let folder = Folder::of("llama-tiny-lora");
        changed(&folder, file, &changes);
        let base = load("llama-tiny");
        let begun = Instant::now();
        let result = lora::load(base, folder.dir());
        within_bounds(begun);
        if let Err(error) = result {
            let text = error.to_string();
            prop_assert!(text.contains(folder.dir().to_str().unwrap()), "{}", text);
        }
    }
}
