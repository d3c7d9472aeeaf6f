//! The unit of work: a value with all that its result depends on. Its id is its name and the hash of that value, so a
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

/// Raised when the meaning of a task changes, so that older ones are not mistaken for new ones.
const FORMAT: u32 = 5;
/// What a task's folder says of it.
pub const FILE: &str = "task.json";

/// Name and hash of a task; also its folder.
pub type TaskId = String;

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    format: u32,
    /// Where it is computed.
    pub backend: String,
    /// In which numbers.
    pub precision: Precision,
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// Where texts are cut.
    pub limits: Limits,
    /// What it does.
    pub work: Work,
}

/// What a task does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum Work {
    /// Trains a model.
    Train(Training),
    /// Computes the teacher's hidden states of the training data.
    TeacherHidden(Hidden),
    /// Has the teacher answer every training prompt.
    TeacherAnswers(Answers),
    /// Answers a test set and scores the answers.
    Evaluate(Evaluation),
    /// Times updates.
    Time(Timed),
}

/// A training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The model that is trained.
    pub student: Model,
    /// The model that it learns from, where its method asks one.
    pub teacher: Option<Model>,
    /// The method.
    pub method: Method,
    /// Share of the divergence in the loss.
    pub kd_ratio: f64,
    /// Its settings.
    pub settings: Settings,
    /// Hash of the training data.
    pub train: String,
    /// Hash of the validation data.
    pub valid: String,
    /// Hash of the plain text, where there is a term on it.
    pub text: Option<String>,
    /// The teacher's hidden states, where they are cached.
    pub hidden: Option<TaskId>,
    /// The teacher's answers, where they are trained on.
    pub answers: Option<TaskId>,
    /// What is measured at each validation.
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
    /// How they are stored.
    pub mode: CacheMode,
    /// Sequences that go through the model together.
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
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Whether prompts begin with the beginning-of-sequence token.
    pub bos: bool,
    /// Rows decoded together.
    pub batch_size: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Whose answers.
    pub model: Model,
    /// Id of the test set.
    pub dataset: String,
    /// Its hash.
    pub examples: String,
    /// How answers are drawn.
    pub decoding: DecodingSpec,
    /// Seed of the draws.
    pub seed: u64,
}

/// Timed updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// The training whose updates are timed.
    pub training: Training,
    /// How many.
    pub timing: TimingSpec,
    /// Which of the repeats, from 0.
    pub repeat: usize,
}

/// A model that a task works with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// As it comes: a checkpoint, some of its layers, or fresh weights.
    Base {
        /// Whose source it is.
        side: Side,
        /// Its content.
        identity: Value,
    },
    /// What a task has trained.
    Trained {
        /// The task.
        task: TaskId,
        /// What its adapter sits on, where an adapter was trained.
        adapter_on: Option<Box<Model>>,
    },
}

impl Model {
    /// What the task `id` makes of a model by these settings.
    pub fn trained(&self, id: TaskId, settings: &Settings) -> Self {
        let on = settings.lora.as_ref().map(|lora| match self {
            // An adapter that is trained on sits where it sat before.
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

    /// The tasks that make it.
    fn needs<'a>(&'a self, needs: &mut Vec<&'a TaskId>) {
        if let Self::Trained { task, adapter_on } = self {
            if let Some(on) = adapter_on {
                on.needs(needs);
            }
            needs.push(task);
        }
    }

    /// The task that makes it, if one does.
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Self::Base { .. } => None,
            Self::Trained { task, .. } => Some(task),
        }
    }

    /// What it, or the adapter that it is, sits on in the end; `None` where its task has trained all weights.
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

    /// Its id under a name.
    ///
    /// # Errors
    ///
    /// A number that JSON does not have.
    pub fn id(&self, name: &str) -> Result<TaskId> {
        Ok(format!(
            "{name}-{}",
            hash_json(&serde_json::to_value(self)?)
        ))
    }

    /// The tasks that it builds on, each once.
    pub fn needs(&self) -> Vec<&TaskId> {
        let mut needs = Vec::new();
        match &self.work {
            Work::Train(training) | Work::Time(Timed { training, .. }) => {
                training.needs(&mut needs)
            }
            Work::TeacherHidden(hidden) => hidden.teacher.needs(&mut needs),
            Work::TeacherAnswers(answers) => answers.teacher.needs(&mut needs),
            Work::Evaluate(evaluation) => evaluation.model.needs(&mut needs),
        }
        needs.sort();
        needs.dedup();
        needs
    }

    /// The models that it works with as they come, each once: whose, and what they are.
    pub fn bases(&self) -> Vec<(Side, &Value)> {
        let models: Vec<&Model> = match &self.work {
            Work::Train(t) | Work::Time(Timed { training: t, .. }) => {
                [&t.student].into_iter().chain(&t.teacher).collect()
            }
            Work::TeacherHidden(hidden) => vec![&hidden.teacher],
            Work::TeacherAnswers(answers) => vec![&answers.teacher],
            Work::Evaluate(evaluation) => vec![&evaluation.model],
        };
        let mut bases: Vec<(Side, &Value)> = Vec::new();
        for model in models {
            if let Some(base) = model.base()
                && !bases.contains(&base)
            {
                bases.push(base);
            }
        }
        bases
    }

    /// Hashes of the data that it reads, by their names in [`Inputs::hashes`](crate::inputs::Inputs).
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

impl Training {
    fn needs<'a>(&'a self, needs: &mut Vec<&'a TaskId>) {
        self.student.needs(needs);
        if let Some(teacher) = &self.teacher {
            teacher.needs(needs);
        }
        needs.extend(self.hidden.iter().chain(&self.answers));
    }
}

/// Where the data and models of a task lie. Not part of its value: the content counts, not the place.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// The project's folder, which the other paths start from.
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
    /// Those of a spec.
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
/// A number that JSON does not have.
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
/// A file that is not there or not of this program's version; a value that does not have the hash that it had when the task
/// was planned; a folder with another name than the task's.
pub fn read(folder: &Path) -> Result<(TaskId, Task, Sources)> {
    let path = folder.join(FILE);
    let place = || path.display().to_string();
    let text = abkd_host::files::read_text(&path).with_context(place)?;
    let value: Value = serde_json::from_str(&text).with_context(place)?;
    let format = &value["task"]["format"];
    ensure!(
        *format == FORMAT,
        "{}: a task of format {format}, and this program has format {FORMAT}: plan the experiment again with it",
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
        "{}: the task {id}, in a folder of another name: what it builds on is looked for beside its folder",
        place()
    );
    // What was hashed is what is run: nothing of the value was dropped on reading.
    ensure!(
        task.id("")?.ends_with(&hash),
        anyhow!("{}: it holds what this program does not know", place())
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
