//! The CSV files a run leaves behind, and the paper's: reading, writing and folding them.
//!
//! | file | one line per | read and written by |
//! |---|---|---|
//! | `results/<profile>/<experiment>_scores.csv` | row, training seed, data set and sampling seed | [`write_scores`], for other programs |
//! | `results/<profile>/<experiment>_examples.csv` | the same, the scores of single answers | [`read_examples`], [`write_examples`] |
//! | `results/<profile>/<experiment>.csv` | row and data set | [`Table::read`], [`Table::write`], from [`fold`] |
//! | `results/<profile>/figure1.csv`, `<experiment>_curves.csv` | loss, training seed and epoch | [`read_curve`], [`write_curve`] |
//! | `results/<profile>/<experiment>_masses.csv` | loss, training seed and validation, where `masses` is asked for | [`read_masses`], [`write_masses`] |
//! | `results/paper/*.csv` | as the two above | [`Table::read`], [`read_curve`] |
//!
//! Floats are written with four decimals and lines end in LF, so equal results are equal files. Scores are in percent
//! (F1 x 100), as in the paper.

mod curve;
mod examples;
mod masses;
mod score;
mod sheet;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use abkd_metrics::stats;
use anyhow::{Context, Result, ensure};
use polars::prelude::{Column, DataFrame, GroupsIndicator};

pub use curve::{CurvePoint, best_point, mean_curve, read_curve, write_curve};
pub use examples::{Examples, read_examples, write_examples};
pub use masses::{MassPoint, read_masses, write_masses};
pub use score::{Score, write_scores};
pub(crate) use sheet::Sheet;
pub use sheet::{Field, csv_bytes, write_atomic, write_lines};

/// The folder of partial results, below the results of their profile.
pub(crate) const PARTIAL: &str = "partial";

const CELL_COLUMNS: [&str; 7] = [
    "dataset",
    "rouge_l_mean",
    "training_std",
    "sampling_std",
    "training_seeds",
    "sampling_seeds",
    "exact_match_mean",
];
/// Columns of the paper's tables; their spread is over the sampling seeds of one student.
const PAPER_COLUMNS: [&str; 3] = ["dataset", "rouge_l_mean", "rouge_l_std"];
/// Allowed names of a table's first column.
pub(crate) const ROW_KEYS: [&str; 2] = ["loss", "method"];

/// One cell of a table: a row on a data set, folded over seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Label of the row.
    pub row: String,
    /// Name of the data set.
    pub dataset: String,
    /// Mean over all trainings and sampling seeds, in percent.
    pub rouge_l_mean: f64,
    /// Sample standard deviation over the trainings, each the mean of its sampling seeds; absent for a single training.
    pub training_std: Option<f64>,
    /// Standard deviation over the sampling seeds of a trained student, pooled over the trainings; absent for a single
    /// sampling seed.
    pub sampling_std: Option<f64>,
    /// How many trainings were folded; the paper's files do not say.
    pub training_seeds: Option<u64>,
    /// Smallest number of sampling seeds of a training; the paper's files do not say.
    pub sampling_seeds: Option<u64>,
    /// Mean exact match in percent; the paper's files do not say.
    pub exact_match_mean: Option<f64>,
}

impl Cell {
    /// The spread over the trainings if there are several, else over the sampling seeds of the only one.
    pub fn spread(&self) -> Option<f64> {
        self.training_std.or(self.sampling_std)
    }
}

/// A table of ROUGE-L scores. Rows and data sets keep the order in which they were given.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Name of the first column: `loss` or `method`.
    pub row_key: String,
    /// The cells, row by row.
    pub cells: Vec<Cell>,
}

/// Distinct values in the order of their first appearance.
pub fn distinct<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    values
        .into_iter()
        .filter(|value| seen.insert(*value))
        .collect()
}

/// The paper's heading for a data set; an unknown name is returned unchanged.
pub fn dataset_title(name: &str) -> &str {
    match name {
        "dolly" => "Dolly",
        "self_instruct" => "Self-Instruct",
        "vicuna" => "Vicuna",
        "super_natural" => "Super-Natural",
        "unnatural" => "Unnatural",
        other => other,
    }
}

/// Text as a cell of a Markdown table, which is one line without bars.
pub(crate) fn markdown_cell(text: &str) -> String {
    text.replace('|', "\\|").replace(char::is_control, " ")
}

/// Headings of data sets by their names; those of the paper where none is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Titles(BTreeMap<String, String>);

impl Titles {
    /// The heading of a set.
    pub fn of<'a>(&'a self, name: &'a str) -> &'a str {
        self.0
            .get(name)
            .map_or_else(|| dataset_title(name), String::as_str)
    }
}

impl FromIterator<(String, String)> for Titles {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(titles: I) -> Self {
        Self(titles.into_iter().collect())
    }
}

impl Table {
    /// Row labels in the order of their first appearance.
    pub fn rows(&self) -> Vec<&str> {
        distinct(self.cells.iter().map(|cell| cell.row.as_str()))
    }

    /// Data sets in the order of their first appearance.
    pub fn datasets(&self) -> Vec<&str> {
        distinct(self.cells.iter().map(|cell| cell.dataset.as_str()))
    }

    /// The cell of a row on a data set, if there is one.
    pub fn cell(&self, row: &str, dataset: &str) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|cell| cell.row == row && cell.dataset == dataset)
    }

    /// Reads a folded table, ours or the paper's; the latter has one spread and no counts.
    ///
    /// # Errors
    /// Names the file, and the line and column where a value is wrong or a cell is given twice.
    pub fn read(path: &Path) -> Result<Self> {
        let headers: Vec<Vec<&str>> = [&CELL_COLUMNS[..], &PAPER_COLUMNS[..]]
            .into_iter()
            .flat_map(|columns| ROW_KEYS.map(|key| [&[key], columns].concat()))
            .collect();
        let accepted: Vec<&[&str]> = headers.iter().map(Vec::as_slice).collect();
        let sheet = Sheet::open(path, &accepted)?;
        let ours = sheet.columns.len() > 1 + PAPER_COLUMNS.len();
        let row_key = sheet.columns[0].clone();
        let mut cells: Vec<Cell> = Vec::with_capacity(sheet.len());
        let mut seen = HashSet::new();
        for line in 0..sheet.len() {
            let cell = Cell {
                row: sheet.text(line, 0)?.to_string(),
                dataset: sheet.text(line, 1)?.to_string(),
                rouge_l_mean: sheet.number(line, 2)?,
                training_std: if ours {
                    sheet.optional(line, 3, Sheet::number)?
                } else {
                    None
                },
                sampling_std: sheet.optional(line, if ours { 4 } else { 3 }, Sheet::number)?,
                training_seeds: sheet.optional(line, 5, Sheet::whole)?,
                sampling_seeds: sheet.optional(line, 6, Sheet::whole)?,
                exact_match_mean: sheet.optional(line, 7, Sheet::number)?,
            };
            ensure!(
                seen.insert((cell.row.clone(), cell.dataset.clone())),
                "{}: {} on {} is given twice",
                sheet.place(line, 0),
                cell.row,
                cell.dataset
            );
            cells.push(cell);
        }
        Ok(Self { row_key, cells })
    }

    /// Writes the folded table with an atomic write.
    ///
    /// # Errors
    /// Names the file, or the cell that is not a finite number.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_lines(
            path,
            &[&[self.row_key.as_str()][..], &CELL_COLUMNS].concat(),
            self.cells.iter().map(|cell| {
                vec![
                    cell.row.as_str().into(),
                    cell.dataset.as_str().into(),
                    cell.rouge_l_mean.into(),
                    cell.training_std.into(),
                    cell.sampling_std.into(),
                    cell.training_seeds.into(),
                    cell.sampling_seeds.into(),
                    cell.exact_match_mean.into(),
                ]
            }),
        )
    }
}

/// Folds raw scores over training and sampling seeds: mean, both spreads and both counts.
///
/// # Errors
/// A second experiment among the scores, a seed that is given twice for one row and data set, or a row key that is
/// neither `loss` nor `method`.
pub fn fold(scores: &[Score], row_key: &str) -> Result<Table> {
    ensure!(
        ROW_KEYS.contains(&row_key),
        "row key `{row_key}`: must be one of {}",
        ROW_KEYS.join(", ")
    );
    let mut seen = HashSet::new();
    for score in scores {
        ensure!(
            score.experiment == scores[0].experiment,
            "scores of two experiments in one table: {} and {}",
            scores[0].experiment,
            score.experiment
        );
        ensure!(
            seen.insert((
                &score.row,
                score.training_seed,
                &score.dataset,
                score.sampling_seed
            )),
            "{}: {}{} on {} has two scores for seed {}",
            score.experiment,
            score.row,
            score
                .training_seed
                .map_or(String::new(), |s| format!(", training {s},")),
            score.dataset,
            score.sampling_seed
        );
    }
    let keys = DataFrame::new_infer_height(vec![
        Column::new(
            "row".into(),
            scores.iter().map(|s| s.row.as_str()).collect::<Vec<_>>(),
        ),
        Column::new(
            "dataset".into(),
            scores
                .iter()
                .map(|s| s.dataset.as_str())
                .collect::<Vec<_>>(),
        ),
    ])?;
    let groups = keys
        .group_by_stable(["row", "dataset"])
        .context("group scores")?;
    let mut cells = groups
        .get_groups()
        .iter()
        .map(|group| {
            let members: Vec<&Score> = match group {
                GroupsIndicator::Idx((_, all)) => {
                    all.iter().map(|i| &scores[*i as usize]).collect()
                }
                GroupsIndicator::Slice([first, length]) => scores
                    .iter()
                    .skip(first as usize)
                    .take(length as usize)
                    .collect(),
            };
            fold_cell(&members)
        })
        .collect::<Option<Vec<_>>>()
        .context("group scores: an empty group")?;
    // Scores may come data set by data set; the table reads row by row.
    let rows = distinct(scores.iter().map(|score| score.row.as_str()));
    let datasets = distinct(scores.iter().map(|score| score.dataset.as_str()));
    let place = |names: &[&str], name: &str| names.iter().position(|other| *other == name);
    cells.sort_by_key(|cell| (place(&rows, &cell.row), place(&datasets, &cell.dataset)));
    Ok(Table {
        row_key: row_key.to_string(),
        cells,
    })
}

/// One cell, from the scores of a row on a data set.
fn fold_cell(members: &[&Score]) -> Option<Cell> {
    let mut trainings: BTreeMap<Option<u64>, Vec<f64>> = BTreeMap::new();
    for score in members {
        let scores = trainings.entry(score.training_seed).or_default();
        scores.push(score.rouge_l);
    }
    let means: Vec<f64> = trainings.values().filter_map(|s| stats::mean(s)).collect();
    // Pooled: each training's squares about its own mean.
    let (mut squares, mut freedom) = (0.0, 0);
    for scores in trainings.values() {
        if let Some(std) = stats::std(scores) {
            squares += std * std * (scores.len() - 1) as f64;
            freedom += scores.len() - 1;
        }
    }
    let exact_match: Vec<f64> = members.iter().map(|score| score.exact_match).collect();
    Some(Cell {
        row: members.first()?.row.clone(),
        dataset: members.first()?.dataset.clone(),
        // Each training has equal weight, as in the spread, even if some have more finished answers than others.
        rouge_l_mean: stats::mean(&means)?,
        training_std: stats::std(&means),
        sampling_std: (freedom > 0).then(|| (squares / freedom as f64).sqrt()),
        training_seeds: Some(trainings.len() as u64),
        sampling_seeds: trainings.values().map(|s| s.len() as u64).min(),
        exact_match_mean: stats::mean(&exact_match),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn score(row: &str, dataset: &str, seed: u64, rouge_l: f64) -> Score {
        Score {
            experiment: "table1".into(),
            row: row.into(),
            training_seed: None,
            dataset: dataset.into(),
            sampling_seed: seed,
            n: 500,
            rouge_l,
            exact_match: rouge_l / 10.0,
            mean_tokens: 80.0,
            examples: Vec::new(),
        }
    }

    /// Data set by data set, as an evaluator may deliver them; `RKLD` has one seed only.
    fn scores() -> Vec<Score> {
        vec![
            score("FKLD", "vicuna", 10, 10.0),
            score("FKLD", "vicuna", 20, 11.0),
            score("FKLD", "vicuna", 30, 12.0),
            score("ABKD", "vicuna", 10, 20.0),
            score("ABKD", "vicuna", 20, 23.0),
            score("RKLD", "vicuna", 10, 15.0),
            score("FKLD", "dolly", 10, 1.0),
            score("FKLD", "dolly", 20, 1.0),
        ]
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        format!("{:#}", result.expect_err("must fail"))
    }

    #[test]
    fn folds_by_hand_and_keeps_the_order() {
        let table = fold(&scores(), "loss").unwrap();
        assert_eq!(table.rows(), ["FKLD", "ABKD", "RKLD"]);
        assert_eq!(table.datasets(), ["vicuna", "dolly"]);
        let cells: Vec<_> = table
            .cells
            .iter()
            .map(|c| {
                (
                    c.row.as_str(),
                    c.dataset.as_str(),
                    c.rouge_l_mean,
                    c.sampling_std,
                    c.sampling_seeds,
                )
            })
            .collect();
        assert_eq!(
            cells,
            [
                ("FKLD", "vicuna", 11.0, Some(1.0), Some(3)),
                ("FKLD", "dolly", 1.0, Some(0.0), Some(2)),
                ("ABKD", "vicuna", 21.5, Some(4.5_f64.sqrt()), Some(2)),
                ("RKLD", "vicuna", 15.0, None, Some(1)),
            ]
        );
        assert_eq!(
            table.cell("ABKD", "vicuna").unwrap().exact_match_mean,
            Some(2.15)
        );
    }

    #[test]
    fn both_spreads_by_hand() {
        let of = |training, seed, rouge| Score {
            training_seed: Some(training),
            ..score("FKLD", "dolly", seed, rouge)
        };
        // Trainings with means 11 and 14; squares about them 2 and 8.
        let scores = [
            of(1, 10, 10.0),
            of(1, 20, 12.0),
            of(2, 10, 12.0),
            of(2, 20, 16.0),
        ];
        let table = fold(&scores, "loss").unwrap();
        let cell = &table.cells[0];
        assert_eq!(cell.rouge_l_mean, 12.5);
        assert!((cell.training_std.unwrap() - 4.5f64.sqrt()).abs() < 1e-12);
        assert!((cell.sampling_std.unwrap() - 5f64.sqrt()).abs() < 1e-12);
        assert_eq!(
            (cell.training_seeds, cell.sampling_seeds),
            (Some(2), Some(2))
        );
        // The third training has only one answer so far: the mean is over trainings.
        let more = [&scores[..], &[of(3, 10, 20.0)]].concat();
        let cell = &fold(&more, "loss").unwrap().cells[0];
        assert_eq!(cell.rouge_l_mean, 15.0);
        assert_eq!(
            (cell.training_seeds, cell.sampling_seeds),
            (Some(3), Some(1))
        );
    }

    #[test]
    fn refuses_what_cannot_be_folded() {
        let mut twice = scores();
        twice.push(score("FKLD", "dolly", 20, 2.0));
        assert!(message(fold(&twice, "loss")).contains("two scores for seed 20"));
        let mut mixed = scores();
        mixed[3].experiment = "table4".into();
        assert!(message(fold(&mixed, "loss")).contains("table1 and table4"));
        assert!(message(fold(&scores(), "row")).contains("`row`"));
        assert_eq!(fold(&[], "loss").unwrap().cells, []);
    }

    #[test]
    fn files_are_byte_identical_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny/table1.csv");
        let table = fold(&scores(), "loss").unwrap();
        table.write(&path).unwrap();
        let first = fs::read_to_string(&path).unwrap();
        assert_eq!(
            first,
            "loss,dataset,rouge_l_mean,training_std,sampling_std,training_seeds,sampling_seeds,exact_match_mean\n\
             FKLD,vicuna,11.0000,,1.0000,1,3,1.1000\n\
             FKLD,dolly,1.0000,,0.0000,1,2,0.1000\n\
             ABKD,vicuna,21.5000,,2.1213,1,2,2.1500\n\
             RKLD,vicuna,15.0000,,,1,1,1.5000\n"
        );
        Table::read(&path).unwrap().write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first);

        let path = folder.path().join("tiny/table1_scores.csv");
        write_scores(&path, &scores()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with(
                "experiment,row,training_seed,dataset,sampling_seed,n,rouge_l,exact_match,mean_tokens\n\
                 table1,FKLD,,vicuna,10,500,10.0000,1.0000,80.0000\n"
            ),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1 + scores().len());
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 2, "no scratch file may stay behind");
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("paper.csv");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            message(Table::read(&path))
        };
        let head = "loss,dataset,rouge_l_mean,rouge_l_std\n";
        let bad = read(&format!("{head}FKLD,dolly,1.0,0.1\nRKLD,dolly,2O.5,0.1\n"));
        assert!(
            bad.contains("paper.csv:3:12: rouge_l_mean must be a number, got `2O.5`"),
            "{bad}"
        );
        let bad = read(&format!("{head}FKLD,dolly,NaN,0.1\n"));
        assert!(bad.contains("paper.csv:2:12"), "{bad}");
        let bad = read(&format!("{head}FKLD,dolly\n"));
        assert!(
            bad.contains("paper.csv") && bad.contains("line: 2"),
            "{bad}"
        );
        let bad = read(&format!("{head}\nFKLD,dolly,1.0,0.1\n"));
        assert!(bad.contains("paper.csv:2:1: blank line"), "{bad}");
        let bad = read(&format!("{head}FKLD,vicuna,1,1\r\nFKLD,dolly,,0.1\r\n"));
        assert!(
            bad.contains("paper.csv:3:12: rouge_l_mean is empty"),
            "{bad}"
        );
        let bad = read(&format!("{head}FKLD,dolly,1.0,0.1\nFKLD,dolly,1.0,0.1\n"));
        assert!(
            bad.contains("paper.csv:3:1: FKLD on dolly is given twice"),
            "{bad}"
        );
        let bad = read("loss,data,rouge_l_mean,rouge_l_std\nFKLD,dolly,1.0,0.1\n");
        assert!(
            bad.contains("paper.csv:1:1: wrong header `loss,data,"),
            "{bad}"
        );
        assert!(read(&format!("{head}FKLD,dolly,1.0,0.1,9\n")).contains("paper.csv"));
        assert!(read("").contains("paper.csv"));
        let bad = message(Table::read(&folder.path().join("none.csv")));
        assert!(bad.contains("none.csv"), "{bad}");

        let mut endless = fold(&scores(), "loss").unwrap();
        endless.cells[1].rouge_l_mean = f64::NAN;
        assert!(message(endless.write(&path)).contains("line 3: rouge_l_mean is NaN"));
    }
}
