//! Damaged golden files of the methods and of training: each is checked or refused, without a panic, in bounded time and
//! memory.

use std::fs;
use std::path::{Path, PathBuf};

use abkd_host::rng::Rng;
use abkd_models::verify::Check;
use abkd_training::Error;
use abkd_training::verify::{
    verify_adapter, verify_gjsd, verify_minillm, verify_schedule, verify_trajectory,
};
use burn::tensor::Device;
use mutate::{bounded, config};
use proptest::prelude::*;
use serde_json::Value;

#[path = "../../data/tests/mutate/mod.rs"]
mod mutate;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(goldens().join(name)).unwrap()).unwrap()
}

/// Cuts a list to one random entry, so that more of the damage hits each part of the file.
fn one(list: &mut Value, dice: &mut Rng) {
    if let Some(entries) = list.as_array_mut() {
        let chosen = dice.below(entries.len());
        entries.swap(0, chosen);
        entries.truncate(1);
    }
}

/// Damages a golden file and verifies it.
fn check(
    golden: Value,
    path: &Path,
    dice: &mut Rng,
    verify: impl FnOnce(&Path) -> Result<Vec<Check>, Error>,
) {
    mutate::write(path, golden, dice);
    bounded(|| match verify(path) {
        Ok(checks) => {
            assert!(!checks.is_empty());
            // A negative error would pass.
            assert!(
                checks.iter().all(|c| c.error >= 0.0 || c.error.is_nan()),
                "{checks:?}"
            );
        }
        Err(error) => assert!(error.to_string().contains("golden.json"), "{error}"),
    });
}

/// A folder with copies of the models of a golden run.
fn beside(models: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, from) in models {
        let (to, from) = (dir.path().join(name), goldens().join(from));
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    dir
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn minillm(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let mut golden = read("methods/minillm.json");
        one(&mut golden["cases"], &mut dice);
        one(&mut golden["cases"][0]["variants"], &mut dice);
        one(&mut golden["data_term"]["results"], &mut dice);
        let dir = tempfile::tempdir().unwrap();
        check(golden, &dir.path().join("golden.json"), &mut dice, |p| verify_minillm(p, &Device::flex()));
    }

    #[test]
    fn gjsd(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let mut golden = read("methods/gjsd.json");
        one(&mut golden["cases"], &mut dice);
        one(&mut golden["cases"][0]["results"], &mut dice);
        let dir = tempfile::tempdir().unwrap();
        check(golden, &dir.path().join("golden.json"), &mut dice, |p| verify_gjsd(p, &Device::flex()));
    }

    #[test]
    fn schedules(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let names = ["schedules", "distillm_schedule", "replay_buffer"];
        let mut golden = read(&format!("methods/{}.json", names[dice.below(3)]));
        for list in ["cases", "threshold", "share", "sources", "mixed"] {
            one(&mut golden[list], &mut dice);
        }
        let golden = match golden {
            Value::Object(fields) => fields.into_iter().filter(|(_, v)| !v.is_null()).collect(),
            other => other,
        };
        let dir = tempfile::tempdir().unwrap();
        check(golden, &dir.path().join("golden.json"), &mut dice, verify_schedule);
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn trajectories(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = beside(&[("student", "trajectory-ab/student"), ("teacher", "trajectory-ab/teacher")]);
        let mut golden = read("trajectory-ab/golden.json");
        for list in ["batches", "log"] {
            golden[list].as_array_mut().unwrap().truncate(2);
        }
        let path = dir.path().join("golden.json");
        check(golden, &path, &mut dice, |_| verify_trajectory(dir.path(), &Device::flex()));
    }

    #[test]
    fn adapters(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = beside(&[
            ("golden/base", "methods/lora_continue/base"),
            ("golden/adapter", "methods/lora_continue/adapter"),
            ("golden/teacher", "methods/lora_continue/teacher"),
        ]);
        let mut golden = read("methods/lora_continue.json");
        for list in ["batches", "log"] {
            golden[list].as_array_mut().unwrap().truncate(1);
        }
        let path = dir.path().join("golden.json");
        check(golden, &path, &mut dice, |p| verify_adapter(p, &Device::flex()));
    }
}
