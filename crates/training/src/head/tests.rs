//! The chunked head against a dense computation in f64, with finite differences for gradients.

use abkd_data::rng::Rng;
use burn::tensor::Device;

use super::*;

const ROWS: usize = 8;
const WIDTH: usize = 4;
const VOCAB: usize = 7;
const SCALE: f64 = 0.25;

/// Memory for chunks of three rows: the 8 rows make chunks of 3, 3 and 2.
fn three_rows(objective: &Objective) -> usize {
    3 * 4 * VOCAB * (1 + usize::from(objective.has_teacher()))
}

#[derive(Clone)]
struct Numbers {
    /// `[N, d]`
    hidden: Vec<f64>,
    /// `[V, d]`
    head: Vec<f64>,
}

#[derive(Clone)]
struct Case {
    student: Numbers,
    teacher: Numbers,
    labels: Vec<u32>,
}

/// Inputs of a row's loss.
struct Row {
    /// Log-probabilities of the teacher.
    lp: Vec<f64>,
    /// Log-probabilities of the student.
    lq: Vec<f64>,
    label: usize,
}

/// The loss summed over the rows.
type Dense<'a> = &'a dyn Fn(&[Row]) -> f64;

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(&[seed]);
        let mut draw = |n: usize| -> Vec<f64> {
            // exact in f32
            let unit = |bits: u64| (bits >> 40) as f64 / f64::from(1 << 24);
            (0..n).map(|_| 3.0 * unit(rng.bits()) - 1.5).collect()
        };
        let mut numbers = || Numbers {
            hidden: draw(ROWS * WIDTH),
            head: draw(VOCAB * WIDTH),
        };
        Self {
            student: numbers(),
            teacher: numbers(),
            labels: (0..ROWS).map(|i| (3 * i % VOCAB) as u32).collect(),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let (lp, lq) = (self.teacher.log_probs(), self.student.log_probs());
        let labels = self.labels.iter().map(|&l| l as usize);
        let all = lp.into_iter().zip(lq).zip(labels);
        all.map(|((lp, lq), label)| Row { lp, lq, label }).collect()
    }

    /// Finite differences of the scaled loss in the student's values that `of` selects.
    fn gradient(&self, dense: Dense, of: fn(&mut Numbers) -> &mut Vec<f64>) -> Vec<f64> {
        let at = |i: usize, by: f64| {
            let mut moved = self.clone();
            of(&mut moved.student)[i] += by;
            SCALE * dense(&moved.rows())
        };
        let n = of(&mut self.student.clone()).len();
        let step = 1e-5;
        (0..n)
            .map(|i| (at(i, step) - at(i, -step)) / (2.0 * step))
            .collect()
    }

    /// Compares [`head_loss`] in several chunks and in one, with and without the head's gradient, with `dense`.
    fn check(&self, objective: &Objective, dense: Dense) {
        let loss = SCALE * dense(&self.rows());
        let d_hidden = self.gradient(dense, |s| &mut s.hidden);
        let d_head = self.gradient(dense, |s| &mut s.head);
        let (student, teacher) = (self.student.tensors(), self.teacher.tensors());
        let teacher = objective.has_teacher().then_some(&teacher);
        let three = three_rows(objective);
        for (bytes, trains_head) in [(three, true), (three, false), (CHUNK_BYTES, true)] {
            let labels = &self.labels;
            let got = head_loss(
                objective,
                &student,
                teacher,
                labels,
                SCALE,
                trains_head,
                bytes,
            )
            .unwrap();
            near(&[got.loss], &[loss]);
            near(&values(got.d_hidden), &d_hidden);
            assert_eq!(got.d_head.is_some(), trains_head);
            if let Some(got) = got.d_head {
                near(&values(got), &d_head);
            }
        }
    }
}

impl Numbers {
    fn log_probs(&self) -> Vec<Vec<f64>> {
        let log_softmax = |x: &[f64]| {
            let dot = |w: &[f64]| x.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
            let logits: Vec<f64> = self.head.chunks(WIDTH).map(dot).collect();
            let sum: f64 = logits.iter().map(|z| z.exp()).sum();
            logits.iter().map(|z| z - sum.ln()).collect()
        };
        self.hidden.chunks(WIDTH).map(log_softmax).collect()
    }

    fn tensors(&self) -> Rows {
        let tensor = |x: &[f64]| {
            let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            let rows = x.len() / WIDTH;
            Tensor::from_data(TensorData::new(x, [rows, WIDTH]), &Device::flex())
        };
        Rows {
            hidden: tensor(&self.hidden),
            head: tensor(&self.head),
            precision: Precision::F32,
        }
    }
}

fn values(tensor: Tensor<2>) -> Vec<f64> {
    let data = tensor.into_data_as::<f32>();
    let values = data.as_slice::<f32>().unwrap();
    values.iter().map(|&x| f64::from(x)).collect()
}

fn near(got: &[f64], expected: &[f64]) {
    let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-5 * largest, "{got:?} {expected:?}");
    }
}

fn sum(rows: &[Row], f: impl Fn(&Row) -> f64) -> f64 {
    rows.iter().map(f).sum()
}

fn cross_entropy(row: &Row) -> f64 {
    -row.lq[row.label]
}

/// KL(a, b) from log-probabilities.
fn kl(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum()
}

fn forward_kl(row: &Row) -> f64 {
    kl(&row.lp, &row.lq)
}

/// The alpha-beta divergence where beta = 1 - alpha.
fn alpha_divergence(row: &Row, alpha: f64) -> f64 {
    let pairs = row.lp.iter().zip(&row.lq);
    let overlap: f64 = pairs
        .map(|(lp, lq)| (alpha * lp + (1.0 - alpha) * lq).exp())
        .sum();
    (1.0 - overlap) / (alpha * (1.0 - alpha))
}

fn distill(divergence: Divergence, fidelity: Fidelity, kd_ratio: f64) -> Objective {
    Objective::Distill {
        divergence,
        fidelity,
        kd_ratio,
    }
}

#[test]
fn chunks_have_the_loss_and_the_gradients_of_the_whole() {
    let case = Case::new(1);
    case.check(&Objective::CrossEntropy, &|r| sum(r, cross_entropy));
    for kd_ratio in [0.0, 0.3, 1.0] {
        let objective = distill(Divergence::forward_kl(), Fidelity::Paper, kd_ratio);
        case.check(&objective, &|rows| {
            (1.0 - kd_ratio) * sum(rows, cross_entropy) + kd_ratio * sum(rows, forward_kl)
        });
    }
}

#[test]
fn alpha_net_chooses_for_the_whole_batch_or_row_by_row() {
    let (a, b) = (0.2, 0.9);
    let gap = |row: &Row| alpha_divergence(row, b) - alpha_divergence(row, a);
    let mut case = Case::new(2);
    case.teacher.head = case.student.head.clone();
    // The second chunk outweighs the others.
    for hidden in [&mut case.student.hidden, &mut case.teacher.hidden] {
        hidden[3 * WIDTH..6 * WIDTH]
            .iter_mut()
            .for_each(|x| *x *= 2.0);
    }
    // Swapping p and q swaps the larger member: afterwards the second chunk prefers `a`, the others `b`.
    for (i, row) in case.rows().iter().enumerate() {
        if (3..6).contains(&i) == (gap(row) > 0.0) {
            let at = i * WIDTH..(i + 1) * WIDTH;
            case.student.hidden[at.clone()].swap_with_slice(&mut case.teacher.hidden[at]);
        }
    }
    let rows = case.rows();
    assert!(sum(&rows[..3], gap) > 0.0 && sum(&rows[6..], gap) > 0.0 && sum(&rows, gap) < 0.0);
    let alpha_net = Divergence::alpha_net(a, b);
    for kd_ratio in [0.3, 1.0] {
        let check = |fidelity, dense: Dense| {
            let objective = distill(alpha_net, fidelity, kd_ratio);
            case.check(&objective, &|rows| {
                (1.0 - kd_ratio) * sum(rows, cross_entropy) + kd_ratio * dense(rows)
            });
        };
        check(Fidelity::Official, &|rows| {
            let of = |alpha| sum(rows, |r| alpha_divergence(r, alpha));
            of(a).max(of(b))
        });
        check(Fidelity::Paper, &|rows| {
            sum(rows, |r| alpha_divergence(r, a).max(alpha_divergence(r, b)))
        });
    }
    // With kd_ratio 0 there is no teacher, so no member is chosen.
    let objective = distill(alpha_net, Fidelity::Official, 0.0);
    case.check(&objective, &|r| sum(r, cross_entropy));
}

#[test]
fn a_policys_rows_keep_their_numbers_over_the_chunks() {
    let case = Case::new(3);
    let ratios = [1.1, 1.5, 0.5, 0.7, 1.0, 1.3, 0.9, 0.6]; // within the clip: 1.1, 1.0, 0.9
    let weight = [1.0, 0.8, 1.2, 0.5, 2.0, 1.0, 0.7, 1.1f32];
    let advantage = [1.0, 2.0, -1.0, 0.5, -2.0, -0.7, 1.5, 0.3f32];
    let log_probs: Vec<f64> = case.rows().iter().map(|r| r.lq[r.label]).collect();
    let old_log_prob: Vec<f32> = (0..ROWS)
        .map(|i| (log_probs[i] + f64::from(weight[i]).ln() - f64::ln(ratios[i])) as f32)
        .collect();
    for single_step in [false, true] {
        let objective = Objective::Policy(PolicyRows {
            old_log_prob: old_log_prob.clone(),
            advantage: advantage.to_vec(),
            weight: weight.to_vec(),
            clip: 0.2,
            single_step,
        });
        case.check(&objective, &|rows| {
            let token = |(i, row): (usize, &Row)| {
                let since = row.lq[row.label] - f64::from(old_log_prob[i]);
                let ratio = f64::from(weight[i]) * since.exp();
                let gain = f64::from(advantage[i]);
                let kept = (gain * ratio).min(gain * ratio.clamp(0.8, 1.2));
                let reverse_kl = kl(&row.lq, &row.lp);
                if single_step {
                    reverse_kl - kept
                } else {
                    -kept
                }
            };
            rows.iter().enumerate().map(token).sum()
        });
    }
}

#[test]
fn a_good_token_is_made_more_likely() {
    let device = Device::flex();
    let rows = |logits: [f32; 2]| Rows {
        hidden: Tensor::from_data([logits], &device),
        head: Tensor::eye(2, &device),
        precision: Precision::F32,
    };
    // q = (0.8, 0.2), p = (0.5, 0.5); q of the token is unchanged since it was sampled
    let (student, teacher) = (rows([0.8f32.ln(), 0.2f32.ln()]), rows([0.0, 0.0]));
    let loss = |single_step| {
        let policy = PolicyRows {
            old_log_prob: vec![0.8f32.ln()],
            advantage: vec![2.0],
            weight: vec![1.0],
            clip: 0.2,
            single_step,
        };
        let objective = Objective::Policy(policy);
        let got = head_loss(&objective, &student, Some(&teacher), &[0], 1.0, false, 1).unwrap();
        (got.loss, values(got.d_hidden))
    };
    // -A, and -A (onehot - q)
    let (value, gradient) = loss(false);
    near(&[value], &[-2.0]);
    near(&gradient, &[-0.4, 0.4]);
    // KL(q, p) = 0.8 ln 1.6 + 0.2 ln 0.4; its gradient is q (ln(q/p) - KL) = 0.16 ln 4 for the first
    let (value, gradient) = loss(true);
    near(&[value], &[-2.0 + 0.192_745]);
    near(&gradient, &[-0.4 + 0.221_807, 0.4 - 0.221_807]);
}

#[test]
fn a_head_rounded_once_is_a_head_rounded_in_every_product() {
    let case = Case::new(4);
    let precision = Precision::Bf16;
    let rows = Rows {
        precision,
        ..case.student.tensors()
    };
    let Rows { hidden, head, .. } = rows.clone();
    let logits = precision.matmul(hidden.clone(), head.clone().transpose());
    let (loss, grad) = sum_and_grad(cross_entropy_value_and_grad(logits, &case.labels).unwrap());
    let labels = &case.labels;
    let objective = Objective::CrossEntropy;
    let got = head_loss(&objective, &rows, None, labels, 1.0, true, CHUNK_BYTES).unwrap();
    assert_eq!(got.loss, loss);
    let d_hidden = precision.matmul(grad.clone(), head);
    assert_eq!(got.d_hidden.into_data(), d_hidden.into_data());
    let d_head = precision.matmul(grad.transpose(), hidden);
    assert_eq!(got.d_head.unwrap().into_data(), d_head.into_data());
}

#[test]
fn an_error_names_the_row_of_all_rows() {
    let case = Case::new(5);
    let with_nan = |side: &Numbers| {
        let mut side = side.clone();
        side.hidden[4 * WIDTH] = f64::NAN;
        side.tensors()
    };
    let (student, teacher) = (case.student.tensors(), case.teacher.tensors());
    let alpha_net = Divergence::alpha_net(0.2, 0.9);
    for objective in [
        Objective::CrossEntropy,
        distill(Divergence::forward_kl(), Fidelity::Paper, 1.0),
        distill(alpha_net, Fidelity::Official, 1.0),
    ] {
        let error = |student: &Rows, teacher: &Rows| {
            let teacher = objective.has_teacher().then_some(teacher);
            let labels = &case.labels;
            let bytes = three_rows(&objective);
            match head_loss(&objective, student, teacher, labels, 1.0, true, bytes) {
                Err(error) => error.to_string(),
                Ok(_) => String::new(),
            }
        };
        let text = error(&with_nan(&case.student), &teacher);
        assert!(text.starts_with("student logits, row 4: "), "{text}");
        if objective.has_teacher() {
            let text = error(&student, &with_nan(&case.teacher));
            assert!(text.starts_with("teacher logits, row 4: "), "{text}");
        }
    }
    let bytes = three_rows(&Objective::CrossEntropy);
    let error = log_probs(&with_nan(&case.student), &case.labels, bytes).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("student logits, row 4: "), "{text}");
    let text = error.of_teacher().to_string();
    assert!(text.starts_with("teacher logits, row 4: "), "{text}");
}
