//! The CSV files a run leaves behind, and the paper's: reading, writing and folding them.
//!
//! | file | one line per | read and written by |
//! |---|---|---|
//! | `results/<profile>/<experiment>_scores.csv` | row, data set and seed | [`read_scores`], [`write_scores`] |
//! | `results/<profile>/<experiment>.csv` | row and data set | [`Table::read`], [`Table::write`], from [`fold`] |
//! | `results/<profile>/figure1.csv` | loss and epoch | [`read_curve`], [`write_curve`] |
//! | `results/paper/*.csv` | as the two above | [`Table::read`], [`read_curve`] |
//!
//! Floats are written with four decimals and lines end in LF, so equal results are equal files. Scores are in percent
//! (F1 x 100), as in the paper.

use std::collections::HashSet;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use polars::prelude::*;

const SCORE_COLUMNS: [&str; 8] =
    ["experiment", "row", "dataset", "seed", "n", "rouge_l", "exact_match", "mean_tokens"];
const CELL_COLUMNS: [&str; 5] =
    ["dataset", "rouge_l_mean", "rouge_l_std", "n_seeds", "exact_match_mean"];
const CURVE_COLUMNS: [&str; 4] =
    ["loss", "epoch", "dolly_validation_rouge_l", "validation_loss"];

/// What the first column of a table may be called.
const ROW_KEYS: [&str; 2] = ["loss", "method"];

/// One test score: one student, one data set, one sampling seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Name of the experiment, e.g. `table1`.
    pub experiment: String,
    /// Label of the row as the paper prints it, e.g. `Jensen's KL`.
    pub row: String,
    /// Name of the data set, e.g. `self_instruct`.
    pub dataset: String,
    /// Sampling seed.
    pub seed: u64,
    /// How many examples were answered.
    pub n: u64,
    /// ROUGE-L F1 averaged over the examples, in percent.
    pub rouge_l: f64,
    /// Share of exactly matching answers, in percent.
    pub exact_match: f64,
    /// Mean length of the answers in tokens.
    pub mean_tokens: f64,
}

/// One cell of a table: a row on a data set, folded over seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Label of the row.
    pub row: String,
    /// Name of the data set.
    pub dataset: String,
    /// Mean over the seeds, in percent.
    pub rouge_l_mean: f64,
    /// Sample standard deviation over the seeds; absent for a single seed.
    pub rouge_l_std: Option<f64>,
    /// How many seeds were folded; the paper's files do not say.
    pub n_seeds: Option<u64>,
    /// Mean exact match in percent; the paper's files do not say.
    pub exact_match_mean: Option<f64>,
}

/// A table of ROUGE-L scores. Rows and data sets keep the order in which they were given.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Name of the first column: `loss` or `method`.
    pub row_key: String,
    /// The cells, row by row.
    pub cells: Vec<Cell>,
}

/// One point of a validation curve.
#[derive(Clone, Debug, PartialEq)]
pub struct CurvePoint {
    /// Label of the loss.
    pub loss: String,
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// ROUGE-L F1 on the Dolly validation set, in percent.
    pub dolly_validation_rouge_l: f64,
    /// Validation loss in nats per token; the paper's file has none.
    pub validation_loss: Option<f64>,
}

/// Distinct values in the order of their first appearance.
pub fn distinct<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    values.into_iter().filter(|value| seen.insert(*value)).collect()
}

/// The paper's heading for a data set; a name it does not know is returned as it is.
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
        self.cells.iter().find(|cell| cell.row == row && cell.dataset == dataset)
    }

    /// Reads a folded table of ours, or one of the paper's, which lacks the last two columns.
    ///
    /// # Errors
    /// Names the file, and the line and column where a value is wrong or a cell is given twice.
    pub fn read(path: &Path) -> Result<Self> {
        let headers = ROW_KEYS.map(|key| [&[key], &CELL_COLUMNS[..]].concat());
        let accepted: Vec<&[&str]> =
            headers.iter().flat_map(|header| [&header[..4], &header[..]]).collect();
        let sheet = Sheet::open(path, &accepted)?;
        let row_key = sheet.columns[0].clone();
        let mut cells: Vec<Cell> = Vec::with_capacity(sheet.len());
        let mut seen = HashSet::new();
        for line in 0..sheet.len() {
            let cell = Cell {
                row: sheet.text(line, 0)?.to_string(),
                dataset: sheet.text(line, 1)?.to_string(),
                rouge_l_mean: sheet.float(line, 2)?,
                rouge_l_std: sheet.optional(line, 3, Sheet::float)?,
                n_seeds: sheet.optional(line, 4, Sheet::integer)?,
                exact_match_mean: sheet.optional(line, 5, Sheet::float)?,
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

    /// Writes the folded table, replacing the file in one step.
    ///
    /// # Errors
    /// Names the file, or the cell that is not a finite number.
    pub fn write(&self, path: &Path) -> Result<()> {
        let cells = &self.cells;
        write_frame(
            path,
            vec![
                texts(&self.row_key, cells, |cell| &cell.row),
                texts("dataset", cells, |cell| &cell.dataset),
                values("rouge_l_mean", cells, |cell| Some(cell.rouge_l_mean)),
                values("rouge_l_std", cells, |cell| cell.rouge_l_std),
                values("n_seeds", cells, |cell| cell.n_seeds),
                values("exact_match_mean", cells, |cell| cell.exact_match_mean),
            ],
        )
    }
}

/// Writes raw scores, replacing the file in one step.
///
/// # Errors
/// Names the file, or the score that is not a finite number.
pub fn write_scores(path: &Path, scores: &[Score]) -> Result<()> {
    write_frame(path, score_columns(scores))
}

/// Reads raw scores.
///
/// # Errors
/// Names the file, and the line and column where a value is wrong.
pub fn read_scores(path: &Path) -> Result<Vec<Score>> {
    let sheet = Sheet::open(path, &[&SCORE_COLUMNS])?;
    (0..sheet.len())
        .map(|line| {
            Ok(Score {
                experiment: sheet.text(line, 0)?.to_string(),
                row: sheet.text(line, 1)?.to_string(),
                dataset: sheet.text(line, 2)?.to_string(),
                seed: sheet.integer(line, 3)?,
                n: sheet.integer(line, 4)?,
                rouge_l: sheet.float(line, 5)?,
                exact_match: sheet.float(line, 6)?,
                mean_tokens: sheet.float(line, 7)?,
            })
        })
        .collect()
}

/// Folds raw scores over their seeds: mean, sample standard deviation (n - 1) and count.
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
            seen.insert((&score.row, &score.dataset, score.seed)),
            "{}: {} on {} has two scores for seed {}",
            score.experiment,
            score.row,
            score.dataset,
            score.seed
        );
    }
    let folded = DataFrame::new_infer_height(score_columns(scores))?
        .lazy()
        .group_by_stable([col("row"), col("dataset")])
        .agg([
            col("rouge_l").mean().alias("rouge_l_mean"),
            col("rouge_l").std(1).alias("rouge_l_std"),
            len().cast(DataType::UInt64).alias("n_seeds"),
            col("exact_match").mean().alias("exact_match_mean"),
        ])
        .collect()
        .context("fold scores over seeds")?;
    let rows = folded.column("row")?.str()?;
    let datasets = folded.column("dataset")?.str()?;
    let means = folded.column("rouge_l_mean")?.f64()?;
    let stds = folded.column("rouge_l_std")?.f64()?;
    let counts = folded.column("n_seeds")?.u64()?;
    let matches = folded.column("exact_match_mean")?.f64()?;
    let mut cells = (0..folded.height())
        .map(|i| {
            Some(Cell {
                row: rows.get(i)?.to_string(),
                dataset: datasets.get(i)?.to_string(),
                rouge_l_mean: means.get(i)?,
                rouge_l_std: stds.get(i),
                n_seeds: counts.get(i),
                exact_match_mean: matches.get(i),
            })
        })
        .collect::<Option<Vec<_>>>()
        .context("fold scores over seeds: a mean is missing")?;
    // Scores may come data set by data set; the table reads row by row.
    let order = |names: Vec<&str>, name: &str| names.iter().position(|other| *other == name);
    cells.sort_by_key(|cell| {
        (
            order(distinct(scores.iter().map(|s| s.row.as_str())), &cell.row),
            order(distinct(scores.iter().map(|s| s.dataset.as_str())), &cell.dataset),
        )
    });
    Ok(Table { row_key: row_key.to_string(), cells })
}

/// Writes validation curves, replacing the file in one step.
///
/// # Errors
/// Names the file, or the point that is not a finite number.
pub fn write_curve(path: &Path, points: &[CurvePoint]) -> Result<()> {
    write_frame(
        path,
        vec![
            texts("loss", points, |point| &point.loss),
            values("epoch", points, |point| Some(point.epoch)),
            values("dolly_validation_rouge_l", points, |point| {
                Some(point.dolly_validation_rouge_l)
            }),
            values("validation_loss", points, |point| point.validation_loss),
        ],
    )
}

/// Reads validation curves, ours or the paper's, which has no validation loss.
///
/// # Errors
/// Names the file, and the line and column where a value is wrong.
pub fn read_curve(path: &Path) -> Result<Vec<CurvePoint>> {
    let sheet = Sheet::open(path, &[&CURVE_COLUMNS[..3], &CURVE_COLUMNS])?;
    (0..sheet.len())
        .map(|line| {
            Ok(CurvePoint {
                loss: sheet.text(line, 0)?.to_string(),
                epoch: sheet.integer(line, 1)?,
                dolly_validation_rouge_l: sheet.float(line, 2)?,
                validation_loss: sheet.optional(line, 3, Sheet::float)?,
            })
        })
        .collect()
}

/// Writes a file beside its destination, then renames it: a reader never sees half a file.
///
/// # Errors
/// Names the file.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{}: not a file name", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let scratch = folder.join(format!(".{}.{}", std::process::id(), name.to_string_lossy()));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = fs::File::create(&scratch)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&scratch, path)
    };
    write().with_context(|| format!("write {}", path.display())).inspect_err(|_| {
        // Nothing may be there to remove; the error above is the one to report.
        let _ = fs::remove_file(&scratch);
    })
}

/// A column of text for [`write_frame`].
pub(crate) fn texts<T>(name: &str, items: &[T], get: impl Fn(&T) -> &str) -> Column {
    Column::new(name.into(), items.iter().map(get).collect::<Vec<_>>())
}

/// A column of numbers for [`write_frame`]; `None` becomes an empty field.
pub(crate) fn values<T, V>(name: &str, items: &[T], get: impl Fn(&T) -> Option<V>) -> Column
where
    Series: NamedFrom<Vec<Option<V>>, [Option<V>]>,
{
    Column::new(name.into(), items.iter().map(get).collect::<Vec<Option<V>>>())
}

/// Writes columns as CSV: LF, four decimals, replacing the file in one step.
pub(crate) fn write_frame(path: &Path, columns: Vec<Column>) -> Result<()> {
    let mut frame = DataFrame::new_infer_height(columns)
        .with_context(|| format!("lay out {}", path.display()))?;
    for column in frame.columns() {
        let Ok(floats) = column.f64() else { continue };
        if let Some(line) = floats.iter().position(|v| v.is_some_and(|v| !v.is_finite())) {
            bail!(
                "write {}: {} is not a finite number in line {}",
                path.display(),
                column.name(),
                line + 2
            );
        }
    }
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes)
        .with_float_precision(Some(4))
        .finish(&mut frame)
        .with_context(|| format!("write {}", path.display()))?;
    write_atomic(path, &bytes)
}

fn score_columns(scores: &[Score]) -> Vec<Column> {
    vec![
        texts("experiment", scores, |score| &score.experiment),
        texts("row", scores, |score| &score.row),
        texts("dataset", scores, |score| &score.dataset),
        values("seed", scores, |score| Some(score.seed)),
        values("n", scores, |score| Some(score.n)),
        values("rouge_l", scores, |score| Some(score.rouge_l)),
        values("exact_match", scores, |score| Some(score.exact_match)),
        values("mean_tokens", scores, |score| Some(score.mean_tokens)),
    ]
}

/// A CSV file as text fields, which know their place in the file.
struct Sheet {
    file: String,
    columns: Vec<String>,
    fields: Vec<StringChunked>,
}

impl Sheet {
    fn open(path: &Path, accepted: &[&[&str]]) -> Result<Self> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("read {file}"))?;
        // The reader drops blank lines silently, and every line number after them would be wrong.
        if let Some(line) = text.lines().position(|line| line.trim().is_empty()) {
            bail!("{file}:{}:1: blank line", line + 1);
        }
        let frame = CsvReadOptions::default()
            .with_infer_schema_length(Some(0))
            .into_reader_with_file_handle(Cursor::new(text.replace("\r\n", "\n")))
            .finish()
            .with_context(|| format!("read {file}"))?;
        let columns: Vec<String> =
            frame.get_column_names().iter().map(|name| name.to_string()).collect();
        if !accepted.iter().any(|header| columns == *header) {
            let headers: Vec<String> = accepted.iter().map(|header| header.join(",")).collect();
            bail!(
                "{file}:1:1: wrong header `{}`, expected `{}`",
                columns.join(","),
                headers.join("` or `")
            );
        }
        let fields = frame
            .columns()
            .iter()
            .map(|column| Ok(column.str()?.clone()))
            .collect::<Result<_>>()
            .with_context(|| format!("read {file}"))?;
        Ok(Self { file, columns, fields })
    }

    fn len(&self) -> usize {
        self.fields[0].len()
    }

    fn get(&self, line: usize, column: usize) -> Option<&str> {
        self.fields.get(column)?.get(line)
    }

    /// `file:line:column` of a field, the column counted in characters (exact while no field is quoted).
    fn place(&self, line: usize, column: usize) -> String {
        let before: usize =
            (0..column).map(|i| self.get(line, i).map_or(0, |s| s.chars().count()) + 1).sum();
        format!("{}:{}:{}", self.file, line + 2, before + 1)
    }

    fn text(&self, line: usize, column: usize) -> Result<&str> {
        self.get(line, column).ok_or_else(|| {
            anyhow!("{}: {} is empty", self.place(line, column), self.columns[column])
        })
    }

    fn integer<T: FromStr>(&self, line: usize, column: usize) -> Result<T> {
        let text = self.text(line, column)?;
        text.parse().map_err(|_| {
            let key = &self.columns[column];
            anyhow!("{}: {key} must be a whole number, got `{text}`", self.place(line, column))
        })
    }

    fn float(&self, line: usize, column: usize) -> Result<f64> {
        let text = self.text(line, column)?;
        text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| {
            let key = &self.columns[column];
            anyhow!("{}: {key} must be a number, got `{text}`", self.place(line, column))
        })
    }

    /// A field that may be empty, or whose column the file does not have.
    fn optional<T>(
        &self,
        line: usize,
        column: usize,
        read: impl Fn(&Self, usize, usize) -> Result<T>,
    ) -> Result<Option<T>> {
        self.get(line, column).map(|_| read(self, line, column)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(row: &str, dataset: &str, seed: u64, rouge_l: f64) -> Score {
        Score {
            experiment: "table1".into(),
            row: row.into(),
            dataset: dataset.into(),
            seed,
            n: 500,
            rouge_l,
            exact_match: rouge_l / 10.0,
            mean_tokens: 80.0,
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
            .map(|c| (c.row.as_str(), c.dataset.as_str(), c.rouge_l_mean, c.rouge_l_std, c.n_seeds))
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
        assert_eq!(table.cell("ABKD", "vicuna").unwrap().exact_match_mean, Some(2.15));
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
            "loss,dataset,rouge_l_mean,rouge_l_std,n_seeds,exact_match_mean\n\
             FKLD,vicuna,11.0000,1.0000,3,1.1000\n\
             FKLD,dolly,1.0000,0.0000,2,0.1000\n\
             ABKD,vicuna,21.5000,2.1213,2,2.1500\n\
             RKLD,vicuna,15.0000,,1,1.5000\n"
        );
        Table::read(&path).unwrap().write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first);

        let path = folder.path().join("tiny/table1_scores.csv");
        write_scores(&path, &scores()).unwrap();
        assert_eq!(read_scores(&path).unwrap(), scores());
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 2, "no scratch file may stay behind");
    }

    #[test]
    fn curves_read_back_with_and_without_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figure1.csv");
        let point = |epoch, validation_loss| CurvePoint {
            loss: "Jensen's KL".into(),
            epoch,
            dolly_validation_rouge_l: 12.5,
            validation_loss,
        };
        let points = [point(1, Some(2.25)), point(2, None)];
        write_curve(&path, &points).unwrap();
        assert_eq!(read_curve(&path).unwrap(), points);
        fs::write(&path, "loss,epoch,dolly_validation_rouge_l\r\nJensen's KL,2,12.50\r\n").unwrap();
        assert_eq!(read_curve(&path).unwrap(), [point(2, None)]);
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
        assert!(bad.contains("paper.csv:3:12: rouge_l_mean must be a number, got `2O.5`"), "{bad}");
        let bad = read(&format!("{head}FKLD,dolly,NaN,0.1\n"));
        assert!(bad.contains("paper.csv:2:12"), "{bad}");
        let bad = read(&format!("{head}FKLD,dolly\n"));
        assert!(bad.contains("rouge_l_mean is empty"), "{bad}");
        let bad = read(&format!("{head}\nFKLD,dolly,1.0,0.1\n"));
        assert!(bad.contains("paper.csv:2:1: blank line"), "{bad}");
        let bad = read(&format!("{head}FKLD,dolly,1.0,0.1\nFKLD,dolly,1.0,0.1\n"));
        assert!(bad.contains("paper.csv:3:1: FKLD on dolly is given twice"), "{bad}");
        let bad = read("loss,data,rouge_l_mean,rouge_l_std\nFKLD,dolly,1.0,0.1\n");
        assert!(bad.contains("paper.csv:1:1: wrong header `loss,data,"), "{bad}");
        assert!(read(&format!("{head}FKLD,dolly,1.0,0.1,9\n")).contains("paper.csv"));
        assert!(read("").contains("paper.csv"));
        let bad = message(Table::read(&folder.path().join("none.csv")));
        assert!(bad.contains("none.csv"), "{bad}");

        let mut endless = fold(&scores(), "loss").unwrap();
        endless.cells[1].rouge_l_mean = f64::NAN;
        assert!(message(endless.write(&path)).contains("rouge_l_mean is not a finite number"));
    }
}
