//! Where the row kernel on the CPU keeps its digits, and the types of logits that it reads.

mod common;

use abkd_losses::{Divergence, Fidelity, Logits, row};

use common::exact::exact;
use common::{all, kernel, log_softmax};

#[test]
fn a_row_with_nearly_all_mass_in_one_token_keeps_its_digits() {
    let mut grad = [0.3f32; 6];
    grad[2] = 17.3;
    let mut value = [0.0];
    row::cross_entropy(&mut grad, &[2], 6, &mut value).unwrap();
    let rest = 5.0 * (0.3 - f64::from(17.3f32)).exp();
    assert!((f64::from(value[0]) / rest.ln_1p() - 1.0).abs() < 1e-5);
    assert!((f64::from(-grad[2]) / (rest / (1.0 + rest)) - 1.0).abs() < 1e-5);
}

#[test]
fn no_entry_of_a_flat_row_takes_the_rounding_of_the_others() {
    let noise = |seed: usize| -> Vec<f32> {
        let at = |i: usize| ((i * seed) % 5003) as f32 / 500.0;
        (0..5003).map(at).collect()
    };
    let (z, t) = (noise(1237), noise(811));
    let d = Divergence::alpha_beta(0.0, 0.5);
    let (_, grad) = kernel(&d, Fidelity::Paper, &z, &t, z.len());
    let (lq, lp) = (log_softmax(&z), log_softmax(&t));
    let h = lq.iter().zip(&lp).map(|(q, p)| (0.5 * q).exp() * (q - p));
    let h: Vec<f64> = h.collect();
    let sum: f64 = h.iter().sum();
    let mut worst = 0.0f64;
    for ((h, lq), grad) in h.iter().zip(&lq).zip(&grad) {
        worst = worst.max((h - lq.exp() * sum - f64::from(*grad)).abs());
    }
    assert!(worst < 1e-6, "{worst}");
}

#[test]
fn a_small_beta_keeps_the_digits_of_the_value() {
    let noise = |seed: usize, size: f32| -> Vec<f32> {
        let at = |i: usize| ((i * seed) % 1009) as f32 / 1009.0 * size;
        (0..1009).map(at).collect()
    };
    for (alpha, beta) in [
        (1.0, 1e-3),
        (1.0, 1e-6),
        (0.7, -0.02),
        (-0.5, 0.01),
        (0.04, -0.03),
        (1e-4, 1e-4),
        (2e-3, -1e-3),
    ] {
        let d = Divergence::alpha_beta(alpha, beta);
        for size in [0.1, 1.0, 12.0] {
            let (z, t) = (noise(123, size), noise(811, size));
            let (value, grad) = kernel(&d, Fidelity::Paper, &z, &t, z.len());
            let (lq, lp) = (log_softmax(&z), log_softmax(&t));
            let s = alpha + beta;
            let phi = |x: f64, d: f64| (x * d).exp_m1() / x;
            let rows = || lq.iter().zip(&lp);
            let exact: f64 = rows()
                .map(|(q, p)| (s * q).exp() * (phi(s, p - q) - phi(alpha, p - q)) / beta)
                .sum();
            let error = (f64::from(value[0]) - exact).abs();
            assert!(
                error < 1e-5 * exact.max(1e-2),
                "{d:?} {size}: {value:?} {exact}"
            );
            let h: Vec<f64> = rows()
                .map(|(q, p)| -(s * q).exp() * phi(alpha, p - q))
                .collect();
            let sum: f64 = h.iter().sum();
            let largest = h.iter().fold(1e-2f64, |a, h| a.max(h.abs()));
            for ((h, q), g) in h.iter().zip(&lq).zip(&grad) {
                let exact = h - q.exp() * sum;
                let error = (f64::from(*g) - exact).abs();
                assert!(error < 1e-5 * largest, "{d:?} {size}: {g} {exact}");
            }
        }
    }
}

#[test]
fn alpha_nets_members_keep_their_digits() {
    let noise = |seed: usize, size: f32| -> Vec<f32> {
        let at = |i: usize| ((i * seed) % 5003) as f32 / 5003.0 * size;
        (0..5003).map(at).collect()
    };
    for [a, b] in [
        [0.2, 0.9],
        [-0.5, 0.6],
        [0.05, 1.3],
        [0.3, 0.97],
        [0.0, 0.5],
    ] {
        // the last with probabilities below e^-60
        for size in [0.03, 0.3, 1.0, 12.0, 45.0, 90.0] {
            let (z, t) = (noise(1237, size), noise(811, size));
            let (lq, lp) = (log_softmax(&z), log_softmax(&t));
            let phi = |x: f64, d: f64| if x == 0.0 { d } else { (x * d).exp_m1() / x };
            let rows = || lq.iter().zip(&lp);
            let member = |alpha: f64| -> f64 {
                let f = |(q, p): (&f64, &f64)| q.exp() * (phi(1.0, p - q) - phi(alpha, p - q));
                rows().map(f).sum::<f64>() / (1.0 - alpha)
            };
            let (alpha, exact) = if member(b) > member(a) {
                (b, member(b))
            } else {
                (a, member(a))
            };
            let d = Divergence::alpha_net(a, b);
            let (value, grad) = kernel(&d, Fidelity::Official, &z, &t, z.len());
            let error = (f64::from(value[0]) / exact - 1.0).abs();
            // The rounding error of a logarithm grows with its size.
            let slack = 1e-6 + 1e-7 * f64::from(size);
            assert!(error < slack, "{d:?} {size}: {value:?} {exact}");
            let h = rows().map(|(q, p)| -q.exp() * phi(alpha, p - q));
            let h: Vec<f64> = h.collect();
            let sum: f64 = h.iter().sum();
            let largest = h.iter().fold(0.0f64, |a, h| a.max(h.abs()));
            for ((h, q), g) in h.iter().zip(&lq).zip(&grad) {
                let error = (h - q.exp() * sum - f64::from(*g)).abs();
                assert!(error < 5e-6 * largest.max(1e-4), "{d:?} {size}: {g}");
            }
        }
    }
}

/// Rows of several blocks whose largest logit is anywhere and exceeds the first block's by any amount.
fn late_peaks() -> Vec<Vec<f32>> {
    let noise = |i: usize| ((i * 811) % 5003) as f32 / 500.0 - 5.0;
    let row = |peak: usize, size: f32| -> Vec<f32> {
        let mut row: Vec<f32> = (0..5003).map(noise).collect();
        row[peak] = size;
        row
    };
    let mut rows = vec![
        row(4000, 6.0),
        row(5002, 14.0),
        row(1024, 20.0),
        row(3, 40.0),
        row(3000, 300.0),
    ];
    rows.extend([-500.0, f32::NEG_INFINITY].map(|low| {
        let mut row = row(2500, 9.0);
        row[..1500].fill(low);
        row
    }));
    rows
}

#[test]
fn the_largest_logit_may_be_anywhere() {
    for z in late_peaks() {
        let log_q = log_softmax(&z);
        for label in [2500, 3000, 4000, 5002] {
            let (mut grad, mut value) = (z.clone(), [0.0]);
            row::cross_entropy(&mut grad, &[label as u32], z.len(), &mut value).unwrap();
            let error = f64::from(value[0]) + log_q[label];
            assert!(
                error.abs() < 1e-6 * (1.0 - log_q[label]),
                "{label}: {error}"
            );
            for (i, (grad, log_q)) in grad.iter().zip(&log_q).enumerate() {
                let exact = if i == label {
                    log_q.exp_m1()
                } else {
                    log_q.exp()
                };
                let error = (f64::from(*grad) - exact).abs();
                assert!(error < 5e-6 * exact.abs() + 1e-37, "{i}: {grad} {exact}");
            }
        }
    }
}

#[test]
fn no_divergence_depends_on_the_order_of_the_tokens() {
    let reversed = |x: &[f32]| -> Vec<f32> { x.iter().rev().copied().collect() };
    let rows = late_peaks();
    for (z, t) in rows.iter().zip(rows.iter().cycle().skip(1)) {
        for d in all() {
            let (value, grad) = kernel(&d, Fidelity::Official, z, t, z.len());
            let (value2, grad2) =
                kernel(&d, Fidelity::Official, &reversed(z), &reversed(t), z.len());
            let error = (value[0] - value2[0]).abs();
            assert!(
                error <= 1e-5 * value[0].abs(),
                "{d:?}: {value:?} {value2:?}"
            );
            let largest = grad.iter().fold(0.0f32, |a, g| a.max(g.abs()));
            for (a, b) in grad.iter().zip(reversed(&grad2)) {
                assert!((a - b).abs() <= 1e-5 * largest.max(1e-2), "{d:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn forward_kl_of_two_models_sure_of_one_token_keeps_its_digits() {
    let row = |size: f32| -> Vec<f32> {
        let mut row = vec![0.3; 6];
        row[2] = size;
        row
    };
    let (z, t) = (row(17.3), row(16.1));
    let rest = |x: &[f32]| -log_softmax(x)[2].exp_m1();
    for fidelity in [Fidelity::Official, Fidelity::Paper] {
        let (_, grad) = kernel(&Divergence::forward_kl(), fidelity, &z, &t, 6);
        let exact = rest(&t) - rest(&z);
        assert!(
            (f64::from(grad[2]) / exact - 1.0).abs() < 1e-5,
            "{grad:?} {exact}"
        );
    }
}

#[test]
fn every_gradient_keeps_the_digits_of_a_peak() {
    let mut z = [0.3f32; 6];
    z[2] = 17.3;
    let t = [0.1, 1.0, 1.5, -0.5, 0.7, 0.2];
    for d in all() {
        for fidelity in [Fidelity::Paper, Fidelity::Official] {
            let exact = exact(&d, fidelity, &z, &t, 6).expect("no tie")[0].grad[2];
            let (_, grad) = kernel(&d, fidelity, &z, &t, 6);
            let error = (f64::from(grad[2]) / exact - 1.0).abs();
            assert!(error < 2e-6, "{d:?} {fidelity:?}: {} {exact}", grad[2]);
        }
    }
}

/// The kernel on logits of a type, and on the same logits in f32.
fn halves_agree<L: row::Logit + std::fmt::Debug + PartialEq>(
    from: impl Fn(f32) -> L,
    to: impl Fn(L) -> f32,
) {
    let noise = |i: usize| ((i * 811) % 1009) as f32 / 100.0 - 5.0;
    let mut z: Vec<L> = (0..2 * 501).map(|i| from(noise(i))).collect();
    let t: Vec<L> = (0..2 * 501).map(|i| from(noise(i + 77))).collect();
    z[600] = from(f32::NEG_INFINITY);
    let wide = |x: &[L]| -> Vec<f32> { x.iter().map(|&x| to(x)).collect() };
    let rounded = |x: &[f32]| -> Vec<L> { x.iter().map(|&x| from(x)).collect() };
    for d in all() {
        let (value, grad) = kernel(&d, Fidelity::Official, &wide(&z), &wide(&t), 501);
        let (mut ours, mut our_value) = (z.clone(), vec![0.0; 2]);
        row::divergence(
            &d,
            Fidelity::Official,
            Logits {
                student: &mut ours,
                teacher: &t,
            },
            501,
            &mut our_value,
        )
        .unwrap();
        assert_eq!(our_value, value, "{d:?}");
        assert_eq!(ours, rounded(&grad), "{d:?}");
    }
    let (mut ours, mut theirs) = (z.clone(), wide(&z));
    let (mut our_value, mut value) = ([0.0; 2], [0.0; 2]);
    row::cross_entropy(&mut ours, &[3, 400], 501, &mut our_value).unwrap();
    row::cross_entropy(&mut theirs, &[3, 400], 501, &mut value).unwrap();
    assert_eq!(our_value, value);
    assert_eq!(ours, rounded(&theirs));
}

#[test]
fn logits_of_half_precision_give_what_they_give_in_f32() {
    halves_agree(half::f16::from_f32, half::f16::to_f32);
    halves_agree(half::bf16::from_f32, half::bf16::to_f32);
}
