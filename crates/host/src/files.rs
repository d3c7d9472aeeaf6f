//! Files: read only where they are plain files of a sane size, and written so that a power cut leaves the old or the
//! new content, never a part.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Largest file that is read into memory whole: text, tables, settings.
pub const TEXT_LIMIT: u64 = 1 << 30;

/// Opens a plain file. A folder, a pipe or a device is refused before anything waits on it.
///
/// # Errors
///
/// As [`File::open`], and where `path` is no plain file.
pub fn open(path: &Path) -> io::Result<File> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other(
            "this is a folder, and a file belongs here",
        ));
    }
    if !kind.is_file() {
        return Err(io::Error::other(
            "this is a pipe or a device, and a plain file belongs here",
        ));
    }
    File::open(path)
}

/// Content of a plain file of at most `limit` bytes.
///
/// # Errors
///
/// As [`open`], where the file is larger, and where it is a git-lfs pointer.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!(
            "more than {limit} bytes, which is more than any such file has"
        )));
    }
    refuse_pointer(&bytes)?;
    Ok(bytes)
}

/// What a git-lfs pointer begins with.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a git-lfs pointer by its first bytes: it stands for a large file in a clone that was made without git-lfs.
///
/// # Errors
///
/// Where `bytes` begin as such a pointer does.
pub fn refuse_pointer(bytes: &[u8]) -> io::Result<()> {
    if bytes.starts_with(POINTER) {
        return Err(io::Error::other(
            "this is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder, or fetch the file again",
        ));
    }
    Ok(())
}

/// Text of a plain file, see [`read`].
///
/// # Errors
///
/// As [`read`], and where it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path, TEXT_LIMIT)?)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8: {e}")))
}

/// SHA-256 of bytes, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a plain file, in hexadecimal digits.
///
/// # Errors
///
/// As [`open`], and what reading meets.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut file = open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a file whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.
///
/// # Errors
///
/// When the folder cannot be written; the file is then as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("not a file's name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}{TEMPORARY}", std::process::id()));
    let temporary = folder.join(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // What is left is swept later; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_folder(&folder)
}

/// End of the names of files that are not whole yet.
pub const TEMPORARY: &str = ".tmp";

/// Has a folder's entries survive a power cut.
///
/// # Errors
///
/// When it cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened as a file.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("abkd-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_no_plain_file_is_refused() {
        let folder = folder();
        let told = |path: &Path| read(path, 10).unwrap_err().to_string();
        assert!(told(&folder).contains("folder"));
        #[cfg(unix)]
        assert!(told(Path::new("/dev/null")).contains("device"));
        let path = folder.join("large");
        write(&path, &[0; 11]).unwrap();
        assert!(told(&path).contains("more than 10 bytes"));
        assert_eq!(read(&path, 11).unwrap().len(), 11);
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n";
        write(&path, pointer.as_bytes()).unwrap();
        assert!(
            read_text(&path)
                .unwrap_err()
                .to_string()
                .contains("git lfs pull")
        );
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = folder().join("replaced");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("x.json");
        for text in ["one", "two"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(read_text(&path).unwrap(), text);
            assert_eq!(sha256_of_file(&path).unwrap(), sha256(text.as_bytes()));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(write(&folder.join("absent/x"), b"").is_err());
    }
}
