//! The verdict, in words.

use std::fmt;

use abkd_losses::{Divergence, Fidelity};

use crate::Error;
use crate::averaging::{Averaging, averaging};
use crate::cases::{Case, FIRST, MASKED_TEACHER, MASKS, PARTS, TYPICAL, WHOLE};
use crate::identify::{Found, Identity, identify};
use crate::rows::cross_entropy;
use crate::theirs::{Answer, Answers};

/// Largest error of a right answer, relative to its largest entry.
const RIGHT: f64 = 1e-4;
/// The same where logits are in bfloat16.
const RIGHT_BF16: f64 = 2e-2;
/// Largest error of a weight of a token.
const WEIGHT: f64 = 1e-3;

/// What was found.
pub struct Verdict {
    lines: Vec<(Mark, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Says,
    Right,
    Wrong,
    Skipped,
}

impl Verdict {
    /// Whether a divergence was found, and nothing breaks.
    pub fn is_right(&self) -> bool {
        self.lines.iter().all(|(mark, _)| *mark != Mark::Wrong)
    }

    fn push(&mut self, mark: Mark, text: impl Into<String>) {
        self.lines.push((mark, text.into()));
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (mark, text) in &self.lines {
            let mark = match mark {
                Mark::Says => "      ",
                Mark::Right => "right ",
                Mark::Wrong => "WRONG ",
                Mark::Skipped => "   -  ",
            };
            writeln!(f, "{mark}{text}")?;
        }
        Ok(())
    }
}

pub(crate) fn judge(cases: &[Case], answers: &Answers) -> Result<Verdict, Error> {
    let mut verdict = Verdict { lines: Vec::new() };
    let case = |name: &str| {
        let mut all = cases.iter();
        all.find(|case| case.name == name).expect("a case's name")
    };
    let (typical, theirs) = (case(TYPICAL), &answers[TYPICAL]);
    let found = match identify(typical, &theirs.grad)? {
        Identity::Found(found) => found,
        other => {
            verdict.push(Mark::Wrong, nothing(&other));
            return Ok(verdict);
        }
    };
    let averaging = match answers.get(MASKS) {
        Some(answer) if answer.grad.iter().all(|g| g.is_finite()) => {
            Some(averaging(&found, typical, case(MASKS), &answer.grad)?)
        }
        _ => None,
    };
    let known = averaging.filter(|averaging| averaging.error < WEIGHT);
    describe(&mut verdict, &found, known.as_ref());
    let Some(averaging) = known else {
        let (mark, text) = if answers.contains_key(MASKS) {
            (
                Mark::Wrong,
                "tokens: no rule explains their weights where some do not count",
            )
        } else {
            (
                Mark::Skipped,
                "tokens: `masks` has no answer, so that nothing else can be judged",
            )
        };
        verdict.push(mark, text);
        return Ok(verdict);
    };
    verdict.push(
        if averaging.rule.masked_too {
            Mark::Wrong
        } else {
            Mark::Says
        },
        format!("tokens: {}", averaging.rule.text),
    );
    let fidelity = value_form(&mut verdict, typical, theirs, &found, &averaging)?;
    for case in cases {
        let Some(answer) = answers.get(case.name) else {
            verdict.push(Mark::Skipped, format!("{}: no answer", case.name));
            continue;
        };
        let (mark, text) = limit(case, answer, &found, &averaging, fidelity)?;
        verdict.push(mark, format!("{}: {text}", case.name));
    }
    let whole = (case(WHOLE), answers.get(WHOLE));
    let parts = PARTS.map(|name| answers.get(name));
    if let ((case, Some(whole)), [Some(one), Some(two)]) = (whole, parts) {
        accumulation(&mut verdict, case, whole, [one, two]);
    }
    Ok(verdict)
}

fn nothing(identity: &Identity) -> String {
    match identity {
        Identity::NotFinite => "the gradient of `typical` is not finite".into(),
        Identity::Zero => {
            "the gradient of `typical` is 0: is it the one in the student's logits, and is the student detached?".into()
        }
        Identity::Unknown(near) | Identity::Found(near) => format!(
            "the gradient of `typical` is not that of a known loss; the nearest is {}, which leaves {:.1}% unexplained",
            name(near),
            100.0 * near.rest
        ),
    }
}

/// A divergence with its parameters and its formula.
fn name(found: &Found) -> String {
    match &found.divergence {
        None => "the cross-entropy of the labels, without a teacher".into(),
        Some((d, _)) => format!("`{}`, {}", short(d), d.formula()),
    }
}

fn short(d: &Divergence) -> String {
    let params = d.params();
    let params: Vec<String> = params
        .iter()
        .map(|(name, x)| format!("{name}={x:.4}"))
        .collect();
    let trimmed: Vec<&str> = params
        .iter()
        .map(|p| p.trim_end_matches('0').trim_end_matches('.'))
        .collect();
    if trimmed.is_empty() {
        d.id().into()
    } else {
        format!("{}:{}", d.id(), trimmed.join(","))
    }
}

fn describe(verdict: &mut Verdict, found: &Found, averaging: Option<&Averaging>) {
    verdict.push(
        Mark::Says,
        format!("gradient: {} (p: teacher, q: student)", name(found)),
    );
    if found.temperature != 1.0 {
        let factor = averaging.map_or(f64::NAN, |a| a.factor);
        let square = found.temperature.powi(2);
        let times = if (factor / square - 1.0).abs() < 1e-2 {
            ", and it is multiplied by its square"
        } else {
            ""
        };
        let tau = found.temperature;
        verdict.push(Mark::Says, format!("temperature: {tau}{times}"));
    }
    if let Some(averaging) = averaging {
        let scale = averaging.factor;
        let mark = if scale < 0.0 { Mark::Wrong } else { Mark::Says };
        let turned = if scale < 0.0 {
            ": the sign is reversed"
        } else {
            ""
        };
        verdict.push(mark, format!("scale: {scale:.6}{turned}"));
    }
    if found.labels != 0.0 {
        let share = found.labels / found.scale;
        verdict.push(
            Mark::Says,
            format!(
                "labels: {share:.4} times the labels' cross-entropy is added to 1 times the divergence"
            ),
        );
    }
    if found.shift == 1 {
        verdict.push(
            Mark::Says,
            "shift: labels are those of the next place, and the last place of a sequence does not count",
        );
    }
}

/// Our loss and gradient of a case as theirs are made.
fn ours(
    case: &Case,
    found: &Found,
    averaging: &Averaging,
    fidelity: Option<Fidelity>,
) -> Result<Answer, Error> {
    let v = case.shape[2];
    let weights = averaging.rule.weights(case, found.shift);
    let mut with = found.clone();
    if let (Some((_, of)), Some(fidelity)) = (&mut with.divergence, fidelity) {
        *of = fidelity;
    }
    // `fidelity` is that of the value. The gradient is computed with the fidelity that was found for it.
    let (values, rows) = (with.rows(case)?.value, found.rows(case)?);
    let labels = cross_entropy(case, &case.counted(found.shift))?;
    let share = found.labels / found.scale;
    let mut answer = Answer {
        loss: 0.0,
        grad: Vec::with_capacity(rows.grad.len()),
    };
    for (i, weight) in weights.iter().map(|w| w * averaging.factor).enumerate() {
        if weight == 0.0 {
            answer.grad.extend(std::iter::repeat_n(0.0, v));
            continue;
        }
        answer.loss += weight * (values[i] + share * labels.value[i]);
        let both = rows.grad[i * v..][..v]
            .iter()
            .zip(&labels.grad[i * v..][..v]);
        answer
            .grad
            .extend(both.map(|(d, ce)| weight * (d + share * ce)));
    }
    Ok(answer)
}

/// Finds whose loss value this is: the paper's divergence or the published code's. The two can differ by terms without a
/// gradient.
fn value_form(
    verdict: &mut Verdict,
    case: &Case,
    theirs: &Answer,
    found: &Found,
    averaging: &Averaging,
) -> Result<Option<Fidelity>, Error> {
    let mut known = Vec::new();
    for fidelity in [Fidelity::Paper, Fidelity::Official] {
        let loss = ours(case, found, averaging, Some(fidelity))?.loss;
        if (theirs.loss - loss).abs() < RIGHT * loss.abs().max(1e-2) {
            if fidelity == Fidelity::Official {
                verdict.push(
                    Mark::Says,
                    "value: as in the paper's code, which leaves out what has no gradient (a cross-entropy for a KL)",
                );
            }
            return Ok(Some(fidelity));
        }
        known.push(loss);
    }
    verdict.push(
        Mark::Wrong,
        format!(
            "value: {:.6} in `typical`, but the loss with this gradient is {:.6}",
            theirs.loss, known[0]
        ),
    );
    Ok(None)
}

/// How a case is answered.
fn limit(
    case: &Case,
    theirs: &Answer,
    found: &Found,
    averaging: &Averaging,
    fidelity: Option<Fidelity>,
) -> Result<(Mark, String), Error> {
    let broken = |x: &[f64]| -> Option<&str> {
        if x.iter().any(|x| x.is_nan()) {
            return Some("NaN");
        }
        x.iter().any(|x| x.is_infinite()).then_some("infinite")
    };
    for (part, numbers) in [("loss", &[theirs.loss][..]), ("gradient", &theirs.grad)] {
        if let Some(what) = broken(numbers) {
            return Ok((
                Mark::Wrong,
                format!("the {part} is {what} ({})", case.about),
            ));
        }
    }
    let ours = ours(case, found, averaging, fidelity)?;
    let weights = averaging.rule.weights(case, found.shift);
    // Largest weight of a token: the scale of the gradient.
    let one = averaging.factor.abs() * weights.into_iter().fold(0.0, f64::max);
    let tolerance = if case.bf16 { RIGHT_BF16 } else { RIGHT };
    let pairs = theirs.grad.iter().zip(&ours.grad);
    let error = pairs.fold(0.0f64, |a, (x, y)| a.max((x - y).abs()));
    let largest = ours.grad.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    // An error up to this may be the rounding of probabilities, also where the exact gradient is 0: it is compared with `one`.
    let rounding = 1e-6 * one;
    let relative = if error <= rounding {
        error / largest.max(one)
    } else {
        error / largest.max(rounding)
    };
    let off = (theirs.loss - ours.loss).abs() / ours.loss.abs().max(1e-2 * one);
    let mut wrong = Vec::new();
    if relative > tolerance {
        wrong.push(format!("gradient off by {}", percent(relative)));
    }
    if fidelity.is_some() && off > tolerance {
        wrong.push(format!(
            "loss {:.4e} instead of {:.4e}",
            theirs.loss, ours.loss
        ));
    }
    if wrong.is_empty() {
        return Ok((Mark::Right, format!("gradient to {relative:.0e}")));
    }
    let hint = if case.name == MASKED_TEACHER {
        "; here an entry that one model leaves out is left out of the sum"
    } else {
        ""
    };
    Ok((
        Mark::Wrong,
        format!("{} ({}{hint})", wrong.join(", "), case.about),
    ))
}

fn percent(x: f64) -> String {
    if x < 10.0 {
        format!("{:.2}% of its largest entry", 100.0 * x)
    } else {
        format!("{x:.0} times its largest entry")
    }
}

/// Whether the mean of two micro-batches' gradients is the whole batch's.
fn accumulation(verdict: &mut Verdict, case: &Case, whole: &Answer, [one, two]: [&Answer; 2]) {
    let all = one.grad.iter().chain(&two.grad);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Weight of each micro-batch's tokens, relative to theirs in the whole batch.
    let (first, second) = whole.grad.split_at(one.grad.len());
    let [a, b] = [(&one.grad[..], first), (&two.grad[..], second)]
        .map(|(part, whole)| dot(part, whole) / dot(whole, whole));
    if all.clone().any(|g| !g.is_finite()) || !(a.is_finite() && b.is_finite()) {
        verdict.push(Mark::Wrong, "accumulation: a gradient is not finite");
        return;
    }
    let counts: Vec<usize> = [0..FIRST, FIRST..case.shape[0]]
        .map(|sequences| {
            let t = case.shape[1];
            let labels = &case.counted(0)[sequences.start * t..sequences.end * t];
            labels.iter().flatten().count()
        })
        .into();
    if (b / a - 1.0).abs() < WEIGHT {
        let sum = if (a - 1.0).abs() < WEIGHT {
            "sum"
        } else {
            "mean"
        };
        verdict.push(
            Mark::Right,
            format!("accumulation: the {sum} of micro-batches' gradients is the batch's, whatever their lengths"),
        );
    } else {
        verdict.push(
            Mark::Says,
            format!(
                "accumulation: a mean of micro-batches' gradients is not the batch's: with {} and {} tokens, a token of the \
                 second weighs {:.2} times one of the first; sum over tokens and divide by all of the update's",
                counts[0],
                counts[1],
                b / a
            ),
        );
    }
}
