//! Both implementations against the released losses, computed in f64; where distributions are peaked, the gradients of
//! their formulas with 60 digits.

use std::path::Path;

use abkd_losses::verify::Check;

fn checks(name: &str) -> Vec<Check> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    abkd_losses::verify::verify_losses(&goldens.join(name)).unwrap()
}

#[test]
fn values_and_gradients_are_those_of_the_released_losses() {
    for (name, cases) in [("losses.json", 3), ("losses_peaked.json", 4)] {
        let checks = checks(name);
        assert_eq!(checks.len(), cases * 21 * 2);
        let bad: Vec<_> = checks
            .iter()
            .filter(|c| !(c.value_error < 1e-5 && c.grad_error < 1e-5))
            .collect();
        assert!(bad.is_empty(), "{name}: {bad:#?}");
    }
}
