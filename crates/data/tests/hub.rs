//! Fetching from a small server that plays the Hub.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use abkd_data::hub::{Hub, RepoKind, Wanted};
use sha2::{Digest, Sha256};

/// How the server treats a file.
#[derive(Clone, Copy, PartialEq)]
enum Trick {
    Honest,
    /// Half of the first transfer, then silence.
    Break,
    /// Another hash than the file's.
    WrongHash,
    Status(u16),
    Html,
}

/// Path of each request, and where its range begins.
type Log = Mutex<Vec<(String, Option<usize>)>>;

struct Server {
    endpoint: String,
    requests: Arc<Log>,
}

const BODY: &[u8] = &[42; 100_000];

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

impl Server {
    fn start(trick: Trick) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, trick, &log);
            }
        });
        Self { endpoint, requests }
    }
}

fn answer(mut stream: TcpStream, trick: Trick, log: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else {
        return;
    };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let mut range: Option<(usize, Option<usize>)> = None;
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        if let Some((key, value)) = line.split_once(": ")
            && key.eq_ignore_ascii_case("range")
        {
            let (from, to) = value.trim_start_matches("bytes=").split_once('-').unwrap();
            range = Some((from.parse().unwrap(), to.parse().ok()));
        }
    }
    let probe = range == Some((0, Some(0)));
    let first = {
        let mut log = log.lock().unwrap();
        log.push((path, range.filter(|_| !probe).map(|r| r.0)));
        log.iter().filter(|(_, from)| from.is_some()).count() <= 1
    };
    match trick {
        Trick::Status(code) => {
            let _ = write!(
                stream,
                "HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return;
        }
        Trick::Html => {
            let page = "<!DOCTYPE html><html>please log in</html>";
            let n = page.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n{page}"
            );
            return;
        }
        _ => {}
    }
    let etag = match trick {
        Trick::WrongHash => hash(b"something else"),
        _ => hash(BODY),
    };
    let (from, to) = range.unwrap_or((0, None));
    let end = to.map_or(BODY.len(), |t| t + 1).min(BODY.len());
    let part = &BODY[from.min(end)..end];
    let _ = write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nx-repo-commit: abc\r\nx-linked-etag: \"{etag}\"\r\n\
         Content-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        end.max(1) - 1,
        BODY.len(),
        part.len()
    );
    let cut = if trick == Trick::Break && first && !probe {
        part.len() / 2
    } else {
        part.len()
    };
    let _ = stream.write_all(&part[..cut]);
}

struct Case {
    dir: tempfile::TempDir,
    hub: Hub,
    server: Server,
}

impl Case {
    fn new(trick: Trick) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(trick);
        let hub = Hub::new(
            server.endpoint.clone(),
            None,
            Some(dir.path().join("cache")),
        )
        .unwrap();
        Self { dir, hub, server }
    }

    fn fetch(&self, sha256: Option<String>) -> Result<bool, String> {
        let wanted = Wanted {
            kind: RepoKind::Dataset,
            repo: "MiniLLM/dolly".into(),
            revision: "main".into(),
            file: "valid.jsonl".into(),
            sha256,
        };
        let target = self.dir.path().join("data/dolly/valid.jsonl");
        let result = self.hub.fetch(&wanted, &target, &mut |_, _| {});
        assert_eq!(target.exists(), result.is_ok());
        if result.is_ok() {
            assert_eq!(std::fs::read(&target).unwrap(), BODY);
        }
        result.map_err(|e| e.to_string())
    }

    fn requests(&self) -> Vec<(String, Option<usize>)> {
        self.server.requests.lock().unwrap().clone()
    }
}

#[test]
fn a_file_is_fetched_once() {
    let case = Case::new(Trick::Honest);
    assert_eq!(case.fetch(Some(hash(BODY))), Ok(true));
    let before = case.requests();
    assert!(
        before[0]
            .0
            .contains("/datasets/MiniLLM/dolly/resolve/main/valid.jsonl")
    );
    assert_eq!(case.fetch(Some(hash(BODY))), Ok(false));
    assert_eq!(case.requests(), before);
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    let case = Case::new(Trick::Break);
    let error = case.fetch(None).unwrap_err();
    assert!(error.contains("run the command again"), "{error}");
    assert_eq!(case.fetch(None), Ok(true));
    let from: Vec<usize> = case.requests().into_iter().filter_map(|r| r.1).collect();
    assert_eq!(from, [0, BODY.len() / 2]);
}

#[test]
fn a_wrong_hash_never_reaches_the_target() {
    let case = Case::new(Trick::WrongHash);
    let error = case.fetch(None).unwrap_err();
    assert!(
        error.contains(&hash(BODY)) && error.contains("removed"),
        "{error}"
    );
    let case = Case::new(Trick::Honest);
    let error = case.fetch(Some(hash(b"wanted"))).unwrap_err();
    assert!(error.contains(&hash(b"wanted")), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    for (trick, says) in [
        (Trick::Status(404), "no file valid.jsonl at revision main"),
        (Trick::Status(401), "HF_TOKEN"),
        (Trick::Status(503), "status 503"),
        (Trick::Html, "not the Hub's"),
    ] {
        let error = Case::new(trick).fetch(None).unwrap_err();
        assert!(error.contains(says), "{error}");
        assert!(error.contains("MiniLLM/dolly/resolve"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let nobody = "http://127.0.0.1:9".to_owned();
    let hub = Hub::new(nobody, None, Some(dir.path().into())).unwrap();
    let wanted = Wanted {
        kind: RepoKind::Model,
        repo: "a/b".into(),
        revision: "main".into(),
        file: "config.json".into(),
        sha256: None,
    };
    let error = hub
        .fetch(&wanted, &dir.path().join("x"), &mut |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("HF_ENDPOINT"), "{error}");
}
