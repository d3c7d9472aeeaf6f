//! A small server that plays the Hub, or something in its place.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// How the server treats a file.
#[derive(Clone, Copy, PartialEq)]
pub enum Trick {
    Honest,
    /// Half of the first transfer, then the connection closes.
    Break,
    /// The same, without a length that would tell.
    EndEarly,
    /// The same, and the next transfer begins anew, whatever range was asked for.
    BreakThenAnew,
    /// Another hash than the file's.
    WrongHash,
    /// A file too small for the Hub to know its SHA-256.
    Small,
    /// A status, with the Hub's own header.
    Status(u16, &'static str),
    /// A page without the Hub's headers.
    Html,
    /// A page with them.
    HtmlAsFile,
}

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub path: String,
    pub token: Option<String>,
    /// Where its range begins, unless it only asks for the size.
    pub from: Option<usize>,
}

pub struct Server {
    pub endpoint: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

pub const BODY: &[u8] = &[42; 100_000];
const PAGE: &[u8] = b"\n<!DOCTYPE html><html>please log in</html>";

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

impl Server {
    pub fn start(trick: Trick) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, trick, &log);
            }
        });
        Self { endpoint, seen }
    }
}

fn answer(mut stream: TcpStream, trick: Trick, log: &Mutex<Vec<Seen>>) {
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
        log.push(Seen { path, token, from });
        log.iter().filter(|seen| seen.from.is_some()).count() <= 1
    };
    let mut send = |head: &str, body: &[u8]| {
        // the client may have gone; the test's own checks tell
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
        Trick::HtmlAsFile => PAGE,
        _ => BODY,
    };
    let etag = match trick {
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
    let mut head = format!(
        "{}\r\nx-repo-commit: abc\r\nx-linked-etag: \"{etag}\"\r\nContent-Range: bytes {from}-{}/{all}\r\n",
        if anew { "200 OK" } else { "206 Part" },
        end - 1
    );
    if trick != Trick::EndEarly {
        head += &format!("Content-Length: {}\r\n", part.len());
    }
    send(&head, &part[..cut]);
}
