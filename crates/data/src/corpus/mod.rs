//! The embedded corpus: generated instruction tasks in plain English words, so that every experiment
//! runs without a download. Its test sets differ from the training set as the paper's five do:
//!
//! | set | replaces | difference from the training set |
//! |---|---|---|
//! | dolly | Dolly Eval | none: new draws |
//! | self_instruct | Self-Instruct | other wordings of the instructions |
//! | vicuna | Vicuna Eval | long open answers |
//! | super_natural | Super-Natural | a task definition as instruction, several references |
//! | unnatural | Unnatural | new combinations of known skills |
//!
//! No prompt occurs twice, within a split or across splits. Texts are lower-case words and `. , ?`, so that
//! the embedded tokenizer decodes them unchanged.

mod families;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use families::{FAMILIES, Wording, composed, letter, long_story};

use crate::rng::Rng;
use crate::{DataSets, Example, prompt};

/// Sizes of the splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Training examples.
    pub train: usize,
    /// Validation examples.
    pub valid: usize,
    /// Examples of each test set.
    pub test: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            train: 6000,
            valid: 200,
            test: 100,
        }
    }
}

/// Draws the corpus of a seed. Test and validation sets are drawn first, so that their prompts do not
/// depend on the size of the training set.
pub fn embedded(seed: u64, sizes: &Sizes) -> DataSets {
    let mut seen = BTreeSet::new();
    let mut split = |number: u64, n: usize, draw: fn(&mut Rng, usize) -> Example| {
        let mut rng = Rng::new(&[seed, number]);
        let mut examples = Vec::with_capacity(n);
        while examples.len() < n {
            let example = draw(&mut rng, examples.len());
            if seen.insert(prompt(&example)) {
                examples.push(example);
            }
        }
        examples
    };
    let one_reference = |e: Example| Example {
        outputs: e.outputs[..1].to_vec(),
        ..e
    };
    let tests = BTreeMap::from([
        (
            "dolly",
            split(1, sizes.test, |rng, i| family(rng, i, Wording::Known)),
        ),
        (
            "self_instruct",
            split(2, sizes.test, |rng, i| family(rng, i, Wording::Other)),
        ),
        (
            "vicuna",
            split(3, sizes.test, |rng, i| {
                if i % 4 == 0 {
                    letter(rng, Wording::Other)
                } else {
                    long_story(rng, Wording::Known)
                }
            }),
        ),
        (
            "super_natural",
            split(4, sizes.test, |rng, i| family(rng, i, Wording::Definition)),
        ),
        ("unnatural", split(5, sizes.test, |rng, _| composed(rng))),
    ]);
    let tests = tests.into_iter().map(|(set, examples)| {
        // Only Super-Natural has several references.
        let several = set == "super_natural";
        let examples = examples
            .into_iter()
            .map(|e| if several { e } else { one_reference(e) });
        (set.to_owned(), examples.collect())
    });
    let tests = tests.collect();
    let known: fn(&mut Rng, usize) -> Example = |rng, i| family(rng, i, Wording::Known);
    let valid = split(6, sizes.valid, known)
        .into_iter()
        .map(one_reference)
        .collect();
    let train = split(7, sizes.train, known)
        .into_iter()
        .map(one_reference)
        .collect();
    DataSets {
        train,
        valid,
        tests,
    }
}

fn family(rng: &mut Rng, index: usize, wording: Wording) -> Example {
    FAMILIES[index % FAMILIES.len()](rng, wording)
}

/// All words and punctuation marks of the corpus, in a fixed order.
pub(crate) fn vocabulary() -> Vec<String> {
    let mut words: BTreeSet<String> = [".", ",", "?"].map(str::to_owned).into();
    // Content words are listed; a few hundred draws contain all words of the wordings.
    for list in [
        words::NAMES,
        words::OBJECTS,
        words::COLORS,
        words::PLACES,
        words::ANIMALS,
        words::FOODS,
        words::GOOD,
        words::BAD,
    ] {
        words.extend(list.iter().map(|w| (*w).to_owned()));
    }
    for (a, b) in words::VERBS.iter().chain(words::JOBS) {
        words.extend(
            [a, b]
                .into_iter()
                .flat_map(|t| t.split(' '))
                .map(str::to_owned),
        );
    }
    let sets = embedded(
        0,
        &Sizes {
            train: 1200,
            valid: 1,
            test: 600,
        },
    );
    for e in sets.train.iter().chain(sets.tests.values().flatten()) {
        for text in [&e.instruction, &e.input].into_iter().chain(&e.outputs) {
            words.extend(
                text.split([' ', '.', ',', '?'])
                    .filter(|w| !w.is_empty())
                    .map(str::to_owned),
            );
        }
    }
    words.into_iter().collect()
}
