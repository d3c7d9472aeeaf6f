use std::fmt;
use std::str::FromStr;

use chrono::{Datelike, NaiveDate, NaiveTime};
use serde::{Deserialize, Serialize};

/// A day of the Gregorian calendar: `2024-02-29`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date(NaiveDate);

/// Codes that chrono writes as Python does.
const CODES: [&str; 20] = [
    "y", "m", "-m", "d", "-d", "e", "j", "B", "b", "h", "A", "a", "D", "H", "M", "S", "I", "p",
    "T", "R",
];

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
        // chrono also reads signs, spaces and numbers of fewer digits.
        date.filter(|date| date.year() > 0 && text.len() == 10 && date.to_string() == text)
            .map(Self)
            .ok_or_else(|| format!("{text:?}: wanted: a date as YYYY-MM-DD, e.g. 2026-11-30"))
    }
}

impl TryFrom<String> for Date {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Date> for String {
    fn from(date: Date) -> Self {
        date.to_string()
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Date {
    /// The date as Python's `strftime` writes it, at 0:00.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let (mut checked, mut rest) = (String::new(), format);
        while let Some((before, after)) = rest.split_once('%') {
            let length = if after.starts_with('-') { 2 } else { 1 };
            let code: String = after.chars().take(length).collect();
            checked += before;
            checked += &match code.as_str() {
                // without zeros before a year of fewer digits
                "Y" => "%-Y".into(),
                "F" => "%-Y-%m-%d".into(),
                "%" => "%%".into(),
                known if CODES.contains(&known) => format!("%{known}"),
                other => {
                    return Err(format!(
                        "it writes the date with `%{other}`, which is not known here"
                    ));
                }
            };
            rest = &after[code.len()..];
        }
        let midnight = self.0.and_time(NaiveTime::MIN);
        Ok(midnight.format(&(checked + rest)).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_python_writes_it() {
        let date: Date = "2024-02-29".parse().unwrap();
        for (format, wanted) in [
            ("%d %b %Y", "29 Feb 2024"),
            ("%A, %B %-d, %y %%", "Thursday, February 29, 24 %"),
            ("%F %j %H:%M %I %p é", "2024-02-29 060 00:00 12 AM é"),
            ("%D  %T%R%e%h%-m", "02/29/24  00:00:0000:0029Feb2"),
        ] {
            assert_eq!(date.format(format).unwrap(), wanted);
        }
        assert!(date.format("%Q").unwrap_err().contains("%Q"));
        assert!(date.format("%").is_err());
        for (text, day) in [
            ("2026-11-30", "Mon"),
            ("2000-01-01", "Sat"),
            ("1900-03-01", "Thu"),
        ] {
            let date: Date = text.parse().unwrap();
            assert_eq!(date.format("%a").unwrap(), day, "{text}");
            assert_eq!(date.to_string(), text);
        }
        let early: Date = "0024-01-02".parse().unwrap();
        assert_eq!(early.format("%Y %F %e").unwrap(), "24 24-01-02  2");
        assert_eq!(early.to_string(), "0024-01-02");
    }

    #[test]
    fn days_that_are_none_are_refused() {
        for text in [
            "",
            "today",
            "2023-02-29",
            "2024-13-01",
            "2024-1-1",
            "0000-01-01",
            "2024-01-00",
            "24-01-01",
            "+024-01-01",
            "2024-001-1",
            " 2024-01-1",
        ] {
            let error = text.parse::<Date>().unwrap_err();
            assert!(error.contains("YYYY-MM-DD"), "{error}");
        }
    }
}
