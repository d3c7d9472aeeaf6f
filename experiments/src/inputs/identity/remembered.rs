//! Cache of large files' hashes across commands: a checkpoint of gigabytes is read once, not for every plan. A cached hash
//! is valid while size, inode, mtime and ctime are unchanged; copying cannot set back the ctime.
//!
//! The cache is `abkd/hashes.json` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`). A cache that cannot be
//! read or written counts as empty.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use abkd_host::files;
use serde::{Deserialize, Serialize};

/// Minimum size of a cached file; reading a smaller one is cheap.
const WORTH: u64 = 1 << 20;
/// Minimum age of a cached file, in nanoseconds: a newer one may change again within the same clock tick.
const SETTLED: i128 = 2_000_000_000;

/// Metadata of a file when it was hashed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    changed: i128,
    sha256: String,
}

/// SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    in_cache(cache().as_deref(), path)
}

fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = set("XDG_CACHE_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?;
    Some(folder.join("abkd/hashes.json"))
}

fn in_cache(cache: Option<&Path>, path: &Path) -> io::Result<String> {
    let (Some(cache), Some(now), Ok(path)) = (cache, known(path), std::fs::canonicalize(path))
    else {
        return files::sha256_of_file(path);
    };
    let key = path.display().to_string();
    let read = || files::read(cache, files::TEXT_LIMIT).ok();
    let parse = |bytes: Vec<u8>| serde_json::from_slice::<BTreeMap<String, Known>>(&bytes).ok();
    let mut all = read().and_then(parse).unwrap_or_default();
    if let Some(mut found) = all.get(&key).cloned() {
        let sha256 = std::mem::take(&mut found.sha256);
        if found == now && sha256.len() == 64 {
            return Ok(sha256);
        }
    }
    let sha256 = files::sha256_of_file(&path)?;
    let age = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i128 - now.changed);
    // Cache only if the file did not change while it was hashed.
    if age > SETTLED && known(&path).as_ref() == Some(&now) {
        let sha256 = sha256.clone();
        all.insert(key, Known { sha256, ..now });
        if let Ok(text) = serde_json::to_vec_pretty(&all) {
            let _ = files::create_folder(&files::folder_of(cache))
                .and_then(|()| files::write(cache, &text));
        }
    }
    Ok(sha256)
}

/// Metadata of a large file, on systems with inodes; without its hash.
#[cfg(unix)]
fn known(path: &Path) -> Option<Known> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).ok()?;
    let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    (found.is_file() && found.len() >= WORTH).then(|| Known {
        bytes: found.len(),
        inode: found.ino(),
        modified: nanoseconds(found.mtime(), found.mtime_nsec()),
        changed: nanoseconds(found.ctime(), found.ctime_nsec()),
        sha256: String::new(),
    })
}

#[cfg(not(unix))]
fn known(_: &Path) -> Option<Known> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_is_read_once_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = (dir.path().join("c/hashes.json"), dir.path().join("weights"));
        let hash = || in_cache(Some(&cache), &path).unwrap();
        let content = vec![7u8; WORTH as usize];
        fs::write(&path, &content).unwrap();
        // The file has just been written, and may change again.
        assert_eq!(hash(), files::sha256(&content));
        assert!(!cache.exists());
        std::thread::sleep(Duration::from_millis(2100));
        assert_eq!(hash(), files::sha256(&content));
        // From now on the hash comes from the cache.
        let lie = "0".repeat(64);
        let text = fs::read_to_string(&cache).unwrap();
        fs::write(&cache, text.replace(&files::sha256(&content), &lie)).unwrap();
        assert_eq!(hash(), lie);
        // Other content of the same size with the old mtime.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let mut other = content.clone();
        other[5] = 8;
        fs::write(&path, &other).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
        assert_eq!(hash(), files::sha256(&other));
        // A damaged cache.
        fs::write(&cache, "{").unwrap();
        assert_eq!(hash(), files::sha256(&other));
        // Small files are not looked up.
        fs::write(&path, "small").unwrap();
        assert_eq!(hash(), files::sha256(b"small"));
    }
}
