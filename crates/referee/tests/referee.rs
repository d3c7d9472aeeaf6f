//! Implementations that are wrong in known ways, and what is said of them. Each is a loss in f64 from its formula; its gradient
//! is taken by differences.

use std::path::Path;

use abkd_referee::{CASES, emit, judge};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// A case as another program reads it.
#[derive(Clone)]
struct Case {
    name: String,
    shape: [usize; 3],
    student: Vec<f64>,
    teacher: Vec<f64>,
    labels: Vec<i64>,
}

impl Case {
    fn log_softmax(&self, logits: &[f64], token: usize) -> Vec<f64> {
        let row = &logits[token * self.shape[2]..][..self.shape[2]];
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        row.iter().map(|x| x - max - sum.ln()).collect()
    }

    /// Sum over the vocabulary of a term of (p, q, log p, log q); entries that a model leaves out add nothing.
    fn sum(&self, token: usize, term: &dyn Fn(f64, f64, f64, f64) -> f64) -> f64 {
        let lp = self.log_softmax(&self.teacher, token);
        let lq = self.log_softmax(&self.student, token);
        let both = lp.into_iter().zip(lq);
        let there = both.filter(|(lp, lq)| lp.is_finite() && lq.is_finite());
        there.map(|(lp, lq)| term(lp.exp(), lq.exp(), lp, lq)).sum()
    }

    fn counted(&self) -> Vec<usize> {
        (0..self.labels.len())
            .filter(|&i| self.labels[i] != -100)
            .collect()
    }

    fn forward_kl(&self, token: usize) -> f64 {
        self.sum(token, &|p, _, lp, lq| p * (lp - lq))
    }

    fn jensen(&self, token: usize, beta: f64) -> f64 {
        self.sum(token, &|p, q, lp, lq| {
            let lm = (beta * p + (1.0 - beta) * q).ln();
            beta * p * (lp - lm) + (1.0 - beta) * q * (lq - lm)
        })
    }

    fn mean(&self, tokens: &[usize], of: impl Fn(usize) -> f64) -> f64 {
        tokens.iter().map(|&token| of(token)).sum::<f64>() / tokens.len() as f64
    }
}

fn read(folder: &Path) -> Vec<Case> {
    let bytes = std::fs::read(folder.join(CASES)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = file.names().iter().map(|name| name.to_string()).collect();
    names.retain(|name| name.ends_with(".labels"));
    let logits = |name: &str| -> Vec<f64> {
        let view = file.tensor(name).unwrap();
        match view.dtype() {
            Dtype::F32 => {
                let parts = view.data().as_chunks::<4>().0.iter();
                parts.map(|x| f32::from_le_bytes(*x).into()).collect()
            }
            _ => {
                let parts = view.data().as_chunks::<2>().0.iter();
                parts
                    .map(|x| half::bf16::from_le_bytes(*x).into())
                    .collect()
            }
        }
    };
    let case = |labels: &String| {
        let name = labels.trim_end_matches(".labels").to_string();
        let view = file.tensor(labels).unwrap();
        let shape = file
            .tensor(&format!("{name}.student"))
            .unwrap()
            .shape()
            .to_vec();
        let labels = view.data().as_chunks::<8>().0.iter();
        Case {
            student: logits(&format!("{name}.student")),
            teacher: logits(&format!("{name}.teacher")),
            labels: labels.map(|x| i64::from_le_bytes(*x)).collect(),
            shape: shape.try_into().unwrap(),
            name,
        }
    };
    names.iter().map(case).collect()
}

/// Loss and gradient of a case by central differences.
fn answer(case: &Case, loss: &dyn Fn(&Case) -> f64) -> (f64, Vec<f64>) {
    let mut moved = case.clone();
    let slope = |i: usize| {
        let mut at = |by: f64| {
            moved.student[i] = case.student[i] + by;
            loss(&moved)
        };
        let (up, down) = (at(1e-5), at(-1e-5));
        moved.student[i] = case.student[i];
        if case.student[i].is_finite() {
            (up - down) / 2e-5
        } else {
            0.0
        }
    };
    let grad = (0..case.student.len()).map(slope).collect();
    (loss(case), grad)
}

fn write(path: &Path, answers: &[(String, Vec<usize>, Vec<f64>)]) {
    let bytes: Vec<Vec<u8>> = answers
        .iter()
        .map(|(_, _, x)| x.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views = answers.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (
            name,
            TensorView::new(Dtype::F64, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn answers(cases: &[Case], loss: &dyn Fn(&Case) -> f64) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let mut all = Vec::new();
    // By differences the largest one would take minutes.
    for case in cases.iter().filter(|case| case.shape[2] < 1000) {
        let (loss, grad) = answer(case, loss);
        all.push((format!("{}.loss", case.name), vec![], vec![loss]));
        all.push((format!("{}.grad", case.name), case.shape.to_vec(), grad));
    }
    all
}

/// The verdict on a loss, and whether it is right.
fn verdict(loss: &dyn Fn(&Case) -> f64) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    emit(folder.path()).unwrap();
    let theirs = tempfile::NamedTempFile::new().unwrap();
    write(theirs.path(), &answers(&read(folder.path()), loss));
    let verdict = judge(folder.path(), theirs.path()).unwrap();
    (verdict.to_string(), verdict.is_right())
}

fn says(loss: &dyn Fn(&Case) -> f64, right: bool, expected: &[&str]) {
    let (text, is_right) = verdict(loss);
    for expected in expected {
        assert!(text.contains(expected), "`{expected}` in\n{text}");
    }
    assert_eq!(is_right, right, "{text}");
}

#[test]
fn a_right_loss_is_right_in_every_case() {
    let loss = |case: &Case| case.mean(&case.counted(), |token| case.forward_kl(token));
    let expected = [
        "gradient: `fkld`",
        "scale: 1.000000",
        "tokens: the mean over the counted tokens of the batch",
        "right typical",
        "right equal",
        "right bf16",
        "a token of the second weighs 9.00 times one of the first",
    ];
    says(&loss, true, &expected);
}

#[test]
fn parameters_temperature_labels_and_shift_are_found() {
    let half = |case: &Case| case.mean(&case.counted(), |token| 2.0 * case.jensen(token, 0.37));
    says(&half, true, &["`jensen:lambda=0.63`", "scale: 2.000000"]);

    let warm = |case: &Case| {
        let mut warm = case.clone();
        for x in warm.student.iter_mut().chain(&mut warm.teacher) {
            *x /= 2.0;
        }
        4.0 * case.mean(&case.counted(), |token| warm.forward_kl(token))
    };
    says(
        &warm,
        true,
        &[
            "`fkld`",
            "temperature: 2, and it is multiplied by its square",
            "scale: 4.0000",
        ],
    );

    let label = |case: &Case, token: usize, at: usize| {
        -case.log_softmax(&case.student, token)[case.labels[at] as usize]
    };
    let mixed = |case: &Case| {
        case.mean(&case.counted(), |token| {
            0.5 * case.sum(token, &|_, q, lp, lq| q * (lq - lp)) + 0.25 * label(case, token, token)
        })
    };
    says(
        &mixed,
        true,
        &["`rkld`", "scale: 0.50000", "labels: 0.5000 times"],
    );

    let alone = |case: &Case| case.mean(&case.counted(), |token| label(case, token, token));
    says(
        &alone,
        true,
        &["the cross-entropy of the labels, without a teacher"],
    );

    let shifted = |case: &Case| {
        let t = case.shape[1];
        let tokens: Vec<usize> = (0..case.labels.len())
            .filter(|i| i % t + 1 < t && case.labels[i + 1] != -100)
            .collect();
        if tokens.is_empty() {
            return 0.0;
        }
        case.mean(&tokens, |token| case.forward_kl(token))
    };
    let (text, _) = verdict(&shifted);
    assert!(
        text.contains("labels are those of the next place"),
        "{text}"
    );
    assert!(
        text.contains("the mean over the counted tokens of the batch"),
        "{text}"
    );
}

#[test]
fn ways_to_average_are_told_apart() {
    let by_sequence = |case: &Case| {
        let t = case.shape[1];
        let mean = |b: usize| {
            let tokens: Vec<usize> = case.counted().into_iter().filter(|i| i / t == b).collect();
            case.mean(&tokens, |token| case.forward_kl(token))
        };
        (0..case.shape[0]).map(mean).sum::<f64>() / case.shape[0] as f64
    };
    says(
        &by_sequence,
        true,
        &["the mean over the sequences of each one's mean"],
    );

    let everywhere = |case: &Case| {
        let all: Vec<usize> = (0..case.labels.len()).collect();
        all.iter().map(|&token| case.forward_kl(token)).sum::<f64>() / case.shape[0] as f64
    };
    says(
        &everywhere,
        false,
        &["torch's `batchmean`", "trained on", "scale: 1.000000"],
    );

    let entries = |case: &Case| {
        case.mean(&case.counted(), |token| case.forward_kl(token)) / case.shape[2] as f64
    };
    says(
        &entries,
        true,
        &["divided by the vocabulary", "scale: 1.000000"],
    );

    let sum = |case: &Case| {
        case.counted()
            .iter()
            .map(|&token| case.forward_kl(token))
            .sum()
    };
    says(
        &sum,
        true,
        &[
            "the sum over the counted tokens",
            "the sum of micro-batches' gradients",
        ],
    );
}

#[test]
fn what_breaks_is_named() {
    // The softmax without its largest logit taken away.
    let naive = |case: &Case| {
        case.mean(&case.counted(), |token| {
            let row = |x: &[f64]| -> Vec<f64> {
                let e = x[token * case.shape[2]..][..case.shape[2]]
                    .iter()
                    .map(|x| x.exp());
                e.collect()
            };
            let (p, q) = (row(&case.teacher), row(&case.student));
            let (sp, sq): (f64, f64) = (p.iter().sum(), q.iter().sum());
            let term = |(p, q): (&f64, &f64)| p / sp * ((p / sp).ln() - (q / sq).ln());
            p.iter()
                .zip(&q)
                .filter(|(p, q)| **p > 0.0 && **q > 0.0)
                .map(term)
                .sum()
        })
    };
    says(
        &naive,
        false,
        &[
            "right peaked",
            "WRONG shifted: the loss is NaN (1,000 added to all logits)",
        ],
    );

    let clamped = |case: &Case| {
        case.mean(&case.counted(), |token| {
            case.sum(token, &|p, _, lp, lq| p * (lp - lq.max(-12.0)))
        })
    };
    says(&clamped, false, &["`fkld`", "WRONG apart: gradient off by"]);

    let offset = |case: &Case| 1.0 + case.mean(&case.counted(), |token| case.forward_kl(token));
    says(&offset, false, &["WRONG value:"]);

    let turned = |case: &Case| -case.mean(&case.counted(), |token| case.forward_kl(token));
    says(&turned, false, &["scale: -1.000000: the sign is reversed"]);

    says(
        &|_| 3.0,
        false,
        &["is 0: is it the one in the student's logits"],
    );
    let other = |case: &Case| {
        case.student
            .iter()
            .enumerate()
            .map(|(i, x)| (i as f64).sin() * x.tanh())
            .sum()
    };
    says(&other, false, &["not that of a known loss; the nearest is"]);
    says(&|case| case.student[0] * f64::NAN, false, &["not finite"]);
}

#[test]
fn files_that_are_not_answers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    emit(path).unwrap();
    emit(path).unwrap(); // again: the same files
    let cases = read(path);
    let loss = |case: &Case| case.mean(&case.counted(), |token| case.forward_kl(token));
    let typical: Vec<Case> = cases
        .iter()
        .filter(|case| case.name == "typical")
        .cloned()
        .collect();
    let good = answers(&typical, &loss);
    let theirs = tempfile::NamedTempFile::new().unwrap();
    let judged = |answers: &[(String, Vec<usize>, Vec<f64>)]| {
        write(theirs.path(), answers);
        match judge(path, theirs.path()) {
            Ok(verdict) => verdict.to_string(),
            Err(error) => error.to_string(),
        }
    };
    assert!(judged(&good).contains("`masks` has no answer"));
    assert!(judged(&good[..1]).contains("`typical.grad` is missing"));
    assert!(judged(&good[1..]).contains("`typical.loss` is missing"));
    assert!(judged(&[]).contains("without them nothing can be said"));
    let mut flat = good.clone();
    flat[1].1 = vec![6, 16];
    assert!(judged(&flat).contains("the shape [6, 16], and the student's logits [2, 3, 16]"));
    let mut two = good.clone();
    (two[0].1, two[0].2) = (vec![2], vec![1.0, 2.0]);
    assert!(judged(&two).contains("has 2 numbers"));
    let mut other = good.clone();
    other[0].0 = "tipical.loss".into();
    assert!(judged(&other).contains("`tipical.loss` is no answer"));

    std::fs::write(theirs.path(), b"no").unwrap();
    let error = judge(path, theirs.path()).err().unwrap().to_string();
    assert!(error.contains("not a safetensors file"), "{error}");
    write(theirs.path(), &good);
    let mut cases = std::fs::read(path.join(CASES)).unwrap();
    *cases.last_mut().unwrap() ^= 1;
    std::fs::write(path.join(CASES), cases).unwrap();
    let error = judge(path, theirs.path()).err().unwrap().to_string();
    assert!(error.contains("not the cases of this version"), "{error}");

    std::fs::write(path.join("mine.txt"), "x").unwrap();
    let error = emit(path).err().unwrap().to_string();
    assert!(error.contains("holds `mine.txt`"), "{error}");
}
