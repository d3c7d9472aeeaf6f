//! What an experiment is: a TOML file that names rows and columns, and a profile that names the scale.

mod experiment;
mod file;
mod profile;

use std::path::{Path, PathBuf};

use abkd_data::TestSet;
use abkd_training::Method;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use experiment::{Experiment, Kind, Row, Start, TextTerm};
use file::Step::{Index, Key};
use file::{Step, TomlFile};
pub use profile::{
    DataSpec, DecodingSpec, Layers, MethodSpec, ModelSpec, Profile, Source, TimingSpec,
    ValidationSpec,
};

use crate::suggest::{nearest, with_nearest_key};

/// An experiment at a scale, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Spec {
    /// The experiment.
    pub experiment: Experiment,
    /// The profile.
    pub profile: Profile,
    /// The two files, for the place of what is found wrong later.
    #[serde(skip)]
    files: Files,
}

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
        let files = Files {
            experiment: TomlFile::read(&find(&folder, experiment, "experiment")?)?,
            profile: TomlFile::read(&find(&folder.join("profiles"), profile, "profile")?)?,
        };
        let experiment: Experiment = files.experiment.parse()?;
        let mut spec = Self {
            profile: parse_profile(&files.profile, experiment.pair.as_deref())?,
            experiment,
            files,
        };
        if let Some(seeds) = spec.profile.seeds.clone() {
            spec.experiment.seeds = seeds;
        }
        spec.check_experiment()?;
        spec.check_profile(spec.files.profile.path())?;
        spec.check_seeds()?;
        Ok(spec)
    }

    fn check_experiment(&self) -> Result<()> {
        let place = |steps: &[Step]| self.files.experiment.place(steps);
        let e = &self.experiment;
        ensure!(!e.rows.is_empty(), "{}: no [[rows]]", place(&[]));
        ensure!(
            e.kind != Kind::Table || !e.seeds.is_empty(),
            "{}: `seeds` is empty; give at least one sampling seed, e.g. seeds = [10]",
            place(&[Key("seeds")])
        );
        ensure!(
            e.kind != Kind::Table || !e.datasets.is_empty(),
            "{}: `datasets` is empty; `abkd list datasets` shows them",
            place(&[Key("datasets")])
        );
        for (index, row) in e.rows.iter().enumerate() {
            row.method(&self.profile)
                .and_then(|_| row.training(&self.profile))
                .and_then(|_| row.with_text(&self.profile))
                .map_err(|error| self.blame(index, error))?;
            ensure!(
                e.rows.iter().filter(|r| r.label == row.label).count() == 1,
                "{}: two rows are labelled `{}`",
                place(&[Key("rows"), Index(index), Key("label")]),
                row.label
            );
        }
        self.datasets().with_context(|| place(&[Key("datasets")]))?;
        Ok(())
    }

    /// What the number of training sequences shows to be wrong.
    ///
    /// # Errors
    ///
    /// A warm-up that is longer than its run, a replay buffer that is smaller than a batch.
    pub fn check_run(&self, sequences: usize) -> Result<()> {
        let p = &self.profile;
        for (name, settings) in [
            ("teacher_sft", &p.teacher_sft),
            ("student_sft", &p.student_sft),
        ] {
            if let Some(settings) = settings {
                let place = || self.files.profile.place(&[Key(name)]);
                settings.check_run(sequences).with_context(place)?;
            }
        }
        for (index, row) in self.experiment.rows.iter().enumerate() {
            let settings = row.training(p)?;
            let method = row.method(p)?;
            settings
                .check_run(sequences)
                .and_then(|()| method.check_run(&settings))
                .with_context(|| format!("row `{}`", row.label))
                .map_err(|error| self.blame(index, error))?;
        }
        Ok(())
    }

    /// Adds the place of the key that an error of a row names: in the row, else in the profile's settings of its method,
    /// else the row.
    fn blame(&self, index: usize, error: anyhow::Error) -> anyhow::Error {
        let place = self.place_of(index, &format!("{error:#}"));
        error.context(place)
    }

    fn place_of(&self, index: usize, message: &str) -> String {
        let (file, profile_file) = (&self.files.experiment, &self.files.profile);
        let row = &self.experiment.rows[index];
        let in_row = [Key("rows"), Index(index)];
        let in_profile = [Key("methods"), Key(&row.method)];
        let pair = self.experiment.pair.as_deref().unwrap_or_default();
        let in_pair = [Key("pairs"), Key(pair), in_profile[0], in_profile[1]];
        let distill = [Key("distill")];
        let of_pair = [Key("pairs"), Key(pair), Key("distill")];
        // A value is named as `key` or as key = value.
        let named = |key: &str| {
            message.contains(&format!("`{key}`"))
                || message.contains(&format!("{key} = "))
                || message.contains(&format!("{key}: "))
        };
        for (file, start) in [
            (file, &in_row[..]),
            (profile_file, &in_pair[..]),
            (profile_file, &in_profile[..]),
            (profile_file, &of_pair[..]),
            (profile_file, &distill[..]),
        ] {
            for section in ["settings", "train", "params", ""] {
                let mut steps = start.to_vec();
                if !section.is_empty() {
                    steps.push(Key(section));
                }
                for key in file.keys(&steps) {
                    let mut found = steps.clone();
                    found.push(Key(&key));
                    if named(&key) {
                        return file.place(&found);
                    }
                }
            }
        }
        file.place(&in_row)
    }

    fn check_seeds(&self) -> Result<()> {
        let p = &self.profile;
        let files = &self.files;
        let own = if p.seeds.is_some() {
            &files.profile
        } else {
            &files.experiment
        };
        let lists = [
            (own, "seeds", Some(&self.experiment.seeds)),
            (&files.profile, "training_seeds", p.training_seeds.as_ref()),
        ];
        for (file, key, seeds) in lists {
            let Some(seeds) = seeds else { continue };
            let place = || file.place(&[Key(key)]);
            ensure!(
                key == "seeds" || !seeds.is_empty(),
                "{}: `{key}` is empty; give at least one seed, or leave it out for one training",
                place()
            );
            let mut seen = std::collections::BTreeSet::new();
            for seed in seeds {
                ensure!(
                    seen.insert(seed),
                    "{}: `{key}`: seed {seed} is given twice",
                    place()
                );
            }
        }
        Ok(())
    }

    /// Seeds of the trainings of a row.
    ///
    /// # Errors
    ///
    /// A row that is not valid.
    pub fn training_seeds(&self, row: &Row) -> Result<Vec<u64>> {
        Ok(match &self.profile.training_seeds {
            Some(seeds) => seeds.clone(),
            None => vec![row.training(&self.profile)?.seed],
        })
    }

    /// Whether a row asks to start from a base that is no language model, and gets the initialised student.
    pub fn starts_are_replaced(&self) -> bool {
        let p = &self.profile;
        let mut rows = self.experiment.rows.iter();
        rows.any(|row| row.asked_start(p) != row.start(p))
    }

    fn check_profile(&self, path: &Path) -> Result<()> {
        let place = || path.display().to_string();
        let p = &self.profile;
        p.teacher.check("teacher", path)?;
        p.student.check("student", path)?;
        ensure!(
            p.student.layers.is_none() || p.teacher.checkpoint.is_some(),
            "{}: [student] layers needs a teacher checkpoint to take them from",
            place()
        );
        for (name, settings) in [
            ("teacher_sft", &p.teacher_sft),
            ("student_sft", &p.student_sft),
            ("distill", &Some(p.distill.clone())),
        ] {
            if let Some(settings) = settings {
                settings
                    .validate()
                    .with_context(|| format!("{}: [{name}]", place()))?;
            }
        }
        ensure!(
            (0.0..=1.0).contains(&p.kd_ratio),
            "{}: kd_ratio = {}: it must lie between 0 and 1",
            place(),
            p.kd_ratio
        );
        for method in p.methods.keys() {
            let ids = Method::IDS.map(|(id, _)| id);
            ensure!(
                ids.contains(&method.as_str()),
                "{}: [methods.{method}]: no such method{}; known: {}",
                place(),
                nearest(method, ids),
                ids.join(", ")
            );
        }
        ensure!(
            p.timing.steps > 0 && p.timing.repeats > 0,
            "{}: [timing] steps and repeats must be 1 or more",
            place()
        );
        ensure!(p.jobs > 0, "{}: jobs = 0: it must be 1 or more", place());
        self.check_jobs().with_context(place)?;
        ensure!(
            p.data.max_prompt_length < p.data.max_length,
            "{}: [data] max_prompt_length must be below max_length",
            place()
        );
        Ok(())
    }

    /// Layers that are worked out again draw their dropout again, from a random state that all cells share.
    ///
    /// # Errors
    ///
    /// Gradient checkpointing with cells side by side.
    pub fn check_jobs(&self) -> Result<()> {
        let p = &self.profile;
        let trainings = [&p.teacher_sft, &p.student_sft, &Some(p.distill.clone())];
        let again = trainings
            .into_iter()
            .flatten()
            .any(|s| s.gradient_checkpointing);
        ensure!(
            p.jobs == 1 || !again,
            "jobs = {} with gradient_checkpointing: cells side by side would mix their dropout; use jobs = 1",
            p.jobs
        );
        Ok(())
    }

    /// Cells that run side by side: updates that are timed have the machine to themselves.
    pub fn jobs(&self) -> usize {
        match self.experiment.kind {
            Kind::Timing => 1,
            Kind::Table | Kind::Curve => self.profile.jobs,
        }
    }

    /// The test sets of the table.
    ///
    /// # Errors
    ///
    /// An unknown name.
    pub fn datasets(&self) -> Result<Vec<TestSet>> {
        self.experiment
            .datasets
            .iter()
            .map(|id| Ok(id.parse::<TestSet>()?))
            .collect()
    }
}

/// Reads `experiments/profiles/<name>.toml` below `root`, or the path that `name` is.
///
/// # Errors
///
/// An unknown name or key.
pub fn load_profile(root: &Path, name: &str) -> Result<Profile> {
    read_toml(&find(&root.join("experiments/profiles"), name, "profile")?)
}

/// A profile; with a pair, the keys of its `[pairs.NAME]` replace (models) or extend (all else) those of the file.
fn parse_profile(file: &TomlFile, pair: Option<&str>) -> Result<Profile> {
    let plain: Profile = file.parse()?;
    let Some((name, changes)) = pair.and_then(|name| plain.pairs.get_key_value(name)) else {
        return Ok(plain);
    };
    let mut table: toml::Table = file.parse()?;
    for (key, change) in changes {
        match (table.get_mut(key), change) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new))
                if key != "teacher" && key != "student" =>
            {
                old.extend(new.clone());
            }
            _ => {
                table.insert(key.clone(), change.clone());
            }
        }
    }
    table.try_into().map_err(|error: toml::de::Error| {
        anyhow::anyhow!(
            "{}: [pairs.{name}]: {}",
            file.place(&[Key("pairs"), Key(name)]),
            with_nearest_key(error.message())
        )
    })
}

/// The file that a name or path stands for.
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
        // the runner's own manifest lies beside the experiments
        .filter(|name| name != "Cargo")
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
        let error = format!("{:#}", Spec::load(&root(), "table1", "tinny").unwrap_err());
        assert!(error.contains("did you mean `tiny`"), "{error}");
    }
}
