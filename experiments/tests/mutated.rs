//! Damaged files of the runner: each is read, or refused by name, without a panic, in bounded time and memory.

use std::fs;
use std::path::{Path, PathBuf};

use abkd_experiments::plan::Plan;
use abkd_experiments::results::{Table, read_curve, read_examples};
use abkd_experiments::spec::{Spec, test_sets};
use abkd_experiments::task::{self, Sources};
use abkd_host::rng::Rng;
use mutate::{bounded, config};
use proptest::prelude::*;
use serde_json::Value;

#[path = "../../crates/data/tests/mutate/mod.rs"]
mod mutate;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Replaces some words and numbers of a text, or mutates some of its bytes.
fn damage(text: &str, dice: &mut Rng) -> Vec<u8> {
    let mut words: Vec<String> = text
        .split_inclusive([' ', '\n', ',', '[', ']'])
        .map(str::to_owned)
        .collect();
    if dice.below(3) > 0 {
        for _ in 0..=dice.below(3) {
            let at = dice.below(words.len());
            let other = words[dice.below(words.len())].clone();
            let strange = [
                "0",
                "-1",
                "1e300",
                "nan",
                "18446744073709551615",
                "\"\"",
                "[]",
                "{}",
                "true",
                "\"a/b\"",
                "0.5",
            ];
            let end = words[at].chars().last().filter(|c| " \n,[]".contains(*c));
            words[at] = match dice.below(4) {
                0 => other,
                1 => String::new(),
                _ => format!(
                    "{}{}",
                    dice.pick(&strange),
                    end.map_or(String::new(), String::from)
                ),
            };
        }
    }
    let mut bytes = words.concat().into_bytes();
    if dice.below(3) == 0 && !bytes.is_empty() {
        mutate::bytes(&mut bytes, dice);
    }
    bytes
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn experiments_profiles_and_data_sets(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(root().join("experiments").join(name)).unwrap();
        let experiment = *dice.pick(&["table1.toml", "table2.toml", "table3.toml"]);
        let profile = *dice.pick(&["tiny.toml", "smollm2-smoke.toml", "paper-openllama2.toml"]);
        let mut texts = [
            ("experiments/x.toml", read(experiment).into_bytes()),
            ("experiments/profiles/y.toml", read(&format!("profiles/{profile}")).into_bytes()),
            ("experiments/datasets.toml", read("datasets.toml").into_bytes()),
        ];
        let chosen = dice.below(texts.len());
        texts[chosen].1 = damage(&String::from_utf8_lossy(&texts[chosen].1), &mut dice);
        for (name, text) in texts {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        bounded(|| match Spec::load(dir.path(), "x", "y") {
            Ok(spec) => drop(Plan::new(dir.path(), &spec, &Default::default())),
            Err(error) => assert!(format!("{error:#}").contains(".toml"), "{error:#}"),
        });
        let _ = test_sets(dir.path());
    }

    #[test]
    fn results(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv");
        let name = *dice.pick(&[
            "tiny/table1.csv", "tiny/table1_examples.csv", "tiny/figure1.csv", "paper/table1.csv",
        ]);
        let text = fs::read_to_string(root().join("results").join(name)).unwrap();
        let some: String = text.split_inclusive('\n').take(6).collect();
        fs::write(&path, damage(&some, &mut dice)).unwrap();
        bounded(|| {
            let errors = [
                Table::read(&path).err(),
                read_examples(&path).err(),
                read_curve(&path).err(),
            ];
            for error in errors.into_iter().flatten() {
                assert!(format!("{error:#}").contains("x.csv"), "{error:#}");
            }
        });
    }

    #[test]
    fn tasks(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let spec = Spec::load(&root(), "table2", "tiny").unwrap();
        let plan = Plan::new(&root(), &spec, &Default::default()).unwrap();
        let planned = dice.pick(&plan.tasks);
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(&planned.id);
        fs::create_dir(&folder).unwrap();
        let whole = task::content(&planned.id, &planned.task, &Sources::of(&root(), &spec)).unwrap();
        let mut value: Value = serde_json::from_slice(&whole).unwrap();
        mutate::json(&mut value, &mut dice);
        let mut text = serde_json::to_vec_pretty(&value).unwrap();
        if dice.below(3) == 0 {
            mutate::bytes(&mut text, &mut dice);
        }
        fs::write(folder.join(task::FILE), text).unwrap();
        bounded(|| match task::read(&folder) {
            // Only the sources may change.
            Ok((id, task, _)) => assert_eq!((id, &task), (planned.id.clone(), &planned.task)),
            Err(error) => assert!(format!("{error:#}").contains("task.json"), "{error:#}"),
        });
    }
}
