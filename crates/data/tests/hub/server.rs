//! A small server that imitates the Hub, or a faulty or hostile server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the server treats a file.
#[derive(Clone, Copy, PartialEq)]
pub enum Trick {
    Honest,
    /// Closes the connection after half of the first transfer.
    Break,
    /// As `Break`, without a Content-Length that would show it.
    EndEarly,
    /// As `Break`, and the next transfer sends the whole file, whatever range was requested.
    BreakThenAnew,
    /// Announces a wrong hash.
    WrongHash,
    /// A small file, for which the Hub announces no SHA-256.
    Small,
    /// An HTTP status, with the Hub's `x-error-code`.
    Status(u16, &'static str),
    /// An HTML page without the Hub's headers.
    Html,
    /// An HTML page with the Hub's headers.
    HtmlAsFile,
    /// This ETag in the file's headers.
    Etag(&'static str),
    /// This commit in the file's headers.
    Commit(&'static str),
    /// A redirect to this address; `SELF` is the requested path.
    To(&'static str),
    /// A redirect to another server that has no metadata headers, as the Hub does for large files.
    Elsewhere,
    /// Announces this size of the file.
    Size(u64),
    /// Sends more bytes than announced.
    TooMuch,
    /// Accepts a request and never answers.
    Silent,
    /// Sends headers without end.
    Headers,
    /// Sends the body slowly, byte by byte.
    Drip,
    /// Sends bytes that are no HTTP.
    Noise,
}

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub path: String,
    pub token: Option<String>,
    /// Start of the range; `None` for a request that only asks for metadata.
    pub from: Option<usize>,
}

pub struct Server {
    /// `http://HOST:PORT`
    pub endpoint: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

pub const BODY: &[u8] = &[42; 100_000];
const PAGE: &[u8] = b"\n<!DOCTYPE html><html>please log in</html>";

pub fn hash(bytes: &[u8]) -> String {
    abkd_host::files::sha256(bytes)
}

impl Server {
    pub fn start(trick: Trick) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        // The target of the redirect.
        let other = match trick {
            Trick::Elsewhere => Some(Self::start(Trick::Honest)),
            _ => None,
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, trick, &log, other.as_ref());
            }
        });
        Self { endpoint, seen }
    }
}

/// Sends `piece` again and again until the client closes the connection.
fn endless(stream: &mut TcpStream, piece: &[u8], pause: Duration) {
    while stream.write_all(piece).is_ok() {
        std::thread::sleep(pause);
    }
}

fn answer(mut stream: TcpStream, trick: Trick, log: &Mutex<Vec<Seen>>, other: Option<&Server>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else {
        return;
    };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let (mut range, mut token) = (None, None);
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        let (key, value) = line.split_once(": ").unwrap();
        match key.to_ascii_lowercase().as_str() {
            "range" => {
                let (from, to) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().ok()));
            }
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    let probe = range == Some((0, Some(0)));
    let first = {
        let mut log = log.lock().unwrap();
        let from = range.filter(|_| !probe).map(|r| r.0);
        log.push(Seen {
            path: path.clone(),
            token: token.clone(),
            from,
        });
        log.iter().filter(|seen| seen.from.is_some()).count() <= 1
    };
    match trick {
        Trick::Silent => {
            // waits until the client gives up
            let _ = stream.read(&mut [0; 1]);
            return;
        }
        Trick::Headers => {
            let _ = stream.write_all(b"HTTP/1.1 206 Part\r\n");
            return endless(&mut stream, b"x-a: b\r\n", Duration::ZERO);
        }
        Trick::Noise => {
            let _ = stream.write_all(&[0xff; 1000]);
            return;
        }
        _ => {}
    }
    let mut send = |head: &str, body: &[u8]| {
        // the client may have closed the connection; the tests check its result
        let _ = write!(stream, "HTTP/1.1 {head}Connection: close\r\n\r\n");
        let _ = stream.write_all(body);
    };
    let body = match trick {
        Trick::Status(code, error) => {
            return send(
                &format!("{code} No\r\nx-error-code: {error}\r\nContent-Length: 0\r\n"),
                b"",
            );
        }
        Trick::Html => {
            let n = PAGE.len();
            return send(
                &format!("200 OK\r\nContent-Type: text/html\r\nContent-Length: {n}\r\n"),
                PAGE,
            );
        }
        Trick::To(location) => {
            let location = location.replace("SELF", &path);
            return send(
                &format!("307 Go\r\nLocation: {location}\r\nContent-Length: 0\r\n"),
                b"",
            );
        }
        Trick::Elsewhere => {
            let other = &other.expect("started for this").endpoint;
            let commit = "c0ffee";
            return send(
                &format!(
                    "302 Go\r\nLocation: {other}/elsewhere\r\nx-repo-commit: {commit}\r\nx-linked-etag: \"{}\"\r\nContent-Length: 0\r\n",
                    hash(BODY)
                ),
                b"",
            );
        }
        Trick::HtmlAsFile => PAGE,
        _ => BODY,
    };
    let commit = match trick {
        Trick::Commit(commit) => commit,
        _ => "abc",
    };
    let etag = match trick {
        Trick::Etag(etag) => etag.into(),
        Trick::WrongHash => hash(b"something else"),
        Trick::Small | Trick::HtmlAsFile => "0123456789".repeat(4),
        _ => hash(body),
    };
    let all = body.len();
    let (from, to) = range.unwrap_or((0, None));
    if from >= all {
        return send(
            &format!("416 No\r\nContent-Range: bytes */{all}\r\nContent-Length: 0\r\n"),
            b"",
        );
    }
    let anew = trick == Trick::BreakThenAnew && !probe && !first;
    let from = if anew { 0 } else { from };
    let end = to.map_or(all, |t| t + 1).min(all);
    let part = &body[from..end];
    let breaks = matches!(trick, Trick::Break | Trick::EndEarly | Trick::BreakThenAnew);
    let cut = if breaks && first && !probe {
        part.len() / 2
    } else {
        part.len()
    };
    let said = match trick {
        Trick::Size(size) => size,
        _ => all as u64,
    };
    // The target of the redirect sends no metadata headers.
    let named = if path == "/elsewhere" {
        String::new()
    } else {
        format!("x-repo-commit: {commit}\r\nx-linked-etag: \"{etag}\"\r\n")
    };
    let mut head = format!(
        "{}\r\n{named}Content-Range: bytes {from}-{}/{said}\r\n",
        if anew { "200 OK" } else { "206 Part" },
        end - 1
    );
    let endless_body = trick == Trick::TooMuch && !probe;
    if trick != Trick::EndEarly && !endless_body {
        head += &format!("Content-Length: {}\r\n", part.len());
    }
    if trick == Trick::Drip && !probe {
        send(&head, b"");
        return endless(&mut stream, b"*", Duration::from_millis(20));
    }
    send(&head, &part[..cut]);
    if endless_body {
        endless(&mut stream, &[42; 1000], Duration::ZERO);
    }
}
