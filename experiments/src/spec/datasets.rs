//! The test sets: `experiments/datasets.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use abkd_data::Columns;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::file::Step::Key;
use super::file::{Step, TomlFile};
use crate::suggest::nearest;

/// Test sets of a project without its own file.
const BUILT_IN: &str = include_str!("../../datasets.toml");
/// Reserved names: other inputs, and the mean over all sets.
const TAKEN: [&str; 5] = ["train", "valid", "text", "tokenizer", "all"];

/// A test set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestSet {
    /// Name in experiments and result files: the name of its TOML table.
    #[serde(default)]
    pub id: String,
    /// Heading in tables and pictures, and name in lists.
    pub label: String,
    /// JSONL or Parquet file in the data folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// JSONL or Parquet file, relative to the project's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Column names, where they differ from the default ones.
    #[serde(default, skip_serializing_if = "Columns::is_default")]
    pub columns: Columns,
    /// Use only the last N examples of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
    /// How many examples the paper evaluates on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Repository and file on the Hugging Face Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<[String; 2]>,
}

/// All test sets of a project.
///
/// # Errors
///
/// A file with an unknown key; a set with none or both of `file` and `path`, or with an invalid name.
pub fn test_sets(root: &Path) -> Result<Vec<TestSet>> {
    let path = root.join("experiments/datasets.toml");
    let file = if path.exists() {
        TomlFile::read(&path)?
    } else {
        TomlFile::of(&path, BUILT_IN)
    };
    checked(file.parse()?, &file, &[])
}

/// Checks the sets in the tables below `section`; returns them in file order.
pub(super) fn checked(
    tables: BTreeMap<String, TestSet>,
    file: &TomlFile,
    section: &[Step],
) -> Result<Vec<TestSet>> {
    let mut tables: Vec<(String, TestSet)> = tables.into_iter().collect();
    tables.sort_by_key(|(id, _)| file.line_of(&table_of(section, id)));
    let mut sets = Vec::new();
    for (id, set) in tables {
        let place = file.place(&table_of(section, &id));
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        ensure!(
            !id.is_empty() && id.len() <= 60 && id.chars().all(good),
            "{place}: [{id}]: the id of a set has up to 60 lowercase letters, digits, _ and -"
        );
        ensure!(
            !TAKEN.contains(&id.as_str()),
            "{place}: [{id}]: this name is taken; give the set another"
        );
        ensure!(
            set.id.is_empty(),
            "{place}: [{id}] id: the id is the table's name; leave the key out"
        );
        ensure!(
            set.file.is_some() != set.path.is_some(),
            "{place}: [{id}]: it needs one of `file` (in the data folder) and `path` (from the project's folder)"
        );
        ensure!(!set.label.trim().is_empty(), "{place}: [{id}] label: empty");
        ensure!(
            set.last != Some(0),
            "{place}: [{id}] last = 0: it must be 1 or more"
        );
        sets.push(TestSet { id, ..set });
    }
    Ok(sets)
}

/// Path to a set's table.
fn table_of<'a>(section: &[Step<'a>], id: &'a str) -> Vec<Step<'a>> {
    section.iter().copied().chain([Key(id)]).collect()
}

/// The sets with these ids, in the order of `ids`.
pub(super) fn chosen(known: &[TestSet], ids: &[String]) -> Result<Vec<TestSet>> {
    let set = |id: &String| match known.iter().find(|set| set.id == *id) {
        Some(set) => Ok(set.clone()),
        None => {
            let ids: Vec<&str> = known.iter().map(|set| set.id.as_str()).collect();
            bail!(
                "unknown data set `{id}`{}; known: {}; add a set of your own as a table in \
                 experiments/datasets.toml, or as [datasets.NAME] in a profile",
                nearest(id, ids.iter().copied()),
                ids.join(", ")
            )
        }
    };
    ids.iter().map(set).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_papers_five_are_there_without_a_file_and_what_is_wrong_in_one_is_named() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(test_sets(root.path()).unwrap().len(), 5);
        fs::create_dir(root.path().join("experiments")).unwrap();
        let path = root.path().join("experiments/datasets.toml");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            test_sets(root.path())
        };
        let own = read("[mine]\nlabel = \"Mine\"\npath = \"a.jsonl\"\n").unwrap();
        assert_eq!((own.len(), own[0].id.as_str()), (1, "mine"));
        for (text, says) in [
            ("[Mine]\nlabel = \"a\"\npath = \"a\"\n", "lowercase letters"),
            (
                "[\"a/b\"]\nlabel = \"a\"\npath = \"a\"\n",
                "lowercase letters",
            ),
            ("[train]\nlabel = \"a\"\npath = \"a\"\n", "taken"),
            ("[a]\nlabel = \"a\"\n", "one of `file`"),
            (
                "[a]\nlabel = \"a\"\npath = \"a\"\nfile = \"b\"\n",
                "one of `file`",
            ),
            ("[a]\nlabel = \" \"\npath = \"a\"\n", "label: empty"),
            (
                "[a]\nid = \"b\"\nlabel = \"a\"\npath = \"a\"\n",
                "leave the key out",
            ),
            ("[a]\nlabel = \"a\"\npaht = \"a\"\n", "did you mean `path`"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(
                error.contains(says) && error.contains("datasets.toml:"),
                "{text}: {error}"
            );
        }
        let error = chosen(&own, &["mien".into()]).unwrap_err().to_string();
        assert!(error.contains("did you mean `mine`"), "{error}");
    }
}
