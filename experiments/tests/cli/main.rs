//! Drives the binary as a user does, on a profile that runs in seconds.

mod project;
mod report;
#[cfg(unix)]
mod slurm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use project::{Project, root, text};

#[test]
fn a_run_gives_table_comparison_and_picture_and_is_not_repeated() {
    let project = Project::new();
    let output = project.run();
    assert!(output.status.success(), "{}", text(&output));
    let table = fs::read_to_string(project.path("results/micro/small.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + 4 * 2, "{table}");
    assert!(
        fs::metadata(project.path("figures/micro/small.png"))
            .unwrap()
            .len()
            > 10_000
    );
    assert!(project.path("results/micro/small_comparison.md").exists());
    let answers: Vec<_> = fs::read_dir(project.path("runs/micro"))
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().join("answers.jsonl").exists())
        .collect();
    assert_eq!(answers.len(), 4 * 2 * 2);
    // colours and bars are for terminals
    assert!(!text(&output).contains('\u{1b}'));

    let before = project.outcome();
    let again = project.run();
    assert!(
        text(&again).contains("21 of 21 tasks are done"),
        "{}",
        text(&again)
    );
    assert_eq!(before, project.outcome());

    // the same spec elsewhere gives the same bytes
    let other = Project::new();
    assert!(other.run().status.success());
    assert_eq!(before, other.outcome());
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let project = Project::new();
    let mut kills = 0;
    // Increasing delays, so that kills hit different moments.
    for wait in [150, 250, 350, 500, 700, 900, 1100] {
        let mut child = project.start();
        std::thread::sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_none() {
            kills += 1;
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
    assert!(kills >= 2, "only {kills} runs were killed");
    let output = project.run();
    assert!(output.status.success(), "{}", text(&output));
    let undisturbed = Project::new();
    assert!(undisturbed.run().status.success());
    assert_eq!(project.outcome(), undisturbed.outcome());
}

/// The students have dropout.
#[test]
fn tasks_side_by_side_give_the_bits_of_one_after_the_other() {
    let [alone, together] = ["1", "2"].map(|jobs| {
        let project = Project::new();
        let output = project.command("run").args(["--jobs", jobs]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output));
        project.outcome()
    });
    assert_eq!(alone, together);
}

/// Files above a limit cannot be written, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let project = Project::new();
    project.edit("micro.toml", "epochs = 2", "epochs = 12");
    let mut child = project.start();
    let begun = Instant::now();
    while project.checkpoint().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "no checkpoint was written"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = project.checkpoint().unwrap();
    let run = project.command("run");
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    // 16 blocks of 1024 bytes hold a log, but no checkpoint
    let limited = Command::new("bash")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "bash"])
        .args(&words)
        .output()
        .unwrap();
    assert!(!limited.status.success());
    assert!(text(&limited).contains("error: "), "{}", text(&limited));
    assert!(
        kept.join("state.json").exists(),
        "the old checkpoint is gone"
    );
    assert!(project.run().status.success());
    let undisturbed = Project::new();
    undisturbed.edit("micro.toml", "epochs = 2", "epochs = 12");
    assert!(undisturbed.run().status.success());
    assert_eq!(project.outcome(), undisturbed.outcome());
}

#[test]
fn every_method_and_its_timing_run() {
    let project = Project::new();
    let rows: String = ["sft", "kd", "seqkd", "gkd", "minillm", "distillm", "abkd"]
        .map(|m| format!("[[rows]]\nlabel = \"{m}\"\nmethod = \"{m}\"\n"))
        .concat();
    let table = format!(
        "name = \"small\"\ntitle = \"Methods\"\nkind = \"table\"\nrow_key = \"method\"\npaper = \"table2.csv\"\n\
         datasets = [\"dolly\"]\nseeds = [10]\n{rows}"
    );
    fs::write(project.path("small.toml"), &table).unwrap();
    let profile = fs::read_to_string(project.path("micro.toml")).unwrap()
        + "[methods.minillm.settings]\nrollouts = 16\nmax_new_tokens = 8\n[methods.gkd.settings]\nmax_new_tokens = 8\n\
           [methods.seqkd.settings]\nmax_new_tokens = 8\n[timing]\nwarmup = 1\nsteps = 4\nrepeats = 1\n";
    fs::write(project.path("micro.toml"), profile).unwrap();
    let output = project.run();
    assert!(output.status.success(), "{}", text(&output));
    let csv = fs::read_to_string(project.path("results/micro/small.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 7);

    let timing = table
        .replace("kind = \"table\"", "kind = \"timing\"")
        .replace("table2.csv", "table3.csv")
        .replace("label = \"sft\"", "label = \"SFT\"");
    fs::write(project.path("small.toml"), timing).unwrap();
    let output = project.run();
    assert!(output.status.success(), "{}", text(&output));
    let csv = fs::read_to_string(project.path("results/micro/small.csv")).unwrap();
    assert!(csv.starts_with("method,seconds_per_sample,ratio_to_sft"));
    assert_eq!(csv.lines().count(), 1 + 7);
    assert!(project.path("figures/micro/small.png").exists());
    assert!(project.path("results/micro/small.json").exists());

    let plan = project.command("plan").arg("--calibrate").output().unwrap();
    assert!(
        text(&plan).contains("time on this machine"),
        "{}",
        text(&plan)
    );
    let plan = project
        .command("plan")
        .args(["--accelerator", "h100"])
        .output()
        .unwrap();
    assert!(text(&plan).contains("time on one h100"), "{}", text(&plan));
}

/// Fine-tuning uses no teacher, which may then have another vocabulary.
#[test]
fn fine_tuning_alone_is_calibrated() {
    let project = Project::new();
    project.edit("micro.toml", "vocab_size = 1024", "vocab_size = 1100");
    let table = "name = \"small\"\ntitle = \"SFT\"\nkind = \"table\"\ndatasets = [\"dolly\"]\nseeds = [10]\n\
                 [[rows]]\nlabel = \"SFT\"\nmethod = \"sft\"\n";
    fs::write(project.path("small.toml"), table).unwrap();
    let plan = project.command("plan").arg("--calibrate").output().unwrap();
    assert!(
        plan.status.success() && text(&plan).contains("time on this machine"),
        "{}",
        text(&plan)
    );
}

#[cfg(any(feature = "tch", feature = "wgpu"))]
fn a_table_runs_and_the_golden_values_are_computed(backend: &str) {
    let project = Project::new();
    let mut run = project.command("run");
    let output = run.args(["--backend", backend]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let goldens = [
        ("losses", "crates/losses/tests/goldens/losses.json"),
        ("losses", "crates/losses/tests/goldens/losses_peaked.json"),
        ("model", "crates/models/tests/goldens/gpt2-tiny"),
        ("model", "crates/models/tests/goldens/llama-tiny"),
        ("model", "crates/models/tests/goldens/llama-tied-tiny"),
        ("trajectory", "crates/training/tests/goldens/trajectory-ab"),
    ];
    for (subject, path) in goldens {
        let output = Command::new(env!("CARGO_BIN_EXE_abkd"))
            .args(["verify", subject, "--backend", backend])
            .arg(root().join(path))
            .output()
            .unwrap();
        assert!(output.status.success(), "{path}: {}", text(&output));
    }
}

#[cfg(feature = "tch")]
#[test]
fn libtorch_runs_a_table_and_computes_the_golden_values() {
    a_table_runs_and_the_golden_values_are_computed("tch");
}

/// On Mesa's software Vulkan, without a card: the device's code from training to answers.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_runs_a_table_and_computes_the_golden_values() {
    a_table_runs_and_the_golden_values_are_computed("wgpu");
}

/// Devices drop the same numbers and differ by rounding, which rarely changes a token of an answer.
#[cfg(feature = "wgpu")]
#[test]
fn scores_on_wgpu_are_the_processors() {
    let project = Project::new();
    let [ours, theirs] = ["flex", "wgpu"].map(|backend| {
        let mut run = project.command("run");
        let output = run.args(["--backend", backend]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        std::fs::read_to_string(project.path("results/micro/small_scores.csv")).unwrap()
    });
    let differ = ours
        .lines()
        .zip(theirs.lines())
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(ours.lines().count(), 1 + 4 * 4);
    assert!(differ <= 3, "{ours}\n{theirs}");
}

/// On a driver without a card (`make test-cuda`), which computes nothing: all that a table does on a card goes through, in
/// bf16, on one card and on two.
#[cfg(feature = "cuda")]
#[test]
fn a_table_goes_through_on_a_driver_without_a_card() {
    let cuda = root().join(".cuda");
    if !cuda.join("stub/libcuda.so.1").exists() {
        eprintln!("skipped: no .cuda/stub; make test-cuda");
        return;
    }
    let project = Project::new();
    project.edit(
        "micro.toml",
        "description",
        "precision = \"bf16\"\ndescription",
    );
    project.edit(
        "micro.toml",
        "epochs = 3",
        "epochs = 3\ngradient_checkpointing = true",
    );
    let libraries =
        [cuda.join("stub"), cuda.join("lib")].map(|folder| folder.display().to_string());
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    for cards in ["0", "0,1"] {
        let mut run = project.command("run");
        run.args(["--backend", "cuda", "--device", cards])
            .env("CUDA_STUB_DEVICES", "2")
            .env("CUDA_PATH", &cuda)
            .env("LD_LIBRARY_PATH", libraries.join(":") + ":" + &path);
        let output = run.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        // Anew, on two cards.
        std::fs::remove_dir_all(project.path("runs")).unwrap();
    }
}

#[test]
fn a_card_that_is_not_there_is_refused_before_anything_is_written() {
    let project = Project::new();
    for (backend, card, said) in [
        ("flex", "0", "computes on the processor"),
        #[cfg(feature = "wgpu")]
        ("wgpu", "7", "numbered from 0"),
        #[cfg(feature = "tch")]
        ("tch", "cuda:0", "libtorch finds no CUDA card"),
        ("flex", "a", "names no cards"),
    ] {
        let mut run = project.command("run");
        let output = run
            .args(["--backend", backend, "--device", card])
            .output()
            .unwrap();
        assert!(
            !output.status.success() && text(&output).contains(said),
            "{}",
            text(&output)
        );
        assert!(!project.path("runs").exists());
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_backend_that_is_not_built_in_names_its_feature() {
    let project = Project::new();
    let output = project
        .command("run")
        .args(["--backend", "cuda"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        text(&output).contains("--features cuda"),
        "{}",
        text(&output)
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_exits_with_130_and_a_second_run_is_refused() {
    let project = Project::new();
    project.edit("micro.toml", "epochs = 2", "epochs = 200");
    let mut child = project.start();
    project.wait_for_training();
    let refused = project.run();
    assert!(
        !refused.status.success() && text(&refused).contains("another run"),
        "{}",
        text(&refused)
    );
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let teacher = fs::read_dir(project.path("runs/micro"))
        .unwrap()
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("teacher"));
    let saved = fs::read_dir(teacher.unwrap().path()).unwrap().flatten();
    assert!(
        saved
            .into_iter()
            .any(|e| e.file_name().to_string_lossy().starts_with("state-"))
    );
}

#[cfg(unix)]
#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let project = Project::new();
    let run = project.command("run");
    let mut child = Command::new("nohup")
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    project.wait_for_training();
    let kill = Command::new("kill")
        .args(["-HUP", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_done_is_said_and_fails() {
    let fails = |project: &Project, what: &[&str]| {
        let output = project.run();
        assert!(!output.status.success());
        for what in what {
            assert!(text(&output).contains(what), "{what}: {}", text(&output));
        }
    };
    let project = Project::new();
    project.edit("micro.toml", "n_layer = 1", "n_layers = 1");
    fails(
        &project,
        &["micro.toml", "n_layers", "did you mean `n_layer`"],
    );

    let project = Project::new();
    project.edit("micro.toml", "max_new_tokens", "max_new_token");
    fails(&project, &["micro.toml:", "did you mean `max_new_tokens`"]);

    let project = Project::new();
    let gkd = "method = \"gkd\"\nsettings = { lamda = 0.5 }";
    project.edit("small.toml", "divergence = \"fkld\"", gkd);
    fails(&project, &["row `FKLD`", "lamda", "did you mean `lambda`"]);

    let project = Project::new();
    project.edit("small.toml", "divergence = \"fkld\"", "method = \"gdk\"");
    fails(&project, &["gdk", "did you mean `gkd`"]);

    let project = Project::new();
    let lora = "[distill]\nlora = { r = 2, alpha = 4, target_modules = [\"q_porj\"] }";
    project.edit("micro.toml", "[distill]", lora);
    fails(&project, &["q_porj", "LoRA is built for LLaMA"]);

    let project = Project::new();
    project.edit("micro.toml", "vocab_size = 1024", "vocab_size = 1100");
    fails(&project, &["vocabulary of 1100", "1024"]);

    let project = Project::new();
    fs::write(project.path("results"), "a file, not a folder").unwrap();
    fails(&project, &["results"]);

    let project = Project::new();
    project.edit(
        "micro.toml",
        "source = \"embedded\"",
        "source = \"folder\"\npath = \"/nowhere\"\ntokenizer = \"none.json\"",
    );
    fails(&project, &["none.json"]);

    let project = Project::new();
    project.edit(
        "micro.toml",
        "[teacher.gpt2]",
        "[teacher]\ncheckpoint = \"nowhere\"\n[other]",
    );
    fails(&project, &["micro.toml:"]);
}

#[test]
fn settings_of_methods_are_checked_with_file_and_line_before_anything_runs() {
    let refused = |project: &Project, verb: &str, what: &[&str]| {
        let output = project.command(verb).output().unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        for what in what {
            assert!(text(&output).contains(what), "{what}: {}", text(&output));
        }
        assert!(!project.path("runs").exists());
    };
    // (replacement of the row's divergence, expected parts of the message)
    for (row, what) in [
        (
            "method = \"distillm\"\nsettings = { replay_ratio = \"rising\" }",
            ["small.toml:12", "replay_ratio", "rising", "decreasing"],
        ),
        (
            "method = \"minillm\"\nsettings = { whitening = \"none\" }",
            ["small.toml:12", "whitening", "padded", "masked"],
        ),
        (
            "method = \"minillm\"\nsettings = { reward_scaling = 0.0 }",
            ["small.toml:12", "reward_scaling", "0", "minillm"],
        ),
        (
            "method = \"kd\"\ntrain = { schedule = \"linear\" }",
            ["small.toml:12", "schedule", "linear", "constant_warmup"],
        ),
        (
            "method = \"kd\"\ntrain = { schedule = \"constant_warmup\", warmup = 37 }",
            ["small.toml:12", "warmup", "37", "36 updates"],
        ),
        (
            "method = \"sft\"\nstart = \"pretrained\"",
            ["small.toml:12", "pretrained", "`base`", "`init`"],
        ),
        (
            "method = \"kd\"\ntext = \"on\"",
            ["small.toml:12", "text = \"on\"", "[data] text", "if_given"],
        ),
    ] {
        let project = Project::new();
        project.edit("small.toml", "divergence = \"fkld\"", row);
        for verb in ["run", "plan"] {
            refused(&project, verb, &what);
        }
    }
    for (seeds, what) in [
        ("[1, 2, 1]", "seed 1 is given twice"),
        ("[]", "`training_seeds` is empty"),
    ] {
        let project = Project::new();
        let line = format!("name = \"micro\"\ntraining_seeds = {seeds}");
        project.edit("micro.toml", "name = \"micro\"", &line);
        refused(&project, "plan", &["micro.toml:3", what]);
    }
    // in the profile, too
    let project = Project::new();
    let own = "[methods.kd.train]\nwarmup = 5\n[teacher_sft]";
    project.edit("micro.toml", "[teacher_sft]", own);
    refused(&project, "plan", &["micro.toml:23", "warmup", "cosine"]);
}

#[test]
fn masses_are_measured_beside_a_training_that_they_do_not_change() {
    let plain = Project::new();
    assert!(plain.run().status.success());
    let project = Project::new();
    project.edit(
        "small.toml",
        "params = {",
        "train = { masses = true }\nparams = {",
    );
    let output = project.run();
    assert!(output.status.success(), "{}", text(&output));
    let read =
        |of: &Project, name: &str| fs::read_to_string(of.path("results/micro").join(name)).unwrap();
    for name in ["small.csv", "small_examples.csv", "small_curves.csv"] {
        assert_eq!(read(&plain, name), read(&project, name), "{name}");
    }
    let csv = read(&project, "small_masses.csv");
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(
        lines[0][..6],
        [
            "loss",
            "training_seed",
            "updates",
            "head",
            "tail",
            "entropy"
        ]
    );
    assert_eq!(lines.len(), 1 + 3, "{csv}");
    for line in &lines[1..] {
        assert_eq!(line[0], "ABKD");
        let number = |at: usize| line[at].parse::<f64>().unwrap();
        assert!(
            number(7) >= 0.5 && number(8) <= 0.05,
            "the teacher's own: {csv}"
        );
        assert!((0.0..=1.0).contains(&number(3)) && (0.0..=1.0).contains(&number(6)));
        // Its logarithm of the number of tokens is the most.
        assert!((1.0..1024f64.ln()).contains(&number(5)), "{csv}");
    }
    assert!(project.path("figures/micro/small_masses.png").exists());
}

#[test]
fn each_training_seed_gives_a_student_of_its_own() {
    let project = Project::new();
    let line = "name = \"micro\"\ntraining_seeds = [1, 2]";
    project.edit("micro.toml", "name = \"micro\"", line);
    let output = project.run();
    assert!(output.status.success(), "{}", text(&output));
    let students: Vec<(String, Vec<u8>)> = project
        .outcome()
        .into_iter()
        .filter(|(name, _)| name.starts_with("distill-"))
        .collect();
    assert_eq!(students.len(), 4);
    for (i, a) in students.iter().enumerate() {
        assert!(students[i + 1..].iter().all(|b| a.1 != b.1), "{}", a.0);
    }
    let read = |name: &str| fs::read_to_string(project.path("results/micro").join(name)).unwrap();
    let scores = read("small_scores.csv");
    assert!(scores.starts_with("experiment,row,training_seed,dataset,sampling_seed,"));
    // teacher and initialised student once, each row twice; two sets, two sampling seeds
    assert_eq!(scores.lines().count(), 1 + (2 + 2 * 2) * 2 * 2);
    assert!(scores.contains("\nsmall,Teacher,,dolly,10,"));
    assert!(scores.contains("\nsmall,ABKD,2,vicuna,20,"));
    let page = read("small_comparison.md");
    assert!(
        page.contains("2 trainings, 2 sampling seeds each"),
        "{page}"
    );
    assert!(
        !page.contains("beyond") && !page.contains("leads"),
        "{page}"
    );
}

/// After near-zero updates a student answers as its initial model, if its adapter is applied to the right model: a
/// continued adapter replaces the initialised student's, a new one is applied on top of it.
#[test]
fn an_adapter_is_evaluated_on_what_it_was_trained_on() {
    for start in ["continue", "merge"] {
        let project = Project::new();
        let shape = |width| {
            format!(
                "llama]\nvocab_size = 1024\nmax_position_embeddings = 192\nnum_attention_heads = 2\n\
                 hidden_size = {width}\nintermediate_size = {width}\nnum_hidden_layers = 1\n"
            )
        };
        let teacher =
            "gpt2]\nvocab_size = 1024\nn_positions = 192\nn_embd = 32\nn_layer = 2\nn_head = 2\n";
        let student =
            "gpt2]\nvocab_size = 1024\nn_positions = 192\nn_embd = 16\nn_layer = 1\nn_head = 2\n";
        project.edit("micro.toml", teacher, &shape(32));
        project.edit("micro.toml", student, &shape(16));
        let lora = |key: &str| format!("lora = {{ r = 4, alpha = 64{key} }}\n");
        let init = "learning_rate = 2e-3\n[distill]";
        let more = format!("learning_rate = 5e-2\n{}[distill]", lora(""));
        project.edit("micro.toml", init, &more);
        let still = format!(
            "learning_rate = 1e-30\nmin_learning_rate = 0.0\n{}",
            lora(&format!(", start = \"{start}\""))
        );
        project.edit("micro.toml", "learning_rate = 1e-3\n", &still);
        let output = project.run();
        assert!(output.status.success(), "{}", text(&output));
        let adapters = fs::read_dir(project.path("runs/micro")).unwrap().flatten();
        let adapters =
            adapters.filter(|task| task.path().join("student/adapter_config.json").exists());
        assert_eq!(adapters.count(), 3);
        let answers = |who: &str| -> Vec<u8> {
            let mut tasks: Vec<PathBuf> = fs::read_dir(project.path("runs/micro"))
                .unwrap()
                .map(|task| task.unwrap().path())
                .filter(|task| {
                    let name = task.file_name().unwrap().to_string_lossy();
                    name.starts_with(&format!("evaluate-{who}-"))
                })
                .collect();
            tasks.sort();
            assert_eq!(tasks.len(), 4, "{who}");
            let read = |task: &PathBuf| fs::read(task.join("answers.jsonl")).unwrap();
            tasks.iter().flat_map(read).collect()
        };
        let initialised = answers("student");
        assert_ne!(answers("teacher"), initialised);
        for row in ["fkld", "ab"] {
            assert_eq!(answers(row), initialised, "{start}: {row}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let project = Project::new();
    project.edit("micro.toml", "epochs = 2", "epochs = 200");
    let mut child = project.start();
    let teacher = || Some(project.checkpoint()?.parent()?.to_path_buf());
    let begun = Instant::now();
    while teacher().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "no checkpoint was written"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let dir = teacher().unwrap();
    let state = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("state-"));
    let path = state.unwrap().path().join("state.json");
    let json = fs::read_to_string(&path).unwrap();
    fs::write(&path, json.replace("teacher-sft", "another-run")).unwrap();
    let output = project.run();
    assert!(
        !output.status.success() && text(&output).contains("belongs to another run"),
        "{}",
        text(&output)
    );
}

#[test]
fn goldens_are_verified_and_a_wrong_one_fails() {
    let verify = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_abkd"))
            .arg("verify")
            .args(args)
            .output()
            .unwrap()
    };
    let file = |path: &str| root().join(path).to_str().unwrap().to_owned();
    for (subject, path) in [
        ("losses", "crates/losses/tests/goldens/losses.json"),
        ("losses", "crates/losses/tests/goldens/losses_peaked.json"),
        ("rouge", "crates/metrics/tests/goldens/rouge.json"),
        ("model", "crates/models/tests/goldens/llama-tiny"),
        ("trajectory", "crates/training/tests/goldens/trajectory-ab"),
        (
            "minillm",
            "crates/training/tests/goldens/methods/minillm.json",
        ),
        ("gjsd", "crates/training/tests/goldens/methods/gjsd.json"),
        (
            "schedule",
            "crates/training/tests/goldens/methods/schedules.json",
        ),
        (
            "adapter",
            "crates/training/tests/goldens/methods/lora_continue",
        ),
    ] {
        let output = verify(&[subject, &file(path)]);
        assert!(output.status.success(), "{}", text(&output));
    }
    let strict = verify(&[
        "losses",
        &file("crates/losses/tests/goldens/losses.json"),
        "--tolerance",
        "1e-12",
    ]);
    assert_eq!(strict.status.code(), Some(1));
    let missing = verify(&["model", "/nowhere"]);
    assert!(text(&missing).contains("/nowhere"), "{}", text(&missing));
}

#[test]
fn listings_and_plans_need_no_run() {
    let abkd = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_abkd"))
            .args(args)
            .arg("--root")
            .arg(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let all = abkd(&["list"]);
    for name in [
        "table1",
        "figure1",
        "tiny",
        "smollm2",
        "jensen",
        "super_natural",
    ] {
        assert!(all.contains(name), "{name}");
    }
    assert!(abkd(&["plan", "table1"]).contains("650 evaluations"));
    assert!(abkd(&["audit"]).contains("AlphaNet"));
}

/// A word-level tokenizer in its own folder, with the given files beside it.
fn tokenizer(dir: &Path, vocabulary: &str, beside: &[(&str, &str)]) -> String {
    fs::create_dir_all(dir).unwrap();
    let path = dir.join("tokenizer.json");
    let words = r#""pre_tokenizer": {"type": "WhitespaceSplit"}"#;
    let model =
        format!(r#""model": {{"type": "WordLevel", "unk_token": "a", "vocab": {vocabulary}}}"#);
    fs::write(&path, format!("{{{words}, {model}}}")).unwrap();
    for (name, content) in beside {
        fs::write(dir.join(name), content).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

fn data(command: &str, file: &Path, more: &[&str]) -> Output {
    let abkd = Command::new(env!("CARGO_BIN_EXE_abkd"))
        .args(["data", command])
        .arg(file)
        .args(more)
        .output();
    abkd.unwrap()
}

#[test]
fn texts_end_with_what_the_folder_or_the_user_says() {
    let dir = tempfile::tempdir().unwrap();
    let jsonl = dir.path().join("x.jsonl");
    fs::write(
        &jsonl,
        "\u{feff}{\"instruction\": \"a\", \"input\": null, \"output\": \"b\"}\r\n",
    )
    .unwrap();
    let prefix = dir.path().join("out/x");
    let to = prefix.to_str().unwrap();
    let last = || {
        let bytes = fs::read(prefix.with_extension("bin")).unwrap();
        u16::from_le_bytes([bytes[bytes.len() - 2], bytes[bytes.len() - 1]])
    };
    let vocabulary = r#"{"<|endoftext|>": 0, "<|im_end|>": 1, "a": 2, "b": 3, "<end>": 4}"#;
    let said = tokenizer(
        &dir.path().join("said"),
        vocabulary,
        &[
            ("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#),
            ("config.json", r#"{"eos_token_id": [0, 1]}"#),
        ],
    );
    for (eos, wanted) in [(&[][..], 1), (&["--eos", "4"], 4), (&["--eos", "<end>"], 4)] {
        let more = [&[to, "--tokenizer", &said][..], eos].concat();
        let output = data("pack", &jsonl, &more);
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(last(), wanted, "{eos:?}");
    }
    let silent = tokenizer(
        &dir.path().join("silent"),
        r#"{"a": 0, "b": 1, "<end>": 2}"#,
        &[],
    );
    let output = data("pack", &jsonl, &[to, "--tokenizer", &silent]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("--eos ID|TOKEN"),
        "{}",
        text(&output)
    );
    let more = [to, "--tokenizer", &silent, "--eos"];
    let output = data("pack", &jsonl, &[&more[..], &["</s>"]].concat());
    assert!(
        text(&output).contains("no token \"</s>\""),
        "{}",
        text(&output)
    );
    let output = data("pack", &jsonl, &[&more[..], &["<end>"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let output = data("unpack", &prefix, &[&more[1..], &["<end>"]].concat());
    assert!(
        text(&output).contains(r#""output":"b""#),
        "{}",
        text(&output)
    );

    fs::write(&jsonl, "{\"instruction\": \"a\", \"output\": \"\"}\n").unwrap();
    let output = data("pack", &jsonl, &[to, "--tokenizer", &said]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("x.jsonl:1: `output` is empty"),
        "{}",
        text(&output)
    );
}

#[test]
fn token_files_of_i32_are_unpacked_with_their_own_separator() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("x");
    let vocabulary = r#"{"</s>": 0, "a": 1, "b": 2, "c": 65535}"#;
    let tokenizer = tokenizer(&dir.path().join("t"), vocabulary, &[]);
    let write = |values: &[i32]| {
        let n = values.len() as i32;
        let mut index = b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x04".to_vec();
        index.extend([1u64, 1].map(u64::to_le_bytes).concat());
        index.extend(n.to_le_bytes());
        index.extend([0; 16]);
        fs::write(prefix.with_extension("idx"), index).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        fs::write(prefix.with_extension("bin"), bytes).unwrap();
    };
    write(&[1, 65535, i32::MAX, 2, 65535, 0]);
    let output = data("unpack", &prefix, &["--tokenizer", &tokenizer]);
    assert_eq!(text(&output).trim(), r#"{"output":"b c","prompt":"a c"}"#);
    write(&[1, 65536, i32::MAX, 2, 0]);
    let output = data("unpack", &prefix, &["--tokenizer", &tokenizer]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("x.bin: document 0, token 1 is 65536"),
        "{}",
        text(&output)
    );
}
