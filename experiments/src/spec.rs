//! Specs: an experiment's TOML file, which names rows and columns, and a profile, which names the scale.

mod blame;
mod check;
mod datasets;
mod experiment;
mod file;
mod grid;
mod profile;
mod profile_check;
mod shape;

use std::path::{Path, PathBuf};

use abkd_training::{Method, Settings};
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

pub use check::{ENDINGS, Validated};
pub use datasets::{TestSet, test_sets};
pub use experiment::{Experiment, Kind, Row, STUDENT, Start, TEACHER, TextTerm};
use file::Step;
use file::Step::Key;
pub(crate) use file::TomlFile;
pub use grid::{Grid, Point};
pub use profile::{
    DataSpec, DecodingSpec, Layers, MethodSpec, ModelSpec, Profile, SlurmSpec, Source, Template,
    TimingSpec, ValidationSpec,
};

use crate::backend::Cards;
use crate::results::Titles;
use crate::suggest::{nearest, with_nearest_key};

/// An experiment at a scale, checked.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The experiment.
    pub experiment: Experiment,
    /// The profile.
    pub profile: Profile,
    /// The rows, fully resolved.
    pub recipes: Vec<Recipe>,
    /// The test sets of the table.
    pub tests: Vec<TestSet>,
    /// The grid that the rows come from, if any.
    pub grid: Grid,
    /// Cards to compute on.
    pub cards: Cards,
    /// All test sets of the project.
    known: Vec<TestSet>,
    /// The two files, for the locations in later errors.
    files: Files,
    /// The profile's pair in use, if it has several.
    pair: Option<String>,
    /// Sampling seeds that are given but left out: the likeliest tokens are the same with each.
    needless_seeds: usize,
}

/// How the student of a row is trained. Settings of the row override those of the profile's `[methods.ID]`, which override
/// those of the profile for all methods.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The row's label.
    pub label: String,
    /// Short name for ids of tasks: the method, or the divergence of plain distillation.
    pub short: String,
    /// The method.
    pub method: Method,
    /// The training's settings.
    pub settings: Settings,
    /// Which student the training starts from.
    pub start: Start,
    /// Share of the divergence in the loss on the data.
    pub kd_ratio: f64,
    /// Whether there is a language-modelling term on plain text.
    pub with_text: bool,
    /// Seeds of the trainings.
    pub seeds: Vec<u64>,
}

/// Note for rows that ask for a base that is no language model.
pub const REPLACED: &str =
    "Every row starts from the initialised student: the base of this profile is no language model.";

/// The files of a spec.
#[derive(Clone, Debug)]
struct Files {
    experiment: TomlFile,
    profile: TomlFile,
}

impl Spec {
    /// Reads and checks `experiments/<experiment>.toml` and `experiments/profiles/<profile>.toml`
    /// below `root`; either may be a path instead.
    ///
    /// # Errors
    ///
    /// An unknown name or key (with the nearest known one), a value out of range, each with its file.
    pub fn load(root: &Path, experiment: &str, profile: &str) -> Result<Self> {
        let folder = root.join("experiments");
        let experiment = TomlFile::read(&find(&folder, experiment, "experiment")?)?;
        let profile = TomlFile::read(&find(&folder.join("profiles"), profile, "profile")?)?;
        Self::of(root, experiment, profile)
    }

    /// Checks the two files of an experiment at a scale.
    pub(crate) fn of(root: &Path, experiment: TomlFile, profile: TomlFile) -> Result<Self> {
        let files = Files {
            experiment,
            profile,
        };
        let mut experiment: Experiment = files.experiment.parse()?;
        let (rows, grid) = grid::expand(&files.experiment, &experiment.rows, &experiment.grid)?;
        experiment.rows = rows;
        let (mut profile, pair) = parse_profile(&files, experiment.pair.as_deref())?;
        profile.evaluation = decoding(&files.experiment, &profile, &experiment.evaluation)?;
        let own = profile.datasets.clone();
        let own = datasets::checked(own, &files.profile, &[Key("datasets")])?;
        let mut known = datasets::test_sets(root)?;
        known.retain(|set| !own.iter().any(|o| o.id == set.id));
        known.extend(own);
        let mut spec = Self {
            profile,
            experiment,
            recipes: Vec::new(),
            tests: Vec::new(),
            grid,
            cards: Cards::default(),
            known,
            files,
            pair,
            needless_seeds: 0,
        };
        if let Some(seeds) = spec.profile.seeds.clone() {
            spec.experiment.seeds = seeds;
        }
        let seeds = &mut spec.experiment.seeds;
        if spec.profile.evaluation.top_k == 1 && seeds.len() > 1 {
            spec.needless_seeds = seeds.len() - 1;
            seeds.truncate(1);
        }
        if let Some(seeds) = spec.experiment.training_seeds.clone() {
            spec.profile.training_seeds = Some(seeds);
        }
        spec.check()?;
        spec.check_other_pairs()?;
        spec.resolve()?;
        Ok(spec)
    }

    /// Resolves rows and data sets; later changes of them do not reach the run.
    ///
    /// # Errors
    ///
    /// A row or a data set that is not valid.
    pub fn resolve(&mut self) -> Result<()> {
        let rows = self.experiment.rows.iter();
        self.recipes = rows.map(|row| self.recipe(row)).collect::<Result<_>>()?;
        self.tests = datasets::chosen(&self.known, &self.experiment.datasets)?;
        Ok(())
    }

    /// `path:line` of a key of the experiment's file.
    pub fn in_experiment(&self, keys: &[&str]) -> String {
        self.files.experiment.place(&steps(keys))
    }

    /// `path:line` of a key of the profile's file: in the experiment's pair if the pair sets the key, and in the experiment if
    /// it sets the key of `[evaluation]`.
    pub fn in_profile(&self, keys: &[&str]) -> String {
        if let ["evaluation", key] = keys
            && self.experiment.evaluation.contains_key(*key)
        {
            return self.in_experiment(keys);
        }
        let file = &self.files.profile;
        if let Some(pair) = &self.pair {
            let own = [&["pairs", pair][..], keys].concat();
            if file.has(&steps(&own)) {
                return file.place(&steps(&own));
            }
        }
        file.place(&steps(keys))
    }

    /// `path:line` of the training seeds in use.
    fn of_trainings(&self) -> String {
        match self.experiment.training_seeds {
            Some(_) => self.in_experiment(&["training_seeds"]),
            None => self.in_profile(&["training_seeds"]),
        }
    }

    /// Headings of the data sets.
    pub fn titles(&self) -> Titles {
        let sets = self.tests.iter();
        sets.map(|set| (set.id.clone(), set.label.clone()))
            .collect()
    }

    /// Notes about the two files that are not errors.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let (Some(pair), None) = (&self.experiment.pair, &self.pair) {
            notes.push(format!(
                "{}: pair = \"{pair}\": profile `{}` has one pair of models, which is used",
                self.in_experiment(&["pair"]),
                self.profile.name
            ));
        }
        if self.starts_are_replaced() {
            notes.push(REPLACED.into());
        }
        if self.needless_seeds > 0 {
            notes.push(format!(
                "{}: top_k = 1: the likeliest tokens are the same with each sampling seed; the first is used, {} left out",
                self.in_profile(&["evaluation", "top_k"]),
                self.needless_seeds
            ));
        }
        notes.extend(self.padding_note());
        notes
    }

    /// What is left out of padded vocabularies, if anything.
    pub fn padding_note(&self) -> Option<String> {
        let models = [&self.profile.teacher, &self.profile.student];
        let tokens = models.iter().find_map(|model| model.vocabulary)?;
        Some(format!(
            "the tokenizer has {tokens} tokens: rows of embedding and head beyond them are left out"
        ))
    }

    /// Checks the profile's pairs that this experiment does not use.
    fn check_other_pairs(&self) -> Result<()> {
        for name in self.profile.pairs.keys() {
            if self.pair.as_ref() == Some(name) {
                continue;
            }
            let (profile, pair) = parse_profile(&self.files, Some(name.as_str()))?;
            let other = Self {
                profile,
                pair,
                ..self.clone()
            };
            other.check_profile()?;
        }
        Ok(())
    }

    /// Whether a row asks to start from a base that is no language model, and gets the initialised student.
    pub fn starts_are_replaced(&self) -> bool {
        let p = &self.profile;
        let mut rows = self.experiment.rows.iter();
        rows.any(|row| row.asked_start(p) != row.start(p))
    }

    /// Number of tasks that run in parallel, at least one for each card; timed updates have the machine to themselves.
    pub fn jobs(&self) -> usize {
        match self.experiment.kind {
            Kind::Timing => 1,
            Kind::Table | Kind::Curve => self.profile.jobs.max(self.cards.count()),
        }
    }

    /// Computes on these cards. libtorch on a card is a backend of its own.
    pub fn use_cards(&mut self, cards: Cards) {
        self.profile.backend = cards.backend(&self.profile.backend).into();
        self.cards = cards;
    }
}

/// Reads `experiments/profiles/<name>.toml` below `root`, or `name` itself if it is a path.
///
/// # Errors
///
/// An unknown name or key.
pub fn load_profile(root: &Path, name: &str) -> Result<Profile> {
    read_toml(&find(&root.join("experiments/profiles"), name, "profile")?)
}

/// Keys as steps.
fn steps<'a>(keys: &[&'a str]) -> Vec<Step<'a>> {
    keys.iter().map(|&key| Key(key)).collect()
}

/// The profile and the pair in use. In `[pairs.NAME]`, `teacher` and `student` replace the file's sections, other tables are
/// merged into the file's, and all other keys replace the file's. A profile without pairs ignores the pair's name.
fn parse_profile(files: &Files, pair: Option<&str>) -> Result<(Profile, Option<String>)> {
    let file = &files.profile;
    let plain: Profile = file.parse()?;
    let Some(name) = pair.filter(|_| !plain.pairs.is_empty()) else {
        return Ok((plain, None));
    };
    let Some(changes) = plain.pairs.get(name) else {
        let known: Vec<&str> = plain.pairs.keys().map(String::as_str).collect();
        bail!(
            "{}: pair = \"{name}\": profile `{}` has no such pair{}; it has {} ({})",
            files.experiment.place(&[Key("pair")]),
            plain.name,
            nearest(name, known.iter().copied()),
            known.join(", "),
            file.place(&[Key("pairs")])
        );
    };
    let place = |key: &str| file.place(&[Key("pairs"), Key(name), Key(key)]);
    if let Some(key) = ["name", "pairs"].iter().find(|k| changes.contains_key(**k)) {
        bail!(
            "{}: `{key}`: a pair cannot set it; it belongs to the whole profile",
            place(key)
        );
    }
    let table: toml::Table = file.parse()?;
    let merge =
        |changes: &toml::Table| merged(&table, changes).map_err(|error| error.message().to_owned());
    let profile = with_changes(changes, merge, |key, message| {
        format!("{}: [pairs.{name}]: {message}", place(key))
    })?;
    Ok((profile, Some(name.to_owned())))
}

/// How an experiment decodes: the profile's `[evaluation]` with the keys that the experiment sets.
fn decoding(file: &TomlFile, profile: &Profile, changes: &toml::Table) -> Result<DecodingSpec> {
    let merge = |changes: &toml::Table| {
        let mut table = toml::Table::try_from(&profile.evaluation).map_err(|e| e.to_string())?;
        extend(&mut table, changes);
        let merged = table.try_into::<DecodingSpec>();
        merged.map_err(|error| error.message().to_owned())
    };
    with_changes(changes, merge, |key, message| {
        let place = file.place(&[Key("evaluation"), Key(key)]);
        format!("{place}: [evaluation]: {message}")
    })
}

/// What `merge` makes of a table's changes. `said` makes its error's text, from the key that it is about.
fn with_changes<T>(
    changes: &toml::Table,
    merge: impl Fn(&toml::Table) -> Result<T, String>,
    said: impl FnOnce(&str, &str) -> String,
) -> Result<T> {
    merge(changes).map_err(|message| {
        let key = blame::culprit(changes, &message, |c| merge(c).err()).unwrap_or_default();
        anyhow::anyhow!(said(&key, &with_nearest_key(&message)))
    })
}

/// A profile's file with the keys of a pair.
fn merged(file: &toml::Table, changes: &toml::Table) -> Result<Profile, toml::de::Error> {
    let mut table = file.clone();
    for (key, change) in changes {
        match (table.get_mut(key), change) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new))
                if key != "teacher" && key != "student" =>
            {
                extend(old, new);
            }
            _ => {
                table.insert(key.clone(), change.clone());
            }
        }
    }
    table.try_into()
}

/// Merges `new` into `old`, recursively.
fn extend(old: &mut toml::Table, new: &toml::Table) {
    for (key, value) in new {
        match (old.get_mut(key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => extend(old, new),
            _ => {
                old.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Resolves a name or path to a file.
fn find(folder: &Path, name: &str, what: &str) -> Result<PathBuf> {
    if name.ends_with(".toml") {
        return Ok(PathBuf::from(name));
    }
    let path = folder.join(format!("{name}.toml"));
    if path.exists() {
        return Ok(path);
    }
    let known = names(folder)?;
    bail!(
        "unknown {what} `{name}`{}; known: {}",
        nearest(name, known.iter().map(String::as_str)),
        known.join(", ")
    );
}

/// The names of the TOML files in a folder.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!(
            "{}: run abkd in the project's folder, or name it with --root",
            folder.display()
        )
    })?;
    let mut names: Vec<String> = entries
        .filter_map(|e| {
            e.ok()?
                .file_name()
                .to_str()?
                .strip_suffix(".toml")
                .map(str::to_owned)
        })
        // the runner's own manifest and the data sets lie beside the experiments
        .filter(|name| !["Cargo", "datasets"].contains(&name.as_str()))
        .collect();
    names.sort();
    Ok(names)
}

/// Reads a TOML file; an error names file, line and the nearest known key.
///
/// # Errors
///
/// When it cannot be read or does not have the shape of `T`.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    TomlFile::read(path)?.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn every_shipped_file_is_a_valid_spec() {
        let experiments = names(&root().join("experiments")).unwrap();
        let profiles = names(&root().join("experiments/profiles")).unwrap();
        assert!(
            experiments.contains(&"table1".to_owned()) && profiles.contains(&"tiny".to_owned())
        );
        for experiment in &experiments {
            for profile in &profiles {
                Spec::load(&root(), experiment, profile).unwrap();
            }
        }
    }

    #[test]
    fn an_experiment_decodes_as_the_profile_but_for_what_it_sets() {
        let load = |experiment| Spec::load(&root(), experiment, "tiny").unwrap().profile;
        let (greedy, table1) = (load("greedy").evaluation, load("table1").evaluation);
        assert_ne!(greedy, table1);
        assert_eq!(greedy, DecodingSpec { top_k: 1, ..table1 });
        let spec = Spec::load(&root(), "greedy", "smollm2-day").unwrap();
        assert_eq!(spec.experiment.seeds, [10]);
        let notes = spec.notes().join("\n");
        assert!(
            notes.contains("greedy.toml:") && notes.contains("1 left out"),
            "{notes}"
        );
    }

    fn broken(from: &str, to: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(root().join("experiments/table1.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        let path = dir.path().join("e.toml");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        format!(
            "{:#}",
            Spec::load(&root(), path.to_str().unwrap(), "tiny").unwrap_err()
        )
    }

    #[test]
    fn what_a_user_mistypes_is_named_with_its_place() {
        let error = broken("seeds =", "seedz =");
        assert!(
            error.contains("e.toml:") && error.contains("did you mean `seeds`"),
            "{error}"
        );
        let error = broken("[10, 20, 30, 40, 50]", "[]");
        assert!(error.contains("`seeds` is empty"), "{error}");
        let error = broken("\"fkld\"", "\"fkdl\"");
        assert!(error.contains("fkdl") && error.contains("fkld"), "{error}");
        let error = broken("\"vicuna\"", "\"vicunia\"");
        assert!(
            error.contains("vicunia") && error.contains("vicuna"),
            "{error}"
        );
        let error = broken("alpha = 0.2", "alpha = nan");
        assert!(error.contains("alpha"), "{error}");
        let error = broken("alpha = 0.2", "alfa = 0.2");
        assert!(error.contains("alfa") && error.contains("alpha"), "{error}");
        for (line, parts) in [
            (
                "[evaluation]\ntop_kk = 1",
                ["e.toml:", "did you mean `top_k`"],
            ),
            ("[evaluation]\ntop_k = \"1\"", ["e.toml:", "invalid type"]),
            (
                "[evaluation]\ntop_p = 2.0",
                ["e.toml:", "top_p = 2: it must lie in (0, 1]"],
            ),
        ] {
            let error = broken("[[rows]]", &format!("{line}\n[[rows]]"));
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let error = format!("{:#}", Spec::load(&root(), "table1", "tinny").unwrap_err());
        assert!(error.contains("did you mean `tiny`"), "{error}");
    }
}
