//! Time of each divergence, forward and backward, compared with one pass that reads two buffers and writes one.
//!
//! `cargo bench --bench row_kernel -- ab/1024x50257` runs one (a regular expression over ids of the form
//! divergence/rows x vocabulary; `--list` prints them, `pass/1024x50257` is the pass). Throughput is in
//! bytes of the pass: two reads and one write of every logit.

use std::time::{Duration, Instant};

use abkd_losses::{Divergence, Logits, row};
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use rayon::prelude::*;

const SIZE: [usize; 2] = [1024, 50_257];
/// Further sizes, for `ab` alone: time grows with the number of logits, by more rows and by a larger vocabulary.
const GROWTH: [[usize; 2]; 7] = [
    [256, 50_257],
    [512, 50_257],
    [2048, 50_257],
    [1024, 12_500],
    [1024, 25_000],
    [1024, 50_000],
    [1024, 100_000],
];

struct Inputs {
    size: [usize; 2],
    student: Vec<f32>,
    teacher: Vec<f32>,
    /// The student's logits, then their gradient.
    work: Vec<f32>,
    value: Vec<f32>,
}

impl Inputs {
    fn new(size: [usize; 2]) -> Self {
        let noise = |seed: u64| -> Vec<f32> {
            (0..(size[0] * size[1]) as u64)
                .map(|i| ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 * 6e-7 - 5.0)
                .collect()
        };
        let student = noise(1);
        Self {
            size,
            teacher: noise(2),
            work: student.clone(),
            student,
            value: vec![0.0; size[0]],
        }
    }

    fn pass(&mut self) {
        let vocab = self.size[1];
        self.work
            .par_chunks_mut(vocab)
            .zip(self.student.par_chunks(vocab))
            .zip(self.teacher.par_chunks(vocab))
            .for_each(|((w, z), t)| {
                for ((w, z), t) in w.iter_mut().zip(z).zip(t) {
                    *w = z + t;
                }
            });
    }

    fn divergence(&mut self, d: &Divergence) {
        let (work, value) = (&mut self.work, &mut self.value);
        let fidelity = d.default_fidelity();
        row::divergence(
            d,
            fidelity,
            Logits {
                student: work,
                teacher: &self.teacher,
            },
            self.size[1],
            value,
        )
        .expect("finite");
    }
}

/// Times `f` alone, not the copy of the student's logits before it. `kept` holds the logits of the last benchmark that ran,
/// so that benchmarks that are filtered out make none.
fn bench(
    group: &mut BenchmarkGroup<WallTime>,
    size: [usize; 2],
    kept: &mut Option<Inputs>,
    mut f: impl FnMut(&mut Inputs),
) {
    let [rows, vocab] = size;
    group
        .sampling_mode(SamplingMode::Flat)
        .throughput(Throughput::Bytes(3 * 4 * (rows * vocab) as u64))
        .bench_function(format!("{rows}x{vocab}"), |b| {
            if kept.as_ref().is_none_or(|logits| logits.size != size) {
                // frees the old ones first
                *kept = None;
                *kept = Some(Inputs::new(size));
            }
            let logits = kept.as_mut().expect("just made");
            b.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| {
                        logits.work.copy_from_slice(&logits.student);
                        let begun = Instant::now();
                        f(logits);
                        begun.elapsed()
                    })
                    .sum()
            });
        });
}

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let kept = &mut None;
    bench(
        &mut criterion.benchmark_group("pass"),
        SIZE,
        kept,
        Inputs::pass,
    );
    for d in Divergence::all() {
        let id = d.id();
        let growth = if id == "ab" { &GROWTH[..] } else { &[] };
        let group = &mut criterion.benchmark_group(id);
        for &size in [SIZE].iter().chain(growth) {
            bench(group, size, kept, |logits| logits.divergence(&d));
        }
    }
    criterion.final_summary();
}
