//! Golden runs: repeats the updates of a student that another implementation trained.

use std::collections::BTreeMap;

use abkd_data::{Sequence, collate};
use abkd_losses::{Divergence, Fidelity};
use abkd_models::LanguageModel;
use serde::Deserialize;

use super::{Golden, SMALL, largest};
use crate::methods::Loss;
use crate::step::{StepReport, Teacher, Term, Update, update};
use crate::timing::Phases;
use crate::{Error, optim};

/// A batch of a golden run: inputs and their next-token labels, -100 where no label counts.
#[derive(Deserialize)]
pub(super) struct GoldenBatch {
    input_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<i64>>,
    #[serde(default)]
    attention_mask: Option<Vec<Vec<u8>>>,
}

/// An update of a golden run.
#[derive(Deserialize)]
pub(super) struct Entry {
    loss: f64,
    grad_norm: f64,
    lr: f64,
}

impl GoldenBatch {
    /// The sequences, each up to its last label; labels must be the next tokens, without a gap.
    fn sequences(
        &self,
        golden: &Golden,
        vocab: usize,
        positions: usize,
    ) -> Result<Vec<Sequence>, Error> {
        let rows = self.input_ids.len();
        golden.same_length("labels", rows, self.labels.len())?;
        if let Some(mask) = &self.attention_mask {
            golden.same_length("attention_mask", rows, mask.len())?;
        }
        let sequence = |example: usize| {
            let (ids, labels) = (&self.input_ids[example], &self.labels[example]);
            golden.same_length("a row of labels", ids.len(), labels.len())?;
            let counted: Vec<usize> = (0..labels.len()).filter(|&t| labels[t] >= 0).collect();
            let (Some(&first), Some(&last)) = (counted.first(), counted.last()) else {
                return Err(Error::checkpoint(golden.path, "a sequence has no label"));
            };
            golden.ensure(last < positions, || {
                format!(
                    "a sequence has {} inputs, the models have {positions} positions",
                    last + 1
                )
            })?;
            let tokens = ids[..=last].iter().map(|&t| i64::from(t));
            let tokens: Option<Vec<u32>> = tokens
                .chain([labels[last]])
                .map(|t| u32::try_from(t).ok().filter(|&t| (t as usize) < vocab))
                .collect();
            let tokens = tokens.ok_or_else(|| {
                let reason = format!("a token is not below {vocab}, the size of the vocabulary");
                Error::checkpoint(golden.path, reason)
            })?;
            let follow = (first..=last).all(|t| labels[t] == i64::from(tokens[t + 1]));
            golden.ensure(follow, || {
                "labels must be the next tokens, without a gap".into()
            })?;
            if let Some(mask) = &self.attention_mask {
                let real = mask[example].iter().take_while(|&&m| m == 1).count();
                golden.ensure(last < real, || "a label lies in the padding".into())?;
            }
            Ok(Sequence {
                example,
                tokens,
                prompt_len: first + 1,
            })
        };
        (0..rows).map(sequence).collect()
    }
}

/// A golden run of distillation.
pub(super) struct GoldenRun<'a> {
    pub batches: &'a [GoldenBatch],
    pub log: &'a [Entry],
    pub lr: f64,
    pub loss: Loss,
    /// Tolerance of the losses and gradient norms.
    pub tolerance: f64,
    /// Whether the tolerance is relative.
    pub relative: bool,
}

impl GoldenRun<'_> {
    /// Repeats the run (AdamW, weight decay 0.01, cosine to 1e-7, global norm 1) and compares every step.
    pub(super) fn repeat(
        &self,
        golden: &mut Golden,
        teacher: &LanguageModel,
        mut student: LanguageModel,
    ) -> Result<LanguageModel, Error> {
        golden.same_length("log", self.batches.len(), self.log.len())?;
        golden.not_empty("batches", self.batches)?;
        let mut optimizer = optim::adamw(&student, 0.01, 0.999);
        let configs = [student.config(), teacher.config()];
        let [vocab, other] = configs.each_ref().map(|c| c.vocab_size());
        golden.ensure(vocab == other, || {
            format!("the student has a vocabulary of {vocab} tokens, the teacher of {other}")
        })?;
        let positions = configs[0].max_positions().min(configs[1].max_positions());
        for (i, (data, entry)) in self.batches.iter().zip(self.log).enumerate() {
            let sequences = data.sequences(golden, vocab, positions)?;
            golden.not_empty(&format!("batches[{i}]"), &sequences)?;
            let rate = optim::cosine(i, self.log.len(), self.lr, 1e-7);
            let terms = [Term {
                batch: collate(&sequences.iter().collect::<Vec<_>>()),
                objective: self.loss.objective(1.0),
                weight: 1.0,
                from_data: false,
            }];
            let how = Update {
                learning_rate: rate,
                max_grad_norm: 1.0,
                micro_batch_size: None,
                parallel_micro_batches: 1,
                gradient_checkpointing: false,
                seed: i as u64,
                step: i,
            };
            let teacher = Some(Teacher {
                model: teacher,
                cache: None,
            });
            let report: StepReport;
            let none = Phases::default();
            let done = update(student, &mut optimizer, teacher, &terms, &how, none);
            (student, report) = golden.computed(&format!("step {}", i + 1), done)?;
            for (what, ours, theirs) in [
                ("loss", report.loss, entry.loss),
                ("gradient norm", report.grad_norm, entry.grad_norm),
            ] {
                let scale = if self.relative {
                    largest([theirs, SMALL].into_iter())
                } else {
                    1.0
                };
                let error = (ours - theirs).abs() / scale;
                golden.check(format!("step {}: {what}", i + 1), error, self.tolerance);
            }
            let name = format!("step {}: learning rate", i + 1);
            golden.check(name, (rate - entry.lr).abs(), 1e-8);
        }
        Ok(student)
    }
}

/// The divergence of a golden run by its id and parameters, in its default form unless `fidelity` names another.
pub(super) fn golden_loss(
    golden: &Golden,
    id: &str,
    params: &BTreeMap<String, f64>,
    fidelity: Option<&str>,
) -> Result<Loss, Error> {
    let named = |e: abkd_losses::Error| Error::checkpoint(golden.path, e);
    let mut loss = Loss::new(Divergence::from_parts(id, params).map_err(named)?);
    if let Some(form) = fidelity {
        loss.fidelity = form.parse::<Fidelity>().map_err(named)?;
    }
    Ok(loss)
}
