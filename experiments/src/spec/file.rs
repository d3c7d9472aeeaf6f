//! A TOML file's text, and the line of each key.

use std::path::{Path, PathBuf};

use abkd_host::files;
use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::suggest::with_nearest_key;

/// One step of the path to a value.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A key of a table.
    Key(&'a str),
    /// An entry of an array, from 0.
    Index(usize),
}

/// A TOML file.
#[derive(Clone, Debug)]
pub struct TomlFile {
    path: PathBuf,
    text: String,
}

impl TomlFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_text(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.into(),
            text,
        })
    }

    /// A file with the given text; nothing is read from disk.
    pub fn of(path: &Path, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole file as a value; an error names file, line and the nearest known key.
    ///
    /// # Errors
    ///
    /// When it does not have the shape of `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(&self.text).map_err(|error| {
            let line = error.span().map_or(1, |span| self.line(span.start));
            anyhow!(
                "{}:{line}: {}",
                self.path.display(),
                with_nearest_key(error.message())
            )
        })
    }

    /// `path:line` of a value, or of the last step to it that exists; the file's path alone if none does.
    pub fn place(&self, steps: &[Step]) -> String {
        let path = self.path.display();
        match self.walk(steps, |_| ()) {
            Some(at) => format!("{path}:{}", self.line(at)),
            None => path.to_string(),
        }
    }

    /// Line of a value, if it is there.
    pub fn line_of(&self, steps: &[Step]) -> Option<usize> {
        self.walk(steps, |_| ()).map(|at| self.line(at))
    }

    /// Whether a value is there.
    pub fn has(&self, steps: &[Step]) -> bool {
        let mut there = false;
        self.walk(steps, |_| there = true);
        there
    }

    /// Keys of a table; empty if there is no such table.
    pub fn keys(&self, steps: &[Step]) -> Vec<String> {
        let mut keys = Vec::new();
        self.walk(steps, |value| {
            if let DeValue::Table(table) = value {
                keys.extend(table.keys().map(|k| k.get_ref().to_string()));
            }
        });
        keys
    }

    /// Walks to a value; returns the offset of the last step that exists.
    fn walk(&self, steps: &[Step], found: impl FnOnce(&DeValue)) -> Option<usize> {
        let root = DeValue::Table(DeTable::parse(&self.text).ok()?.into_inner());
        let (mut value, mut at) = (&root, None);
        for step in steps {
            let next = match (step, value) {
                (Step::Key(key), DeValue::Table(table)) => table
                    .get_key_value(*key)
                    .map(|(k, v)| (v.get_ref(), k.span().start)),
                (Step::Index(i), DeValue::Array(array)) => {
                    array.get(*i).map(|v| (v.get_ref(), v.span().start))
                }
                _ => None,
            };
            let Some((next, start)) = next else {
                return at;
            };
            (value, at) = (next, Some(start));
        }
        found(value);
        at
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Index, Key};
    use super::*;

    #[test]
    fn a_key_is_found_on_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let text = "name = 1\n[[rows]]\nlabel = 2\n[[rows]]\nlabel = 3\nsettings = { k = 4 }\n\
                    [methods.gkd.settings]\n\nbeta = 5\n";
        std::fs::write(&path, text).unwrap();
        let file = TomlFile::read(&path).unwrap();
        let line = |steps: &[Step]| {
            let place = file.place(steps);
            place.rsplit(':').next().unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(line(&[Key("name")]), 1);
        assert_eq!(line(&[Key("rows"), Index(1), Key("label")]), 5);
        let k = [Key("rows"), Index(1), Key("settings"), Key("k")];
        assert_eq!(line(&k), 6);
        let beta = ["methods", "gkd", "settings", "beta"].map(Key);
        assert_eq!(line(&beta), 9);
        assert_eq!(file.keys(&beta[..3]), ["beta"]);
        assert!(file.keys(&[Key("rows"), Index(2)]).is_empty());
        assert!(file.has(&beta) && !file.has(&[Key("rows"), Index(2)]));
        // a missing key is reported at its table
        assert_eq!(line(&[Key("rows"), Index(1), Key("none")]), 4);
        assert_eq!(file.place(&[Key("none")]), path.display().to_string());
        let folder = format!("{:#}", TomlFile::read(dir.path()).unwrap_err());
        assert!(folder.contains("this is a folder"), "{folder}");
    }
}
