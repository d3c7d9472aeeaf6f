//! A comparison of nothing, or with NaN, fails; a malformed golden file is refused with the place of the mistake.

mod common;

use abkd_models::verify::{Check, verify_model};
use burn::tensor::Device;
use common::Folder;
use serde_json::{Value, json};

fn checks(folder: &Folder) -> Result<Vec<Check>, String> {
    verify_model(folder.dir(), &Device::flex()).map_err(|error| error.to_string())
}

#[test]
fn weights_that_are_no_numbers_fail_every_check() {
    for name in ["gpt2-tiny", "llama-tiny"] {
        for bad in [f32::NAN, f32::INFINITY] {
            let folder = Folder::of(name);
            folder.edit_tensors(|tensors| {
                let end = if name == "gpt2-tiny" {
                    "ln_f.weight"
                } else {
                    "model.norm.weight"
                };
                let norm = tensors
                    .iter_mut()
                    .find(|(name, ..)| name.ends_with(end))
                    .unwrap();
                norm.2[3] = bad;
            });
            let checks = checks(&folder).unwrap();
            assert_eq!(checks.len(), 4);
            for check in checks {
                // the program's criterion
                let ok = check.error <= check.tolerance;
                assert!(!ok && !check.error.is_finite(), "{name} {bad}: {check:?}");
            }
        }
    }
}

#[test]
fn a_wrong_number_fails() {
    let folder = Folder::of("llama-tiny");
    let mut golden = folder.json("golden.json");
    golden["logits"][97 * 3 + 5] = json!(0.25 + golden["logits"][97 * 3 + 5].as_f64().unwrap());
    golden["greedy"][1][4] = json!(3);
    folder.set_json("golden.json", &golden);
    let checks = checks(&folder).unwrap();
    for check in &checks[..2] {
        assert!(check.error > 0.1, "{check:?}");
    }
    for check in &checks[2..] {
        assert_eq!(check.error, 1.0, "{check:?}");
    }
}

#[test]
fn a_malformed_golden_file_is_refused_by_its_place() {
    let refused = |change: &dyn Fn(&mut Value), wanted: &str| {
        let folder = Folder::of("gpt2-tiny");
        let mut golden = folder.json("golden.json");
        change(&mut golden);
        folder.set_json("golden.json", &golden);
        let error = checks(&folder).unwrap_err();
        assert!(
            error.contains("golden.json") && error.contains(wanted),
            "{wanted}: {error}"
        );
    };
    for key in ["input_ids", "prompt_ids", "greedy"] {
        refused(&|g| g[key] = json!([]), &format!("{key}: there is nothing"));
        refused(
            &|g| g[key] = json!([[], []]),
            &format!("{key}: there is nothing"),
        );
        refused(
            &|g| g[key][1][0] = json!(97),
            &format!("{key}[1][0]: 97 is outside"),
        );
        refused(
            &|g| g[key][1][0] = json!(1u64 << 31),
            &format!("{key}[1][0]: 2147483648 is outside"),
        );
        refused(&|g| g[key][0][0] = json!(-1), "invalid value");
        refused(&|g| g[key][0][0] = json!(1.5), "invalid type");
        refused(&|g| g[key][0][0] = json!(null), "invalid type");
        refused(&|g| g[key] = json!(3), "invalid type");
        refused(
            &|g| drop(g[key][1].as_array_mut().unwrap().pop()),
            &format!("{key}[1]: "),
        );
        refused(
            &|g| drop(g.as_object_mut().unwrap().remove(key)),
            "missing field",
        );
    }
    for key in ["attention_mask", "prompt_mask"] {
        refused(
            &|g| drop(g[key].as_array_mut().unwrap().pop()),
            &format!("{key}: 1 rows for 2"),
        );
        refused(
            &|g| drop(g[key][1].as_array_mut().unwrap().pop()),
            &format!("{key}[1]: "),
        );
        refused(
            &|g| g[key][0][0] = json!(2),
            &format!("{key}[0]: it must hold only 0 and 1"),
        );
        refused(
            &|g| g[key][1].as_array_mut().unwrap().fill(json!(0)),
            &format!("{key}[1]: it must hold only 0 and 1"),
        );
    }
    refused(
        &|g| g["attention_mask"][1][0] = json!(0),
        "attention_mask[1]: the padding",
    );
    refused(
        &|g| drop(g["logits"].as_array_mut().unwrap().pop()),
        "logits: 1745 numbers",
    );
    refused(&|g| g["logits"] = json!([]), "logits: 0 numbers");
    refused(&|g| g["logits"][3] = json!(null), "invalid type");
    refused(
        &|g| drop(g["greedy"].as_array_mut().unwrap().pop()),
        "greedy: 1 rows for 2",
    );
    refused(
        &|g| g["pad_and_eos"] = json!(97),
        "pad_and_eos: 97 is outside",
    );
    // longer than the model has positions
    refused(
        &|g| g["greedy"] = json!([vec![1; 60], vec![1; 60]]),
        "greedy[0]: 65 ids with prompt_ids",
    );
    refused(
        &|g| {
            g["input_ids"] = json!([vec![1; 65]]);
            g["attention_mask"] = json!([vec![1; 65]]);
        },
        "input_ids[0]: 65 ids",
    );
    refused(&|g| *g = json!([]), "invalid");

    let folder = Folder::of("gpt2-tiny");
    std::fs::write(folder.path("golden.json"), b"").unwrap();
    assert!(checks(&folder).unwrap_err().contains("golden.json"));
    folder.remove("golden.json");
    assert!(checks(&folder).unwrap_err().contains("golden.json"));
}
