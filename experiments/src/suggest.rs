//! The nearest known name to a mistyped one.

/// `"; did you mean `x`?"` for the nearest of `known`, or nothing when none is near.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(typed, k), k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 3)
        .map_or(String::new(), |(_, k)| format!("; did you mean `{k}`?"))
}

/// Adds the nearest key to serde's "unknown field `x`, expected one of `a`, `b`".
pub fn with_nearest_key(message: &str) -> String {
    let Some(start) = message.find("unknown ") else {
        return message.to_owned();
    };
    let quoted: Vec<&str> = message[start..].split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((typed, known)) => {
            format!("{message}{}", nearest(typed, known.iter().copied()))
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(
            nearest("seedz", ["seeds", "rows"]),
            "; did you mean `seeds`?"
        );
        assert_eq!(nearest("xyzzy", ["seeds", "rows"]), "");
        let message = "unknown field `row`, expected one of `rows`, `seeds`";
        assert!(with_nearest_key(message).ends_with("did you mean `rows`?"));
    }
}
