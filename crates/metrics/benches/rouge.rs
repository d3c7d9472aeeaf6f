//! Time to score 10,000 pairs of 100 words: `cargo bench -p abkd-metrics`.

use std::time::Instant;

use abkd_metrics::rouge::rouge_l_max;
use rayon::prelude::*;

const PAIRS: usize = 10_000;
const WORDS: usize = 100;

/// Words of the golden file's first references, from the `start`-th on, over and over.
fn text(vocabulary: &[&str], start: usize) -> String {
    let words = vocabulary.iter().cycle().skip(start % vocabulary.len());
    words.take(WORDS).copied().collect::<Vec<_>>().join(" ")
}

fn main() {
    let golden = include_str!("../tests/goldens/rouge.json");
    let vocabulary: Vec<&str> = golden.split_whitespace().take(10_000).collect();
    let pairs: Vec<(String, [String; 1])> = (0..PAIRS)
        .map(|i| (text(&vocabulary, i), [text(&vocabulary, i * 7 + 20)]))
        .collect();
    let begun = Instant::now();
    let scores = pairs
        .par_iter()
        .map(|(text, other)| rouge_l_max(text, other));
    let score = 100.0 * scores.sum::<f64>() / PAIRS as f64;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{PAIRS} pairs of {WORDS} words: {seconds:.3} s, {:.0} pairs/s (mean ROUGE-L {score:.2})",
        PAIRS as f64 / seconds
    );
}
