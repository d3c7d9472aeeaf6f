//! A profile that cannot be run.

use std::fs;

use crate::root::Root;

/// Edits of the profile, and expected parts of the message.
#[test]
fn a_profile_that_cannot_be_run_is_refused_with_its_line() {
    let shape = "[teacher.gpt2]\nvocab_size = 512\nn_positions = 192\nn_embd = 8\nn_layer = 2\nn_head = 2\n";
    let fresh = |from: &str, to: &str| format!("{}[student]", shape.replacen(from, to, 1));
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "name = \"ok\"",
            "name = \"a/b\"",
            &["ok.toml:1", "a/b", "letters"],
        ),
        ("name = \"ok\"", "name = \"..\"", &["ok.toml:1", "letters"]),
        ("name = \"ok\"", "name = \"\"", &["ok.toml:1"]),
        (
            "name = \"ok\"",
            "name = \"paper\"",
            &["ok.toml:1", "another name"],
        ),
        (
            "[data]",
            "backend = \"fex\"\n[data]",
            &["ok.toml:3", "did you mean `flex`"],
        ),
        ("[data]", "jobs = 0\n[data]", &["ok.toml:3", "jobs = 0"]),
        (
            "[data]",
            "jobs = 9000000000000000000\n[data]",
            &["ok.toml:3", "jobs"],
        ),
        (
            "[data]",
            "kd_ratio = nan\n[data]",
            &["ok.toml:3", "kd_ratio"],
        ),
        (
            "[data]",
            "seeds = []\n[data]",
            &["ok.toml:3", "`seeds` is empty"],
        ),
        (
            "[data]",
            "seeds = [1, 1]\n[data]",
            &["ok.toml:3", "given twice"],
        ),
        (
            "[data]",
            "training_seeds = []\n[data]",
            &["ok.toml:3", "`training_seeds`"],
        ),
        (
            "max_length = 192",
            "max_length = 300",
            &["ok.toml:7", "teacher has 192 positions"],
        ),
        (
            "max_length = 192",
            "max_length = 90",
            &["ok.toml:6", "max_prompt_length"],
        ),
        (
            "max_prompt_length = 96",
            "max_prompt_length = 0",
            &["ok.toml:6"],
        ),
        (
            "max_length = 192",
            "max_length = 192\ntrain = 0",
            &["ok.toml:8", "train = 0"],
        ),
        (
            "source = \"folder\"\npath = \"data\"",
            "source = \"embedded\"\ntrain = 1000000000000000000",
            &["ok.toml:5", "train = 1000000000000000000"],
        ),
        (
            "source = \"folder\"",
            "source = \"embedded\"",
            &["ok.toml:5", "path"],
        ),
        (
            "examples = 4\nmax_new_tokens = 8",
            "examples = 4\nmax_new_tokens = 97",
            &["ok.toml:27", "193 tokens"],
        ),
        (
            "[evaluation]\nmax_new_tokens = 8",
            "[evaluation]\nmax_new_tokens = 500",
            &["ok.toml:29", "596 tokens"],
        ),
        (
            "[evaluation]",
            "[evaluation]\ntop_p = 0.0",
            &["ok.toml:29", "top_p = 0"],
        ),
        (
            "[evaluation]",
            "[evaluation]\ntop_p = 1.5",
            &["ok.toml:29", "top_p = 1.5"],
        ),
        (
            "[evaluation]",
            "[evaluation]\ntop_p = nan",
            &["ok.toml:29", "top_p"],
        ),
        (
            "[evaluation]",
            "[evaluation]\ntemperature = 0.0",
            &["ok.toml:29", "temperature", "top_k"],
        ),
        (
            "[evaluation]",
            "[evaluation]\ntemperature = -1.0",
            &["ok.toml:29", "temperature"],
        ),
        (
            "[evaluation]",
            "[evaluation]\ntemperature = inf",
            &["ok.toml:29", "temperature"],
        ),
        (
            "[evaluation]",
            "[evaluation]\nbatch_size = 0",
            &["ok.toml:29", "batch_size = 0"],
        ),
        (
            "examples = 4",
            "examples = 4\nbatch_size = 0",
            &["ok.toml:27", "batch_size = 0"],
        ),
        (
            "epochs = 1",
            "epochs = 0",
            &["ok.toml:13", "epochs", "teacher_sft"],
        ),
        (
            "epochs = 1",
            "epochs = 1000000000000",
            &["ok.toml:13", "epochs"],
        ),
        ("epochs = 1", "epochs = -1", &["ok.toml:13"]),
        (
            "batch_size = 8",
            "batch_size = 0",
            &["ok.toml:14", "batch_size"],
        ),
        (
            "learning_rate = 1e-3",
            "learning_rate = -1e-3",
            &["ok.toml:15", "learning_rate"],
        ),
        (
            "learning_rate = 1e-3",
            "learning_rate = inf",
            &["ok.toml:15", "learning_rate"],
        ),
        (
            "learning_rate = 1e-3",
            "learning_rate = nan",
            &["ok.toml:15", "learning_rate"],
        ),
        (
            "keep_best",
            "micro_batch_size = 0\nkeep_best",
            &["ok.toml:20", "micro_batch_size"],
        ),
        (
            "keep_best",
            "warmup = 4\nkeep_best",
            &["ok.toml:20", "warmup"],
        ),
        (
            "keep_best",
            "lora = { r = 2, alpha = 4 }\nkeep_best",
            &["ok.toml:20", "LoRA is built for LLaMA"],
        ),
        (
            "[validation]",
            "[methods.gkd.settings]\n\ntemperature = 0.0\n[validation]",
            &["ok.toml:27", "temperature = 0", "methods.gkd"],
        ),
        // without a key in the message
        (
            "[validation]",
            "[methods.gkd.settings]\n\nlambda = \"much\"\n[validation]",
            &["ok.toml:27", "methods.gkd.settings"],
        ),
        (
            "[validation]",
            "[methods.kd.train]\nepochz = 2\n[validation]",
            &["ok.toml:26", "`epochs`"],
        ),
        (
            "[validation]",
            "[methods.dk]\n[validation]",
            &["ok.toml:25", "did you mean `kd`"],
        ),
        (
            "[validation]",
            "[timing]\nsteps = 0\n[validation]",
            &["ok.toml:26", "steps = 0"],
        ),
        (
            "[validation]",
            "[timing]\nrepeats = 1000000000000\n[validation]",
            &["ok.toml:26", "repeats"],
        ),
        (
            "[student]",
            &fresh("n_layer = 2", "n_layer = 3"),
            &["weights/t", "the profile says"],
        ),
        (
            "checkpoint = \"weights/t\"\n[student]",
            &fresh("n_layer = 2", "n_layer = 1000000"),
            &["ok.toml:13", "`n_layer`", "1000000"],
        ),
        (
            "checkpoint = \"weights/t\"\n[student]",
            &fresh("vocab_size = 512", "vocab_size = 1000000000"),
            &["ok.toml:10", "`vocab_size`", "1000000000"],
        ),
        (
            "checkpoint = \"weights/t\"\n[student]",
            &fresh("n_embd = 8", "n_embd = -8"),
            &["ok.toml:12"],
        ),
        (
            "checkpoint = \"weights/t\"\n[student]",
            &fresh("n_head", "n_haed"),
            &["ok.toml:14", "`n_head`"],
        ),
        (
            "checkpoint = \"weights/s\"",
            "layers = 0",
            &["ok.toml:11", "layers"],
        ),
        (
            "checkpoint = \"weights/s\"",
            "layers = 3",
            &["ok.toml:11", "the teacher has 2"],
        ),
        (
            "checkpoint = \"weights/s\"",
            "checkpoint = \"weights/s\"\nrevision = \"main\"",
            &["ok.toml:12", "revision"],
        ),
    ];
    for (from, to, what) in cases {
        let root = Root::new();
        root.profile(from, to);
        root.refuses(what);
    }
}

/// A profile may name its files one by one: no data folder is needed then.
#[test]
fn own_files_and_test_sets_of_a_profile() {
    let own = |keys: &str, sets: &str| {
        let root = Root::new();
        for (from, to) in [("train", "mine"), ("dev", "few")] {
            let text = root.read(&format!("data/dolly/{from}.jsonl"));
            let text = text.replace("\"output\"", "\"answer\"");
            root.write(&format!("{to}.jsonl"), &text);
        }
        fs::remove_dir_all(root.path("data")).unwrap();
        root.profile("path = \"data\"", keys);
        root.profile("[teacher]\n", &format!("{sets}\n[teacher]\n"));
        root.experiment("[\"dolly\"]", "[\"mine\"]");
        root
    };
    let columns = "columns = { output = \"answer\" }";
    let train = format!("train_file = \"mine.jsonl\"\n{columns}");
    let held_out = format!("{train}\nhold_out = 4");
    let set =
        format!("[datasets.mine]\nlabel = \"Mine\"\npath = \"mine.jsonl\"\nlast = 4\n{columns}");
    let root = own(&held_out, &set);
    let said = root.runs();
    assert!(
        said.contains("20 training sequences, 4 validation examples"),
        "{said}"
    );
    let scores = root.read("results/ok/small_scores.csv");
    assert!(scores.contains("small,FKLD,10,mine,10,4,"), "{scores}");
    let both = format!("{train}\nvalid_file = \"few.jsonl\"");
    let said = own(&both, &set).runs();
    assert!(
        said.contains("24 training sequences, 4 validation examples"),
        "{said}"
    );

    for (keys, sets, says) in [
        (
            &*held_out,
            set.replace("last = 4", "last = 0"),
            "ok.toml:10: [mine] last = 0",
        ),
        (
            &held_out,
            set.replace("label = \"Mine\"\n", ""),
            "ok.toml:10: missing field `label`",
        ),
        (
            &held_out,
            set.replace("output =", "outptu ="),
            "did you mean `output`",
        ),
        (&held_out, String::new(), "unknown data set `mine`"),
        (
            &held_out.replace("= 4", "= 24"),
            set.clone(),
            "ok.toml:7: [data] hold_out = 24: of 24",
        ),
        (
            &held_out.replace("= 4", "= 0"),
            set.clone(),
            "ok.toml:7: [data] hold_out = 0",
        ),
        (
            &format!("{both}\nhold_out = 4"),
            set.clone(),
            "ok.toml:8: [data] hold_out",
        ),
        (
            &format!("{held_out}\ntrain_tokens = \"x\""),
            set.clone(),
            "ok.toml:5: [data] train_file",
        ),
        (
            &held_out.replace(columns, "columns = { output = \"reply\" }"),
            set.clone(),
            "mine.jsonl:1: missing field `reply`",
        ),
        (columns, set.clone(), "ok.toml:5: [data] columns"),
    ] {
        own(keys, &sets).refuses(&[says]);
    }
}
