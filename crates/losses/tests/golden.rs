//! Both implementations against the released losses, computed in f64; where distributions are peaked, against the gradients
//! of their formulas with 60 digits.

mod common;

use burn::tensor::Device;

#[test]
fn values_and_gradients_are_those_of_the_released_losses() {
    common::goldens::check(&Device::flex());
}
