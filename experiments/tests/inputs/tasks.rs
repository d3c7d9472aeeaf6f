//! Identity and results of tasks.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use abkd_data::{Tokenizer, indexed};
use serde_json::Value;

use crate::root::{EXPERIMENT, PAPER, Root, text};

#[test]
fn a_run_leaves_whole_folders_and_answers_that_can_be_read() {
    let root = Root::new();
    let said = root.runs();
    assert!(said.contains("small.csv: written"), "{said}");
    assert!(!root.path("results/ok/partial").exists());
    for task in ["teacher-sft", "student-sft", "distill-fkld"] {
        let tasks = root.tasks(task);
        assert_eq!(tasks.len(), 1, "{task}");
        let student = tasks[0].join("student");
        let tokenizer = Tokenizer::from_file(&student.join("tokenizer.json"), None).unwrap();
        assert_eq!(tokenizer.hash(), Tokenizer::embedded().hash());
        let json = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(student.join(name)).unwrap()).unwrap()
        };
        assert_eq!(json("tokenizer_config.json")["eos_token"], "<|endoftext|>");
        assert_eq!(json("generation_config.json")["eos_token_id"], 0);
        assert!(student.join("config.json").exists() && student.join("model.safetensors").exists());
    }
    let answers = root.tasks("evaluate-fkld")[0].join("answers.jsonl");
    let lines = fs::read_to_string(answers).unwrap();
    for (line, example) in lines
        .lines()
        .zip(root.read("data/dolly/valid.jsonl").lines())
    {
        let (line, example): (Value, Value) = (
            serde_json::from_str(line).unwrap(),
            serde_json::from_str(example).unwrap(),
        );
        let prompt = line["prompt"].as_str().unwrap();
        assert!(prompt.contains(example["instruction"].as_str().unwrap()));
        assert_eq!(line["references"], example["output"]);
    }
    // a limit of validation examples applies to a folder, too
    assert!(said.contains("4 validation examples"), "{said}");
    let few = Root::new();
    few.profile("max_length = 192", "max_length = 192\nvalid = 2");
    assert!(few.runs().contains("2 validation examples"));
    // A student's folder can be the teacher of another run, without further files.
    let student = root.tasks("distill-fkld")[0].join("student");
    let relative = student
        .strip_prefix(root.dir.path())
        .unwrap()
        .display()
        .to_string();
    root.profile("weights/t", &relative);
    assert!(!root.is_done());
    root.runs();
}

#[test]
fn other_content_of_any_input_makes_other_tasks() {
    let root = Root::new();
    let documents = |values: [u16; 4]| -> Vec<Vec<u16>> { vec![values.to_vec(); 6] };
    indexed::write_indexed(&root.path("text"), documents([5, 6, 7, 8])).unwrap();
    let examples = abkd_data::read_jsonl(&root.path("data/dolly/train.jsonl")).unwrap();
    let packed = indexed::pack(&examples, &Tokenizer::embedded()).unwrap();
    indexed::write_indexed(&root.path("packed"), &packed).unwrap();
    root.profile(
        "path = \"data\"",
        "path = \"data\"\ntext = \"text\"\ntrain_tokens = \"packed\"",
    );
    root.write("weights/t/generation_config.json", r#"{"eos_token_id": 0}"#);
    // token files are enough
    fs::remove_file(root.path("data/dolly/train.jsonl")).unwrap();
    root.runs();
    assert!(root.is_done());

    let changed = |name: &str, change: &dyn Fn()| {
        let kept = fs::read(root.path(name)).unwrap();
        let idx = fs::read(root.path(&name.replace(".bin", ".idx"))).unwrap();
        change();
        assert_ne!(
            fs::read(root.path(name)).unwrap(),
            kept,
            "{name}: nothing changed"
        );
        assert!(
            !root.is_done(),
            "{name}: another content, and the same tasks"
        );
        fs::write(root.path(&name.replace(".bin", ".idx")), idx).unwrap();
        fs::write(root.path(name), kept).unwrap();
        assert!(root.is_done(), "{name}: the same content, and other tasks");
    };
    // of the same size
    changed("text.bin", &|| {
        indexed::write_indexed(&root.path("text"), documents([8, 7, 6, 5])).unwrap();
    });
    // the same tokens in other documents
    changed("text.idx", &|| {
        let other = vec![vec![5, 6], vec![7, 8, 5, 6, 7, 8], vec![5, 6, 7, 8]];
        let rest = documents([5, 6, 7, 8])[..3].to_vec();
        indexed::write_indexed(&root.path("text"), [other, rest].concat()).unwrap();
    });
    changed("packed.bin", &|| {
        let mut other = packed.clone();
        other[3].swap(0, 1);
        indexed::write_indexed(&root.path("packed"), other).unwrap();
    });
    for set in ["dev", "valid"] {
        let name = format!("data/dolly/{set}.jsonl");
        changed(&name, &|| {
            let first = root.read(&name).lines().next().unwrap().to_owned();
            let other = first.replacen("\"instruction\":\"", "\"instruction\":\"a ", 1);
            root.edit(&name, &first, &other);
        });
    }
    changed("weights/s/model.safetensors", &|| {
        let mut bytes = fs::read(root.path("weights/s/model.safetensors")).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(root.path("weights/s/model.safetensors"), bytes).unwrap();
    });
    changed("weights/t/config.json", &|| {
        let mut json: Value = serde_json::from_str(&root.read("weights/t/config.json")).unwrap();
        json["layer_norm_epsilon"] = 1e-4.into();
        root.write("weights/t/config.json", &json.to_string());
    });
    changed("weights/t/generation_config.json", &|| {
        root.write(
            "weights/t/generation_config.json",
            r#"{"eos_token_id": [0]}"#,
        );
    });
    changed("weights/t/tokenizer.json", &|| {
        root.swapped_tokenizer("weights/t/tokenizer.json");
    });
}

#[test]
fn rows_with_equal_settings_are_trained_once_and_both_have_the_result() {
    let root = Root::new();
    let again = "[[rows]]\nlabel = \"RKLD\"\ndivergence = \"rkld\"\n[[rows]]\nlabel = \"Again\"\nmethod = \"kd\"\n";
    root.write("experiments/small.toml", &format!("{EXPERIMENT}{again}"));
    root.profile("[data]", "jobs = 2\n[data]");
    root.runs();
    assert_eq!(root.tasks("distill-").len(), 2);
    let csv = root.read("results/ok/small.csv");
    let of = |label: &str| {
        let line = csv
            .lines()
            .find(|l| l.starts_with(&format!("{label},")))
            .unwrap();
        line[label.len()..].to_owned()
    };
    assert_eq!(of("FKLD"), of("Again"));
    let rows: Vec<&str> = csv
        .lines()
        .skip(1)
        .filter_map(|l| l.split(',').next())
        .collect();
    assert_eq!(rows, ["Teacher", "Student (SFT)", "FKLD", "RKLD", "Again"]);
}

#[test]
fn a_table_that_is_not_whole_leaves_the_one_that_is_in_place() {
    let root = Root::new();
    let endless =
        "[[rows]]\nlabel = \"RKLD\"\ndivergence = \"rkld\"\ntrain = { epochs = 100000 }\n";
    root.write("experiments/small.toml", &format!("{EXPERIMENT}{endless}"));
    root.profile("[data]", "jobs = 2\n[data]");
    root.write("results/ok/small.csv", "an earlier run's");
    let mut child = root
        .command("run")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let partial = root.path("results/ok/partial/small.csv");
    while !fs::read_to_string(&partial).is_ok_and(|text| text.contains("FKLD")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no row was done");
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(root.read("results/ok/small.csv"), "an earlier run's");
    root.write("experiments/small.toml", EXPERIMENT);
    let said = root.runs();
    assert!(
        said.contains("small.csv: differs from the earlier results"),
        "{said}"
    );
    assert!(
        root.read("results/ok/small.csv")
            .starts_with("loss,dataset,")
    );
    let said = root.runs();
    assert!(
        said.contains("small.csv: identical to the earlier results"),
        "{said}"
    );
}

#[test]
fn a_fold_says_whose_table_it_shows() {
    let root = Root::new();
    let fold = || {
        let output = root
            .command("run")
            .args(["--executor", "fold"])
            .output()
            .unwrap();
        (output.status.code(), text(&output))
    };
    root.runs();
    let (code, said) = fold();
    assert!(
        code == Some(0) && !said.contains("earlier complete run"),
        "{said}"
    );
    let more = "[[rows]]\nlabel = \"RKLD\"\ndivergence = \"rkld\"\n";
    root.write("experiments/small.toml", &format!("{EXPERIMENT}{more}"));
    let (code, said) = fold();
    assert!(
        code == Some(1) && said.contains("earlier complete run"),
        "{said}"
    );
}

#[test]
fn an_experiment_without_a_paper_is_ranked_among_its_rows() {
    let root = Root::new();
    let mine = "[[rows]]\nlabel = \"Mine\"\ndivergence = \"rkld\"\n";
    let text =
        format!("subject = \"Mine\"\n{EXPERIMENT}{mine}").replace("paper = \"table1.csv\"\n", "");
    root.write("experiments/small.toml", &text);
    fs::remove_dir_all(root.path("results/paper")).unwrap();
    let said = root.runs();
    assert!(
        said.contains("Mine - best other, ours") && said.contains("Ranks run over our rows"),
        "{said}"
    );
    assert!(root.path("figures/ok/small.png").exists());
    // a row that the paper does not have is ranked among ours, too
    root.write("results/paper/table1.csv", PAPER);
    root.write(
        "experiments/small.toml",
        &format!("subject = \"Mine\"\n{EXPERIMENT}{mine}"),
    );
    let said = root.runs();
    assert!(said.contains("average rank among ours"), "{said}");
}
