//! Properties that every divergence must satisfy, checked against plain formulas.

mod common;

use abkd_losses::{
    Divergence, Fidelity, Logits, Rows, cross_entropy_value_and_grad, divergence, reference,
    value_and_grad,
};
use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;

use common::exact::{exact, gradient_is_slope};
use common::{all, kernel, log_softmax};

/// The value of a row by the published formula; `None` where f32 may choose otherwise.
fn published(d: &Divergence, z: &[f32], t: &[f32]) -> Option<f64> {
    exact(d, Fidelity::Paper, z, t, z.len()).map(|rows| rows[0].value)
}

fn tensor(x: &[f32], vocab: usize) -> Tensor<2> {
    Tensor::from_data(
        TensorData::new(x.to_vec(), [x.len() / vocab, vocab]),
        &Device::flex(),
    )
}

fn close(a: f64, b: f64, scale: f64) -> bool {
    (a - b).abs() <= 2e-5 * scale.max(2.5e-2)
}

/// A pair of rows of logits.
fn pair() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    prop_oneof![Just(1usize), Just(2), Just(7), Just(40), Just(1000)].prop_flat_map(|v| {
        (
            proptest::collection::vec(-6.0f32..6.0, v),
            proptest::collection::vec(-6.0f32..6.0, v),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn both_implementations_give_the_published_values((z, t) in pair()) {
        for d in all() {
            let Some(expected) = published(&d, &z, &t) else { continue };
            let (value, grad) = kernel(&d, Fidelity::Paper, &z, &t, z.len());
            prop_assert!(close(value[0].into(), expected, expected.abs()), "{d:?}: {} {expected}", value[0]);
            let rows = reference::value_and_grad(&d, Fidelity::Paper, Logits { student: tensor(&z, z.len()), teacher: tensor(&t, z.len()) }).unwrap();
            // a small beta loses digits in the f32 tensor operations
            let small_beta = d.param("beta") == Some(0.01);
            let slack = if small_beta { 100.0 } else { 1.0 };
            let theirs = f64::from(rows.value.into_scalar::<f32>());
            prop_assert!(close(theirs, expected, slack * expected.abs().max(0.01)), "{d:?}: {theirs} {expected}");
            let other = rows.grad.into_data_as::<f32>();
            let largest = grad.iter().fold(0.0f64, |a, g| a.max(f64::from(g.abs())));
            for (a, b) in grad.iter().zip(other.as_slice::<f32>().unwrap()) {
                prop_assert!(close((*a).into(), (*b).into(), largest), "{d:?}: gradient {a} {b}");
            }
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values((z, t) in pair()) {
        for d in all() {
            if !gradient_is_slope(&d) {
                continue;
            }
            let (_, grad) = kernel(&d, Fidelity::Paper, &z, &t, z.len());
            let largest = grad.iter().fold(0.0f64, |a, g| a.max(f64::from(g.abs())));
            for j in [0, z.len() / 2, z.len() - 1] {
                let step = |by: f32| { let mut z = z.clone(); z[j] += by; (published(&d, &z, &t).unwrap(), f64::from(z[j])) };
                let ((up, a), (down, b)) = (step(1e-2), step(-1e-2));
                let slope = (up - down) / (a - b);
                prop_assert!((slope - f64::from(grad[j])).abs() <= 1e-3 * largest.max(1e-2), "{d:?}: {slope} {}", grad[j]);
            }
        }
    }

    #[test]
    fn zero_at_equality_positive_elsewhere_and_blind_to_a_shift((z, t) in pair(), shift in -50.0f32..50.0) {
        for d in all() {
            let (same, _) = kernel(&d, Fidelity::Paper, &t, &t, t.len());
            prop_assert!(same[0].abs() < 1e-4, "{d:?}: {}", same[0]);
            let (value, grad) = kernel(&d, Fidelity::Paper, &z, &t, z.len());
            prop_assert!(value[0] > -1e-5, "{d:?}: {}", value[0]);
            let total: f64 = grad.iter().map(|&g| f64::from(g)).sum();
            let size: f64 = grad.iter().map(|&g| f64::from(g.abs())).sum();
            prop_assert!(total.abs() <= 1e-5 * size.max(0.1), "{d:?}: {total} of {size}");
            let moved: Vec<f32> = z.iter().map(|x| x + shift).collect();
            let (again, _) = kernel(&d, Fidelity::Paper, &moved, &t, z.len());
            prop_assert!((again[0] - value[0]).abs() <= 1e-3 * value[0].abs().max(0.1), "{d:?}");
        }
    }
}

/// A term of log p and log q, summed over the entries that are finite in both models.
fn sum_of_finite(term: &dyn Fn(f64, f64) -> f64, z: &[f32], t: &[f32]) -> f64 {
    let (lq, lp) = (log_softmax(z), log_softmax(t));
    let rows = lp.iter().zip(&lq);
    let kept = rows.filter(|(p, q)| p.is_finite() && q.is_finite());
    kept.map(|(&p, &q)| term(p, q)).sum()
}

#[test]
fn masked_entries_are_left_out_of_value_and_gradient() {
    let inf = f32::NEG_INFINITY;
    let rows: [([f32; 5], [f32; 5]); 3] = [
        ([0.3, 1.0, 2.0, -0.5, 0.1], [0.1, inf, 1.0, 0.7, -1.0]),
        ([0.3, inf, 2.0, -0.5, 0.1], [0.1, 0.4, 1.0, 0.7, inf]),
        ([inf, 1.0, 2.0, -0.5, 0.1], [inf, 0.4, 1.0, 0.7, 0.2]),
    ];
    let mix = |lp: f64, lq: f64, a: f64| (a * lp.exp() + (1.0 - a) * lq.exp()).ln();
    let (lambda, a, b) = (0.1, 0.2, 0.7);
    let losses: [(_, &dyn Fn(f64, f64) -> f64); 6] = [
        (Divergence::forward_kl(), &|p, q| p.exp() * (p - q)),
        (Divergence::reverse_kl(), &|p, q| q.exp() * (q - p)),
        (Divergence::jensen(lambda), &|p, q| {
            let m = mix(p, q, 1.0 - lambda);
            lambda * q.exp() * (q - m) + (1.0 - lambda) * p.exp() * (p - m)
        }),
        (Divergence::skew_forward_kl(lambda), &|p, q| {
            p.exp() * (p - mix(p, q, lambda))
        }),
        (Divergence::skew_reverse_kl(lambda), &|p, q| {
            q.exp() * (q - mix(p, q, 1.0 - lambda))
        }),
        (Divergence::alpha_beta(a, b), &|p, q| {
            let s = a + b;
            let powers = a / s * (s * p).exp() + b / s * (s * q).exp();
            (powers - (a * p + b * q).exp()) / (a * b)
        }),
    ];
    for (d, term) in losses {
        for (z, t) in &rows {
            let (value, grad) = kernel(&d, Fidelity::Paper, z, t, 5);
            let other = reference::value_and_grad(
                &d,
                Fidelity::Paper,
                Logits {
                    student: tensor(z, 5),
                    teacher: tensor(t, 5),
                },
            )
            .unwrap();
            let other_grad = other.grad.into_data_as::<f32>();
            let expected = sum_of_finite(term, z, t);
            assert!(
                (f64::from(value[0]) - expected).abs() < 1e-5,
                "{d:?} {z:?}: {value:?} {expected}"
            );
            assert!(
                (f64::from(other.value.into_scalar::<f32>()) - expected).abs() < 1e-5,
                "{d:?} {z:?}"
            );
            for j in 0..5 {
                let step = |by: f32| {
                    let mut z = *z;
                    z[j] += by;
                    sum_of_finite(term, &z, t)
                };
                let slope = (step(1e-3) - step(-1e-3)) / 2e-3;
                for ours in [grad[j], other_grad.as_slice::<f32>().unwrap()[j]] {
                    assert!(
                        (f64::from(ours) - slope).abs() < 1e-4,
                        "{d:?} {z:?} {j}: {ours} {slope}"
                    );
                }
            }
        }
    }
}

#[test]
fn large_and_infinite_logits_stay_finite() {
    let inf = f32::NEG_INFINITY;
    let rows: [(&[f32], &[f32]); 4] = [
        (&[1e4, -1e4, 0.0, 5.0], &[-1e4, 1e4, 3.0, 0.0]),
        (&[inf, 0.0, 1.0, 2.0], &[0.0, inf, 1.0, 2.0]),
        (&[inf, inf, inf, 2.0], &[0.0, inf, inf, inf]),
        (&[1e4, 1e4, 1e4, inf], &[-1e4, -1e4, 1e4, inf]),
    ];
    for d in all() {
        for fidelity in [Fidelity::Paper, Fidelity::Official] {
            for (z, t) in rows {
                let (value, grad) = kernel(&d, fidelity, z, t, 4);
                assert!(
                    value[0].is_finite() && grad.iter().all(|g| g.is_finite()),
                    "{d:?} {z:?}: {value:?} {grad:?}"
                );
                let other = reference::value_and_grad(
                    &d,
                    fidelity,
                    Logits {
                        student: tensor(z, 4),
                        teacher: tensor(t, 4),
                    },
                )
                .unwrap();
                let data = other.grad.into_data_as::<f32>();
                assert!(other.value.into_scalar::<f32>().is_finite(), "{d:?} {z:?}");
                assert!(
                    data.as_slice::<f32>()
                        .unwrap()
                        .iter()
                        .all(|g| g.is_finite()),
                    "{d:?} {z:?}: {data:?}"
                );
            }
        }
    }
}

#[test]
fn the_alpha_beta_family_contains_the_kl_divergences_and_is_continuous() {
    let z = [0.3f32, -1.0, 2.0, 0.1, -0.4];
    let t = [1.3f32, 0.5, -0.7, 0.0, 0.9];
    let value = |d: Divergence| f64::from(kernel(&d, Fidelity::Paper, &z, &t, 5).0[0]);
    let ab = |alpha, beta| value(Divergence::alpha_beta(alpha, beta));
    assert!((ab(1.0, 0.0) - value(Divergence::forward_kl())).abs() < 1e-6);
    assert!((ab(0.0, 1.0) - value(Divergence::reverse_kl())).abs() < 1e-6);
    // alpha = beta = 1/2: four times the squared Hellinger distance sum (sqrt p - sqrt q)^2 / 2
    let (lq, lp) = (log_softmax(&z), log_softmax(&t));
    let hellinger: f64 = lq
        .iter()
        .zip(&lp)
        .map(|(a, b)| ((a / 2.0).exp() - (b / 2.0).exp()).powi(2) / 2.0)
        .sum();
    assert!((ab(0.5, 0.5) - 4.0 * hellinger).abs() < 1e-6);
    for (limit, near) in [
        (ab(0.0, 0.5), ab(1e-4, 0.5)),
        (ab(0.5, 0.0), ab(0.5, 1e-4)),
        (ab(0.5, -0.5), ab(0.5, -0.4999)),
        (ab(0.0, 0.0), ab(1e-4, 1e-4)),
        (ab(0.0, 0.0), ab(1e-4, 0.0)),
        (ab(0.7, 0.0499), ab(0.7, 0.0501)),
    ] {
        assert!((limit - near).abs() < 2e-3 * limit, "{limit} {near}");
    }
}

#[test]
fn the_differentiable_form_has_the_kernels_gradient() {
    let device = Device::flex().autodiff();
    let (z, t) = (
        [0.5f32, f32::NEG_INFINITY, 1.0, 0.2, 0.3, -2.0],
        [0.1f32, 0.3, -0.5, 1.0, 0.0, 0.4],
    );
    for d in all() {
        let student =
            Tensor::<2>::from_data(TensorData::new(z.to_vec(), [2, 3]), &device).require_grad();
        let value = divergence(
            &d,
            Fidelity::Paper,
            Logits {
                student: student.clone(),
                teacher: tensor(&t, 3),
            },
        )
        .unwrap();
        let weights = Tensor::<1>::from_floats([1.0, 3.0], &device);
        let grads = (value.clone() * weights).sum().backward();
        let ours = student.grad(&grads).unwrap().into_data_as::<f32>();
        let direct = value_and_grad(
            &d,
            Fidelity::Paper,
            Logits {
                student: tensor(&z, 3),
                teacher: tensor(&t, 3),
            },
        )
        .unwrap();
        let expected = direct.grad.into_data_as::<f32>();
        let expected = expected.as_slice::<f32>().unwrap();
        for (i, g) in ours.as_slice::<f32>().unwrap().iter().enumerate() {
            assert!(
                (g - expected[i] * if i < 3 { 1.0 } else { 3.0 }).abs() < 1e-6,
                "{d:?}"
            );
        }
        assert_eq!(value.inner().into_data(), direct.value.into_data());
    }
}

#[test]
fn rows_that_are_no_distribution_are_named() {
    let d = Divergence::forward_kl();
    let good = [0.0f32, 1.0, 2.0, 3.0];
    for (bad, what) in [
        ([0.0, 1.0, f32::NAN, 1.0], "NaN"),
        (
            [0.0, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY],
            "no finite",
        ),
        ([0.0, 1.0, f32::INFINITY, 0.0], "+inf"),
    ] {
        for (z, t, model) in [(bad, good, "student"), (good, bad, "teacher")] {
            for error in [
                value_and_grad(
                    &d,
                    Fidelity::Paper,
                    Logits {
                        student: tensor(&z, 2),
                        teacher: tensor(&t, 2),
                    },
                )
                .err()
                .unwrap(),
                reference::value_and_grad(
                    &d,
                    Fidelity::Paper,
                    Logits {
                        student: tensor(&z, 2),
                        teacher: tensor(&t, 2),
                    },
                )
                .err()
                .unwrap(),
            ] {
                let error = error.to_string();
                assert!(
                    error.contains("row 1") && error.contains(model) && error.contains(what),
                    "{error}"
                );
            }
        }
    }
    let error = value_and_grad(
        &d,
        Fidelity::Paper,
        Logits {
            student: tensor(&good, 2),
            teacher: tensor(&good, 4),
        },
    )
    .err()
    .unwrap();
    assert!(error.to_string().contains("[2, 2]"), "{error}");
}

#[test]
fn tensor_operations_and_the_kernel_see_the_same() {
    let noise = |i: usize| ((i * 811) % 1009) as f32 / 200.0 - 2.5;
    let z: Vec<f32> = (0..40).map(noise).collect();
    let t: Vec<f32> = (0..40).map(|i| noise(i * i)).collect();
    let views = all().into_iter().flat_map(|d| {
        let warm = d.at_temperature(2.5, true);
        [
            warm,
            d.of_top(4),
            warm.of_top(1),
            warm.with_assistant(0.3, 0.2),
        ]
    });
    for d in views {
        for fidelity in [Fidelity::Paper, Fidelity::Official] {
            let [one, two] = [value_and_grad, reference::value_and_grad].map(|f| {
                let logits = Logits {
                    student: tensor(&z, 10),
                    teacher: tensor(&t, 10),
                };
                let Rows { value, grad, .. } = f(&d, fidelity, logits).unwrap();
                [value, grad.reshape([40])].map(Tensor::into_data)
            });
            for (one, two) in one.iter().zip(&two) {
                one.assert_approx_eq::<f32>(two, burn::tensor::Tolerance::rel_abs(1e-4, 1e-5));
            }
        }
    }
}

#[test]
fn a_vocabulary_of_one_and_no_rows_give_numbers_or_nothing() {
    let zero = Divergence::alpha_net(0.0, 0.5);
    for d in all().into_iter().chain([zero]) {
        for fidelity in [Fidelity::Paper, Fidelity::Official] {
            for f in [value_and_grad, reference::value_and_grad] {
                let logits = Logits {
                    student: tensor(&[3.0, -2.0], 1),
                    teacher: tensor(&[0.5, 9.0], 1),
                };
                let one = f(&d, fidelity, logits).unwrap();
                for x in [one.value, one.grad.reshape([2])] {
                    let x: Vec<f32> = x.into_data_as::<f32>().as_slice::<f32>().unwrap().to_vec();
                    assert!(
                        x.iter().all(|x| x.abs() < 1e-6),
                        "{d:?} {fidelity:?}: {x:?}"
                    );
                }
                let logits = Logits {
                    student: tensor(&[], 5),
                    teacher: tensor(&[], 5),
                };
                let none = f(&d, fidelity, logits).unwrap();
                assert_eq!(
                    (none.value.dims(), none.grad.dims()),
                    ([0], [0, 5]),
                    "{d:?}"
                );
            }
        }
    }
}

#[test]
fn logits_of_half_precision_stay_what_they_are() {
    let noise = |i: usize| ((i * 811) % 1009) as f32 / 100.0 - 5.0;
    let (n, vocab) = (3, 501);
    let logits = |from: usize, dtype: DType| -> Tensor<2> {
        let numbers: Vec<f32> = (from..from + n * vocab).map(noise).collect();
        tensor(&numbers, vocab).cast(dtype)
    };
    let types = [DType::F16, DType::BF16, DType::F32];
    let check = |what: &str, ours: Rows, theirs: Rows, dtype: DType| {
        assert_eq!(ours.value.dtype(), DType::F32, "{what}");
        assert_eq!(ours.value.into_data(), theirs.value.into_data(), "{what}");
        assert_eq!(ours.grad.dtype(), dtype, "{what}");
        let rounded = theirs.grad.cast(dtype);
        assert_eq!(ours.grad.into_data(), rounded.into_data(), "{what}");
    };
    for ours in types {
        let z = logits(0, ours);
        let wide = || z.clone().cast(DType::F32);
        for theirs in types {
            let t = logits(77, theirs);
            for d in all() {
                let rows = |z, t| {
                    value_and_grad(
                        &d,
                        Fidelity::Official,
                        Logits {
                            student: z,
                            teacher: t,
                        },
                    )
                    .unwrap()
                };
                check(
                    &format!("{d:?} {ours:?} {theirs:?}"),
                    rows(z.clone(), t.clone()),
                    rows(wide(), t.clone().cast(DType::F32)),
                    ours,
                );
            }
        }
        let rows = |z| cross_entropy_value_and_grad(z, &[3, 400, 77]).unwrap();
        check("cross-entropy", rows(z.clone()), rows(wide()), ours);
    }
}
