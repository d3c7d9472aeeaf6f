//! Schedules of a run: learning rates, DistiLLM's threshold and sources, the replay buffer.

use std::path::Path;

use abkd_data::rng::Rng;
use abkd_models::verify::Check;
use serde::Deserialize;
use serde_json::Value;

use super::{Golden, distance};
use crate::methods::distillm::{ReplayRatio, Source, Threshold, source};
use crate::methods::gkd::is_on_policy;
use crate::methods::replay::ReplayBuffer;
use crate::{Error, Schedule, Settings};

const TOLERANCE: f64 = 1e-9;

/// Limits of a buffer's and a batch's sequences: more would take memory and time without checking more.
const MOST_HELD: usize = 1 << 14;
const MOST_DRAWN: usize = 1 << 10;

/// DistiLLM's `threshold_step`, a constant in the released code.
const RISE: f64 = 0.1;

/// Compares `schedules.json`, `distillm_schedule.json` or `replay_buffer.json`, distinguished by their keys. Learning rates
/// of the schedule `noam` are skipped: no script uses it and this project does not implement it.
///
/// # Errors
///
/// When the file cannot be read or has another format.
pub fn verify_schedule(path: &Path) -> Result<Vec<Check>, Error> {
    let (mut golden, file) = Golden::read::<Value>(path)?;
    let first = &file["cases"][0];
    if file.get("threshold").is_some() {
        check_distillm(&mut golden, &parse(path, file)?)?;
    } else if first.get("schedule").is_some() {
        check_rates(&mut golden, &parse(path, file)?)?;
    } else if first.get("steps").is_some() {
        check_buffer(&mut golden, &parse(path, file)?)?;
    } else {
        let reason = "it has neither `threshold` nor cases with `schedule` or `steps`: it is none of schedules.json, distillm_schedule.json, replay_buffer.json";
        return Err(Error::checkpoint(path, reason));
    }
    golden.finish()
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, file: Value) -> Result<T, Error> {
    serde_json::from_value(file).map_err(|e| Error::checkpoint(path, e))
}

#[derive(Deserialize)]
struct Rates {
    cases: Vec<RateCase>,
}

#[derive(Deserialize)]
struct RateCase {
    schedule: String,
    lr: f64,
    total_updates: usize,
    warmup: usize,
    lr_min: f64,
    update: Vec<usize>,
    rate: Vec<f64>,
}

fn check_rates(golden: &mut Golden, file: &Rates) -> Result<(), Error> {
    for (i, case) in file.cases.iter().enumerate() {
        let (schedule, warmup) = match case.schedule.as_str() {
            "cosine" => (Schedule::Cosine, None),
            "constant" | "constant_trm" => (Schedule::ConstantWarmup, Some(case.warmup)),
            "cosine_trm" => (Schedule::CosineWarmup, Some(case.warmup)),
            "noam" => continue,
            other => {
                let reason = format!(
                    "unknown schedule `{other}`; known: cosine, constant, constant_trm, cosine_trm"
                );
                return Err(Error::checkpoint(golden.path, reason));
            }
        };
        let settings = Settings {
            schedule,
            warmup,
            min_learning_rate: case.lr_min,
            ..Settings::new(case.total_updates, 1, case.lr)
        };
        settings
            .check_run(1)
            .map_err(|e| Error::checkpoint(golden.path, e))?;
        let last = case.update.iter().max();
        golden.ensure(last.is_some_and(|&u| u < case.total_updates), || {
            format!(
                "case {}: `update` must hold numbers below total_updates",
                i + 1
            )
        })?;
        golden.same_length("rate", case.update.len(), case.rate.len())?;
        let ours: Vec<f64> = case
            .update
            .iter()
            .map(|&step| settings.rate(step, case.total_updates))
            .collect();
        // `check_run` has refused rates that are not positive.
        let error = distance(&ours, &case.rate) / case.lr.abs();
        let name = format!("case {}: {}, warm-up {}", i + 1, case.schedule, case.warmup);
        golden.check(name, error, TOLERANCE);
    }
    Ok(())
}

#[derive(Deserialize)]
struct DistiLlm {
    threshold: Vec<ThresholdCase>,
    #[serde(default)]
    share: Vec<ShareCase>,
    #[serde(default)]
    sources: Vec<SourcesCase>,
    #[serde(default)]
    mixed: Vec<MixedCase>,
}

#[derive(Deserialize)]
struct ThresholdCase {
    init_threshold: f64,
    loss_eps: f64,
    initial_loss: f64,
    losses: Vec<f64>,
    thresholds: Vec<f64>,
}

#[derive(Deserialize)]
struct ShareCase {
    replay_ratio: ReplayRatio,
    threshold: f64,
    updates: usize,
    step: Vec<usize>,
    share: Vec<f64>,
}

#[derive(Deserialize)]
struct SourcesCase {
    init_threshold: f64,
    loss_eps: f64,
    capacity: usize,
    batch_size: usize,
    replay_ratio: ReplayRatio,
    updates: usize,
    eval_every: usize,
    initial_loss: f64,
    losses: Vec<f64>,
    numbers: Vec<f64>,
    threshold: Vec<f64>,
    share: Vec<f64>,
    buffered_before: Vec<usize>,
    source: Vec<String>,
}

#[derive(Deserialize)]
struct MixedCase {
    mixed_alpha: f64,
    capacity: usize,
    batch_size: usize,
    numbers: Vec<f64>,
    /// For each update, the numbers of its sequences in the order of sampling; null: it trains on the data.
    sequences: Vec<Option<Vec<usize>>>,
}

/// Compares with absolute errors, as shares lie between 0 and 1.
fn compare(golden: &mut Golden, name: String, ours: &[f64], theirs: &[f64]) -> Result<(), Error> {
    golden.same_length(&name, ours.len(), theirs.len())?;
    golden.not_empty(&name, theirs)?;
    golden.check(name, distance(ours, theirs), TOLERANCE);
    Ok(())
}

fn check_distillm(golden: &mut Golden, file: &DistiLlm) -> Result<(), Error> {
    for (i, case) in file.threshold.iter().enumerate() {
        let mut threshold = Threshold::new(case.init_threshold);
        threshold.validated(case.initial_loss, RISE, case.loss_eps);
        let ours: Vec<f64> = case
            .losses
            .iter()
            .map(|&loss| {
                threshold.validated(loss, RISE, case.loss_eps);
                threshold.value()
            })
            .collect();
        let name = format!("thresholds {}", i + 1);
        compare(golden, name, &ours, &case.thresholds)?;
    }
    for (i, case) in file.share.iter().enumerate() {
        let share = |&step: &usize| {
            case.replay_ratio
                .fresh_share(case.threshold, step, case.updates)
        };
        golden.ensure(case.updates > 0, || "share: `updates` is 0".into())?;
        let ours: Vec<f64> = case.step.iter().map(share).collect();
        let word: &str = case.replay_ratio.into();
        let name = format!("share {}, {word}", i + 1);
        compare(golden, name, &ours, &case.share)?;
    }
    for (i, case) in file.sources.iter().enumerate() {
        check_sources(golden, &format!("sources {}", i + 1), case)?;
    }
    for (i, case) in file.mixed.iter().enumerate() {
        check_mixed(golden, &format!("mixed {}", i + 1), case)?;
    }
    Ok(())
}

/// Refuses empty or too large buffers and batches.
fn check_sizes(golden: &Golden, name: &str, capacity: usize, batch: usize) -> Result<(), Error> {
    golden.ensure(
        (1..=MOST_HELD).contains(&capacity) && (1..=MOST_DRAWN).contains(&batch),
        || {
            format!(
                "{name}: `capacity` is {capacity}, 1 to {MOST_HELD} are checked; `batch_size` is {batch}, 1 to {MOST_DRAWN}"
            )
        },
    )
}

fn check_sources(golden: &mut Golden, name: &str, case: &SourcesCase) -> Result<(), Error> {
    check_sizes(golden, name, case.capacity, case.batch_size)?;
    golden.ensure(case.eval_every > 0, || {
        format!("{name}: `eval_every` must be 1 or more")
    })?;
    golden.same_length("numbers", case.updates, case.numbers.len())?;
    let mut threshold = Threshold::new(case.init_threshold);
    threshold.validated(case.initial_loss, RISE, case.loss_eps);
    let mut buffer = ReplayBuffer::new(case.capacity);
    let mut losses = case.losses.iter();
    let mut loss = case.losses.last();
    let (mut thresholds, mut shares) = (Vec::new(), Vec::new());
    let (mut buffered, mut sources) = (Vec::new(), Vec::new());
    for (step, &number) in (1..).zip(&case.numbers) {
        let value = threshold.value();
        let share = case.replay_ratio.fresh_share(value, step, case.updates);
        thresholds.push(value);
        shares.push(share);
        buffered.push(buffer.len());
        sources.push(match source(number, share, value, buffer.is_full()) {
            Source::Data => "data",
            Source::Buffer => "buffer",
            Source::Fresh => {
                buffer.push(std::iter::repeat_n((), case.batch_size));
                "fresh"
            }
        });
        if step % case.eval_every == 0 {
            // The last loss is repeated.
            loss = losses.next().or(loss);
            if let Some(&loss) = loss {
                threshold.validated(loss, RISE, case.loss_eps);
            }
        }
    }
    let name_of = |what: &str| format!("{name}: {what}");
    compare(golden, name_of("threshold"), &thresholds, &case.threshold)?;
    compare(golden, name_of("share"), &shares, &case.share)?;
    golden.equal(
        format!("{name}: sequences in the buffer"),
        &buffered,
        &case.buffered_before,
    )?;
    let theirs: Vec<&str> = case.source.iter().map(String::as_str).collect();
    golden.equal(format!("{name}: source"), &sources, &theirs)
}

fn check_mixed(golden: &mut Golden, name: &str, case: &MixedCase) -> Result<(), Error> {
    check_sizes(golden, name, case.capacity, case.batch_size)?;
    golden.ensure(case.capacity >= case.batch_size, || {
        format!("{name}: `capacity` must be a batch or more")
    })?;
    golden.same_length("sequences", case.numbers.len(), case.sequences.len())?;
    golden.not_empty(&format!("{name}: numbers"), &case.numbers)?;
    let mut buffer = ReplayBuffer::new(case.capacity);
    let (mut wrong_source, mut impossible, mut ours_wrong) = (0, 0, 0);
    let mut sampled = 0;
    for (step, (&number, theirs)) in (0..).zip(case.numbers.iter().zip(&case.sequences)) {
        let on_policy = is_on_policy(number, case.mixed_alpha);
        wrong_source += usize::from(on_policy != theirs.is_some());
        if !on_policy {
            continue;
        }
        buffer.push(sampled..sampled + case.batch_size);
        sampled += case.batch_size;
        let drawn = buffer.draw(case.batch_size, &mut Rng::new(&[step]));
        ours_wrong += usize::from(!is_a_draw(&buffer, drawn.as_deref(), case.batch_size));
        impossible += usize::from(!is_a_draw(&buffer, theirs.as_deref(), case.batch_size));
    }
    for (what, count) in [
        ("source", wrong_source),
        ("their draws from our buffer", impossible),
        ("our draws", ours_wrong),
    ] {
        golden.check(format!("{name}: {what}"), count as f64, 0.0);
    }
    Ok(())
}

/// Whether `drawn` holds `n` different sequences of the buffer.
fn is_a_draw(buffer: &ReplayBuffer<usize>, drawn: Option<&[usize]>, n: usize) -> bool {
    drawn.is_some_and(|drawn| {
        let different = |(i, x): (usize, &usize)| !drawn[..i].contains(x);
        drawn.len() == n
            && drawn.iter().enumerate().all(different)
            && drawn.iter().all(|x| buffer.held().any(|h| h == x))
    })
}

#[derive(Deserialize)]
struct Buffers {
    cases: Vec<BufferCase>,
}

#[derive(Deserialize)]
struct BufferCase {
    capacity: usize,
    batch_size: usize,
    steps: Vec<BufferStep>,
}

#[derive(Deserialize)]
struct BufferStep {
    pushed: Vec<usize>,
    held: Vec<usize>,
    length: usize,
    /// null: the buffer holds less than a batch.
    draws: Vec<Option<Vec<usize>>>,
}

fn check_buffer(golden: &mut Golden, file: &Buffers) -> Result<(), Error> {
    for (i, case) in file.cases.iter().enumerate() {
        let name = format!("case {}", i + 1);
        check_sizes(golden, &name, case.capacity, case.batch_size)?;
        golden.not_empty(&format!("{name}: steps"), &case.steps)?;
        let mut buffer = ReplayBuffer::new(case.capacity);
        for (k, step) in case.steps.iter().enumerate() {
            let name = |what: &str| format!("case {}, push {}: {what}", i + 1, k + 1);
            golden.not_empty(&name("draws"), &step.draws)?;
            buffer.push(step.pushed.iter().copied());
            let held: Vec<usize> = buffer.held().copied().collect();
            golden.equal(name("what is held"), &held, &step.held)?;
            golden.equal(name("length"), &[buffer.len()], &[step.length])?;
            let wrong = (0..)
                .zip(&step.draws)
                .filter(|(seed, theirs)| {
                    let ours = buffer.draw(case.batch_size, &mut Rng::new(&[*seed]));
                    let good = |drawn: &Option<Vec<usize>>| {
                        is_a_draw(&buffer, drawn.as_deref(), case.batch_size)
                    };
                    let both_none = ours.is_none() && theirs.is_none();
                    !(both_none || (good(&ours) && good(theirs)))
                })
                .count();
            golden.check(name("draws"), wrong as f64, 0.0);
        }
    }
    Ok(())
}
