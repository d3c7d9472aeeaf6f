//! Where the student's probability mass lies beside the teacher's.

use abkd_data::Batch;
use abkd_models::LanguageModel;
use burn::module::Module;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Rows, chunk_bytes, chunks};
use crate::step::rows_of;

/// The head is the fewest of the teacher's likeliest tokens that hold this share of its mass.
const HEAD: f64 = 0.5;
/// The tail is all but the fewest of the teacher's likeliest tokens that hold this share of its mass.
const BODY: f64 = 0.95;
/// Likeliest tokens whose overlap is counted.
const TOP: usize = 10;

/// A distribution in three numbers, beside the teacher's. Which tokens are head and tail is the teacher's to say, token by token:
/// the head is the fewest of its likeliest tokens that hold half of its mass, the tail all but those that hold 95%.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Mass on the head, 0 to 1.
    pub head: f64,
    /// Mass on the tail, 0 to 1.
    pub tail: f64,
    /// Entropy, nats.
    pub entropy: f64,
}

/// Student and teacher at the positions of the response tokens: means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Masses {
    /// The student's distributions.
    pub student: Shape,
    /// The teacher's.
    pub teacher: Shape,
    /// Share of the teacher's ten likeliest tokens that are among the student's ten.
    pub overlap: f64,
}

impl Masses {
    /// Means over the response tokens of `batches`; zeros where there are none. The vocabularies have one size.
    pub(crate) fn of(student: &LanguageModel, teacher: &LanguageModel, batches: &[Batch]) -> Self {
        let (student, teacher) = (student.valid(), teacher.valid());
        let (mut sum, mut tokens) = ([0.0; NUMBERS], 0);
        for batch in batches {
            let rows = [rows_of(&student, batch), rows_of(&teacher, batch)];
            add(&mut sum, &rows);
            tokens += batch.targets.len();
        }
        Self::from_numbers(sum.map(|x| x / tokens.max(1) as f64))
    }

    fn from_numbers([a, b, c, d, e, f, overlap]: [f64; NUMBERS]) -> Self {
        let shape = |head, tail, entropy| Shape {
            head,
            tail,
            entropy,
        };
        Self {
            student: shape(a, b, c),
            teacher: shape(d, e, f),
            overlap,
        }
    }
}

const NUMBERS: usize = 7;

/// Adds the numbers of all rows, a chunk of logits at a time.
fn add(sum: &mut [f64; NUMBERS], [student, teacher]: &[Rows; 2]) {
    let (student, teacher) = (student.rounded(), teacher.rounded());
    let vocab = student.head.dims()[0];
    let bytes = chunk_bytes(&student.hidden.device()) / 2;
    for range in chunks(student.hidden.dims()[0], vocab, bytes) {
        let [q, p] = [&student, &teacher].map(|rows| values(rows.logits(range.clone())));
        let of_rows: Vec<[f64; NUMBERS]> = q
            .par_chunks(vocab)
            .zip(p.par_chunks(vocab))
            .map(|(q, p)| numbers(q, p))
            .collect();
        for row in of_rows {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

fn values(logits: Tensor<2>) -> Vec<f32> {
    let data = logits.cast(DType::F32).into_data();
    data.try_to_vec().expect("just cast to f32")
}

/// The numbers of a row, in the order of [`Masses::from_numbers`].
fn numbers(student: &[f32], teacher: &[f32]) -> [f64; NUMBERS] {
    let (q, p) = (softmax(student), softmax(teacher));
    let likeliest = |of: &[f64]| {
        let mut order: Vec<usize> = (0..of.len()).collect();
        // Equal probabilities in the order of the tokens.
        order.sort_by(|&a, &b| of[b].total_cmp(&of[a]));
        order
    };
    let order = likeliest(&p);
    // How many of the likeliest tokens hold a share of the teacher's mass.
    let holding = |share: f64| {
        let mut held = 0.0;
        let before = order.iter().take_while(|&&token| {
            let more = held < share;
            held += p[token];
            more
        });
        before.count()
    };
    let (head, body) = (&order[..holding(HEAD)], &order[..holding(BODY)]);
    let mass = |of: &[f64], tokens: &[usize]| tokens.iter().map(|&t| of[t]).sum::<f64>();
    let entropy = |of: &[f64]| -> f64 {
        let terms = of.iter().filter(|&&x| x > 0.0);
        -terms.map(|x| x * x.ln()).sum::<f64>()
    };
    let top = TOP.min(order.len());
    let theirs = &likeliest(&q)[..top];
    let shared = order[..top].iter().filter(|t| theirs.contains(t)).count();
    [
        mass(&q, head),
        1.0 - mass(&q, body),
        entropy(&q),
        mass(&p, head),
        1.0 - mass(&p, body),
        entropy(&p),
        shared as f64 / top as f64,
    ]
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f64> = logits
        .iter()
        .map(|x| f64::from(x - highest).exp())
        .collect();
    let total: f64 = parts.iter().sum();
    parts.into_iter().map(|x| x / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(of: &[f64]) -> Vec<f32> {
        of.iter().map(|x| x.ln() as f32).collect()
    }

    #[test]
    fn head_and_tail_are_the_teachers() {
        let p = [0.02, 0.4, 0.3, 0.2, 0.05, 0.03];
        let q = [0.3, 0.1, 0.1, 0.1, 0.2, 0.2];
        let [
            head,
            tail,
            entropy,
            own_head,
            own_tail,
            own_entropy,
            overlap,
        ] = numbers(&logits(&q), &logits(&p));
        // Half of the teacher's mass is held by 0.4 and 0.3, 95% by these, 0.2 and 0.05.
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        near(head, 0.2);
        near(own_head, 0.7);
        near(tail, 0.3 + 0.2);
        near(own_tail, 0.02 + 0.03);
        let exact = |of: &[f64]| -of.iter().map(|x| x * x.ln()).sum::<f64>();
        near(entropy, exact(&q));
        near(own_entropy, exact(&p));
        near(overlap, 1.0);
    }

    #[test]
    fn overlap_counts_the_ten_likeliest_of_each() {
        let p: Vec<f32> = (0..40).map(|i| -(i as f32)).collect();
        let mut q = p.clone();
        // Three of the teacher's ten become the student's last.
        q[2] = -100.0;
        q[5] = -100.0;
        q[9] = -100.0;
        assert_eq!(numbers(&q, &p)[6], 0.7);
        // A token that the student has lost is no entropy.
        q[0] = f32::NEG_INFINITY;
        let numbers = numbers(&q, &p);
        assert!(numbers.iter().all(|x| x.is_finite()), "{numbers:?}");
    }
}
