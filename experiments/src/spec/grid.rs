//! A grid of settings: each row at each point of the product of some lists.

use anyhow::{Result, bail, ensure};

use super::Row;
use super::file::Step::Key;
use super::file::TomlFile;
use crate::suggest::nearest;

/// Maximum number of rows that a grid expands to.
const LARGEST: usize = 10_000;
/// Tables of a row whose keys a grid may set.
const TABLES: [&str; 3] = ["params", "train", "settings"];

/// A row of a grid: which row of the file it comes from, and its point.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Index of the row in the file.
    pub row: usize,
    /// Label of that row.
    pub label: String,
    /// Values of the grid's keys, in the order of [`Grid::keys`].
    pub values: Vec<f64>,
}

/// The grid of an experiment; without keys if it has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grid {
    /// Keys without their tables, e.g. `alpha`.
    pub keys: Vec<String>,
    /// One point per row of the experiment.
    pub points: Vec<Point>,
}

/// Expands the rows of a file; returns the rows and the grid point of each.
pub(super) fn expand(
    file: &TomlFile,
    rows: &[Row],
    grid: &toml::Table,
) -> Result<(Vec<Row>, Grid)> {
    let mut axes: Vec<([&str; 2], &Vec<toml::Value>)> = Vec::new();
    for (key, values) in grid {
        let place = file.place(&[Key("grid"), Key(key)]);
        let Some((table, name)) = key.split_once('.').filter(|(_, name)| !name.contains('.'))
        else {
            bail!(
                "{place}: [grid] {key}: write \"params.{key}\", \"train.{key}\" or \"settings.{key}\""
            );
        };
        ensure!(
            TABLES.contains(&table),
            "{place}: [grid] {key}: `{table}` is no table of a row{}; there are {}",
            nearest(table, TABLES),
            TABLES.join(", ")
        );
        let Some(values) = values.as_array().filter(|values| !values.is_empty()) else {
            bail!("{place}: [grid] {key}: a list of numbers, e.g. [0.1, 0.2]");
        };
        for (index, value) in values.iter().enumerate() {
            let number = number(value);
            ensure!(
                number.is_some_and(f64::is_finite),
                "{place}: [grid] {key}: {value} is not a number"
            );
            ensure!(
                values[..index]
                    .iter()
                    .all(|other| self::number(other) != number),
                "{place}: [grid] {key}: {value} is given twice"
            );
        }
        axes.push(([table, name], values));
    }
    let lengths = axes.iter().map(|(_, values)| values.len());
    let count = lengths.fold(1, usize::saturating_mul);
    let all = count.saturating_mul(rows.len());
    ensure!(
        all <= LARGEST,
        "{}: {all} rows; at most {LARGEST}",
        file.place(&[Key("grid")])
    );
    let (mut expanded, mut points) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        for point in 0..count {
            let mut own = row.clone();
            let (mut left, mut values) = (point, Vec::new());
            // The last key changes fastest.
            for ([table, name], axis) in axes.iter().rev() {
                let value = &axis[left % axis.len()];
                left /= axis.len();
                let number = number(value).unwrap_or_default();
                let given = match *table {
                    "params" => own.params.insert((*name).into(), number).is_some(),
                    "train" => own.train.insert((*name).into(), value.clone()).is_some(),
                    _ => own.settings.insert((*name).into(), value.clone()).is_some(),
                };
                ensure!(
                    !given,
                    "{}: [grid] {table}.{name}: row `{}` sets it, too; leave one of the two out",
                    file.place(&[Key("grid")]),
                    row.label
                );
                values.insert(0, number);
            }
            let told = axes
                .iter()
                .zip(&values)
                .map(|(([_, name], _), value)| format!(", {name} {value}"));
            own.label += &told.collect::<String>();
            points.push(Point {
                row: index,
                label: row.label.clone(),
                values,
            });
            expanded.push(own);
        }
    }
    let keys = axes
        .iter()
        .map(|([_, name], _)| (*name).to_owned())
        .collect();
    Ok((expanded, Grid { keys, points }))
}

fn number(value: &toml::Value) -> Option<f64> {
    value.as_float().or(value.as_integer().map(|n| n as f64))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec::Spec;

    fn load(grid: &str, row: &str) -> Result<Spec> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.toml");
        let text = format!(
            "name = \"e\"\ntitle = \"E\"\nkind = \"table\"\ndatasets = [\"dolly\"]\nseeds = [1]\n[grid]\n{grid}\n[[rows]]\nlabel = \"AB\"\ndivergence = \"ab\"\n{row}"
        );
        std::fs::write(&path, text).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Spec::load(&root, path.to_str().unwrap(), "tiny")
    }

    #[test]
    fn rows_are_the_product_of_the_lists() {
        let spec = load(
            "\"params.alpha\" = [0, 0.5]\n\"params.beta\" = [0.25, 1.0, 1.5]\n\"train.learning_rate\" = [1e-3]",
            "",
        )
        .unwrap();
        let labels: Vec<&str> = spec.recipes.iter().map(|r| r.label.as_str()).collect();
        assert_eq!(labels.len(), 6);
        assert_eq!(labels[0], "AB, alpha 0, beta 0.25, learning_rate 0.001");
        assert_eq!(labels[5], "AB, alpha 0.5, beta 1.5, learning_rate 0.001");
        assert_eq!(spec.grid.keys, ["alpha", "beta", "learning_rate"]);
        assert_eq!(spec.grid.points[4].values, [0.5, 1.0, 1e-3]);
        assert_eq!(spec.recipes[5].settings.learning_rate, 1e-3);
        let ids: std::collections::BTreeSet<String> = spec
            .recipes
            .iter()
            .map(|r| format!("{:?}", r.method))
            .collect();
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn a_product_beyond_all_numbers_is_refused() {
        // 16 lists of 16 values: 2^64 points.
        let values: Vec<u32> = (0..16).collect();
        let grid: String = (0..16)
            .map(|key| format!("\"params.k{key}\" = {values:?}\n"))
            .collect();
        let error = format!("{:#}", load(&grid, "").unwrap_err());
        assert!(error.contains("rows; at most 10000"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_grid_is_named_with_its_line() {
        for (grid, row, says) in [
            ("alpha = [1]", "", "params.alpha"),
            ("\"parms.alpha\" = [1]", "", "did you mean `params`"),
            ("\"params.alpha\" = 1", "", "a list of numbers"),
            ("\"params.alpha\" = []", "", "a list of numbers"),
            ("\"params.alpha\" = [\"x\"]", "", "not a number"),
            ("\"params.alpha\" = [1, 1.0]", "", "given twice"),
            (
                "\"params.alpha\" = [1]",
                "params = { alpha = 0.2 }",
                "leave one of the two out",
            ),
            ("\"params.alfa\" = [1]", "", "alfa"),
            ("\"params.alpha\" = [0.2, 1e9]", "", "alpha 1000000000"),
            (
                "\"train.learning_rate\" = [1e-3, -1.0]",
                "",
                "learning_rate",
            ),
        ] {
            let error = format!("{:#}", load(grid, row).unwrap_err());
            assert!(
                error.contains(says) && error.contains("e.toml:"),
                "{grid}: {error}"
            );
        }
    }
}
