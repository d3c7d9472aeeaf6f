//! Requests to the Hub: the metadata of a file, and its bytes. A server's answers are not trusted: redirects, sizes and
//! times have limits, names are checked.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::names::{hash_of_etag, is_commit, shown};

/// Limit of redirects per request; the Hub uses at most two.
const REDIRECTS: usize = 5;
/// Minimum bytes per second of a transfer, on average over [`SPAN`] timeouts; a slower one is aborted.
const SLOWEST: u64 = 1024;
const SPAN: u32 = 4;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// An HTTP status, and the Hub's `x-error-code`.
    Status(u16, String),
    /// No answer.
    Unreachable(ureq::Error),
    /// An answer that does not come from the Hub.
    NotTheHub(String),
    /// The endpoint or the token is malformed.
    Setting(String),
    /// The transfer ended early.
    Broken(String),
    /// The `.part` file cannot be written.
    Disk(std::io::Error),
}

impl Failure {
    /// Whether the repository and the revision are there, and the file is not.
    pub fn is_no_file(&self) -> bool {
        let others = ["RevisionNotFound", "RepoNotFound"];
        matches!(self, Self::Status(404, said) if !others.contains(&said.as_str()))
    }
}

/// Metadata of a file, as the server announces it.
#[derive(Debug)]
pub(super) struct Announced {
    /// Hash, which is the blob's name in the cache.
    pub hash: String,
    /// Commit of the revision.
    pub commit: String,
    /// Size in bytes.
    pub size: u64,
}

/// Connection settings of a server.
pub(super) struct Remote {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
    timeout: Duration,
}

impl Remote {
    /// `timeout` limits each step of a request; a transfer may take longer while bytes arrive.
    pub(super) fn new(
        endpoint: &str,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let uri: Option<Uri> = endpoint.parse().ok();
        let uri = uri.filter(|u| {
            u.authority().is_some() && matches!(u.scheme_str(), Some("http" | "https"))
        });
        let Some(endpoint) = uri else {
            let reason =
                "HF_ENDPOINT is no address; https://huggingface.co or a mirror's belongs there";
            return Err(Failure::Setting(reason.into()));
        };
        if token.is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            let reason = "the token has characters that no token has; look at HF_TOKEN and at the file that `huggingface-cli login` left";
            return Err(Failure::Setting(reason.into()));
        }
        let limit = Some(timeout);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(limit)
            .timeout_connect(limit)
            .timeout_send_request(limit)
            .timeout_recv_response(limit)
            .timeout_per_read(limit)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint,
            token: token.map(str::to_owned),
            timeout,
        })
    }

    /// Requests a range. Returns the final answer, and the headers of the last answer with a commit: for large files the
    /// Hub redirects to another server, and its own answer has the file's metadata.
    fn get(&self, url: &str, range: &str) -> Result<(Response<Body>, HeaderMap), Failure> {
        let mut uri: Uri = url
            .parse()
            .map_err(|e| Failure::Setting(format!("no address: {e}")))?;
        let mut named = HeaderMap::new();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(uri.clone()).header(RANGE, range);
            // The token must not be sent to other servers.
            let own = uri.scheme() == self.endpoint.scheme()
                && uri.authority() == self.endpoint.authority();
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(Failure::Unreachable)?;
            if response.headers().contains_key("x-repo-commit") {
                named = response.headers().clone();
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, named));
            }
            let location = text(response.headers(), LOCATION.as_str()).unwrap_or_default();
            uri = redirected(&uri, location).ok_or_else(|| {
                Failure::NotTheHub(format!("it redirects to `{}`", shown(location)))
            })?;
        }
        Err(Failure::NotTheHub(format!(
            "it redirects more than {REDIRECTS} times"
        )))
    }

    /// Requests the first byte to get the file's metadata.
    pub(super) fn announced(&self, url: &str) -> Result<Announced, Failure> {
        let (response, named) = self.get(url, "bytes=0-0")?;
        let headers = response.headers();
        let size = match response.status().as_u16() {
            206 => range(headers).map(|(_, size)| size),
            200 => text(headers, CONTENT_LENGTH.as_str()).and_then(|n| n.parse().ok()),
            // An empty file has no first byte.
            416 => text(headers, CONTENT_RANGE.as_str())
                .filter(|r| *r == "bytes */0")
                .map(|_| 0),
            code => return Err(status(code, headers)),
        };
        let foreign = |reason: String| Failure::NotTheHub(reason);
        let commit = text(&named, "x-repo-commit")
            .ok_or_else(|| foreign("it has no X-Repo-Commit".into()))?;
        if !is_commit(commit) {
            return Err(foreign(format!(
                "X-Repo-Commit is `{}`, which is no commit",
                shown(commit)
            )));
        }
        let etag = text(&named, "x-linked-etag")
            .or_else(|| text(&named, "etag"))
            .ok_or_else(|| foreign("it has no ETag".into()))?;
        let hash = hash_of_etag(etag)
            .ok_or_else(|| foreign(format!("its ETag is `{}`, which is no hash", shown(etag))))?;
        Ok(Announced {
            hash: hash.into(),
            commit: commit.into(),
            size: size.ok_or_else(|| foreign("it does not tell the file's size".into()))?,
        })
    }

    /// Downloads the rest of `part`, which holds the first `done` of `size` bytes and is open at its end.
    pub(super) fn complete(
        &self,
        url: &str,
        part: &mut File,
        mut done: u64,
        size: u64,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let (mut response, _) = self.get(url, &format!("bytes={done}-"))?;
        match response.status().as_u16() {
            206 => {
                if range(response.headers()) != Some((done, size)) {
                    let reason = "it sends another part of the file than was asked for";
                    return Err(Failure::NotTheHub(reason.into()));
                }
            }
            200 => {
                // A server without ranges sends the whole file.
                done = 0;
                part.set_len(0).map_err(Failure::Disk)?;
                part.rewind().map_err(Failure::Disk)?;
            }
            code => return Err(status(code, response.headers())),
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut since = (Instant::now(), done);
        report(done);
        while done < size {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Err(broken(done, size, "the server closed the connection")),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(done, size, &e.to_string())),
            };
            if n as u64 > size - done {
                let reason = format!("it sends more than the {size} bytes that it announced");
                return Err(Failure::NotTheHub(reason));
            }
            part.write_all(&buffer[..n]).map_err(Failure::Disk)?;
            done += n as u64;
            report(done);
            let span = self.timeout * SPAN;
            if since.0.elapsed() > span {
                if done - since.1 < SLOWEST * span.as_secs() {
                    return Err(broken(done, size, "less than 1 KiB a second"));
                }
                since = (Instant::now(), done);
            }
        }
        Ok(())
    }
}

fn broken(done: u64, size: u64, why: &str) -> Failure {
    Failure::Broken(format!("at {done} of {size} bytes ({})", shown(why)))
}

fn status(code: u16, headers: &HeaderMap) -> Failure {
    let said = text(headers, "x-error-code").unwrap_or_default();
    Failure::Status(code, said.to_owned())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Start of an answer's range, and the size of the file.
fn range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let range = text(headers, CONTENT_RANGE.as_str())?.strip_prefix("bytes ")?;
    let (range, size) = range.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    Some((from.parse().ok()?, size.parse().ok()?))
}

/// Target of a redirect: an address, or a path on the same server; never from https to http.
fn redirected(from: &Uri, location: &str) -> Option<Uri> {
    let scheme = from.scheme_str()?;
    let to: Uri = if location.starts_with("//") {
        format!("{scheme}:{location}").parse().ok()?
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", from.authority()?)
            .parse()
            .ok()?
    } else {
        location.parse().ok()?
    };
    to.authority()?;
    match (scheme, to.scheme_str()?) {
        (_, "https") | ("http", "http") => Some(to),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_http_and_never_from_https_to_http() {
        let led = |from: &str, to: &str| {
            let uri = redirected(&from.parse().unwrap(), to);
            uri.map(|u| u.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(led("http://a:1/x", "/y?z"), some("http://a:1/y?z"));
        assert_eq!(led("https://a/x", "//b/y"), some("https://b/y"));
        assert_eq!(led("http://a/x", "https://b/y"), some("https://b/y"));
        for to in [
            "http://b/y",
            "file:///etc/passwd",
            "ftp://b/y",
            "",
            "y",
            "\u{1}",
        ] {
            assert_eq!(led("https://a/x", to), None, "{to}");
        }
    }

    #[test]
    fn ranges_are_read() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, value.parse().unwrap());
            range(&headers)
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, 10)));
        for value in [
            "bytes */10",
            "bytes 5-9/*",
            "5-9/10",
            "bytes -1-2/3",
            "bytes 0-0/99999999999999999999",
        ] {
            assert_eq!(read(value), None, "{value}");
        }
    }
}
