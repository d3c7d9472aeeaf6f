//! Indexed token files, `<prefix>.bin` and `<prefix>.idx`: the format of Megatron-LM in which
//! `MiniLLM/dolly-processed` and `MiniLLM/openwebtext-processed` are published.
//!
//! `.bin` holds the tokens of all documents one after another, u16 little-endian. `.idx` holds magic
//! `MMIDIDX\0\0`, version 1 (u64), dtype code 8 = u16 (u8), the number of sizes and of document marks (u64
//! each), the sizes (i32), byte offsets (i64) and document marks (i64). In an instruction document 65535
//! stands between prompt and response, whose end is the end-of-text token; a document without it is text.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use crate::{Error, Example, Limits, Sequence, Tokenizer, prompt};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
const U16: u8 = 8;
const HEADER: usize = 34;

/// Stands between prompt and response.
pub const SEPARATOR: u16 = u16::MAX;

/// Writes documents; both files appear when complete.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write_indexed(prefix: &Path, documents: &[Vec<u16>]) -> Result<(), Error> {
    let mut index = Vec::new();
    index.extend(MAGIC);
    index.extend(VERSION.to_le_bytes());
    index.push(U16);
    index.extend((documents.len() as u64).to_le_bytes());
    index.extend((documents.len() as u64 + 1).to_le_bytes());
    for document in documents {
        index.extend((document.len() as i32).to_le_bytes());
    }
    let mut offset = 0i64;
    for document in documents {
        index.extend(offset.to_le_bytes());
        offset += 2 * document.len() as i64;
    }
    for mark in 0..=documents.len() as i64 {
        index.extend(mark.to_le_bytes());
    }
    let tokens = documents.iter().flatten().flat_map(|t| t.to_le_bytes());
    write_whole(&with_suffix(prefix, "bin"), &tokens.collect::<Vec<u8>>())?;
    write_whole(&with_suffix(prefix, "idx"), &index)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let partial = with_suffix(path, "partial");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(Error::io(path))
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Documents of a pair of files, read as they are asked for.
pub struct IndexedTokens {
    tokens: Mmap,
    /// Start and length of each document, in tokens.
    places: Vec<(usize, usize)>,
}

impl IndexedTokens {
    /// Opens `<prefix>.bin` and `<prefix>.idx` and checks that they belong together.
    ///
    /// # Errors
    ///
    /// A file that is missing, truncated, of another format, or that does not fit the other.
    pub fn open(prefix: &Path) -> Result<Self, Error> {
        let path = with_suffix(prefix, "idx");
        let index = fs::read(&path).map_err(Error::io(&path))?;
        let refuse = |reason: String| Error::Indexed {
            path: path.clone(),
            reason,
        };
        if index.len() < HEADER {
            return Err(refuse("truncated: shorter than its header".into()));
        }
        if &index[..9] != MAGIC {
            return Err(refuse(
                "not an indexed token file: it does not begin with MMIDIDX".into(),
            ));
        }
        let version = u64_at(&index, 9);
        if version != VERSION {
            return Err(refuse(format!("version {version}; version 1 is read")));
        }
        if index[17] != U16 {
            return Err(refuse(format!("dtype code {}; 8 (u16) is read", index[17])));
        }
        let (n, marks) = (u64_at(&index, 18) as usize, u64_at(&index, 26) as usize);
        let expected = n
            .checked_mul(12)
            .zip(marks.checked_mul(8))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER));
        if expected != Some(index.len()) {
            return Err(refuse(format!(
                "truncated or damaged: {} bytes for {n} documents",
                index.len()
            )));
        }
        let bin = with_suffix(prefix, "bin");
        let file = File::open(&bin).map_err(Error::io(&bin))?;
        // SAFETY: the file is only read; a program that changes it meanwhile gets what it asks for.
        let tokens = unsafe { Mmap::map(&file) }.map_err(Error::io(&bin))?;
        let mut places = Vec::with_capacity(n);
        let mut end = 0;
        for i in 0..n {
            let size = i32_at(&index, HEADER + 4 * i);
            let offset = u64_at(&index, HEADER + 4 * n + 8 * i) as usize;
            let (Ok(size), true) = (usize::try_from(size), offset.is_multiple_of(2)) else {
                return Err(refuse(format!(
                    "document {i}: size {size} at byte {offset}"
                )));
            };
            let last = offset.checked_add(2 * size);
            if last.is_none_or(|last| last > tokens.len()) {
                return Err(Error::Indexed {
                    path: bin,
                    reason: format!(
                        "truncated: document {i} has {size} tokens at byte {offset}, the file {} bytes",
                        tokens.len()
                    ),
                });
            }
            end = end.max(offset + 2 * size);
            places.push((offset / 2, size));
        }
        if end != tokens.len() {
            return Err(Error::Indexed {
                path: bin,
                reason: format!(
                    "{} bytes, but the index knows of {end}; do the two files belong together?",
                    tokens.len()
                ),
            });
        }
        Ok(Self { tokens, places })
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Values in all documents, separators included.
    pub fn values(&self) -> usize {
        self.tokens.len() / 2
    }

    /// A document's values.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn document(&self, index: usize) -> Vec<u16> {
        let (start, n) = self.places[index];
        self.tokens[2 * start..2 * (start + n)]
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
            .collect()
    }

    /// An instruction document as a training sequence; `None` when it has no separator, or nothing is
    /// left of its response after cutting.
    pub fn sequence(&self, index: usize, limits: &Limits) -> Option<Sequence> {
        let values = self.document(index);
        let at = values.iter().position(|&v| v == SEPARATOR)?;
        let kept = at.min(limits.max_prompt_length);
        let mut tokens: Vec<u32> = values[..kept]
            .iter()
            .chain(&values[at + 1..])
            .map(|&v| u32::from(v))
            .collect();
        tokens.truncate(limits.max_length);
        (kept > 0 && tokens.len() > kept).then_some(Sequence {
            example: index,
            tokens,
            prompt_len: kept,
        })
    }
}

impl IndexedTokens {
    /// A document as text to be predicted from its second token on.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn text(&self, index: usize) -> Sequence {
        let tokens = self.document(index).into_iter();
        Sequence {
            example: index,
            tokens: tokens.map(u32::from).collect(),
            prompt_len: 1,
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Examples as documents: `tokens(prompt)`, the separator, the response, the end. Nothing is cut.
///
/// # Errors
///
/// A tokenizer that fails, or whose ids do not fit beside the separator.
pub fn pack(examples: &[Example], tokenizer: &Tokenizer) -> Result<Vec<Vec<u16>>, Error> {
    if tokenizer.vocab_size() > usize::from(SEPARATOR) {
        return Err(Error::Tokenizer {
            path: "tokenizer".into(),
            reason: format!(
                "{} tokens; packed files hold ids below {SEPARATOR}",
                tokenizer.vocab_size()
            ),
        });
    }
    examples
        .par_iter()
        .map(|e| {
            let text = prompt(e);
            let head = tokenizer.encode(&text)?;
            let full = tokenizer.encode(&(text + &e.outputs[0]))?;
            let response = full.get(head.len()..).unwrap_or_default();
            let ids = |tokens: &[u32]| tokens.iter().map(|&t| t as u16).collect::<Vec<_>>();
            let end = tokenizer.eos() as u16;
            Ok([ids(&head), vec![SEPARATOR], ids(response), vec![end]].concat())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(documents: &[Vec<u16>]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("train_0");
        write_indexed(&prefix, documents).unwrap();
        (dir, prefix)
    }

    proptest! {
        #[test]
        fn documents_read_back(documents in prop::collection::vec(prop::collection::vec(any::<u16>(), 1..20), 1..20)) {
            let (_dir, prefix) = written(&documents);
            let read = IndexedTokens::open(&prefix).unwrap();
            let all: Vec<Vec<u16>> = (0..read.len()).map(|i| read.document(i)).collect();
            prop_assert_eq!(read.values(), documents.concat().len());
            prop_assert_eq!(all, documents);
        }
    }

    #[test]
    fn the_bytes_are_the_published_formats() {
        let (_dir, prefix) = written(&[vec![1, 65535, 2], vec![3]]);
        let index = fs::read(with_suffix(&prefix, "idx")).unwrap();
        assert_eq!(&index[..9], b"MMIDIDX\0\0");
        assert_eq!(index[9..17], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(index[17], 8);
        assert_eq!(index.len(), 34 + 2 * 4 + 2 * 8 + 3 * 8);
        assert_eq!(index[34..42], [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(index[50..58], [6, 0, 0, 0, 0, 0, 0, 0]);
        let bin = fs::read(with_suffix(&prefix, "bin")).unwrap();
        assert_eq!(bin, [1, 0, 255, 255, 2, 0, 3, 0]);
    }

    #[test]
    fn a_document_is_a_sequence_once_more() {
        let (_dir, prefix) = written(&[vec![1, 2, 3, 65535, 4, 5], vec![1, 2]]);
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
        assert!(read.sequence(1, &limits(9, 9)).is_none());
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let damage = |suffix: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let (_dir, prefix) = written(&[vec![1, 2, 3], vec![4]]);
            let path = with_suffix(&prefix, suffix);
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
            let error = IndexedTokens::open(&prefix).err().unwrap().to_string();
            assert!(error.contains(suffix), "{error}");
            error
        };
        assert!(damage("idx", &|b| b.truncate(20)).contains("truncated"));
        assert!(damage("idx", &|b| b.truncate(60)).contains("truncated"));
        assert!(damage("idx", &|b| b[0] = b'X').contains("MMIDIDX"));
        assert!(damage("idx", &|b| b[9] = 2).contains("version 2"));
        assert!(damage("idx", &|b| b[17] = 4).contains("dtype code 4"));
        assert!(damage("idx", &|b| b[37] = 0x80).contains("document 0"));
        assert!(damage("bin", &|b| b.truncate(6)).contains("truncated"));
        assert!(damage("bin", &|b| b.extend([0, 0])).contains("belong together"));
    }
}
