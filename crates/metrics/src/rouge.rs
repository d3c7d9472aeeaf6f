//! ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004) as Google's
//! `rouge_score` computes it with `use_stemmer=True`: over the whole text, line breaks being spaces.

use std::collections::HashMap;

use crate::porter::stem;

/// Precision, recall and their harmonic mean, each in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Length of the longest common subsequence / number of prediction tokens.
    pub precision: f64,
    /// Length of the longest common subsequence / number of reference tokens.
    pub recall: f64,
    /// Harmonic mean `2 P R / (P + R)`; 0 when nothing is common or either text has no token.
    pub f1: f64,
}

/// Tokens of `rouge_score`: lower-cased, everything but a-z and 0-9 separates, and words of more than
/// three characters are stemmed. The text is lower-cased before its letters are judged: the Kelvin
/// sign becomes `k`, a Turkish dotted capital I an `i` and a separator.
pub fn tokenize(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()))
        .filter(|word| !word.is_empty())
        .map(|word| {
            if word.len() > 3 {
                stem(word)
            } else {
                word.to_owned()
            }
        })
        .collect()
}

/// ROUGE-L of a prediction against one reference.
pub fn rouge_l(prediction: &str, reference: &str) -> Score {
    score_tokens(&tokenize(prediction), &tokenize(reference))
}

/// Best F1 over the references, in [0, 1]; 0 without a reference.
pub fn rouge_l_max<S: AsRef<str>>(prediction: &str, references: &[S]) -> f64 {
    let prediction = tokenize(prediction);
    references
        .iter()
        .map(|reference| score_tokens(&prediction, &tokenize(reference.as_ref())).f1)
        .fold(0.0, f64::max)
}

fn score_tokens(prediction: &[String], reference: &[String]) -> Score {
    if prediction.is_empty() || reference.is_empty() {
        return Score::default();
    }
    let common = lcs(prediction, reference) as f64;
    let precision = common / prediction.len() as f64;
    let recall = common / reference.len() as f64;
    let f1 = if common > 0.0 {
        2.0 * precision * recall / (precision + recall)
    } else {
        0.0
    };
    Score {
        precision,
        recall,
        f1,
    }
}

/// Length of the longest common subsequence, bit-parallel (Hyyrö, "Bit-parallel LCS-length
/// computation revisited", 2004): 64 cells of the table's row in a word. A zero bit at `j` marks
/// where the row grows at `b[j]`, so the zeros of the last row are the length.
fn lcs(a: &[String], b: &[String]) -> usize {
    let mut positions: HashMap<&str, Vec<usize>> = HashMap::with_capacity(b.len());
    for (j, token) in b.iter().enumerate() {
        positions.entry(token).or_default().push(j);
    }
    let mut row = vec![u64::MAX; b.len().div_ceil(64)];
    let mut matches = vec![0; row.len()];
    for at in a.iter().filter_map(|token| positions.get(token.as_str())) {
        at.iter().for_each(|j| matches[j / 64] |= 1 << (j % 64));
        let mut carry = false;
        for (word, matches) in row.iter_mut().zip(&matches) {
            let (sum, carry_1) = word.overflowing_add(*word & matches);
            let (sum, carry_2) = sum.overflowing_add(u64::from(carry));
            *word = sum | (*word & !matches);
            carry = carry_1 | carry_2;
        }
        at.iter().for_each(|j| matches[j / 64] = 0);
    }
    row.iter().map(|word| word.count_zeros() as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // tokens: the cat sat / the cat lay there: 2 in common of 3 and 4
        let score = rouge_l("The cat sat.", "the cat lay there");
        assert!((score.precision - 2.0 / 3.0).abs() < 1e-12 && (score.recall - 0.5).abs() < 1e-12);
        assert!((score.f1 - 4.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn accents_separate_and_short_words_are_not_stemmed() {
        assert_eq!(tokenize("café's was running"), ["caf", "s", "was", "run"]);
        assert_eq!(rouge_l("", "a").f1, 0.0);
        assert_eq!(rouge_l("!!", "??").f1, 0.0);
    }

    #[test]
    fn references_may_be_many_or_none() {
        assert_eq!(rouge_l_max("red hat", &["blue hat", "red hat"]), 1.0);
        assert_eq!(rouge_l_max("red hat", &["blue hat"]), 0.5);
        assert_eq!(rouge_l_max::<&str>("red", &[]), 0.0);
    }

    fn words() -> impl Strategy<Value = String> {
        proptest::collection::vec("[abc]{1,2}", 0..12).prop_map(|w| w.join(" "))
    }

    proptest! {
        #[test]
        fn scores_are_bounded_and_swap_with_the_roles(a in words(), b in words()) {
            let (x, y) = (rouge_l(&a, &b), rouge_l(&b, &a));
            prop_assert!((0.0..=1.0).contains(&x.f1));
            prop_assert_eq!(x.precision, y.recall);
            prop_assert!((x.f1 - y.f1).abs() < 1e-12);
        }

        #[test]
        fn a_text_equals_itself(a in words()) {
            let expected = if a.is_empty() { 0.0 } else { 1.0 };
            prop_assert_eq!(rouge_l(&a, &a).f1, expected);
        }

        #[test]
        fn the_best_reference_counts(a in words(), b in words(), c in words()) {
            let best = rouge_l(&a, &b).f1.max(rouge_l(&a, &c).f1);
            prop_assert_eq!(rouge_l_max(&a, &[b, c]), best);
        }

        // up to 200 tokens: four words of bits, with carries between them
        #[test]
        fn the_longest_common_subsequence_is_that_of_the_table(
            a in proptest::collection::vec("[abcd]", 0..200),
            b in proptest::collection::vec("[abcd]", 0..200),
        ) {
            let mut row = vec![0; b.len() + 1];
            for x in &a {
                let mut diagonal = 0;
                for (j, y) in b.iter().enumerate() {
                    let above = row[j + 1];
                    row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
                    diagonal = above;
                }
            }
            prop_assert_eq!(lcs(&a, &b), row[b.len()]);
        }
    }
}
