use std::fs;

use super::*;
use crate::Role;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn said(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.into(),
    }
}

fn rendered(files: &[(&str, &str)]) -> Result<String, String> {
    let dir = folder(files);
    let chat = ChatTemplate::read(dir.path(), None).map_err(|e| e.to_string())?;
    chat.render(&[said(Role::User, "a")], true)
        .map_err(|e| e.to_string())
}

/// Renders a template of a tokenizer without special tokens.
fn text(template: &str) -> Result<String, String> {
    let config = r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#;
    rendered(&[(CONFIG, config), (FILE, template)])
}

#[test]
fn the_file_wins_over_the_configuration_and_default_among_names() {
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    for (files, wanted) in [
        (&[(CONFIG, r#"{"chat_template": "c"}"#)][..], "c"),
        (&[(CONFIG, list)], "d"),
        (&[(CONFIG, list), (FILE, "f\r\n")], "f"),
        (&[(FILE, "f")], "f"),
    ] {
        assert_eq!(rendered(files).as_deref(), Ok(wanted), "{files:?}");
    }
}

#[test]
fn special_tokens_are_those_of_the_files() {
    const TEXT: &str =
        "{{ bos_token }}{{ eos_token }}{{ extra }}{{ additional_special_tokens[1] }}";
    let config = r#"{"bos_token": {"content": "<b>"}, "eos_token": null, "extra_special_tokens": {"extra": "<x>"},
        "additional_special_tokens": ["<1>", {"content": "<2>"}]}"#;
    let files = [(CONFIG, config), (FILE, TEXT)];
    assert_eq!(rendered(&files).as_deref(), Ok("<b><x><2>"));
    let map = r#"{"bos_token": "<m>"}"#;
    let files = [(CONFIG, config), (FILE, TEXT), (MAP, map)];
    assert_eq!(rendered(&files).as_deref(), Ok("<m><x><2>"));
    let new = config.replacen('{', r#"{"added_tokens_decoder": {}, "#, 1);
    let files = [(CONFIG, new.as_str()), (FILE, TEXT), (MAP, map)];
    assert_eq!(rendered(&files).as_deref(), Ok("<b><x><2>"));
    // A class of transformers may know a token that no file names.
    let files = [
        (CONFIG, r#"{"tokenizer_class": "LlamaTokenizer"}"#),
        (FILE, "{{ bos_token }}"),
    ];
    let error = rendered(&files).unwrap_err();
    assert!(
        error.contains("tokenizer_config.json: no `bos_token`"),
        "{error}"
    );
    assert_eq!(text("{{ bos_token }}x").as_deref(), Ok("x"));
}

#[test]
fn what_python_writes_is_written() {
    for (template, wanted) in [
        (
            "{{ true }} {{ none }} {{ tools is none }} {{ 1 == 2 }}",
            "True None True False",
        ),
        (
            "{{ messages | tojson }}",
            r#"[{"role": "user", "content": "a"}]"#,
        ),
        (
            "{{ {'z': [1, 2.5, none], 'ä<': {}} | tojson(indent=2) }}",
            "{\n  \"z\": [\n    1,\n    2.5,\n    null\n  ],\n  \"ä<\": {}\n}",
        ),
        (
            "{{ {'b': '\\t🙂\"', 'a': true} | tojson(sort_keys=true, ensure_ascii=true, separators=[',', ':']) }}",
            r#"{"a":true,"b":"\t\ud83d\ude42\""}"#,
        ),
        (
            "{% for m in messages %}\n  {% generation %}\n{{ m.content }}\n  {% endgeneration %}\n{% endfor %}",
            "a\n",
        ),
        (
            "{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}",
            "1",
        ),
        (
            "{{ 'ab' is sequence }}{{ messages[0] is mapping }}{{ tools is iterable }}{{ 'a' is iterable }}{{ 'x'.strip('x') }}",
            "TrueTrueFalseTrue",
        ),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
    ] {
        assert_eq!(text(template).as_deref(), Ok(wanted), "{template}");
    }
}

#[test]
fn what_fails_is_said_with_file_line_and_cause() {
    for (template, says) in [
        (
            "a\n{{ raise_exception('Roles must alternate') }}",
            &[
                "chat_template.jinja:2",
                "refuses this conversation: Roles must alternate",
            ][..],
        ),
        (
            "{% macro m() %}\n{{ raise_exception('no') }}{% endmacro %}{{ m() }}",
            &["chat_template.jinja:2", "refuses this conversation: no"],
        ),
        (
            "a\n\n{% if %}",
            &[
                "chat_template.jinja:3",
                "cannot be read",
                "paper's template",
            ],
        ),
        ("a\n{{ x.y.z }}", &["chat_template.jinja:2", "undefined"]),
        (
            "{{ messages }}",
            &["chat_template.jinja:1", "prints a sequence", "tojson"],
        ),
        (
            "{{ strftime_now('%Y') }}",
            &["chat_template.jinja:1", "--date YYYY-MM-DD"],
        ),
        ("{% include 'x' %}", &["chat_template.jinja:1"]),
    ] {
        let error = text(template).unwrap_err();
        for what in says {
            assert!(error.contains(what), "{template}: no {what} in {error}");
        }
    }
    for (files, says) in [
        (
            &[][..],
            "tokenizer_config.json: no `chat_template`, and no chat_template.jinja",
        ),
        (
            &[(CONFIG, r#"{"chat_template": 3}"#)],
            "neither a string nor a list",
        ),
        (
            &[(
                CONFIG,
                r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
            )],
            "\"default\" (it has rag)",
        ),
        (
            &[(
                CONFIG,
                r#"{"chat_template": "a\n{{ raise_exception('no') }}"}"#,
            )],
            "tokenizer_config.json: `chat_template`, line 2: the chat template refuses",
        ),
        (
            &[(CONFIG, r#"{"bos_token": 1}"#), (FILE, "")],
            "`bos_token` is neither",
        ),
        (&[(CONFIG, "{")], "no JSON object"),
    ] {
        let error = rendered(files).unwrap_err();
        assert!(error.contains(says), "{files:?}: {error}");
    }
}

#[test]
fn a_date_is_given_where_one_is_written_and_nowhere_else() {
    let date: Date = "2024-02-29".parse().unwrap();
    let dir = folder(&[(FILE, "{{ strftime_now('%d %B %Y') }}")]);
    let chat = ChatTemplate::read(dir.path(), Some(date)).unwrap();
    assert_eq!(chat.render(&[], false).unwrap(), "29 February 2024");
    assert_ne!(
        chat.hash(),
        ChatTemplate::read(dir.path(), None).unwrap().hash()
    );
    // of the text, the special tokens and the date, as JSON
    let config = r#"{"bos_token": {"content": "é\""}, "additional_special_tokens": ["<1>"]}"#;
    let dir = folder(&[(CONFIG, config), (FILE, "{{ strftime_now('%Y') }}")]);
    let chat = ChatTemplate::read(dir.path(), Some(date)).unwrap();
    let all = r#"["{{ strftime_now('%Y') }}",{"additional_special_tokens":["<1>"],"bos_token":"é\""},"2024-02-29"]"#;
    assert_eq!(chat.hash(), files::sha256(all.as_bytes()));
    let dir = folder(&[(FILE, "x")]);
    let error = ChatTemplate::read(dir.path(), Some(date))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("writes no date"), "{error}");
}
