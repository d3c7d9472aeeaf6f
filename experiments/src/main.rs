//! The `abkd` command.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use abkd_data::hub::Hub;
use abkd_data::indexed::{self, Documents, IndexedTokens};
use abkd_data::{Tokenizer, read_answered};
use abkd_experiments::backend::Cards;
use abkd_experiments::estimate::{self, Accelerator, Estimate};
use abkd_experiments::inputs::{is_absent, leave_out_padding};
use abkd_experiments::listing::{self, Listing};
use abkd_experiments::message::{describe, say, terminal_width};
use abkd_experiments::own::{Distill, Eval, Generate};
use abkd_experiments::plan::Plan;
use abkd_experiments::preflight;
use abkd_experiments::runner::{self, Ended, How, Places, Slurm, Submission};
use abkd_experiments::spec::{self, Spec};
use abkd_experiments::verify::{Subject, verify};
use abkd_experiments::{audit, backend, fetch, page, plot, report};
use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Set by Ctrl-C; runs then save their state and stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// Exit status of a run that was interrupted.
const INTERRUPTED: u8 = 130;

/// Reproduces the tables and figures of the ABKD paper (knowledge distillation with the alpha-beta
/// divergence, ICML 2025), and distils a pair of models of your own on your own data.
///
/// An EXPERIMENT names rows and columns (experiments/*.toml), a PROFILE the scale
/// (experiments/profiles/*.toml). A run consists of tasks; a finished task is never run again, and an
/// interrupted run resumes.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  abkd list                                  what there is
  abkd run table1                            Table 1 on the default profile
  abkd run table1 --profile smollm2-smoke    the same on a real model and real data
  abkd compare table1                        ours beside the paper's, with intervals and a verdict
  abkd report table1                         the same on one page, with pictures and answers
  abkd distill TEACHER layers:10 --data train.jsonl --out my-student    a student of your own
  abkd verify losses crates/losses/tests/goldens/losses.json
  abkd check emit cases                      test cases for your own implementation of a loss"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the tasks of an experiment and their cost, without running them
    ///
    /// Parameters, tokens, floating-point operations, peak memory by part and disk are computed from the
    /// profile and, if present, the data. Time needs a measurement or a machine's name.
    Plan {
        #[command(flatten)]
        target: Target,
        /// Measure some updates and answers of each kind on this machine, for the expected time
        #[arg(long)]
        calibrate: bool,
        /// Expected time on another machine
        #[arg(long, value_name = "NAME", value_enum)]
        accelerator: Option<Accelerator>,
    },
    /// Run the tasks that are not done yet, then compare and plot
    Run {
        #[command(flatten)]
        target: Target,
        /// Show what would run, then stop; with `--executor slurm`, the scripts that would be submitted
        #[arg(long)]
        dry_run: bool,
        /// Number of tasks run in parallel [default: the profile's]
        #[arg(long)]
        jobs: Option<usize>,
        /// Who runs the tasks
        #[arg(long, value_enum, default_value = "local")]
        executor: ExecutorName,
    },
    /// Run one task from its folder alone, as a cluster's job does
    ///
    /// The folder holds `task.json`, written by `abkd run`. Data and models are read from the paths in it, and must be those
    /// that the task was planned for.
    Task {
        /// Folder of the task, next to the folders of the tasks that it needs
        folder: PathBuf,
        /// The project's folder, if it has another path on this machine
        #[arg(long)]
        root: Option<PathBuf>,
        /// Card to compute on, e.g. 1 [default: the first]
        #[arg(long, value_name = "CARD")]
        device: Option<Cards>,
    },
    /// Distil a student from your own teacher, on your own data
    ///
    /// Creates the folder DIR: student/ (a Hugging Face folder with its tokenizer and a model card), curve.png, scores.csv,
    /// answers.md, and profile.toml and experiment.toml for `abkd run`. The same command resumes an interrupted run.
    /// All arguments are checked before anything runs.
    #[command(after_help = "Examples:
  abkd distill ./teacher layers:10 --data train.jsonl --out first
  abkd distill HuggingFaceTB/SmolLM2-360M-Instruct HuggingFaceTB/SmolLM2-135M --data train.jsonl --test mine=test.jsonl --out second
  abkd distill ./teacher ./student --data chats.jsonl --columns messages=conversation --loss rkld --lora 16 --out third
  abkd generate first/student --prompt 'Name three rivers.'")]
    Distill(Box<Distill>),
    /// Score a model's answers to test sets: ROUGE-L, with an interval over the examples
    #[command(after_help = "Examples:
  abkd eval first/student --test mine=test.jsonl
  abkd eval ./teacher --test mine=test.jsonl --test other=b.jsonl --seeds 10,20,30 --out answers")]
    Eval(Eval),
    /// Have a model answer a prompt; the answer alone goes to stdout
    #[command(after_help = "Examples:
  abkd generate first/student --prompt 'Name three rivers.'
  abkd generate ./teacher --raw --prompt 'Once upon a time' --temperature 0 --max-new-tokens 40")]
    Generate(Generate),
    /// Compare our results with the paper's: terminal table, CSV and Markdown
    Compare(Target),
    /// Draw the picture of an experiment from its CSV
    Plot(Target),
    /// Write a report: one HTML file with verdicts, tables, pictures, trainings and answers, which needs no network
    Report {
        #[command(flatten)]
        target: Target,
        /// Where to write it [default: RESULTS/PROFILE/EXPERIMENT_report.html]
        #[arg(long)]
        out: Option<PathBuf>,
    },
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
        /// Golden file (losses, rouge, minillm, gjsd, schedule, adapter) or folder (model, trajectory)
        path: PathBuf,
        /// Replaces the built-in tolerances
        #[arg(long)]
        tolerance: Option<f64>,
        /// Where to compute
        #[arg(long, default_value = "flex")]
        backend: String,
        /// Card to compute on, e.g. 1 [default: the first]
        #[arg(long, value_name = "CARD")]
        device: Option<Cards>,
    },
    /// Check another implementation of a distillation loss: write test cases, then judge its results
    ///
    /// The verdict names the divergence and direction that its gradient belongs to, its scale factor, how it averages over
    /// tokens, and the cases that it fails. No model and no data are needed.
    #[command(subcommand)]
    Check(CheckCommand),
    /// Fetch a profile's data sets or checkpoints from the Hugging Face Hub
    ///
    /// HF_ENDPOINT (a mirror), HF_TOKEN and HF_HOME (the cache) are used. Existing files are not fetched again, and an
    /// interrupted transfer resumes.
    Fetch {
        /// What to fetch
        what: Fetchable,
        /// Name of a profile, or path of a TOML file
        #[arg(long, short)]
        profile: String,
        #[command(flatten)]
        folders: Folders,
    },
    /// Write and read indexed token files (.bin and .idx)
    #[command(subcommand)]
    Data(DataCommand),
    /// Draw the benchmarks' comparison with PyTorch (results/bench/*.csv, made by `make bench`)
    Bench {
        #[command(flatten)]
        folders: Folders,
    },
    /// Show where the paper's own tables disagree
    Audit {
        #[command(flatten)]
        folders: Folders,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExecutorName {
    /// This process
    Local,
    /// A Slurm cluster, as the profile's `[slurm]` says; the command submits and ends, and a last job writes the tables
    Slurm,
    /// No task runs: only write the tables of the finished tasks
    Fold,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fetchable {
    /// Training, validation and test sets, into the profile's data folder
    Data,
    /// Teacher and student, into their checkpoint folders
    Weights,
}

#[derive(Subcommand)]
enum CheckCommand {
    /// Write the cases into a folder: logits and labels, the right values, and a README that says what to compute
    Emit {
        /// A new or empty folder
        folder: PathBuf,
    },
    /// Judge another program's losses and gradients; status 1 where something is wrong
    Judge {
        /// The folder of the cases
        folder: PathBuf,
        /// safetensors with CASE.loss and CASE.grad
        theirs: PathBuf,
    },
}

#[derive(Subcommand)]
enum DataCommand {
    /// Pack JSONL examples into PREFIX.bin and PREFIX.idx, in the published format
    Pack {
        /// JSONL, or Parquet named .parquet, with instruction, input and output
        jsonl: PathBuf,
        /// The two files without their suffix
        prefix: PathBuf,
        #[command(flatten)]
        tokenizer: TokenizerArgs,
    },
    /// Print PREFIX.bin and PREFIX.idx as JSONL: prompt and output, or text
    Unpack {
        /// The two files without their suffix
        prefix: PathBuf,
        #[command(flatten)]
        tokenizer: TokenizerArgs,
    },
}

#[derive(Args)]
struct TokenizerArgs {
    /// tokenizer.json
    #[arg(long)]
    tokenizer: PathBuf,
    /// The token that ends a text, or its number [default: as the files beside tokenizer.json say]
    #[arg(long, value_name = "ID|TOKEN", allow_hyphen_values = true)]
    eos: Option<String>,
}

impl TokenizerArgs {
    fn load(&self) -> Result<Tokenizer> {
        Ok(match &self.eos {
            Some(eos) => Tokenizer::from_file_with_eos(&self.tokenizer, eos)?,
            None => Tokenizer::from_file(&self.tokenizer, None)?,
        })
    }
}

#[derive(Args)]
struct Target {
    /// Name of an experiment, or path of a TOML file
    experiment: String,
    /// Name of a profile, or path of a TOML file
    #[arg(long, short, default_value = "tiny")]
    profile: String,
    /// Where to compute, instead of the profile's backend: flex, tch, tch-cuda, cuda or wgpu
    #[arg(long)]
    backend: Option<String>,
    /// Cards to compute on, e.g. 0, cuda:1 or 0,1; several share the tasks [default: the first]
    #[arg(long, value_name = "CARDS")]
    device: Option<Cards>,
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
        let mut spec = Spec::load(&self.folders.root, &self.experiment, &self.profile)?;
        if let Some(name) = &self.backend {
            backend::known(name).context("--backend")?;
            spec.profile.backend.clone_from(name);
        }
        if let Some(cards) = &self.device {
            spec.use_cards(cards.clone());
        }
        leave_out_padding(&self.folders.root, &mut spec);
        Ok(spec)
    }

    /// [`load`](Self::load), with another number of parallel tasks than the profile's if it is given.
    fn load_with(&self, jobs: Option<usize>) -> Result<Spec> {
        let mut spec = self.load()?;
        if let Some(jobs) = jobs {
            spec.profile.jobs = jobs;
            spec.check_jobs("--jobs")?;
        }
        Ok(spec)
    }
}

fn main() -> ExitCode {
    abkd_host::keep_freed_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are output, too: a failed write is an error.
        Err(answer) => {
            let status = u8::try_from(answer.exit_code()).unwrap_or(2);
            return match answer.print() {
                Ok(()) => ExitCode::from(status),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    abkd_host::share_cores_with_libtorch();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {}", describe(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Plan {
            target,
            calibrate,
            accelerator,
        } => show_plan(&target, &target.load()?, calibrate, accelerator),
        Command::Run {
            target,
            dry_run: true,
            jobs,
            executor: ExecutorName::Local | ExecutorName::Fold,
        } => show_plan(&target, &target.load_with(jobs)?, false, None),
        Command::Run {
            target,
            dry_run,
            jobs,
            executor,
        } => run_experiment(&target, jobs, executor, dry_run),
        Command::Task {
            folder,
            root,
            device,
        } => {
            catch_interrupts()?;
            let cards = device.unwrap_or_default();
            match runner::run_task(&folder, root.as_deref(), &cards, &STOP)? {
                Ended::Interrupted => Ok(interrupted()),
                _ => Ok(ExitCode::SUCCESS),
            }
        }
        Command::Distill(args) => distill(&args),
        Command::Eval(args) => print(&args.run()?),
        Command::Generate(args) => print(&args.run()?),
        Command::Compare(target) => {
            let (places, spec) = (target.folders.places(), target.load()?);
            let evidence = report::evidence(&places, &spec)?;
            let text = report::compare(&places, &spec, evidence, terminal_width())?;
            print(&text)
        }
        Command::Plot(target) => {
            let (places, spec) = (target.folders.places(), target.load()?);
            let evidence = report::evidence(&places, &spec)?;
            let path = report::draw(&places, &spec, evidence.as_ref())?;
            print(&format!("{}\n", path.display()))
        }
        Command::Report { target, out } => write_report(&target, out.as_deref()),
        Command::List { what, folders } => print(&listing::listing(what, &folders.root)?),
        Command::Verify {
            subject,
            path,
            tolerance,
            backend,
            device,
        } => {
            let cards = device.unwrap_or_default();
            let device = backend::device(cards.backend(&backend), &cards)?;
            verify_goldens(subject, &path, tolerance, &device)
        }
        Command::Fetch {
            what,
            profile,
            folders,
        } => {
            let profile = spec::load_profile(&folders.root, &profile)?;
            let hub = Hub::from_env()?;
            let lines = match what {
                Fetchable::Data => fetch::data(&hub, &folders.root, &profile)?,
                Fetchable::Weights => fetch::weights(&hub, &folders.root, &profile)?,
            };
            print(&(lines.join("\n") + "\n"))
        }
        Command::Data(command) => data_command(&command),
        Command::Check(CheckCommand::Emit { folder }) => {
            let files = abkd_referee::emit(&folder)?;
            let lines: Vec<String> = files.iter().map(|f| format!("{}\n", f.display())).collect();
            print(&lines.concat())
        }
        Command::Check(CheckCommand::Judge { folder, theirs }) => {
            let verdict = abkd_referee::judge(&folder, &theirs)?;
            print(&verdict.to_string())?;
            Ok(u8::from(!verdict.is_right()).into())
        }
        Command::Bench { folders } => {
            let places = folders.places();
            let path = places.figures.join("bench.png");
            plot::ratios(&places.results.join("bench"), &path)?;
            print(&format!("{}\n", path.display()))
        }
        Command::Audit { folders } => {
            let findings = audit::audit(&folders.places().paper(""))?;
            let lines: Vec<String> = findings.iter().map(|f| format!("- {f}\n")).collect();
            print(&lines.concat())
        }
    }
}

fn data_command(command: &DataCommand) -> Result<ExitCode> {
    match command {
        DataCommand::Pack {
            jsonl,
            prefix,
            tokenizer,
        } => {
            let tokenizer = tokenizer.load()?;
            let documents = indexed::pack(&read_answered(jsonl)?, &tokenizer)?;
            indexed::write_indexed(prefix, &documents)?;
            let values: usize = documents.iter().map(Vec::len).sum();
            print(&format!("{} documents, {values} values\n", documents.len()))
        }
        DataCommand::Unpack { prefix, tokenizer } => {
            let tokenizer = tokenizer.load()?;
            let tokens = IndexedTokens::open(prefix)?;
            tokens.check_ids(tokenizer.vocab_size(), Documents::Instructions)?;
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            for i in 0..tokens.len() {
                writeln!(out, "{}", tokens.line(i, &tokenizer)?).context(STDOUT)?;
            }
            out.flush().context(STDOUT)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Error message for a failed write to stdout.
const STDOUT: &str = "stdout cannot be written to";

/// Writes data to stdout. A closed pipe loses data, which is an error as on any file.
fn print(text: &str) -> Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context(STDOUT)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes Ctrl-C and a termination signal save the state and stop.
fn catch_interrupts() -> Result<()> {
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        say(
            "\nstopping after the current step, or evaluation, and its state is saved (press again to stop at once: an \
             evaluation then begins again)",
        );
    };
    abkd_host::keeping_nohup(|| ctrlc::set_handler(handler)).context("Ctrl-C cannot be caught")
}

fn interrupted() -> ExitCode {
    say("interrupted; run the same command to resume");
    ExitCode::from(INTERRUPTED)
}

/// Parameters of a cluster's jobs.
fn submission(target: &Target, spec: &Spec, dry_run: bool) -> Result<Submission> {
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
    let places = target.folders.places();
    let file = |name: &str| -> Result<String> {
        match name.ends_with(".toml") {
            true => Ok(absolute(Path::new(name))?.display().to_string()),
            false => Ok(name.to_owned()),
        }
    };
    let mut fold = vec![
        "run".to_owned(),
        file(&target.experiment)?,
        "--profile".into(),
        file(&target.profile)?,
        "--executor".into(),
        "fold".into(),
    ];
    for (key, folder) in [
        ("--root", &places.root),
        ("--runs", &places.runs),
        ("--results", &places.results),
        ("--figures", &places.figures),
    ] {
        fold.extend([key.to_owned(), absolute(folder)?.display().to_string()]);
    }
    if target.backend.is_some() || target.device.is_some() {
        fold.extend(["--backend".to_owned(), spec.profile.backend.clone()]);
    }
    Ok(Submission {
        program: std::env::current_exe().context("the program's own path")?,
        runs: absolute(&places.runs_of(spec))?,
        experiment: spec.experiment.name.clone(),
        fold,
        dry_run,
    })
}

fn run_experiment(
    target: &Target,
    jobs: Option<usize>,
    executor: ExecutorName,
    dry_run: bool,
) -> Result<ExitCode> {
    let spec = target.load_with(jobs)?;
    let place = match &target.backend {
        Some(_) => "--backend".to_owned(),
        None => spec.in_profile(&["backend"]),
    };
    // A cluster node may have a backend that this machine has not.
    if executor == ExecutorName::Local {
        backend::devices(&spec.profile.backend, &spec.cards).context(place)?;
    }
    let places = target.folders.places();
    catch_interrupts()?;
    let inputs = preflight::load(&places, &spec)?;
    let plan = Plan::new(&places.root, &spec, &inputs.hashes)?;
    let done = |task| runner::is_done(&places, &spec, task);
    if executor != ExecutorName::Fold && !plan.tasks.iter().all(done) {
        preflight::weights(&places, &spec)?;
    }
    for note in spec.notes().into_iter().chain(inputs.notes()) {
        say(&format!("note: {note}"));
    }
    if executor == ExecutorName::Local
        && let Some(card) = backend::memory(&spec.profile.backend, &spec.cards)
    {
        let costs = Estimate::new(&places.root, &spec, &plan, Some(&inputs))?.costs();
        let open = costs
            .iter()
            .zip(&plan.tasks)
            .filter(|(_, task)| !done(task));
        let largest = open
            .map(|(cost, _)| cost.memory.total())
            .fold(0.0, f64::max);
        let wanted = largest * spec.jobs().div_ceil(spec.cards.count()) as f64;
        if wanted > card as f64 {
            say(&format!(
                "note: the card has {:.1} GB, and the parallel tasks take about {:.1} GB by the estimate of `abkd plan`; a \
                 smaller micro_batch_size, gradient_checkpointing = true or fewer --jobs take less",
                card as f64 / 1e9,
                wanted / 1e9
            ));
        }
    }
    let how = match executor {
        ExecutorName::Local => How::Local,
        ExecutorName::Fold => How::Fold,
        ExecutorName::Slurm => How::Slurm(Slurm {
            spec: &spec.profile.slurm,
            submission: submission(target, &spec, dry_run)?,
        }),
    };
    match runner::run(&places, &spec, &plan, &inputs, how, &STOP)? {
        Ended::Submitted => Ok(ExitCode::SUCCESS),
        Ended::Shown(lines) => print(&lines.join("\n")),
        Ended::Interrupted if executor == ExecutorName::Fold => {
            let evidence = report::evidence(&places, &spec)?;
            let text = report::compare(&places, &spec, evidence, terminal_width())?;
            print(&text)?;
            let older = places.result(&spec, &format!("{}.csv", spec.experiment.name));
            let partial = places.partial(&spec, &format!("{}.csv", spec.experiment.name));
            if older.exists() && partial.exists() {
                say(&format!(
                    "note: the table is of an earlier complete run ({}); that of the tasks finished so far is {}",
                    older.display(),
                    partial.display()
                ));
            }
            say("not all tasks are done; the same command without `--executor fold` runs the rest");
            Ok(ExitCode::FAILURE)
        }
        Ended::Interrupted => Ok(interrupted()),
        Ended::Finished => {
            let told = runner::publish(&places, &spec)?;
            let evidence = report::evidence(&places, &spec)?;
            let figure = report::draw(&places, &spec, evidence.as_ref())?;
            let text = report::compare(&places, &spec, evidence, terminal_width())?;
            print(&format!(
                "{text}\nfigure: {}\n{}\n",
                figure.display(),
                told.join("\n")
            ))
        }
    }
}

fn distill(args: &Distill) -> Result<ExitCode> {
    let own = args.prepare()?;
    let (places, spec, plan) = (&own.places, &own.spec, &own.plan);
    own.say_choices(args);
    for note in own.inputs.notes().into_iter().chain(spec.padding_note()) {
        say(&format!("note: {note}"));
    }
    let done = runner::done(places, spec, plan);
    if args.dry_run {
        let estimate = Estimate::new(&places.root, spec, plan, Some(&own.inputs))?;
        let text = listing::tasks(plan, &done) + &estimate::report(&estimate, &done, None, None);
        return print(&text);
    }
    catch_interrupts()?;
    if done.contains(&false) {
        preflight::weights(places, spec).map_err(|error| own.by_argument(&error))?;
    }
    own.write()?;
    match runner::run(places, spec, plan, &own.inputs, How::Local, &STOP)? {
        Ended::Finished => {
            runner::publish(places, spec)?;
            print(&own.place(args)?)
        }
        _ => Ok(interrupted()),
    }
}

fn write_report(target: &Target, out: Option<&Path>) -> Result<ExitCode> {
    let spec = target.load()?;
    let places = target.folders.places();
    let plan = match preflight::load(&places, &spec) {
        Ok(inputs) => {
            let plan = Plan::new(&places.root, &spec, &inputs.hashes)?;
            Some((plan, inputs.train.sequences.len()))
        }
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error),
    };
    let plan = plan.as_ref().map(|(plan, sequences)| (plan, *sequences));
    let path = page::write(&places, &spec, plan, out)?;
    print(&format!("{}\n", path.display()))
}

fn show_plan(
    target: &Target,
    spec: &Spec,
    calibrate: bool,
    accelerator: Option<Accelerator>,
) -> Result<ExitCode> {
    let places = target.folders.places();
    let mut notes = spec.notes();
    // A plan is shown even if data or weights are missing; its ids are then not final. A wrong input is an error, as for
    // a run.
    let inputs = match preflight::load(&places, spec) {
        Ok(inputs) => {
            notes.extend(inputs.notes());
            Some(inputs)
        }
        Err(error) if is_absent(&error) && preflight::shapes_are_known(&places, spec) => {
            let why = describe(&error);
            notes.push(format!("inputs are not complete, so ids may change: {why}"));
            None
        }
        Err(error) => return Err(error),
    };
    for note in notes {
        say(&format!("note: {note}"));
    }
    let hashes = inputs.as_ref().map(|inputs| inputs.hashes.clone());
    let plan = Plan::new(&places.root, spec, &hashes.unwrap_or_default())?;
    let done = runner::done(&places, spec, &plan);
    let seconds = match (&inputs, calibrate) {
        (_, false) => None,
        (Some(inputs), true) => {
            backend::devices(&spec.profile.backend, &spec.cards)?;
            say("calibrating: some updates and answers of each kind");
            Some(runner::calibrate(&places, spec, &plan, inputs)?)
        }
        (None, true) => anyhow::bail!("--calibrate needs the inputs that are missing"),
    };
    let mut text = listing::tasks(&plan, &done);
    let estimate = Estimate::new(&places.root, spec, &plan, inputs.as_ref())?;
    text += &estimate::report(&estimate, &done, accelerator, seconds.as_deref());
    print(&text)
}

fn verify_goldens(
    subject: Subject,
    path: &Path,
    tolerance: Option<f64>,
    device: &Device,
) -> Result<ExitCode> {
    let checks = verify(subject, path, tolerance, device)?;
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
    Ok(u8::from(failed > 0).into())
}
