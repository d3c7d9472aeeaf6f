//! Listings as text: experiments, profiles, methods, losses, data sets, and the tasks of a plan.

use std::path::Path;

use abkd_losses::Divergence;
use abkd_training::methods;
use anyhow::Result;
use clap::ValueEnum;
use serde::de::DeserializeOwned;

use crate::plan::Plan;
use crate::spec::{self, Experiment, Profile};
use crate::task::Work;

/// What can be listed.
#[derive(Clone, Copy, ValueEnum)]
pub enum Listing {
    /// Tables and figures
    Experiments,
    /// Scales
    Profiles,
    /// Distillation methods
    Methods,
    /// Divergences, with formula and parameters
    Losses,
    /// Test sets
    Datasets,
}

/// The tasks with their needs; evaluations are only counted.
pub fn tasks(plan: &Plan, done: &[bool]) -> String {
    let mut text = String::new();
    let mut evaluations = (0, 0);
    for (task, done) in plan.tasks.iter().zip(done) {
        if matches!(task.task.work, Work::Evaluate(_)) {
            evaluations.0 += 1;
            evaluations.1 += usize::from(*done);
            continue;
        }
        let needs: Vec<&str> = task
            .needs
            .iter()
            .map(|&n| plan.tasks[n].id.as_str())
            .collect();
        let needs = if needs.is_empty() {
            String::new()
        } else {
            format!("  after {}", needs.join(", "))
        };
        let status = if *done { "done" } else { "to do" };
        text += &format!("{status:8} {}{needs}\n", task.id);
    }
    if evaluations.0 > 0 {
        text += &format!(
            "{} evaluations (model x data set x seed), {} of them done\n",
            evaluations.0, evaluations.1
        );
    }
    text
}

/// The TOML files of a folder, a line each.
fn files<T: DeserializeOwned>(folder: &Path, about: fn(T) -> String) -> Result<String> {
    let mut text = String::new();
    for name in spec::names(folder)? {
        let file = spec::read_toml(&folder.join(format!("{name}.toml")))?;
        text += &format!("  {name:16} {}\n", about(file));
    }
    Ok(text)
}

/// The listing of one thing, or of all.
///
/// # Errors
///
/// When the project's folder cannot be read.
pub fn listing(what: Option<Listing>, root: &Path) -> Result<String> {
    let chosen = what.map_or(Listing::value_variants().to_vec(), |w| vec![w]);
    let mut text = String::new();
    for (i, listing) in chosen.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        match listing {
            Listing::Experiments => {
                text += "experiments\n";
                text += &files(&root.join("experiments"), |e: Experiment| e.title)?;
            }
            Listing::Profiles => {
                text += "profiles\n";
                let folder = root.join("experiments/profiles");
                text += &files(&folder, |p: Profile| p.description)?;
            }
            Listing::Methods => {
                text += "methods\n";
                for method in methods::ALL {
                    text += &format!("  {:10} {}\n", method.id, method.about);
                }
            }
            Listing::Losses => {
                text += "losses (p teacher, q student; parameters with the paper's values; each takes tau = 1, a temperature; \
                         squared = 0, or 1 to multiply the loss by tau squared; top = 0, or k for the teacher's k likeliest \
                         tokens and one class for the others; amid_lambda = 0 and amid_alpha = -1, AMiD's assistant \
                         distribution)\n";
                for d in Divergence::all() {
                    let params: Vec<String> = d
                        .params()
                        .iter()
                        .map(|(k, v)| format!("{k} = {v}"))
                        .collect();
                    text += &format!(
                        "  {:10} {:12} {}  [{}]\n",
                        d.id(),
                        d.label(),
                        d.formula(),
                        params.join(", ")
                    );
                }
            }
            Listing::Datasets => {
                text += "datasets\n";
                for set in spec::test_sets(root)? {
                    let place = set
                        .file
                        .as_ref()
                        .map(|f| format!("{} in the data folder", f.display()));
                    let place = place.or(set.path.as_ref().map(|p| p.display().to_string()));
                    text += &format!(
                        "  {:16} {:16} {}\n",
                        set.id,
                        set.label,
                        place.unwrap_or_default()
                    );
                }
            }
        }
    }
    Ok(text)
}
