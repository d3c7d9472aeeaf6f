use std::collections::BTreeMap;
use std::path::Path;

use crate::{Error, Example, read_jsonl};

/// Training, validation and test examples.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSets {
    /// Training examples.
    pub train: Vec<Example>,
    /// Validation examples, for the validation curve and the choice of the best weights.
    pub valid: Vec<Example>,
    /// Test sets by their ids.
    pub tests: BTreeMap<String, Vec<Example>>,
}

impl DataSets {
    /// The examples of a test set; empty if there is no such set.
    pub fn test(&self, id: &str) -> &[Example] {
        self.tests.get(id).map_or(&[], Vec::as_slice)
    }
}

/// A test set in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestFile<'a> {
    /// Id of the set.
    pub id: &'a str,
    /// The JSONL or Parquet file, relative to the folder.
    pub file: &'a Path,
}

/// Reads the sets of a folder: `dolly/train.jsonl` if `training`, `dolly/dev.jsonl` if `validation`, and the test sets of
/// `tests`. Other files may be missing.
///
/// # Errors
///
/// A file that is missing, or a line that is not an example.
pub fn from_folder(
    root: &Path,
    training: bool,
    validation: bool,
    tests: &[TestFile],
) -> Result<DataSets, Error> {
    let read = |file: &Path, what: &str| {
        let path = root.join(file);
        if path.exists() {
            read_jsonl(&path)
        } else {
            Err(Error::MissingSet {
                path,
                what: what.into(),
            })
        }
    };
    let tests = tests.iter().map(|set| {
        let what = format!("the test set {}", set.id);
        Ok((set.id.to_owned(), read(set.file, &what)?))
    });
    let part = |asked: bool, file: &str, what: &str| match asked {
        true => read(Path::new(file), what),
        false => Ok(Vec::new()),
    };
    Ok(DataSets {
        train: part(training, "dolly/train.jsonl", "the training examples")?,
        valid: part(validation, "dolly/dev.jsonl", "the validation examples")?,
        tests: tests.collect::<Result<_, Error>>()?,
    })
}
