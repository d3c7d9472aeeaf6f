//! The generalized Jensen divergence against three implementations.

use std::path::Path;

use abkd_losses::{Divergence, Fidelity};
use abkd_models::verify::Check;
use burn::tensor::Device;
use serde::Deserialize;

use super::{Golden, gather, mean_loss, rows_of_logits, spread};
use crate::Error;
use crate::head::Objective;
use crate::methods::gkd::GkdSettings;

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
    #[serde(default)]
    default_lam: Option<DefaultLam>,
}

#[derive(Deserialize)]
struct DefaultLam {
    abkd: f64,
}

#[derive(Deserialize)]
struct Case {
    vocab: usize,
    student_logits: Vec<f64>,
    teacher_logits: Vec<f64>,
    labels: Vec<i64>,
    results: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    code: String,
    #[serde(default)]
    beta: Option<f64>,
    #[serde(default)]
    lam: Option<f64>,
    value: f64,
    grad: Vec<f64>,
}

/// Compares values and gradients of `gjsd.json`, and GKD's default weight with that of the ABKD code.
///
/// # Errors
///
/// When the file cannot be read or has another format.
pub fn verify_gjsd(path: &Path, device: &Device) -> Result<Vec<Check>, Error> {
    let (mut golden, file) = Golden::read::<File>(path)?;
    golden.not_empty("cases", &file.cases)?;
    for (i, case) in file.cases.iter().enumerate() {
        let (n, vocab) = (case.labels.len(), case.vocab);
        let place = |what: &str| format!("case {}: {what}", i + 1);
        for (what, logits) in [
            ("student_logits", &case.student_logits),
            ("teacher_logits", &case.teacher_logits),
        ] {
            golden.logits(&place(what), logits, n, vocab)?;
        }
        let (counted, labels) = golden.labels(&place("labels"), &case.labels, vocab)?;
        golden.not_empty(&place("results"), &case.results)?;
        let rows = |logits| rows_of_logits(gather(logits, &counted, vocab), vocab, device);
        let (student, teacher) = (rows(&case.student_logits), rows(&case.teacher_logits));
        for entry in &case.results {
            let divergence = match (entry.code.as_str(), entry.beta, entry.lam) {
                // At beta 0 and 1 TRL uses the plain KL divergences.
                ("trl", Some(0.0), None) => Divergence::forward_kl(),
                ("trl", Some(1.0), None) => Divergence::reverse_kl(),
                ("trl", Some(beta), None) => Divergence::jensen(1.0 - beta),
                ("abkd" | "distillm", None, Some(lambda)) => Divergence::jensen(lambda),
                _ => {
                    let reason = format!(
                        "code `{}`: known are trl with beta, abkd and distillm with lam",
                        entry.code
                    );
                    return Err(Error::checkpoint(path, reason));
                }
            };
            divergence
                .validate()
                .map_err(|e| Error::checkpoint(path, e))?;
            let objective = Objective::Distill {
                divergence,
                fidelity: Fidelity::Paper,
                kd_ratio: 1.0,
            };
            let computed = mean_loss(&objective, &student, &teacher, &labels);
            let (value, grad) = golden.computed(&place(&entry.code), computed)?;
            let weight = entry.beta.map_or_else(
                || format!("lam {}", entry.lam.unwrap_or_default()),
                |beta| format!("beta {beta}"),
            );
            let name = |what| format!("case {} {} {weight}: {what}", i + 1, entry.code);
            golden.compare(name("value"), &[value], &[entry.value], 1e-5)?;
            let grad = spread(&grad, &counted, n, vocab);
            golden.compare(name("gradient"), &grad, &entry.grad, 1e-5)?;
        }
    }
    if let Some(theirs) = file.default_lam {
        let settings: GkdSettings = serde_json::from_str("{}").expect("all have defaults");
        let ours = settings.default_loss().divergence.param("lambda");
        let ours = ours.expect("GKD's divergence is Jensen's");
        let name = "default weight of GKD".to_owned();
        golden.check(name, (ours - theirs.abkd).abs(), 1e-9);
    }
    golden.finish()
}
