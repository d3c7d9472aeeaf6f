//! Files from the Hugging Face Hub: data sets and checkpoints.
//!
//! Downloads go into the cache of Python's `huggingface_hub`, in its layout: `blobs/HASH` holds a file,
//! `snapshots/COMMIT/NAME` links to it, `refs/REVISION` holds the commit. A cached file of the wanted revision is used
//! without asking whether a branch has a newer commit; a caller that depends on the content gives a commit or a hash. A
//! file is moved to the cache's blobs and to the target folder only after its size and hash are checked: those of the
//! request, else the size that the Hub announces and, for large files, the SHA-256 in `x-linked-etag`.
//!
//! An interrupted transfer resumes from `blobs/HASH.part`. A server's answers are not trusted: its hash and commit become
//! names in the cache, so they must be letters and digits (and `-`, `_` in a hash), a file must not exceed the announced
//! size, the number of redirects is limited, and a silent server causes a timeout.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use abkd_host::files;

use self::disk::{fault, free_space, is_page, place, stated, symlink};
use self::transfer::{Announced, Failure, Remote};
use crate::Error;

mod disk;
mod explain;
mod names;
mod transfer;

const ENDPOINT: &str = "https://huggingface.co";
const BRANCH: &str = "main";
/// Default timeout of a silent server.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of the files of a token and a commit, bytes: a token has less than 100, a commit 40.
const SMALL: u64 = 4096;

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// Files to fetch from a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `owner/name`
    pub repo: String,
    /// Kind of the repository.
    pub kind: RepoKind,
    /// Branch, tag or commit; `None`: `main`.
    pub revision: Option<String>,
    /// Files to fetch.
    pub files: Vec<WantedFile>,
}

/// A file to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedFile {
    /// Path in the repository, and relative to the target folder.
    pub name: String,
    /// Required size in bytes.
    pub size: Option<u64>,
    /// Required SHA-256, 64 hex digits.
    pub sha256: Option<String>,
}

/// Progress of a transfer.
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
    /// Address of the server: `https://huggingface.co` or a mirror.
    pub endpoint: String,
    /// Token for repositories that are not public.
    pub token: Option<String>,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Timeout of a silent server, at each step of a request.
    pub timeout: Duration,
}

/// Fetches files from the Hub of the environment; see [`Hub::from_env`] and [`Hub::fetch`].
///
/// # Errors
///
/// As [`Hub::from_env`] and [`Hub::fetch`].
pub fn fetch(
    request: &Request,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<PathBuf>, Error> {
    Hub::from_env()?.fetch(request, target, progress)
}

impl Hub {
    /// Reads the environment: `HF_ENDPOINT`, `HF_TOKEN` (or the token that `huggingface-cli login`
    /// saved), `HF_HOME`.
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

    /// Fetches the files that are missing in `target`, and returns the paths of all files in the order of the
    /// request. Files that exist are not changed.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`] names the address, the cause and the remedy; [`Error::NoFile`]: the repository has no such file.
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
                // A name may come from a fetched file, so it is not trusted.
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

/// A file to fetch, and its place in the cache.
struct One<'a> {
    hub: &'a Hub,
    request: &'a Request,
    revision: &'a str,
    file: &'a WantedFile,
    /// The repository's folder in the cache.
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
        let reason = explain::explain(failure, &self.hub.endpoint, self.request, self.file);
        let url = url.into();
        match failure.is_no_file() {
            true => Error::NoFile { url, reason },
            false => Error::Hub { url, reason },
        }
    }

    /// The cached file, at the commit that the revision had in the last download.
    fn cached(&self) -> Option<PathBuf> {
        let noted = files::read(&self.folder.join("refs").join(self.revision), SMALL).ok();
        let noted = noted.and_then(|bytes| String::from_utf8(bytes).ok());
        // Without a ref, the revision may be a commit itself.
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

    /// Downloads the file into the cache and checks it.
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
            let why = format!(
                "it answers with commit {}, which was not requested",
                announced.commit
            );
            return Err(Failure::NotTheHub(why).into());
        }
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs))?;
        let blob = blobs.join(&announced.hash);
        let _lock = self.lock(url, &blob.with_extension("lock"))?;
        // The blob may exist from another revision.
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

    /// Takes the file lock: only one process at a time fetches a file.
    fn lock(&self, url: &str, path: &Path) -> Result<File, Trouble> {
        let lock = files::open_to_extend(path).map_err(Error::io(path))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => {
                Err(self.wrong(url, "another program is fetching this file; wait for it"))
            }
            Err(fs::TryLockError::Error(e)) => Err(Error::io(path)(e).into()),
        }
    }

    /// Resumes or starts the transfer into the `.part` file.
    fn transfer(
        &self,
        remote: &Remote,
        url: &str,
        announced: &Announced,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Trouble> {
        let size = announced.size;
        let mut part = files::open_to_extend(path).map_err(Error::io(path))?;
        let mut done = part.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        if done > size {
            // Left by a process that downloaded something else.
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

    /// Refuses a downloaded file that is not the requested one.
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

    /// Writes the snapshot link and the ref of this revision into the cache.
    fn note(&self, announced: &Announced, blob: &Path) -> Result<(), Trouble> {
        let link = self.link(&announced.commit);
        let folder = files::folder_of(&link);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let _ = fs::remove_file(&link); // an old link, e.g. to a removed blob
        // Relative path from the file's folder in snapshots/COMMIT to blobs.
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

/// Cause of a failed download: the server, or local files and requirements.
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
