//! Prompts by the tokenizer's chat template.

use super::*;
use crate::root::Root;

/// A turn is a line; an answer ends with the end of text.
const TEMPLATE: &str = "{% for m in messages %}
{% if m.role == 'system' and not loop.first %}{{ raise_exception('the system message comes first') }}{% endif %}
{{ m.role }} {{ m.content }}{{ eos_token if m.role == 'assistant' }}
{% endfor %}
{% if add_generation_prompt %}assistant {% endif %}";

fn chatty() -> Desk {
    let desk = Desk::new();
    for model in ["teacher", "student"] {
        let write = |name: &str, text: &str| desk.write(&format!("{model}/{name}"), text);
        write("chat_template.jinja", TEMPLATE);
        write("tokenizer_config.json", r#"{"eos_token": "<|endoftext|>"}"#);
    }
    desk
}

/// Conversations of a system message and two turns.
fn talks(examples: &[Example]) -> String {
    let line = |e: &Example| {
        let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
        let turns = [
            turn("system", "what does anna have?"),
            turn("user", "a red hat"),
            turn("assistant", "anna"),
            turn("user", &e.instruction),
            turn("assistant", &e.outputs[0]),
        ];
        format!("{}\n", json!({ "messages": turns }))
    };
    examples.iter().map(line).collect()
}

#[test]
fn a_chat_template_prompts_in_training_and_after_it() {
    let desk = chatty();
    let sizes = Sizes {
        train: 60,
        valid: 4,
        test: 4,
    };
    let sets = abkd_data::embedded(1, &sizes);
    desk.write("talks.jsonl", &talks(&sets.train));
    desk.write("few.jsonl", &talks(sets.test("dolly")));
    let distill = format!(
        "distill teacher student --data talks.jsonl --test few=few.jsonl --template chat --out out {SMALL}"
    );
    desk.runs(&distill);
    let profile = desk.read("out/profile.toml");
    assert!(
        profile.contains("template = \"chat\"  # --template"),
        "{profile}"
    );
    let card = desk.read("out/student/README.md");
    for what in [
        "chat template of its tokenizer",
        "user What is asked\nassistant \n```",
        "the tokenizer's chat template (chat_template.jinja), SHA-256",
    ] {
        assert!(card.contains(what), "{what}: {card}");
    }
    // The template goes with the student, and the profile is the same run.
    assert_eq!(desk.read("out/student/chat_template.jinja"), TEMPLATE);
    let mut run = desk.command("run ./experiment.toml -p ./profile.toml");
    let run = run.current_dir(desk.path("out")).output().unwrap();
    assert!(run.status.success(), "{}", text(&run));
    assert!(text(&run).contains("tasks are done"), "{}", text(&run));
    // Eval prompts as the run's tests did.
    let eval =
        "eval out/student --test few=few.jsonl --template chat --max-new-tokens 8 --out answers";
    desk.runs(eval);
    let tail = |line: &str| line.split_once(',').unwrap().1.to_owned();
    let (eval, own) = (desk.read("answers/scores.csv"), desk.read("out/scores.csv"));
    let distilled = own.lines().find(|l| l.starts_with("student distilled,"));
    assert_eq!(tail(eval.lines().nth(1).unwrap()), tail(distilled.unwrap()));
    let answers = desk.read("answers/few-s10.jsonl");
    let asked = r#""prompt":"system what does anna have?\nuser a red hat\nassistant anna<|endoftext|>\nuser "#;
    assert!(answers.contains(asked), "{answers}");
    desk.runs(
        "generate out/student --template chat --system hello --prompt anna --max-new-tokens 4",
    );

    // Another template makes other tasks, and so does the paper's.
    let ids = |out: &str| {
        let tasks = fs::read_dir(desk.path(&format!("{out}/runs/own"))).unwrap();
        let ids = tasks.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut ids: Vec<String> = ids.filter(|id| id.starts_with("distill-")).collect();
        ids.sort();
        ids
    };
    desk.runs(&distill.replace("--template chat --out out", "--out paper"));
    assert!(!desk.read("paper/profile.toml").contains("template"));
    let other = TEMPLATE.replace("{{ m.role }} ", "{{ m.role }}: ");
    desk.write("teacher/chat_template.jinja", &other);
    desk.runs(&distill.replace("--out out", "--out other"));
    let all = [ids("out"), ids("paper"), ids("other")];
    assert!(all.iter().all(|ids| ids.len() == 1), "{all:?}");
    assert!(
        all[0] != all[1] && all[0] != all[2] && all[1] != all[2],
        "{all:?}"
    );
}

#[test]
fn what_no_chat_template_can_mean_is_refused_before_anything_runs() {
    let desk = chatty();
    let base = format!("distill teacher student --data train.jsonl --out out {SMALL}");
    desk.write(
        "late.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"system\",\"content\":\"b\"},{\"role\":\"assistant\",\"content\":\"c\"}]}\n",
    );
    let late = base.replace("train.jsonl", "train.jsonl --valid late.jsonl");
    desk.refuses(
        &format!("{late} --template chat"),
        &[
            "test set validation",
            "example 1",
            "teacher/chat_template.jinja:2",
            "the system message comes first",
        ],
    );
    desk.refuses(
        &format!("{base} --date 2024-02-29"),
        &["--date", "--template chat"],
    );
    desk.refuses(
        &format!("{base} --template chat --date 2024-02-29"),
        &["chat_template.jinja", "writes no date"],
    );
    desk.refuses(
        &format!("{base} --template chat --date today"),
        &["YYYY-MM-DD"],
    );
    desk.refuses(
        "generate teacher --prompt a --system b",
        &["--system", "--template chat"],
    );
    desk.refuses(
        "generate teacher --prompt a --raw --template chat",
        &["--raw", "--template"],
    );
    desk.write("teacher/chat_template.jinja", "{{ strftime_now('%Y') }}");
    desk.refuses(
        &format!("{base} --template chat"),
        &["example 1", "chat_template.jinja:1", "--date YYYY-MM-DD"],
    );
    fs::remove_file(desk.path("teacher/chat_template.jinja")).unwrap();
    let says = ["--template chat", "no `chat_template`", "paper's template"];
    desk.refuses(&format!("{base} --template chat"), &says);
    desk.refuses("generate teacher --prompt a --template chat", &says);
    desk.refuses("eval teacher --test a=test.jsonl --template chat", &says);
}

#[test]
fn a_profile_with_what_a_chat_template_does_not_go_with_is_refused_by_line() {
    const LENGTH: &str = "max_length = 192\n";
    let root = Root::new();
    let with = |line: &str| format!("{LENGTH}{line}\n");
    // The longest sequence is in line 7.
    root.profile(LENGTH, &with("date = \"2024-02-29\""));
    root.refuses(&["ok.toml:8", "[data] date", "template = \"chat\""]);
    root.profile("date = \"2024-02-29\"", "template = \"chat\"");
    root.refuses(&["ok.toml:8", "[data] template", "no `chat_template`"]);
    root.profile(
        "template = \"chat\"",
        "template = \"chat\"\ntrain_tokens = \"x\"",
    );
    root.refuses(&["ok.toml:9", "train_tokens", "tokens already"]);
    root.profile("train_tokens = \"x\"\n", "");
    root.profile("[evaluation]\n", "[evaluation]\nbos = true\n");
    root.refuses(&[
        "ok.toml:",
        "[evaluation] bos",
        "beginning of a sequence itself",
    ]);
}
