//! A dense call needs memory for its inputs and one gradient, the differentiable form for no more. The peak is read from the
//! system, in a process of its own.
#![cfg(target_os = "linux")]

use abkd_losses::{Divergence, Fidelity, Logits, Rows, divergence, value_and_grad};
use burn::tensor::{Device, Tensor, TensorData};

const ROWS: usize = 1024;
const VOCAB: usize = 50_257;
const DIVERGENCE: Divergence = Divergence::alpha_beta(0.2, 0.7);

/// Largest resident size of this process so far, in `[N, V]` of f32.
fn peak() -> f64 {
    let bytes = abkd_host::peak_memory().expect("Linux tells it");
    bytes as f64 / (4 * ROWS * VOCAB) as f64
}

fn logits(seed: usize) -> Tensor<2> {
    let noise = |i: usize| ((i ^ seed).wrapping_mul(0x9E37_79B9) % 1000) as f32 * 0.01 - 5.0;
    let data: Vec<f32> = (0..ROWS * VOCAB).map(noise).collect();
    Tensor::from_data(TensorData::new(data, [ROWS, VOCAB]), &Device::flex())
}

/// A peak only grows, so the calls are ordered by the memory that they may take.
#[test]
fn a_call_takes_its_inputs_and_one_gradient() {
    let start = peak();
    let check = |what: &str, most: f64| {
        let taken = peak() - start;
        println!("{what}: {taken:.3} of {most} x [N, V]");
        assert!(taken > most - 0.05, "{what}: {taken:.3}: not seen");
        assert!(taken < 1.05 * most, "{what}: {taken:.3} x [N, V]");
    };
    let call = |student, teacher| {
        value_and_grad(&DIVERGENCE, Fidelity::Paper, Logits { student, teacher }).unwrap()
    };

    // in place of the student's logits
    let Rows { grad, .. } = call(logits(1), logits(2));
    check("student given away", 2.0);
    drop(grad);

    let (student, teacher) = (logits(1), logits(2));
    let Rows { grad, .. } = call(student.clone(), teacher.clone());
    check("both kept", 3.0);
    drop((student, teacher, grad));

    let device = Device::flex().autodiff();
    let student = Tensor::<2>::from_inner(logits(1))
        .to_device(&device)
        .require_grad();
    let teacher = logits(2);
    let value = divergence(
        &DIVERGENCE,
        Fidelity::Paper,
        Logits {
            student: student.clone(),
            teacher: teacher.clone(),
        },
    )
    .unwrap();
    let mut grads = value.mean().backward();
    let grad = student.grad_remove(&mut grads).unwrap();
    check("differentiable, with the backward pass", 3.0);
    assert_eq!(grad.dims(), [ROWS, VOCAB]);
}
