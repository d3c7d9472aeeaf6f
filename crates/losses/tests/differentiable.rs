//! The differentiable forms inside Burn's graphs, on every device of the build.

mod common;

use abkd_losses::{
    Divergence, Fidelity, Logits, Rows, cross_entropy, cross_entropy_value_and_grad, divergence,
    value, value_and_grad,
};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

const INF: f32 = f32::NEG_INFINITY;
const STUDENT: [[f32; 4]; 3] = [
    [0.5, INF, 1.0, 0.2],
    [0.3, -2.0, 4.0, 0.0],
    [-1.0, 0.7, 0.1, INF],
];
const TEACHER: [[f32; 4]; 3] = [
    [0.1, 0.3, -0.5, 1.0],
    [0.0, 0.4, INF, -3.0],
    [2.0, 0.2, 0.2, INF],
];
const UPSTREAM: [f32; 3] = [1.0, -3.0, 0.25];

fn devices() -> Vec<Device> {
    let mut all = vec![Device::flex()];
    all.extend(abkd_host::libtorch());
    #[cfg(feature = "wgpu")]
    all.push(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice));
    all
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    let data = x.into_data_as::<f32>();
    data.as_slice::<f32>().unwrap().to_vec()
}

#[track_caller]
fn assert_close<const D: usize>(ours: Tensor<D>, theirs: Tensor<D>, what: &str) {
    let (ours, theirs) = (floats(ours), floats(theirs));
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    assert!(largest > 1e-3, "{what}: nothing to compare");
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-5 * largest, "{what}: {a} {b}");
    }
}

/// Each row's weight, `[N, 1]`.
fn columns(device: &Device) -> Tensor<2> {
    Tensor::<1>::from_floats(UPSTREAM, device).unsqueeze_dim(1)
}

/// Gradients of `sum_n UPSTREAM[n] values[n]` are those of the rows, each times its weight, to the bit.
fn check(student: &Tensor<2>, values: Tensor<1>, rows: Rows, what: &str) {
    let device = rows.value.device();
    let weights = Tensor::<1>::from_floats(UPSTREAM, &values.device());
    assert_eq!(floats(values.clone().inner()), floats(rows.value), "{what}");
    let grads = (values * weights).sum().backward();
    let grad = floats(student.grad(&grads).expect("the student is in the graph"));
    assert_eq!(grad, floats(rows.grad * columns(&device)), "{what}");
    for (g, z) in grad.iter().zip(STUDENT.as_flattened()) {
        assert!(g.is_finite() && (*z != INF || *g == 0.0), "{what}: {g}");
    }
}

#[test]
fn gradients_are_the_kernels_times_what_comes_from_above() {
    for device in devices() {
        let teacher = Tensor::<2>::from_floats(TEACHER, &device);
        let plain = Tensor::<2>::from_floats(STUDENT, &device);
        for graph in [
            device.clone().autodiff(),
            device.clone().autodiff().gradient_checkpointing(),
        ] {
            for d in common::all() {
                for fidelity in [Fidelity::Paper, Fidelity::Official] {
                    let what = format!("{device:?} {d:?} {fidelity:?}");
                    let student = Tensor::<2>::from_floats(STUDENT, &graph).require_grad();
                    let values = divergence(
                        &d,
                        fidelity,
                        Logits {
                            student: student.clone(),
                            teacher: teacher.clone(),
                        },
                    )
                    .unwrap();
                    let rows = value_and_grad(
                        &d,
                        fidelity,
                        Logits {
                            student: plain.clone(),
                            teacher: teacher.clone(),
                        },
                    );
                    check(&student, values, rows.unwrap(), &what);
                }
            }
            let labels = [0, 2, 1];
            let student = Tensor::<2>::from_floats(STUDENT, &graph).require_grad();
            let values = cross_entropy(student.clone(), &labels).unwrap();
            let rows = cross_entropy_value_and_grad(plain.clone(), &labels);
            check(&student, values, rows.unwrap(), "cross-entropy");
        }
    }
}

/// A teacher computed from the student's own leaf: a gradient through the teacher would show in the leaf.
#[test]
fn a_teacher_in_a_graph_is_a_constant() {
    for device in devices() {
        let graph = device.clone().autodiff();
        let student = Tensor::<2>::from_floats(STUDENT, &graph).require_grad();
        let d = Divergence::reverse_kl();
        let values = divergence(
            &d,
            Fidelity::Paper,
            Logits {
                student: student.clone(),
                teacher: student.clone() * 0.5,
            },
        );
        let plain = Tensor::<2>::from_floats(STUDENT, &device);
        let rows = value_and_grad(
            &d,
            Fidelity::Paper,
            Logits {
                student: plain.clone(),
                teacher: plain * 0.5,
            },
        );
        let what = format!("{device:?}");
        check(&student, values.unwrap(), rows.unwrap(), &what);
    }
}

/// A head and its input get gradients from two losses of the same logits. The published formulas as Burn's own operations
/// give the same gradients.
#[test]
fn behind_a_product_parameters_get_the_gradients_of_plain_operations() {
    for device in devices() {
        for graph in [
            device.clone().autodiff(),
            device.clone().autodiff().gradient_checkpointing(),
        ] {
            let wave = |shape: [usize; 2], step: f32| {
                let at = |i: usize| 1.5 * (step * i as f32).sin();
                let values: Vec<f32> = (0..shape[0] * shape[1]).map(at).collect();
                Tensor::<2>::from_data(TensorData::new(values, shape), &device)
            };
            let (hidden, head) = (wave([5, 8], 1.7), wave([8, 33], 2.3));
            let teacher = wave([5, 33], 0.9);
            let labels = [3, 0, 32, 7, 7];
            let run = |loss: &dyn Fn(Tensor<2>) -> Tensor<1>| {
                let [hidden, head] = [&hidden, &head]
                    .map(|x| Tensor::from_data(x.clone().into_data(), &graph).require_grad());
                let logits = hidden.clone().matmul(head.clone()) * 0.7;
                let loss = loss(logits);
                let grads = loss.clone().backward();
                let grad = |x: Tensor<2>| x.grad(&grads).unwrap();
                (loss.inner(), grad(hidden), grad(head))
            };
            let weights = Tensor::<1>::from_floats([0.5, 1.0, 0.0, 2.0, 1.5], &graph);
            for d in [Divergence::forward_kl(), Divergence::reverse_kl()] {
                let (loss, hidden, head) = run(&|logits| {
                    let kd = divergence(
                        &d,
                        Fidelity::Paper,
                        Logits {
                            student: logits.clone(),
                            teacher: teacher.clone(),
                        },
                    );
                    let ce = cross_entropy(logits, &labels).unwrap();
                    ((kd.unwrap() + ce.square()) * weights.clone()).mean()
                });
                let theirs = run(&|logits| {
                    let teacher = || teacher.clone();
                    let (lp, lq) = (log_softmax(teacher(), 1), log_softmax(logits, 1));
                    let (p, q) = (softmax(teacher(), 1), lq.clone().exp());
                    let kd = if d == Divergence::forward_kl() {
                        p * (lp - lq.clone())
                    } else {
                        q * (lq.clone() - lp)
                    };
                    let ids = labels.map(|l| l as i32);
                    let ids = Tensor::<1, Int>::from_ints(ids, &graph).unsqueeze_dim(1);
                    let ce: Tensor<1> = lq.gather(1, ids).neg().squeeze_dim(1);
                    let kd: Tensor<1> = kd.sum_dim(1).squeeze_dim(1);
                    ((kd + ce.square()) * weights.clone()).mean()
                });
                let what = format!("{device:?} {d:?}");
                assert_close(loss, theirs.0, &what);
                assert_close(hidden, theirs.1, &what);
                assert_close(head, theirs.2, &what);
            }
        }
    }
}

#[test]
fn a_gradient_has_the_type_of_the_logits() {
    let device = Device::flex().autodiff();
    let student = Tensor::<2>::from_floats(STUDENT, &device)
        .cast(DType::BF16)
        .detach()
        .require_grad();
    let teacher = Tensor::<2>::from_floats(TEACHER, &Device::flex());
    let d = Divergence::total_variation();
    for teacher in [teacher.clone(), teacher.cast(DType::BF16)] {
        let student = student.clone();
        let values = divergence(
            &d,
            Fidelity::Paper,
            Logits {
                student: student.clone(),
                teacher: teacher.clone(),
            },
        )
        .unwrap();
        let grads = (values * 2.0).sum().backward();
        let grad = student.grad(&grads).unwrap();
        assert_eq!(grad.dtype(), DType::BF16);
        let rows = value_and_grad(
            &d,
            Fidelity::Paper,
            Logits {
                student: student.inner(),
                teacher,
            },
        )
        .unwrap();
        let expected = (rows.grad * 2.0).cast(DType::BF16);
        assert_eq!(floats(grad), floats(expected));
    }
}

#[test]
fn without_a_graph_or_rows_there_is_a_value_alone() {
    for device in devices() {
        let d = Divergence::forward_kl();
        let call = |student, teacher| {
            divergence(&d, Fidelity::Paper, Logits { student, teacher }).unwrap()
        };
        let teacher = Tensor::<2>::from_floats(TEACHER, &device);
        let plain = Tensor::<2>::from_floats(STUDENT, &device);
        let expected = value(
            &d,
            Fidelity::Paper,
            Logits {
                student: plain.clone(),
                teacher: teacher.clone(),
            },
        )
        .unwrap();
        let expected = floats(expected);
        let graph = device.clone().autodiff();
        for student in [plain, Tensor::<2>::from_floats(STUDENT, &graph)] {
            let values = call(student, teacher.clone());
            assert!(!values.is_require_grad());
            assert_eq!(floats(values), expected);
        }
        let student = Tensor::<2>::zeros([0, 4], &graph).require_grad();
        let values = call(student.clone(), Tensor::zeros([0, 4], &device));
        let grads = values.sum().backward();
        assert_eq!(student.grad(&grads).unwrap().dims(), [0, 4]);
    }
}

#[test]
fn rows_that_are_no_distribution_are_errors_here_too() {
    let device = Device::flex().autodiff();
    let student = Tensor::<2>::from_floats([[0.0, f32::NAN]], &device).require_grad();
    let teacher = Tensor::<2>::from_floats([[0.0, 1.0]], &device);
    let d = Divergence::forward_kl();
    let error = divergence(
        &d,
        Fidelity::Paper,
        Logits {
            student: student.clone(),
            teacher,
        },
    )
    .err();
    assert!(error.unwrap().to_string().contains("NaN"));
    let error = cross_entropy(student, &[0]).err();
    assert!(error.unwrap().to_string().contains("NaN"));
}
