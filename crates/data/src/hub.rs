//! Files from the Hugging Face Hub: data sets and checkpoints.
//!
//! Downloads go through the `hf-hub` crate into its cache (`HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` count, and a
//! transfer that broke off goes on where it was). A file reaches the target folder only after its hash has
//! been checked: the one that the caller wants, else the SHA-256 that the Hub states for large files.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::Error;

/// What kind of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// A file to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Kind of its repository.
    pub kind: RepoKind,
    /// `owner/name`
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Path in the repository.
    pub file: String,
    /// SHA-256 that it must have, 64 hex digits.
    pub sha256: Option<String>,
}

/// Where files come from.
pub struct Hub {
    api: Api,
    endpoint: String,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the token that `huggingface-cli login` has
    /// left), `HF_HOME`.
    ///
    /// # Errors
    ///
    /// When no HTTP client can be made.
    pub fn from_env() -> Result<Self, Error> {
        let endpoint = std::env::var("HF_ENDPOINT").unwrap_or("https://huggingface.co".into());
        let token = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty());
        Self::new(endpoint, token, None)
    }

    /// With everything given; an absent cache or token is the environment's.
    ///
    /// # Errors
    ///
    /// When no HTTP client can be made.
    pub fn new(
        endpoint: String,
        token: Option<String>,
        cache: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let cache = cache.map_or_else(Cache::from_env, Cache::new);
        let token = token.or_else(|| cache.token());
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(endpoint.trim_end_matches('/').into())
            .with_token(token)
            .with_progress(false)
            .build()
            .map_err(|e| Error::Hub {
                url: endpoint.clone(),
                reason: e.to_string(),
            })?;
        Ok(Self { api, endpoint })
    }

    /// Fetches a file to `target` unless it is there; tells whether it had to. `progress` gets (bytes so
    /// far, bytes in all).
    ///
    /// # Errors
    ///
    /// [`Error::Hub`] names the address, what is wrong and what to do.
    pub fn fetch(
        &self,
        wanted: &Wanted,
        target: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<bool, Error> {
        if target.exists() {
            return match &wanted.sha256 {
                Some(hash) if sha256(target)? != *hash => Err(Error::Hub {
                    url: target.display().to_string(),
                    reason: "this file has another hash than it should; remove it and run the command again".into(),
                }),
                _ => Ok(false),
            };
        }
        let kind = match wanted.kind {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let repo = self.api.repo(Repo::with_revision(
            wanted.repo.clone(),
            kind,
            wanted.revision.clone(),
        ));
        let url = repo.url(&wanted.file);
        let blob = repo
            .download_with_progress(
                &wanted.file,
                Meter {
                    progress,
                    at: 0,
                    all: 0,
                },
            )
            .map_err(|e| Error::Hub {
                url: url.clone(),
                reason: self.explain(&e, wanted),
            })?;
        // The cache's file is a link to a blob that is named by the Hub's hash of it.
        let blob = fs::canonicalize(&blob).map_err(Error::io(&blob))?;
        let stated = blob
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let is_sha = stated.len() == 64 && stated.bytes().all(|b| b.is_ascii_hexdigit());
        let expected = wanted.sha256.as_deref().or(is_sha.then_some(stated));
        if let Some(expected) = expected {
            let found = sha256(&blob)?;
            if found != expected {
                fs::remove_file(&blob).map_err(Error::io(&blob))?;
                return Err(Error::Hub {
                    url,
                    reason: format!(
                        "the file has hash {found}, it should have {expected}; it was removed, run the command again"
                    ),
                });
            }
        }
        place(&blob, target)?;
        Ok(true)
    }

    fn explain(&self, error: &ApiError, wanted: &Wanted) -> String {
        let repo = &wanted.repo;
        match error {
            ApiError::RequestError(e) => match e.as_ref() {
                ureq::Error::Status(401 | 403, _) => format!(
                    "the Hub refuses access to {repo}; set HF_TOKEN to a token that may read it, and accept its licence on the Hub"
                ),
                ureq::Error::Status(404, _) => format!(
                    "{repo} has no file {} at revision {}",
                    wanted.file, wanted.revision
                ),
                ureq::Error::Status(code, _) => {
                    format!("the Hub answers with status {code}; try again later")
                }
                ureq::Error::Transport(t) => format!(
                    "{} cannot be reached ({t}); set HF_ENDPOINT to a mirror, or fetch the files elsewhere and put them in place",
                    self.endpoint
                ),
            },
            ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_) => {
                "the answer is not the Hub's (a page of a proxy or a login, perhaps); look at the address in a browser"
                    .into()
            }
            ApiError::LockAcquisition(_) => {
                "another program is fetching this file; wait for it".into()
            }
            ApiError::IoError(e) => {
                format!("the transfer broke off ({e}); run the command again, it goes on from there")
            }
            other => format!("{other}; run the command again"),
        }
    }
}

/// Brings a checked blob to its place: a hard link where that can be, else a copy, never half of it.
fn place(blob: &Path, target: &Path) -> Result<(), Error> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let partial = target.with_extension("partial");
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
    progress: &'a mut dyn FnMut(usize, usize),
    at: usize,
    all: usize,
}

impl Progress for Meter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.at, self.all) = (0, size);
    }

    fn update(&mut self, size: usize) {
        self.at += size;
        (self.progress)(self.at, self.all);
    }

    fn finish(&mut self) {}
}
