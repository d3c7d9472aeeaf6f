use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A day of the Gregorian calendar: `2024-02-29`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: wanted: a date as YYYY-MM-DD, e.g. 2026-11-30");
        let parts: Vec<&str> = text.split('-').collect();
        let digits = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        if lengths != [4, 2, 2] || !parts.iter().all(digits) {
            return Err(wrong());
        }
        let numbers: Vec<u32> = parts.iter().filter_map(|part| part.parse().ok()).collect();
        let [year, month, day] = numbers[..] else {
            return Err(wrong());
        };
        let date = Self { year, month, day };
        let there =
            year > 0 && (1..=12).contains(&month) && (1..=date.days_of(month)).contains(&day);
        there.then_some(date).ok_or_else(wrong)
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
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Date {
    fn days_of(self, month: u32) -> u32 {
        let leap = self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// Day of the year, from 1.
    fn of_year(self) -> u32 {
        (1..self.month)
            .map(|month| self.days_of(month))
            .sum::<u32>()
            + self.day
    }

    /// Day of the week, from Sunday: January 1 of year 1 was a Monday.
    fn weekday(self) -> usize {
        let years = self.year - 1;
        let before = years * 365 + years / 4 - years / 100 + years / 400;
        ((before + self.of_year()) % 7) as usize
    }

    /// The date as Python's `strftime` writes it, at 0:00.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let (month, day) = (MONTHS[self.month as usize - 1], DAYS[self.weekday()]);
        let Self {
            year,
            month: m,
            day: d,
        } = self;
        let mut out = String::new();
        let mut rest = format;
        while let Some((before, code)) = rest.split_once('%') {
            out += before;
            let length = if code.starts_with('-') { 2 } else { 1 };
            let end = code
                .char_indices()
                .nth(length)
                .map_or(code.len(), |(at, _)| at);
            let (code, after) = code.split_at(end);
            rest = after;
            out += &match code {
                "Y" => format!("{year}"),
                "y" => format!("{:02}", year % 100),
                "m" => format!("{m:02}"),
                "-m" => format!("{m}"),
                "d" => format!("{d:02}"),
                "-d" => format!("{d}"),
                "e" => format!("{d:2}"),
                "j" => format!("{:03}", self.of_year()),
                "B" => month.into(),
                "b" | "h" => month[..3].into(),
                "A" => day.into(),
                "a" => day[..3].into(),
                "F" => format!("{year}-{m:02}-{d:02}"),
                "D" => format!("{m:02}/{d:02}/{:02}", year % 100),
                "H" | "M" | "S" => "00".into(),
                "I" => "12".into(),
                "p" => "AM".into(),
                "T" => "00:00:00".into(),
                "R" => "00:00".into(),
                "%" => "%".into(),
                other => {
                    return Err(format!(
                        "it writes the date with `%{other}`, which is not known here"
                    ));
                }
            };
        }
        Ok(out + rest)
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
        ] {
            let error = text.parse::<Date>().unwrap_err();
            assert!(error.contains("YYYY-MM-DD"), "{error}");
        }
    }
}
