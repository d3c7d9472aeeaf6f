//! The Porter stemmer (Porter, "An algorithm for suffix stripping", 1980) with the departures of
//! NLTK's default mode, which `rouge_score` uses: a pool of irregular forms, `ies`/`ied` kept as `ie`
//! in words of four letters, and additional suffix rules, marked below.

/// Irregular forms and their stems.
const POOL: &[(&str, &str)] = &[
    ("skies", "sky"),
    ("sky", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// A suffix, what replaces it, and the condition on the stem before it.
type Rule = (&'static str, &'static str, fn(&[u8]) -> bool);

/// Stem of a word of the letters a-z and digits; digits count as consonants. Linear in the length.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = POOL.iter().find(|(form, _)| *form == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let mut w = word.as_bytes().to_vec();
    step_1a(&mut w);
    step_1b(&mut w);
    step_1c(&mut w);
    step_2(&mut w);
    step_3(&mut w);
    step_4(&mut w);
    step_5a(&mut w);
    step_5b(&mut w);
    String::from_utf8(w).unwrap_or_else(|_| word.to_owned())
}

/// Whether letter `i` is a consonant: not a vowel, and a `y` only where no consonant stands before it.
/// A run of `y` alternates, so its length and the letter before it decide, without recursion.
fn is_consonant(w: &[u8], i: usize) -> bool {
    let run = w[..=i].iter().rev().take_while(|c| **c == b'y').count();
    let before_run = match i.checked_sub(run) {
        Some(j) => !matches!(w[j], b'a' | b'e' | b'i' | b'o' | b'u'),
        None => false, // a word's first y is a consonant, as if a vowel stood before it
    };
    before_run == run.is_multiple_of(2)
}

/// [`is_consonant`] of every letter, in one pass.
fn consonants(w: &[u8]) -> impl Iterator<Item = bool> {
    w.iter().scan(false, |last, letter| {
        *last = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*last,
            _ => true,
        };
        Some(*last)
    })
}

/// m: the number of vowel-consonant sequences.
fn measure(stem: &[u8]) -> usize {
    let mut m = 0;
    let mut after_vowel = false;
    for consonant in consonants(stem) {
        m += usize::from(consonant && after_vowel);
        after_vowel = !consonant;
    }
    m
}

fn has_vowel(stem: &[u8]) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

fn ends_double_consonant(w: &[u8]) -> bool {
    let n = w.len();
    n >= 2 && w[n - 1] == w[n - 2] && is_consonant(w, n - 1)
}

/// The paper's *o, and NLTK's addition: a vowel and a consonant alone.
fn ends_cvc(w: &[u8]) -> bool {
    let n = w.len();
    (n >= 3
        && is_consonant(w, n - 3)
        && !is_consonant(w, n - 2)
        && is_consonant(w, n - 1)
        && !matches!(w[n - 1], b'w' | b'x' | b'y'))
        || (n == 2 && !is_consonant(w, 0) && is_consonant(w, 1))
}

/// Cuts `suffix` off and appends `with`.
fn replace(w: &mut Vec<u8>, suffix: &str, with: &str) {
    w.truncate(w.len() - suffix.len());
    w.extend_from_slice(with.as_bytes());
}

/// The stem before `suffix`, if the word ends with it.
fn before<'a>(w: &'a [u8], suffix: &str) -> Option<&'a [u8]> {
    w.strip_suffix(suffix.as_bytes())
}

/// The first rule whose suffix fits decides: it is applied if its condition holds, else no rule is.
fn apply(w: &mut Vec<u8>, rules: &[Rule]) {
    for (suffix, with, condition) in rules {
        if let Some(stem) = before(w, suffix) {
            if condition(stem) {
                replace(w, suffix, with);
            }
            return;
        }
    }
}

fn always(_: &[u8]) -> bool {
    true
}

fn m_over_0(stem: &[u8]) -> bool {
    measure(stem) > 0
}

fn m_over_1(stem: &[u8]) -> bool {
    measure(stem) > 1
}

fn step_1a(w: &mut Vec<u8>) {
    // NLTK: "ties", "dies" keep "ie".
    if w.ends_with(b"ies") && w.len() == 4 {
        return replace(w, "ies", "ie");
    }
    apply(
        w,
        &[
            ("sses", "ss", always),
            ("ies", "i", always),
            ("ss", "ss", always),
            ("s", "", always),
        ],
    );
}

fn step_1b(w: &mut Vec<u8>) {
    // NLTK: "died" gives "die", "spied" gives "spi".
    if w.ends_with(b"ied") {
        let with = if w.len() == 4 { "ie" } else { "i" };
        return replace(w, "ied", with);
    }
    if let Some(stem) = before(w, "eed") {
        if measure(stem) > 0 {
            replace(w, "eed", "ee");
        }
        return;
    }
    let Some(suffix) = ["ed", "ing"]
        .into_iter()
        .find(|s| before(w, s).is_some_and(has_vowel))
    else {
        return;
    };
    replace(w, suffix, "");
    if [&b"at"[..], b"bl", b"iz"]
        .iter()
        .any(|end| w.ends_with(end))
    {
        w.push(b'e');
    } else if ends_double_consonant(w) {
        if !matches!(w[w.len() - 1], b'l' | b's' | b'z') {
            w.pop();
        }
    } else if measure(w) == 1 && ends_cvc(w) {
        w.push(b'e');
    }
}

fn step_1c(w: &mut Vec<u8>) {
    // NLTK: a consonant must stand before the y, and not alone, so that "enjoy" stays and "spy" gives "spi".
    apply(
        w,
        &[("y", "i", |stem| {
            stem.len() > 1 && is_consonant(stem, stem.len() - 1)
        })],
    );
}

fn step_2(w: &mut Vec<u8>) {
    // NLTK: "alli" goes first and the step starts again: "rationalli", "rational", "ration".
    if let Some(stem) = before(w, "alli")
        && measure(stem) > 0
    {
        replace(w, "alli", "al");
        return step_2(w);
    }
    apply(
        w,
        &[
            ("ational", "ate", m_over_0),
            ("tional", "tion", m_over_0),
            ("enci", "ence", m_over_0),
            ("anci", "ance", m_over_0),
            ("izer", "ize", m_over_0),
            ("bli", "ble", m_over_0), // NLTK; the paper has "abli"
            ("alli", "al", m_over_0),
            ("entli", "ent", m_over_0),
            ("eli", "e", m_over_0),
            ("ousli", "ous", m_over_0),
            ("ization", "ize", m_over_0),
            ("ation", "ate", m_over_0),
            ("ator", "ate", m_over_0),
            ("alism", "al", m_over_0),
            ("iveness", "ive", m_over_0),
            ("fulness", "ful", m_over_0),
            ("ousness", "ous", m_over_0),
            ("aliti", "al", m_over_0),
            ("iviti", "ive", m_over_0),
            ("biliti", "ble", m_over_0),
            ("fulli", "ful", m_over_0), // NLTK
            // NLTK: the l belongs to the stem, so that "geologi" gives "geolog"
            ("logi", "log", |stem| measure(&[stem, b"l"].concat()) > 0),
        ],
    );
}

fn step_3(w: &mut Vec<u8>) {
    apply(
        w,
        &[
            ("icate", "ic", m_over_0),
            ("ative", "", m_over_0),
            ("alize", "al", m_over_0),
            ("iciti", "ic", m_over_0),
            ("ical", "ic", m_over_0),
            ("ful", "", m_over_0),
            ("ness", "", m_over_0),
        ],
    );
}

fn step_4(w: &mut Vec<u8>) {
    apply(
        w,
        &[
            ("al", "", m_over_1),
            ("ance", "", m_over_1),
            ("ence", "", m_over_1),
            ("er", "", m_over_1),
            ("ic", "", m_over_1),
            ("able", "", m_over_1),
            ("ible", "", m_over_1),
            ("ant", "", m_over_1),
            ("ement", "", m_over_1),
            ("ment", "", m_over_1),
            ("ent", "", m_over_1),
            ("ion", "", |s| {
                measure(s) > 1 && matches!(s.last(), Some(b's' | b't'))
            }),
            ("ou", "", m_over_1),
            ("ism", "", m_over_1),
            ("ate", "", m_over_1),
            ("iti", "", m_over_1),
            ("ous", "", m_over_1),
            ("ive", "", m_over_1),
            ("ize", "", m_over_1),
        ],
    );
}

fn step_5a(w: &mut Vec<u8>) {
    apply(
        w,
        &[("e", "", |s| {
            measure(s) > 1 || (measure(s) == 1 && !ends_cvc(s))
        })],
    );
}

fn step_5b(w: &mut Vec<u8>) {
    // The measure is that of the word without its last letter.
    if w.ends_with(b"ll") && measure(&w[..w.len() - 1]) > 1 {
        w.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pairs from NLTK 3.10.4. They both apply and refuse every rule of every step, as far as any word can.
    #[test]
    fn stems_are_those_of_nltk() {
        let pairs: Vec<_> = include_str!("../tests/goldens/stems.tsv")
            .lines()
            .map(|line| line.split_once('\t').expect("word, tab, stem"))
            .collect();
        assert!(pairs.len() > 400, "{}", pairs.len());
        for (word, expected) in pairs {
            assert_eq!(stem(word), expected, "{word}");
        }
    }

    #[test]
    fn long_runs_of_y_are_linear() {
        // quadratic work on this word takes minutes, recursion overflows the stack
        let word = format!("{}nesses", "y".repeat(1_000_000));
        assert_eq!(stem(&word).len(), 1_000_000);
    }

    proptest! {
        #[test]
        fn one_letter_is_judged_as_in_the_pass(word in "[aeybt1]{1,12}") {
            let word = word.as_bytes();
            for (i, consonant) in consonants(word).enumerate() {
                prop_assert_eq!(is_consonant(word, i), consonant, "{}", i);
            }
        }

        #[test]
        fn a_stem_is_neither_empty_nor_longer(word in "[a-z0-9]{1,16}") {
            let stemmed = stem(&word);
            prop_assert!(!stemmed.is_empty() && stemmed.len() <= word.len());
        }
    }
}
