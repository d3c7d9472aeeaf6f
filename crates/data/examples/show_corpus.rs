//! Prints a few examples of each split of the embedded corpus and their lengths:
//! `cargo run --release -p abkd-data --example show_corpus`.

use abkd_data::{Sizes, Tokenizer, embedded, prompt};

fn main() {
    let sets = embedded(1, &Sizes::default());
    let tokenizer = Tokenizer::embedded();
    println!("{} tokens in the vocabulary", tokenizer.vocab_size());
    let tests = sets
        .tests
        .iter()
        .map(|(id, examples)| (id.as_str(), &examples[..]));
    for (name, examples) in [("train", &sets.train[..]), ("valid", &sets.valid)]
        .into_iter()
        .chain(tests)
    {
        let length = |text: &str| tokenizer.encode(text).map_or(0, |t| t.len()) as f64;
        let mean = |f: &dyn Fn(&abkd_data::Example) -> f64| {
            examples.iter().map(f).sum::<f64>() / examples.len() as f64
        };
        println!(
            "\n== {name}: {} examples, {:.1} prompt and {:.1} answer tokens",
            examples.len(),
            mean(&|e| length(&prompt(e))),
            mean(&|e| length(&e.outputs[0]))
        );
        for e in &examples[..examples.len().min(12)] {
            println!(
                "- {} [{}] => {}",
                e.instruction,
                e.input,
                e.outputs.join(" | ")
            );
        }
    }
}
