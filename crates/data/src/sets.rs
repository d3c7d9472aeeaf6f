use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use crate::{Error, Example, read_jsonl};

/// One of the paper's five test sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TestSet {
    /// Dolly Eval: the training distribution.
    Dolly,
    /// Self-Instruct, user-oriented instructions.
    SelfInstruct,
    /// Vicuna Eval: long open answers.
    Vicuna,
    /// Super-NaturalInstructions: task definitions, several references.
    SuperNatural,
    /// Unnatural Instructions.
    Unnatural,
}

impl TestSet {
    /// All five, in the order of the paper's tables.
    pub const ALL: [Self; 5] = [
        Self::Dolly,
        Self::SelfInstruct,
        Self::Vicuna,
        Self::SuperNatural,
        Self::Unnatural,
    ];

    /// Name in experiment and result files.
    pub fn id(self) -> &'static str {
        [
            "dolly",
            "self_instruct",
            "vicuna",
            "super_natural",
            "unnatural",
        ][self as usize]
    }

    /// Name in the paper.
    pub fn label(self) -> &'static str {
        [
            "Dolly Eval",
            "Self-Instruct",
            "Vicuna Eval",
            "Super-Natural",
            "Unnatural",
        ][self as usize]
    }

    fn file(self) -> &'static str {
        [
            "dolly/valid.jsonl",
            "self-inst/valid.jsonl",
            "vicuna/valid.jsonl",
            "sinst/11_/valid.jsonl",
            "uinst/valid.jsonl",
        ][self as usize]
    }
}

impl FromStr for TestSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|s| s.id() == name)
            .ok_or_else(|| {
                let near = Self::ALL.map(|s| (strsim::damerau_levenshtein(name, s.id()), s.id()));
                let nearest = near
                    .into_iter()
                    .min()
                    .filter(|(d, id)| *d <= 1 + id.len() / 3);
                Error::UnknownSet {
                    name: name.into(),
                    nearest: nearest
                        .map_or(String::new(), |(_, id)| format!("; did you mean `{id}`?")),
                }
            })
    }
}

/// Training, validation and test examples.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSets {
    /// Training examples.
    pub train: Vec<Example>,
    /// Validation examples: the curve, and which epoch is kept.
    pub valid: Vec<Example>,
    pub(crate) tests: BTreeMap<TestSet, Vec<Example>>,
}

impl DataSets {
    /// The examples of a test set.
    ///
    /// # Panics
    ///
    /// When it was not asked for, see [`from_folder_only`].
    pub fn test(&self, set: TestSet) -> &[Example] {
        &self.tests[&set]
    }
}

/// Reads the sets from a folder: `dolly/{train,dev,valid}.jsonl` (training, validation, Dolly Eval),
/// `self-inst/valid.jsonl`, `vicuna/valid.jsonl`, `sinst/11_/valid.jsonl`, `uinst/valid.jsonl`.
///
/// # Errors
///
/// A file that is missing, or a line that is not an example.
pub fn from_folder(root: &Path) -> Result<DataSets, Error> {
    from_folder_only(root, true, &TestSet::ALL)
}

/// As [`from_folder`], but of the test sets only those of `tests`, and no training examples unless `training`: what is not
/// asked for need not be there.
///
/// # Errors
///
/// As [`from_folder`].
pub fn from_folder_only(root: &Path, training: bool, tests: &[TestSet]) -> Result<DataSets, Error> {
    let read = |file: &str, what: &'static str| {
        let path = root.join(file);
        if path.exists() {
            read_jsonl(&path)
        } else {
            Err(Error::MissingSet { path, what })
        }
    };
    let tests = tests
        .iter()
        .map(|&set| Ok((set, read(set.file(), set.label())?)));
    Ok(DataSets {
        train: if training {
            read("dolly/train.jsonl", "the training examples")?
        } else {
            Vec::new()
        },
        valid: read("dolly/dev.jsonl", "the validation examples")?,
        tests: tests.collect::<Result<_, Error>>()?,
    })
}
