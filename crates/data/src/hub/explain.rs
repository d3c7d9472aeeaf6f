//! Messages for failures, with the remedy.

use super::transfer::Failure;
use super::{BRANCH, Request, WantedFile};

/// Message for a failure: cause and remedy.
pub(super) fn explain(
    failure: &Failure,
    endpoint: &str,
    request: &Request,
    file: &WantedFile,
) -> String {
    let repo = &request.repo;
    let what = format!("{} of {repo}", file.name);
    match failure {
        Failure::Status(code, said) => status(*code, said, request, file),
        Failure::Unreachable(e) => format!(
            "{what}: {endpoint} cannot be reached ({e}); look at the network, set HF_ENDPOINT to a mirror, or fetch the files elsewhere and put them in place"
        ),
        Failure::NotTheHub(why) => format!(
            "{what}: the answer is not the Hub's: {why} (a page of a proxy or a login, perhaps); open the address in a browser, or set HF_ENDPOINT to another mirror"
        ),
        Failure::Setting(why) => format!("{what}: {why}"),
        Failure::Broken(why) => {
            format!(
                "{what}: the transfer broke off {why}; run the command again, it goes on from there"
            )
        }
        Failure::Disk(e) if e.kind() == std::io::ErrorKind::StorageFull => format!(
            "{what}: the disk of the cache is full; make room or set HF_HOME to another, and run the command again"
        ),
        Failure::Disk(e) => {
            format!("{what}: the cache cannot be written ({e}); set HF_HOME to another folder")
        }
    }
}

/// Message for an HTTP status; `hub` is the Hub's more precise code in `x-error-code`.
fn status(code: u16, hub: &str, request: &Request, file: &WantedFile) -> String {
    let repo = &request.repo;
    let revision = request.revision.as_deref().unwrap_or(BRANCH);
    match (code, hub) {
        (404, "RevisionNotFound") => format!("{repo} has no revision {revision}"),
        (404, "RepoNotFound") => format!(
            "there is no {repo} on the Hub; check its name, or set HF_TOKEN if it is not public"
        ),
        (404, _) => format!("{repo} has no file {} at revision {revision}", file.name),
        // The Hub also gives these codes for a repository that does not exist.
        (401 | 403, _) => format!(
            "the Hub refuses access to {repo}, or it does not exist; set HF_TOKEN to a token that may read it, and accept its licence on the Hub"
        ),
        (429, _) => "too many requests; wait some minutes and run the command again".into(),
        (code, _) => format!("the Hub answers with status {code}; try again later"),
    }
}
