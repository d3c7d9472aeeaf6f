//! Where the time of an update goes.

use std::time::{Duration, Instant};

/// A part of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the thread that collates the data's sequences, and collating sampled ones.
    Data,
    /// Sampling answers, and scoring them where the method does.
    Generation,
    /// Hidden states of the teacher.
    Teacher,
    /// Hidden states of the student.
    Student,
    /// Both heads, the divergence and its gradient in the hidden states and the head.
    Loss,
    /// Gradients of the layers below the head.
    Backward,
    /// Clipping and AdamW.
    Update,
}

impl Phase {
    /// All phases, in the order of an update.
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::Generation,
        Self::Teacher,
        Self::Student,
        Self::Loss,
        Self::Backward,
        Self::Update,
    ];

    /// Name in results.
    pub fn id(self) -> &'static str {
        [
            "data",
            "generation",
            "teacher",
            "student",
            "loss",
            "backward",
            "update",
        ][self as usize]
    }
}

/// Time spent in each phase. The host waits for an asynchronous backend only where a value is copied to the
/// host, so time of one phase may be counted in a neighbouring one; on the CPU it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases([Duration; 7]);

impl Phases {
    /// Runs `f` and adds its time to `phase`.
    pub fn time<T>(&mut self, phase: Phase, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = f();
        self.0[phase as usize] += start.elapsed();
        result
    }

    /// Adds the mean time of parts that ran in parallel.
    pub(crate) fn add_parallel(&mut self, parts: &[Self]) {
        for (i, sum) in self.0.iter_mut().enumerate() {
            let all: Duration = parts.iter().map(|p| p.0[i]).sum();
            *sum += all / parts.len().max(1) as u32;
        }
    }

    /// Seconds in `phase`.
    pub fn seconds(&self, phase: Phase) -> f64 {
        self.0[phase as usize].as_secs_f64()
    }

    /// Seconds in all phases.
    pub fn total(&self) -> f64 {
        self.0.iter().map(Duration::as_secs_f64).sum()
    }
}
