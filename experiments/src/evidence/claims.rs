//! The claims of a table, and the rule by which they are supported, refuted or left undecided.

use super::{Difference, OnSet};
use crate::results::Table;

/// Verdict on a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The row is above each row that it is claimed to be above, each time by more than chance.
    Supported,
    /// Some row that is claimed to be below it is above it by more than chance.
    Refuted,
    /// Neither.
    Undecided,
}

impl Verdict {
    /// Name as printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Refuted => "refuted",
            Self::Undecided => "undecided",
        }
    }
}

/// A claim and its verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The row that is claimed to be there.
    pub row: String,
    /// `first` or `second`.
    pub place: &'static str,
    /// Name of the data set; `None` for all.
    pub dataset: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// The numbers behind the verdict.
    pub reason: String,
}

/// Claims the places of the paper's first and second row on each set, and of its first over all.
pub(super) fn claims(sets: &[OnSet], paper: &Table) -> Vec<Claim> {
    let claims = sets.iter().flat_map(|set| {
        let (leaders, rest) = paper_order(set, sets, paper);
        let places = ["first", "second"].into_iter().zip(leaders);
        places.filter_map(move |(place, row)| match place {
            "first" => claim(set, row, place, &others(set, row)),
            _ => claim(set, row, place, &rest),
        })
    });
    claims.collect()
}

/// Claims that a row is first on each set.
pub(super) fn is_first(sets: &[OnSet], row: &str) -> Vec<Claim> {
    let having = sets
        .iter()
        .filter(|set| set.rows.iter().any(|r| r.row == row));
    let claims = having.filter_map(|set| claim(set, row, "first", &others(set, row)));
    claims.collect()
}

/// The claim that a row has a place, all others of which are `below`.
fn claim(set: &OnSet, row: &str, place: &'static str, below: &[&str]) -> Option<Claim> {
    if below.is_empty() {
        return None;
    }
    let (verdict, reason) = judge(set, row, below);
    Some(Claim {
        row: row.to_owned(),
        place,
        dataset: set.dataset.clone(),
        verdict,
        reason,
    })
}

fn others<'a>(set: &'a OnSet, without: &str) -> Vec<&'a str> {
    let rows = set.rows.iter().map(|r| r.row.as_str());
    rows.filter(|row| *row != without).collect()
}

/// The paper's first and second row among ours, unless tied, and the remaining rows.
fn paper_order<'a>(set: &'a OnSet, sets: &[OnSet], paper: &Table) -> (Vec<&'a str>, Vec<&'a str>) {
    let score = |row: &str| -> Option<f64> {
        let on = |name: &str| Some(paper.cell(row, name)?.rouge_l_mean);
        match &set.dataset {
            Some(name) => on(name),
            None => {
                let names = sets.iter().filter_map(|s| s.dataset.as_deref());
                let scores: Option<Vec<f64>> = names.map(on).collect();
                abkd_metrics::stats::mean(&scores?)
            }
        }
    };
    let mut scored: Vec<(&str, f64)> = set
        .rows
        .iter()
        .filter_map(|r| Some((r.row.as_str(), score(&r.row)?)))
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    // Over all sets, only the first place is claimed.
    let places = if set.dataset.is_some() { 2 } else { 1 };
    let mut leaders = Vec::new();
    for pair in scored.windows(2).take(places) {
        if pair[0].1 == pair[1].1 {
            break;
        }
        leaders.push(pair[0].0);
    }
    let rest = scored.iter().map(|(row, _)| *row);
    let rest = rest.filter(|row| !leaders.contains(row)).collect();
    (leaders, rest)
}

/// Whether `row` is above each of `below`.
fn judge(set: &OnSet, row: &str, below: &[&str]) -> (Verdict, String) {
    let mut leads: Vec<Difference> = below
        .iter()
        .filter_map(|other| set.difference(row, other))
        .collect();
    leads.sort_by(|a, b| a.mean.total_cmp(&b.mean));
    let Some(worst) = leads.first() else {
        return (Verdict::Undecided, "nothing to compare with".into());
    };
    if worst.losses.is_none() {
        let reason = format!(
            "{} here, with one training a row: how much trainings vary is unknown",
            told(worst)
        );
        return (Verdict::Undecided, reason);
    }
    if leads.iter().all(|d| d.mean > 0.0 && d.significant()) {
        return (Verdict::Supported, told(worst));
    }
    let above = leads.iter().filter(|d| d.mean < 0.0 && d.significant());
    let above: Vec<&Difference> = above.collect();
    if let Some(worst) = above.first() {
        let more = match above.len() {
            1 => String::new(),
            n => format!("; {n} rows in all are above it by more than chance"),
        };
        return (Verdict::Refuted, told(worst) + &more);
    }
    let beaten = leads.iter().filter(|d| d.mean > 0.0 && d.significant());
    let (beaten, mut reason) = (beaten.count(), told(worst));
    if beaten > 0 {
        reason += &format!("; above {beaten} of {} by more than chance", leads.len());
    }
    if let Some(detectable) = worst.detectable() {
        reason += &format!("; a difference of {detectable:.1} would be found");
    }
    let more = |n: &usize| worst.mean != 0.0 && *n > set.shape.trainings;
    if let Some(n) = worst.trainings.filter(more) {
        reason += &format!("; {n} trainings a row would decide between the two");
    }
    (Verdict::Undecided, reason)
}

/// `1.23 behind FKLD [0.20 to 2.30], p 0.021`
fn told(d: &Difference) -> String {
    let direction = if d.mean < 0.0 { "behind" } else { "ahead of" };
    let mut text = format!("{:.2} {direction} {}", d.mean.abs(), d.other);
    if let Some((estimate, p)) = &d.losses {
        let [low, high] = estimate.interval(super::LEVEL);
        text += &format!(" [{low:+.2}, {high:+.2}], p {}", super::write::p_text(*p));
    }
    text
}
