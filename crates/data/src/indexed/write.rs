//! Writes documents to pairs of files.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use abkd_host::files;
use rayon::prelude::*;

use super::{MAGIC, SEPARATOR, U16, VERSION};
use crate::{Error, Example, Tokenizer, prompt};

/// Writes documents; both files are renamed into place once both are complete.
///
/// # Errors
///
/// When a file cannot be written, or a document has more tokens than the format allows.
pub fn write_indexed<D: AsRef<[u16]>>(
    prefix: &Path,
    documents: impl IntoIterator<Item = D>,
) -> Result<(), Error> {
    if let Some(folder) = prefix.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let files = ["bin", "idx"].map(|suffix| {
        let path = prefix.with_added_extension(suffix);
        (path.with_added_extension("partial"), path)
    });
    let [(bin, _), (idx, _)] = &files;
    let written = write_bin(bin, documents)
        .and_then(|sizes| write_idx(idx, &sizes).map_err(Error::io(idx)))
        .and_then(|()| {
            files
                .iter()
                .try_for_each(|(from, to)| fs::rename(from, to).map_err(Error::io(to)))
        })
        .and_then(|()| {
            let folder = files::folder_of(prefix);
            files::sync_folder(&folder).map_err(Error::io(&folder))
        });
    if written.is_err() {
        for (partial, _) in &files {
            let _ = fs::remove_file(partial); // `written` holds the first error
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
        let (number, length) = (sizes.len(), document.len());
        sizes.push(i32::try_from(length).map_err(|_| {
            let most = i32::MAX;
            let reason =
                format!("document {number} has {length} tokens; the format allows at most {most}");
            Error::file(path, reason)
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

/// Examples as documents: `tokens(prompt)`, separator, response, end of text. Nothing is cut.
///
/// # Errors
///
/// A tokenizer that fails, or whose ids are not all below the separator.
pub fn pack(examples: &[Example], tokenizer: &Tokenizer) -> Result<Vec<Vec<u16>>, Error> {
    let too_large = |id: usize| {
        tokenizer.refuse(format!(
            "its ids go up to {id}; packed files hold ids below {SEPARATOR}"
        ))
    };
    let size = tokenizer.vocab_size();
    if size > usize::from(SEPARATOR) {
        return Err(too_large(size - 1));
    }
    let id = |token: u32| u16::try_from(token).map_err(|_| too_large(token as usize));
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
