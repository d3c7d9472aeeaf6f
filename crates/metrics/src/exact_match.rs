//! Equality after normalisation, as in the evaluation of SQuAD but with articles kept.

/// Lower-cased, ASCII punctuation dropped, every run of white space folded to one space, trimmed.
pub fn normalize(text: &str) -> String {
    let kept: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let words: Vec<&str> = kept
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

/// White space of Python's `str.split`: Unicode's, and the four ASCII information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// 1 if the prediction equals one of the references after normalisation, else 0.
pub fn exact_match_max<S: AsRef<str>>(prediction: &str, references: &[S]) -> f64 {
    let prediction = normalize(prediction);
    let matches = references
        .iter()
        .any(|r| normalize(r.as_ref()) == prediction);
    f64::from(u8::from(matches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_punctuation_and_space_do_not_count() {
        assert_eq!(exact_match_max("A  red,\tHat!", &["no", "a red hat"]), 1.0);
        assert_eq!(exact_match_max("a red hat", &["red hat"]), 0.0);
        assert_eq!(exact_match_max("x", &[] as &[&str]), 0.0);
        assert_eq!(exact_match_max("...", &[""]), 1.0);
        // punctuation is dropped, not made a space
        assert_eq!(normalize("it's well-kept\u{a0}\u{1c}É\n"), "its wellkept é");
    }

    proptest! {
        #[test]
        fn normalisation_is_idempotent(text in "[aB ,.\t]{0,20}") {
            let once = normalize(&text);
            prop_assert_eq!(normalize(&once), once);
        }
    }
}
