use std::fs;

use super::*;
use crate::{Example, PromptTemplate, encode_training};
use proptest::prelude::*;

fn written(documents: &[Vec<u16>]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("train_0");
    write_indexed(&prefix, documents).unwrap();
    (dir, prefix)
}

/// A pair of i32 files, with the marks of MiniLLM's own writer.
fn written_i32(documents: &[&[i32]]) -> (tempfile::TempDir, PathBuf) {
    written_wide(documents, I32)
}

fn written_wide(documents: &[&[i32]], code: u8) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("train_0");
    let mut index = [&MAGIC[..], &1u64.to_le_bytes(), &[code]].concat();
    index.extend((documents.len() as u64).to_le_bytes());
    index.extend(1u64.to_le_bytes());
    for document in documents {
        index.extend((document.len() as i32).to_le_bytes());
    }
    let mut offset = 0;
    for document in documents {
        index.extend((offset as i64).to_le_bytes());
        offset += 4 * document.len();
    }
    index.extend(0i64.to_le_bytes());
    let bin: Vec<u8> = documents
        .concat()
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    fs::write(prefix.with_added_extension("idx"), index).unwrap();
    fs::write(prefix.with_added_extension("bin"), bin).unwrap();
    (dir, prefix)
}

fn example(instruction: &str, output: &str) -> Example {
    Example {
        instruction: instruction.into(),
        input: String::new(),
        outputs: vec![output.into()],
        messages: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn documents_read_back(documents in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..20), 0..20)) {
        let (dir, prefix) = written(&documents);
        let read = IndexedTokens::open(&prefix).unwrap();
        let all: Vec<Vec<u32>> = (0..read.len()).map(|i| read.document(i)).collect();
        prop_assert_eq!(read.values(), documents.concat().len());
        prop_assert_eq!(read.is_empty(), documents.is_empty());
        let wanted: Vec<Vec<u32>> =
            documents.iter().map(|d| d.iter().map(|&v| v.into()).collect()).collect();
        prop_assert_eq!(all, wanted);
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

/// A damaged index never makes the reader panic: each byte changed, and the file cut at each length.
#[test]
fn a_damaged_index_is_refused_or_read() {
    let (_dir, prefix) = written(&[vec![1, 2, 3], vec![4]]);
    let path = prefix.with_added_extension("idx");
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), 82);
    let changed = (0..82).flat_map(|at| {
        let whole = &whole;
        [0, 1, 2, 4, 7, 0x7f, 0x80, 0xff].map(|value| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            bytes
        })
    });
    let cut = (0..82).map(|keep| whole[..keep].to_vec());
    for bytes in changed.chain(cut) {
        fs::write(&path, &bytes).unwrap();
        match IndexedTokens::open(&prefix) {
            Ok(read) => {
                let all: Vec<Vec<u32>> = (0..read.len()).map(|i| read.document(i)).collect();
                assert_eq!(all.concat().len(), read.values());
            }
            Err(_) => assert_ne!(bytes, whole),
        }
    }
}

#[test]
fn the_bytes_are_the_published_formats() {
    let (_dir, prefix) = written(&[vec![1, 65535, 2], vec![3]]);
    let index = fs::read(prefix.with_added_extension("idx")).unwrap();
    assert_eq!(&index[..9], b"MMIDIDX\0\0");
    assert_eq!(index[9..17], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(index[17], 8);
    assert_eq!(index.len(), 34 + 2 * 4 + 2 * 8 + 3 * 8);
    assert_eq!(index[34..42], [3, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(index[50..58], [6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!([index[58], index[66], index[74]], [0, 1, 2]);
    let bin = fs::read(prefix.with_added_extension("bin")).unwrap();
    assert_eq!(bin, [1, 0, 255, 255, 2, 0, 3, 0]);
}

#[test]
fn slices_are_written_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("new/folder/text.v1");
    let documents: [&[u16]; 2] = [&[7, 8], &[9]];
    write_indexed(&prefix, documents).unwrap();
    assert!(dir.path().join("new/folder/text.v1.idx").exists());
    let read = IndexedTokens::open(&prefix).unwrap();
    assert_eq!((read.document(0), read.document(1)), (vec![7, 8], vec![9]));
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // a folder in place of the index
    fs::create_dir_all(dir.path().join("x.idx/y")).unwrap();
    let error = write_indexed(&dir.path().join("x"), [[1u16]]).unwrap_err();
    assert!(error.to_string().contains("x.idx"), "{error}");
    let left = fs::read_dir(dir.path()).unwrap();
    let names = left.map(|e| e.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .all(|n| !n.to_string_lossy().contains("partial"))
    );
}

/// Prompt and response of each document of a file.
fn halves(prefix: &Path) -> Vec<(Vec<u32>, Option<Vec<u32>>)> {
    let read = IndexedTokens::open(prefix).unwrap();
    (0..read.len()).map(|i| read.halves(i)).collect()
}

#[test]
fn the_separator_is_that_of_the_type() {
    let (_dir, prefix) = written_i32(&[&[70_000, i32::MAX, 5], &[6, 65535, 7], &[8, -1, 65535]]);
    let read = IndexedTokens::open(&prefix).unwrap();
    assert_eq!((read.len(), read.values()), (3, 9));
    assert_eq!(
        halves(&prefix),
        [
            (vec![70_000], Some(vec![5])),
            (vec![6, 65535, 7], None),
            (vec![8], Some(vec![65535])),
        ]
    );
    let (_dir, prefix) = written_wide(&[&[6, -1, 65535, i32::MAX]], U32);
    assert_eq!(
        halves(&prefix),
        [(vec![6], Some(vec![65535, i32::MAX as u32]))]
    );
    let (_dir, prefix) = written(&[vec![6, 65535, 7]]);
    assert_eq!(halves(&prefix), [(vec![6], Some(vec![7]))]);

    let (_dir, prefix) = written_i32(&[&[1], &[2, -7]]);
    let error = IndexedTokens::open(&prefix).err().unwrap().to_string();
    assert!(
        error.contains("train_0.bin: document 1, token 1 is -7"),
        "{error}"
    );
}

#[test]
fn tokens_outside_the_vocabulary_are_refused_with_their_place() {
    let (_dir, prefix) = written(&[vec![1, 2, 65535, 3], vec![4, 9], vec![5, 65535, 6, 65535]]);
    let read = IndexedTokens::open(&prefix).unwrap();
    let said = |bound, documents| match read.check_ids(bound, documents) {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    };
    let error = said(9, Documents::Instructions);
    assert!(
        error.contains("train_0.bin: document 1, token 1 is 9, and the vocabulary has 9 ids"),
        "{error}"
    );
    let error = said(10, Documents::Instructions);
    assert!(
        error.contains("document 2, token 3 is a second separator"),
        "{error}"
    );
    // A separator is never a token, however large the vocabulary.
    let error = said(usize::MAX, Documents::Text);
    assert!(
        error.contains("document 0, token 2 is the separator"),
        "{error}"
    );
    let (_dir, prefix) = written(&[vec![1, 2, 65535, 3], vec![4, 9]]);
    let read = IndexedTokens::open(&prefix).unwrap();
    assert!(read.check_ids(10, Documents::Instructions).is_ok());
    let (_dir, prefix) = written_i32(&[&[1, 65535, 3]]);
    let read = IndexedTokens::open(&prefix).unwrap();
    assert!(read.check_ids(65536, Documents::Text).is_ok());
    assert!(read.check_ids(65535, Documents::Text).is_err());
}

#[test]
fn a_document_is_a_sequence_once_more() {
    let (_dir, prefix) = written(&[vec![1, 2, 3, 65535, 4, 5], vec![1, 2], vec![1, 65535, 5]]);
    let read = IndexedTokens::open(&prefix).unwrap();
    let limits = |prompt, length| Limits {
        max_prompt_length: prompt,
        max_length: length,
    };
    let whole = read.sequence(0, &limits(9, 9)).unwrap();
    assert_eq!((whole.tokens, whole.prompt_len), (vec![1, 2, 3, 4, 5], 3));
    let cut = read.sequence(0, &limits(2, 3)).unwrap();
    assert_eq!((cut.tokens, cut.prompt_len), (vec![1, 2, 4], 2));
    assert!(read.sequence(0, &limits(3, 3)).is_none());
    assert!(read.sequence(0, &limits(0, 9)).is_none());
    assert!(read.sequence(1, &limits(9, 9)).is_none());
    assert!(read.sequence(2, &limits(9, 9)).is_none(), "an end alone");
    let text = read.text(1);
    assert_eq!((text.tokens, text.prompt_len), (vec![1, 2], 1));
}

#[test]
fn packing_is_encoding() {
    let tokenizer = Tokenizer::embedded();
    let examples = [
        example("what does anna have?", "anna has a red hat."),
        example("what does anna have?", ""),
        example("what does anna have?", "a hat."),
    ];
    let documents = pack(&examples, &tokenizer).unwrap();
    let (_dir, prefix) = written(&documents);
    let read = IndexedTokens::open(&prefix).unwrap();
    for (max_prompt_length, max_length) in [(99, 99), (5, 99), (99, 11), (4, 6)] {
        let limits = Limits {
            max_prompt_length,
            max_length,
        };
        let encoded =
            encode_training(&examples, &tokenizer, &PromptTemplate::Paper, &limits).unwrap();
        let sequences: Vec<Sequence> = (0..3).filter_map(|i| read.sequence(i, &limits)).collect();
        assert_eq!(sequences, encoded.sequences);
    }
}

#[test]
fn a_large_vocabulary_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let read = |size: usize| {
        let words = (1..size).map(|i| (i.to_string(), i.into()));
        let vocab: serde_json::Map<String, serde_json::Value> =
            words.chain([("</s>".to_owned(), 0.into())]).collect();
        let json = serde_json::json!({
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "</s>" },
        });
        fs::write(&path, json.to_string()).unwrap();
        Tokenizer::from_file(&path, None).unwrap()
    };
    assert!(pack(&[example("a", "b")], &read(65_535)).is_ok());
    let error = pack(&[example("a", "b")], &read(65_536)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("tokenizer.json: its ids go up to 65535"),
        "{error}"
    );
}

#[test]
fn lines_are_the_texts() {
    let tokenizer = Tokenizer::embedded();
    let documents = pack(&[example("what does anna have?", "a hat.")], &tokenizer).unwrap();
    let plain = tokenizer.encode("anna has a hat.").unwrap();
    let plain = plain.iter().map(|&t| t as u16).collect();
    let (_dir, prefix) = written(&[documents[0].clone(), plain]);
    let read = IndexedTokens::open(&prefix).unwrap();
    let line: serde_json::Value = serde_json::from_str(&read.line(0, &tokenizer).unwrap()).unwrap();
    assert_eq!(line["output"], "a hat.");
    assert!(
        line["prompt"]
            .as_str()
            .unwrap()
            .contains("what does anna have?")
    );
    assert_eq!(
        read.line(1, &tokenizer).unwrap(),
        r#"{"text":"anna has a hat."}"#
    );
}

/// With an end of text that is no special token, so that the tokenizer does decode it.
#[test]
fn the_end_that_closes_a_text_is_not_in_its_line() {
    let json = r#"{"model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1, "b": 2}, "unk_token": "a"}}"#;
    let (dir, prefix) = written(&[vec![1, 65535, 2, 0, 1, 0], vec![1, 2, 0], vec![1, 2]]);
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, json).unwrap();
    let tokenizer = Tokenizer::from_file(&path, None).unwrap();
    let read = IndexedTokens::open(&prefix).unwrap();
    let lines = [0, 1, 2].map(|i| read.line(i, &tokenizer).unwrap());
    let text = r#"{"text":"a b"}"#;
    assert_eq!(lines, [r#"{"output":"b </s> a","prompt":"a"}"#, text, text]);
}

#[test]
fn damaged_files_are_refused_by_name() {
    let damage = |suffix: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let (_dir, prefix) = written(&[vec![1, 2, 3], vec![4]]);
        let path = prefix.with_added_extension(suffix);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = IndexedTokens::open(&prefix).err().unwrap().to_string();
        assert!(error.contains(&format!("train_0.{suffix}: ")), "{error}");
        error
    };
    assert!(damage("idx", &|b| b.clear()).contains("truncated"));
    assert!(damage("idx", &|b| b.truncate(20)).contains("truncated"));
    assert!(damage("idx", &|b| b.truncate(60)).contains("truncated"));
    assert!(damage("idx", &|b| b.push(0)).contains("damaged"));
    assert!(damage("idx", &|b| b[0] = b'X').contains("MMIDIDX"));
    assert!(damage("idx", &|b| b[9] = 2).contains("version 2"));
    assert!(damage("idx", &|b| b[17] = 7).contains("dtype code 7"));
    // more documents than bytes of memory
    assert!(damage("idx", &|b| b[18..26].fill(0xff)).contains("truncated"));
    assert!(damage("idx", &|b| b[37] = 0x80).contains("document 0 is said to have -2147483645"));
    assert!(damage("idx", &|b| b[51] = 1).contains("begin at byte 262, those before it end at 6"));
    assert!(damage("idx", &|b| b[57] = 0x80).contains("document 1 is said to begin at byte -"));
    assert!(damage("idx", &|b| b[50] = 4).contains("begin at byte 4, those"));
    assert!(damage("idx", &|b| b[66] = 3).contains("document mark 1 is 3"));
    assert!(damage("bin", &|b| b.truncate(6)).contains("truncated"));
    assert!(damage("bin", &|b| b.extend([0, 0])).contains("belong together"));
    assert!(
        damage("idx", &|b| *b =
            b"version https://git-lfs.github.com/spec/v1\n".to_vec())
        .contains("git lfs pull")
    );
    let (_dir, prefix) = written(&[vec![1]]);
    fs::remove_file(prefix.with_added_extension("bin")).unwrap();
    let error = IndexedTokens::open(&prefix).err().unwrap().to_string();
    assert!(error.contains("train_0.bin"), "{error}");
    fs::create_dir(prefix.with_added_extension("bin")).unwrap();
    let error = IndexedTokens::open(&prefix).err().unwrap().to_string();
    assert!(
        error.contains("train_0.bin") && error.contains("folder"),
        "{error}"
    );
}
