//! Checks that need only the profile's file; errors name the line.

use abkd_training::Method;
use anyhow::{Context, Result, anyhow, ensure};

use super::blame::culprit;
use super::check::{check_its_file, check_name};
use super::{Profile, Row, Source, Spec};
use crate::backend;
use crate::suggest::nearest;

/// Maximum number of parallel tasks.
const MOST_JOBS: usize = 256;
/// Maximum examples per set of the embedded corpus, which is generated in memory.
const MOST_EMBEDDED: usize = 1_000_000;
/// Maximum of sequence lengths, step counts and batch sizes.
const LARGEST: usize = 1 << 20;
/// Maximum repeats of a timing: each is a task.
const MOST_REPEATS: usize = 1000;
/// Folders below `results` that are not a profile's.
const RESERVED: [&str; 2] = ["paper", "bench"];

impl Spec {
    /// Checks that need only the profile's file.
    pub(super) fn check_profile(&self) -> Result<()> {
        let p = &self.profile;
        let place = |keys: &[&str]| self.in_profile(keys);
        check_name(&p.name, &RESERVED).with_context(|| place(&["name"]))?;
        check_its_file(&self.files.profile, &p.name)?;
        backend::known(&p.backend).with_context(|| place(&["backend"]))?;
        for (who, model) in [("teacher", &p.teacher), ("student", &p.student)] {
            model.check(who).map_err(|(keys, message)| {
                let mut path = vec![who];
                path.extend(keys.iter().map(String::as_str));
                let section = if keys.len() > 1 {
                    format!("{who}.{}", keys[0])
                } else {
                    who.into()
                };
                anyhow!("{}: [{section}]: {message}", place(&path))
            })?;
        }
        ensure!(
            p.student.layers.is_none() || p.teacher.checkpoint.is_some(),
            "{}: [student] layers needs a teacher checkpoint to take them from",
            place(&["student", "layers"])
        );
        for (name, settings) in self.fine_tunings().chain([("distill", &p.distill)]) {
            settings
                .validate()
                .map_err(|error| self.blame_section(name, anyhow!(error)))?;
        }
        self.fraction(&["kd_ratio"], p.kd_ratio)?;
        self.within(&["jobs"], p.jobs, 1, MOST_JOBS)?;
        self.check_data()?;
        self.check_decoding()?;
        let timing = &p.timing;
        self.within(&["timing", "warmup"], timing.warmup, 0, LARGEST)?;
        self.within(&["timing", "steps"], timing.steps, 1, LARGEST)?;
        self.within(&["timing", "repeats"], timing.repeats, 1, MOST_REPEATS)?;
        p.methods.keys().try_for_each(|id| self.check_method(id))
    }

    fn check_data(&self) -> Result<()> {
        let data = &self.profile.data;
        let embedded = data.source == Source::Embedded;
        self.within(&["data", "max_length"], data.max_length, 2, LARGEST)?;
        ensure!(
            (1..data.max_length).contains(&data.max_prompt_length),
            "{}: [data] max_prompt_length = {}: it must be 1 or more and below max_length = {}",
            self.in_profile(&["data", "max_prompt_length"]),
            data.max_prompt_length,
            data.max_length
        );
        let most = if embedded { MOST_EMBEDDED } else { usize::MAX };
        for (key, value, least) in [
            ("train", data.train, 1),
            ("valid", data.valid, 0),
            ("test", data.test, 1),
        ] {
            if let Some(value) = value {
                self.within(&["data", key], value, least, most)?;
            }
        }
        let read = [
            ("path", data.path.is_some()),
            ("train_file", data.train_file.is_some()),
            ("valid_file", data.valid_file.is_some()),
        ];
        if let Some((key, _)) = read.iter().find(|(_, given)| embedded && *given) {
            return Err(anyhow!(
                "{}: [data] {key}: the embedded corpus is read from no folder; leave it out, or take source = \"folder\"",
                self.in_profile(&["data", key])
            ));
        }
        self.check_template()?;
        self.check_files()
    }

    /// Checks `template` and `date`.
    fn check_template(&self) -> Result<()> {
        let p = &self.profile;
        let place = |key: &str| self.in_profile(&["data", key]);
        if p.data.template.is_paper() {
            ensure!(
                p.data.date.is_none(),
                "{}: [data] date: only a chat template uses a date; leave it out, or take template = \"chat\"",
                place("date")
            );
            return Ok(());
        }
        ensure!(
            p.data.train_tokens.is_none(),
            "{}: [data] train_tokens: its prompts are tokens already, which template = \"chat\" cannot change; take train_file, \
             or leave the template out",
            place("train_tokens")
        );
        ensure!(
            !p.evaluation.bos,
            "{}: [evaluation] bos = true: a chat template writes the beginning of a sequence itself; leave it out",
            self.in_profile(&["evaluation", "bos"])
        );
        Ok(())
    }

    /// Checks `train_file`, `columns` and `hold_out`.
    fn check_files(&self) -> Result<()> {
        let data = &self.profile.data;
        let place = |key: &str| self.in_profile(&["data", key]);
        ensure!(
            data.train_file.is_none() || data.train_tokens.is_none(),
            "{}: [data] train_file: train_tokens gives the training data, too; leave one of the two out",
            place("train_file")
        );
        let files = data.train_file.is_some() || data.valid_file.is_some();
        ensure!(
            files || data.columns.is_default(),
            "{}: [data] columns: it names the columns of train_file and valid_file, but neither file is given",
            place("columns")
        );
        let Some(held_out) = data.hold_out else {
            return Ok(());
        };
        ensure!(
            data.train_file.is_some() && data.valid_file.is_none() && held_out > 0,
            "{}: [data] hold_out = {held_out}: it must be 1 or more, and needs train_file and no valid_file",
            place("hold_out")
        );
        Ok(())
    }

    fn check_decoding(&self) -> Result<()> {
        let p = &self.profile;
        let (validation, evaluation) = (&p.validation, &p.evaluation);
        for (section, new, batch) in [
            (
                "validation",
                validation.max_new_tokens,
                validation.batch_size,
            ),
            (
                "evaluation",
                evaluation.max_new_tokens,
                evaluation.batch_size,
            ),
        ] {
            self.within(&[section, "max_new_tokens"], new, 1, LARGEST)?;
            self.within(&[section, "batch_size"], batch, 1, LARGEST)?;
        }
        let keys = ["evaluation", "temperature"];
        ensure!(
            evaluation.temperature.is_finite() && evaluation.temperature > 0.0,
            "{}: [evaluation] temperature = {}: it divides the logits; it must be a positive number; for greedy decoding set top_k = 1",
            self.in_profile(&keys),
            evaluation.temperature
        );
        ensure!(
            evaluation.top_p > 0.0 && evaluation.top_p <= 1.0,
            "{}: [evaluation] top_p = {}: it must lie in (0, 1]; 1 is off",
            self.in_profile(&["evaluation", "top_p"]),
            evaluation.top_p
        );
        Ok(())
    }

    /// Checks `[methods.ID]` independently of the rows.
    fn check_method(&self, id: &str) -> Result<()> {
        let ids: Vec<&str> = Method::ids().collect();
        ensure!(
            ids.contains(&id),
            "{}: [methods.{id}]: no such method{}; known: {}",
            self.in_profile(&["methods", id]),
            nearest(id, ids.iter().copied()),
            ids.join(", ")
        );
        let own = &self.profile.methods[id];
        let plain = Row::of_method(id);
        let wrong = |settings: &toml::Table, train: &toml::Table| {
            let mut profile: Profile = self.profile.clone();
            if let Some(own) = profile.methods.get_mut(id) {
                own.settings.clone_from(settings);
                own.train.clone_from(train);
            }
            let checked = plain
                .method_settings(&profile)
                .and_then(|_| plain.training_settings(&profile));
            checked.err().map(|error| format!("{error:#}"))
        };
        let none = toml::Table::new();
        for (section, table) in [("settings", &own.settings), ("train", &own.train)] {
            let alone = |table: &toml::Table| match section {
                "settings" => wrong(table, &none),
                _ => wrong(&none, table),
            };
            if let Some(message) = alone(table) {
                let key = culprit(table, &message, alone);
                let mut path = vec!["methods", id, section];
                path.extend(key.as_deref());
                return Err(anyhow!(
                    "{}: [methods.{id}.{section}]: {message}",
                    self.in_profile(&path)
                ));
            }
        }
        Ok(())
    }

    /// Checks `jobs`; `place` is its location.
    ///
    /// # Errors
    ///
    /// `jobs` out of range.
    pub fn check_jobs(&self, place: &str) -> Result<()> {
        let jobs = self.profile.jobs;
        ensure!(
            (1..=MOST_JOBS).contains(&jobs),
            "{place}: jobs = {jobs}: it must lie between 1 and {MOST_JOBS}"
        );
        Ok(())
    }

    /// Refuses a number of the profile outside its range.
    fn within(&self, keys: &[&str], value: usize, least: usize, most: usize) -> Result<()> {
        let key = name_of(keys);
        let range = if most == usize::MAX {
            format!("{least} or more")
        } else {
            format!("between {least} and {most}")
        };
        ensure!(
            (least..=most).contains(&value),
            "{}: {key} = {value}: it must be {range}",
            self.in_profile(keys)
        );
        Ok(())
    }

    fn fraction(&self, keys: &[&str], value: f64) -> Result<()> {
        ensure!(
            (0.0..=1.0).contains(&value),
            "{}: {} = {value}: it must lie between 0 and 1",
            self.in_profile(keys),
            name_of(keys)
        );
        Ok(())
    }
}

/// `[section] key`
fn name_of(keys: &[&str]) -> String {
    match keys {
        [sections @ .., key] if !sections.is_empty() => format!("[{}] {key}", sections.join(".")),
        _ => keys.concat(),
    }
}
