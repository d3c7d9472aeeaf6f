//! Where the paper's own tables disagree: cells that differ between two tables of the same experiment, and rows
//! that repeat another row.

use std::path::Path;

use anyhow::Result;

use crate::results::{Cell, Table, dataset_title};

/// Fewer equal cells than this are no sign of a copied row.
const MIN_REPEATED_CELLS: usize = 2;

/// Searches the paper's tables in `dir` (`table1.csv`, `table2.csv`, `table4.csv`); returns a line per disagreement.
///
/// # Errors
/// Names a file that is missing or malformed.
pub fn audit(dir: &Path) -> Result<Vec<String>> {
    let read = |name: &str| Table::read(&dir.join(format!("{name}.csv")));
    let (table1, table2, table4) = (read("table1")?, read("table2")?, read("table4")?);
    let mut findings = contradictions(&table1, &table4);
    for (name, table) in [("table1", table1), ("table2", table2), ("table4", table4)] {
        findings.extend(repeated_rows(name, &table));
    }
    Ok(findings)
}

/// A score as the paper prints it.
fn printed(cell: &Cell) -> String {
    let std = cell.sampling_std.map(|std| format!(" ± {std:.2}"));
    format!("{:.2}{}", cell.rouge_l_mean, std.unwrap_or_default())
}

/// Cells in which Table 4, an ablation around the students of Table 1, differs from it. Table 2 has rows with the same
/// names, but another pair of models.
fn contradictions(table1: &Table, table4: &Table) -> Vec<String> {
    let cells = table1.cells.iter();
    let differs = |cell: &Cell| {
        let [a, b] = [cell, table4.cell(&cell.row, &cell.dataset)?].map(printed);
        let (row, set) = (&cell.row, dataset_title(&cell.dataset));
        let text = || {
            format!("table1 and table4 disagree: {row} on {set} is {a} in table1 and {b} in table4")
        };
        (a != b).then(text)
    };
    cells.filter_map(differs).collect()
}

/// Pairs of rows that are equal, or equal in all cells but one.
fn repeated_rows(name: &str, table: &Table) -> Vec<String> {
    let (rows, datasets) = (table.rows(), table.datasets());
    let mut findings = Vec::new();
    for (i, one) in rows.iter().enumerate() {
        for two in &rows[i + 1..] {
            let both = datasets.iter().filter_map(|set| {
                let cells = [table.cell(one, set)?, table.cell(two, set)?];
                Some((dataset_title(set), cells.map(printed)))
            });
            let (equal, differing): (Vec<_>, Vec<_>) = both.partition(|(_, [a, b])| a == b);
            let rest = match &differing[..] {
                [] => ", that is in all of them".into(),
                [(set, [a, b])] => {
                    format!(" and differ in one: {set} is {a} for {one} and {b} for {two}")
                }
                _ => continue,
            };
            if equal.len() >= MIN_REPEATED_CELLS {
                let equal = equal.len();
                findings.push(format!(
                    "{name}: {one} and {two} are equal in {equal} cells{rest}"
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HEAD: &str = "method,dataset,rouge_l_mean,rouge_l_std\n";

    fn folder(table1: &str, table2: &str, table4: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, body) in [("table1", table1), ("table2", table2), ("table4", table4)] {
            fs::write(
                folder.path().join(format!("{name}.csv")),
                format!("{HEAD}{body}"),
            )
            .unwrap();
        }
        folder
    }

    #[test]
    fn finds_what_was_planted_and_nothing_else() {
        let folder = folder(
            "A,dolly,1.00,0.10\nA,vicuna,2.00,0.10\nB,dolly,1.00,0.10\n",
            "A,dolly,9.00,0.10\nS,dolly,3.00,0.1\nS,vicuna,4.00,0.1\nS,unnatural,5.00,0.1\n\
             G,dolly,3.00,0.1\nG,vicuna,4.00,0.1\nG,unnatural,5.50,0.2\n",
            "A,dolly,1.00,0.10\nA,vicuna,2.00,0.20\nC,dolly,7.00,0.10\n",
        );
        let findings = audit(folder.path()).unwrap();
        assert_eq!(
            findings,
            [
                "table1 and table4 disagree: A on Vicuna is 2.00 ± 0.10 in table1 and 2.00 ± 0.20 in table4",
                "table2: S and G are equal in 2 cells and differ in one: \
                 Unnatural is 5.00 ± 0.10 for S and 5.50 ± 0.20 for G",
            ]
        );
    }

    #[test]
    fn a_row_copied_whole_is_found_too() {
        let folder = folder(
            "",
            "",
            "A,dolly,1,0\nA,vicuna,2,0\nB,dolly,1,0\nB,vicuna,2,0\n",
        );
        let findings = audit(folder.path()).unwrap();
        assert_eq!(
            findings,
            ["table4: A and B are equal in 2 cells, that is in all of them"]
        );
    }

    #[test]
    fn the_papers_tables_disagree_in_three_places() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/paper");
        let findings = audit(&dir).unwrap();
        assert_eq!(
            findings,
            [
                "table1 and table4 disagree: AlphaNet on Super-Natural is 25.27 ± 0.20 in table1 and 25.67 ± 0.20 in table4",
                "table1 and table4 disagree: AlphaNet on Unnatural is 27.56 ± 0.15 in table1 and 27.86 ± 0.15 in table4",
                "table2: SeqKD and GKD are equal in 4 cells and differ in one: \
                 Unnatural is 29.89 ± 0.10 for SeqKD and 29.79 ± 0.17 for GKD",
            ]
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", audit(folder.path()).unwrap_err());
        assert!(error.contains("table1.csv"), "{error}");
    }
}
