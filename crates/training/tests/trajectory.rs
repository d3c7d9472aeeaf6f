//! Twelve steps of distillation against PyTorch.

use std::path::Path;

use abkd_training::verify::verify_trajectory;
use burn::tensor::Device;

#[test]
fn twelve_steps_follow_the_golden_trajectory() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/trajectory-ab");
    let checks = verify_trajectory(&dir, &Device::flex()).unwrap();
    assert_eq!(checks.len(), 36);
    for check in checks {
        assert!(check.error <= check.tolerance, "{check:?}");
    }
}
