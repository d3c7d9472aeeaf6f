//! Damaged golden files: each is compared or refused, without a panic, in bounded time and memory.

use std::fs;
use std::path::Path;

use abkd_host::rng::Rng;
use abkd_metrics::verify::verify_rouge;
use mutate::{bounded, config};
use proptest::prelude::*;
use serde_json::Value;

#[path = "../../data/tests/mutate/mod.rs"]
mod mutate;

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn golden_files(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/rouge.json");
        let mut golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        // Only three cases are kept, so that more of the changes hit each of them.
        let cases = golden["cases"].as_array_mut().unwrap();
        let first = dice.below(cases.len() - 3);
        *cases = cases[first..first + 3].to_vec();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden.json");
        mutate::write(&path, golden, &mut dice);
        bounded(|| match verify_rouge(&path) {
            Ok(checks) => assert!(!checks.is_empty() && checks.iter().all(|(_, e)| *e >= 0.0 || e.is_nan())),
            Err(error) => assert!(error.to_string().contains("golden.json"), "{error}"),
        });
    }
}
