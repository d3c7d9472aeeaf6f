//! Chat templates of openly licensed models against `transformers`, byte for byte (tools/golden_chat_templates.py).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use abkd_data::{
    ChatTemplate, Columns, Date, Limits, Message, PromptTemplate, Role, Tokenizer, encode_prompts,
    encode_training, read_columns,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Goldens {
    date: Date,
    conversations: BTreeMap<String, Vec<Said>>,
    renderings: BTreeMap<String, Vec<Rendering>>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

/// `text`, or `error` with the words of `raise_exception`.
#[derive(Deserialize)]
struct Rendering {
    conversation: String,
    add_generation_prompt: bool,
    text: Option<String>,
    #[serde(default)]
    error: Option<String>,
}

fn folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/chat");
    std::env::var_os("ABKD_CHAT_GOLDENS").map_or_else(own, PathBuf::from)
}

fn message(said: &Said) -> Message {
    let role = Role::ALL.into_iter().find(|role| role.name() == said.role);
    Message {
        role: role.unwrap(),
        content: said.content.clone(),
    }
}

#[test]
fn every_rendering_is_that_of_transformers() {
    let text = |name: &str| fs::read_to_string(folder().join(name)).unwrap();
    let goldens: Goldens = serde_json::from_str(&text("goldens.json")).unwrap();
    let tokens: Value = serde_json::from_str(&text("tokens.json")).unwrap();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, renderings) in &goldens.renderings {
        let dir = tempfile::tempdir().unwrap();
        let mut config = tokens[name].clone();
        config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let template = text(&format!("{name}.jinja"));
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let dated = ChatTemplate::read(dir.path(), Some(goldens.date));
        let chat = match dated.or_else(|_| ChatTemplate::read(dir.path(), None)) {
            Ok(chat) => chat,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for r in renderings {
            let messages = goldens.conversations[&r.conversation].iter().map(message);
            let messages: Vec<Message> = messages.collect();
            let got = chat.render(&messages, r.add_generation_prompt);
            let place = format!("{name}, {}, {}", r.conversation, r.add_generation_prompt);
            match (&r.text, got) {
                (Some(wanted), Ok(got)) if *wanted == got => equal += 1,
                (None, Err(error)) => {
                    let error = error.to_string();
                    let says = r.error.as_deref().unwrap_or_default();
                    match error.contains(says) && error.contains("chat_template.jinja:") {
                        true => refused += 1,
                        false => wrong.push(format!("{place}: wanted {says:?}: {error}")),
                    }
                }
                (wanted, got) => {
                    let got = got.map_err(|e| e.to_string());
                    wrong.push(format!("{place}:\n  wanted {wanted:?}\n  {got:?}"));
                }
            }
        }
    }
    println!(
        "{} templates, {equal} texts, {refused} errors",
        goldens.renderings.len()
    );
    assert!(
        wrong.is_empty(),
        "{} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(equal > 200 && refused > 20);
}

/// A folder with a tokenizer of words and the special tokens of ChatML.
fn words(template: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let words = ["<unk>", "system", "user", "assistant", "a", "b", "c", "d"];
    let vocab: BTreeMap<&str, usize> = words.iter().enumerate().map(|(id, w)| (*w, id)).collect();
    let added = ["<s>", "<|im_start|>", "<|im_end|>"]
        .iter()
        .zip(words.len()..);
    let added = added.map(|(content, id)| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false })
    });
    // It would put `<s>` before a text of its own accord.
    let single = json!([{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }]);
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": { "type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": { "<s>": { "id": "<s>", "ids": [8], "tokens": ["<s>"] } } },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    });
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", &tokenizer.to_string());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": "<s>", "eos_token": "<|im_end|>"}"#,
    );
    write("chat_template.jinja", template);
    write(
        "data.jsonl",
        r#"{"messages": [{"role": "system", "content": "d"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d d"}]}
{"instruction": "a", "input": "b", "output": "c"}
{"prompt": "a", "completion": "c"}
{"prompt": "a", "completion": " "}"#,
    );
    dir
}

#[test]
fn tokens_are_those_of_the_rendering_and_the_answer_ends_once() {
    const CHATML: &str = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let limits = Limits {
        max_prompt_length: 40,
        max_length: 50,
    };
    // System, user, assistant: 1, 2, 3; a to d: 4 to 7; <s>, <|im_start|>, <|im_end|>: 8, 9, 10.
    let long = [8, 9, 1, 7, 10, 9, 2, 4, 10, 9, 3, 5, 10, 9, 2, 6, 10, 9, 3];
    let (two, one) = ([8, 9, 2, 4, 5, 10, 9, 3], [8, 9, 2, 4, 10, 9, 3]);
    // Without the end of an answer, and where a conversation does not begin with its prompt, the end is appended.
    let open = CHATML.replace("m.content + '<|im_end|>", "m.content + '");
    let hinted = CHATML.replace("assistant\n' }}{% endif", "assistant a\n' }}{% endif");
    assert!(open != CHATML && hinted != CHATML);
    for (template, thought, ends) in [
        (CHATML, None, true),
        (&open, None, false),
        (&hinted, Some(4), true),
    ] {
        let dir = words(template);
        let tokenizer = Tokenizer::from_file(&dir.path().join("tokenizer.json"), None).unwrap();
        let examples = read_columns(&dir.path().join("data.jsonl"), &Columns::default()).unwrap();
        let chat = ChatTemplate::read(dir.path(), None).unwrap();
        let template = PromptTemplate::Chat(Box::new(chat));
        let prompt = |tokens: &[u32]| -> Vec<u32> {
            let kept = tokens.iter().copied().filter(|t| ends || *t != 10);
            kept.chain(thought).collect()
        };
        let prompts = encode_prompts(&examples, &tokenizer, &template, &limits, None).unwrap();
        assert_eq!(
            prompts,
            [prompt(&long), prompt(&two), prompt(&one), prompt(&one)]
        );
        let encoded = encode_training(&examples, &tokenizer, &template, &limits).unwrap();
        let answers = encoded
            .sequences
            .iter()
            .map(|s| s.tokens[s.prompt_len..].to_vec());
        assert_eq!(
            answers.collect::<Vec<_>>(),
            [vec![7, 7, 10], vec![6, 10], vec![6, 10]]
        );
        for (sequence, prompt) in encoded.sequences.iter().zip(&prompts) {
            assert_eq!(sequence.prompt(), prompt);
        }
        // An empty answer is no answer, whatever the template writes around it.
        assert_eq!(encoded.skipped, [3]);
    }
}
