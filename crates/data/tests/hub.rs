//! Fetching from a small server that imitates the Hub.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use abkd_data::Error;
use abkd_data::hub::{Hub, Progress, RepoKind, Request, WantedFile};
use server::{BODY, Seen, Server, Trick, hash};

#[path = "hub/server.rs"]
mod server;

struct Case {
    dir: tempfile::TempDir,
    hub: Hub,
    server: Server,
    file: WantedFile,
}

impl Case {
    fn new(trick: Trick) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(trick);
        let hub = Hub {
            endpoint: server.endpoint.clone(),
            token: Some("secret".into()),
            cache: dir.path().join("cache"),
            timeout: Duration::from_millis(700),
        };
        let file = WantedFile {
            name: "11_/valid.jsonl".into(),
            ..WantedFile::default()
        };
        Self {
            dir,
            hub,
            server,
            file,
        }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("data/sinst/11_/valid.jsonl")
    }

    fn blobs(&self) -> PathBuf {
        self.hub.cache.join("datasets--MiniLLM--sinst/blobs")
    }

    /// Writes a part of the file into the cache, as a killed process leaves it.
    fn leave_part(&self, bytes: &[u8]) {
        fs::create_dir_all(self.blobs()).unwrap();
        let path = self.blobs().join(hash(BODY)).with_extension("part");
        fs::write(path, bytes).unwrap();
    }

    fn request(&self) -> Request {
        Request {
            repo: "MiniLLM/sinst".into(),
            kind: RepoKind::Dataset,
            revision: None,
            files: vec![self.file.clone()],
        }
    }

    /// Fetches the file; returns (bytes done, total bytes) of each report.
    fn fetch(&self) -> Result<Vec<(u64, u64)>, String> {
        let mut reports = Vec::new();
        let folder = self.dir.path().join("data/sinst");
        let result = self
            .hub
            .fetch(&self.request(), &folder, &mut |p: Progress| {
                assert_eq!(p.file, "11_/valid.jsonl");
                reports.push((p.done, p.total));
            });
        if let Ok(paths) = &result {
            assert_eq!(paths, &[self.target()]);
            assert_eq!(fs::read(self.target()).unwrap(), BODY);
            let beside = fs::read_dir(self.target().parent().unwrap()).unwrap();
            assert_eq!(beside.count(), 1, "no partial file is left");
        }
        result.map(|_| reports).map_err(|e| e.to_string())
    }

    /// The error of a failed fetch, which must not leave the file.
    fn fails(&self) -> String {
        let error = self.fetch().unwrap_err();
        assert!(!self.target().exists());
        assert!(error.contains("MiniLLM/sinst"), "{error}");
        let url = format!("{}/datasets/MiniLLM/sinst/resolve/main", self.hub.endpoint);
        assert!(error.contains(&url), "{error}");
        error
    }

    fn seen(&self) -> Vec<Seen> {
        self.server.seen.lock().unwrap().clone()
    }

    /// Start byte of each transfer.
    fn transfers(&self) -> Vec<usize> {
        self.seen().into_iter().filter_map(|s| s.from).collect()
    }
}

#[test]
fn a_file_is_fetched_once() {
    let mut case = Case::new(Trick::Honest);
    case.file.sha256 = Some(hash(BODY).to_uppercase());
    case.file.size = Some(BODY.len() as u64);
    let reports = case.fetch().unwrap();
    assert_eq!(reports[0], (0, 100_000));
    assert_eq!(reports.last(), Some(&(100_000, 100_000)));
    let before = case.seen();
    let path = "/datasets/MiniLLM/sinst/resolve/main/11_/valid.jsonl";
    assert!(before.iter().all(|s| s.path == path), "{before:?}");
    let token = Some("Bearer secret".to_owned());
    assert!(before.iter().all(|s| s.token == token), "{before:?}");
    assert_eq!(case.fetch(), Ok(vec![]));
    assert_eq!(case.seen(), before, "what is there is not asked for");
    fs::remove_file(case.target()).unwrap();
    assert_eq!(case.fetch(), Ok(vec![]));
    assert_eq!(case.seen(), before, "nor is what the cache has");
}

#[test]
fn several_files_come_from_a_tag_of_a_model() {
    let case = Case::new(Trick::Small);
    let names = ["config.json", "model.safetensors"];
    let request = Request {
        repo: "openai-community/gpt2".into(),
        kind: RepoKind::Model,
        revision: Some("refs/pr/1".into()),
        files: names
            .map(|name| WantedFile {
                name: name.into(),
                ..WantedFile::default()
            })
            .into(),
    };
    let other = Request {
        revision: Some("0123456789".repeat(4)),
        ..request.clone()
    };
    let error = case.hub.fetch(&other, case.dir.path(), &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("answers with commit abc"), "{error}");
    case.server.seen.lock().unwrap().clear();
    let folder = case.dir.path().join("gpt2");
    let paths = case.hub.fetch(&request, &folder, &mut |_| {}).unwrap();
    assert_eq!(paths, names.map(|n| folder.join(n)));
    let asked: BTreeSet<String> = case.seen().into_iter().map(|s| s.path).collect();
    let url = |name| format!("/openai-community/gpt2/resolve/refs%2Fpr%2F1/{name}");
    assert_eq!(asked, names.map(url).into());
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    for trick in [Trick::Break, Trick::EndEarly] {
        let case = Case::new(trick);
        let error = case.fails();
        assert!(
            error.contains("run the command again, it goes on"),
            "{error}"
        );
        let reports = case.fetch().unwrap();
        assert_eq!(reports[0], (50_000, 100_000));
        assert_eq!(reports.last(), Some(&(100_000, 100_000)));
        assert_eq!(case.transfers(), [0, 50_000]);
    }
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let case = Case::new(Trick::BreakThenAnew);
    case.fails();
    let reports = case.fetch().unwrap();
    assert_eq!(reports[0], (0, 100_000));
    assert_eq!(case.transfers(), [0, 50_000]);
}

#[test]
fn parts_of_killed_programs_do_not_block() {
    let case = Case::new(Trick::Honest);
    case.leave_part(BODY);
    case.fetch().unwrap();
    assert!(case.transfers().is_empty(), "nothing is missing");
    let case = Case::new(Trick::Honest);
    case.leave_part(&[BODY, b"and more"].concat());
    case.fetch().unwrap();
    assert_eq!(case.transfers(), [0]);
    let case = Case::new(Trick::Honest);
    case.leave_part(&[7; 100_000]);
    assert!(case.fails().contains("it was removed"));
    case.fetch().unwrap();
}

#[test]
fn a_wrong_hash_or_size_never_reaches_the_target() {
    let case = Case::new(Trick::WrongHash);
    let error = case.fails();
    let says = format!(
        "hash {}, it should have {}",
        hash(BODY),
        hash(b"something else")
    );
    assert!(
        error.contains(&says) && error.contains("it was removed"),
        "{error}"
    );
    assert!(!case.blobs().join(hash(b"something else")).exists());

    let mut case = Case::new(Trick::Small);
    case.file.sha256 = Some(hash(b"wanted"));
    let error = case.fails();
    assert!(error.contains(&hash(b"wanted")), "{error}");
    case.file.sha256 = Some(hash(BODY));
    case.file.size = Some(3);
    let error = case.fails();
    assert!(error.contains("100000 bytes, it should have 3"), "{error}");
}

#[test]
fn a_wrong_file_in_the_target_is_left_alone() {
    let mut case = Case::new(Trick::Honest);
    fs::create_dir_all(case.target().parent().unwrap()).unwrap();
    fs::write(case.target(), "mine").unwrap();
    case.file.sha256 = Some(hash(BODY));
    let error = case.fetch().unwrap_err();
    assert!(error.contains("valid.jsonl: the file has hash"), "{error}");
    assert!(error.contains("remove it and run"), "{error}");
    assert_eq!(fs::read(case.target()).unwrap(), b"mine");
    assert!(case.seen().is_empty());
}

#[test]
fn a_damaged_cache_is_fetched_anew() {
    let case = Case::new(Trick::Honest);
    case.fetch().unwrap();
    fs::remove_file(case.target()).unwrap();
    fs::write(case.blobs().join(hash(BODY)), "damage").unwrap();
    case.fetch().unwrap();
    assert_eq!(case.transfers(), [0, 0]);
}

#[test]
fn refusals_say_what_to_do() {
    for (trick, says) in [
        (
            Trick::Status(404, "EntryNotFound"),
            "no file 11_/valid.jsonl at revision main",
        ),
        (
            Trick::Status(404, ""),
            "no file 11_/valid.jsonl at revision main",
        ),
        (Trick::Status(404, "RevisionNotFound"), "no revision main"),
        (
            Trick::Status(404, "RepoNotFound"),
            "there is no MiniLLM/sinst",
        ),
        (Trick::Status(401, "RepoNotFound"), "HF_TOKEN"),
        (Trick::Status(403, "GatedRepo"), "accept its licence"),
        (Trick::Status(429, ""), "wait some minutes"),
        (Trick::Status(503, ""), "status 503"),
        (Trick::Html, "not the Hub's"),
        (Trick::HtmlAsFile, "a page in HTML came instead"),
    ] {
        let case = Case::new(trick);
        let error = case.fails();
        assert!(error.contains(says), "{error}");
        let kept = fs::read_dir(case.blobs()).into_iter().flatten();
        let kept = kept.filter(|e| e.as_ref().unwrap().path().extension().is_none());
        assert_eq!(kept.count(), 0, "no blob stays");
    }
}

#[test]
fn a_file_that_a_repository_lacks_is_an_error_of_its_own() {
    for (said, lacks) in [
        ("EntryNotFound", true),
        ("", true),
        ("RevisionNotFound", false),
        ("RepoNotFound", false),
    ] {
        let case = Case::new(Trick::Status(404, said));
        let fetched = case
            .hub
            .fetch(&case.request(), case.dir.path(), &mut |_| {});
        let error = fetched.unwrap_err();
        assert_eq!(matches!(error, Error::NoFile { .. }), lacks, "{error}");
    }
}

#[test]
fn no_network_is_named() {
    let mut case = Case::new(Trick::Honest);
    // a port that was just closed
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    case.hub.endpoint = format!("http://{}", free.unwrap());
    let error = case.fails();
    assert!(error.contains("cannot be reached"), "{error}");
    assert!(error.contains("HF_ENDPOINT"), "{error}");
}

/// Every file below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_name_leads_out_of_the_target() {
    let mut case = Case::new(Trick::Honest);
    for name in [
        "../valid.jsonl",
        "/etc/x",
        "a/../../x",
        "",
        ".",
        "a/",
        "a//b",
        "./a",
    ] {
        case.file.name = name.into();
        let error = case.fetch().unwrap_err();
        assert!(error.contains(&format!("`{name}` is no path")), "{error}");
    }
    let fetch = |repo: &str, revision: &str| {
        let request = Request {
            repo: repo.into(),
            kind: RepoKind::Model,
            revision: Some(revision.into()),
            files: vec![WantedFile {
                name: "config.json".into(),
                ..WantedFile::default()
            }],
        };
        let result = case.hub.fetch(&request, case.dir.path(), &mut |_| {});
        result.unwrap_err().to_string()
    };
    for repo in ["", "..", "../..", "a/b/c", "/etc", "a b", "a?b"] {
        assert!(fetch(repo, "main").contains("is no repository"), "{repo}");
    }
    for revision in ["", "..", "../../../x", "/etc/x", "a//b", "a\nb"] {
        let error = fetch("a/b", revision);
        assert!(error.contains("is no revision"), "{error}");
    }
    assert!(case.seen().is_empty());
    assert!(below(case.dir.path()).is_empty());
}

/// With hf-hub 0.4 the first of these names wrote outside the cache, and others caused a panic.
#[test]
fn names_that_a_server_gives_stay_in_the_cache() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    fs::write(&precious, "mine").unwrap();
    let absolute: &'static str = precious.to_str().unwrap().to_owned().leak();
    for name in [
        absolute,
        "/",
        "..",
        ".",
        "../../../precious",
        "a/b",
        "a\\b",
        "a.lock",
        "a b",
        "\u{fc}",
        "\t",
        "",
    ] {
        for trick in [Trick::Etag(name), Trick::Commit(name)] {
            let case = Case::new(trick);
            let error = case.fails();
            assert!(error.contains("not the Hub's"), "{name:?}: {error}");
            assert!(case.transfers().is_empty(), "{name:?}");
            assert!(below(case.dir.path()).is_empty(), "{name:?}");
        }
    }
    assert_eq!(fs::read(&precious).unwrap(), b"mine");
    assert_eq!(below(outside.path()), [precious]);
}

#[test]
fn the_bytes_may_lie_on_another_server_which_gets_no_token() {
    let case = Case::new(Trick::Elsewhere);
    case.fetch().unwrap();
    assert!(case.seen().iter().all(|s| s.token.is_some()));
    let links = case.hub.cache.join("datasets--MiniLLM--sinst/snapshots");
    assert!(links.join("c0ffee/11_/valid.jsonl").exists());
    // The next fetch uses the cache, without a request.
    fs::remove_file(case.target()).unwrap();
    let asked = case.seen().len();
    case.fetch().unwrap();
    assert_eq!(case.seen().len(), asked);
}

#[test]
fn redirects_end() {
    for location in [
        "SELF",
        "/a",
        "//127.0.0.1:1/x",
        "file:///etc/passwd",
        "ftp://x/y",
        "",
    ] {
        let case = Case::new(Trick::To(location));
        let error = case.fails();
        let says = match location {
            "SELF" | "/a" => "redirects more than 5 times",
            "//127.0.0.1:1/x" => "cannot be reached",
            _ => "it redirects to",
        };
        assert!(error.contains(says), "{location}: {error}");
        assert!(case.seen().len() <= 6);
    }
}

#[test]
fn sizes_have_limits() {
    for (trick, says) in [
        (Trick::Size(u64::MAX), "disk of the cache has"),
        (Trick::Size(1 << 60), "disk of the cache has"),
        (Trick::Size(3), "more than the 3 bytes"),
    ] {
        let error = Case::new(trick).fails();
        assert!(error.contains(says), "{error}");
    }
    // Bytes after the announced size are ignored or refused.
    if let Err(error) = Case::new(Trick::TooMuch).fetch() {
        assert!(error.contains("more than the 100000 bytes"), "{error}");
    }
    let mut case = Case::new(Trick::Size(1 << 40));
    case.file.size = Some(BODY.len() as u64);
    let error = case.fails();
    assert!(error.contains("it should have 100000"), "{error}");
    assert!(case.transfers().is_empty());
}

#[test]
fn a_server_that_says_nothing_or_nonsense_is_given_up() {
    for (trick, says) in [
        (Trick::Silent, "cannot be reached"),
        (Trick::Headers, "cannot be reached"),
        (Trick::Noise, "cannot be reached"),
        (Trick::Drip, "less than 1 KiB a second"),
    ] {
        let start = Instant::now();
        let error = Case::new(trick).fails();
        assert!(error.contains(says), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{error}");
    }
}

#[test]
fn settings_that_are_none_are_named() {
    let mut case = Case::new(Trick::Honest);
    for endpoint in ["", "huggingface.co", "file:///etc", "http://", "http://a b"] {
        case.hub.endpoint = endpoint.into();
        let error = case.fetch().unwrap_err();
        assert!(error.contains("HF_ENDPOINT"), "{endpoint}: {error}");
    }
    case.hub.endpoint = case.server.endpoint.clone();
    case.hub.token = Some("a\nX-Other: b".into());
    let error = case.fails();
    assert!(
        error.contains("HF_TOKEN") && !error.contains("X-Other"),
        "{error}"
    );
    assert!(case.seen().is_empty());
}

#[cfg(unix)]
#[test]
fn what_is_no_file_in_the_place_of_one_is_refused() {
    let case = Case::new(Trick::Honest);
    fs::create_dir_all(case.target()).unwrap();
    assert!(case.fetch().unwrap_err().contains("folder"));
    let case = Case::new(Trick::Honest);
    fs::create_dir_all(case.blobs()).unwrap();
    let part = case.blobs().join(hash(BODY)).with_extension("part");
    let made = std::process::Command::new("mkfifo").arg(&part).status();
    if !made.is_ok_and(|s| s.success()) {
        println!("skipped: there is no mkfifo");
        return;
    }
    assert!(case.fetch().unwrap_err().contains("pipe"));
}
