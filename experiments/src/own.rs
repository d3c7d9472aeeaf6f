//! A user's own pair of models on the user's own data: `abkd distill`, `abkd eval` and `abkd generate`. None needs the
//! project's folder.
//!
//! `distill` trains nothing itself: it writes a profile and an experiment, which the runner runs, and puts what a user is
//! after in one place: the student, its curve, scores and some answers.

mod ask;
mod card;
mod distill;
mod files;
mod place;
mod scores;
mod source;

use abkd_data::Columns;
use abkd_losses::Divergence;

pub use ask::{Eval, Generate};
pub use distill::{Distill, Own};

use crate::suggest::with_nearest_key;

/// Longest sequence where the models have as many positions: the paper's.
const MAX_LENGTH: usize = 512;

/// Where prompts are cut, of sequences of this length: the paper's prompts have half of its 512.
fn prompt_length(max_length: usize) -> usize {
    (max_length / 2).max(1)
}

/// A divergence as the command line has it: `ID`, `ID:0.2,0.7` in the order of its formula, or `ID:alpha=0.2,beta=0.7`.
fn loss(text: &str) -> Result<Divergence, String> {
    let (id, numbers) = text.split_once(':').unwrap_or((text, ""));
    let of = |params: &_| Divergence::from_parts(id, params).map_err(|e| e.to_string());
    let names = of(&Default::default())?.params();
    let mut params = std::collections::BTreeMap::new();
    for (index, part) in numbers.split(',').enumerate() {
        if numbers.is_empty() {
            break;
        }
        let (name, number) = match part.split_once('=') {
            Some((name, number)) => (name.trim(), number),
            None => match names.get(index) {
                Some((name, _)) => (*name, part),
                None => return Err(format!("loss `{id}` has {} parameters", names.len())),
            },
        };
        let value = number.trim().parse::<f64>();
        let value = value.map_err(|_| format!("{name} = {:?}: not a number", number.trim()))?;
        if params.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    of(&params)
}

/// Names of columns as the command line has them.
fn columns(text: &str) -> Result<Columns, String> {
    text.parse()
        .map_err(|error: String| with_nearest_key(&error))
}

/// A file with the name that it has in scores.
fn named(text: &str) -> Result<(String, std::path::PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err("wanted: NAME=FILE, e.g. mine=test.jsonl".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_has_its_numbers_in_order_or_by_name() {
        let ab = |alpha, beta| Divergence::AlphaBeta { alpha, beta };
        for (text, wanted) in [
            ("ab", ab(0.2, 0.7)),
            ("ab:0.5,1", ab(0.5, 1.0)),
            ("ab:0.5", ab(0.5, 0.7)),
            ("ab:beta=0.1", ab(0.2, 0.1)),
            ("ab: beta = 0.1, alpha = 0.3", ab(0.3, 0.1)),
            ("fkld", Divergence::ForwardKl),
            ("wsd:0.25", Divergence::Wsd { weight: 0.25 }),
        ] {
            assert_eq!(loss(text), Ok(wanted), "{text}");
        }
        for (text, says) in [
            ("fkdl", "did you mean `fkld`"),
            ("", "unknown loss"),
            ("fkld:1", "has 0 parameters"),
            ("ab:1,2,3", "has 2 parameters"),
            ("ab:a=1", "no parameter `a`"),
            ("ab:x", "\"x\": not a number"),
            ("ab:0.1,alpha=0.2", "given twice"),
            ("wsd:2", "not a number in [0, 1]"),
            ("ab:nan", "alpha = NaN"),
        ] {
            let said = loss(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
