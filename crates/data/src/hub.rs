//! Files from the Hugging Face Hub: data sets and checkpoints.
//!
//! Downloads go into the cache that Python's `huggingface_hub` uses, in its layout: `blobs/HASH` holds a file,
//! `snapshots/COMMIT/NAME` points to it, `refs/REVISION` tells the commit. A file that is in there for the wanted revision
//! is taken as it is, without asking whether a branch has moved on; who has to know gives a commit or a hash. A file
//! reaches the cache's blobs and the target folder only after its size and hash have been checked: those that the caller
//! wants, else the size that the Hub announces and, for large files, the SHA-256 by which it names them
//! (`x-linked-etag`).
//!
//! A transfer that breaks off goes on from `blobs/HASH.part`. What a server answers is not trusted: the hash and the commit
//! that it gives become names of files here and must be letters and digits, a file may have the announced size and no
//! more, redirects are counted, and a server that is silent is given up.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use abkd_host::files;

use self::disk::{fault, free_space, is_page, open, place, stated, symlink};
use self::transfer::{Announced, Failure, Remote};
use crate::Error;

mod disk;
mod explain;
mod names;
mod transfer;

const ENDPOINT: &str = "https://huggingface.co";
const BRANCH: &str = "main";
/// How long a server may be silent unless the caller says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A token has less than a hundred bytes, a commit 40.
const SMALL: u64 = 4096;

/// What kind of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// Files of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `owner/name`
    pub repo: String,
    /// Its kind.
    pub kind: RepoKind,
    /// Branch, tag or commit; `main` without it.
    pub revision: Option<String>,
    /// What to fetch.
    pub files: Vec<WantedFile>,
}

/// A file to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedFile {
    /// Path in the repository, and below the target folder.
    pub name: String,
    /// Bytes that it must have.
    pub size: Option<u64>,
    /// SHA-256 that it must have, 64 hex digits.
    pub sha256: Option<String>,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's path in the repository.
    pub file: &'a str,
    /// Bytes so far, those of earlier attempts included.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Address, `https://huggingface.co` or a mirror's.
    pub endpoint: String,
    /// Token for what is not open to all.
    pub token: Option<String>,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// How long a server may be silent at each step.
    pub timeout: Duration,
}

/// Fetches files from the Hub that the environment names; see [`Hub::from_env`] and [`Hub::fetch`].
///
/// # Errors
///
/// As both.
pub fn fetch(
    request: &Request,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<PathBuf>, Error> {
    Hub::from_env()?.fetch(request, target, progress)
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the token that `huggingface-cli login` has
    /// left), `HF_HOME`.
    ///
    /// # Errors
    ///
    /// When neither `HF_HOME` nor the home folder is known.
    pub fn from_env() -> Result<Self, Error> {
        let set = |key: &str| std::env::var(key).ok().filter(|v| !v.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or(ENDPOINT.into());
        let home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let Some(home) = home else {
            return Err(Error::Hub {
                url: endpoint,
                reason: "no folder to keep files in; set HF_HOME to one".into(),
            });
        };
        let left = || {
            let bytes = files::read(&home.join("token"), SMALL).ok()?;
            let token = String::from_utf8(bytes).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        Ok(Self {
            endpoint,
            token: set("HF_TOKEN").or_else(left),
            cache: home.join("hub"),
            timeout: TIMEOUT,
        })
    }

    /// Fetches the files that are not below `target` yet, and gives the paths of all, in the order of the
    /// request. What is there is left as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`] names the address, what is wrong and what to do.
    pub fn fetch(
        &self,
        request: &Request,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<PathBuf>, Error> {
        let revision = request.revision.as_deref().unwrap_or(BRANCH);
        names::check_repo(&request.repo)
            .and_then(|()| names::check_revision(revision))
            .map_err(|reason| Error::Hub {
                url: request.repo.clone(),
                reason,
            })?;
        let files = request.files.iter();
        files
            .map(|file| {
                // A name may come out of a file that was fetched before.
                names::check_file(&file.name).map_err(|reason| Error::Hub {
                    url: request.repo.clone(),
                    reason,
                })?;
                let path = target.join(&file.name);
                let one = One {
                    hub: self,
                    request,
                    revision,
                    file,
                    folder: self.cache.join(names::folder(request.kind, &request.repo)),
                };
                one.fetch(&path, progress).map(|()| path)
            })
            .collect()
    }
}

/// A file to fetch, and where it lies in the cache.
struct One<'a> {
    hub: &'a Hub,
    request: &'a Request,
    revision: &'a str,
    file: &'a WantedFile,
    /// Of the repository.
    folder: PathBuf,
}

impl One<'_> {
    fn fetch(&self, target: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        let file = self.file;
        if target.exists() {
            return match fault(target, file.size, file.sha256.as_deref())? {
                Some(fault) => Err(Error::Hub {
                    url: target.display().to_string(),
                    reason: format!("{fault}; remove it and run the command again"),
                }),
                None => Ok(()),
            };
        }
        if let Some(blob) = self.cached() {
            let wanted = file.sha256.as_deref().or(stated(&blob));
            if fault(&blob, file.size, wanted)?.is_none() && !is_page(&blob)? {
                return place(&blob, target);
            }
        }
        let url = names::url(
            &self.hub.endpoint,
            self.request.kind,
            &self.request.repo,
            self.revision,
            &file.name,
        );
        let blob = self.download(&url, progress).map_err(|error| match error {
            Trouble::Server(failure) => self.refuse(&url, &failure),
            Trouble::File(error) => error,
        })?;
        place(&blob, target)
    }

    fn refuse(&self, url: &str, failure: &Failure) -> Error {
        Error::Hub {
            url: url.into(),
            reason: explain::explain(failure, &self.hub.endpoint, self.request, self.file),
        }
    }

    /// The file in the cache, for the commit that the revision had when it was last asked for.
    fn cached(&self) -> Option<PathBuf> {
        let noted = files::read(&self.folder.join("refs").join(self.revision), SMALL).ok();
        let noted = noted.and_then(|bytes| String::from_utf8(bytes).ok());
        // A revision may be a commit itself.
        let commit = noted.as_deref().unwrap_or(self.revision).trim();
        let link = self.link(names::is_commit(commit).then_some(commit)?);
        fs::canonicalize(link).ok().filter(|blob| blob.is_file())
    }

    fn link(&self, commit: &str) -> PathBuf {
        self.folder
            .join("snapshots")
            .join(commit)
            .join(&self.file.name)
    }

    /// Brings the file into the cache, checked.
    fn download(&self, url: &str, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, Trouble> {
        let hub = self.hub;
        let remote = Remote::new(&hub.endpoint, hub.token.as_deref(), hub.timeout)?;
        let announced = remote.announced(url)?;
        if let Some(size) = self.file.size.filter(|&s| s != announced.size) {
            return Err(self.wrong(
                url,
                &format!("it has {} bytes, it should have {size}", announced.size),
            ));
        }
        let is_commit =
            self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit());
        if is_commit && !self.revision.eq_ignore_ascii_case(&announced.commit) {
            let why = format!("it answers with commit {} for another", announced.commit);
            return Err(Failure::NotTheHub(why).into());
        }
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs))?;
        let blob = blobs.join(&announced.hash);
        let _lock = self.lock(url, &blob.with_extension("lock"))?;
        // Another revision may have brought it.
        let known = stated(&blob).is_some()
            && blob.is_file()
            && fault(&blob, Some(announced.size), stated(&blob))?.is_none();
        if !known {
            let part = blob.with_extension("part");
            self.transfer(&remote, url, &announced, &part, progress)?;
            if let Err(error) = self.check(url, &announced, &blob, &part) {
                fs::remove_file(&part).map_err(Error::io(&part))?;
                return Err(error);
            }
            fs::rename(&part, &blob)
                .and_then(|()| files::sync_folder(&blobs))
                .map_err(Error::io(&blob))?;
        }
        self.note(&announced, &blob)?;
        Ok(blob)
    }

    /// One program at a time fetches a file.
    fn lock(&self, url: &str, path: &Path) -> Result<File, Trouble> {
        let lock = open(path)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => {
                Err(self.wrong(url, "another program is fetching this file; wait for it"))
            }
            Err(fs::TryLockError::Error(e)) => Err(Error::io(path)(e).into()),
        }
    }

    /// Completes the part of a file.
    fn transfer(
        &self,
        remote: &Remote,
        url: &str,
        announced: &Announced,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Trouble> {
        let size = announced.size;
        let mut part = open(path)?;
        let mut done = part.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        if done > size {
            // Left by a program that took something else for the file.
            part.set_len(0).map_err(Error::io(path))?;
            done = part.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
        }
        if let Some(free) = free_space(path).filter(|&free| free < size - done) {
            return Err(self.wrong(
                url,
                &format!(
                    "{} bytes are to come, and the disk of the cache has {free} left; make room or set HF_HOME to another",
                    size - done
                ),
            ));
        }
        let mut report = |done: u64| {
            progress(Progress {
                file: &self.file.name,
                done,
                total: size,
            });
        };
        if done < size {
            remote.complete(url, &mut part, done, size, &mut report)?;
        }
        part.sync_all().map_err(Error::io(path))?;
        Ok(())
    }

    /// Refuses what is not the file that was wanted.
    fn check(
        &self,
        url: &str,
        announced: &Announced,
        blob: &Path,
        part: &Path,
    ) -> Result<(), Trouble> {
        if is_page(part)? && !self.file.name.ends_with(".html") {
            return Err(self.wrong(
                url,
                "a page in HTML came instead of it, a proxy's or a login's perhaps; open the address in a browser, and run the command again",
            ));
        }
        let wanted = self.file.sha256.as_deref().or(stated(blob));
        match fault(part, Some(announced.size), wanted)? {
            Some(fault) => Err(self.wrong(
                url,
                &format!("{fault}; it was removed, run the command again"),
            )),
            None => Ok(()),
        }
    }

    /// Has the cache tell where the file of this revision is.
    fn note(&self, announced: &Announced, blob: &Path) -> Result<(), Trouble> {
        let link = self.link(&announced.commit);
        let folder = files::folder_of(&link);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let _ = fs::remove_file(&link); // of a blob that is not there any more
        // From the file's folder below snapshots/COMMIT to blobs.
        let up = "../".repeat(2 + self.file.name.split('/').count() - 1);
        symlink(blob, &format!("{up}blobs/{}", announced.hash), &link).map_err(Error::io(&link))?;
        let noted = self.folder.join("refs").join(self.revision);
        let folder = files::folder_of(&noted);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        files::write(&noted, announced.commit.as_bytes()).map_err(Error::io(&noted))?;
        Ok(())
    }

    fn wrong(&self, url: &str, what: &str) -> Trouble {
        Trouble::File(Error::Hub {
            url: url.into(),
            reason: format!("{} of {}: {what}", self.file.name, self.request.repo),
        })
    }
}

/// What stops a download: the server, or what is here.
enum Trouble {
    Server(Failure),
    File(Error),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Server(failure)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::File(error)
    }
}
