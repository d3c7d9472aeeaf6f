//! Time of tasks that run in parallel.

use crate::plan::Planned;

/// Time until all tasks are done when `jobs` workers take the first ready task each, as the runner
/// does. `seconds` gives each task's time; a task that is done takes none.
pub fn makespan(tasks: &[Planned], seconds: &[f64], jobs: usize) -> f64 {
    let needs: Vec<&[usize]> = tasks.iter().map(|task| task.needs.as_slice()).collect();
    end(&needs, seconds, jobs)
}

/// [`makespan`] from the needs of each task.
fn end(tasks: &[&[usize]], seconds: &[f64], jobs: usize) -> f64 {
    let mut ends: Vec<Option<f64>> = vec![None; tasks.len()];
    let mut running: Vec<(f64, usize)> = Vec::new();
    let mut begun = vec![false; tasks.len()];
    let mut now = 0.0;
    loop {
        while running.len() < jobs {
            let ready = (0..tasks.len())
                .find(|&i| !begun[i] && tasks[i].iter().all(|&n| ends[n].is_some()));
            let Some(i) = ready else { break };
            begun[i] = true;
            running.push((now + seconds[i], i));
        }
        let Some(first) = (0..running.len()).min_by(|&a, &b| running[a].0.total_cmp(&running[b].0))
        else {
            return now;
        };
        let (end, i) = running.swap_remove(first);
        now = end;
        ends[i] = Some(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn tasks_wait_for_what_they_need_and_for_a_worker() {
        let tasks: [&[usize]; 4] = [&[], &[], &[0], &[0, 1]];
        let seconds = [4.0, 1.0, 2.0, 3.0];
        assert_eq!(end(&tasks, &seconds, 1), 10.0);
        // 0 and 1 in parallel; 2 and 3 begin at 4
        assert_eq!(end(&tasks, &seconds, 2), 7.0);
        assert_eq!(end(&[], &[], 2), 0.0);
    }
}
