//! Files from the Hugging Face Hub: data sets and checkpoints.
//!
//! Downloads go through the `hf-hub` crate into its cache, the one that Python's `huggingface_hub` uses. A file
//! that is in there for the wanted revision is taken as it is, without asking whether a branch has moved on; who
//! has to know gives a commit or a hash. A file reaches the target folder only after its size and hash have been
//! checked: those that the caller wants, else the size that the Hub announces and, for large files, the SHA-256
//! by which it names them (`x-linked-etag`).
//!
//! `hf-hub` resumes a transfer from the `.part` file in its cache. What it leaves undone is done here:
//!
//! - a `.part` file that is complete, or longer than it should be, makes each later attempt fail;
//! - a transfer that ends early or begins anew without an error leaves a blob of another size than announced;
//! - a page in HTML is taken for the file.
//!
//! It sets no limit to the time that a silent server may take. Who interrupts it may run the command again.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::Error;

mod explain;

const ENDPOINT: &str = "https://huggingface.co";
const BRANCH: &str = "main";

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
        if set("HF_HOME").is_none() && std::env::home_dir().is_none() {
            return Err(Error::Hub {
                url: endpoint,
                reason: "no folder to keep files in; set HF_HOME to one".into(),
            });
        }
        let cache = set("HF_HOME").map_or_else(Cache::default, |_| Cache::from_env());
        Ok(Self {
            endpoint,
            token: set("HF_TOKEN").or_else(|| cache.token()),
            cache: cache.path().clone(),
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
        let files = request.files.iter();
        files
            .map(|file| {
                let path = target.join(&file.name);
                self.one(request, file, &path, progress).map(|()| path)
            })
            .collect()
    }

    fn one(
        &self,
        request: &Request,
        file: &WantedFile,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let inside = |c| matches!(c, Component::Normal(_));
        if !Path::new(&file.name).components().all(inside) {
            // A name may come out of a file that was fetched before.
            return Err(Error::Hub {
                url: request.repo.clone(),
                reason: format!("`{}` is no path inside a repository", file.name),
            });
        }
        if target.exists() {
            return match fault(target, file.size, file.sha256.as_deref())? {
                Some(fault) => Err(Error::Hub {
                    url: target.display().to_string(),
                    reason: format!("{fault}; remove it and run the command again"),
                }),
                None => Ok(()),
            };
        }
        let kind = match request.kind {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let revision = request.revision.as_deref().unwrap_or(BRANCH);
        let repo = Repo::with_revision(request.repo.clone(), kind, revision.into());
        let cache = Cache::new(self.cache.clone());
        if let Some(link) = cache.repo(repo.clone()).get(&file.name) {
            let blob = fs::canonicalize(&link).map_err(Error::io(&link))?;
            let wanted = file.sha256.as_deref().or(stated(&blob));
            if fault(&blob, file.size, wanted)?.is_none() && !is_page(&blob)? {
                return place(&blob, target);
            }
        }
        let (blob, total) = self.download(request, &repo, file, progress)?;
        self.check(request, &repo, file, &blob, total)?;
        place(&blob, target)
    }

    /// Brings a file into the cache; tells the size that the Hub announced.
    fn download(
        &self,
        request: &Request,
        repo: &Repo,
        file: &WantedFile,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(PathBuf, u64), Error> {
        let url = self.url(repo, file);
        let fail = |e: ApiError| Error::Hub {
            url: url.clone(),
            reason: explain::explain(&e, &self.endpoint, request, file),
        };
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').into())
            .with_token(self.token.clone())
            .with_progress(false)
            .build()
            .map_err(fail)?;
        let repo_api = api.repo(repo.clone());
        let mut total = 0;
        let mut attempt = || {
            let meter = Meter {
                progress,
                file: &file.name,
                done: 0,
                total: &mut total,
            };
            repo_api
                .download_with_progress(&file.name, meter)
                .map_err(|e| (e, total))
        };
        let link = attempt().or_else(|(e, total)| {
            if part_is_at_fault(&e) && self.mend_parts(repo, total)? {
                attempt().map_err(|(e, _)| fail(e))
            } else {
                Err(fail(e))
            }
        })?;
        let blob = fs::canonicalize(&link).map_err(Error::io(&link))?;
        Ok((blob, total))
    }

    /// Makes `.part` files usable that are as long as the file in question, or longer; tells whether there were
    /// any. Which file a part belongs to, only its name of a hash tells, which is not known here.
    fn mend_parts(&self, repo: &Repo, total: u64) -> Result<bool, Error> {
        let blobs = self.cache.join(repo.folder_name()).join("blobs");
        let mut mended = false;
        for entry in fs::read_dir(&blobs).map_err(Error::io(&blobs))? {
            let path = entry.map_err(Error::io(&blobs))?.path();
            let len = path.metadata().map_err(Error::io(&path))?.len();
            if path.extension().is_none_or(|e| e != "part") || len < total {
                continue;
            }
            if len == total && total > 0 {
                // With a byte to ask for, the next attempt finishes it; the hash tells what it was worth.
                let file = fs::OpenOptions::new().write(true).open(&path);
                file.and_then(|f| f.set_len(total - 1))
                    .map_err(Error::io(&path))?;
            } else {
                fs::remove_file(&path).map_err(Error::io(&path))?;
            }
            mended = true;
        }
        Ok(mended)
    }

    /// Lets a blob stay only if it is what was wanted.
    fn check(
        &self,
        request: &Request,
        repo: &Repo,
        file: &WantedFile,
        blob: &Path,
        total: u64,
    ) -> Result<(), Error> {
        let fail = |reason: String| Error::Hub {
            url: self.url(repo, file),
            reason,
        };
        let what = format!("{} of {}", file.name, request.repo);
        let remove = || fs::remove_file(blob).map_err(Error::io(blob));
        if is_page(blob)? && !file.name.ends_with(".html") {
            remove()?;
            return Err(fail(format!(
                "{what}: a page in HTML came instead of it, a proxy's or a login's perhaps; open the address in a browser, and run the command again"
            )));
        }
        let len = blob.metadata().map_err(Error::io(blob))?.len();
        if len < total {
            // hf-hub takes it for the whole; as a part it can go on.
            let part = blob.with_extension("part");
            fs::rename(blob, &part).map_err(Error::io(part))?;
            return Err(fail(format!(
                "{what}: the transfer broke off at {len} of {total} bytes; run the command again, it goes on from there"
            )));
        }
        let size = file.size.unwrap_or(total);
        let wanted = file.sha256.as_deref().or(stated(blob));
        if let Some(fault) = fault(blob, Some(size), wanted)? {
            remove()?;
            return Err(fail(format!(
                "{what}: {fault}; it was removed, run the command again"
            )));
        }
        Ok(())
    }

    fn url(&self, repo: &Repo, file: &WantedFile) -> String {
        format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint.trim_end_matches('/'),
            repo.url(),
            repo.url_revision(),
            file.name
        )
    }
}

fn part_is_at_fault(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(e) => matches!(e.as_ref(), ureq::Error::Status(416, _)),
        _ => false,
    }
}

/// SHA-256 of a blob according to its name in the cache; the names of small files are other hashes.
fn stated(blob: &Path) -> Option<&str> {
    let name = blob.file_name()?.to_str()?;
    (name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())).then_some(name)
}

/// What a file has otherwise than it should.
fn fault(path: &Path, size: Option<u64>, hash: Option<&str>) -> Result<Option<String>, Error> {
    let len = path.metadata().map_err(Error::io(path))?.len();
    if let Some(size) = size.filter(|&s| s != len) {
        return Ok(Some(format!(
            "the file has {len} bytes, it should have {size}"
        )));
    }
    let Some(hash) = hash else {
        return Ok(None);
    };
    let found = sha256(path)?;
    Ok((!found.eq_ignore_ascii_case(hash))
        .then(|| format!("the file has hash {found}, it should have {hash}")))
}

fn is_page(path: &Path) -> Result<bool, Error> {
    let mut begins = Vec::new();
    let file = fs::File::open(path).map_err(Error::io(path))?;
    file.take(64)
        .read_to_end(&mut begins)
        .map_err(Error::io(path))?;
    let text = begins.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&begins);
    let text = text.trim_ascii_start().to_ascii_lowercase();
    Ok(text.starts_with(b"<!doctype html") || text.starts_with(b"<html"))
}

/// Brings a checked blob to its place: a hard link where that can be, else a copy, never half of it.
fn place(blob: &Path, target: &Path) -> Result<(), Error> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let _ = fs::remove_file(&partial); // left by an attempt that was killed
    fs::hard_link(blob, &partial)
        .or_else(|_| fs::copy(blob, &partial).map(|_| ()))
        .and_then(|()| fs::rename(&partial, target))
        .map_err(Error::io(target))
}

fn sha256(path: &Path) -> Result<String, Error> {
    let mut file = fs::File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io(path))?;
        if n == 0 {
            let digest = hasher.finalize();
            return Ok(digest.iter().map(|b| format!("{b:02x}")).collect());
        }
        hasher.update(&buffer[..n]);
    }
}

struct Meter<'a> {
    progress: &'a mut dyn FnMut(Progress),
    file: &'a str,
    done: u64,
    total: &'a mut u64,
}

impl hf_hub::api::Progress for Meter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, *self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(Progress {
            file: self.file,
            done: self.done,
            total: *self.total,
        });
    }

    fn finish(&mut self) {}
}
