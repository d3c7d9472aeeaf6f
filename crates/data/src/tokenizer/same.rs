//! Whether two tokenizers give the same ids for the same text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Tokenizer;

/// Fields of an added token that change ids, beside its text.
const OF_ADDED: [&str; 5] = ["id", "single_word", "lstrip", "rstrip", "normalized"];

impl Tokenizer {
    /// Message about the first difference between two tokenizers, or `None` if both give the same ids for the same text.
    /// Compares vocabulary, added tokens, normaliser, pre-tokeniser, model and merges; not the parts that change no ids:
    /// decoder, post-processor, length limits.
    ///
    /// # Panics
    ///
    /// Never: a tokenizer that was read can be serialised.
    pub fn differs_from(&self, other: &Self) -> Option<String> {
        let named = |what: String| {
            format!(
                "{what} ({} and {})",
                self.path.display(),
                other.path.display()
            )
        };
        if let Some(what) = vocabularies(self, other) {
            return Some(named(what));
        }
        let [ours, theirs] = [self, other].map(Self::json);
        let [ours, theirs] = [&ours, &theirs];
        let added = |json: &Value| {
            let tokens = json["added_tokens"].as_array().cloned().unwrap_or_default();
            let key = |t: &Value| t["content"].as_str().unwrap_or_default().to_owned();
            let facts = |t: &Value| OF_ADDED.map(|k| t[k].clone());
            tokens
                .iter()
                .map(|t| (key(t), facts(t)))
                .collect::<BTreeMap<_, _>>()
        };
        let (a, b) = (added(ours), added(theirs));
        let all = a.keys().chain(b.keys());
        if let Some(token) = all.into_iter().find(|t| a.get(*t) != b.get(*t)) {
            return Some(named(format!(
                "the added token {token:?} is not the same in both"
            )));
        }
        for (key, what) in [
            ("normalizer", "the normaliser"),
            ("pre_tokenizer", "the pre-tokeniser"),
        ] {
            if steps(&ours[key]) != steps(&theirs[key]) {
                return Some(named(format!("{what} is not the same in both")));
            }
        }
        models(&ours["model"], &theirs["model"]).map(named)
    }
}

fn vocabularies(ours: &Tokenizer, theirs: &Tokenizer) -> Option<String> {
    let (a, b) = (ours.inner.get_vocab(true), theirs.inner.get_vocab(true));
    let differs = |token: &&String| a.get(*token) != b.get(*token);
    // The lowest id that differs, so that the message is the same each time.
    let token = a
        .keys()
        .chain(b.keys())
        .filter(differs)
        .min_by_key(|t| (a.get(*t).min(b.get(*t)), *t))?;
    Some(match (a.get(token), b.get(token)) {
        (Some(x), Some(y)) => format!("the token {token:?} has id {x} in one and {y} in the other"),
        _ => format!("the token {token:?} is in one alone"),
    })
}

/// The steps of a normaliser or pre-tokeniser, without the field that only changes offsets in the text.
fn steps(value: &Value) -> Vec<Value> {
    let inner = ["normalizers", "pretokenizers"]
        .iter()
        .find_map(|key| value.get(key)?.as_array());
    match inner {
        Some(inner) => inner.iter().flat_map(steps).collect(),
        None if value.is_null() => Vec::new(),
        None => {
            let mut step = value.clone();
            if let Some(fields) = step.as_object_mut() {
                fields.remove("trim_offsets");
            }
            vec![step]
        }
    }
}

/// First difference of two models with equal vocabularies.
fn models(ours: &Value, theirs: &Value) -> Option<String> {
    let none = Value::Null;
    let keys = [ours, theirs]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|m| m.keys());
    for key in keys {
        // An empty prefix or suffix is the same as null.
        let get = |model: &'_ Value| match model.get(key) {
            Some(Value::String(text)) if text.is_empty() => Value::Null,
            value => value.unwrap_or(&none).clone(),
        };
        let (a, b) = (get(ours), get(theirs));
        if a == b || (key == "vocab" && a.is_object() && b.is_object()) {
            continue;
        }
        if let (Some(a), Some(b)) = (a.as_array(), b.as_array()) {
            let at = a.iter().zip(b).position(|(x, y)| x != y);
            return Some(match at {
                Some(at) => format!(
                    "entry {at} of `{key}` is {} in one and {} in the other",
                    a[at], b[at]
                ),
                None => format!(
                    "`{key}` has {} entries in one and {} in the other",
                    a.len(),
                    b.len()
                ),
            });
        }
        return Some(format!("`{key}` of the model is not the same in both"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain() -> Value {
        json!({
            "added_tokens": [{ "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true }],
            "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "unk_token": null, "continuing_subword_prefix": null,
                "vocab": { "</s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5 },
                "merges": [["a", "b"], ["b", "c"]] },
        })
    }

    fn read(json: &Value) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        Tokenizer::from_file(&path, None).unwrap()
    }

    fn with(pointer: &str, value: Value) -> Tokenizer {
        let mut json = plain();
        *json.pointer_mut(pointer).expect("a place in it") = value;
        read(&json)
    }

    #[test]
    fn what_changes_ids_is_named() {
        let one = read(&plain());
        for (pointer, value, says) in [
            (
                "/model/vocab",
                json!({ "</s>": 0, "a": 2, "b": 1, "c": 3, "ab": 4, "bc": 5 }),
                "\"a\" has id 1 in one and 2",
            ),
            (
                "/model/vocab",
                json!({ "</s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "x": 6 }),
                "\"x\" is in one alone",
            ),
            (
                "/model/merges",
                json!([["b", "c"], ["a", "b"]]),
                "entry 0 of `merges`",
            ),
            (
                "/model/merges",
                json!([["a", "b"]]),
                "`merges` has 2 entries in one and 1",
            ),
            ("/normalizer", json!({ "type": "Lowercase" }), "normaliser"),
            ("/pre_tokenizer/use_regex", json!(false), "pre-tokeniser"),
            (
                "/added_tokens/0/lstrip",
                json!(true),
                "added token \"</s>\"",
            ),
            ("/model/unk_token", json!("a"), "`unk_token`"),
        ] {
            let other = with(pointer, value);
            let said = one.differs_from(&other).expect(pointer);
            assert!(said.contains(says), "{said}");
            assert!(said.contains("tokenizer.json"), "{said}");
            assert!(other.differs_from(&one).is_some());
        }
    }

    #[test]
    fn what_changes_no_id_is_no_difference() {
        let one = read(&plain());
        assert_eq!(one.differs_from(&one), None);
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
        let step = plain()["pre_tokenizer"].clone();
        for (pointer, value) in [
            ("/decoder", bytes.clone()),
            ("/post_processor", bytes),
            ("/pre_tokenizer/trim_offsets", json!(false)),
            (
                "/pre_tokenizer",
                json!({ "type": "Sequence", "pretokenizers": [step] }),
            ),
            ("/model/merges", json!(["a b", "b c"])),
            ("/model/continuing_subword_prefix", json!("")),
            ("/added_tokens/0/special", json!(false)),
        ] {
            assert_eq!(one.differs_from(&with(pointer, value)), None, "{pointer}");
        }
    }
}
