//! Twelve steps of distillation against PyTorch.

use std::path::Path;

use abkd_training::verify::verify_trajectory;
use burn::tensor::Device;
use serde_json::json;

#[test]
fn twelve_steps_follow_the_golden_trajectory() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/trajectory-ab");
    let checks = verify_trajectory(&dir, &Device::flex()).unwrap();
    assert_eq!(checks.len(), 36);
    for check in checks {
        assert!(check.error <= check.tolerance, "{check:?}");
    }
}

#[test]
fn at_large_rates_too_every_update_is_pytorchs() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let from = goldens.join("trajectory-ab");
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    // Made by tools/golden_trajectory.py from the same batches, repeated in a cycle.
    let logs = read(&goldens.join("trajectory-rates.json"));
    for (rate, log) in logs.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        copy_models(&from, dir.path());
        let mut golden = read(&from.join("golden.json"));
        let batches = golden["batches"].as_array().unwrap();
        let updates = log.as_array().unwrap().len();
        let repeated: Vec<_> = batches.iter().cycle().take(updates).cloned().collect();
        golden["batches"] = repeated.into();
        golden["log"] = log.clone();
        golden["lr"] = rate.parse::<f64>().unwrap().into();
        std::fs::write(dir.path().join("golden.json"), golden.to_string()).unwrap();
        let checks = verify_trajectory(dir.path(), &Device::flex()).unwrap();
        assert_eq!(checks.len(), 3 * updates);
        for check in checks {
            assert!(check.error <= 2e-5, "rate {rate}: {check:?}");
        }
    }
}

fn copy_models(from: &Path, to: &Path) {
    for model in ["student", "teacher"] {
        std::fs::create_dir(to.join(model)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let file = Path::new(model).join(file);
            std::fs::copy(from.join(&file), to.join(&file)).unwrap();
        }
    }
}

#[test]
fn the_file_says_what_is_minimised() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/trajectory-ab");
    let dir = tempfile::tempdir().unwrap();
    copy_models(&from, dir.path());
    let text = std::fs::read(from.join("golden.json")).unwrap();
    let plain: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let failed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut golden = plain.clone();
        change(&mut golden);
        std::fs::write(dir.path().join("golden.json"), golden.to_string()).unwrap();
        verify_trajectory(dir.path(), &Device::flex())
            .map(|checks| {
                let passed = checks.iter().filter(|c| c.error <= c.tolerance).count();
                checks.len() - passed
            })
            .map_err(|e| e.to_string())
    };
    let divergence = |id: &'static str, params: serde_json::Value| {
        move |golden: &mut serde_json::Value| {
            golden["divergence"] = id.into();
            golden["params"] = params.clone();
        }
    };
    let same = json!({ "alpha": 0.2, "beta": 0.7 });
    assert_eq!(failed(&divergence("ab", same)), Ok(0));
    let other = json!({ "alpha": 0.1, "beta": 0.8 });
    assert!(failed(&divergence("ab", other)).unwrap() > 0);
    assert!(failed(&divergence("fkld", json!({}))).unwrap() > 0);
    for (change, said) in [
        (divergence("fkdl", json!({})), "fkld"),
        (divergence("ab", json!({ "gamma": 1.0 })), "gamma"),
    ] {
        let text = failed(&change).unwrap_err();
        assert!(
            text.contains(said) && text.contains("golden.json"),
            "{text}"
        );
    }
    let token = failed(&|golden| golden["batches"][0]["input_ids"][0][0] = 100_000.into());
    assert!(token.unwrap_err().contains("vocabulary"));
    let label = failed(&|golden| {
        golden["batches"][0] = json!({ "input_ids": [[1, 2]], "labels": [[-100, i64::MAX]] });
    });
    assert!(label.unwrap_err().contains("vocabulary"));
    let long = failed(&|golden| {
        golden["batches"][0] = json!({ "input_ids": [vec![1; 5000]], "labels": [vec![1; 5000]] });
    });
    assert!(long.unwrap_err().contains("positions"));
    let ragged = failed(&|golden| golden["batches"][0]["labels"][0] = json!([1]));
    assert!(ragged.unwrap_err().contains("a row of labels"));
    let empty = failed(&|golden| golden["batches"][1] = json!({ "input_ids": [], "labels": [] }));
    assert!(empty.unwrap_err().contains("batches[1] is empty"));
    let log = failed(&|golden| {
        golden["log"].as_array_mut().unwrap().pop();
    });
    assert!(log.unwrap_err().contains("log has 11 entries where 12"));
    let log = failed(&|golden| golden["log"] = json!([]));
    assert!(log.unwrap_err().contains("log"));
    let nothing = failed(&|golden| {
        golden["log"] = json!([]);
        golden["batches"] = json!([]);
    });
    assert!(nothing.unwrap_err().contains("nothing to check"));
}
