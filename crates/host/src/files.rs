//! Files. Only plain files of a sane size are read. Writes are atomic: a power cut leaves the old or the new content, never a
//! part.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

/// Largest file that is read into memory whole: text, tables, settings.
pub const TEXT_LIMIT: u64 = 1 << 30;

/// Whether `name` is the plain name of a file: no folder, no `..`, no root, on any system.
pub fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    plain && parts.next().is_none() && !name.contains(['/', '\\', ':', '\0'])
}

/// Opens a plain file. A folder, a pipe or a device is refused first, because opening it could block.
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

/// Opens a plain file for reading and appending; created if absent.
///
/// # Errors
///
/// As [`open`], and where it cannot be written.
pub fn open_to_extend(path: &Path) -> io::Result<File> {
    if path.exists() {
        open(path)?;
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path)
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

/// First bytes of a git-lfs pointer.
const POINTER: &[u8] = b"version https://git-lfs";

/// Whether bytes begin like a git-lfs pointer.
pub fn is_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(POINTER)
}

/// Refuses a git-lfs pointer by its first bytes. A clone without git-lfs has such pointers in place of large files.
///
/// # Errors
///
/// Where `bytes` begin like such a pointer.
pub fn refuse_pointer(bytes: &[u8]) -> io::Result<()> {
    if is_pointer(bytes) {
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
/// As [`open`], and where reading fails.
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

/// Atomic write of a file: a temporary file beside it, then [`publish`].
///
/// # Errors
///
/// When the folder cannot be written; the file is then unchanged.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    by_temporary(path, bytes, |temporary| publish(temporary, path, &[]))
}

/// As [`write`](fn@write), but a power cut may lose the file until it is [synchronised](sync): for many files that are valid
/// only together, or that can be recomputed from others.
///
/// # Errors
///
/// When the folder cannot be written; the file is then unchanged.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    by_temporary(path, bytes, |temporary| fs::rename(temporary, path))
}

fn by_temporary(
    path: &Path,
    bytes: &[u8],
    name: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary(path)?;
    let written = fs::write(&temporary, bytes).and_then(|()| name(&temporary));
    if written.is_err() {
        // A temporary file that stays is swept later; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Renames a file or a folder from its [`temporary`] name to its own, and removes the folders that it replaces. Only this
/// order is safe against a power cut: synchronise the content, rename, remove the old folders.
///
/// A file replaces another one; a folder needs a free name.
///
/// # Errors
///
/// When something cannot be written, renamed or removed.
pub fn publish(temporary: &Path, target: &Path, replaces: &[PathBuf]) -> io::Result<()> {
    sync_below(temporary)?;
    fs::rename(temporary, target)?;
    sync_folder(&folder_of(target))?;
    replaces.iter().try_for_each(|old| remove_folder(old))
}

/// Removes a folder, if it exists, as one atomic step: after a kill the rest has a temporary name.
///
/// # Errors
///
/// When it cannot be removed.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let doomed = temporary(path)?;
    remove(&doomed)?;
    match fs::rename(path, &doomed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => remove(&doomed),
    }
}

/// Removes a file or a folder, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Creates a folder and its parents, and synchronises them, so that a power cut does not lose files kept in it.
///
/// # Errors
///
/// When it cannot be created.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = folder_of(path);
    if above != path {
        create_folder(&above)?;
    }
    match fs::create_dir(path) {
        // Created by another thread. Anything else of this name is an error.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(&above),
    }
}

/// Prefix of the names of files and folders that are not whole yet.
pub const TEMPORARY: &str = ".tmp-";

/// The name, beside `path`, under which a file is written before it is [published](publish). It keeps the extension,
/// by which some writers choose the format.
///
/// # Errors
///
/// Where `path` has no name.
pub fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("not a file's name"))?;
    let mut temporary = std::ffi::OsString::from(format!("{TEMPORARY}{}-", std::process::id()));
    temporary.push(name);
    Ok(folder_of(path).join(temporary))
}

/// Removes the temporary files and folders that killed processes left in a folder. Those of another running process stay.
/// Those with this process's own number are removed, too: it has written nothing yet, so they are from an earlier one.
///
/// # Errors
///
/// When the folder cannot be read or something cannot be removed. An absent folder is no error.
pub fn sweep(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let writer = name
            .to_string_lossy()
            .strip_prefix(TEMPORARY)
            .and_then(|rest| rest.split_once('-')?.0.parse().ok());
        if let Some(writer) = writer
            && (writer == std::process::id() || !runs(writer))
        {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a process of this number runs.
fn runs(process: u32) -> bool {
    #[cfg(unix)]
    {
        let Ok(process) = libc::pid_t::try_from(process) else {
            return false;
        };
        // SAFETY: signal 0 sends nothing; it only checks that the process exists.
        let asked = unsafe { libc::kill(process, 0) };
        asked == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    }
    #[cfg(not(unix))]
    {
        let _ = process;
        false
    }
}

/// Synchronises the content of a file, so that it survives a power cut.
///
/// # Errors
///
/// When it cannot be opened or synchronised.
pub fn sync(path: &Path) -> io::Result<()> {
    // Opened for writing, because Windows synchronises no other file.
    fs::OpenOptions::new().write(true).open(path)?.sync_all()
}

/// Synchronises a file, or a folder with everything in it.
fn sync_below(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return sync(path);
    }
    for entry in fs::read_dir(path)? {
        sync_below(&entry?.path())?;
    }
    sync_folder(path)
}

/// Synchronises a folder's entries, so that they survive a power cut.
///
/// # Errors
///
/// When it cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Only Unix can open a folder as a file.
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
    fn a_name_of_a_file_leads_to_no_other_folder() {
        for good in ["model-00001-of-00002.safetensors", "a", "..a", ".a"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in [
            "", ".", "..", "../a", "/a", "a/b", "./a", "a/", "a/..", "..\\a", "c:a", "a\0",
        ] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_no_plain_file_is_refused() {
        let folder = folder();
        let told = |path: &Path| read(path, 10).unwrap_err().to_string();
        assert!(told(&folder).contains("folder"));
        #[cfg(unix)]
        {
            assert!(told(Path::new("/dev/null")).contains("device"));
            let error = open_to_extend(Path::new("/dev/null")).unwrap_err();
            assert!(error.to_string().contains("device"));
        }
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

    #[test]
    fn a_folder_is_published_and_what_it_replaces_goes() {
        let folder = folder().join("published");
        for n in [1, 2] {
            let target = folder.join(format!("state-{n}"));
            let partial = temporary(&target).unwrap();
            create_folder(&partial.join("inner")).unwrap();
            fs::write(partial.join("inner/x"), [n]).unwrap();
            publish(
                &partial,
                &target,
                &[folder.join("state-1")][..n as usize - 1],
            )
            .unwrap();
        }
        let names: Vec<_> = fs::read_dir(&folder).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(fs::read(folder.join("state-2/inner/x")).unwrap(), [2]);
        remove_folder(&folder.join("state-2")).unwrap();
        remove_folder(&folder.join("state-2")).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn what_killed_processes_left_is_swept() {
        let folder = folder().join("swept");
        sweep(&folder).unwrap();
        create_folder(&folder).unwrap();
        // A process of this number is not possible on Linux.
        for name in [".tmp-99999999-x", "kept", ".tmp-x-y"] {
            fs::write(folder.join(name), "").unwrap();
        }
        create_folder(&folder.join(".tmp-99999998-state")).unwrap();
        fs::write(folder.join(".tmp-99999998-state/x"), "").unwrap();
        create_folder(&temporary(&folder.join("mine")).unwrap()).unwrap();
        // Process 1 always runs.
        fs::write(folder.join(".tmp-1-x"), "").unwrap();
        sweep(&folder).unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        #[cfg(unix)]
        assert_eq!(names, [".tmp-1-x", ".tmp-x-y", "kept"]);
    }
}
