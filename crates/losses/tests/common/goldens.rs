//! The golden files on a device.

use std::path::Path;

use abkd_losses::verify::verify_losses_on;
use burn::tensor::Device;

/// Every value and gradient within 1e-5 of the released losses', a gradient relative to its largest entry.
pub fn check(device: &Device) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for (name, cases) in [("losses.json", 3), ("losses_peaked.json", 4)] {
        let checks = verify_losses_on(&goldens.join(name), device).unwrap();
        assert_eq!(checks.len(), cases * 21 * 2);
        let bad: Vec<_> = checks
            .iter()
            .filter(|c| !(c.value_error < 1e-5 && c.grad_error < 1e-5))
            .collect();
        assert!(bad.is_empty(), "{name}, {device:?}: {bad:#?}");
    }
}
