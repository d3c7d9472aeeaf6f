//! The methods against values of the published functions.

use std::path::{Path, PathBuf};

use abkd_models::verify::Check;
use abkd_training::Error;
use abkd_training::verify::{verify_adapter, verify_gjsd, verify_minillm, verify_schedule};
use burn::tensor::Device;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens/methods")
        .join(name)
}

fn all_pass(checks: &[Check], at_least: usize) {
    assert!(checks.len() >= at_least, "{} checks", checks.len());
    for check in checks {
        assert!(check.error <= check.tolerance, "{check:?}");
    }
    let of_tolerance = |c: &Check| c.error / c.tolerance.max(1e-12);
    let worst = checks.iter().map(of_tolerance).fold(0.0, f64::max);
    println!(
        "{} checks, the worst at {worst:.3} of its tolerance",
        checks.len()
    );
}

#[test]
fn minillm_has_the_published_rewards_weights_losses_and_gradients() {
    let checks = verify_minillm(&golden("minillm.json"), &Device::flex()).unwrap();
    // 3 cases of 6, 6 variants of 9, 3 shares of the term on the data
    all_pass(&checks, 3 * 6 + 6 * 9 + 3 * 2);
}

#[test]
fn the_jensen_divergence_is_that_of_three_implementations() {
    let checks = verify_gjsd(&golden("gjsd.json"), &Device::flex()).unwrap();
    all_pass(&checks, 2 * 11 * 2 + 1);
}

#[test]
fn threshold_share_and_source_follow_the_published_loop() {
    let checks = verify_schedule(&golden("distillm_schedule.json")).unwrap();
    all_pass(&checks, 4 + 6 + 4 * 4 + 2 * 3);
}

#[test]
fn learning_rates_are_those_of_the_published_schedulers() {
    all_pass(&verify_schedule(&golden("schedules.json")).unwrap(), 5);
}

#[test]
fn the_replay_buffer_holds_what_the_published_one_holds() {
    let checks = verify_schedule(&golden("replay_buffer.json")).unwrap();
    all_pass(&checks, 3 * (6 + 4 + 3));
}

#[test]
fn an_adapter_is_trained_on_as_peft_trains_it() {
    // the path of the file, and of the folder beside it
    for path in ["lora_continue.json", "lora_continue"] {
        let checks = verify_adapter(&golden(path), &Device::flex()).unwrap();
        all_pass(&checks, 3 * 3 + 1 + 8);
    }
}

/// Number of failed checks of a file with one value changed, or the error.
fn with(
    name: &str,
    pointer: &str,
    value: serde_json::Value,
    verify: impl Fn(&Path) -> Result<Vec<Check>, Error>,
) -> Result<usize, String> {
    let text = std::fs::read(golden(name)).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    *json
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("{name} has no {pointer}")) = value;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, json.to_string()).unwrap();
    // not `error > tolerance`: NaN fails
    let passes = |c: &&Check| c.error <= c.tolerance;
    match verify(&path) {
        Ok(checks) => Ok(checks.len() - checks.iter().filter(passes).count()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_wrong_number_fails_and_a_file_that_does_not_fit_is_refused() {
    use serde_json::json;
    let device = Device::flex();
    let minillm = |path: &Path| verify_minillm(path, &device);
    let gjsd = |path: &Path| verify_gjsd(path, &device);
    for (pointer, value) in [
        ("/cases/0/variants/0/weights/0/0", json!(1.01)),
        ("/cases/0/variants/0/padded/advantages/0/0", json!(0.1)),
        ("/cases/1/variants/1/masked/total", json!(0.0)),
        ("/cases/2/reg_grad/0", json!(0.5)),
        ("/data_term/results/0/loss", json!(2.06)),
    ] {
        let failed = with("minillm.json", pointer, value, minillm).unwrap();
        assert_eq!(failed, 1, "{pointer}");
    }
    let value = json!(0.0);
    let failed = with("gjsd.json", "/cases/0/results/0/value", value, gjsd).unwrap();
    assert_eq!(failed, 1);
    for (name, pointer, value) in [
        (
            "distillm_schedule.json",
            "/threshold/0/thresholds/3",
            json!(0.3),
        ),
        (
            "distillm_schedule.json",
            "/sources/0/source/1",
            json!("fresh"),
        ),
        (
            "distillm_schedule.json",
            "/mixed/0/sequences/1",
            json!([1, 1]),
        ),
        ("schedules.json", "/cases/1/rate/0", json!(1e-9)),
        ("replay_buffer.json", "/cases/0/steps/2/held/0", json!(0)),
    ] {
        let failed = with(name, pointer, value, verify_schedule).unwrap();
        assert_eq!(failed, 1, "{name} {pointer}");
    }

    for (pointer, value, said) in [
        ("/cases/0/responses/0/0", json!(13), "13"),
        ("/cases/0/student_logits", json!([1.0]), "student_logits"),
        ("/cases/0/width", json!(0), "plain"),
        ("/data_term/labels/0/1", json!(7), "data_term"),
        (
            "/cases/0/variants/0/reward_scaling",
            json!(0.0),
            "reward_scaling",
        ),
    ] {
        let text = with("minillm.json", pointer, value, minillm).unwrap_err();
        assert!(
            text.contains(said) && text.contains("minillm.json"),
            "{text}"
        );
    }
    for (pointer, value, said) in [
        ("/cases", json!([]), "cases is empty"),
        ("/cases/0/variants", json!([]), "variants is empty"),
        ("/cases/0/responses", json!([]), "responses is empty"),
        ("/cases/0/mask/0", json!([1]), "mask, row 0 has 1 entries"),
        (
            "/cases/0/log_q/1",
            json!([0.0]),
            "log_q, row 1 has 1 entries",
        ),
        ("/cases/0/vocab", json!(u64::MAX), "vocab"),
        ("/cases/0/vocab", json!(1u64 << 40), "vocab"),
        (
            "/cases/0/teacher_logits/0",
            json!(1e300),
            "teacher_logits, entry 0",
        ),
        ("/cases/0/teacher_logits/0", json!(null), "null"),
        ("/cases/0/reg_grad", json!([]), "reg_grad"),
        ("/data_term/results", json!([]), "results is empty"),
        ("/data_term/labels/0", json!([1]), "data_term: labels, row"),
        // would be 1 if truncated to 32 bits
        (
            "/data_term/labels/0/1",
            json!((1i64 << 32) + 1),
            "data_term: labels, entry",
        ),
        ("/data_term/labels/0/1", json!("1"), "invalid type"),
    ] {
        let text = with("minillm.json", pointer, value, minillm).unwrap_err();
        assert!(
            text.contains(said) && text.contains("minillm.json"),
            "{pointer}: {text}"
        );
    }
    for (pointer, value, said) in [
        ("/cases", json!([]), "cases is empty"),
        ("/cases/0/results", json!([]), "case 1: results is empty"),
        (
            "/cases/0/labels",
            json!([-100, -100, -100, -100, -100, -100]),
            "no label counts",
        ),
        (
            "/cases/0/labels/0",
            json!((1i64 << 32) + 1),
            "case 1: labels, entry 0",
        ),
        ("/cases/0/vocab", json!(0), "vocab is 0"),
        (
            "/cases/0/student_logits",
            json!([]),
            "student_logits has 0 entries",
        ),
        ("/cases/0/results/0/grad", json!([]), "gradient"),
    ] {
        let text = with("gjsd.json", pointer, value, gjsd).unwrap_err();
        assert!(
            text.contains(said) && text.contains("gjsd.json"),
            "{pointer}: {text}"
        );
    }
    let text = with("gjsd.json", "/cases/0/labels/1", json!(11), gjsd).unwrap_err();
    assert!(text.contains("11"), "{text}");
    let text = with("gjsd.json", "/cases/0/results/0/code", json!("x"), gjsd).unwrap_err();
    assert!(text.contains("`x`") && text.contains("trl"), "{text}");
    for (name, pointer, value, said) in [
        ("schedules.json", "/cases/0/schedule", json!("step"), "step"),
        ("schedules.json", "/cases", json!([]), "schedules.json"),
        (
            "distillm_schedule.json",
            "/sources/0/capacity",
            json!(0),
            "capacity",
        ),
        (
            "distillm_schedule.json",
            "/sources/0/batch_size",
            json!(u64::MAX),
            "batch_size",
        ),
        (
            "distillm_schedule.json",
            "/mixed/0/capacity",
            json!(1u64 << 60),
            "capacity",
        ),
        (
            "distillm_schedule.json",
            "/share/0/step",
            json!([]),
            "share 1",
        ),
        (
            "schedules.json",
            "/cases/0/lr",
            json!(-5e-4),
            "learning_rate",
        ),
        ("schedules.json", "/cases/0/rate", json!([]), "rate"),
        (
            "replay_buffer.json",
            "/cases/0/steps",
            json!([]),
            "steps is empty",
        ),
        (
            "replay_buffer.json",
            "/cases/0/steps/0/draws",
            json!([]),
            "draws is empty",
        ),
        (
            "replay_buffer.json",
            "/cases/0/batch_size",
            json!(1u64 << 50),
            "batch_size",
        ),
        (
            "distillm_schedule.json",
            "/share/0/replay_ratio",
            json!("up"),
            "increasing",
        ),
        (
            "replay_buffer.json",
            "/cases/0/capacity",
            json!(0),
            "capacity",
        ),
    ] {
        let text = with(name, pointer, value, verify_schedule).unwrap_err();
        assert!(text.contains(said), "{text}");
    }
}
