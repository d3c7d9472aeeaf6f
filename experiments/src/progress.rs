//! Progress of a run on stderr: bars on a terminal, plain lines elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::message::say;

/// Time between plain lines of one task.
const PLAIN_EVERY: Duration = Duration::from_secs(20);

/// The display of a run.
pub struct Display {
    bars: MultiProgress,
    total: ProgressBar,
    plain: bool,
    /// Finished tasks of this run: kind and duration, for the estimate.
    durations: Mutex<Vec<(String, f64)>>,
    jobs: usize,
}

impl Display {
    /// For `tasks` tasks, `done` of them finished already, and `jobs` workers.
    pub fn new(tasks: usize, done: usize, jobs: usize) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let plain = bars.is_hidden();
        let total = bars.add(ProgressBar::new(tasks as u64));
        total.set_style(style("{bar:30} {pos}/{len} tasks  {elapsed} {msg}"));
        total.set_position(done as u64);
        Self {
            bars,
            total,
            plain,
            durations: Mutex::new(Vec::new()),
            jobs,
        }
    }

    /// Prints a permanent line.
    pub fn line(&self, text: &str) {
        if self.plain {
            say(text);
        } else {
            // A display that cannot be written to is no reason to stop a run.
            let _ = self.bars.println(text);
        }
    }

    /// Begins a task.
    pub fn task(&self, id: &str) -> TaskDisplay<'_> {
        let bar = self.bars.add(ProgressBar::new(0));
        bar.set_style(style("  {prefix}  {bar:20} {pos}/{len}  {msg}"));
        bar.set_prefix(id.to_owned());
        if self.plain {
            say(&format!("{id}: started"));
        }
        TaskDisplay {
            display: self,
            bar,
            id: id.to_owned(),
            begun: Instant::now(),
            first: None,
            last: Instant::now(),
        }
    }

    /// Ends a task; `left` are the kinds of the tasks still to run.
    fn finished(&self, kind: String, seconds: f64, left: &[String]) {
        let mut durations = self
            .durations
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        durations.push((kind, seconds));
        let mean = |kind: &String| {
            let same: Vec<f64> = durations
                .iter()
                .filter(|(k, _)| k == kind)
                .map(|(_, s)| *s)
                .collect();
            (!same.is_empty()).then(|| same.iter().sum::<f64>() / same.len() as f64)
        };
        let estimate: Option<f64> = left.iter().map(mean).sum();
        self.total.inc(1);
        let left = estimate.map(|s| Duration::from_secs_f64(s / self.jobs as f64));
        self.total.set_message(eta(left));
    }

    /// `12/262 tasks, eta 3 minutes`
    fn summary(&self) -> String {
        let (done, all) = (self.total.position(), self.total.length().unwrap_or(0));
        format!("{done}/{all} tasks, {}", self.total.message())
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("templates are constants")
}

/// `eta 3 minutes`
fn eta(left: Option<Duration>) -> String {
    left.map_or("eta unknown yet".to_owned(), |left| {
        format!("eta {}", HumanDuration(left))
    })
}

/// Time for `left` more steps where the last `done` took `elapsed`, by the mean: validations between steps count, and a pause
/// changes it little.
fn remaining(done: usize, left: usize, elapsed: Duration) -> Option<Duration> {
    (done > 0).then(|| elapsed.mul_f64(left as f64 / done as f64))
}

/// The display of one task.
pub struct TaskDisplay<'a> {
    display: &'a Display,
    bar: ProgressBar,
    id: String,
    begun: Instant,
    /// The first position that was set, and when.
    first: Option<(usize, Instant)>,
    last: Instant,
}

impl TaskDisplay<'_> {
    /// Sets the task's progress.
    pub fn at(&mut self, position: usize, length: usize, message: impl FnOnce() -> String) {
        self.bar.set_length(length as u64);
        self.bar.set_position(position as u64);
        let (from, since) = *self.first.get_or_insert((position, Instant::now()));
        let done = position.saturating_sub(from);
        let left = length.saturating_sub(position);
        let eta = || eta(remaining(done, left, since.elapsed()));
        if !self.display.plain {
            self.bar.set_message(format!("{}  {}", eta(), message()));
        } else if self.last.elapsed() > PLAIN_EVERY {
            self.last = Instant::now();
            let (id, eta, message) = (&self.id, eta(), message());
            say(&format!("{id}: {position}/{length}, {eta}, {message}"));
        }
    }

    /// Advances the bar by `n`.
    pub fn more(&mut self, n: usize, length: usize, message: impl FnOnce() -> String) {
        let position = self.bar.position() as usize + n;
        self.at(position, length, message);
    }

    /// Prints a permanent line.
    pub fn line(&self, text: &str) {
        self.display.line(&format!("{}: {text}", self.id));
    }

    /// Marks the task as done; `kind` groups tasks of similar duration.
    pub fn finish(self, kind: String, left: &[String], result: &str) {
        self.bar.finish_and_clear();
        let seconds = self.begun.elapsed().as_secs_f64();
        self.display.finished(kind, seconds, left);
        if self.display.plain {
            let (id, summary) = (&self.id, self.display.summary());
            say(&format!("{id}: {result} in {seconds:.1} s ({summary})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_mean_step() {
        let elapsed = Duration::from_secs(20);
        assert_eq!(remaining(0, 40, elapsed), None);
        assert_eq!(remaining(10, 30, elapsed), Some(Duration::from_secs(60)));
        assert_eq!(remaining(10, 0, elapsed), Some(Duration::ZERO));
        assert_eq!(eta(Some(elapsed)), "eta 20 seconds");
        assert_eq!(eta(None), "eta unknown yet");
    }
}
