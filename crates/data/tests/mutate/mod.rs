//! Damages files: random changes of bytes and JSON values, reproducible by seed. Tests of other crates include this file by
//! its path.
#![allow(dead_code)] // no test uses all of it

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use abkd_host::rng::Rng;
use proptest::test_runner::Config;
use serde_json::{Map, Value, json};

/// Time limit for reading a damaged file.
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory limit of a process that reads damaged files.
const MEMORY: usize = 2 << 30;

/// Runs `cases` cases unless `PROPTEST_CASES` is set.
pub fn config(cases: u32) -> Config {
    let given = std::env::var("PROPTEST_CASES").ok();
    Config {
        cases: given.and_then(|n| n.parse().ok()).unwrap_or(cases),
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    }
}

/// Runs `read` on a damaged file and checks its time and the memory of the process.
pub fn bounded<T>(read: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = read();
    let took = start.elapsed();
    assert!(took < PATIENCE, "{took:?}");
    let peak = abkd_host::peak_memory().unwrap_or_default();
    assert!(peak < MEMORY, "{peak} bytes of memory");
    result
}

/// Writes a JSON document with some values or some bytes changed.
pub fn write(path: &Path, mut value: Value, dice: &mut Rng) {
    let values = dice.below(4) > 0;
    if values {
        json(&mut value, dice);
    }
    let mut text = value.to_string().into_bytes();
    if !values {
        bytes(&mut text, dice);
    }
    fs::write(path, text).unwrap();
}

/// Changes, removes, repeats or inserts some bytes.
pub fn bytes(bytes: &mut Vec<u8>, dice: &mut Rng) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        let end = (at + dice.below(9)).min(bytes.len());
        match dice.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes
                .splice(at..at, [0xff, 0, b'"', b'{', b'[', b'\n', 0x80])
                .for_each(drop),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again).for_each(drop);
            }
            4 => bytes[at..end].fill(*dice.pick(&[0, 0x7f, 0x80, 0xff])),
            _ => {
                let value = dice.bits() as u8;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
        }
    }
}

/// Changes some values of a JSON document: other types, numbers at the limits of their ranges, lists that are empty, too
/// short or too long, missing or unknown keys.
pub fn json(value: &mut Value, dice: &mut Rng) {
    for _ in 0..=dice.below(3) {
        damage(value, dice);
    }
}

fn damage(value: &mut Value, dice: &mut Rng) {
    // Descends to a random value, or stops at this one.
    let deeper = dice.below(8) > 0;
    match value {
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = dice.below(items.len());
            return damage(&mut items[at], dice);
        }
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let at = dice.below(fields.len());
            if let Some((_, inner)) = fields.iter_mut().nth(at) {
                return damage(inner, dice);
            }
        }
        _ => {}
    }
    match value {
        Value::Array(items) if dice.below(2) == 0 => {
            let at = dice.below(items.len());
            match dice.below(4) {
                0 => items.clear(),
                1 => items.truncate(at),
                2 => items.insert(at, strange(dice)),
                _ => {
                    if let Some(item) = items.get(at).cloned() {
                        items.push(item);
                    }
                }
            }
        }
        Value::Object(fields) if dice.below(2) == 0 => {
            let key = fields.keys().nth(dice.below(fields.len())).cloned();
            match (key, dice.below(2)) {
                (Some(key), 0) => drop(fields.remove(&key)),
                _ => {
                    fields.insert("strange".into(), strange(dice));
                }
            }
        }
        _ => *value = strange(dice),
    }
}

fn strange(dice: &mut Rng) -> Value {
    let n = dice.bits();
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(n % 300),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(1u64 << 31),
        json!(1u64 << 40),
        json!(0.5),
        json!(-0.0),
        json!(1e-320),
        json!(1e300),
        json!(-1e300),
        json!(f32::MAX),
        json!(""),
        json!("a"),
        json!("NaN"),
        json!("\u{0}\u{1f600}"),
        json!("x".repeat(1000)),
        json!([]),
        json!([[]]),
        json!([n % 9]),
        Value::Object(Map::new()),
        json!({ "type": "Sequence" }),
    ];
    dice.pick(&values).clone()
}
