//! From a spec to tasks, each after the tasks that it needs.

use std::collections::BTreeMap;
use std::path::Path;

use abkd_training::cache::CacheMode;
use abkd_training::{Method, Settings};
use anyhow::{Context, Result};

use crate::inputs::checkpoints::Side;
use crate::inputs::identity;
use crate::spec::{Kind, Recipe, STUDENT, Spec, TEACHER};
use crate::task::{Answers, Evaluation, Hidden, Model, Task, TaskId, Timed, Training, Work};

/// The model that a task belongs to in an experiment.
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

/// A task in an experiment.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Name and hash; also its folder.
    pub id: TaskId,
    /// The task.
    pub task: Task,
    /// Models that the task belongs to; rows with equal settings share a task.
    pub of: Vec<Who>,
    /// Tasks that must be finished first, as indices into the plan.
    pub needs: Vec<usize>,
}

impl Planned {
    /// The side whose base model has the shape of the model that the task works on.
    pub fn side(&self) -> Side {
        match self.of[0] {
            Who::Teacher => Side::Teacher,
            _ => Side::Student,
        }
    }

    /// Kind of the task; tasks of one kind take about the same time.
    pub fn kind(&self) -> String {
        let row = |who: Option<&Who>| match who {
            Some(Who::Row { row, .. }) => format!("row {row}"),
            who => format!("{who:?}"),
        };
        match &self.task.work {
            Work::TeacherHidden(_) => "hidden".into(),
            Work::TeacherAnswers(_) => "answers".into(),
            // methods differ in their sampling
            Work::Train(_) => format!("train {}", row(self.of.first())),
            Work::Time(_) => format!("time {}", row(self.of.first())),
            Work::Evaluate(e) => {
                let teacher = self.of.first() == Some(&Who::Teacher);
                format!("evaluate {} {}", e.dataset, u8::from(teacher))
            }
        }
    }
}

/// All tasks of a spec, each after its needs.
#[derive(Default)]
pub struct Plan {
    /// The tasks.
    pub tasks: Vec<Planned>,
}

/// Builds a plan.
struct Planner<'a> {
    spec: &'a Spec,
    hashes: &'a BTreeMap<String, String>,
    plan: Plan,
    /// Index of a task by the end of its id: a task has one name.
    known: BTreeMap<String, usize>,
}

impl Plan {
    /// Plans `spec`; `hashes` are those of the inputs ([`Inputs::hashes`](crate::inputs::Inputs)).
    ///
    /// # Errors
    ///
    /// A checkpoint that cannot be read.
    pub fn new(root: &Path, spec: &Spec, hashes: &BTreeMap<String, String>) -> Result<Self> {
        let p = &spec.profile;
        let mut planner = Planner {
            spec,
            hashes,
            plan: Self::default(),
            known: BTreeMap::new(),
        };
        let base = |side: Side| {
            let identity = identity(root, side.of(spec), &p.teacher)?;
            Ok::<_, anyhow::Error>(Model::Base { side, identity })
        };
        let (teacher_base, student_base) = (base(Side::Teacher)?, base(Side::Student)?);
        let teacher = planner.tuned(
            Who::Teacher,
            "teacher-sft",
            p.teacher_sft.as_ref(),
            &teacher_base,
        )?;
        let student = planner.tuned(
            Who::Student,
            "student-sft",
            p.student_sft.as_ref(),
            &student_base,
        )?;
        match spec.experiment.kind {
            Kind::Timing => planner.timings(&student_base, &student, &teacher)?,
            kind => {
                let scored = kind == Kind::Table;
                if scored && spec.experiment.references {
                    planner.evaluations(Who::Teacher, &teacher)?;
                    planner.evaluations(Who::Student, &student)?;
                }
                // All rows once, each scored when it is trained, before any row a second time: a run that is cut short
                // leaves a table with fewer trainings, not one with fewer rows.
                let most = spec.recipes.iter().map(|recipe| recipe.seeds.len()).max();
                for turn in 0..most.unwrap_or(0) {
                    for (row, recipe) in spec.recipes.iter().enumerate() {
                        let Some(&seed) = recipe.seeds.get(turn) else {
                            continue;
                        };
                        let start = recipe.start.of(&student_base, &student);
                        let mut training = planner.training(recipe, start, &teacher)?;
                        training.settings.seed = seed;
                        let who = Who::Row { row, seed };
                        let name = format!("distill-{}-t{seed}", recipe.short);
                        let id = planner.add(&name, Work::Train(training), who)?;
                        if scored {
                            let model = start.trained(id, &recipe.settings);
                            planner.evaluations(who, &model)?;
                        }
                    }
                }
            }
        }
        Ok(planner.plan)
    }

    /// Index of the task with this id, if it is planned.
    pub fn index(&self, id: &TaskId) -> Option<usize> {
        self.tasks.iter().position(|planned| planned.id == *id)
    }

    /// The tasks with their work.
    pub fn works(&self) -> impl Iterator<Item = (&Planned, &Work)> {
        self.tasks
            .iter()
            .map(|planned| (planned, &planned.task.work))
    }
}

impl Planner<'_> {
    /// Plans the timed updates of all rows, one repeat after the other.
    fn timings(&mut self, base: &Model, initialised: &Model, teacher: &Model) -> Result<()> {
        let timing = &self.spec.profile.timing;
        for repeat in 0..timing.repeats {
            for (row, recipe) in self.spec.recipes.iter().enumerate() {
                let start = recipe.start.of(base, initialised);
                let work = Work::Time(Timed {
                    training: self.training(recipe, start, teacher)?,
                    timing: timing.clone(),
                    repeat,
                });
                let seed = recipe.settings.seed;
                let name = format!("time-{}-{}", recipe.short, repeat + 1);
                self.add(&name, work, Who::Row { row, seed })?;
            }
        }
        Ok(())
    }

    /// Adds a task, unless it is planned under any name; returns its id.
    fn add(&mut self, name: &str, work: Work, who: Who) -> Result<TaskId> {
        let task = Task::new(self.spec, &self.hash("tokenizer"), work);
        let end = task.id("")?;
        if let Some(&index) = self.known.get(&end) {
            let planned = &mut self.plan.tasks[index];
            if !planned.of.contains(&who) {
                planned.of.push(who);
            }
            return Ok(planned.id.clone());
        }
        let id = format!("{name}{end}");
        let needs = task.needs().into_iter().map(|id| self.plan.index(id));
        let needs = needs.collect::<Option<Vec<_>>>();
        let needs = needs.context("a task is planned after those that it needs")?;
        self.known.insert(end, self.plan.tasks.len());
        self.plan.tasks.push(Planned {
            id: id.clone(),
            task,
            of: vec![who],
            needs,
        });
        Ok(id)
    }

    fn hash(&self, name: &str) -> String {
        self.hashes
            .get(name)
            .map_or("unknown", String::as_str)
            .into()
    }

    /// The model, fine-tuned on the data if the profile says so.
    fn tuned(
        &mut self,
        who: Who,
        name: &str,
        sft: Option<&Settings>,
        base: &Model,
    ) -> Result<Model> {
        let Some(settings) = sft else {
            return Ok(base.clone());
        };
        let training = Training {
            student: base.clone(),
            teacher: None,
            method: Method::sft(),
            kd_ratio: self.spec.profile.kd_ratio,
            settings: settings.clone(),
            train: self.hash("train"),
            valid: self.hash("valid"),
            text: None,
            hidden: None,
            answers: None,
            validation: self.spec.profile.validation.clone(),
        };
        let id = self.add(name, Work::Train(training), who)?;
        Ok(base.trained(id, settings))
    }

    /// The training of a row, with the seed of its settings; plans the teacher's tasks that it needs.
    fn training(&mut self, recipe: &Recipe, start: &Model, teacher: &Model) -> Result<Training> {
        let p = &self.spec.profile;
        let method = &recipe.method;
        let answers = match method.teacher_answers() {
            Some(longest) => {
                let work = Work::TeacherAnswers(Answers {
                    teacher: teacher.clone(),
                    train: self.hash("train"),
                    max_new_tokens: longest.unwrap_or(p.data.max_new_tokens()),
                    bos: p.evaluation.bos,
                    batch_size: p.evaluation.batch_size,
                    seed: p.distill.seed,
                });
                Some(self.add("teacher-answers", work, Who::Teacher)?)
            }
            None => None,
        };
        let hidden = if method.uses_teacher_on_data() && p.teacher_cache != CacheMode::Off {
            let work = Work::TeacherHidden(Hidden {
                teacher: teacher.clone(),
                train: self.hash("train"),
                mode: p.teacher_cache,
                batch_size: p.distill.batch_size,
            });
            Some(self.add("teacher-hidden", work, Who::Teacher)?)
        } else {
            None
        };
        Ok(Training {
            student: start.clone(),
            teacher: method.needs_teacher().then(|| teacher.clone()),
            method: method.clone(),
            kd_ratio: recipe.kd_ratio,
            settings: recipe.settings.clone(),
            train: self.hash("train"),
            valid: self.hash("valid"),
            text: recipe.with_text.then(|| self.hash("text")),
            hidden,
            answers,
            validation: p.validation.clone(),
        })
    }

    fn evaluations(&mut self, who: Who, model: &Model) -> Result<()> {
        let spec = self.spec;
        let whose = match who {
            Who::Teacher => "teacher".into(),
            Who::Student => "student".into(),
            Who::Row { row, seed } => format!("{}-t{seed}", spec.recipes[row].short),
        };
        for set in &spec.tests {
            for &seed in &spec.experiment.seeds {
                let work = Work::Evaluate(Evaluation {
                    model: model.clone(),
                    dataset: set.id.clone(),
                    examples: self.hash(&set.id),
                    decoding: spec.profile.evaluation.clone(),
                    seed,
                });
                let name = format!("evaluate-{whose}-{}-s{seed}", set.id);
                self.add(&name, work, who)?;
            }
        }
        Ok(())
    }
}

/// Label of a model in tables.
pub fn row_label(spec: &Spec, who: Who) -> String {
    match who {
        Who::Teacher => TEACHER.into(),
        Who::Student => STUDENT.into(),
        Who::Row { row, .. } => spec.recipes[row].label.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut Spec)) -> Plan {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut spec = Spec::load(&root, "table1", "tiny").unwrap();
        change(&mut spec);
        spec.resolve().unwrap();
        Plan::new(&root, &spec, &BTreeMap::new()).unwrap()
    }

    /// Whether a task trains a row's student.
    fn is_training(planned: &Planned) -> bool {
        matches!(planned.task.work, Work::Train(_)) && matches!(planned.of[0], Who::Row { .. })
    }

    #[test]
    fn a_changed_setting_changes_the_tasks_that_depend_on_it_and_no_others() {
        let (a, b) = (
            plan(|_| {}),
            plan(|s| s.profile.distill.learning_rate *= 2.0),
        );
        assert_eq!(a.tasks.len(), 3 + 8 * 3 + (2 + 8 * 3) * 25);
        for (x, y) in a.tasks.iter().zip(&b.tasks) {
            let depends = matches!(x.of[0], Who::Row { .. });
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
            let rows = p.tasks.iter().filter(|t| is_training(t));
            rows.map(|t| t.id.clone()).collect()
        };
        let (both, one) = (trainings(&a), trainings(&b));
        assert_eq!((both.len(), one.len()), (16, 8));
        // The training of seed 2 is the same task, whatever other seeds there are.
        assert!(one.iter().all(|id| both.contains(id)));
        let ids: std::collections::BTreeSet<_> = both.iter().collect();
        assert_eq!(ids.len(), both.len());
        let tuned = |p: &Plan, who| {
            let of = |t: &&Planned| t.of == [who] && matches!(t.task.work, Work::Train(_));
            p.tasks.iter().find(of).unwrap().id.clone()
        };
        for who in [Who::Teacher, Who::Student] {
            assert_eq!(tuned(&a, who), tuned(&b, who));
        }
    }

    #[test]
    fn an_adapter_sits_on_what_it_was_trained_on() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "table2", "tiny").unwrap();
        let plan = Plan::new(&root, &spec, &BTreeMap::new()).unwrap();
        let of = |who: Who| {
            let models = plan.works().filter_map(|(planned, work)| match work {
                Work::Evaluate(e) if planned.of[0] == who => Some(e.model.clone()),
                _ => None,
            });
            models.into_iter().next().unwrap()
        };
        let Model::Trained {
            adapter_on: Some(on),
            ..
        } = of(Who::Row { row: 0, seed: 1 })
        else {
            panic!("tiny's Table 2 trains adapters");
        };
        assert_eq!(on.task(), of(Who::Student).task());
    }

    #[test]
    fn rows_with_equal_settings_share_their_tasks() {
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
        let ids = |p: &Plan| p.tasks.iter().map(|t| t.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&a), ids(&b));
        let shared = b
            .tasks
            .iter()
            .filter(|t| t.of.len() > 1 && t.of[0] != Who::Teacher);
        // three trainings, and 25 evaluations of each
        assert_eq!(shared.clone().count(), 3 + 3 * 25);
        for planned in shared {
            let rows: Vec<usize> = planned
                .of
                .iter()
                .map(|who| match who {
                    Who::Row { row, .. } => *row,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(rows, [7, 8]);
        }
    }

    #[test]
    fn a_row_from_the_base_needs_no_initialised_student() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "table2", "paper-openllama2").unwrap();
        let plan = Plan::new(&root, &spec, &BTreeMap::new()).unwrap();
        let init = plan
            .tasks
            .iter()
            .position(|t| t.of == [Who::Student])
            .unwrap();
        for planned in plan.tasks.iter().filter(|t| is_training(t)) {
            let Who::Row { row, .. } = planned.of[0] else {
                continue;
            };
            let label = spec.recipes[row].label.as_str();
            let from_base = ["SFT", "SeqKD"].contains(&label);
            assert_eq!(planned.needs.contains(&init), !from_base, "{label}");
        }
        // Fresh weights are no language model: in `tiny` all rows start from the initialised student.
        let spec = Spec::load(&root, "table2", "tiny").unwrap();
        assert!(spec.starts_are_replaced());
    }

    #[test]
    fn every_row_is_trained_and_scored_once_before_any_is_a_second_time() {
        let plan = plan(|_| {});
        let of = |seed| {
            let tasks = plan.tasks.iter().enumerate();
            let mine = tasks
                .filter(move |(_, t)| matches!(t.of[0], Who::Row { seed: s, .. } if s == seed));
            mine.map(|(index, _)| index).collect::<Vec<_>>()
        };
        for seed in [1, 2] {
            assert_eq!(of(seed).len(), 8 * 26);
            assert!(of(seed).last() < of(seed + 1).first());
        }
    }

    #[test]
    fn tasks_come_after_what_they_need_and_have_ids_of_their_own() {
        let plan = plan(|_| {});
        for (i, planned) in plan.tasks.iter().enumerate() {
            assert!(planned.needs.iter().all(|&n| n < i));
        }
        let ids: std::collections::BTreeSet<_> = plan.tasks.iter().map(|t| &t.id).collect();
        assert_eq!(ids.len(), plan.tasks.len());
    }

    #[test]
    fn figure_1_and_table_4_run_nothing_that_table_1_has_run() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let table = plan(|_| {});
        for (name, tasks) in [("figure1", 3 + 8 * 3), ("table4", 3 + 7 * 3 + 7 * 3 * 25)] {
            let spec = Spec::load(&root, name, "tiny").unwrap();
            let other = Plan::new(&root, &spec, &BTreeMap::new()).unwrap();
            assert_eq!(other.tasks.len(), tasks);
            let known = |c: &Planned| table.tasks.iter().any(|t| t.id == c.id);
            assert!(other.tasks.iter().all(known), "{name}");
        }
    }
}
