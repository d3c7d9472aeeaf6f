//! Both implementations against the released losses, worked out in f64.

use std::path::Path;

#[test]
fn values_and_gradients_are_those_of_the_released_losses() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/losses.json");
    let checks = abkd_losses::verify::verify_losses(&path).unwrap();
    assert_eq!(checks.len(), 3 * 21 * 2);
    let bad: Vec<_> = checks
        .iter()
        .filter(|c| !(c.value_error < 1e-5 && c.grad_error < 1e-5))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
