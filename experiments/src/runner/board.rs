//! Who does which cell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

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

    /// Runs a worker. Where it ends with an error or a panic, nobody gets another cell: those that wait for its cell
    /// would wait for ever.
    pub(super) fn attend(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        struct Abandon<'a, 'b>(&'a Board<'b>);
        impl Drop for Abandon<'_, '_> {
            fn drop(&mut self) {
                let mut guard = self.0.status.lock().unwrap_or_else(PoisonError::into_inner);
                guard.1 = true;
                self.0.changed.notify_all();
            }
        }
        let abandon = Abandon(self);
        work()?;
        std::mem::forget(abandon);
        Ok(())
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
        Work::Distill { row, .. } => format!("distill {row}"),
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::channel;

    use anyhow::bail;

    use super::*;
    use crate::spec::Spec;

    #[test]
    fn nobody_waits_for_the_cell_of_a_worker_that_failed() {
        let ends: [fn() -> Result<()>; 2] = [|| bail!("no"), || panic!("no")];
        for end in ends {
            let (sender, receiver) = channel();
            std::thread::spawn(move || {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
                let spec = Spec::load(&root, "table1", "tiny").unwrap();
                let plan = Plan::new(&root, &spec, &Default::default()).unwrap();
                // All but the first cell that another needs is done, and those that need it.
                let first = plan.cells.iter().find_map(|c| c.needs.first().copied());
                let first = first.expect("a table has cells that need others");
                let done: Vec<bool> = (0..plan.cells.len())
                    .map(|i| i != first && !plan.cells[i].needs.contains(&first))
                    .collect();
                let (board, stop) = (Board::new(&plan, &done), AtomicBool::new(false));
                assert_eq!(board.next(&stop), Some(first));
                std::thread::scope(|scope| {
                    let waits = scope.spawn(|| board.next(&stop));
                    let fails = scope.spawn(|| board.attend(end));
                    let failed = !matches!(fails.join(), Ok(Ok(())));
                    sender.send((failed, waits.join().unwrap())).unwrap();
                });
            });
            let got = receiver.recv_timeout(Duration::from_secs(60));
            assert_eq!(got, Ok((true, None)));
        }
    }

    #[test]
    fn a_worker_that_ends_well_leaves_the_cells_to_the_others() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "table1", "tiny").unwrap();
        let plan = Plan::new(&root, &spec, &Default::default()).unwrap();
        let board = Board::new(&plan, &vec![false; plan.cells.len()]);
        board.attend(|| Ok(())).unwrap();
        assert_eq!(board.next(&AtomicBool::new(false)), Some(0));
    }
}
