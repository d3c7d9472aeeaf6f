//! Who does which cell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::plan::{Plan, Who, Work};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Waiting,
    Running,
    Done,
}

/// Who does what.
pub(super) struct Board<'a> {
    plan: &'a Plan,
    status: Mutex<(Vec<Status>, bool)>,
    changed: Condvar,
}

impl<'a> Board<'a> {
    pub(super) fn new(plan: &'a Plan, done: &[bool]) -> Self {
        let status = done
            .iter()
            .map(|d| if *d { Status::Done } else { Status::Waiting })
            .collect();
        Self {
            plan,
            status: Mutex::new((status, false)),
            changed: Condvar::new(),
        }
    }

    /// The first cell whose needs are done; waits while there may be one later.
    pub(super) fn next(&self, stop: &AtomicBool) -> Option<usize> {
        let mut guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (status, abandoned) = &mut *guard;
            if *abandoned || stop.load(Ordering::Relaxed) {
                return None;
            }
            let ready = (0..status.len()).find(|&i| {
                status[i] == Status::Waiting
                    && self.plan.cells[i]
                        .needs
                        .iter()
                        .all(|&n| status[n] == Status::Done)
            });
            if let Some(i) = ready {
                status[i] = Status::Running;
                return Some(i);
            }
            if !status.contains(&Status::Waiting) {
                return None;
            }
            let wait = self.changed.wait_timeout(guard, Duration::from_millis(200));
            guard = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn set(&self, index: usize, value: Status) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).0[index] = value;
        self.changed.notify_all();
    }

    pub(super) fn abandon(&self) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    pub(super) fn all_done(&self) -> bool {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.iter().all(|s| *s == Status::Done)
    }

    /// Kinds of the cells still to do, for the estimate of the time left.
    pub(super) fn left(&self) -> Vec<String> {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        guard
            .0
            .iter()
            .zip(&self.plan.cells)
            .filter(|(s, _)| **s != Status::Done)
            .map(|(_, c)| kind(&c.work))
            .collect()
    }
}

/// Cells of one kind take about the same time.
pub(super) fn kind(work: &Work) -> String {
    match work {
        Work::Sft { who } => format!("{who:?}"),
        Work::TeacherHidden => "hidden".into(),
        Work::TeacherAnswers { .. } => "answers".into(),
        // methods differ in their sampling
        Work::Distill { row } => format!("distill {row}"),
        Work::Time { row, .. } => format!("time {row}"),
        Work::Evaluate { who, dataset, .. } => {
            format!(
                "evaluate {} {}",
                dataset.id(),
                u8::from(*who == Who::Teacher)
            )
        }
    }
}
