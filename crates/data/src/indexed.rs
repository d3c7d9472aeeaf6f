//! Indexed token files, `<prefix>.bin` and `<prefix>.idx`: the format of Megatron-LM in which
//! `MiniLLM/dolly-processed` and `MiniLLM/openwebtext-processed` are published.
//!
//! `.bin` holds the tokens of all documents one after another, little-endian. `.idx` holds magic
//! `MMIDIDX\0\0`, version 1 (u64), dtype code 8 = u16, 4 = i32 or 9 = u32 (u8), the number of sizes and of document
//! marks (u64 each), the sizes (i32), byte offsets (i64) and document marks (i64). An instruction document is a
//! prompt, a separator and a response that ends with the end-of-text token; a document without separator is
//! text.
//!
//! The separator is the largest number of the type, as in MiniLLM's `np.iinfo(dtype).max`: 65535 in u16, 2147483647 in
//! i32 (where 65535 is an ordinary token), 4294967295 in u32. Older i32 files have the separator -1.
//!
//! Marks are written as 0..=n. MiniLLM's own writer only writes the first mark, 0, so the reader only checks that the
//! marks are in order.

use std::path::{Path, PathBuf};

use abkd_host::files;
use memmap2::Mmap;
use rayon::prelude::*;

use crate::{Error, Limits, Sequence, Tokenizer};

mod write;

pub use write::{pack, write_indexed};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
const I32: u8 = 4;
const U16: u8 = 8;
const U32: u8 = 9;
const HEADER: usize = 34;

/// Separator between prompt and response in written files, which are u16.
pub const SEPARATOR: u16 = u16::MAX;

/// Type of a file's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// Code of the type in the index.
    code: u8,
    /// Bytes of a token.
    width: usize,
    /// Values that separate prompt and response.
    separators: &'static [u32],
}

const KINDS: [Kind; 3] = [
    Kind {
        code: U16,
        width: 2,
        separators: &[u16::MAX as u32],
    },
    Kind {
        code: I32,
        width: 4,
        separators: &[i32::MAX as u32, -1i32 as u32],
    },
    Kind {
        code: U32,
        width: 4,
        separators: &[u32::MAX],
    },
];

/// Expected content of a file's documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documents {
    /// Prompt, separator and response; documents without a separator are allowed.
    Instructions,
    /// Text, without a separator.
    Text,
}

/// Documents of a pair of files, read on demand.
pub struct IndexedTokens {
    /// The file of tokens.
    path: PathBuf,
    bytes: Mmap,
    kind: Kind,
    /// Byte offset of each document, then the end of the last one.
    starts: Vec<usize>,
}

impl IndexedTokens {
    /// Opens `<prefix>.bin` and `<prefix>.idx` and checks that they match.
    ///
    /// # Errors
    ///
    /// A file that is missing, truncated or of another format; two files that do not match.
    pub fn open(prefix: &Path) -> Result<Self, Error> {
        let path = prefix.with_added_extension("idx");
        let index = files::read(&path, files::TEXT_LIMIT).map_err(Error::io(&path))?;
        let (kind, starts) = parse_index(&index).map_err(|reason| Error::file(path, reason))?;

        let path = prefix.with_added_extension("bin");
        let file = files::open(&path).map_err(Error::io(&path))?;
        // SAFETY: the file is only read; no other program may change it meanwhile.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        let tokens = Self {
            path,
            bytes,
            kind,
            starts,
        };
        let (len, end) = (tokens.bytes.len(), tokens.starts[tokens.len()]);
        if len < end {
            return Err(tokens.refuse(format!("truncated: {len} of {end} bytes")));
        }
        if len > end {
            return Err(tokens.refuse(format!(
                "{len} bytes, but the index counts {end}; do the two files belong together?"
            )));
        }
        // Only i32 can be negative. Checked once here, so that reading a document cannot fail.
        if kind.code == I32 {
            let negative = |v: u32| (v as i32) < 0 && !tokens.is_separator(v);
            for document in 0..tokens.len() {
                if let Some((at, v)) = tokens.ids(document).enumerate().find(|(_, v)| negative(*v))
                {
                    return Err(tokens.refuse(format!(
                        "document {document}, token {at} is {}; ids count from 0",
                        v as i32
                    )));
                }
            }
        }
        Ok(tokens)
    }

    /// Checks that every token is below `bound`, the size of a model's vocabulary, and that no document has more separators
    /// than `documents` allows.
    ///
    /// # Errors
    ///
    /// Names the file and the first document and token that fail the check.
    pub fn check_ids(&self, bound: usize, documents: Documents) -> Result<(), Error> {
        let found = (0..self.len()).into_par_iter().find_map_first(|document| {
            let mut separator = documents == Documents::Text;
            let outside = |value: u32| {
                if self.is_separator(value) {
                    return std::mem::replace(&mut separator, true);
                }
                value as usize >= bound
            };
            let at = self.ids(document).position(outside)?;
            Some((document, at, self.ids(document).nth(at)?))
        });
        let Some((document, at, value)) = found else {
            return Ok(());
        };
        let what = match (self.is_separator(value), documents) {
            (false, _) => format!(
                "{value}, and the vocabulary has {bound} ids, from 0 on; it was packed with another tokenizer"
            ),
            (true, Documents::Text) => {
                "the separator of prompt and response, and text has none; are these instructions?"
                    .into()
            }
            (true, Documents::Instructions) => "a second separator".into(),
        };
        Err(self.refuse(format!("document {document}, token {at} is {what}")))
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there are no documents.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values in all documents, separators included.
    pub fn values(&self) -> usize {
        self.bytes.len() / self.kind.width
    }

    /// Number of values of the longest document; 0 without documents.
    pub fn longest(&self) -> usize {
        let lengths = self.starts.windows(2).map(|at| at[1] - at[0]);
        lengths.max().unwrap_or(0) / self.kind.width
    }

    /// A document's values, its separator included.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn document(&self, index: usize) -> Vec<u32> {
        self.ids(index).collect()
    }

    fn ids(&self, index: usize) -> impl Iterator<Item = u32> {
        let bytes = &self.bytes[self.starts[index]..self.starts[index + 1]];
        bytes.chunks_exact(self.kind.width).map(|b| match *b {
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("a token has 2 or 4 bytes"),
        })
    }

    fn is_separator(&self, value: u32) -> bool {
        self.kind.separators.contains(&value)
    }

    fn refuse(&self, reason: String) -> Error {
        Error::file(&self.path, reason)
    }

    /// A document's prompt and response; `None` as response without a separator.
    fn halves(&self, index: usize) -> (Vec<u32>, Option<Vec<u32>>) {
        let mut values = self.document(index);
        let at = values.iter().position(|&v| self.is_separator(v));
        let response = at.map(|at| {
            let response = values.split_off(at + 1);
            values.pop();
            response
        });
        (values, response)
    }

    /// An instruction document as a training sequence, equal to that of
    /// [`encode_training`](crate::encode_training) for the same example; `None` when it has no separator, its
    /// response is only the end of text, or no response token is left after cutting.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn sequence(&self, index: usize, limits: &Limits) -> Option<Sequence> {
        let (mut tokens, response) = self.halves(index);
        let response = response.filter(|r| r.len() > 1)?;
        tokens.truncate(limits.max_prompt_length);
        let prompt_len = tokens.len();
        tokens.extend(response);
        tokens.truncate(limits.max_length);
        (prompt_len > 0 && tokens.len() > prompt_len).then_some(Sequence {
            example: index,
            tokens,
            prompt_len,
        })
    }

    /// A document as text, with targets from its second token on.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn text(&self, index: usize) -> Sequence {
        Sequence {
            example: index,
            tokens: self.document(index),
            prompt_len: 1,
        }
    }

    /// A document as a line of JSONL, without line break: `{"prompt", "output"}`, or `{"text"}` without a
    /// separator. The end of text at its end is left out.
    ///
    /// # Errors
    ///
    /// When the tokenizer fails.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn line(&self, index: usize, tokenizer: &Tokenizer) -> Result<String, Error> {
        let text = |ids: &[u32]| {
            let ends = tokenizer.ends();
            let open = ids.split_last().filter(|(last, _)| ends.contains(last));
            tokenizer.decode(open.map_or(ids, |(_, rest)| rest))
        };
        let line = match self.halves(index) {
            (prompt, Some(response)) => serde_json::json!({
                "prompt": tokenizer.decode(&prompt)?, "output": text(&response)?,
            }),
            (values, None) => serde_json::json!({ "text": text(&values)? }),
        };
        Ok(line.to_string())
    }
}

/// The type of the tokens; the byte offset of each document, then the end of the last one.
fn parse_index(index: &[u8]) -> Result<(Kind, Vec<usize>), String> {
    let begins = &index[..index.len().min(MAGIC.len())];
    if !MAGIC.starts_with(begins) {
        return Err("not an indexed token file: it does not begin with MMIDIDX".into());
    }
    if index.len() < HEADER {
        return Err(format!(
            "truncated: {} bytes, its header alone has {HEADER}",
            index.len()
        ));
    }
    let version = u64_at(index, 9);
    if version != VERSION {
        return Err(format!("version {version}; version {VERSION} is read"));
    }
    let code = index[17];
    let Some(&kind) = KINDS.iter().find(|k| k.code == code) else {
        return Err(format!(
            "dtype code {code}; 8 (u16), 4 (i32) and 9 (u32) are read"
        ));
    };
    let (n, marks) = (u64_at(index, 18), u64_at(index, 26));
    // 128 bits, so that the counts of a damaged header cannot overflow
    let expected = HEADER as u128 + 12 * u128::from(n) + 8 * u128::from(marks);
    if index.len() as u128 != expected {
        let what = if (index.len() as u128) < expected {
            "truncated"
        } else {
            "damaged"
        };
        return Err(format!(
            "{what}: {} bytes, {n} documents and {marks} marks take {expected}",
            index.len()
        ));
    }
    let n = n as usize;
    let (sizes, rest) = index[HEADER..].split_at(4 * n);
    let (pointers, marks) = rest.split_at(8 * n);
    let mut starts = Vec::with_capacity(n + 1);
    let mut end = 0usize;
    for i in 0..n {
        starts.push(end);
        let size = u32_at(sizes, 4 * i) as i32;
        let pointer = u64_at(pointers, 8 * i) as i64;
        if usize::try_from(pointer) != Ok(end) {
            return Err(format!(
                "document {i} is said to begin at byte {pointer}, those before it end at {end}"
            ));
        }
        end = usize::try_from(size)
            .ok()
            .and_then(|size| end.checked_add(kind.width.checked_mul(size)?))
            .ok_or_else(|| format!("document {i} is said to have {size} tokens"))?;
    }
    starts.push(end);
    let mut last = 0;
    for (i, mark) in marks.as_chunks().0.iter().enumerate() {
        let mark = u64::from_le_bytes(*mark);
        if mark < last || mark > n as u64 {
            return Err(format!(
                "document mark {i} is {}; marks ascend from 0 to {n}",
                mark as i64
            ));
        }
        last = mark;
    }
    Ok((kind, starts))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests;
