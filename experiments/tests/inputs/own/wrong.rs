//! Mistakes in a command are reported before anything runs, and files of other runs are left alone.

use std::fs;

use abkd_data::Tokenizer;

use super::{Desk, SMALL};
use crate::root::{gpt2, text};

#[test]
fn what_is_wrong_is_said_by_its_argument_before_anything_runs() {
    let desk = Desk::new();
    let base = "distill teacher student --data train.jsonl --out out";
    let refuses = |words: &str, says: &[&str]| desk.refuses(words, says);
    let with = |more: &str, says: &[&str]| refuses(&format!("{base} {more}"), says);
    with("--loss fkdl", &["--loss", "did you mean `fkld`"]);
    with("--loss ab:1,2,3", &["--loss", "2 parameters"]);
    with("--method kdd", &["--method", "did you mean `kd`"]);
    with("--method sft --loss ab", &["--loss", "its loss is fixed"]);
    with("--lr -1", &["--lr", "learning_rate"]);
    with("--epochs 0", &["--epochs", "1 or more"]);
    with("--batch 0", &["--batch", "1 or more"]);
    with("--lora 4", &["--lora", "LLaMA"]);
    with("--max-length 193", &["--max-length", "192 positions"]);
    with(
        "--max-new-tokens 500",
        &["--max-new-tokens", "192 positions"],
    );
    with("--backend flax", &["--backend", "did you mean `flex`"]);
    with(
        "--columns outptu=a",
        &["--columns", "did you mean `output`"],
    );
    with(
        "--columns output=answer",
        &[
            "--data",
            "train.jsonl:1",
            "missing field `answer` (it has `input`",
        ],
    );
    with("--test test.jsonl", &["--test", "NAME=FILE"]);
    with("--test a=none.jsonl", &["--test a", "none.jsonl"]);
    with("--test Big=test.jsonl", &["--test", "lowercase letters"]);
    with(
        "--test a=test.jsonl --test a=test.jsonl",
        &["--test a", "given twice"],
    );
    with("--valid none.jsonl", &["--valid", "none.jsonl"]);
    refuses(
        "distill teacher layers:x --data train.jsonl --out out",
        &["STUDENT layers:x", "layers:10"],
    );
    refuses(
        "distill teacher layers:4 --data train.jsonl --out out",
        &["STUDENT", "the teacher has 3"],
    );
    refuses(
        "distill none student --data train.jsonl --out out",
        &["TEACHER: none", "no such folder"],
    );
    refuses(
        "distill owner/model student --data train.jsonl --out out",
        &[
            "TEACHER: owner/model is no folder here",
            "give the path of a folder",
            "hub/hub/abkd/owner/model",
            "cannot be reached",
        ],
    );

    desk.write("empty.jsonl", "\n");
    desk.write(
        "one.jsonl",
        &(desk.read("train.jsonl").lines().next().unwrap().to_owned() + "\n"),
    );
    desk.write("bad.jsonl", &(desk.read("one.jsonl") + "{\"a\": 1}\n"));
    for (file, says) in [
        ("empty", "no example"),
        ("one", "give --valid"),
        ("bad", "bad.jsonl:2: missing field `output` (it has `a`)"),
        ("none", "none.jsonl"),
    ] {
        refuses(
            &format!("distill teacher student --data {file}.jsonl --out out"),
            &["--data", says],
        );
    }

    // A student with another vocabulary size, and one whose tokens have other ids.
    desk.model("other", &gpt2(1, 192, 600));
    let hash = |name: &str| {
        let path = desk.path(name).join("tokenizer.json");
        Tokenizer::from_file(&path, Some(0)).unwrap().hash()[..12].to_owned()
    };
    let mut json: serde_json::Value =
        serde_json::from_str(&desk.read("teacher/tokenizer.json")).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let ids = [vocab["the"].clone(), vocab["is"].clone()];
    vocab.insert("the".into(), ids[1].clone());
    vocab.insert("is".into(), ids[0].clone());
    for student in ["other", "student"] {
        desk.write(&format!("{student}/tokenizer.json"), &json.to_string());
        refuses(
            &format!("distill teacher {student} --data train.jsonl --out out"),
            &[
                "STUDENT",
                "differs from the one that encodes the data",
                "has id",
                &hash("teacher"),
                &hash(student),
            ],
        );
    }
    fs::remove_file(desk.path("student/model.safetensors")).unwrap();
    refuses(base, &["STUDENT", "no model.safetensors"]);

    refuses(
        "eval teacher --test a=bad.jsonl",
        &["--test a", "bad.jsonl:2"],
    );
    refuses("eval teacher --test a=test.jsonl --seeds 1,1", &["--seeds"]);
    refuses(
        "eval teacher --test a=test.jsonl --max-new-tokens 192",
        &["--max-new-tokens", "192 positions"],
    );
    refuses(
        "eval teacher --test a/b=test.jsonl --out out",
        &["--test a/b"],
    );
    refuses("generate none --prompt a", &["MODEL: none"]);
    refuses(
        "generate teacher --prompt a --max-new-tokens 500",
        &["--max-new-tokens 500", "192 positions"],
    );
    refuses(
        "generate teacher --prompt a --temperature -1",
        &["--temperature"],
    );
    refuses("generate teacher --prompt a --top-p 0", &["--top-p"]);
    refuses(
        "eval teacher --test a=test.jsonl --top-p 1.5",
        &["--top-p 1.5"],
    );
    fs::remove_file(desk.path("teacher/tokenizer.json")).unwrap();
    refuses(
        "generate teacher --prompt a",
        &["tokenizer.json: not there"],
    );
}

#[test]
fn a_folder_of_something_else_or_of_another_run_is_left_alone() {
    let desk = Desk::new();
    let base = format!("distill teacher student --data train.jsonl --out out {SMALL}");
    fs::create_dir(desk.path("out")).unwrap();
    desk.write("out/mine.txt", "mine");
    let says = |words: &str, what: &[&str]| {
        let output = desk.abkd(words);
        let said = text(&output);
        assert!(output.status.code() == Some(1), "{said}");
        assert!(what.iter().all(|w| said.contains(w)), "{what:?}: {said}");
    };
    says(&base, &["--out out", "not empty"]);
    fs::remove_file(desk.path("out/mine.txt")).unwrap();
    desk.runs(&base);
    says(
        &format!("{base} --lr 1e-3"),
        &[
            "out/profile.toml:",
            "another run",
            "learning_rate = 0.0005",
            "learning_rate = 0.001",
        ],
    );
    says(
        &format!("{base} --loss fkld"),
        &["out/experiment.toml:", "another run", "ABKD", "FKLD"],
    );
    // Data that changed make another run, too.
    let data = desk.read("train.jsonl");
    desk.write("train.jsonl", &data.replacen("the", "a", 1));
    says(&base, &["out/profile.toml:", "SHA-256"]);
    desk.write("train.jsonl", &data);
    desk.runs(&base);
    desk.write("file", "");
    says(&base.replace("--out out", "--out file"), &["file"]);
}
