//! The keys of a JSON file that describes a model; each is taken once. A key that is left at the end is refused, since it may
//! change what the model computes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use abkd_host::files;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Error;

/// Largest JSON file that describes a model.
const LIMIT: u64 = 32 << 20;
/// Longest value that a message shows.
const SHOWN: usize = 60;

/// Reads a JSON file.
pub(crate) fn read(path: &Path) -> Result<Value, Error> {
    let bytes = files::read(path, LIMIT).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(Error::json(path))
}

/// Values that leave the function unchanged. `null` is one of them wherever `transformers` treats it as the neutral value.
#[derive(Clone, Copy)]
pub(crate) enum Neutral {
    /// Every value.
    Any,
    /// `null`.
    Unset,
    /// `false` or `null`.
    False,
    /// `true`.
    True,
    /// 0 or `null`.
    Zero,
    /// 1 or `null`.
    One,
    /// Empty: `null`, or an empty list, table or text.
    Empty,
    /// `null`, or one of these words.
    Words(&'static [&'static str]),
    /// `true`, `false`, `null`, or one of these words.
    FlagOrWords(&'static [&'static str]),
    /// `null`, or a list of only this word.
    All(&'static str),
}

impl Neutral {
    fn has(self, value: &Value) -> bool {
        let is = |number: f64| value.as_f64() == Some(number);
        match self {
            Self::Any => true,
            Self::True => *value == Value::Bool(true),
            _ if value.is_null() => true,
            Self::Unset => false,
            Self::False => *value == Value::Bool(false),
            Self::Zero => is(0.0),
            Self::One => is(1.0),
            Self::Empty => match value {
                Value::Array(list) => list.is_empty(),
                Value::Object(table) => table.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            },
            Self::Words(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::FlagOrWords(words) => value.is_boolean() || Self::Words(words).has(value),
            Self::All(word) => {
                let list = value.as_array();
                list.is_some_and(|list| list.iter().all(|x| x.as_str() == Some(word)))
            }
        }
    }

    fn hint(self) -> String {
        match self {
            Self::Any => "any value".into(),
            Self::Unset => "only null".into(),
            Self::False => "only false".into(),
            Self::True => "only true".into(),
            Self::Zero => "only 0".into(),
            Self::One => "only 1".into(),
            Self::Empty => "only null, or an empty list, table or text".into(),
            Self::Words(words) => format!("only {}", words.join(", ")),
            Self::FlagOrWords(words) => format!("only true, false, {}", words.join(", ")),
            Self::All(word) => format!("only a list of {word}"),
        }
    }
}

/// The keys of a table that are not taken yet.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    /// Name of the table in the file and a dot, for messages; empty for the file itself.
    prefix: String,
    map: Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// The keys of a file.
    ///
    /// # Errors
    ///
    /// Where the file is not a table.
    pub fn new(path: &'a Path, value: Value) -> Result<Self, Error> {
        let keys = |map| Self {
            path,
            prefix: String::new(),
            map,
        };
        match value {
            Value::Object(map) => Ok(keys(map)),
            other => Err(keys(Map::new()).refuse("the file", &other, "a table of keys: { ... }")),
        }
    }

    /// An error that names file, key, value and what is supported.
    pub fn refuse(&self, key: &str, value: impl Display, hint: impl Into<String>) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            key: format!("{}{key}", self.prefix),
            value: shortened(&value.to_string()),
            hint: hint.into(),
        }
    }

    fn missing(&self, key: &str) -> Error {
        self.refuse(
            key,
            "absent",
            "it is required; the file published with the checkpoint has it",
        )
    }

    /// Whether the key is there, with any value.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether no key is left.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A value other than `null`.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    /// Moves the value of `other`, another name of the key, to `key`.
    ///
    /// # Errors
    ///
    /// Where both names have a value and the values differ.
    pub fn rename(&mut self, other: &str, key: &str) -> Result<(), Error> {
        let Some(value) = self.map.remove(other) else {
            return Ok(());
        };
        match self.map.get(key) {
            Some(known) if *known != value => Err(self.refuse(
                other,
                value,
                format!("`{key}` is {known}, and both are names of the same setting"),
            )),
            _ => {
                self.map.insert(key.into(), value);
                Ok(())
            }
        }
    }

    /// A table in the table.
    pub fn table(&mut self, key: &str) -> Result<Option<Keys<'a>>, Error> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys {
                path: self.path,
                prefix: format!("{}{key}.", self.prefix),
                map,
            })),
            Some(other) => Err(self.refuse(key, other, "a table of keys, or null")),
        }
    }

    /// A size that may be left out.
    pub fn optional_size(&mut self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let whole = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match whole {
            Some(size) => Ok(Some(size)),
            None => Err(self.refuse(key, value, "a whole number")),
        }
    }

    /// A size; the default replaces a key that is absent, and `null` is refused.
    pub fn size(&mut self, key: &str, default: Option<usize>) -> Result<usize, Error> {
        let there = self.has(key);
        match (self.optional_size(key)?, default) {
            (Some(size), _) => Ok(size),
            (None, Some(default)) if !there => Ok(default),
            (None, _) if there => Err(self.refuse(key, "null", "a whole number")),
            (None, _) => Err(self.missing(key)),
        }
    }

    /// A number in a range; the default replaces a key that is absent, and `null` is refused.
    pub fn number(
        &mut self,
        key: &str,
        default: Option<f64>,
        range: RangeInclusive<f64>,
    ) -> Result<f64, Error> {
        let value = match (self.map.remove(key), default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.missing(key)),
        };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => {
                let hint = format!("a number from {:?} to {:?}", range.start(), range.end());
                Err(self.refuse(key, value, hint))
            }
        }
    }

    /// `true` or `false`; `null` is refused, since `transformers` treats it as false, whatever the default.
    pub fn flag(&mut self, key: &str, default: bool) -> Result<bool, Error> {
        match self.map.remove(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.refuse(key, other, "true or false")),
        }
    }

    /// A word out of a list, which the hint shows.
    pub fn word(&mut self, key: &str, default: &str, words: &[&str]) -> Result<String, Error> {
        let Some(value) = self.map.remove(key) else {
            return Ok(default.into());
        };
        match value.as_str() {
            Some(word) if words.contains(&word) => Ok(word.into()),
            Some(word) => Err(self.refuse(key, word, format!("only {}", words.join(", ")))),
            None => Err(self.refuse(key, value, format!("only {}", words.join(", ")))),
        }
    }

    /// All keys that are left; their values must be words.
    pub fn words(self) -> Result<BTreeMap<String, String>, Error> {
        let mut words = BTreeMap::new();
        for (key, value) in &self.map {
            match value {
                Value::String(word) => words.insert(key.clone(), word.clone()),
                other => return Err(self.refuse(key, other, "a text")),
            };
        }
        Ok(words)
    }

    /// Token ids below `vocab`: none, one or a list of them. Each counts once.
    pub fn ids(&mut self, key: &str, vocab: usize) -> Result<Vec<u32>, Error> {
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let mut ids = Vec::new();
        for item in value.as_array().unwrap_or(&vec![value.clone()]) {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            match id {
                Some(id) if (id as usize) < vocab => {
                    if !ids.contains(&id) {
                        ids.push(id);
                    }
                }
                _ => {
                    let hint = format!(
                        "token ids from 0 to {}, since vocab_size is {vocab}; null if there is none",
                        vocab.saturating_sub(1)
                    );
                    return Err(self.refuse(key, &value, hint));
                }
            }
        }
        Ok(ids)
    }

    /// A token id that is not used here; a value that is no id counts as absent, such as `-1` in some files.
    pub fn id(&mut self, key: &str) -> Option<u32> {
        self.take(key)?.as_u64()?.try_into().ok()
    }

    /// Takes the keys of a list whose values leave the function unchanged.
    ///
    /// # Errors
    ///
    /// Where a value would change the function.
    pub fn pass(&mut self, list: &[(&str, Neutral)]) -> Result<(), Error> {
        for (key, neutral) in list {
            if let Some(value) = self.map.remove(*key)
                && !neutral.has(&value)
            {
                return Err(self.refuse(key, value, neutral.hint()));
            }
        }
        Ok(())
    }

    /// Takes the keys for which `known` is true, whatever their values.
    pub fn pass_where(&mut self, known: impl Fn(&str) -> bool) {
        self.map.retain(|key, _| !known(key));
    }

    /// Refuses every key that is left, unless it is `null`.
    pub fn finish(self) -> Result<(), Error> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(self.refuse(
                key,
                value,
                "no key known here, so it may change what the model computes; remove it if it does not",
            )),
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.into(),
    }
}

/// Token ids as `transformers` writes them: nothing, one, or a list.
pub(crate) fn ids_to_json<S: serde::Serializer>(
    ids: &[u32],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match ids {
        [] => serializer.serialize_none(),
        [id] => serializer.serialize_u32(*id),
        ids => ids.serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(value: Value) -> Keys<'static> {
        Keys::new(Path::new("config.json"), value).unwrap()
    }

    #[test]
    fn a_key_that_nobody_took_is_refused_unless_it_is_null() {
        assert!(keys(json!({"a": null})).finish().is_ok());
        let mut two = keys(json!({"a": 1, "b": [2]}));
        two.pass(&[("a", Neutral::Any)]).unwrap();
        let error = two.finish().unwrap_err().to_string();
        assert!(error.starts_with("config.json: `b` is [2]"), "{error}");
    }

    #[test]
    fn a_neutral_value_passes_and_no_other() {
        for (neutral, good, bad) in [
            (Neutral::Unset, json!(null), json!(false)),
            (Neutral::False, json!(false), json!(true)),
            (Neutral::False, json!(null), json!(0)),
            (Neutral::True, json!(true), json!(null)),
            (Neutral::Zero, json!(0.0), json!(0.1)),
            (Neutral::One, json!(1), json!("1")),
            (Neutral::Empty, json!({}), json!({"0": [1]})),
            (Neutral::Empty, json!([]), json!([0])),
            (Neutral::Words(&["none"]), json!("none"), json!("all")),
            (
                Neutral::All("full"),
                json!(["full", "full"]),
                json!(["full", "slid"]),
            ),
        ] {
            let with = |value: &Value| keys(json!({"k": value})).pass(&[("k", neutral)]);
            assert!(with(&good).is_ok(), "{good}");
            let error = with(&bad).unwrap_err().to_string();
            assert!(error.contains(&format!("`k` is {bad}")), "{error}");
        }
    }

    #[test]
    fn ids_are_one_or_a_list_and_in_the_vocabulary() {
        let ids = |value| keys(json!({"eos": value})).ids("eos", 5);
        assert!(ids(json!(null)).unwrap().is_empty());
        assert_eq!(ids(json!(4)).unwrap(), [4]);
        assert_eq!(ids(json!([3, 0, 3])).unwrap(), [3, 0]);
        for bad in [
            json!(5),
            json!(-1),
            json!([0, 5]),
            json!("2"),
            json!([[0]]),
            json!(1.5),
        ] {
            let error = ids(bad).unwrap_err().to_string();
            assert!(error.contains("token ids from 0 to 4"), "{error}");
        }
    }

    #[test]
    fn two_names_of_a_key_must_agree() {
        let mut one = keys(json!({"hidden_size": 8}));
        one.rename("hidden_size", "n_embd").unwrap();
        assert_eq!(one.size("n_embd", Some(1)).unwrap(), 8);
        let mut two = keys(json!({"hidden_size": 8, "n_embd": 9}));
        assert!(two.rename("hidden_size", "n_embd").is_err());
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let error = keys(json!({"k": "x".repeat(1000)})).finish().unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
