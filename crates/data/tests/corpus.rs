//! The embedded corpus has the properties in its documentation.

use std::collections::BTreeSet;

use abkd_data::{
    DataSets, Example, Limits, PromptTemplate, Sizes, Tokenizer, embedded, encode_training, prompt,
};

fn splits(sets: &DataSets) -> Vec<&[Example]> {
    let mut all: Vec<&[Example]> = vec![&sets.train, &sets.valid];
    all.extend(sets.tests.values().map(Vec::as_slice));
    all
}

#[test]
fn no_prompt_occurs_twice() {
    let sets = embedded(1, &Sizes::default());
    let mut seen = BTreeSet::new();
    for example in splits(&sets).concat() {
        assert!(seen.insert(prompt(&example)), "{}", prompt(&example));
    }
    assert_eq!(seen.len(), 6000 + 200 + 500);
}

#[test]
fn test_prompts_do_not_depend_on_the_training_size() {
    let small = embedded(
        1,
        &Sizes {
            train: 10,
            ..Sizes::default()
        },
    );
    let large = embedded(1, &Sizes::default());
    assert_eq!(small.tests.len(), 5);
    assert_eq!(small.tests, large.tests);
    assert_ne!(embedded(2, &Sizes::default()).train, large.train);
}

#[test]
fn every_text_survives_the_tokenizer() {
    let tokenizer = Tokenizer::embedded();
    for seed in [1, 77] {
        for example in splits(&embedded(seed, &Sizes::default())).concat() {
            for text in [&example.instruction, &example.input]
                .into_iter()
                .chain(&example.outputs)
            {
                let tokens = tokenizer.encode(text).unwrap();
                assert_eq!(&tokenizer.decode(&tokens).unwrap(), text);
            }
        }
    }
}

#[test]
fn the_sets_differ_as_the_papers_do() {
    let sets = embedded(1, &Sizes::default());
    let known: BTreeSet<&str> = sets.train.iter().map(|e| e.instruction.as_str()).collect();
    let share = |set| {
        let examples = sets.test(set);
        examples
            .iter()
            .filter(|e| known.contains(e.instruction.as_str()))
            .count() as f64
            / examples.len() as f64
    };
    assert!(share("dolly") > 0.3);
    assert_eq!(share("self_instruct"), 0.0);
    assert_eq!(share("super_natural"), 0.0);
    assert_eq!(share("unnatural"), 0.0);
    let words = |set| {
        let examples = sets.test(set);
        examples
            .iter()
            .map(|e| e.outputs[0].split(' ').count())
            .sum::<usize>() as f64
            / examples.len() as f64
    };
    assert!(words("vicuna") > 2.0 * words("dolly"));
    assert!(
        sets.test("super_natural")
            .iter()
            .all(|e| e.outputs.len() > 1)
    );
    let tokenizer = Tokenizer::embedded();
    let limits = Limits {
        max_prompt_length: 96,
        max_length: 192,
    };
    let encoded =
        encode_training(&sets.train, &tokenizer, &PromptTemplate::Paper, &limits).unwrap();
    assert!(encoded.skipped.is_empty());
    assert!(
        encoded
            .sequences
            .iter()
            .all(|s| s.tokens.last() == Some(&tokenizer.eos())),
        "nothing is cut"
    );
}
