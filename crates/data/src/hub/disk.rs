//! Files of the cache: checks of their content, and moving them into place.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use abkd_host::files;

use crate::Error;

#[cfg(unix)]
pub(super) fn symlink(_: &Path, to: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(not(unix))]
pub(super) fn symlink(blob: &Path, _: &str, link: &Path) -> std::io::Result<()> {
    fs::copy(blob, link).map(|_| ())
}

/// Free bytes on the disk of a file, if the system reports them.
pub(super) fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let told = rustix::fs::statvfs(path).ok()?;
        Some(told.f_bavail.saturating_mul(told.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// SHA-256 of a blob if its name in the cache is one; small files are named by other hashes.
pub(super) fn stated(blob: &Path) -> Option<&str> {
    let name = blob.file_name()?.to_str()?;
    (name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())).then_some(name)
}

/// Compares a file with the expected size and hash; a message if one differs.
pub(super) fn fault(
    path: &Path,
    size: Option<u64>,
    hash: Option<&str>,
) -> Result<Option<String>, Error> {
    let file = files::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    if let Some(size) = size.filter(|&s| s != len) {
        return Ok(Some(format!(
            "the file has {len} bytes, it should have {size}"
        )));
    }
    let Some(hash) = hash else {
        return Ok(None);
    };
    let found = files::sha256_of_file(path).map_err(Error::io(path))?;
    Ok((!found.eq_ignore_ascii_case(hash))
        .then(|| format!("the file has hash {found}, it should have {hash}")))
}

pub(super) fn is_page(path: &Path) -> Result<bool, Error> {
    let mut begins = Vec::new();
    let file = files::open(path).map_err(Error::io(path))?;
    file.take(64)
        .read_to_end(&mut begins)
        .map_err(Error::io(path))?;
    let text = begins.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&begins);
    let text = text.trim_ascii_start().to_ascii_lowercase();
    Ok(text.starts_with(b"<!doctype html") || text.starts_with(b"<html"))
}

/// Puts a checked blob into place atomically: a hard link if possible, else a copy.
pub(super) fn place(blob: &Path, target: &Path) -> Result<(), Error> {
    let folder = files::folder_of(target);
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let partial = target.with_added_extension("partial");
    let _ = fs::remove_file(&partial); // left by an attempt that was killed
    fs::hard_link(blob, &partial)
        .or_else(|_| {
            fs::copy(blob, &partial)?;
            File::open(&partial)?.sync_all()
        })
        .and_then(|()| fs::rename(&partial, target))
        .and_then(|()| files::sync_folder(&folder))
        .map_err(Error::io(target))
}
