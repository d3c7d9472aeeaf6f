//! Time of each divergence, forward and backward, beside one pass that reads two buffers and writes one:
//! `cargo bench -p abkd-losses -- 1024 50257 ab` (rows, vocabulary, and which; all when none is named).

use std::collections::BTreeMap;
use std::time::Instant;

use abkd_losses::{Divergence, row};
use rayon::prelude::*;

fn median(mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let begun = Instant::now();
            f();
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[2]
}

fn main() {
    let mut sizes = std::env::args().filter_map(|a| a.parse::<usize>().ok());
    let (n, vocab) = (sizes.next().unwrap_or(1024), sizes.next().unwrap_or(50_257));
    let noise = |seed: u64| -> Vec<f32> {
        (0..n * vocab)
            .map(|i| {
                ((i as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 * 6e-7 - 5.0
            })
            .collect()
    };
    let (student, teacher) = (noise(1), noise(2));
    let mut work = student.clone();
    let mut value = vec![0.0; n];
    let pass = median(|| {
        work.par_chunks_mut(vocab)
            .zip(student.par_chunks(vocab))
            .zip(teacher.par_chunks(vocab))
            .for_each(|((w, z), t)| {
                for ((w, z), t) in w.iter_mut().zip(z).zip(t) {
                    *w = z + t;
                }
            });
    });
    println!("{n} x {vocab}: one pass, read two and write one: {pass:.1} ms");
    let named: Vec<String> = std::env::args()
        .filter(|a| Divergence::IDS.contains(&a.as_str()))
        .collect();
    for id in Divergence::IDS {
        if !named.is_empty() && !named.iter().any(|n| n == id) {
            continue;
        }
        let d = Divergence::from_parts(id, &BTreeMap::new()).expect("a known id");
        let copy = median(|| work.copy_from_slice(&student));
        let both = median(|| {
            work.copy_from_slice(&student);
            row::divergence(
                &d,
                d.default_fidelity(),
                &mut work,
                &teacher,
                vocab,
                &mut value,
            )
            .expect("finite");
        });
        let ms = both - copy;
        println!("{id:10} {ms:8.1} ms  {:5.1} passes", ms / pass);
    }
}
