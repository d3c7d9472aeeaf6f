//! Indexed token files, `<prefix>.bin` and `<prefix>.idx`: the format of Megatron-LM in which
//! `MiniLLM/dolly-processed` and `MiniLLM/openwebtext-processed` are published.
//!
//! `.bin` holds the tokens of all documents one after another, u16 little-endian. `.idx` holds magic
//! `MMIDIDX\0\0`, version 1 (u64), dtype code 8 = u16 or 4 = i32 (u8), the number of sizes and of document
//! marks (u64 each), the sizes (i32), byte offsets (i64) and document marks (i64). In an instruction document
//! 65535 stands between prompt and response, whose end is the end-of-text token; a document without it is
//! text.
//!
//! Marks are written as 0..=n. MiniLLM's own writer leaves only the first of them, 0, so that a reader cannot
//! ask for more than that they are in order. Its separator is -1 before it becomes a u16, so that in an i32
//! file it is -1 or 65535.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use crate::{Error, Example, Limits, Sequence, Tokenizer, prompt};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
const I32: u8 = 4;
const U16: u8 = 8;
const HEADER: usize = 34;

/// Stands between prompt and response.
pub const SEPARATOR: u16 = u16::MAX;

/// Writes documents; both files appear when both are complete.
///
/// # Errors
///
/// When a file cannot be written, or a document has more tokens than the format can say.
pub fn write_indexed<D: AsRef<[u16]>>(
    prefix: &Path,
    documents: impl IntoIterator<Item = D>,
) -> Result<(), Error> {
    if let Some(folder) = prefix.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let files = ["bin", "idx"].map(|suffix| {
        let path = with_suffix(prefix, suffix);
        (with_suffix(&path, "partial"), path)
    });
    let [(bin, _), (idx, _)] = &files;
    let written = write_bin(bin, documents)
        .and_then(|sizes| write_idx(idx, &sizes).map_err(Error::io(idx)))
        .and_then(|()| {
            files
                .iter()
                .try_for_each(|(from, to)| fs::rename(from, to).map_err(Error::io(to)))
        });
    if written.is_err() {
        for (partial, _) in &files {
            let _ = fs::remove_file(partial); // the error on its way says more
        }
    }
    written
}

fn write_bin<D: AsRef<[u16]>>(
    path: &Path,
    documents: impl IntoIterator<Item = D>,
) -> Result<Vec<i32>, Error> {
    let mut sizes = Vec::new();
    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    for document in documents {
        let document = document.as_ref();
        sizes.push(i32::try_from(document.len()).map_err(|_| Error::Indexed {
            path: path.into(),
            reason: format!(
                "document {} has {} tokens; the format counts to {}",
                sizes.len(),
                document.len(),
                i32::MAX
            ),
        })?);
        let mut values = document.iter();
        values
            .try_for_each(|v| file.write_all(&v.to_le_bytes()))
            .map_err(Error::io(path))?;
    }
    let file = file.into_inner().map_err(|e| e.into_error());
    file.and_then(|f| f.sync_all()).map_err(Error::io(path))?;
    Ok(sizes)
}

fn write_idx(path: &Path, sizes: &[i32]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let n = sizes.len() as u64;
    file.write_all(MAGIC)?;
    file.write_all(&VERSION.to_le_bytes())?;
    file.write_all(&[U16])?;
    file.write_all(&n.to_le_bytes())?;
    file.write_all(&(n + 1).to_le_bytes())?;
    for size in sizes {
        file.write_all(&size.to_le_bytes())?;
    }
    let mut offset = 0i64;
    for &size in sizes {
        file.write_all(&offset.to_le_bytes())?;
        offset += 2 * i64::from(size);
    }
    for mark in 0..=n {
        file.write_all(&mark.to_le_bytes())?;
    }
    file.into_inner()?.sync_all()
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Documents of a pair of files, read as they are asked for.
pub struct IndexedTokens {
    bytes: Mmap,
    /// Bytes of a token.
    width: usize,
    /// Where each document begins in the bytes, and where the last one ends.
    starts: Vec<usize>,
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
        let (width, starts) =
            parse_index(&index).map_err(|reason| Error::Indexed { path, reason })?;

        let path = with_suffix(prefix, "bin");
        let refuse = |reason: String| Error::Indexed {
            path: path.clone(),
            reason,
        };
        let file = File::open(&path).map_err(Error::io(&path))?;
        // SAFETY: the file is only read; a program that changes it meanwhile gets what it asks for.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        let end = starts[starts.len() - 1];
        if bytes.len() < end {
            return Err(refuse(format!("truncated: {} of {end} bytes", bytes.len())));
        }
        if bytes.len() > end {
            return Err(refuse(format!(
                "{} bytes, but the index counts {end}; do the two files belong together?",
                bytes.len()
            )));
        }
        let tokens = Self {
            bytes,
            width,
            starts,
        };
        // Only i32 can be negative; who asks for a document should not have to hear of it.
        if width == 4 {
            for i in 0..tokens.len() {
                if let Some(value) = tokens.document(i).iter().find(|&&v| (v as i32) < 0) {
                    return Err(refuse(format!("document {i} holds {}", *value as i32)));
                }
            }
        }
        Ok(tokens)
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values in all documents, separators included.
    pub fn values(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// Values of the longest document; 0 where there is none.
    pub fn longest(&self) -> usize {
        let lengths = self.starts.windows(2).map(|at| at[1] - at[0]);
        lengths.max().unwrap_or(0) / self.width
    }

    /// A document's values, its separator among them.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn document(&self, index: usize) -> Vec<u32> {
        let bytes = &self.bytes[self.starts[index]..self.starts[index + 1]];
        if self.width == 2 {
            let (chunks, _) = bytes.as_chunks();
            return chunks
                .iter()
                .map(|b| u16::from_le_bytes(*b).into())
                .collect();
        }
        let (chunks, _) = bytes.as_chunks();
        chunks
            .iter()
            .map(|b| match u32::from_le_bytes(*b) {
                u32::MAX => SEPARATOR.into(),
                value => value,
            })
            .collect()
    }

    /// A document's prompt and response; no response where there is no separator.
    fn halves(&self, index: usize) -> (Vec<u32>, Option<Vec<u32>>) {
        let mut values = self.document(index);
        let at = values.iter().position(|&v| v == u32::from(SEPARATOR));
        let response = at.map(|at| {
            let response = values.split_off(at + 1);
            values.pop();
            response
        });
        (values, response)
    }

    /// An instruction document as a training sequence, as
    /// [`encode_training`](crate::encode_training) makes it of the example; `None` when it has no separator,
    /// its response is but its end, or nothing is left of it after cutting.
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

    /// A document as text to be predicted from its second token on.
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

    /// A document as a line of JSONL, without its line break: `{"prompt", "output"}`, or `{"text"}` where there
    /// is no separator. The end of text that closes it is left out.
    ///
    /// # Errors
    ///
    /// When the tokenizer fails.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn line(&self, index: usize, tokenizer: &Tokenizer) -> Result<String, Error> {
        let text =
            |ids: &[u32]| tokenizer.decode(ids.strip_suffix(&[tokenizer.eos()]).unwrap_or(ids));
        let line = match self.halves(index) {
            (prompt, Some(response)) => serde_json::json!({
                "prompt": tokenizer.decode(&prompt)?, "output": text(&response)?,
            }),
            (values, None) => serde_json::json!({ "text": text(&values)? }),
        };
        Ok(line.to_string())
    }
}

/// Bytes of a token; where each document begins and the last one ends.
fn parse_index(index: &[u8]) -> Result<(usize, Vec<usize>), String> {
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
    let width = match index[17] {
        U16 => 2,
        I32 => 4,
        code => return Err(format!("dtype code {code}; 8 (u16) and 4 (i32) are read")),
    };
    let (n, marks) = (u64_at(index, 18), u64_at(index, 26));
    // 128 bits hold whatever a damaged header counts
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
            .and_then(|size| end.checked_add(width * size))
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
    Ok((width, starts))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Examples as documents: `tokens(prompt)`, the separator, the response, the end. Nothing is cut.
///
/// # Errors
///
/// A tokenizer that fails, or whose ids do not fit below the separator.
pub fn pack(examples: &[Example], tokenizer: &Tokenizer) -> Result<Vec<Vec<u16>>, Error> {
    let size = tokenizer.vocab_size();
    if size >= usize::from(SEPARATOR) {
        let reason = format!("{size} tokens; packed files hold ids of fewer than {SEPARATOR}");
        return Err(tokenizer.refuse(reason));
    }
    // A vocabulary may have gaps, so that its size does not bound its ids.
    let id = |token: u32| {
        u16::try_from(token)
            .ok()
            .filter(|&id| id < SEPARATOR)
            .ok_or_else(|| {
                tokenizer.refuse(format!(
                    "token {token}; packed files hold ids below {SEPARATOR}"
                ))
            })
    };
    examples
        .par_iter()
        .map(|e| {
            let text = prompt(e);
            let head = tokenizer.encode(&text)?;
            let full = tokenizer.encode(&(text + &e.outputs[0]))?;
            let response = full.get(head.len()..).unwrap_or_default();
            let end = [tokenizer.eos()];
            let head = head.iter().map(|&t| id(t));
            let response = response.iter().chain(&end).map(|&t| id(t));
            head.chain([Ok(SEPARATOR)]).chain(response).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests;
