//! Parameters of every divergence: a temperature divides both models' logits; all tokens but the teacher's likeliest are one
//! class; an assistant takes the student's place.

mod common;

use abkd_losses::{Divergence, Fidelity, Logits, row};
use half::bf16;

const VOCAB: usize = 7;

fn logits(from: usize, rows: usize) -> Vec<f32> {
    let noise = |i: usize| ((811 * i * i + 77 * i) % 1009) as f32 / 100.0 - 5.0;
    (from..from + rows * VOCAB).map(noise).collect()
}

fn run(d: &Divergence, fidelity: Fidelity, z: &[f32], t: &[f32]) -> (Vec<f32>, Vec<f32>) {
    common::kernel(d, fidelity, z, t, VOCAB)
}

#[test]
fn a_temperature_divides_the_logits_and_its_square_multiplies() {
    // More rows than are computed at a time.
    let (z, t) = (logits(0, 300), logits(9999, 300));
    let divided = |x: &[f32], tau: f32| -> Vec<f32> { x.iter().map(|x| x / tau).collect() };
    for tau in [0.5, 4.0] {
        for d in Divergence::all() {
            for fidelity in [Fidelity::Paper, Fidelity::Official] {
                let (value, grad) = run(&d, fidelity, &divided(&z, tau), &divided(&t, tau));
                for squared in [false, true] {
                    let tempered = d.at_temperature(tau.into(), squared);
                    let (ours, slope) = run(&tempered, fidelity, &z, &t);
                    let by = if squared { tau * tau } else { 1.0 };
                    let expected: Vec<f32> = value.iter().map(|x| x * by).collect();
                    assert_eq!(ours, expected, "{tempered}");
                    let expected: Vec<f32> = grad.iter().map(|x| x * (by / tau)).collect();
                    assert_eq!(slope, expected, "{tempered}");
                }
            }
        }
    }
}

#[test]
fn logits_of_half_precision_are_divided_in_f32() {
    let d = Divergence::alpha_beta(0.2, 0.7).at_temperature(3.0, false);
    let halves = |x: Vec<f32>| -> Vec<bf16> { x.into_iter().map(bf16::from_f32).collect() };
    let wide = |x: &[bf16]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
    let (z, t) = (halves(logits(0, 5)), halves(logits(77, 5)));
    let (value, grad) = run(&d, Fidelity::Paper, &wide(&z), &wide(&t));
    let (mut ours, mut our_value) = (z, vec![0.0; 5]);
    let logits = Logits {
        student: &mut ours[..],
        teacher: &t[..],
    };
    row::divergence(&d, Fidelity::Paper, logits, VOCAB, &mut our_value).unwrap();
    assert_eq!(our_value, value);
    assert_eq!(ours, halves(grad));
}

#[test]
fn a_bad_row_has_its_number_in_all_rows() {
    let (z, mut t) = (logits(0, 300), logits(9999, 300));
    t[277 * VOCAB + 3] = f32::NAN;
    let logits_of_student = z;
    let (mut grad, mut value) = (logits_of_student.clone(), vec![0.0; 300]);
    let warm = Divergence::reverse_kl().at_temperature(2.0, true);
    for d in [warm, warm.of_top(3), warm.with_assistant(1.0, 0.5)] {
        let logits = Logits {
            student: &mut grad[..],
            teacher: &t[..],
        };
        let error = row::divergence(&d, Fidelity::Paper, logits, VOCAB, &mut value);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("teacher logits, row 277"), "{d}: {error}");
        grad = logits_of_student.clone();
    }
}

/// Softmax in f64.
fn softmax(x: &[f32]) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
    x.iter().map(|x| f64::from(*x).exp() / sum).collect()
}

#[test]
fn the_tail_is_one_class_whose_gradient_is_shared_by_probability() {
    let (z, t) = (logits(0, 40), logits(555, 40));
    for top in 1..VOCAB - 1 {
        let (value, grad) = run(
            &Divergence::forward_kl().of_top(top),
            Fidelity::Paper,
            &z,
            &t,
        );
        for (row, value) in value.iter().enumerate() {
            let range = row * VOCAB..(row + 1) * VOCAB;
            let (p, q) = (softmax(&t[range.clone()]), softmax(&z[range.clone()]));
            let mut order: Vec<usize> = (0..VOCAB).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            let sum = |x: &[f64]| order[top..].iter().map(|&i| x[i]).sum::<f64>();
            let (tail_p, tail_q) = (sum(&p), sum(&q));
            let own = order[..top].iter().map(|&i| p[i] * (p[i] / q[i]).ln());
            let exact = own.sum::<f64>() + tail_p * (tail_p / tail_q).ln();
            assert!((f64::from(*value) - exact).abs() < 1e-5 * exact.max(0.1));
            for (place, &i) in order.iter().enumerate() {
                let exact = if place < top {
                    q[i] - p[i]
                } else {
                    (tail_q - tail_p) * q[i] / tail_q
                };
                assert!((f64::from(grad[range.start + i]) - exact).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn as_many_classes_as_tokens_are_the_tokens() {
    let (z, t) = (logits(0, 40), logits(555, 40));
    for d in Divergence::all() {
        let all = run(&d, Fidelity::Paper, &z, &t);
        for top in [0, VOCAB, VOCAB + 1] {
            assert_eq!(run(&d.of_top(top), Fidelity::Paper, &z, &t), all, "{d}");
        }
        // A class of one token is that token, but for the rounding of its logit.
        let (value, grad) = run(&d.of_top(VOCAB - 1), Fidelity::Paper, &z, &t);
        for (ours, exact) in value.iter().chain(&grad).zip(all.0.iter().chain(&all.1)) {
            assert!((ours - exact).abs() < 1e-5 * exact.abs().max(1.0), "{d}");
        }
    }
}

#[test]
fn a_teacher_of_which_only_the_top_is_stored_has_no_tail() {
    let z = logits(0, 1);
    let mut t = vec![f32::NEG_INFINITY; VOCAB];
    (t[2], t[5]) = (0.3, 1.0);
    let d = Divergence::forward_kl();
    let (value, grad) = run(&d.of_top(2), Fidelity::Paper, &z, &t);
    let (whole, slope) = run(&d, Fidelity::Paper, &z, &t);
    assert!((value[0] - whole[0]).abs() < 1e-6);
    for (ours, exact) in grad.iter().zip(&slope) {
        assert!((ours - exact).abs() < 1e-6, "{grad:?} {slope:?}");
    }
}

#[test]
fn no_rows_and_no_tokens_are_nothing() {
    let d = Divergence::forward_kl().at_temperature(2.0, true).of_top(3);
    for vocab in [0, VOCAB] {
        let logits = Logits {
            student: &mut [0.0f32; 0][..],
            teacher: &[0.0f32; 0][..],
        };
        row::divergence(&d, Fidelity::Paper, logits, vocab, &mut []).unwrap();
    }
}

#[test]
fn an_arithmetic_assistant_makes_forward_kl_the_skewed_one() {
    let (z, mut t) = (logits(0, 40), logits(555, 40));
    // sure of a token, each model of another one, in some rows
    for row in 0..5 {
        t[row * VOCAB + row] = 40.0;
    }
    for lambda in [0.1, 0.9] {
        let skewed = run(
            &Divergence::skew_forward_kl(lambda),
            Fidelity::Paper,
            &z,
            &t,
        );
        let assistant = Divergence::forward_kl().with_assistant(-1.0, lambda);
        let (value, grad) = run(&assistant, Fidelity::Paper, &z, &t);
        for (ours, exact) in value
            .iter()
            .chain(&grad)
            .zip(skewed.0.iter().chain(&skewed.1))
        {
            assert!(
                (ours - exact).abs() < 2e-6 * exact.abs().max(1.0),
                "{ours} {exact}"
            );
        }
    }
}

#[test]
fn the_paths_of_an_assistant_meet_at_the_geometric_mixture() {
    let (z, t) = (logits(0, 40), logits(555, 40));
    let at = |alpha: f64| {
        let d = Divergence::reverse_kl().with_assistant(alpha, 0.3);
        let (value, grad) = run(&d, Fidelity::Paper, &z, &t);
        [value, grad].concat()
    };
    let geometric = at(1.0);
    for near in [at(1.0 - 1e-6), at(1.0 + 1e-6)] {
        for (near, exact) in near.iter().zip(&geometric) {
            assert!((near - exact).abs() < 1e-5 * exact.abs().max(1.0));
        }
    }
}

#[test]
fn an_assistant_of_a_token_that_one_model_leaves_out_is_finite() {
    let (mut z, mut t) = (logits(0, 2), logits(555, 2));
    z[1] = f32::NEG_INFINITY;
    t[4] = f32::NEG_INFINITY;
    (z[9], t[9]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for alpha in [-3.0, -1.0, 1.0, 3.0] {
        let d = Divergence::forward_kl().with_assistant(alpha, 0.3);
        let (value, grad) = run(&d, Fidelity::Paper, &z, &t);
        assert!(
            value.iter().chain(&grad).all(|x| x.is_finite()),
            "{alpha}: {value:?} {grad:?}"
        );
    }
}
