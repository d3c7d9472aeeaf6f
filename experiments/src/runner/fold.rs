//! Finished tasks as the CSV files of an experiment.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{Evaluated, OneOff, Places, Trained, proof};
use crate::plan::{Plan, Who, row_label};
use crate::results::{self, CurvePoint, MassPoint, Score};
use crate::spec::{Kind, Spec};
use crate::task::Work;
use crate::timing::{self, Timing};

/// Folds finished tasks into partial CSV files of the experiment; [`publish`](super::publish()) replaces those of an
/// earlier run with them. Safe to call from several workers.
///
/// # Errors
///
/// A result that cannot be read, a CSV that cannot be written.
pub fn write_results(places: &Places, spec: &Spec, plan: &Plan) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runs = places.runs_of(spec);
    let name = &spec.experiment.name;
    let mut curves = Vec::new();
    let mut masses = Vec::new();
    let mut scores = Vec::new();
    let mut timings: Vec<(usize, Timing)> = Vec::new();
    for (planned, work) in plan.works() {
        let id = &planned.id;
        match work {
            Work::Train(_) => {
                let Some(trained) = proof::result::<Trained>(&runs, id)? else {
                    continue;
                };
                for &who in &planned.of {
                    let Who::Row { row, seed } = who else {
                        continue;
                    };
                    let loss = row_label(spec, who);
                    curves.extend(trained.curve.iter().filter_map(|r| {
                        let point = CurvePoint {
                            loss: loss.clone(),
                            training_seed: Some(seed),
                            epoch: r.epoch as u32,
                            dolly_validation_rouge_l: r.validation_rouge_l?,
                            validation_loss: r.validation_loss,
                        };
                        Some((row, point))
                    }));
                    masses.extend(trained.curve.iter().filter_map(|r| {
                        let point = MassPoint {
                            loss: loss.clone(),
                            training_seed: seed,
                            updates: r.step as u64,
                            masses: r.masses?,
                        };
                        Some((row, point))
                    }));
                }
            }
            Work::Evaluate(evaluation) => {
                let Some(found) = proof::result::<Evaluated>(&runs, id)? else {
                    continue;
                };
                for &who in &planned.of {
                    let (place, training_seed) = match who {
                        Who::Teacher => (0, None),
                        Who::Student => (1, None),
                        Who::Row { row, seed } => (2 + row, Some(seed)),
                    };
                    let Evaluated { score, examples } = found.clone();
                    let score = Score {
                        experiment: name.clone(),
                        row: row_label(spec, who),
                        training_seed,
                        dataset: evaluation.dataset.clone(),
                        sampling_seed: evaluation.seed,
                        n: score.n as u64,
                        rouge_l: score.rouge_l,
                        exact_match: score.exact_match,
                        mean_tokens: score.mean_tokens,
                        examples,
                    };
                    scores.push((place, score));
                }
            }
            Work::Time(_) => {
                let Some(timing) = proof::result::<Timing>(&runs, id)? else {
                    continue;
                };
                let rows = planned.of.iter().filter_map(|who| match who {
                    Who::Row { row, .. } => Some(*row),
                    _ => None,
                });
                timings.extend(rows.map(|row| (row, timing.clone())));
            }
            Work::TeacherAnswers(_) | Work::TeacherHidden(_) => {}
        }
    }
    let file = |end: &str| places.partial(spec, &format!("{name}{end}"));
    for (end, none) in [
        ("_curves.csv", curves.is_empty()),
        ("_masses.csv", masses.is_empty()),
    ] {
        // An interrupted run may have measured what this one does not.
        let stale = file(end);
        if none && stale.exists() {
            fs::remove_file(&stale).with_context(|| stale.display().to_string())?;
        }
    }
    if !masses.is_empty() {
        results::write_masses(&file("_masses.csv"), &in_order(masses))?;
    }
    match spec.experiment.kind {
        Kind::Curve if !curves.is_empty() => results::write_curve(&file(".csv"), &in_order(curves)),
        Kind::Table if !scores.is_empty() => {
            let scores = in_order(scores);
            if !curves.is_empty() {
                results::write_curve(&file("_curves.csv"), &in_order(curves))?;
            }
            results::write_scores(&file("_scores.csv"), &scores)?;
            results::write_examples(&file("_examples.csv"), &scores)?;
            results::fold(&scores, &spec.experiment.row_key)?.write(&file(".csv"))
        }
        Kind::Timing if !timings.is_empty() => {
            let costs = one_off_costs(&runs, plan)?;
            timing::write(&file(""), spec, &timings, costs)
        }
        _ => Ok(()),
    }
}

/// Results in the order of the rows; plan order differs, because a shared task precedes the later rows' other tasks.
fn in_order<K: Ord, T>(mut keyed: Vec<(K, T)>) -> Vec<T> {
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, value)| value).collect()
}

/// Time of the teacher's one-off tasks, in seconds per sequence.
fn one_off_costs(runs: &Path, plan: &Plan) -> Result<timing::OneOffCosts> {
    let mut costs = timing::OneOffCosts::default();
    for (planned, work) in plan.works() {
        let cost = match work {
            Work::TeacherAnswers(_) => &mut costs.answer,
            Work::TeacherHidden(_) => &mut costs.hidden,
            _ => continue,
        };
        if let Some(done) = proof::result::<OneOff>(runs, &planned.id)? {
            *cost = done.seconds / done.items.max(1) as f64;
        }
    }
    Ok(costs)
}
