//! Proof that the files of a folder are whole and unchanged, and belong to the task that reads them.
//!
//! `seal.json` names the task and gives, for each file, its length and SHA-256, and a SHA-256 of itself. It is written last:
//! a folder without a seal is not finished. A reader checks every file against the seal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::files;

/// Name of the seal in its folder.
pub const SEAL: &str = "seal.json";

/// Why the content of a folder is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no seal.
    #[error("{}: it is not there, so what is in the folder was never finished", path.display())]
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file differs from what was written, or belongs to another task.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Adds the path to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    fn broken(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Broken {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

/// Length and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Bytes.
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

impl Proof {
    /// Proof of a file's future content.
    pub fn of(content: &[u8]) -> Self {
        Self {
            bytes: content.len() as u64,
            sha256: files::sha256(content),
        }
    }
}

/// The seal of a folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seal {
    task: String,
    files: BTreeMap<String, Proof>,
    /// SHA-256 of the seal's other fields.
    sha256: String,
    #[serde(skip)]
    folder: PathBuf,
    /// Files that [`close`](Self::close) has to synchronise.
    #[serde(skip)]
    written: BTreeSet<PathBuf>,
}

impl Seal {
    /// A seal without files.
    pub fn new(folder: &Path, task: &str) -> Self {
        Self {
            task: task.into(),
            files: BTreeMap::new(),
            sha256: String::new(),
            folder: folder.into(),
            written: BTreeSet::new(),
        }
    }

    /// Writes a file of the folder; its checksum is that of `content`. The file survives a power cut once
    /// [`close`](Self::close) has returned.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.folder.join(name);
        files::replace(&path, content).map_err(Error::io(&path))?;
        self.written.insert(path);
        self.add(name, Proof::of(content));
        Ok(())
    }

    /// Adds a file that was written elsewhere.
    pub fn add(&mut self, name: &str, proof: Proof) {
        self.files.insert(name.into(), proof);
    }

    /// Adds the files of another sealed folder: the subfolder `folder` of this one, or this folder itself if `folder` is
    /// empty.
    pub fn enclose(&mut self, folder: &str, inner: &Self) {
        for (name, proof) in &inner.files {
            let name = match folder {
                "" => name.clone(),
                _ => format!("{folder}/{name}"),
            };
            self.add(&name, proof.clone());
        }
    }

    /// Writes the seal: from now on the folder is finished.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn close(mut self) -> Result<Self, Error> {
        let written = std::mem::take(&mut self.written);
        for path in &written {
            files::sync(path).map_err(Error::io(path))?;
        }
        let folders: BTreeSet<_> = written.iter().map(|path| files::folder_of(path)).collect();
        for folder in folders {
            files::sync_folder(&folder).map_err(Error::io(&folder))?;
        }
        self.sha256 = self.digest();
        let path = self.folder.join(SEAL);
        files::write(&path, self.text().as_bytes()).map_err(Error::io(path))?;
        Ok(self)
    }

    /// Seals a folder that was filled under a temporary name, and renames it to `target`.
    ///
    /// # Errors
    ///
    /// When something cannot be read, written, renamed or removed.
    pub fn publish(
        temporary: &Path,
        target: &Path,
        task: &str,
        replaces: &[PathBuf],
    ) -> Result<(), Error> {
        let mut seal = Self::new(temporary, task);
        for entry in fs::read_dir(temporary).map_err(Error::io(temporary))? {
            let path = entry.map_err(Error::io(temporary))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
            let sha256 = files::sha256_of_file(&path).map_err(Error::io(&path))?;
            seal.add(&name, Proof { bytes, sha256 });
        }
        seal.close()?;
        files::publish(temporary, target, replaces).map_err(Error::io(target))
    }

    /// The seal in `folder`.
    ///
    /// # Errors
    ///
    /// When it is missing, damaged, or of another task.
    pub fn open(folder: &Path, task: &str) -> Result<Self, Error> {
        let path = folder.join(SEAL);
        let text = match files::read(&path, files::TEXT_LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Absent { path });
            }
            text => text.map_err(Error::io(&path))?,
        };
        let mut seal: Self = serde_json::from_slice(&text)
            .map_err(|e| Error::broken(&path, format!("damaged ({e})")))?;
        if seal.digest() != seal.sha256 || seal.text().as_bytes() != text {
            return Err(Error::broken(path, "damaged: it does not fit its checksum"));
        }
        if seal.task != task {
            let of = &seal.task;
            let reason = format!("what is in the folder belongs to {of}, and {task} is wanted");
            return Err(Error::broken(path, reason));
        }
        seal.folder = folder.into();
        Ok(seal)
    }

    /// The sealed folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of the sealed files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether a file is sealed.
    pub fn holds(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Length and checksum of a file, if it is sealed.
    pub fn proof_of(&self, name: &str) -> Option<&Proof> {
        self.files.get(name)
    }

    /// Checks that a file exists with its recorded length, without reading it.
    ///
    /// # Errors
    ///
    /// When the file is missing or has another length.
    pub fn check_length(&self, name: &str) -> Result<PathBuf, Error> {
        let (path, proof) = self.proof(name)?;
        let found = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::broken(path, "it is missing"));
            }
            found => found.map_err(Error::io(&path))?,
        };
        if !found.is_file() || found.len() != proof.bytes {
            let (is, was) = (found.len(), proof.bytes);
            let reason = format!("damaged: {is} bytes, and {was} were written");
            return Err(Error::broken(path, reason));
        }
        Ok(path)
    }

    /// Checks a file by its checksum and returns its path. A process checks an unchanged file only once.
    ///
    /// # Errors
    ///
    /// When it is missing or not what was written.
    pub fn check(&self, name: &str) -> Result<PathBuf, Error> {
        /// Files that passed the check, with the time of their last change.
        static RIGHT: Mutex<BTreeMap<PathBuf, (SystemTime, Proof)>> = Mutex::new(BTreeMap::new());
        let right = || RIGHT.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.check_length(name)?;
        let (_, proof) = self.proof(name)?;
        let changed = fs::metadata(&path)
            .and_then(|found| found.modified())
            .map_err(Error::io(&path))?;
        if right().get(&path) == Some(&(changed, proof.clone())) {
            return Ok(path);
        }
        // File times are coarse: a file that has just changed may change again and keep the same time.
        let settled = changed.elapsed().is_ok_and(|since| since > SETTLED);
        let sha256 = files::sha256_of_file(&path).map_err(Error::io(&path))?;
        if sha256 != proof.sha256 {
            return Err(Error::broken(path, MISMATCH));
        }
        if settled {
            right().insert(path.clone(), (changed, proof.clone()));
        }
        Ok(path)
    }

    /// Checks all files.
    ///
    /// # Errors
    ///
    /// The first that is missing or not what was written.
    pub fn check_all(&self) -> Result<(), Error> {
        self.names().try_for_each(|name| self.check(name).map(drop))
    }

    /// Reads a file and checks what was read.
    ///
    /// # Errors
    ///
    /// When it is missing or not what was written.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.check_length(name)?;
        let (_, proof) = self.proof(name)?;
        let mut content = Vec::new();
        files::open(&path)
            .and_then(|file| file.take(proof.bytes + 1).read_to_end(&mut content))
            .map_err(Error::io(&path))?;
        if Proof::of(&content) != *proof {
            return Err(Error::broken(path, MISMATCH));
        }
        Ok(content)
    }

    fn proof(&self, name: &str) -> Result<(PathBuf, &Proof), Error> {
        match self.files.get(name) {
            Some(proof) => Ok((self.folder.join(name), proof)),
            None => {
                let reason = format!("it does not say what {name} holds");
                Err(Error::broken(self.folder.join(SEAL), reason))
            }
        }
    }

    /// The text of the seal's file. [`open`](Self::open) compares texts, so it also finds a change that keeps all values.
    fn text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers") + "\n"
    }

    /// SHA-256 of the text with an empty checksum.
    fn digest(&self) -> String {
        let open = Self {
            sha256: String::new(),
            ..self.clone()
        };
        files::sha256(open.text().as_bytes())
    }
}

/// Longer than the resolution of a file's times.
const SETTLED: Duration = Duration::from_millis(100);

const MISMATCH: &str = "damaged: it does not fit its checksum";

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("abkd-seal-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn sealed(folder: &Path) {
        let mut seal = Seal::new(folder, "task");
        seal.write("a", b"one").unwrap();
        seal.write("b", b"two").unwrap();
        seal.close().unwrap();
    }

    #[test]
    fn every_change_of_a_file_or_of_the_seal_is_found() {
        let folder = folder("changes");
        sealed(&folder);
        let whole = || {
            let seal = Seal::open(&folder, "task")?;
            seal.check_all()?;
            seal.read("a").map(drop)
        };
        whole().unwrap();
        for name in ["a", SEAL] {
            let path = folder.join(name);
            let content = fs::read(&path).unwrap();
            for at in 0..content.len() {
                for bit in 0..8 {
                    let mut changed = content.clone();
                    changed[at] ^= 1 << bit;
                    fs::write(&path, changed).unwrap();
                    let error = whole().unwrap_err();
                    assert!(
                        matches!(error, Error::Broken { .. }),
                        "{name}, byte {at}: {error}"
                    );
                }
            }
            for cut in [0, content.len() - 1] {
                fs::write(&path, &content[..cut]).unwrap();
                assert!(
                    matches!(whole().unwrap_err(), Error::Broken { .. }),
                    "{name}"
                );
            }
            fs::remove_file(&path).unwrap();
            assert!(whole().is_err());
            fs::write(&path, content).unwrap();
            whole().unwrap();
        }
    }

    #[test]
    fn another_tasks_folder_is_told_from_one_that_was_never_finished() {
        let folder = folder("tasks");
        let error = Seal::open(&folder, "task").unwrap_err();
        assert!(matches!(error, Error::Absent { .. }));
        sealed(&folder);
        let error = Seal::open(&folder, "other").unwrap_err().to_string();
        assert!(error.contains("belongs to task"), "{error}");
        let seal = Seal::open(&folder, "task").unwrap();
        assert!(seal.check("c").unwrap_err().to_string().contains("c holds"));
    }

    #[test]
    fn a_published_folder_is_sealed_and_enclosed_in_the_one_above() {
        let above = folder("above");
        let temporary = files::temporary(&above.join("inner")).unwrap();
        files::create_folder(&temporary).unwrap();
        fs::write(temporary.join("x"), "three").unwrap();
        Seal::publish(&temporary, &above.join("inner"), "inner", &[]).unwrap();
        let inner = Seal::open(&above.join("inner"), "inner").unwrap();
        inner.check_all().unwrap();
        let mut seal = Seal::new(&above, "above");
        seal.enclose("inner", &inner);
        seal.close().unwrap();
        let seal = Seal::open(&above, "above").unwrap();
        assert_eq!(seal.names().collect::<Vec<_>>(), ["inner/x"]);
        assert_eq!(seal.read("inner/x").unwrap(), b"three");
        fs::write(above.join("inner/x"), "four!").unwrap();
        assert!(seal.check_all().is_err() && seal.check_length("inner/x").is_ok());
    }
}
