//! Which key of a table an error is about.

/// The key that causes an error: the key that the message names, else a key without which the error changes or vanishes.
pub(super) fn culprit(
    table: &toml::Table,
    message: &str,
    wrong: impl Fn(&toml::Table) -> Option<String>,
) -> Option<String> {
    let mut keys = table.keys();
    let named = keys.find(|key| names(message, key)).cloned();
    // A missing field is no key of the table.
    if named.is_some() || message.contains("missing field") {
        return named;
    }
    let mut keys = table.keys();
    let without = |key: &&String| {
        let mut rest = table.clone();
        rest.remove(*key);
        wrong(&rest).as_deref() != Some(message)
    };
    keys.find(without).cloned()
}

/// Whether an error names a key: as `key`, as `key.PART`, as key = value, or as key: what is wrong.
pub(super) fn names(message: &str, key: &str) -> bool {
    message.contains(&format!("`{key}`"))
        || message.contains(&format!("`{key}."))
        || [" = ", ": "].iter().any(|sign| {
            let text = format!("{key}{sign}");
            message
                .match_indices(&text)
                .any(|(at, _)| !message[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_as_a_whole() {
        for (message, key) in [
            ("`warmup` = 5: no", "warmup"),
            ("`lora.r` = 0", "lora"),
            ("method `gkd`: lambda = 2: no", "lambda"),
            ("whitening: unknown `none`", "whitening"),
        ] {
            assert!(names(message, key), "{message}");
        }
        assert!(!names("max_epochs = 5", "epochs"));
        assert!(!names("alpha: 5", "a"));
    }

    #[test]
    fn an_error_without_a_name_is_that_of_the_key_without_which_it_is_not_met() {
        let table: toml::Table = toml::from_str("a = 1\nb = 2\nc = 3").unwrap();
        let wrong = |t: &toml::Table| t.contains_key("b").then(|| "not so".to_owned());
        assert_eq!(culprit(&table, "not so", wrong).as_deref(), Some("b"));
        assert_eq!(culprit(&table, "missing field `z`", wrong), None);
    }
}
