//! Damaged golden files: each is compared or refused, without a panic, in bounded time and memory.

use std::fs;
use std::path::Path;

use abkd_host::rng::Rng;
use abkd_losses::verify::verify_losses;
use mutate::{bounded, config};
use proptest::prelude::*;
use serde_json::Value;

#[path = "../../data/tests/mutate/mod.rs"]
mod mutate;

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn golden_files(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/losses.json");
        let mut golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        // One result per case, so that it is mutated more often.
        for case in golden.as_array_mut().unwrap() {
            let results = case["results"].as_array_mut().unwrap();
            let chosen = dice.below(results.len());
            results.swap(0, chosen);
            results.truncate(1);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden.json");
        mutate::write(&path, golden, &mut dice);
        bounded(|| match verify_losses(&path) {
            Ok(checks) => assert!(!checks.is_empty()),
            Err(error) => assert!(error.to_string().contains("golden.json"), "{error}"),
        });
    }
}
