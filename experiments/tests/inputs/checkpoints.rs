//! Checkpoints, tokenizers and data that do not fit, or are missing.

use std::fs;

use abkd_data::{Example, indexed};

use crate::root::{Root, gpt2, jsonl, text};

#[test]
fn checkpoints_and_tokenizers_are_named_with_whose_they_are_and_what_to_do() {
    let with = |change: &dyn Fn(&Root), what: &[&str]| {
        let root = Root::new();
        change(&root);
        root.refuses(what);
    };
    let weights = "model.safetensors";
    let student = format!("weights/s/{weights}");
    with(
        &|root| {
            root.write(
                &student,
                "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
            )
        },
        &[
            "ok.toml:11",
            "the student's checkpoint",
            "git-lfs pointer",
            "git lfs pull",
        ],
    );
    with(
        &|root| {
            let bytes = fs::read(root.path(&student)).unwrap();
            fs::write(root.path(&student), &bytes[..bytes.len() - 5]).unwrap();
        },
        &[
            "ok.toml:11",
            "the student's checkpoint",
            "truncated",
            "set [student] checkpoint",
        ],
    );
    with(
        &|root| fs::remove_file(root.path("weights/t/config.json")).unwrap(),
        &["ok.toml:9", "the teacher's checkpoint", "no config.json"],
    );
    with(
        &|root| root.profile("weights/t", "weights/none"),
        &[
            "ok.toml:9",
            "the teacher's checkpoint",
            "not there",
            "set [teacher] checkpoint",
        ],
    );
    with(
        &|root| root.profile("\"weights/s\"", "\"weights/none\"\nhub = \"a/b\""),
        &[
            "ok.toml:11",
            "`abkd fetch weights --profile ok` fetches a/b",
        ],
    );
    with(
        &|root| root.profile("weights/t", "weights/smollm2-135m"),
        &["the teacher's checkpoint", "`make weights`"],
    );
    with(
        &|root| fs::remove_file(root.path("weights/t/tokenizer.json")).unwrap(),
        &["tokenizer.json", "[data] tokenizer"],
    );
    // a vocabulary that lacks some of the tokens
    with(
        &|root| root.checkpoint("weights/s", &gpt2(1, 192, 40)),
        &["ok.toml:10", "the student of 40"],
    );
    // a size that follows from the tokenizer
    with(
        &|root| root.profile("weights/s\"", "weights/s\"\nvocabulary = 40"),
        &["ok.toml:", "vocabulary: leave it out"],
    );
    // a tokenizer with more tokens than both models
    with(
        &|root| {
            root.checkpoint("weights/t", &gpt2(2, 192, 40));
            root.checkpoint("weights/s", &gpt2(1, 192, 40));
        },
        &["tokenizer", "40"],
    );
    // fewer positions in the student only
    with(
        &|root| root.checkpoint("weights/s", &gpt2(1, 128, 512)),
        &["ok.toml:7", "the student has 128 positions"],
    );
    // another tokenizer of the same size; an equal one is accepted
    with(
        &|root| root.swapped_tokenizer("weights/s/tokenizer.json"),
        &[
            "ok.toml:11",
            "weights/s/tokenizer.json",
            "differs from the one that encodes the data",
        ],
    );
    with(
        &|root| {
            root.swapped_tokenizer("other.json");
            root.profile(
                "path = \"data\"",
                "path = \"data\"\ntokenizer = \"other.json\"",
            );
        },
        &[
            "weights/t/tokenizer.json",
            "the tokenizer of the teacher differs",
        ],
    );
    let root = Root::new();
    let same = root.read("weights/t/tokenizer.json");
    root.write("weights/s/tokenizer.json", &same);
    assert!(root.abkd("plan").status.success());
    // a document longer than the models' positions
    with(
        &|root| {
            let long: Vec<Vec<u16>> = vec![vec![5; 400]];
            indexed::write_indexed(&root.path("text"), long).unwrap();
            root.profile("path = \"data\"", "path = \"data\"\ntext = \"text\"");
        },
        &["ok.toml:6", "400 tokens", "192 positions"],
    );
}

#[test]
fn what_is_not_there_yet_can_be_planned_and_is_said_once() {
    let root = Root::new();
    fs::remove_dir_all(root.path("data")).unwrap();
    let plan = root.abkd("plan");
    assert!(plan.status.success(), "{}", text(&plan));
    assert!(
        text(&plan).contains("note: inputs are not complete"),
        "{}",
        text(&plan)
    );
    assert!(!root.abkd("run").status.success());
    // one missing set
    let root = Root::new();
    fs::remove_file(root.path("data/dolly/valid.jsonl")).unwrap();
    let said = text(&root.abkd("plan"));
    assert_eq!(said.matches("valid.jsonl").count(), 1, "{said}");
    // a missing checkpoint with a declared shape
    let root = Root::new();
    let shape = "weights/none\"\n[student.gpt2]\nvocab_size = 512\nn_positions = 192\nn_embd = 8\nn_layer = 1\nn_head = 2";
    root.profile("weights/s\"", shape);
    let plan = root.abkd("plan");
    assert!(plan.status.success(), "{}", text(&plan));
    assert!(
        text(&plan).contains("the student's checkpoint"),
        "{}",
        text(&plan)
    );
    assert!(!root.abkd("run").status.success());
    // and a wrong declared shape is an error
    root.profile("n_positions = 192", "n_positions = 100");
    root.refuses(&["the student has 100 positions"]);
}

#[test]
fn tensors_are_looked_at_before_the_teacher_is_trained() {
    let root = Root::new();
    // the weights of another model under this one's configuration
    let config = root.read("weights/s/config.json");
    root.checkpoint("weights/s", &gpt2(2, 192, 512));
    root.write(
        "weights/s/config.json",
        &config.replace("\"n_layer\": 2", "\"n_layer\": 1"),
    );
    let output = root.abkd("run");
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("the student's checkpoint"), "{said}");
    assert!(!root.path("runs").exists(), "{said}");
}

#[test]
fn without_a_validation_token_there_is_no_loss_and_nothing_is_kept_by_it() {
    let root = Root::new();
    let empty: Vec<Example> = (0..4)
        .map(|_| Example {
            instruction: "a".into(),
            input: String::new(),
            outputs: vec![String::new()],
            messages: Vec::new(),
        })
        .collect();
    let lines = jsonl(&empty).replace("[\"\"]", "\"\"");
    root.write("data/dolly/dev.jsonl", &lines);
    root.refuses(&[
        "ok.toml:20",
        "keep_best",
        "no validation example has a response token",
    ]);
    root.profile("keep_best = \"loss\"", "keep_best = \"last\"");
    root.experiment("\"table\"", "\"curve\"");
    root.experiment("table1.csv", "figure1.csv");
    root.write(
        "results/paper/figure1.csv",
        "loss,epoch,dolly_validation_rouge_l\nFKLD,1,12.50\n",
    );
    let said = root.runs();
    assert_eq!(
        said.matches("there is no validation loss").count(),
        1,
        "{said}"
    );
    assert!(!said.contains("validation loss 0"), "{said}");
    let csv = root.read("results/ok/small.csv");
    let line = csv.lines().nth(1).unwrap();
    assert!(line.ends_with(','), "the loss is empty: {csv}");
    // the same where no examples are asked for
    let root = Root::new();
    root.profile("examples = 4", "examples = 0");
    root.refuses(&["ok.toml:12", "keep_best"]);
    // and DistiLLM's share of answers follows the loss
    root.profile("keep_best = \"loss\"", "keep_best = \"last\"");
    root.profile("[distill]", "[distill]\nkeep_best = \"last\"");
    root.profile("[teacher_sft]", "[teacher_sft]\nkeep_best = \"last\"");
    root.experiment("divergence = \"fkld\"", "method = \"distillm\"");
    root.refuses(&["small.toml:8", "distillm", "threshold_step"]);
}
