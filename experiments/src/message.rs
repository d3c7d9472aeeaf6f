//! Terminal output: errors, notes, the terminal's width.

use std::io::{IsTerminal, Write};

/// Prints a line on stderr. A closed terminal is no reason to stop: only the message is lost.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The chain of causes on one line; a cause already quoted by its error is not repeated.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
    }
    text
}

/// Width of the terminal in columns; `None` if stdout is no terminal.
pub fn terminal_width() -> Option<u16> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let (terminal_size::Width(width), _) = terminal_size::terminal_size_of(stdout)?;
    // A terminal that does not know its size says 0.
    Some(width).filter(|width| *width > 0)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.jsonl");
        let error = abkd_data::read_jsonl(&path)
            .context("the data")
            .unwrap_err();
        let text = describe(&error);
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
        assert!(text.starts_with("the data: "), "{text}");
    }
}
