//! Checks of the two files of a spec and of the data; errors name file and line.

use abkd_training::{Method, Settings};
use anyhow::{Context, Result, anyhow, ensure};

use super::blame::names;
use super::datasets::chosen;
use super::experiment::{STUDENT, TEACHER};
use super::file::Step::{Index, Key};
use super::file::TomlFile;
use super::{Kind, Recipe, Row, Spec, steps};
use crate::results::ROW_KEYS;
use crate::suggest::nearest;

/// Maximum length of an experiment or profile name, which is part of file names.
const LONGEST_NAME: usize = 100;
/// Endings of result file names, after the experiment's name.
pub const ENDINGS: [&str; 11] = [
    "_scores",
    "_examples",
    "_comparison",
    "_agreement",
    "_intervals",
    "_differences",
    "_verdicts",
    "_curves",
    "_masses",
    "_report",
    "_pairs",
];

/// Which validation figures the data allow.
#[derive(Clone, Copy, Debug)]
pub struct Validated {
    /// Whether a validation sequence has a response token, so that there is a loss.
    pub loss: bool,
    /// Whether validation answers are drawn.
    pub answers: bool,
}

impl Spec {
    /// Checks both files.
    pub(super) fn check(&self) -> Result<()> {
        self.check_profile()?;
        self.check_experiment()?;
        self.check_seeds()?;
        self.check_jobs(&self.in_profile(&["jobs"]))
    }

    fn check_experiment(&self) -> Result<()> {
        let e = &self.experiment;
        let place = |key: &str| self.in_experiment(&[key]);
        check_name(&e.name, &[]).with_context(|| place("name"))?;
        let ending = ENDINGS.iter().find(|end| e.name.ends_with(**end));
        if let Some(ending) = ending {
            return Err(anyhow!(
                "{}: name = \"{}\": it must not end with `{ending}`, as names of result files do; give it another name",
                place("name"),
                e.name
            ));
        }
        check_its_file(&self.files.experiment, &e.name)?;
        ensure!(
            ROW_KEYS.contains(&e.row_key.as_str()),
            "{}: row_key = \"{}\": it must be one of {}{}",
            place("row_key"),
            e.row_key,
            ROW_KEYS.join(", "),
            nearest(&e.row_key, ROW_KEYS)
        );
        let rows = self.files.experiment.place(&[Key("rows")]);
        ensure!(!e.rows.is_empty(), "{rows}: no [[rows]]");
        ensure!(
            e.kind != Kind::Table || !e.datasets.is_empty(),
            "{}: `datasets` is empty; `abkd list datasets` shows them",
            place("datasets")
        );
        chosen(&self.known, &e.datasets).with_context(|| place("datasets"))?;
        for (index, set) in e.datasets.iter().enumerate() {
            ensure!(
                !e.datasets[..index].contains(set),
                "{}: `datasets`: {set} is given twice",
                place("datasets")
            );
        }
        if let Some(subject) = &e.subject {
            let labels = e.labels();
            ensure!(
                labels.contains(&subject.as_str()),
                "{}: subject = \"{subject}\": no row has this label{}; there are {}",
                place("subject"),
                nearest(subject, labels.iter().copied()),
                labels.join(", ")
            );
        }
        ensure!(
            e.kind != Kind::Curve || self.profile.validation.examples > 0,
            "{}: [validation] examples = 0: the curves of `{}` show scores of validation answers; set it to 1 or more",
            self.in_profile(&["validation", "examples"]),
            e.name
        );
        (0..e.rows.len()).try_for_each(|index| self.check_row(index))
    }

    fn check_row(&self, index: usize) -> Result<()> {
        let e = &self.experiment;
        let row = &e.rows[index];
        let label = || {
            let at = [Key("rows"), Index(self.origin(index)), Key("label")];
            self.files.experiment.place(&at)
        };
        check_label(&row.label).with_context(label)?;
        ensure!(
            e.kind != Kind::Table || ![TEACHER, STUDENT].contains(&row.label.as_str()),
            "{}: label = \"{}\": this is what the model before distillation is called in tables; give the row another",
            label(),
            row.label
        );
        ensure!(
            e.rows.iter().filter(|r| r.label == row.label).count() == 1,
            "{}: two rows are labelled `{}`",
            label(),
            row.label
        );
        self.recipe(row).map_err(|error| self.blame(index, error))?;
        self.check_seed_of(index)
    }

    /// Refuses a row's training seed that `training_seeds` would silently replace.
    fn check_seed_of(&self, index: usize) -> Result<()> {
        let (p, row) = (&self.profile, &self.experiment.rows[index]);
        let own = p.methods.get(&row.method).map(|own| &own.train);
        let place = if row.train.contains_key("seed") {
            let path = [
                Key("rows"),
                Index(self.origin(index)),
                Key("train"),
                Key("seed"),
            ];
            self.files.experiment.place(&path)
        } else if own.is_some_and(|train| train.contains_key("seed")) {
            self.in_profile(&["methods", &row.method, "train", "seed"])
        } else {
            return Ok(());
        };
        ensure!(
            p.training_seeds.is_none(),
            "{place}: row `{}`: `seed`: the seeds of all trainings are given ({}: training_seeds); leave one of the two out",
            row.label,
            self.of_trainings()
        );
        Ok(())
    }

    /// A row, checked and fully resolved.
    pub(super) fn recipe(&self, row: &Row) -> Result<Recipe> {
        let p = &self.profile;
        let method = row.method(p)?;
        let settings = row.training(p)?;
        if let Some(ratio) = row.kd_ratio {
            ensure!(
                (0.0..=1.0).contains(&ratio),
                "kd_ratio = {ratio}: it must lie between 0 and 1"
            );
            ensure!(
                method.takes_kd_ratio(),
                "kd_ratio = {ratio}: method `{}` has no divergence of which this would be the share; leave it out",
                row.method
            );
        }
        let seeds = p.training_seeds.clone();
        Ok(Recipe {
            label: row.label.clone(),
            short: row.short().into(),
            method,
            start: row.start(p),
            kd_ratio: row.kd_ratio.unwrap_or(p.kd_ratio),
            with_text: row.with_text(p)?,
            seeds: seeds.unwrap_or_else(|| vec![settings.seed]),
            settings,
        })
    }

    /// Checks that need the data: the number of training sequences and the available validation figures.
    ///
    /// # Errors
    ///
    /// A warm-up longer than its run, a replay buffer smaller than a batch, weights selected by a figure that is not
    /// measured.
    pub fn check_run(&self, sequences: usize, validated: Validated) -> Result<()> {
        let p = &self.profile;
        let check = |settings: &Settings| {
            settings.check_run(sequences)?;
            settings.check_validation(validated.loss, validated.answers)
        };
        for (name, settings) in self.fine_tunings() {
            let checked = check(settings).and_then(|()| Method::sft().check_run(settings));
            checked.map_err(|error| self.blame_section(name, anyhow!(error)))?;
        }
        let timed = self.experiment.kind == Kind::Timing;
        for (index, recipe) in self.recipes.iter().enumerate() {
            let (settings, method) = (&recipe.settings, &recipe.method);
            let row = &self.experiment.rows[index];
            let checked = if timed {
                settings.check_run(sequences)
            } else {
                check(settings)
            };
            checked
                .and_then(|()| method.check_run(settings))
                .with_context(|| format!("row `{}`", row.label))
                .map_err(|error| self.blame(index, error))?;
            if timed {
                let all = p.timing.warmup + p.timing.steps;
                let updates = settings.measured(all).updates(sequences);
                ensure!(
                    updates > p.timing.warmup,
                    "{}: [timing] warmup = {}: an epoch of row `{}` has {updates} updates, so no update is left to time",
                    self.in_profile(&["timing", "warmup"]),
                    p.timing.warmup,
                    row.label
                );
            }
            ensure!(
                validated.loss || timed || !method.follows_validation_loss(),
                "{}: row `{}`: method `{}` samples more of the student's answers when the validation loss rises, but no \
                 validation example has a response token, so there is no validation loss; give validation examples with a \
                 response, or set threshold_step = 0",
                self.row_place(index),
                row.label,
                row.method
            );
        }
        ensure!(
            validated.answers || self.experiment.kind != Kind::Curve,
            "{}: there is no validation example, but the curves of `{}` show scores of validation answers; give validation data \
             with at least one example",
            self.in_profile(&["validation"]),
            self.experiment.name
        );
        Ok(())
    }

    /// The fine-tunings of teacher and student, by their section.
    pub fn fine_tunings(&self) -> impl Iterator<Item = (&'static str, &Settings)> {
        let p = &self.profile;
        [
            ("teacher_sft", &p.teacher_sft),
            ("student_sft", &p.student_sft),
        ]
        .into_iter()
        .filter_map(|(name, settings)| Some((name, settings.as_ref()?)))
    }

    /// Index in the file of the row that an expanded row comes from.
    fn origin(&self, index: usize) -> usize {
        self.grid.points.get(index).map_or(index, |point| point.row)
    }

    /// `path:line` of a row.
    pub fn row_place(&self, index: usize) -> String {
        let at = [Key("rows"), Index(self.origin(index))];
        self.files.experiment.place(&at)
    }

    /// Adds the location of the cause to an error of a row. The profile is checked before, so the row is the cause unless
    /// the error names a key that only the profile sets.
    pub(crate) fn blame(&self, index: usize, error: anyhow::Error) -> anyhow::Error {
        let place = self.place_of(index, &format!("{error:#}"));
        error.context(place)
    }

    fn place_of(&self, index: usize, message: &str) -> String {
        let row = &self.experiment.rows[index];
        let file = &self.files.experiment;
        let named = |key: &&String| {
            key.split('.')
                .next_back()
                .is_some_and(|k| names(message, k))
        };
        if let Some(key) = self.experiment.grid.keys().find(named) {
            return file.place(&[Key("grid"), Key(key)]);
        }
        let index = self.origin(index);
        let sections = ["settings", "train", "params"];
        let at = |more: &[&str]| -> Vec<String> { more.iter().map(|s| (*s).to_owned()).collect() };
        let in_row = |keys: &[String]| {
            let mut path = vec![Key("rows"), Index(index)];
            path.extend(keys.iter().map(|key| Key(key)));
            file.place(&path)
        };
        // Innermost keys first: an error of a key may name its section, too.
        for section in sections {
            let keys = file.keys(&[Key("rows"), Index(index), Key(section)]);
            if let Some(key) = keys.iter().find(|key| names(message, key)) {
                return in_row(&at(&[section, key]));
            }
        }
        let own = file.keys(&[Key("rows"), Index(index)]);
        let plain = |key: &&String| !sections.contains(&key.as_str()) && *key != "label";
        if let Some(key) = own.iter().filter(plain).find(|key| names(message, key)) {
            return in_row(&at(&[key]));
        }
        if let Some(place) = self.named_in_profile(row, message) {
            return place;
        }
        // An error that names no key belongs to the key without which it vanishes.
        for section in sections {
            for key in file.keys(&[Key("rows"), Index(index), Key(section)]) {
                let mut without = row.clone();
                match section {
                    "settings" => drop(without.settings.remove(&key)),
                    "train" => drop(without.train.remove(&key)),
                    _ => drop(without.params.remove(&key)),
                }
                if self.recipe(&without).is_ok() {
                    return in_row(&at(&[section, &key]));
                }
            }
        }
        in_row(&[])
    }

    /// Location of the key that an error names, in the profile's settings of a row's method and of all trainings.
    fn named_in_profile(&self, row: &Row, message: &str) -> Option<String> {
        let file = &self.files.profile;
        let method = row.method.as_str();
        for section in [
            &["methods", method, "settings"][..],
            &["methods", method, "train"],
            &["methods", method],
            &["distill"],
        ] {
            let mut places = vec![section.to_vec()];
            if let Some(pair) = &self.pair {
                places.insert(0, [&["pairs", pair][..], section].concat());
            }
            for path in places {
                let keys = file.keys(&steps(&path));
                let section = |key: &str| ["settings", "train"].contains(&key);
                let named = keys.iter().find(|k| !section(k) && names(message, k));
                if let Some(key) = named {
                    return Some(file.place(&steps(&[&path[..], &[key.as_str()]].concat())));
                }
            }
        }
        None
    }

    /// Adds to an error the location of the key that it names in a profile section.
    pub(super) fn blame_section(&self, section: &str, error: anyhow::Error) -> anyhow::Error {
        let message = format!("{error:#}");
        let file = &self.files.profile;
        let mut keys = file.keys(&[Key(section)]);
        if let Some(pair) = &self.pair {
            keys.extend(file.keys(&[Key("pairs"), Key(pair), Key(section)]));
        }
        let place = match keys.iter().find(|key| names(&message, key)) {
            Some(key) => self.in_profile(&[section, key]),
            None => self.in_profile(&[section]),
        };
        error.context(format!("{place}: [{section}]"))
    }

    fn check_seeds(&self) -> Result<()> {
        let p = &self.profile;
        let own = match &p.seeds {
            Some(_) => self.in_profile(&["seeds"]),
            None => self.in_experiment(&["seeds"]),
        };
        let of_trainings = self.of_trainings();
        ensure!(
            self.experiment.kind != Kind::Table || !self.experiment.seeds.is_empty(),
            "{own}: `seeds` is empty; give at least one sampling seed, e.g. seeds = [10]"
        );
        ensure!(
            p.training_seeds.as_ref().is_none_or(|s| !s.is_empty()),
            "{of_trainings}: `training_seeds` is empty; give at least one seed, or leave it out for one training"
        );
        let lists = [
            (own, "seeds", Some(&self.experiment.seeds)),
            (of_trainings, "training_seeds", p.training_seeds.as_ref()),
        ];
        for (place, key, seeds) in lists {
            let mut seen = std::collections::BTreeSet::new();
            for seed in seeds.into_iter().flatten() {
                ensure!(
                    seen.insert(seed),
                    "{place}: `{key}`: seed {seed} is given twice"
                );
            }
        }
        Ok(())
    }
}

/// Checks a name that is part of file and folder names.
pub(super) fn check_name(name: &str, reserved: &[&str]) -> Result<()> {
    let good = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    ensure!(
        !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name.chars().all(good)
            && name.starts_with(char::is_alphanumeric),
        "name = {name:?}: files and folders are named by it; use letters, digits, `-`, `_` and `.`, {LONGEST_NAME} bytes or less, and begin with a letter or a digit"
    );
    ensure!(
        !reserved.iter().any(|r| r.eq_ignore_ascii_case(name)),
        "name = \"{name}\": the folder of this name below `results` holds something else; give it another name"
    );
    Ok(())
}

/// Refuses a file whose results would overwrite those of another file in its folder.
pub(super) fn check_its_file(file: &TomlFile, name: &str) -> Result<()> {
    let path = file.path();
    let other = path.with_file_name(format!("{name}.toml"));
    let itself = path.file_stem().is_some_and(|stem| stem == name);
    ensure!(
        itself || !other.exists(),
        "{}: name = \"{name}\": this is the name of {}, whose results would be overwritten; give it another",
        file.place(&[Key("name")]),
        other.display()
    );
    Ok(())
}

/// Checks a row's label.
fn check_label(label: &str) -> Result<()> {
    ensure!(
        !label.trim().is_empty() && label.trim() == label && !label.chars().any(char::is_control),
        "label = {label:?}: it must be a line of text without spaces around it"
    );
    Ok(())
}
