//! The `abkd` command.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use abkd_data::TestSet;
use abkd_experiments::inputs::Inputs;
use abkd_experiments::plan::{Plan, Work};
use abkd_experiments::runner::{self, Ended, Places};
use abkd_experiments::spec::{self, Profile, Spec};
use abkd_experiments::verify::{Subject, verify};
use abkd_experiments::{audit, backend, report};
use abkd_losses::Divergence;
use abkd_training::Method;
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Set by Ctrl-C; runs save their state and end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Exit status of a run that was interrupted.
const INTERRUPTED: u8 = 130;

/// Reproduces the tables and figures of the ABKD paper (knowledge distillation with the alpha-beta
/// divergence, ICML 2025).
///
/// An EXPERIMENT says which rows and columns (experiments/*.toml), a PROFILE at what scale
/// (experiments/profiles/*.toml). A run is cut into cells; a finished cell is never run again, and a
/// run that was stopped goes on where it was.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  abkd list                                  what there is
  abkd run table1                            Table 1 on the default profile
  abkd run table1 --profile smollm2-smoke    the same on a real model and real data
  abkd compare table1                        ours beside the paper's
  abkd verify losses crates/losses/tests/goldens/losses.json"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the cells of an experiment without running them
    Plan(Target),
    /// Run what is not done yet, then compare and plot
    Run {
        #[command(flatten)]
        target: Target,
        /// Show what would run, and stop
        #[arg(long)]
        dry_run: bool,
        /// Cells run side by side [default: the profile's]
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Compare our results with the paper's: terminal table, CSV and Markdown
    Compare(Target),
    /// Draw the picture of an experiment from its CSV
    Plot(Target),
    /// List experiments, profiles, methods, losses or datasets
    List {
        /// What to list; all when absent
        what: Option<Listing>,
        #[command(flatten)]
        folders: Folders,
    },
    /// Check this build against a golden file or folder
    Verify {
        /// What to check
        subject: Subject,
        /// Golden file (losses, rouge) or folder (model, trajectory)
        path: PathBuf,
        /// Replaces the built-in tolerances
        #[arg(long)]
        tolerance: Option<f64>,
        /// Where to compute
        #[arg(long, default_value = "flex")]
        backend: String,
    },
    /// Show where the paper's own tables disagree
    Audit {
        #[command(flatten)]
        folders: Folders,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Listing {
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

#[derive(Args)]
struct Target {
    /// Name of an experiment, or path of a TOML file
    experiment: String,
    /// Name of a profile, or path of a TOML file
    #[arg(long, short, default_value = "tiny")]
    profile: String,
    #[command(flatten)]
    folders: Folders,
}

#[derive(Args)]
struct Folders {
    /// The project's folder
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Checkpoints, answers and logs [default: ROOT/runs]
    #[arg(long)]
    runs: Option<PathBuf>,
    /// CSV [default: ROOT/results]
    #[arg(long)]
    results: Option<PathBuf>,
    /// PNG [default: ROOT/figures]
    #[arg(long)]
    figures: Option<PathBuf>,
}

impl Folders {
    fn places(&self) -> Places {
        let or = |given: &Option<PathBuf>, name: &str| {
            given.clone().unwrap_or_else(|| self.root.join(name))
        };
        Places {
            root: self.root.clone(),
            runs: or(&self.runs, "runs"),
            results: or(&self.results, "results"),
            figures: or(&self.figures, "figures"),
        }
    }
}

impl Target {
    fn load(&self) -> Result<Spec> {
        Spec::load(&self.folders.root, &self.experiment, &self.profile)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        // A reader that has gone away (`abkd list | head`) is no error of ours.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// The chain of causes on one line; a cause that its error quotes already is not repeated.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Plan(target) => show_plan(&target),
        Command::Run {
            target,
            dry_run: true,
            ..
        } => show_plan(&target),
        Command::Run { target, jobs, .. } => run_experiment(&target, jobs),
        Command::Compare(target) => {
            let text = report::compare(&target.folders.places(), &target.load()?)?;
            print(&text)
        }
        Command::Plot(target) => {
            let path = report::draw(&target.folders.places(), &target.load()?)?;
            print(&format!("{}\n", path.display()))
        }
        Command::List { what, folders } => print(&listing(what, &folders.root)?),
        Command::Verify {
            subject,
            path,
            tolerance,
            backend,
        } => verify_goldens(subject, &path, tolerance, &backend),
        Command::Audit { folders } => {
            let findings = audit::audit(&folders.places().paper(""))?;
            let lines: Vec<String> = findings.iter().map(|f| format!("- {f}\n")).collect();
            print(&lines.concat())
        }
    }
}

fn print(text: &str) -> Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn run_experiment(target: &Target, jobs: Option<usize>) -> Result<ExitCode> {
    let mut spec = target.load()?;
    if let Some(jobs) = jobs {
        anyhow::ensure!(jobs > 0, "--jobs 0: at least one cell must run");
        spec.profile.jobs = jobs;
    }
    let places = target.folders.places();
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!(
            "\nstopping after the current step; the state is saved (press again to stop at once)"
        );
    })
    .context("Ctrl-C cannot be caught")?;
    runner::check_inputs(&places, &spec)?;
    let inputs = Inputs::load(&places.root, &spec)?;
    let plan = Plan::new(&places.root, &spec, &inputs.hashes)?;
    match runner::run(&places, &spec, &plan, &inputs, &STOP)? {
        Ended::Interrupted => {
            eprintln!("interrupted; the same command goes on from here");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Ended::Finished => {
            let figure = report::draw(&places, &spec)?;
            let text = report::compare(&places, &spec)?;
            print(&format!("{text}\nfigure: {}\n", figure.display()))
        }
    }
}

fn show_plan(target: &Target) -> Result<ExitCode> {
    let spec = target.load()?;
    let places = target.folders.places();
    // A plan is worth showing without data or weights too; the ids are then not final.
    let inputs = Inputs::load(&places.root, &spec);
    let hashes = match &inputs {
        Ok(inputs) => inputs.hashes.clone(),
        Err(error) => {
            eprintln!("note: inputs are not complete, so ids may change: {error:#}");
            Default::default()
        }
    };
    let plan = Plan::new(&places.root, &spec, &hashes)?;
    let mut text = String::new();
    let mut evaluations = (0, 0);
    for cell in &plan.cells {
        let done = runner::is_done(&places, &spec, cell);
        if matches!(cell.work, Work::Evaluate { .. }) {
            evaluations.0 += 1;
            evaluations.1 += usize::from(done);
            continue;
        }
        let needs: Vec<&str> = cell
            .needs
            .iter()
            .map(|&n| plan.cells[n].id.as_str())
            .collect();
        let needs = if needs.is_empty() {
            String::new()
        } else {
            format!("  after {}", needs.join(", "))
        };
        text += &format!(
            "{:8} {}{needs}\n",
            if done { "done" } else { "to do" },
            cell.id
        );
    }
    text += &format!(
        "{} evaluations (model x data set x seed), {} of them done\n",
        evaluations.0, evaluations.1
    );
    print(&text)
}

fn verify_goldens(
    subject: Subject,
    path: &Path,
    tolerance: Option<f64>,
    backend: &str,
) -> Result<ExitCode> {
    let checks = verify(subject, path, tolerance, &backend::device(backend)?)?;
    let mut text = String::new();
    let mut failed = 0;
    for check in &checks {
        // not `error > tolerance`: NaN fails
        let ok = check.error <= check.tolerance;
        failed += usize::from(!ok);
        let verdict = if ok { "ok" } else { "FAILED" };
        text += &format!(
            "{verdict:6} {:.3e} (limit {:.0e})  {}\n",
            check.error, check.tolerance, check.name
        );
    }
    text += &format!(
        "{} of {} entries within their tolerance\n",
        checks.len() - failed,
        checks.len()
    );
    print(&text)?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn listing(what: Option<Listing>, root: &Path) -> Result<String> {
    let all = [
        Listing::Experiments,
        Listing::Profiles,
        Listing::Methods,
        Listing::Losses,
        Listing::Datasets,
    ];
    let chosen = what.map_or(all.to_vec(), |w| vec![w]);
    let mut text = String::new();
    for (i, listing) in chosen.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        match listing {
            Listing::Experiments => {
                text += "experiments\n";
                let folder = root.join("experiments");
                for name in spec::names(&folder)? {
                    let e: spec::Experiment =
                        spec::read_toml(&folder.join(format!("{name}.toml")))?;
                    text += &format!("  {name:16} {}\n", e.title);
                }
            }
            Listing::Profiles => {
                text += "profiles\n";
                let folder = root.join("experiments/profiles");
                for name in spec::names(&folder)? {
                    let p: Profile = spec::read_toml(&folder.join(format!("{name}.toml")))?;
                    text += &format!("  {name:16} {}\n", p.description);
                }
            }
            Listing::Methods => {
                text += "methods\n";
                for (id, line) in Method::IDS {
                    text += &format!("  {id:10} {line}\n");
                }
            }
            Listing::Losses => {
                text += "losses (p teacher, q student; parameters with the paper's values)\n";
                for id in Divergence::IDS {
                    let d = Divergence::from_parts(id, &Default::default())?;
                    let params: Vec<String> = d
                        .params()
                        .iter()
                        .map(|(k, v)| format!("{k} = {v}"))
                        .collect();
                    text += &format!(
                        "  {id:10} {:12} {}  [{}]\n",
                        d.label(),
                        d.formula(),
                        params.join(", ")
                    );
                }
            }
            Listing::Datasets => {
                text += "datasets\n";
                for set in TestSet::ALL {
                    text += &format!("  {:16} {}\n", set.id(), set.label());
                }
            }
        }
    }
    Ok(text)
}
