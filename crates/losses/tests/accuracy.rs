//! Accuracy of every divergence's gradients against the formulas in numbers of 31 digits, in typical rows and in peaked and
//! nearly equal ones.

mod common;

use abkd_losses::{Divergence, Fidelity, Logits, Rows, reference};
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;

use common::exact::{Found, Row, exact_of_rows};
use common::regimes::{Regime, normal};
use common::{counts_all_alike, errors, kernel, with_other_parameters};

/// Three typical rows of a student's and a teacher's logits: from flat to peaked, and from two independent models to two that
/// nearly agree.
fn rows() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, usize)> {
    let vocab = prop_oneof![Just(2usize), Just(7), Just(100), Just(1000)];
    (any::<u64>(), vocab, 1.0..8.0, 0.0..0.99).prop_map(
        |(seed, vocab, scale, kinship): (_, _, f64, f64)| {
            let mut normal = normal(seed);
            let own = (1.0 - kinship * kinship).sqrt();
            let logits = (0..3 * vocab).map(|_| {
                let (teacher, other) = (normal(), normal());
                let student = kinship * teacher + own * other;
                ((scale * student) as f32, (scale * teacher) as f32)
            });
            let (z, t) = logits.unzip();
            (z, t, vocab)
        },
    )
}

/// A row of a regime, and its name.
fn peaked(
    vocab: impl Strategy<Value = usize>,
) -> impl Strategy<Value = (String, Vec<f32>, Vec<f32>)> {
    let regime = prop::sample::select(&Regime::ALL[..]);
    let scale = prop::sample::select(&[2.0, 5.0, 10.0, 20.0][..]);
    let offset = prop::sample::select(&[0.0, 70.0, -30.0][..]);
    (regime, vocab, scale, offset, any::<u64>()).prop_map(|(regime, vocab, scale, offset, seed)| {
        let (z, t) = regime.row(vocab, scale, offset, seed);
        let name =
            format!("{regime:?}, {vocab} tokens, scale {scale}, offset {offset}, seed {seed}");
        (name, z, t)
    })
}

/// Values and gradients.
type Computed = (Vec<f32>, Vec<f32>);

/// Values relative where they are above 1, gradients relative to their largest entry.
fn check(
    name: &str,
    z: &[f32],
    t: &[f32],
    vocab: usize,
    whole: bool,
    most: f64,
    ours: &dyn Fn(&Divergence, Fidelity) -> Computed,
) -> Result<(), TestCaseError> {
    let exact = z.chunks(vocab).zip(t.chunks(vocab));
    let exact: Vec<Row> = exact.map(|(z, t)| Row::new(z, t)).collect();
    for d in with_other_parameters() {
        if !whole && counts_all_alike(&d) {
            continue;
        }
        for fidelity in [Fidelity::Paper, Fidelity::Official] {
            let Some(exact): Option<Vec<Found>> = exact_of_rows(&d, fidelity, &exact) else {
                continue;
            };
            let (values, grads) = ours(&d, fidelity);
            let [value, grad] = errors(&exact, &values, &grads);
            prop_assert!(value < most, "{d:?} {fidelity:?}, {name}: value {value:e}");
            prop_assert!(grad < most, "{d:?} {fidelity:?}, {name}: gradient {grad:e}");
        }
    }
    Ok(())
}

fn by_tensors(
    d: &Divergence,
    fidelity: Fidelity,
    z: &[f32],
    t: &[f32],
    device: &Device,
) -> (Vec<f32>, Vec<f32>) {
    let tensor = |x: &[f32]| {
        let data = TensorData::new(x.to_vec(), [1, x.len()]);
        Tensor::<2>::from_data(data, device)
    };
    let Rows { value, grad, .. } = reference::value_and_grad(
        d,
        fidelity,
        Logits {
            student: tensor(z),
            teacher: tensor(t),
        },
    )
    .unwrap();
    let floats = |x: TensorData| x.as_slice::<f32>().unwrap().to_vec();
    (
        floats(value.into_data_as::<f32>()),
        floats(grad.into_data_as::<f32>()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_row_kernel_is_exact_in_rows_as_they_occur((z, t, vocab) in rows()) {
        check("rows", &z, &t, vocab, true, 1e-5, &|d, fidelity| kernel(d, fidelity, &z, &t, vocab))?;
    }

    #[test]
    fn the_row_kernel_is_exact_in_peaked_rows(
        (name, z, t) in peaked(prop::sample::select(&[2usize, 3, 7, 30, 257, 1000][..])),
    ) {
        check(&name, &z, &t, z.len(), true, 1e-5, &|d, fidelity| kernel(d, fidelity, &z, &t, z.len()))?;
    }

    #[test]
    fn tensor_operations_are_exact_in_peaked_rows(
        (name, z, t) in peaked(prop::sample::select(&[2usize, 3, 7, 30, 257, 1000][..])),
    ) {
        let whole = z.len() < 300;
        // Exponents of up to 85 (chi-squared) are rounded to 4e-6, and sums over the tokens are of f32.
        check(&name, &z, &t, z.len(), whole, 3e-5, &|d, fidelity| by_tensors(d, fidelity, &z, &t, &Device::flex()))?;
    }
}

#[test]
fn a_whole_vocabulary_is_exact() {
    let vocab = 50_257;
    for (seed, regime) in Regime::ALL.into_iter().enumerate() {
        let (z, t) = regime.row(vocab, 5.0, 0.0, seed as u64);
        let exact = [Row::new(&z, &t)];
        for d in Divergence::all() {
            for fidelity in [Fidelity::Paper, Fidelity::Official] {
                let Some(exact) = exact_of_rows(&d, fidelity, &exact) else {
                    continue;
                };
                let (value, grad) = kernel(&d, fidelity, &z, &t, vocab);
                let [value, grad] = errors(&exact, &value, &grad);
                assert!(
                    value < 1e-5 && grad < 1e-5,
                    "{d:?} {fidelity:?} {regime:?}: {value:e} {grad:e}"
                );
            }
        }
    }
}
