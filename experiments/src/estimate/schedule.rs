//! How long cells take side by side.

use crate::plan::Cell;

/// Time until all cells are done when `jobs` workers take the first ready cell each, as the runner
/// does. `seconds` gives each cell's time; a cell that is done takes none.
pub fn makespan(cells: &[Cell], seconds: &[f64], jobs: usize) -> f64 {
    let mut ends: Vec<Option<f64>> = vec![None; cells.len()];
    let mut running: Vec<(f64, usize)> = Vec::new();
    let mut begun = vec![false; cells.len()];
    let mut now = 0.0;
    loop {
        while running.len() < jobs {
            let ready = (0..cells.len())
                .find(|&i| !begun[i] && cells[i].needs.iter().all(|&n| ends[n].is_some()));
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
    use crate::plan::{Who, Work};

    fn cell(needs: &[usize]) -> Cell {
        Cell {
            id: String::new(),
            work: Work::Sft { who: Who::Teacher },
            also: Vec::new(),
            needs: needs.into(),
            spec: serde_json::Value::Null,
        }
    }

    #[test]
    fn cells_wait_for_what_they_need_and_for_a_worker() {
        let cells = [cell(&[]), cell(&[]), cell(&[0]), cell(&[0, 1])];
        let seconds = [4.0, 1.0, 2.0, 3.0];
        assert_eq!(makespan(&cells, &seconds, 1), 10.0);
        // 0 and 1 side by side; 2 and 3 begin at 4
        assert_eq!(makespan(&cells, &seconds, 2), 7.0);
        assert_eq!(makespan(&[], &[], 2), 0.0);
    }
}
