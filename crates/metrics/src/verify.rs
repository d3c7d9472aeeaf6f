//! Compares this crate with a golden file: `{"cases": [{"prediction", "references", "rougeL_f",
//! "rougeL_p", "rougeL_r", "exact_match"}]}`, the three lists with one value for each reference.

use std::path::Path;

use abkd_host::files;
use serde::Deserialize;

use crate::Error;
use crate::exact_match::exact_match_max;
use crate::rouge::rouge_l;

/// Longest text of a case in bytes: the time of ROUGE-L grows with the product of two lengths.
const LONGEST: usize = 1 << 16;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prediction: String,
    references: Vec<String>,
    #[serde(rename = "rougeL_f")]
    f1: Vec<f64>,
    #[serde(rename = "rougeL_p")]
    precision: Vec<f64>,
    #[serde(rename = "rougeL_r")]
    recall: Vec<f64>,
    exact_match: f64,
}

/// For every case of a golden file, in its order: the name (`case 1`, ...) and the largest absolute
/// error over precision, recall and F1 against each reference, and exact match.
///
/// # Errors
///
/// When the file cannot be read, has another format or no case, or when a case has no reference or not one score for
/// each.
pub fn verify_rouge(path: &Path) -> Result<Vec<(String, f64)>, Error> {
    let text = files::read(path, files::TEXT_LIMIT).map_err(|source| Error::Io {
        path: path.into(),
        source,
    })?;
    let golden: Golden = serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.into(),
        source,
    })?;
    if golden.cases.is_empty() {
        return Err(Error::NoCases { path: path.into() });
    }
    let named = golden.cases.iter().enumerate();
    named
        .map(|(i, case)| {
            let name = format!("case {}", i + 1);
            case.check(path, &name)?;
            Ok((name, case.error()))
        })
        .collect()
}

impl Case {
    /// Refuses a case whose parts do not belong together.
    fn check(&self, path: &Path, name: &str) -> Result<(), Error> {
        let fail = |what: String| Error::Case {
            path: path.into(),
            case: name.to_owned(),
            what,
        };
        if self.references.is_empty() {
            return Err(fail(
                "`references` is empty: there is nothing to check".into(),
            ));
        }
        let mut texts = self.references.iter().chain([&self.prediction]);
        if let Some(text) = texts.find(|t| t.len() > LONGEST) {
            let len = text.len();
            return Err(fail(format!(
                "a text of {len} bytes; {LONGEST} are the most"
            )));
        }
        let expected = self.references.len();
        let lists = [
            ("rougeL_f", &self.f1),
            ("rougeL_p", &self.precision),
            ("rougeL_r", &self.recall),
        ];
        match lists.into_iter().find(|(_, list)| list.len() != expected) {
            None => Ok(()),
            Some((key, list)) => Err(fail(format!(
                "`{key}` has {} values, `references` has {expected}",
                list.len()
            ))),
        }
    }

    fn error(&self) -> f64 {
        let exact_match = exact_match_max(&self.prediction, &self.references);
        let mut errors = vec![exact_match - self.exact_match];
        let golden = self.f1.iter().zip(&self.precision).zip(&self.recall);
        for (reference, ((f1, precision), recall)) in self.references.iter().zip(golden) {
            let score = rouge_l(&self.prediction, reference);
            errors.extend([
                score.f1 - f1,
                score.precision - precision,
                score.recall - recall,
            ]);
        }
        // `f64::max` would drop a NaN.
        let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        errors.into_iter().map(f64::abs).fold(0.0, larger)
    }
}
