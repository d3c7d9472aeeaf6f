//! This crate against values made by Google's `rouge_score` 0.1.2.

use std::io::Write;
use std::path::{Path, PathBuf};

use abkd_metrics::Error;
use abkd_metrics::exact_match::exact_match_max;
use abkd_metrics::rouge::{rouge_l_max, tokenize};
use abkd_metrics::verify::verify_rouge;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Golden {
    n: usize,
    corpus: Corpus,
    cases: Vec<Case>,
}

/// Totals x 100, rounded to four decimals.
#[derive(Deserialize)]
struct Corpus {
    #[serde(rename = "rougeL")]
    rouge_l: f64,
    exact_match: f64,
}

#[derive(Deserialize)]
struct Case {
    prediction: String,
    references: Vec<String>,
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    tokens: Vec<String>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

#[test]
fn scores_are_those_of_rouge_score() {
    let cases = verify_rouge(&golden("rouge.json")).unwrap();
    assert_eq!(cases.len(), 150);
    for (name, error) in cases {
        assert!(error < 1e-9, "{name}: {error}");
    }
}

#[test]
fn corpus_totals_are_those_of_rouge_score() {
    let golden: Golden = read("rouge.json");
    assert_eq!(golden.cases.len(), golden.n);
    let total = |score: fn(&str, &[String]) -> f64| {
        let scores = golden.cases.iter();
        let scores = scores.map(|case| score(&case.prediction, &case.references));
        100.0 * scores.sum::<f64>() / golden.n as f64
    };
    assert!((total(rouge_l_max) - golden.corpus.rouge_l).abs() < 5.1e-5);
    assert!((total(exact_match_max) - golden.corpus.exact_match).abs() < 5.1e-5);
}

#[test]
fn tokens_are_those_of_rouge_score() {
    let cases: Vec<Tokens> = read("tokens.json");
    assert_eq!(cases.len(), 40);
    for case in cases {
        assert_eq!(tokenize(&case.text), case.tokens, "{:?}", case.text);
    }
}

/// What `verify_rouge` says of a file with this content.
fn verify(content: &str) -> Result<Vec<(String, f64)>, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    verify_rouge(file.path())
}

fn case(f1: &str, exact_match: &str) -> String {
    format!(
        r#"{{"cases": [{{"prediction": "red hat", "references": ["red hat", "red"], "rougeL_f": {f1},
        "rougeL_p": [1.0, 0.5], "rougeL_r": [1.0, 1.0], "exact_match": {exact_match}}}]}}"#
    )
}

#[test]
fn verification_finds_a_wrong_value() {
    let error = |content: String| verify(&content).unwrap()[0].1;
    assert!(error(case("[1.0, 0.6666666666666666]", "1.0")) < 1e-12);
    assert!((error(case("[1.0, 0.6666666666666666]", "0.0")) - 1.0).abs() < 1e-12);
    assert!((error(case("[0.75, 0.6666666666666666]", "1.0")) - 0.25).abs() < 1e-12);
}

#[test]
fn broken_files_are_errors_that_name_the_place() {
    let message = |content: &str| verify(content).unwrap_err().to_string();
    let short = message(&case("[1.0]", "1.0"));
    assert!(
        short.ends_with("case 1: `rougeL_f` has 1 values, `references` has 2"),
        "{short}"
    );
    assert!(message(r#"{"cases": []}"#).contains("`cases` is empty"));
    let none = case("[]", "0.0").replace(r#"["red hat", "red"]"#, "[]");
    let none = message(&none.replace("[1.0, 0.5]", "[]").replace("[1.0, 1.0]", "[]"));
    assert!(none.contains("case 1: `references` is empty"), "{none}");
    let long = case("[1.0, 0.5]", "0.0").replace("red hat", &"a ".repeat(1 << 16));
    assert!(message(&long).contains("case 1: a text of"), "long");
    for wrong in ["null", "\"1\"", "[1.0, null]", "1.0", "1e999"] {
        let text = message(&case(wrong, "1.0"));
        assert!(text.contains("line 1"), "{wrong}: {text}");
    }
    let folder = verify_rouge(&std::env::temp_dir()).unwrap_err().to_string();
    assert!(folder.contains("folder"), "{folder}");
    assert!(message(r#"{"cases": [{}]}"#).contains("missing field `prediction` at line 1"));
    let missing = verify_rouge(Path::new("no/such.json")).unwrap_err();
    assert!(missing.to_string().starts_with("no/such.json: "));
}
