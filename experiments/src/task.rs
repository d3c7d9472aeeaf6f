//! The unit of work: a value with everything that its result depends on. Its id is its name and the hash of that value, so a
//! finished task is never run again, whatever experiment asks for it, and a changed setting makes another task.
//!
//! The value is written to `task.json` in the task's folder, and that file alone is enough to run it (`abkd task FOLDER`).

use std::fs;
use std::path::{Path, PathBuf};

use abkd_data::Limits;
use abkd_models::{Precision, lora};
use abkd_training::cache::CacheMode;
use abkd_training::{Method, Settings};
use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inputs::checkpoints::Side;
use crate::inputs::{Wanted, hash_json};
use crate::spec::{DataSpec, DecodingSpec, ModelSpec, Spec, TestSet, TimingSpec, ValidationSpec};

/// Incremented when the meaning of a task changes, so that old tasks are not mistaken for new ones.
const FORMAT: u32 = 5;
/// Name of the task's file in its folder.
pub const FILE: &str = "task.json";

/// Name and hash of a task; also its folder.
pub type TaskId = String;

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    format: u32,
    /// Backend of the computation.
    pub backend: String,
    /// Number format of the matrix products.
    pub precision: Precision,
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// Length limits of prompts and sequences.
    pub limits: Limits,
    /// The work of the task.
    pub work: Work,
}

/// Work of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum Work {
    /// Trains a model.
    Train(Training),
    /// Computes the teacher's hidden states of the training data.
    TeacherHidden(Hidden),
    /// Samples the teacher's answers to all training prompts.
    TeacherAnswers(Answers),
    /// Answers a test set and scores the answers.
    Evaluate(Evaluation),
    /// Times updates.
    Time(Timed),
}

impl Work {
    /// The training that is run or timed, if any.
    pub fn training(&self) -> Option<&Training> {
        match self {
            Self::Train(training) | Self::Time(Timed { training, .. }) => Some(training),
            _ => None,
        }
    }

    /// The models that the task works with.
    fn models(&self) -> Vec<&Model> {
        match self {
            Self::Train(t) | Self::Time(Timed { training: t, .. }) => {
                [&t.student].into_iter().chain(&t.teacher).collect()
            }
            Self::TeacherHidden(Hidden { teacher, .. })
            | Self::TeacherAnswers(Answers { teacher, .. }) => vec![teacher],
            Self::Evaluate(evaluation) => vec![&evaluation.model],
        }
    }
}

/// A training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The model that is trained.
    pub student: Model,
    /// The teacher, if the method needs one.
    pub teacher: Option<Model>,
    /// The method.
    pub method: Method,
    /// Share of the divergence in the loss.
    pub kd_ratio: f64,
    /// Settings of the training.
    pub settings: Settings,
    /// Hash of the training data.
    pub train: String,
    /// Hash of the validation data.
    pub valid: String,
    /// Hash of the plain text, if there is a term on it.
    pub text: Option<String>,
    /// Task of the teacher's hidden states, if they are cached.
    pub hidden: Option<TaskId>,
    /// Task of the teacher's answers, if the student trains on them.
    pub answers: Option<TaskId>,
    /// Settings of the validations.
    pub validation: ValidationSpec,
}

/// The teacher's hidden states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hidden {
    /// The teacher.
    pub teacher: Model,
    /// Hash of the training data.
    pub train: String,
    /// Number format of the cache.
    pub mode: CacheMode,
    /// Sequences per batch.
    pub batch_size: usize,
}

/// The teacher's answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The teacher.
    pub teacher: Model,
    /// Hash of the training data.
    pub train: String,
    /// Maximum tokens of an answer.
    pub max_new_tokens: usize,
    /// Whether prompts begin with the beginning-of-sequence token.
    pub bos: bool,
    /// Rows decoded together.
    pub batch_size: usize,
    /// Sampling seed.
    pub seed: u64,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The model that answers.
    pub model: Model,
    /// Id of the test set.
    pub dataset: String,
    /// Hash of the test set.
    pub examples: String,
    /// How answers are decoded.
    pub decoding: DecodingSpec,
    /// Sampling seed.
    pub seed: u64,
}

/// Timed updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// The training whose updates are timed.
    pub training: Training,
    /// Numbers of warm-up and timed updates.
    pub timing: TimingSpec,
    /// Index of the repeat, from 0.
    pub repeat: usize,
}

/// A model that a task works with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// A base model: a checkpoint, some of its layers, or fresh weights.
    Base {
        /// The side that the model is the base of.
        side: Side,
        /// Identity of the model's content.
        identity: Value,
    },
    /// A model trained by a task.
    Trained {
        /// The task.
        task: TaskId,
        /// The model under the adapter, if an adapter was trained.
        adapter_on: Option<Box<Model>>,
    },
}

impl Model {
    /// The model that the task `id` trains from this one with these settings.
    pub fn trained(&self, id: TaskId, settings: &Settings) -> Self {
        let on = settings.lora.as_ref().map(|lora| match self {
            // Continued training of an adapter keeps the model under it.
            Self::Trained {
                adapter_on: Some(base),
                ..
            } if lora.start == lora::Start::Continue => base.clone(),
            _ => Box::new(self.clone()),
        });
        Self::Trained {
            task: id,
            adapter_on: on,
        }
    }

    /// Adds the tasks that make the model.
    fn needs<'a>(&'a self, needs: &mut Vec<&'a TaskId>) {
        if let Self::Trained { task, adapter_on } = self {
            if let Some(on) = adapter_on {
                on.needs(needs);
            }
            needs.push(task);
        }
    }

    /// The task that trained the model, if any.
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Self::Base { .. } => None,
            Self::Trained { task, .. } => Some(task),
        }
    }

    /// The model itself, or the base model under its adapters; `None` if a task has trained all weights.
    fn base(&self) -> Option<(Side, &Value)> {
        match self {
            Self::Base { side, identity } => Some((*side, identity)),
            Self::Trained { adapter_on, .. } => adapter_on.as_ref()?.base(),
        }
    }
}

impl Task {
    /// A task of a spec; `tokenizer` is the tokenizer's hash.
    pub fn new(spec: &Spec, tokenizer: &str, work: Work) -> Self {
        let p = &spec.profile;
        Self {
            format: FORMAT,
            backend: p.backend.clone(),
            precision: p.precision,
            tokenizer: tokenizer.into(),
            limits: Limits {
                max_prompt_length: p.data.max_prompt_length,
                max_length: p.data.max_length,
            },
            work,
        }
    }

    /// Id of the task under a name.
    ///
    /// # Errors
    ///
    /// A value that JSON cannot represent.
    pub fn id(&self, name: &str) -> Result<TaskId> {
        Ok(format!(
            "{name}-{}",
            hash_json(&serde_json::to_value(self)?)
        ))
    }

    /// The tasks that the task needs, each once.
    pub fn needs(&self) -> Vec<&TaskId> {
        let mut needs = Vec::new();
        for model in self.work.models() {
            model.needs(&mut needs);
        }
        if let Some(training) = self.work.training() {
            needs.extend(training.hidden.iter().chain(&training.answers));
        }
        needs.sort();
        needs.dedup();
        needs
    }

    /// The base models that the task uses, each once: side and identity.
    pub fn bases(&self) -> Vec<(Side, &Value)> {
        let mut bases: Vec<(Side, &Value)> = Vec::new();
        for model in self.work.models() {
            if let Some(base) = model.base()
                && !bases.contains(&base)
            {
                bases.push(base);
            }
        }
        bases
    }

    /// Hashes of the data that the task reads, by their names in [`Inputs::hashes`](crate::inputs::Inputs).
    pub fn data(&self) -> Vec<(&str, &str)> {
        let mut data = vec![("tokenizer", self.tokenizer.as_str())];
        match &self.work {
            Work::Train(t) | Work::Time(Timed { training: t, .. }) => {
                data.extend([("train", t.train.as_str()), ("valid", &t.valid)]);
                data.extend(t.text.as_deref().map(|hash| ("text", hash)));
            }
            Work::TeacherHidden(Hidden { train, .. })
            | Work::TeacherAnswers(Answers { train, .. }) => {
                data.push(("train", train));
            }
            Work::Evaluate(e) => data.push((&e.dataset, &e.examples)),
        }
        data
    }
}

impl Timed {
    /// The training that is timed: one epoch of warm-up and timed updates, with a seed of its own for each repeat.
    pub fn measured(&self) -> Training {
        let mut training = self.training.clone();
        let settings = training
            .settings
            .measured(self.timing.warmup + self.timing.steps);
        training.method = training.method.timed(settings.batch_size);
        training.settings = Settings {
            seed: settings.seed + self.repeat as u64,
            ..settings
        };
        training
    }
}

impl Training {
    /// Whether only the head of the teacher is used, as the cache holds all hidden states that the training needs.
    pub fn needs_head_alone(&self) -> bool {
        self.hidden.is_some()
            && self.method.sampled().is_empty()
            && self.text.is_none()
            && !self.settings.masses
    }
}

/// Paths of a task's data and models. Not part of its value: the content counts, not the path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// The project's folder; the other paths are relative to it.
    pub root: PathBuf,
    /// The data.
    pub data: DataSpec,
    /// The teacher.
    pub teacher: ModelSpec,
    /// The student.
    pub student: ModelSpec,
    /// The test sets.
    pub tests: Vec<TestSet>,
}

impl Sources {
    /// The sources of a spec.
    pub fn of(root: &Path, spec: &Spec) -> Self {
        let p = &spec.profile;
        Self {
            // A task may run from another folder.
            root: fs::canonicalize(root).unwrap_or_else(|_| root.into()),
            data: p.data.clone(),
            teacher: p.teacher.clone(),
            student: p.student.clone(),
            tests: spec.tests.clone(),
        }
    }

    /// The data that a task reads.
    pub fn wanted(&self, task: &Task) -> Wanted<'_> {
        let (mut valid, mut bos, mut tests) = (0, false, &[][..]);
        match &task.work {
            Work::Train(t) | Work::Time(Timed { training: t, .. }) => valid = t.validation.examples,
            Work::TeacherHidden(_) => {}
            Work::TeacherAnswers(answers) => bos = answers.bos,
            Work::Evaluate(e) => {
                bos = e.decoding.bos;
                let at = self.tests.iter().position(|set| set.id == e.dataset);
                tests = at.map_or(tests, |at| &self.tests[at..=at]);
            }
        }
        Wanted {
            root: &self.root,
            data: &self.data,
            teacher: &self.teacher,
            valid,
            bos,
            tests,
            spec: None,
        }
    }

    /// The source of a side.
    pub fn model(&self, side: Side) -> &ModelSpec {
        match side {
            Side::Teacher => &self.teacher,
            Side::Student => &self.student,
        }
    }
}

/// A task with its sources: the content of `task.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved<T, S> {
    id: TaskId,
    task: T,
    sources: S,
}

/// The content of a task's file.
///
/// # Errors
///
/// A value that JSON cannot represent.
pub fn content(id: &TaskId, task: &Task, sources: &Sources) -> Result<Vec<u8>> {
    let saved = Saved {
        id: id.clone(),
        task,
        sources,
    };
    let mut text = serde_json::to_vec_pretty(&saved)?;
    text.push(b'\n');
    Ok(text)
}

/// Reads the task of a folder.
///
/// # Errors
///
/// A file that is missing or has another format version; a value whose hash differs from the planned one; a folder whose
/// name is not the task's.
pub fn read(folder: &Path) -> Result<(TaskId, Task, Sources)> {
    let path = folder.join(FILE);
    let place = || path.display().to_string();
    let text = abkd_host::files::read_text(&path).with_context(place)?;
    let value: Value = serde_json::from_str(&text).with_context(place)?;
    let format = &value["task"]["format"];
    ensure!(
        *format == FORMAT,
        "{}: a task of format {format}, but this program reads format {FORMAT}: plan the experiment again with this program",
        place()
    );
    let Saved { id, task, sources }: Saved<Value, Sources> =
        serde_json::from_value(value).with_context(place)?;
    let hash = hash_json(&task);
    ensure!(
        id.ends_with(&format!("-{hash}")),
        "{}: changed since it was planned: {id} is not a task with the hash {hash}; a changed setting belongs in the \
         experiment's or the profile's file",
        place()
    );
    let task: Task = serde_json::from_value(task).with_context(place)?;
    let name = fs::canonicalize(folder).with_context(place)?;
    ensure!(
        name.file_name().is_some_and(|name| name == id.as_str()),
        "{}: the task {id} is in a folder with another name; rename the folder to {id} and keep it beside the folders of \
         the tasks that it needs",
        place()
    );
    // The hashed value is the one that runs: reading must not have dropped any part of it.
    ensure!(
        task.id("")?.ends_with(&hash),
        anyhow!("{}: it has keys that this program does not know", place())
    );
    Ok((id, task, sources))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn planned() -> (Plan, Sources) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut plans = Vec::new();
        for (experiment, profile) in [
            ("table1", "tiny"),
            ("table2", "tiny"),
            ("table3", "tiny"),
            ("table2", "paper-openllama2"),
        ] {
            let spec = Spec::load(&root, experiment, profile).unwrap();
            let plan = Plan::new(&root, &spec, &Default::default()).unwrap();
            plans.push((plan, Sources::of(&root, &spec)));
        }
        let mut all = plans.remove(0);
        for (plan, _) in plans {
            all.0.tasks.extend(plan.tasks);
        }
        all
    }

    #[test]
    fn what_is_read_is_what_was_planned() {
        let (plan, sources) = planned();
        let runs = tempfile::tempdir().unwrap();
        for planned in &plan.tasks {
            let folder = runs.path().join(&planned.id);
            fs::create_dir_all(&folder).unwrap();
            let text = content(&planned.id, &planned.task, &sources).unwrap();
            fs::write(folder.join(FILE), &text).unwrap();
            let (id, task, again) = read(&folder).unwrap();
            assert_eq!((&id, &task), (&planned.id, &planned.task));
            assert_eq!(content(&id, &task, &again).unwrap(), text);
        }
    }

    #[test]
    fn a_changed_task_one_of_another_version_and_a_moved_one_are_refused() {
        let (plan, sources) = planned();
        let planned = &plan.tasks[0];
        let runs = tempfile::tempdir().unwrap();
        let folder = runs.path().join(&planned.id);
        fs::create_dir_all(&folder).unwrap();
        let text =
            String::from_utf8(content(&planned.id, &planned.task, &sources).unwrap()).unwrap();
        let error = |text: &str| {
            fs::write(folder.join(FILE), text).unwrap();
            format!("{:#}", read(&folder).unwrap_err())
        };
        let rate = "\"learning_rate\": ";
        assert!(text.contains(rate));
        assert!(
            error(&text.replacen(rate, "\"learning_rate\": 1", 1))
                .contains("changed since it was planned")
        );
        assert!(error(&text.replacen("\"format\": 5", "\"format\": 4", 1)).contains("of format 4"));
        assert!(error("{").contains(FILE));
        fs::write(folder.join(FILE), &text).unwrap();
        read(&folder).unwrap();
        let other = runs.path().join("other");
        fs::rename(&folder, &other).unwrap();
        assert!(format!("{:#}", read(&other).unwrap_err()).contains("another name"));
        assert!(format!("{:#}", read(&folder).unwrap_err()).contains(FILE));
    }
}
