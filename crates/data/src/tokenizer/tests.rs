use super::*;

#[test]
fn the_template_costs_a_token_a_part() {
    let tokenizer = Tokenizer::embedded();
    let example = crate::Example {
        instruction: "what does anna have?".into(),
        input: "anna has a red hat.".into(),
        outputs: vec!["x".into()],
        messages: Vec::new(),
    };
    let tokens = tokenizer.encode(&crate::prompt(&example)).unwrap();
    assert_eq!(tokens.len(), 4 + 5 + 6);
    assert!(tokens.iter().all(|&t| t != 1), "no unknown word");
    assert!(tokenizer.vocab_size() <= 1024, "{}", tokenizer.vocab_size());
    assert_eq!(
        tokenizer
            .decode(&[tokenizer.encode("anna").unwrap()[0], 0])
            .unwrap(),
        "anna"
    );
}

#[test]
fn a_saved_tokenizer_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let tokenizer = Tokenizer::embedded();
    tokenizer.save(&path).unwrap();
    let again = Tokenizer::from_file(&path, None).unwrap();
    let text = "\n\n### Response:\nanna has a red hat.";
    assert_eq!(tokenizer.encode(text).unwrap(), again.encode(text).unwrap());
    assert_eq!(tokenizer.hash(), again.hash());
    std::fs::write(&path, "{").unwrap();
    assert!(Tokenizer::from_file(&path, None).is_err());
}

#[test]
fn the_beginning_of_sequence_is_what_the_file_puts_there() {
    use tokenizers::processors::template::TemplateProcessing;
    let mut tokenizer = Tokenizer::embedded();
    let text = tokenizer.bos().unwrap_err().to_string();
    assert!(text.contains("beginning of sequence"), "{text}");
    let processor = TemplateProcessing::builder()
        .try_single("<unk> $A")
        .unwrap()
        .special_tokens(vec![("<unk>", 1)])
        .build()
        .unwrap();
    tokenizer.inner.with_post_processor(Some(processor));
    assert_eq!(tokenizer.bos().unwrap(), 1);
    // other encodings do not change
    assert!(!tokenizer.encode("anna").unwrap().contains(&1));
}

/// A folder with a tokenizer of vocabulary `vocab` and with `files`.
fn folder(vocab: &serde_json::Value, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = serde_json::json!({
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "a" },
    });
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn the_files_beside_it_say_which_token_ends_a_text() {
    let vocab = serde_json::json!({ "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "a": 3, "b": 4 });
    let ends = |files: &[(&str, &str)], eos: Option<u32>| {
        let dir = folder(&vocab, files);
        Tokenizer::from_file(&dir.path().join("tokenizer.json"), eos)
            .map(|t| t.ends().to_vec())
            .map_err(|e| e.to_string())
    };
    let config = |eos: &'static str| ("config.json", eos);
    let own = ("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
    assert_eq!(ends(&[config(r#"{"eos_token_id": 2}"#)], None), Ok(vec![2]));
    assert_eq!(
        ends(&[config(r#"{"eos_token_id": [4, 2, 4]}"#)], None),
        Ok(vec![4, 2])
    );
    assert_eq!(ends(&[own], None), Ok(vec![2]));
    assert_eq!(
        ends(&[own, config(r#"{"eos_token_id": [0, 2]}"#)], None),
        Ok(vec![2, 0])
    );
    // The model's own end, for a tokenizer in another folder.
    assert_eq!(ends(&[], Some(4)), Ok(vec![4]));
    assert_eq!(ends(&[own], Some(4)), Ok(vec![2, 4]));
    // GPT-2's default id, in the configuration of a model with a smaller vocabulary.
    let error = ends(&[config(r#"{"eos_token_id": 50256}"#)], None).unwrap_err();
    assert!(error.contains("<|endoftext|> and <|im_end|>"), "{error}");
    let error = ends(&[], None).unwrap_err();
    assert!(error.contains("--eos ID|TOKEN"), "{error}");
    assert!(error.contains("tokenizer_config.json"), "{error}");
    let other = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let error = ends(&[other], None).unwrap_err();
    assert!(
        error.contains("tokenizer_config.json: its `eos_token` \"</s>\""),
        "{error}"
    );
}

#[test]
fn the_end_of_text_can_be_named() {
    let vocab = serde_json::json!({ "a": 0, "<end>": 1, "0": 2, "9": 3 });
    let dir = folder(&vocab, &[("config.json", "{")]);
    let path = dir.path().join("tokenizer.json");
    let end = |eos: &str| Tokenizer::from_file_with_eos(&path, eos).map(|t| t.eos());
    assert_eq!(end("<end>").unwrap(), 1);
    assert_eq!(end("1").unwrap(), 1);
    assert_eq!(end("0").unwrap(), 0, "a number, not the token `0`");
    for eos in ["9", "</s>", "", "-1", "99999999999"] {
        let error = end(eos).unwrap_err().to_string();
        assert!(error.contains(&format!("no token {eos:?}")), "{error}");
    }
    let dir = folder(&vocab, &[]);
    let error = Tokenizer::from_file(&dir.path().join("tokenizer.json"), None);
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("it has none") && error.contains("--eos"),
        "{error}"
    );
}

#[test]
fn the_highest_id_counts() {
    let vocab = serde_json::json!({ "</s>": 0, "a": 1, "b": 900 });
    let dir = folder(&vocab, &[]);
    let path = dir.path().join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path, None).unwrap();
    assert_eq!(tokenizer.vocab_size(), 901);
    assert_eq!(tokenizer.token(900).as_deref(), Some("b"));
    assert_eq!(tokenizer.token(2), None);
    assert!(tokenizer.gapped.is_some());
    let copy = dir.path().join("copy.json");
    tokenizer.save(&copy).unwrap();
    let again = Tokenizer::from_file(&copy, None).unwrap();
    assert_eq!(again.hash(), tokenizer.hash());
    assert_eq!(again.differs_from(&tokenizer), None);
}

#[test]
fn what_is_no_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let bpe = r#"{"model": {"type": "BPE", "dropout": 0.5, "vocab": {"</s>": 0}, "merges": []}}"#;
    let charsmap = r#"{"model": {"type": "WordLevel", "vocab": {"</s>": 0}, "unk_token": "</s>"}, "normalizer": {"type": "Sequence",
        "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}]}}"#;
    // A valid table with one entry.
    std::fs::write(&path, charsmap.replace("AAAA", "BAAAAAAAAAA=")).unwrap();
    assert!(Tokenizer::from_file(&path, None).is_ok());
    let gap = r#"{"model": {"type": "WordLevel", "vocab": {"</s>": 0}, "unk_token": "</s>"}, "added_tokens": [{"id": 9,
        "content": "b", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]}"#;
    for (text, says) in [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git lfs pull",
        ),
        ("[]", "no tokenizer.json"),
        ("", "no tokenizer.json"),
        (bpe, "dropout"),
        (
            r#"{"model": {"type": "WordLevel", "vocab": {"</s>": 0}, "unk_token": "</s>"}, "decoder": {"#,
            "no tokenizer.json",
        ),
        (charsmap, "precompiled_charsmap"),
        (gap, "\"b\" has id 9 in it, and is read as 1"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Tokenizer::from_file(&path, None).err().unwrap().to_string();
        assert!(
            error.contains("tokenizer.json: ") && error.contains(says),
            "{error}"
        );
    }
    let error = Tokenizer::from_file(dir.path(), None).err().unwrap();
    assert!(error.to_string().contains("folder"), "{error}");
}
