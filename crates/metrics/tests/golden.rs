//! Every case of `rouge_score`'s golden file.

use std::path::Path;

#[test]
fn scores_are_those_of_rouge_score() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/rouge.json");
    let cases = abkd_metrics::verify::verify_rouge(&path).unwrap();
    assert_eq!(cases.len(), 150);
    for (name, error) in cases {
        assert!(error < 1e-9, "{name}: {error}");
    }
}
