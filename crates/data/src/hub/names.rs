//! Names that become parts of addresses and paths: those of the caller, and those in a server's answers.

use std::path::{Component, Path};

use super::RepoKind;

/// Longest name of a repository, of a revision or of a file in a repository, bytes.
const LONGEST: usize = 1024;
/// Longest hash that names a blob; a SHA-256 as ETag has 64 digits.
const LONGEST_HASH: usize = 128;

/// Whether a relative path stays inside its folder on every operating system.
fn is_inside(name: &str) -> bool {
    let good = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'))
    };
    name.len() <= LONGEST
        && name.split('/').all(good)
        && Path::new(name)
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
}

/// Refuses names that are no path inside a repository: they could lead out of the target folder.
pub(super) fn check_file(name: &str) -> Result<(), String> {
    if is_inside(name) {
        Ok(())
    } else {
        Err(format!("`{}` is no path inside a repository", shown(name)))
    }
}

/// Refuses a revision that is no path inside the cache's `refs`.
pub(super) fn check_revision(name: &str) -> Result<(), String> {
    if is_inside(name) {
        Ok(())
    } else {
        Err(format!(
            "`{}` is no revision: a branch, a tag or a commit belongs here",
            shown(name)
        ))
    }
}

/// Refuses names that are neither `owner/name` nor `name`.
pub(super) fn check_repo(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if is_inside(name) && name.chars().all(plain) && name.split('/').count() <= 2 {
        Ok(())
    } else {
        Err(format!(
            "`{}` is no repository on the Hub: `owner/name` belongs here",
            shown(name)
        ))
    }
}

/// The hash in an ETag, without quotes. It becomes a file name in the cache, so only letters, digits, `-` and `_` are
/// allowed: no hash leads to another folder.
pub(super) fn hash_of_etag(etag: &str) -> Option<&str> {
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    let quoted = etag.strip_prefix('"').and_then(|e| e.strip_suffix('"'));
    let hash = quoted.unwrap_or(etag);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    ((1..=LONGEST_HASH).contains(&hash.len()) && hash.bytes().all(plain)).then_some(hash)
}

/// Whether a name can be a commit; it becomes a folder name in the cache.
pub(super) fn is_commit(name: &str) -> bool {
    (1..=LONGEST_HASH).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The folder of a repository in the cache, as Python's `huggingface_hub` names it.
pub(super) fn folder(kind: RepoKind, repo: &str) -> String {
    let kind = match kind {
        RepoKind::Model => "models",
        RepoKind::Dataset => "datasets",
    };
    format!("{kind}--{}", repo.replace('/', "--"))
}

/// Address of a file.
pub(super) fn url(
    endpoint: &str,
    kind: RepoKind,
    repo: &str,
    revision: &str,
    file: &str,
) -> String {
    let kind = match kind {
        RepoKind::Model => "",
        RepoKind::Dataset => "datasets/",
    };
    let file: Vec<String> = file.split('/').map(encoded).collect();
    format!(
        "{}/{kind}{repo}/resolve/{}/{}",
        endpoint.trim_end_matches('/'),
        encoded(revision),
        file.join("/")
    )
}

/// Percent-encodes a part of an address.
fn encoded(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}

/// The start of an untrusted text for a message, with control characters escaped.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short.escape_debug().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_elsewhere() {
        for name in [
            "", ".", "..", "a/..", "../a", "/a", "a//b", "a/", "a/./b", "a\\b", "C:x", "a\0b",
            "a\nb",
        ] {
            assert!(check_file(name).is_err(), "{name:?}");
            assert!(check_revision(name).is_err(), "{name:?}");
            assert!(check_repo(name).is_err(), "{name:?}");
        }
        assert!(check_file(&"a".repeat(1025)).is_err());
        for name in ["config.json", "11_/valid.jsonl", "a b/ü.txt", "..a", "a..b"] {
            assert!(check_file(name).is_ok(), "{name:?}");
        }
        assert!(check_revision("refs/pr/1").is_ok());
        assert!(check_repo("gpt2").is_ok() && check_repo("MiniLLM/sinst").is_ok());
        assert!(check_repo("a/b/c").is_err() && check_repo("a b").is_err());
    }

    #[test]
    fn a_hash_has_letters_and_digits() {
        let digits = "0a".repeat(32);
        for etag in [
            digits.clone(),
            format!("\"{digits}\""),
            format!("W/\"{digits}\""),
        ] {
            assert_eq!(hash_of_etag(&etag), Some(&digits[..]));
        }
        assert_eq!(hash_of_etag("\"5e8f-1a_b\""), Some("5e8f-1a_b"));
        let long = "a".repeat(129);
        for etag in [
            "",
            "\"\"",
            ".",
            "..",
            "/etc/passwd",
            "../../x",
            "a/b",
            "a\\b",
            "a.lock",
            "a b",
            "\"",
            "ü",
            "a\"b",
            &long,
        ] {
            assert_eq!(hash_of_etag(etag), None, "{etag:?}");
        }
        assert!(is_commit("0123abc"));
        for commit in ["", "..", "/tmp", "a/b", "a.b", "a\n"] {
            assert!(!is_commit(commit), "{commit:?}");
        }
    }

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(
            url(
                "http://x/",
                RepoKind::Dataset,
                "a/b",
                "refs/pr/1",
                "c d/e?.json"
            ),
            "http://x/datasets/a/b/resolve/refs%2Fpr%2F1/c%20d/e%3F.json"
        );
        assert_eq!(
            url("http://x", RepoKind::Model, "gpt2", "main", "config.json"),
            "http://x/gpt2/resolve/main/config.json"
        );
        assert_eq!(shown("a\x1b[31mb"), "a\\u{1b}[31mb");
    }
}
