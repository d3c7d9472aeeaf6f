//! The wgpu kernel against the CPU kernel. Runs on any Vulkan driver, also on Mesa's software driver.
#![cfg(feature = "wgpu")]

mod common;

use abkd_losses::{
    Divergence, Fidelity, Logits, Rows, cross_entropy_value_and_grad, reference, row,
    value_and_grad,
};
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use proptest::prelude::*;

use common::exact::{Row, exact_of_rows};
use common::regimes::Regime;

const HALF_ULP: f32 = f32::EPSILON / 2.0;

fn device() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// Every divergence, the alpha-beta family with its limits and values near them.
fn served() -> Vec<Divergence> {
    let mut all: Vec<Divergence> = common::all();
    all.push(Divergence::alpha_beta(0.5, -0.49));
    // At 1, and in a peaked row near it, rounding alone decides which token crosses the head's mass.
    all.extend([0.0, 0.1, 0.9].map(Divergence::akl));
    all.extend(mixtures(0.5));
    // with these logits the other member is the larger one
    all.push(Divergence::alpha_net(0.9, 0.2));
    all
}

fn mixtures(lambda: f64) -> [Divergence; 3] {
    [
        Divergence::jensen(lambda),
        Divergence::skew_forward_kl(lambda),
        Divergence::skew_reverse_kl(lambda),
    ]
}

fn noise(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let x = (i ^ (seed << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (x >> 40) as f32 / (1u64 << 24) as f32 * 10.0 - 5.0
        })
        .collect()
}

/// Random rows. The second is peaked in both models, the third is masked in part.
fn logits(n: usize, vocab: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut z, mut t) = (noise(n * vocab, 1), noise(n * vocab, 2));
    z[vocab + vocab / 3] = 25.0;
    t[vocab + vocab / 3] = 18.0;
    for i in (0..vocab).step_by(7) {
        t[2 * vocab + i] = f32::NEG_INFINITY;
    }
    z[2 * vocab + 1] = f32::NEG_INFINITY;
    (z, t)
}

fn tensor(x: &[f32], vocab: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(
        TensorData::new(x.to_vec(), [x.len() / vocab, vocab]),
        device,
    )
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data_as::<f32>()
        .as_slice::<f32>()
        .unwrap()
        .to_vec()
}

/// Compares values relative to themselves, entries of the gradient relative to the row's largest. The rest of the tolerance
/// is for the CPU kernel's rounding, not for this one's. The CPU kernel adds the peak's 1 to the small terms in f32, which
/// costs half a unit in the last place of 1, and it moves the rounding of the whole row's gradient to the peak.
fn assert_close(what: &str, rows: Rows, z: &[f32], (value, grad): (&[f32], &[f32])) {
    let vocab = z.len() / value.len();
    let ours = floats(rows.value);
    let our_grad = floats(rows.grad);
    assert_eq!((ours.len(), our_grad.len()), (value.len(), grad.len()));
    for (row, (a, b)) in ours.iter().zip(value).enumerate() {
        assert!(
            (a - b).abs() <= 1e-5 * b.abs() + HALF_ULP,
            "{what}, row {row}: value {a}, not {b}"
        );
        let range = row * vocab..(row + 1) * vocab;
        let (ours, theirs, z) = (&our_grad[range.clone()], &grad[range.clone()], &z[range]);
        let highest = z.iter().fold(f32::MIN, |a, &z| a.max(z));
        let largest = theirs.iter().fold(0.0f32, |a, g| a.max(g.abs()));
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let tolerance = if z[i] == highest { 1e-4 } else { 1e-5 };
            assert!(
                (a - b).abs() <= tolerance * largest + HALF_ULP,
                "{what}, row {row}, entry {i}: gradient {a}, not {b} of {largest}"
            );
        }
    }
}

#[test]
fn values_and_gradients_are_those_of_the_cpu_kernel() {
    let device = device();
    for (n, vocab) in [(7, 1000), (3, 5003), (3, 5)] {
        let (z, t) = logits(n, vocab);
        for d in served() {
            for fidelity in [Fidelity::Paper, Fidelity::Official] {
                let (value, grad) = common::kernel(&d, fidelity, &z, &t, vocab);
                let rows = value_and_grad(
                    &d,
                    fidelity,
                    Logits {
                        student: tensor(&z, vocab, &device),
                        teacher: tensor(&t, vocab, &device),
                    },
                )
                .unwrap();
                let what = format!("{n}x{vocab} {d:?} {fidelity:?}");
                assert_close(&what, rows, &z, (&value, &grad));
            }
        }
    }
}

#[test]
fn cross_entropies_are_those_of_the_cpu_kernel() {
    let (n, vocab) = (7, 1000);
    let (z, _) = logits(n, vocab);
    let labels: Vec<u32> = (0..n).map(|i| (i * 37 + vocab / 3 - 37) as u32).collect();
    let mut grad = z.clone();
    let mut value = vec![0.0; n];
    row::cross_entropy(&mut grad, &labels, vocab, &mut value).unwrap();
    let rows = cross_entropy_value_and_grad(tensor(&z, vocab, &device()), &labels).unwrap();
    assert_close("cross-entropy", rows, &z, (&value, &grad));

    let mut labels = labels;
    labels[2] = 1;
    let error = cross_entropy_value_and_grad(tensor(&z, vocab, &device()), &labels);
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("row 2") && error.contains("label 1 is -inf"),
        "{error}"
    );
}

#[test]
fn large_logits_and_shares_of_0_stay_finite() {
    let inf = f32::NEG_INFINITY;
    let z = [1e4, -1e4, 0.0, 5.0, inf, inf, inf, 2.0, 1e4, 1e4, 1e4, inf];
    let t = [
        -1e4, 1e4, 3.0, 0.0, 0.0, inf, inf, inf, -1e4, -1e4, 1e4, inf,
    ];
    let ends = [0.0, 1.0].into_iter().flat_map(mixtures);
    for d in served().into_iter().chain(ends) {
        let (z, t) = (tensor(&z, 4, &device()), tensor(&t, 4, &device()));
        let rows = value_and_grad(
            &d,
            Fidelity::Paper,
            Logits {
                student: z,
                teacher: t,
            },
        )
        .unwrap();
        let (value, grad) = (floats(rows.value), floats(rows.grad));
        assert!(
            value.iter().chain(&grad).all(|x| x.is_finite()),
            "{d:?}: {value:?} {grad:?}"
        );
    }
}

/// Teachers with equally likely tokens: all, in groups, or all but one. Their order decides which of them belong to the head.
#[test]
fn the_head_of_equal_tokens_begins_with_the_first() {
    let vocab = 700;
    let z = noise(3 * vocab, 5);
    let mut t = vec![0.0; 3 * vocab];
    for (i, t) in t[vocab..].iter_mut().enumerate() {
        *t = -((i % vocab / 100) as f32);
    }
    // One token stands out, and the others share the rest.
    t[2 * vocab..].fill(-3.0);
    t[2 * vocab + 123] = 4.0;
    for mu in [0.0, 0.0997, 0.3331, 0.5003, 0.8009] {
        for fidelity in [Fidelity::Paper, Fidelity::Official] {
            let d = Divergence::akl(mu);
            let (value, grad) = common::kernel(&d, fidelity, &z, &t, vocab);
            let logits = Logits {
                student: tensor(&z, vocab, &device()),
                teacher: tensor(&t, vocab, &device()),
            };
            let rows = value_and_grad(&d, fidelity, logits).unwrap();
            assert_close(&format!("{mu} {fidelity:?}"), rows, &z, (&value, &grad));
        }
    }
}

#[test]
fn what_the_kernel_does_not_serve_is_the_reference_implementations() {
    let (n, vocab) = (3, 200);
    let (z, t) = logits(n, vocab);
    let both = || Logits {
        student: tensor(&z, vocab, &device()),
        teacher: tensor(&t, vocab, &device()),
    };
    let d = Divergence::alpha_beta(0.02, 0.01);
    let rows = value_and_grad(&d, Fidelity::Paper, both()).unwrap();
    let other = reference::value_and_grad(&d, Fidelity::Paper, both()).unwrap();
    let (value, grad) = (floats(other.value), floats(other.grad));
    assert_close(&format!("{d:?}"), rows, &z, (&value, &grad));
}

#[test]
fn rows_that_are_no_distribution_are_named() {
    let (n, vocab) = (5, 300);
    let inf = f32::NEG_INFINITY;
    for (entry, all, what) in [
        (f32::NAN, false, "NaN"),
        (f32::INFINITY, false, "+inf"),
        (inf, true, "no finite"),
    ] {
        for model in ["student", "teacher"] {
            let (mut z, mut t) = logits(n, vocab);
            let bad = if model == "student" { &mut z } else { &mut t };
            // two bad rows: the first one is named
            for row in [3, 4] {
                if all {
                    bad[row * vocab..(row + 1) * vocab].fill(entry);
                } else {
                    bad[row * vocab + 123] = entry;
                }
            }
            let (z, t) = (tensor(&z, vocab, &device()), tensor(&t, vocab, &device()));
            let error = value_and_grad(
                &Divergence::bdkd(),
                Fidelity::Paper,
                Logits {
                    student: z,
                    teacher: t,
                },
            );
            let error = error.err().unwrap().to_string();
            assert!(
                error.contains("row 3") && error.contains(model) && error.contains(what),
                "{error}"
            );
        }
    }
}

#[test]
fn logits_need_not_lie_row_after_row() {
    let (n, vocab) = (40, 3);
    let (z, t) = (noise(n * vocab, 1), noise(n * vocab, 2));
    let columns = |x: &[f32]| tensor(x, n, &device()).transpose();
    let on_host = |x: &[f32]| floats(columns(x));
    let (mut grad, mut value) = (on_host(&z), vec![0.0; n]);
    row::divergence(
        &Divergence::forward_kl(),
        Fidelity::Paper,
        Logits {
            student: &mut grad,
            teacher: &on_host(&t),
        },
        vocab,
        &mut value,
    )
    .unwrap();
    let rows = value_and_grad(
        &Divergence::forward_kl(),
        Fidelity::Paper,
        Logits {
            student: columns(&z),
            teacher: columns(&t),
        },
    )
    .unwrap();
    assert_close("transposed", rows, &on_host(&z), (&value, &grad));
}

#[test]
fn values_and_gradients_are_those_of_the_released_losses() {
    common::goldens::check(&device());
}

proptest! {
    // Each case is 100 launches.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn gradients_are_exact_in_peaked_rows(
        scale in prop::sample::select(&[5.0, 10.0, 20.0][..]),
        offset in prop::sample::select(&[0.0, 70.0][..]),
        vocab in prop::sample::select(&[2usize, 7, 100, 1000][..]),
        seed in any::<u64>(),
    ) {
        // a row of each regime
        let rows = Regime::ALL.map(|regime| regime.row(vocab, scale, offset, seed));
        let exact = rows.each_ref().map(|(z, t)| Row::new(z, t));
        let (z, t): (Vec<_>, Vec<_>) = rows.iter().cloned().unzip();
        let (z, t) = (z.concat(), t.concat());
        for d in common::with_other_parameters() {
            for fidelity in [Fidelity::Paper, Fidelity::Official] {
                // skips a divergence that chooses once for all rows
                if d.choice(fidelity).is_some() {
                    continue;
                }
                let (z, t) = (tensor(&z, vocab, &device()), tensor(&t, vocab, &device()));
                let Rows { value, grad, .. } = value_and_grad(&d, fidelity, Logits { student: z, teacher: t }).unwrap();
                let (value, grad) = (floats(value), floats(grad));
                for (i, (regime, row)) in Regime::ALL.iter().zip(&exact).enumerate() {
                    let Some(exact) = exact_of_rows(&d, fidelity, std::slice::from_ref(row)) else {
                        continue;
                    };
                    let grad = &grad[i * vocab..][..vocab];
                    let [value, grad] = common::errors(&exact, &value[i..][..1], grad);
                    // An exponential of a shader may be off by 3 + 2 |x| units in the last place, and exponents of up to 85
                    // (chi-squared) are rounded to 4e-6.
                    let least = 3e-5f64;
                    let most = if common::counts_all_alike(&d) { least.max(1e-7 * vocab as f64) } else { least };
                    prop_assert!(
                        value < least && grad < most,
                        "{d:?} {fidelity:?} {regime:?}, {vocab} tokens, scale {scale}, offset {offset}: {value:e} {grad:e}"
                    );
                }
            }
        }
    }
}
