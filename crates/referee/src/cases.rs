//! The cases. They are the same numbers on every machine.

use abkd_host::rng::Rng;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};

/// Marks a token that is not counted.
pub(crate) const IGNORED: i64 = -100;

/// Logits of both models and labels.
pub(crate) struct Case {
    pub name: &'static str,
    /// What it tries, for a table.
    pub about: &'static str,
    /// Sequences, tokens each, vocabulary.
    pub shape: [usize; 3],
    /// Whether the logits are stored in bfloat16.
    pub bf16: bool,
    pub student: Vec<f32>,
    pub teacher: Vec<f32>,
    pub labels: Vec<i64>,
}

/// The case that tells which divergence it is; the others are judged by it.
pub(crate) const TYPICAL: &str = "typical";
/// The case that tells how tokens are averaged.
pub(crate) const MASKS: &str = "masks";
/// The case that masks entries of the teacher alone.
pub(crate) const MASKED_TEACHER: &str = "masked_teacher";
/// One batch, whole and as two micro-batches.
pub(crate) const WHOLE: &str = "accumulate_whole";
pub(crate) const PARTS: [&str; 2] = ["accumulate_first", "accumulate_second"];
/// Sequences of [`WHOLE`] that the first of [`PARTS`] holds.
pub(crate) const FIRST: usize = 2;

impl Case {
    fn new(
        name: &'static str,
        about: &'static str,
        shape: [usize; 3],
        mut logits: impl FnMut(&mut Rng) -> (f64, f64),
    ) -> Self {
        let [b, t, v] = shape;
        let key = name.bytes().map(u64::from).collect::<Vec<_>>();
        let mut rng = Rng::new(&key);
        let both = (0..b * t * v).map(|_| logits(&mut rng));
        let (student, teacher) = both.map(|(z, t)| (z as f32, t as f32)).unzip();
        let labels = (0..b * t).map(|_| rng.below(v) as i64).collect();
        Self {
            name,
            about,
            shape,
            bf16: false,
            student,
            teacher,
            labels,
        }
    }

    /// Keeps the first tokens of each sequence.
    fn keep(mut self, kept: &[usize]) -> Self {
        for (labels, &kept) in self.labels.chunks_mut(self.shape[1]).zip(kept) {
            labels[kept..].fill(IGNORED);
        }
        self
    }

    fn in_bf16(mut self) -> Self {
        for logits in [&mut self.student, &mut self.teacher] {
            for x in logits {
                *x = bf16::from_f32(*x).to_f32();
            }
        }
        self.bf16 = true;
        self
    }

    /// Masks every third entry of the teacher, and of the student too where `both`; never the labels.
    fn masked(mut self, both: bool) -> Self {
        let v = self.shape[2];
        for i in (0..self.student.len()).filter(|i| i % 3 == 1) {
            if self.labels[i / v] != (i % v) as i64 {
                self.teacher[i] = f32::NEG_INFINITY;
                if both {
                    self.student[i] = f32::NEG_INFINITY;
                }
            }
        }
        self
    }

    /// Some of the sequences, as a case of its own.
    fn part(
        &self,
        name: &'static str,
        about: &'static str,
        sequences: std::ops::Range<usize>,
    ) -> Self {
        let [_, t, v] = self.shape;
        let tokens = sequences.start * t..sequences.end * t;
        let entries = tokens.start * v..tokens.end * v;
        Self {
            name,
            about,
            shape: [sequences.len(), t, v],
            bf16: self.bf16,
            student: self.student[entries.clone()].to_vec(),
            teacher: self.teacher[entries].to_vec(),
            labels: self.labels[tokens].to_vec(),
        }
    }

    /// Token by token: the label that counts there, if any, where labels lie `shift` places ahead of their logits.
    pub fn counted(&self, shift: usize) -> Vec<Option<u32>> {
        let t = self.shape[1];
        let label = |token: usize| {
            let at = token % t + shift;
            let label = *self.labels.get(token + shift)?;
            (at < t && label != IGNORED).then_some(label as u32)
        };
        (0..self.labels.len()).map(label).collect()
    }
}

/// All cases, in the order of their description.
pub(crate) fn all() -> Vec<Case> {
    let wide = |scale: f64| move |rng: &mut Rng| (scale * rng.normal(), scale * rng.normal());
    let whole = Case::new(WHOLE, "a batch", [3, 5, 16], wide(2.0)).keep(&[5, 4, 1]);
    let parts = [
        whole.part(PARTS[0], "its first micro-batch: 9 tokens", 0..FIRST),
        whole.part(PARTS[1], "its second micro-batch: 1 token", FIRST..3),
    ];
    let mut all = vec![
        Case::new(
            TYPICAL,
            "which divergence it is, and its scale; every token counts",
            [2, 3, 16],
            wide(1.5),
        ),
        Case::new(
            MASKS,
            "how tokens are averaged: 5, 2 and 1 of 6 count",
            [3, 6, 20],
            wide(1.5),
        )
        .keep(&[5, 2, 1]),
        Case::new(
            "peaked",
            "logits of standard deviation 10",
            [2, 3, 32],
            wide(10.0),
        ),
        Case::new(
            "apart",
            "each model is sure of another token",
            [1, 3, 16],
            {
                let mut at = 0;
                move |_| {
                    at += 1;
                    match at % 16 {
                        3 => (60.0, 0.0),
                        7 => (0.0, 60.0),
                        _ => (0.0, 0.0),
                    }
                }
            },
        ),
        Case::new(
            "equal",
            "teacher and student agree: the gradient is 0",
            [1, 3, 16],
            |rng| {
                let x = 2.0 * rng.normal();
                (x, x)
            },
        ),
        Case::new(
            "nearly_equal",
            "they differ by about 0.001",
            [1, 3, 16],
            |rng| {
                let x = 2.0 * rng.normal();
                (x, x + 1e-3 * rng.normal())
            },
        ),
        Case::new("shifted", "1,000 added to all logits", [1, 3, 16], |rng| {
            (1e3 + rng.normal(), 1e3 + rng.normal())
        }),
        Case::new(
            "masked_vocabulary",
            "-inf for every third token in both models",
            [1, 3, 15],
            wide(1.5),
        )
        .masked(true),
        Case::new(
            MASKED_TEACHER,
            "-inf for every third token in the teacher alone",
            [1, 3, 15],
            wide(1.5),
        )
        .masked(false),
        Case::new("bf16", "logits in bfloat16", [2, 3, 64], wide(3.0)).in_bf16(),
        Case::new(
            "large_vocabulary",
            "a vocabulary of 32,000 in bfloat16",
            [1, 2, 32_000],
            wide(3.0),
        )
        .in_bf16(),
    ];
    all.push(whole);
    all.extend(parts);
    all
}

/// A tensor that owns its bytes.
pub(crate) struct Owned {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A safetensors file.
pub(crate) fn serialize(tensors: &[Owned]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (&tensor.name, view.expect("bytes of this shape"))
    });
    safetensors::serialize(views, None).expect("names are unique")
}

pub(crate) fn f32_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The file of all cases.
pub(crate) fn encode(cases: &[Case]) -> Vec<u8> {
    let mut tensors = Vec::new();
    for case in cases {
        for (model, logits) in [("student", &case.student), ("teacher", &case.teacher)] {
            let (dtype, bytes) = if case.bf16 {
                let halves = logits.iter().map(|&x| bf16::from_f32(x));
                (Dtype::BF16, halves.flat_map(|x| x.to_le_bytes()).collect())
            } else {
                (Dtype::F32, f32_bytes(logits))
            };
            tensors.push(Owned {
                name: format!("{}.{model}", case.name),
                dtype,
                shape: case.shape.to_vec(),
                bytes,
            });
        }
        tensors.push(Owned {
            name: format!("{}.labels", case.name),
            dtype: Dtype::I64,
            shape: case.shape[..2].to_vec(),
            bytes: case.labels.iter().flat_map(|x| x.to_le_bytes()).collect(),
        });
    }
    serialize(&tensors)
}
