//! Where the paper's own tables disagree: cells that differ between two tables of the same experiment, and rows
//! that repeat another row.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::results::{Cell, Table, dataset_title, write_lines};

/// The score tables among the paper's files.
const TABLES: [&str; 3] = ["table1", "table2", "table4"];

/// Pairs of tables that report the same experiment: Table 4 is an ablation around the students of Table 1.
/// Table 2 has rows with the same names, but another pair of models.
const SAME_EXPERIMENT: [(&str, &str); 1] = [("table1", "table4")];

/// Fewer equal cells than this are no sign of a copied row.
const MIN_REPEATED_CELLS: usize = 2;

/// A score as it is printed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Printed {
    /// Mean ROUGE-L in percent.
    pub mean: f64,
    /// Standard deviation over the seeds.
    pub std: Option<f64>,
}

/// One disagreement.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Two tables give the same row and data set, and different scores.
    Contradiction {
        /// The tables, in the order of their numbers.
        tables: [String; 2],
        /// Label of the row.
        row: String,
        /// Name of the data set.
        dataset: String,
        /// What each of the tables prints.
        printed: [Printed; 2],
    },
    /// Two rows of one table are equal, or equal in all cells but one.
    RepeatedRow {
        /// The table.
        table: String,
        /// Labels of the two rows.
        rows: [String; 2],
        /// How many cells are equal in mean and standard deviation.
        equal_cells: usize,
        /// The data set of the one cell that differs, and what the two rows print there.
        differs: Option<(String, [Printed; 2])>,
    },
}

impl From<&Cell> for Printed {
    fn from(cell: &Cell) -> Self {
        Self {
            mean: cell.rouge_l_mean,
            std: cell.sampling_std,
        }
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.mean)?;
        self.std.map_or(Ok(()), |std| write!(f, " ± {std:.2}"))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradiction {
                tables: [one, two],
                row,
                dataset,
                printed: [a, b],
            } => write!(
                f,
                "{one} and {two} disagree: {row} on {} is {a} in {one} and {b} in {two}",
                dataset_title(dataset)
            ),
            Self::RepeatedRow {
                table,
                rows: [one, two],
                equal_cells,
                differs,
            } => {
                write!(
                    f,
                    "{table}: {one} and {two} are equal in {equal_cells} cells"
                )?;
                match differs {
                    Some((dataset, [a, b])) => write!(
                        f,
                        " and differ in one: {} is {a} for {one} and {b} for {two}",
                        dataset_title(dataset)
                    ),
                    None => write!(f, ", that is in all of them"),
                }
            }
        }
    }
}

/// Searches the paper's tables in `dir` (`table1.csv`, `table2.csv`, `table4.csv`).
///
/// # Errors
/// Names a file that is missing or malformed.
pub fn audit(dir: &Path) -> Result<Vec<Finding>> {
    let mut tables = Vec::new();
    for name in TABLES {
        tables.push((name, Table::read(&dir.join(format!("{name}.csv")))?));
    }
    let mut findings = Vec::new();
    for (one, two) in SAME_EXPERIMENT {
        let find = |name| tables.iter().find(|(other, _)| *other == name);
        if let (Some((_, a)), Some((_, b))) = (find(one), find(two)) {
            findings.extend(contradictions([one, two], [a, b]));
        }
    }
    for (name, table) in &tables {
        findings.extend(repeated_rows(name, table));
    }
    Ok(findings)
}

/// Writes findings as CSV: `finding,tables,rows,dataset,first_mean,first_std,second_mean,second_std`.
///
/// # Errors
/// Names the file.
pub fn write_findings(path: &Path, findings: &[Finding]) -> Result<()> {
    let header = [
        "finding",
        "tables",
        "rows",
        "dataset",
        "first_mean",
        "first_std",
        "second_mean",
        "second_std",
    ];
    let keys: Vec<(String, String)> = findings
        .iter()
        .map(|finding| match finding {
            Finding::Contradiction { tables, row, .. } => (tables.join("/"), row.clone()),
            Finding::RepeatedRow { table, rows, .. } => (table.clone(), rows.join("/")),
        })
        .collect();
    let lines = findings.iter().zip(&keys).map(|(finding, (tables, rows))| {
        let (kind, place) = match finding {
            Finding::Contradiction {
                dataset, printed, ..
            } => ("contradiction", Some((dataset, printed))),
            Finding::RepeatedRow { differs, .. } => (
                "repeated_row",
                differs
                    .as_ref()
                    .map(|(dataset, printed)| (dataset, printed)),
            ),
        };
        let side = |i: usize| place.map(|(_, printed)| printed[i]);
        [
            kind.into(),
            tables.as_str().into(),
            rows.as_str().into(),
            place.map(|(dataset, _)| dataset.as_str()).into(),
            side(0).map(|p| p.mean).into(),
            side(0).and_then(|p| p.std).into(),
            side(1).map(|p| p.mean).into(),
            side(1).and_then(|p| p.std).into(),
        ]
    });
    write_lines(path, header, lines)
}

fn contradictions<'a>(
    names: [&'a str; 2],
    tables: [&'a Table; 2],
) -> impl Iterator<Item = Finding> + 'a {
    tables[0].cells.iter().filter_map(move |cell| {
        let printed = [cell, tables[1].cell(&cell.row, &cell.dataset)?].map(Printed::from);
        (printed[0] != printed[1]).then(|| Finding::Contradiction {
            tables: names.map(str::to_string),
            row: cell.row.clone(),
            dataset: cell.dataset.clone(),
            printed,
        })
    })
}

fn repeated_rows(name: &str, table: &Table) -> Vec<Finding> {
    let (rows, datasets) = (table.rows(), table.datasets());
    let mut findings = Vec::new();
    for (i, one) in rows.iter().enumerate() {
        for two in &rows[i + 1..] {
            let pairs: Vec<(&str, [Printed; 2])> = datasets
                .iter()
                .filter_map(|dataset| {
                    let cells = [table.cell(one, dataset)?, table.cell(two, dataset)?];
                    Some((*dataset, cells.map(Printed::from)))
                })
                .collect();
            let differing: Vec<_> = pairs.iter().filter(|(_, [a, b])| a != b).collect();
            let equal_cells = pairs.len() - differing.len();
            if differing.len() <= 1 && equal_cells >= MIN_REPEATED_CELLS {
                findings.push(Finding::RepeatedRow {
                    table: name.to_string(),
                    rows: [one.to_string(), two.to_string()],
                    equal_cells,
                    differs: differing
                        .first()
                        .map(|(dataset, p)| (dataset.to_string(), *p)),
                });
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
        for (name, body) in TABLES.iter().zip([table1, table2, table4]) {
            fs::write(
                folder.path().join(format!("{name}.csv")),
                format!("{HEAD}{body}"),
            )
            .unwrap();
        }
        folder
    }

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(Finding::to_string).collect()
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
            texts(&findings),
            [
                "table1 and table4 disagree: A on Vicuna is 2.00 ± 0.10 in table1 and 2.00 ± 0.20 in table4",
                "table2: S and G are equal in 2 cells and differ in one: \
                 Unnatural is 5.00 ± 0.10 for S and 5.50 ± 0.20 for G",
            ]
        );
        let path = folder.path().join("audit.csv");
        write_findings(&path, &findings).unwrap();
        assert_eq!(
            fs::read_to_string(path).unwrap(),
            "finding,tables,rows,dataset,first_mean,first_std,second_mean,second_std\n\
             contradiction,table1/table4,A,vicuna,2.0000,0.1000,2.0000,0.2000\n\
             repeated_row,table2,S/G,unnatural,5.0000,0.1000,5.5000,0.2000\n"
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
            texts(&findings),
            ["table4: A and B are equal in 2 cells, that is in all of them"]
        );
    }

    #[test]
    fn the_papers_tables_disagree_in_three_places() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/paper");
        let findings = texts(&audit(&dir).unwrap());
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
