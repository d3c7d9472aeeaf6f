//! Who runs which task, and in which order. An executor knows nothing about training.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::Ended;
use crate::plan::{Plan, Planned};

/// Runs the tasks that are not done, `jobs` in parallel, each after its needs. `worker` makes a worker: it runs one task per
/// call and returns whether the task finished (`false`: interrupted).
///
/// # Errors
///
/// The first error of a task; running tasks are finished, and no other is begun.
pub(super) fn execute<W: FnMut(&Planned, &Board) -> Result<bool>>(
    plan: &Plan,
    done: &[bool],
    jobs: usize,
    stop: &AtomicBool,
    worker: impl Fn() -> W + Sync,
) -> Result<Ended> {
    let board = Board::new(plan, done);
    let work = || {
        let mut worker = worker();
        while let Some(index) = board.next(stop) {
            let finished = worker(&plan.tasks[index], &board)?;
            board.set(
                index,
                if finished {
                    Status::Done
                } else {
                    Status::Waiting
                },
            );
            if !finished {
                break;
            }
        }
        Ok(())
    };
    let outcome: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| scope.spawn(|| board.attend(work)))
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .map(|end| end.unwrap_or_else(|panic| Err(panicked(&*panic))))
            .collect()
    });
    outcome.into_iter().collect::<Result<()>>()?;
    Ok(if board.all_done() {
        Ended::Finished
    } else {
        Ended::Interrupted
    })
}

/// Converts a panic of `work` to an error.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Converts a worker's panic to an error.
fn panicked(panic: &(dyn Any + Send)) -> anyhow::Error {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    let said = said.unwrap_or("the panic has no message");
    // Burn panics where a card has no memory left, and CubeCL says how much was asked for.
    if let Some(line) = said
        .lines()
        .find(|line| line.contains("out of device memory"))
    {
        return anyhow!(
            "the card's memory is full ({}); a smaller micro_batch_size or gradient_checkpointing = true in a training, and a \
             smaller batch_size in [evaluation] and [validation], take less. `abkd plan` estimates the memory by part. \
             Finished tasks are kept",
            line.trim()
        );
    }
    anyhow!("a worker panicked, which is a bug: {said}")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    Running,
    Done,
}

/// Which tasks are waiting, running and done.
pub struct Board<'a> {
    plan: &'a Plan,
    /// Status of each task, and whether a worker has failed.
    status: Mutex<(Vec<Status>, bool)>,
    changed: Condvar,
}

impl<'a> Board<'a> {
    fn new(plan: &'a Plan, done: &[bool]) -> Self {
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

    /// The first waiting task whose needs are done; blocks while one may become ready.
    fn next(&self, stop: &AtomicBool) -> Option<usize> {
        let mut guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (status, failed) = &mut *guard;
            if *failed || stop.load(Ordering::Relaxed) {
                return None;
            }
            let ready = (0..status.len()).find(|&i| {
                let needs = &self.plan.tasks[i].needs;
                status[i] == Status::Waiting && needs.iter().all(|&n| status[n] == Status::Done)
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

    fn set(&self, index: usize, value: Status) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).0[index] = value;
        self.changed.notify_all();
    }

    /// Runs a worker. If it ends with an error or a panic, no worker gets another task: workers that wait for its task
    /// would wait forever.
    fn attend(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
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

    fn all_done(&self) -> bool {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.iter().all(|s| *s == Status::Done)
    }

    /// Kinds of the tasks that remain when `but` is done, for the estimate of the time left.
    pub fn left(&self, but: &Planned) -> Vec<String> {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let tasks = guard.0.iter().zip(&self.plan.tasks);
        tasks
            .filter(|(status, planned)| **status != Status::Done && planned.id != but.id)
            .map(|(_, planned)| planned.kind())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::channel;

    use anyhow::bail;

    use super::*;
    use crate::spec::Spec;

    fn plan() -> Plan {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, "table2", "tiny").unwrap();
        Plan::new(&root, &spec, &Default::default()).unwrap()
    }

    /// Runs a plan with workers that only record their tasks; returns the result and the recorded tasks.
    fn mock(
        plan: &Plan,
        done: &[bool],
        jobs: usize,
        perform: impl Fn(&Planned) -> Result<bool> + Sync,
    ) -> (Result<Ended>, Vec<usize>) {
        let run = Mutex::new(Vec::new());
        let stop = AtomicBool::new(false);
        let worker = || {
            |planned: &Planned, _: &Board| {
                let finished = perform(planned)?;
                if finished {
                    run.lock().unwrap().push(plan.index(&planned.id).unwrap());
                }
                Ok(finished)
            }
        };
        let ended = execute(plan, done, jobs, &stop, worker);
        (ended, run.into_inner().unwrap())
    }

    #[test]
    fn each_task_runs_once_and_after_those_that_it_needs() {
        let plan = plan();
        let all = plan.tasks.len();
        for jobs in [1, 4] {
            let (ended, run) = mock(&plan, &vec![false; all], jobs, |_| Ok(true));
            assert_eq!(ended.unwrap(), Ended::Finished);
            assert_eq!(run.len(), all);
            let at = |index: usize| run.iter().position(|&i| i == index).unwrap();
            for (index, planned) in plan.tasks.iter().enumerate() {
                assert!(planned.needs.iter().all(|&need| at(need) < at(index)));
            }
        }
    }

    #[test]
    fn what_is_done_is_not_run_again_and_what_was_interrupted_is() {
        let plan = plan();
        let all = plan.tasks.len();
        // Interrupted at the fifth.
        let fifth = plan.tasks[4].id.clone();
        let (ended, run) = mock(&plan, &vec![false; all], 1, |p| Ok(p.id != fifth));
        assert_eq!((ended.unwrap(), run.len()), (Ended::Interrupted, 4));
        let done: Vec<bool> = (0..all).map(|i| run.contains(&i)).collect();
        let (ended, again) = mock(&plan, &done, 2, |_| Ok(true));
        assert_eq!((ended.unwrap(), again.len()), (Ended::Finished, all - 4));
        let (ended, none) = mock(&plan, &vec![true; all], 2, |_| bail!("not to be run"));
        assert_eq!((ended.unwrap(), none.len()), (Ended::Finished, 0));
    }

    #[test]
    fn after_an_error_no_task_is_begun_that_needs_what_is_not_there() {
        let plan = plan();
        let teacher = plan.tasks[0].id.clone();
        for jobs in [1, 3] {
            let fail = |p: &Planned| {
                if p.id == teacher {
                    bail!("no room")
                } else {
                    Ok(true)
                }
            };
            let (ended, run) = mock(&plan, &vec![false; plan.tasks.len()], jobs, fail);
            assert!(ended.unwrap_err().to_string().contains("no room"));
            assert!(
                run.iter().all(|&i| !plan.tasks[i].needs.contains(&0)),
                "{run:?}"
            );
        }
    }

    #[test]
    fn nobody_waits_for_the_task_of_a_worker_that_failed() {
        let ends: [fn() -> Result<bool>; 2] = [|| bail!("no"), || panic!("no")];
        for end in ends {
            let (sender, receiver) = channel();
            std::thread::spawn(move || {
                let plan = plan();
                // All tasks are done, except one that others need and the tasks that need it.
                let first = plan.tasks.iter().find_map(|t| t.needs.first().copied());
                let first = first.expect("a table has tasks that need others");
                let done: Vec<bool> = (0..plan.tasks.len())
                    .map(|i| i != first && !plan.tasks[i].needs.contains(&first))
                    .collect();
                let (ended, _) = mock(&plan, &done, 3, |_| end());
                sender.send(ended.is_err()).unwrap();
            });
            assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Ok(true));
        }
    }

    #[test]
    fn a_panic_is_reported_with_what_it_said() {
        let fixed = std::panic::catch_unwind(|| panic!("no room")).unwrap_err();
        let task = 7;
        let formatted = std::panic::catch_unwind(|| panic!("no task {task}")).unwrap_err();
        for (panic, said) in [(fixed, "no room"), (formatted, "no task 7")] {
            let text = panicked(&*panic).to_string();
            assert!(text.ends_with(said), "{text}");
        }
        let full = || -> Result<()> {
            panic!("Failed\nCaused by:\n  out of device memory allocating 825229312 bytes\nmore")
        };
        let text = caught(full).unwrap_err().to_string();
        assert!(
            text.contains("(out of device memory allocating 825229312 bytes)")
                && text.contains("micro_batch_size")
        );
        assert_eq!(caught(|| Ok(3)).unwrap(), 3);
    }
}
