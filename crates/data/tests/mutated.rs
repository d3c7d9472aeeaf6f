//! Damaged files: each is read or refused, without a panic, in bounded time and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use abkd_data::indexed::{Documents, IndexedTokens, write_indexed};
use abkd_data::{
    ChatTemplate, Columns, Example, Limits, Message, PromptTemplate, Role, TestFile, Tokenizer,
    encode_prompts, encode_training, from_folder, indexed, read_answered, read_columns, read_jsonl,
};
use abkd_host::rng::Rng;
use mutate::{bounded, config};
use proptest::prelude::*;
use serde_json::{Value, json};

mod mutate;

static EMBEDDED: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::embedded);

/// An index and its tokens.
static INDEXED: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("x");
    write_indexed(&prefix, [&[1u16, 2, 65535, 3][..], &[4], &[], &[5, 6]]).unwrap();
    ["idx", "bin"].map(|suffix| fs::read(prefix.with_extension(suffix)).unwrap())
});

/// Files that pyarrow has written.
static PARQUET: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parquet");
    ["chats", "answers"].map(|name| fs::read(folder.join(name).with_extension("parquet")).unwrap())
});

fn example() -> Value {
    json!({ "instruction": "what does anna have?", "input": "", "output": ["a hat.", "a red hat."], "topic": { "x": 1 } })
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn jsonl(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let messages = json!([{ "role": "user", "content": "d" }, { "role": "assistant", "content": "e" }]);
        let mut lines = [
            example(),
            json!({ "instruction": "b", "input": null, "output": "c" }),
            json!({ "messages": messages }),
        ];
        if dice.below(2) == 0 {
            let line = dice.below(lines.len());
            mutate::json(&mut lines[line], &mut dice);
        }
        let mut text = lines.iter().map(|l| l.to_string() + "\n").collect::<String>().into_bytes();
        if dice.below(2) == 0 {
            mutate::bytes(&mut text, &mut dice);
        }
        fs::write(&path, &text).unwrap();
        let limits = Limits { max_prompt_length: 20, max_length: 30 };
        bounded(|| match read_jsonl(&path) {
            Ok(examples) => {
                assert!(examples.iter().all(|e| !e.outputs.is_empty()));
                let tokenizer = &*EMBEDDED;
                encode_training(&examples, tokenizer, &PromptTemplate::Paper, &limits).unwrap();
                encode_prompts(&examples, tokenizer, &PromptTemplate::Paper, &limits, None).unwrap();
                indexed::pack(&examples, tokenizer).unwrap();
            }
            Err(error) => {
                assert!(error.to_string().contains("x.jsonl"), "{error}");
                assert!(read_answered(&path).is_err());
            }
        });
    }

    #[test]
    fn parquet(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let whole = dice.below(2);
        let mut bytes = PARQUET[whole].clone();
        let before = bytes.len();
        if dice.below(3) == 0 {
            mutate::bytes(&mut bytes, &mut dice);
        } else {
            // Only bytes change, so that the footer is found.
            for _ in 0..=dice.below(3) {
                let at = dice.below(before);
                bytes[at] = *dice.pick(&[0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x10]);
            }
        }
        fs::write(&path, &bytes).unwrap();
        let columns = match whole {
            0 => Columns::default(),
            _ => "instruction=question,input=context,output=answers".parse().unwrap(),
        };
        bounded(|| match read_columns(&path, &columns) {
            Ok(examples) => assert!(!examples.is_empty() && examples.iter().all(|e| !e.outputs.is_empty())),
            Err(error) => assert!(error.to_string().contains("x.parquet: "), "{error}"),
        });
    }

    #[test]
    fn indexed_tokens(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("x");
        for (suffix, whole) in ["idx", "bin"].iter().zip(INDEXED.iter()) {
            let path = prefix.with_extension(suffix);
            let mut bytes = whole.clone();
            if *suffix == "idx" && dice.below(2) == 0 {
                // a field of the header: version, type or a count
                let at = [9, 17, 18, 26][dice.below(4)];
                bytes[at..at + 8].copy_from_slice(&dice.bits().to_le_bytes());
                if dice.below(2) == 0 {
                    bytes[17] = [4, 8, 9][dice.below(3)];
                }
            } else if dice.below(3) > 0 {
                mutate::bytes(&mut bytes, &mut dice);
            }
            fs::write(&path, bytes).unwrap();
        }
        let limits = Limits { max_prompt_length: 2, max_length: 3 };
        let tokenizer = &*EMBEDDED;
        bounded(|| match IndexedTokens::open(&prefix) {
            Ok(tokens) => {
                for index in 0..tokens.len() {
                    let (text, sequence) = (tokens.text(index), tokens.sequence(index, &limits));
                    assert!(text.tokens.len() <= tokens.values());
                    assert!(sequence.is_none_or(|s| s.tokens.len() <= 3));
                    tokens.line(index, tokenizer).unwrap();
                }
                for documents in [Documents::Text, Documents::Instructions] {
                    if tokens.check_ids(300, documents).is_ok() && documents == Documents::Text {
                        let all = (0..tokens.len()).flat_map(|i| tokens.document(i));
                        assert!(all.into_iter().all(|t| t < 300));
                    }
                }
            }
            Err(error) => assert!(error.to_string().contains("/x."), "{error}"),
        });
    }

    #[test]
    fn tokenizers(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let whole = tokenizer(dice.below(4));
        let beside = [
            ("config.json", json!({ "eos_token_id": [2, 0] })),
            ("generation_config.json", json!({ "eos_token_id": 0 })),
            ("tokenizer_config.json", json!({ "eos_token": { "content": "</s>" } })),
            ("special_tokens_map.json", json!({ "eos_token": "</s>" })),
        ];
        for (name, content) in beside {
            if dice.below(3) == 0 {
                damaged(&dir.path().join(name), content, &mut dice);
            }
        }
        damaged(&path, whole.clone(), &mut dice);
        let other = dir.path().join("other.json");
        fs::write(&other, whole.to_string()).unwrap();
        let examples = [Example {
            instruction: "what does a b have? \u{1f600}\u{0} ABAB  ab\nba".into(),
            input: "</s> ab</s>\u{e9}e\u{301}".into(),
            outputs: vec!["a".into()],
            messages: Vec::new(),
        }];
        let limits = Limits { max_prompt_length: 20, max_length: 30 };
        bounded(|| {
            let read = Tokenizer::from_file(&path, None);
            let named = Tokenizer::from_file_with_eos(&path, "0");
            for tokenizer in read.into_iter().chain(named) {
                // These may return an error, but must not panic.
                let _ = encode_training(&examples, &tokenizer, &PromptTemplate::Paper, &limits);
                let _ = tokenizer.bos();
                let _ = tokenizer.decode(&[0, 1, 2, 3, 4, 5, 1 << 20]);
                assert!(tokenizer.ends().contains(&tokenizer.eos()));
                assert!((tokenizer.eos() as usize) < tokenizer.vocab_size());
                assert_eq!(tokenizer.hash().len(), 64);
                assert_eq!(tokenizer.differs_from(&tokenizer), None);
                if let Ok(whole) = Tokenizer::from_file_with_eos(&other, "0") {
                    let _ = tokenizer.differs_from(&whole);
                }
            }
        });
    }

    #[test]
    fn chat_templates(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let names = ["qwen3-generation", "granite-3.3", "mistral-nemo", "phi-3", "glm-4.5"];
        let name = names[dice.below(names.len())];
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/chat");
        let mut text = fs::read(goldens.join(format!("{name}.jinja"))).unwrap();
        let config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" },
            "chat_template": [{ "name": "default", "template": String::from_utf8(text.clone()).unwrap() }] });
        damaged(&dir.path().join("tokenizer_config.json"), config, &mut dice);
        if dice.below(2) == 0 {
            mutate::bytes(&mut text, &mut dice);
            fs::write(dir.path().join("chat_template.jinja"), &text).unwrap();
        }
        let say = |role: Role| Message { role, content: "{{ a }} <b>".into() };
        let messages = Role::ALL.map(say);
        let date = Some("2024-02-29".parse().unwrap()).filter(|_| name == "granite-3.3");
        bounded(|| {
            let read = ChatTemplate::read(dir.path(), date);
            let rendered = read.and_then(|chat| chat.render(&messages, true));
            if let Err(error) = rendered {
                let error = error.to_string();
                assert!(error.contains("tokenizer_config.json") || error.contains("chat_template.jinja"), "{error}");
            }
        });
    }

    #[test]
    fn folders(seed: u64) {
        let mut dice = Rng::new(&[seed]);
        let dir = tempfile::tempdir().unwrap();
        let tests = [
            "dolly/valid.jsonl", "self-inst/valid.jsonl", "vicuna/valid.jsonl",
            "sinst/11_/valid.jsonl", "uinst/valid.jsonl",
        ];
        for file in ["dolly/train.jsonl", "dolly/dev.jsonl"].into_iter().chain(tests) {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match dice.below(12) {
                0 => {}
                1 => fs::create_dir(&path).unwrap(),
                2 => damaged(&path, example(), &mut dice),
                _ => fs::write(&path, example().to_string()).unwrap(),
            }
        }
        let tests = tests.map(|file| TestFile { id: file, file: Path::new(file) });
        bounded(|| from_folder(dir.path(), true, true, &tests).map(|sets| assert!(!sets.train.is_empty())).ok());
    }
}

/// Writes a file with damaged JSON values or damaged bytes.
fn damaged(path: &Path, mut content: Value, dice: &mut Rng) {
    if dice.below(3) > 0 {
        mutate::json(&mut content, dice);
        fs::write(path, content.to_string()).unwrap();
    } else {
        let mut text = content.to_string().into_bytes();
        mutate::bytes(&mut text, dice);
        fs::write(path, text).unwrap();
    }
}

/// A small tokenizer of each kind of model.
fn tokenizer(kind: usize) -> Value {
    let vocab = json!({ "</s>": 0, "<unk>": 1, "a": 2, "b": 3, "ab": 4, "\u{120}": 5, "##a": 6 });
    let model = match kind {
        0 => {
            json!({ "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [["a", "b"]] })
        }
        1 => json!({ "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab }),
        2 => json!({ "type": "WordLevel", "unk_token": "<unk>", "vocab": vocab }),
        _ => json!({ "type": "Unigram", "unk_id": 1, "byte_fallback": false,
            "vocab": [["</s>", 0.0], ["<unk>", 0.0], ["a", -1.5], ["b", -2.0], ["ab", -2.5]] }),
    };
    json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0 },
        "padding": { "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "</s>" },
        "added_tokens": [
            { "id": 0, "content": "</s>", "single_word": false, "lstrip": true, "rstrip": false, "normalized": false, "special": true },
            { "id": if kind == 3 { 5 } else { 7 }, "content": "abab", "single_word": true, "lstrip": false, "rstrip": true, "normalized": true, "special": false },
        ],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" }, { "type": "Lowercase" }, { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
            { "type": "Strip", "strip_left": true, "strip_right": false },
            { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": "\\p{N}{1,3}|[^\\s]+|\\s+(?!\\S)" }, "behavior": "Isolated", "invert": false },
            { "type": "Digits", "individual_digits": true }, { "type": "Punctuation", "behavior": "Isolated" },
            { "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "</s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [0], "tokens": ["</s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": model,
    })
}

#[test]
fn the_whole_ones_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("tokenizer.json");
    for kind in 0..4 {
        fs::write(&path, tokenizer(kind).to_string()).unwrap();
        let read = Tokenizer::from_file(&path, None).unwrap();
        assert_eq!(read.eos(), 0);
        assert!(!read.encode("ab ba").unwrap().is_empty());
    }
}
