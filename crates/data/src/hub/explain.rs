//! Errors of `hf-hub` in words that say what to do.

use hf_hub::api::sync::ApiError;

use super::{BRANCH, Request, WantedFile};

/// What an error means, and what to do.
pub(super) fn explain(
    error: &ApiError,
    endpoint: &str,
    request: &Request,
    file: &WantedFile,
) -> String {
    let repo = &request.repo;
    let what = format!("{} of {repo}", file.name);
    match error {
        ApiError::RequestError(e) => match e.as_ref() {
            ureq::Error::Status(code, response) => status(
                *code,
                response.header("x-error-code").unwrap_or_default(),
                request,
                file,
            ),
            ureq::Error::Transport(t) => format!(
                "{what}: {endpoint} cannot be reached ({t}); look at the network, set HF_ENDPOINT to a mirror, or fetch the files elsewhere and put them in place"
            ),
        },
        ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_) => {
            format!(
                "{what}: the answer is not the Hub's (a page of a proxy or a login, perhaps); open the address in a browser"
            )
        }
        ApiError::LockAcquisition(_) => {
            format!("{what}: another program is fetching this file; wait for it")
        }
        ApiError::IoError(e) if e.kind() == std::io::ErrorKind::StorageFull => format!(
            "{what}: the disk of the cache is full; make room or set HF_HOME to another, and run the command again"
        ),
        ApiError::IoError(e) => format!(
            "{what}: the transfer broke off ({e}); run the command again, it goes on from there"
        ),
        other => format!("{what}: {other}; run the command again"),
    }
}

/// What a status means; the Hub tells more in a header of its own.
fn status(code: u16, hub: &str, request: &Request, file: &WantedFile) -> String {
    let repo = &request.repo;
    let revision = request.revision.as_deref().unwrap_or(BRANCH);
    match (code, hub) {
        (404, "RevisionNotFound") => format!("{repo} has no revision {revision}"),
        (404, "RepoNotFound") => format!(
            "there is no {repo} on the Hub; see to its name, or set HF_TOKEN if it is not public"
        ),
        (404, _) => format!("{repo} has no file {} at revision {revision}", file.name),
        // The Hub tells no one who may not read it that there is no such repository.
        (401 | 403, _) => format!(
            "the Hub refuses access to {repo}, or it does not exist; set HF_TOKEN to a token that may read it, and accept its licence on the Hub"
        ),
        (429, _) => "too many requests; wait some minutes and run the command again".into(),
        (code, _) => format!("the Hub answers with status {code}; try again later"),
    }
}
