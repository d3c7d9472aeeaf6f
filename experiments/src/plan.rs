//! From a spec to cells: units of work with declared inputs. A cell's id is its name and the hash of
//! its resolved spec and of the ids it depends on, so a finished cell is never run again, whatever
//! experiment asks for it, and a changed setting makes another cell.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use abkd_data::TestSet;
use abkd_models::Precision;
use abkd_training::cache::CacheMode;
use abkd_training::{Method, Settings};
use anyhow::Result;
use serde_json::{Value, json};

use crate::inputs::{hash_json, identity};
use crate::spec::{Kind, Profile, STUDENT, Spec, Start, TEACHER};

/// Raised when the meaning of a spec changes, so that older cells are not mistaken for new ones.
const FORMAT: u32 = 4;

/// What a cell does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Fine-tunes the teacher, or the student's initialisation.
    Sft {
        /// Which of the two.
        who: Who,
    },
    /// The teacher's hidden states of the training data.
    TeacherHidden,
    /// The teacher answers every training prompt once.
    TeacherAnswers {
        /// Most tokens of an answer.
        max_new_tokens: usize,
    },
    /// Distils a student of a row.
    Distill {
        /// Index of the row.
        row: usize,
        /// Seed of the training.
        seed: u64,
    },
    /// Times updates of a row.
    Time {
        /// Index of the row.
        row: usize,
        /// Which of the repeats, from 0.
        repeat: usize,
    },
    /// Answers a test set and scores the answers.
    Evaluate {
        /// Whose answers.
        who: Who,
        /// Test set.
        dataset: TestSet,
        /// Sampling seed.
        seed: u64,
    },
}

impl Work {
    /// Cells of different kinds are different, whatever their specs.
    fn kind(self) -> &'static str {
        match self {
            Self::Sft { .. } => "sft",
            Self::TeacherHidden => "hidden",
            Self::TeacherAnswers { .. } => "answers",
            Self::Distill { .. } => "distill",
            Self::Time { .. } => "time",
            Self::Evaluate { .. } => "evaluate",
        }
    }
}

/// A model of an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// The teacher.
    Teacher,
    /// The student before distillation.
    Student,
    /// A distilled student.
    Row {
        /// Index of the row.
        row: usize,
        /// Seed of the training.
        seed: u64,
    },
}

/// A unit of work.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Name and hash; also its folder.
    pub id: String,
    /// What it does.
    pub work: Work,
    /// What else it is, word for word: rows with equal settings share a cell.
    pub also: Vec<Work>,
    /// Cells that must be finished first, as indices into the plan.
    pub needs: Vec<usize>,
    /// All that its result depends on.
    pub spec: Value,
}

impl Cell {
    /// All that it does, one for each row that shares it.
    pub fn works(&self) -> impl Iterator<Item = Work> {
        std::iter::once(self.work).chain(self.also.iter().copied())
    }
}

/// All cells of a spec, each after those it needs.
pub struct Plan {
    /// The cells.
    pub cells: Vec<Cell>,
    /// Index of a cell by the kind of its work and the hash of its spec.
    known: BTreeMap<(&'static str, String), usize>,
    models: BTreeMap<Who, usize>,
    hidden: Option<usize>,
    /// Cells of the teacher's answers, by `max_new_tokens`.
    answers: BTreeMap<usize, usize>,
}

impl Plan {
    /// Plans `spec`; `hashes` are those of the inputs ([`Inputs::hashes`](crate::inputs::Inputs)).
    ///
    /// # Errors
    ///
    /// A spec that is not valid.
    pub fn new(root: &Path, spec: &Spec, hashes: &BTreeMap<String, String>) -> Result<Self> {
        let mut plan = Self {
            cells: Vec::new(),
            known: BTreeMap::new(),
            models: BTreeMap::new(),
            hidden: None,
            answers: BTreeMap::new(),
        };
        let p = &spec.profile;
        let hash = |name: &str| hashes.get(name).map_or("unknown", String::as_str);
        let teacher_base = identity(root, &p.teacher, &p.teacher)?;
        let student_base = identity(root, &p.student, &p.teacher)?;
        let training = |method: Value, settings: Value, start: &Value, teacher: &Value| {
            json!({
                "format": FORMAT,
                "method": method,
                "kd_ratio": p.kd_ratio,
                "settings": settings,
                "start": start,
                "teacher": teacher,
                "data": { "train": hash("train"), "valid": hash("valid"), "tokenizer": hash("tokenizer") },
                "limits": [p.data.max_prompt_length, p.data.max_length],
                "validation": p.validation,
                "backend": backend(p),
            })
        };

        for (who, name, sft, base) in [
            (Who::Teacher, "teacher-sft", &p.teacher_sft, &teacher_base),
            (Who::Student, "student-sft", &p.student_sft, &student_base),
        ] {
            if let Some(sft) = sft {
                let spec = training(json!("sft"), json!(sft), base, &Value::Null);
                plan.add_model(who, name, Work::Sft { who }, vec![], spec);
            }
        }
        let teacher = plan.reference(Who::Teacher, &teacher_base);
        let student = plan.reference(Who::Student, &student_base);
        let rows = &spec.experiment.rows;
        let timed = spec.experiment.kind == Kind::Timing;
        let repeats = if timed { p.timing.repeats } else { 1 };
        for repeat in 0..repeats {
            for (index, row) in rows.iter().enumerate() {
                let method = row.method(p)?;
                let (start, mut needs) = match row.start(p) {
                    Start::Init => (&student, plan.needs([Who::Teacher, Who::Student])),
                    Start::Base => (&student_base, plan.needs([Who::Teacher])),
                };
                let mut identity = method.identity();
                if let Method::SeqKd(settings) = &method {
                    let tokens = settings.max_new_tokens.unwrap_or(p.data.max_new_tokens());
                    let answers = plan.teacher_answers(tokens, &teacher, p, &hash);
                    identity["answers"] = json!(plan.cells[answers].id);
                    needs.push(answers);
                }
                if method.uses_teacher_on_data() && p.teacher_cache != CacheMode::Off {
                    let hidden = plan.teacher_hidden(&teacher, p, &hash);
                    identity = json!([identity, "cache", plan.cells[hidden].id]);
                    needs.push(hidden);
                }
                if row.with_text(p)? {
                    identity = json!([identity, "text", hash("text")]);
                }
                let short = row.short();
                let settings = row.training(p)?;
                if timed {
                    let mut cell = training(identity, json!(settings), start, &teacher);
                    cell["timing"] = json!([p.timing.warmup, p.timing.steps, repeat]);
                    let work = Work::Time { row: index, repeat };
                    plan.add(&format!("time-{short}-{}", repeat + 1), work, needs, cell);
                    continue;
                }
                for seed in spec.training_seeds(row)? {
                    let settings = json!(Settings {
                        seed,
                        ..settings.clone()
                    });
                    let cell = training(identity.clone(), settings, start, &teacher);
                    let row = index;
                    plan.add_model(
                        Who::Row { row, seed },
                        &format!("distill-{short}-t{seed}"),
                        Work::Distill { row, seed },
                        needs.clone(),
                        cell,
                    );
                }
            }
        }
        if spec.experiment.kind == Kind::Table {
            let references = [Who::Teacher, Who::Student]
                .into_iter()
                .filter(|_| spec.experiment.references);
            let mut students = Vec::new();
            for (row, r) in rows.iter().enumerate() {
                let seeds = spec.training_seeds(r)?.into_iter();
                students.extend(seeds.map(|seed| Who::Row { row, seed }));
            }
            for who in references.chain(students) {
                for dataset in spec.datasets()? {
                    for &seed in &spec.experiment.seeds {
                        let base = if who == Who::Teacher {
                            &teacher_base
                        } else {
                            &student_base
                        };
                        let cell = json!({
                            "format": FORMAT,
                            "scores": "of each answer",
                            "model": plan.reference(who, base),
                            "dataset": [dataset.id(), hash(dataset.id())],
                            "tokenizer": hash("tokenizer"),
                            "limits": [p.data.max_prompt_length, p.data.max_length],
                            "decoding": p.evaluation,
                            "seed": seed,
                            "backend": backend(p),
                        });
                        let name =
                            format!("evaluate-{}-{}-s{seed}", label_of(spec, who), dataset.id());
                        let needs = plan.needs([who]);
                        plan.add(&name, Work::Evaluate { who, dataset, seed }, needs, cell);
                    }
                }
            }
        }
        Ok(plan)
    }

    /// The cell of the teacher's answers of at most so many tokens.
    pub fn answers(&self, max_new_tokens: usize) -> Option<&Cell> {
        self.answers.get(&max_new_tokens).map(|&i| &self.cells[i])
    }

    /// The cell of the teacher's hidden states, where there is one.
    pub fn hidden(&self) -> Option<&Cell> {
        self.hidden.map(|i| &self.cells[i])
    }

    fn teacher_hidden<'a>(
        &mut self,
        teacher: &Value,
        p: &Profile,
        hash: &impl Fn(&str) -> &'a str,
    ) -> usize {
        if let Some(index) = self.hidden {
            return index;
        }
        let spec = json!({
            "format": FORMAT,
            "teacher": teacher,
            "train": hash("train"),
            "tokenizer": hash("tokenizer"),
            "limits": [p.data.max_prompt_length, p.data.max_length],
            "mode": p.teacher_cache,
            "batch_size": p.distill.batch_size,
            "backend": backend(p),
        });
        let needs = self.needs([Who::Teacher]);
        let index = self.add("teacher-hidden", Work::TeacherHidden, needs, spec);
        self.hidden = Some(index);
        index
    }

    fn teacher_answers<'a>(
        &mut self,
        max_new_tokens: usize,
        teacher: &Value,
        p: &Profile,
        hash: &impl Fn(&str) -> &'a str,
    ) -> usize {
        if let Some(&index) = self.answers.get(&max_new_tokens) {
            return index;
        }
        let spec = json!({
            "format": FORMAT,
            "teacher": teacher,
            "train": hash("train"),
            "tokenizer": hash("tokenizer"),
            "limits": [p.data.max_prompt_length, p.data.max_length],
            "max_new_tokens": max_new_tokens,
            "bos": p.evaluation.bos,
            "batch_size": p.evaluation.batch_size,
            "seed": p.distill.seed,
            "backend": backend(p),
        });
        let needs = self.needs([Who::Teacher]);
        let work = Work::TeacherAnswers { max_new_tokens };
        let index = self.add("teacher-answers", work, needs, spec);
        self.answers.insert(max_new_tokens, index);
        index
    }

    /// The cell that makes a model; `None` for one that is used as it comes.
    pub fn model(&self, who: Who) -> Option<&Cell> {
        self.models.get(&who).map(|&i| &self.cells[i])
    }

    fn add(&mut self, name: &str, work: Work, needs: Vec<usize>, spec: Value) -> usize {
        let hash = hash_json(&spec);
        let index = self.cells.len();
        match self.known.entry((work.kind(), hash.clone())) {
            Entry::Occupied(known) => {
                let known = *known.get();
                self.cells[known].also.push(work);
                return known;
            }
            Entry::Vacant(place) => place.insert(index),
        };
        self.cells.push(Cell {
            id: format!("{name}-{hash}"),
            work,
            also: Vec::new(),
            needs,
            spec,
        });
        index
    }

    fn add_model(&mut self, who: Who, name: &str, work: Work, needs: Vec<usize>, spec: Value) {
        let index = self.add(name, work, needs, spec);
        self.models.insert(who, index);
    }

    fn needs<const N: usize>(&self, whose: [Who; N]) -> Vec<usize> {
        whose
            .iter()
            .filter_map(|who| self.models.get(who).copied())
            .collect()
    }

    /// How a cell's spec refers to a model: the id of the cell that makes it, or what it is.
    fn reference(&self, who: Who, base: &Value) -> Value {
        self.model(who)
            .map_or_else(|| base.clone(), |cell| json!(cell.id))
    }
}

/// Where and in which numbers it is computed.
fn backend(p: &Profile) -> Value {
    match p.precision {
        Precision::F32 => json!(p.backend),
        Precision::Bf16 => json!([p.backend, "bf16"]),
    }
}

/// Short name of a model for ids: `teacher`, `student`, or the row's method or divergence.
fn label_of(spec: &Spec, who: Who) -> String {
    match who {
        Who::Teacher => "teacher".into(),
        Who::Student => "student".into(),
        Who::Row { row, seed } => format!("{}-t{seed}", spec.experiment.rows[row].short()),
    }
}

/// Label of a model in tables.
pub fn row_label(spec: &Spec, who: Who) -> String {
    match who {
        Who::Teacher => TEACHER.into(),
        Who::Student => STUDENT.into(),
        Who::Row { row, .. } => spec.experiment.rows[row].label.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut Spec)) -> Plan {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut spec = Spec::load(&root, "table1", "tiny").unwrap();
        change(&mut spec);
        Plan::new(&root, &spec, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_changed_setting_changes_the_cells_that_depend_on_it_and_no_others() {
        let (a, b) = (
            plan(|_| {}),
            plan(|s| s.profile.distill.learning_rate *= 2.0),
        );
        assert_eq!(a.cells.len(), 3 + 8 * 3 + (2 + 8 * 3) * 25);
        for (x, y) in a.cells.iter().zip(&b.cells) {
            let depends = matches!(
                x.work,
                Work::Distill { .. }
                    | Work::Evaluate {
                        who: Who::Row { .. },
                        ..
                    }
            );
            assert_eq!(x.id != y.id, depends, "{}", x.id);
        }
    }

    #[test]
    fn trainings_differ_by_their_seed_and_share_teacher_and_start() {
        let (a, b) = (
            plan(|s| s.profile.training_seeds = Some(vec![1, 2])),
            plan(|s| s.profile.training_seeds = Some(vec![2])),
        );
        let trainings = |p: &Plan| -> Vec<String> {
            let is = |c: &&Cell| matches!(c.work, Work::Distill { .. });
            p.cells.iter().filter(is).map(|c| c.id.clone()).collect()
        };
        let (both, one) = (trainings(&a), trainings(&b));
        assert_eq!((both.len(), one.len()), (16, 8));
        // The training of seed 2 is the same cell, whatever other seeds there are.
        assert!(one.iter().all(|id| both.contains(id)));
        let ids: std::collections::BTreeSet<_> = both.iter().collect();
        assert_eq!(ids.len(), both.len());
        for who in [Who::Teacher, Who::Student] {
            assert_eq!(a.model(who).unwrap().id, b.model(who).unwrap().id);
        }
    }

    #[test]
    fn rows_with_equal_settings_share_their_cells() {
        let (a, b) = (
            plan(|_| {}),
            plan(|s| {
                let mut again = s.experiment.rows[7].clone();
                again.label = "Again".into();
                // the same divergence by another method's name
                again.method = "abkd".into();
                s.experiment.rows.push(again);
            }),
        );
        let ids = |p: &Plan| p.cells.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&a), ids(&b));
        let shared = b.cells.iter().filter(|c| !c.also.is_empty());
        // three trainings, and 25 evaluations of each
        assert_eq!(shared.clone().count(), 3 + 3 * 25);
        for cell in shared {
            let rows: Vec<usize> = cell
                .works()
                .map(|work| match work {
                    Work::Distill { row, .. } => row,
                    Work::Evaluate {
                        who: Who::Row { row, .. },
                        ..
                    } => row,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(rows, [7, 8]);
        }
        let who = |row| Who::Row { row, seed: 1 };
        assert_eq!(b.model(who(7)).unwrap().id, b.model(who(8)).unwrap().id);
    }

    #[test]
    fn a_row_from_the_base_needs_no_initialised_student() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "table2", "paper-openllama2").unwrap();
        let plan = Plan::new(&root, &spec, &BTreeMap::new()).unwrap();
        let init = plan
            .cells
            .iter()
            .position(|c| c.work == Work::Sft { who: Who::Student });
        for cell in &plan.cells {
            let Work::Distill { row, .. } = cell.work else {
                continue;
            };
            let label = spec.experiment.rows[row].label.as_str();
            let from_base = ["SFT", "SeqKD"].contains(&label);
            assert_eq!(cell.needs.contains(&init.unwrap()), !from_base, "{label}");
        }
        // Fresh weights are no language model: there all start from the initialised student.
        let spec = Spec::load(&root, "table2", "tiny").unwrap();
        assert!(spec.starts_are_replaced());
    }

    #[test]
    fn cells_come_after_what_they_need_and_have_ids_of_their_own() {
        let plan = plan(|_| {});
        for (i, cell) in plan.cells.iter().enumerate() {
            assert!(cell.needs.iter().all(|&n| n < i));
        }
        let ids: std::collections::BTreeSet<_> = plan.cells.iter().map(|c| &c.id).collect();
        assert_eq!(ids.len(), plan.cells.len());
    }

    #[test]
    fn figure_1_and_table_4_run_nothing_that_table_1_has_run() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let table = plan(|_| {});
        for (name, cells) in [("figure1", 3 + 8 * 3), ("table4", 3 + 7 * 3 + 7 * 3 * 25)] {
            let spec = Spec::load(&root, name, "tiny").unwrap();
            let other = Plan::new(&root, &spec, &BTreeMap::new()).unwrap();
            assert_eq!(other.cells.len(), cells);
            let known = |c: &Cell| table.cells.iter().any(|t| t.id == c.id);
            assert!(other.cells.iter().all(known), "{name}");
        }
    }
}
