//! Ours against the paper: ranks of the rows, agreement of the orders, lead of the subject, and with scores of single
//! answers, which differences are more than chance ([`crate::evidence`]).
//!
//! The two sides are measured at different scales, so scores are shown side by side but only *ranks* are compared.
//! On each data set the ranks run over the rows that both sides have. Rows of one side are listed apart; our own ones are
//! also ranked among all our rows. Without a table of the paper, all ranks are among our rows.

mod terminal;
mod write;

use abkd_metrics::stats;
use anyhow::{Result, ensure};

use crate::evidence::Evidence;
use crate::results::{Cell, Table, Titles, distinct};

/// Rows with a special role in a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// Label of the row whose lead over the best other row is shown, if any.
    pub subject: Option<String>,
    /// Labels of rows that are shown but not ranked: models before distillation.
    pub unranked: Vec<String>,
}

/// A score and its rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The score.
    pub cell: Cell,
    /// Rank among the rows that both sides have, 1 for the best, ties averaged; `None` for a row of one side. Without a table
    /// of the paper: rank among all our rows.
    pub rank: Option<f64>,
    /// Rank among all our rows.
    pub own_rank: Option<f64>,
}

/// A row on a data set, on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Label of the row.
    pub row: String,
    /// Our result, if there is one.
    pub ours: Option<Standing>,
    /// The paper's result, if there is one.
    pub paper: Option<Standing>,
}

/// The subject against the best other row.
#[derive(Clone, Debug, PartialEq)]
pub struct Lead {
    /// Label of the best other row.
    pub best_other: String,
    /// Mean of the subject minus mean of the best other row, in percentage points: positive if the subject leads.
    pub margin: f64,
}

/// One data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Name of the data set.
    pub dataset: String,
    /// All rows of either side, in the order of [`Comparison::rows`].
    pub pairs: Vec<Pair>,
    /// How many rows are ranked: those that both sides have, or all of ours.
    pub common: usize,
    /// Spearman's rho between the two sides over the common rows; `None` where it is not defined.
    pub spearman: Option<f64>,
    /// Kendall's tau-b, likewise.
    pub kendall: Option<f64>,
    /// The subject among the ranked rows, ours; `None` unless it and another row are ranked.
    pub ours: Option<Lead>,
    /// The subject among the ranked rows, in the paper.
    pub paper: Option<Lead>,
}

/// A row over all data sets on which it has a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct AverageRank {
    /// Label of the row.
    pub row: String,
    /// Number of data sets.
    pub datasets: usize,
    /// Mean rank, ours.
    pub ours: f64,
    /// Mean rank, the paper's; absent without a table of the paper.
    pub paper: Option<f64>,
}

/// A table of ours beside the paper's.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name of the experiment, e.g. `table1`.
    pub experiment: String,
    /// Name of the profile, e.g. `smollm2`.
    pub profile: String,
    /// Description of the profile's scale.
    pub scale: String,
    /// Further remarks for the reader, a sentence each.
    pub remarks: Vec<String>,
    /// Name of the first column: `loss` or `method`.
    pub row_key: String,
    /// Row labels: the paper's order, then rows of ours only.
    pub rows: Vec<String>,
    /// One entry per data set: the paper's order, then data sets of ours only.
    pub datasets: Vec<Agreement>,
    /// Average ranks of the rows that have one.
    pub average_ranks: Vec<AverageRank>,
    /// How many of the paper's cells we have, and how many the paper has; absent without a table of the paper.
    pub coverage: Option<(usize, usize)>,
    /// Intervals, differences and verdicts, if there are scores of single answers.
    pub evidence: Option<Evidence>,
    /// Headings of the data sets.
    pub titles: Titles,
    references: References,
}

impl Comparison {
    /// Compares two tables. Missing cells are no error: [`Comparison::coverage`] counts them.
    ///
    /// # Errors
    /// The two tables name their rows by different keys.
    pub fn new(
        experiment: &str,
        profile: &str,
        scale: &str,
        ours: &Table,
        paper: Option<&Table>,
        references: References,
    ) -> Result<Self> {
        if let Some(paper) = paper {
            ensure!(
                ours.row_key == paper.row_key,
                "{experiment}: our table has rows by {}, the paper's by {}",
                ours.row_key,
                paper.row_key
            );
        }
        let tables = || paper.into_iter().chain([ours]);
        let rows = distinct(tables().flat_map(Table::rows));
        let names = distinct(tables().flat_map(Table::datasets));
        let datasets: Vec<Agreement> = names
            .iter()
            .map(|name| Agreement::new(name, &rows, ours, paper, &references))
            .collect();
        let average_ranks = rows
            .iter()
            .filter_map(|row| average_rank(row, &datasets))
            .collect();
        let done = |cell: &&Cell| ours.cell(&cell.row, &cell.dataset).is_some();
        Ok(Self {
            experiment: experiment.to_string(),
            profile: profile.to_string(),
            scale: scale.to_string(),
            remarks: Vec::new(),
            row_key: ours.row_key.clone(),
            rows: rows.iter().map(|row| row.to_string()).collect(),
            datasets,
            average_ranks,
            coverage: paper
                .map(|paper| (paper.cells.iter().filter(done).count(), paper.cells.len())),
            evidence: None,
            titles: Titles::default(),
            references,
        })
    }

    /// Whether a row of ours has a rank among ours alone, on a data set where the paper has ranks, too.
    fn ranks_among_ours_differ(&self) -> bool {
        let pairs = self.datasets.iter().flat_map(|agreement| &agreement.pairs);
        let mut standings = pairs.filter_map(|pair| pair.ours.as_ref());
        self.coverage.is_some() && standings.any(|s| s.own_rank.is_some() && s.rank.is_none())
    }

    /// Mean rank of a row among ours, over the data sets where it has one.
    fn own_average(&self, row: &str) -> Option<f64> {
        let own = |pair: &Pair| pair.ours.as_ref()?.own_rank;
        Some(mean_rank(row, &self.datasets, own)?.0)
    }

    /// Spearman's rho between the average ranks of the rows that are ranked on every shared data set: one number for
    /// the whole table. `None` where it is not defined.
    pub fn overall_spearman(&self) -> Option<f64> {
        let most = self.average_ranks.iter().map(|rank| rank.datasets).max()?;
        let full = self
            .average_ranks
            .iter()
            .filter(|rank| rank.datasets == most);
        let both = full.filter_map(|rank| Some((rank.ours, rank.paper?)));
        let (ours, paper): (Vec<f64>, Vec<f64>) = both.unzip();
        stats::spearman(&ours, &paper)
    }
}

impl Agreement {
    fn new(
        dataset: &str,
        rows: &[&str],
        ours: &Table,
        paper: Option<&Table>,
        references: &References,
    ) -> Self {
        let standing = |cell: &Cell| Standing {
            cell: cell.clone(),
            rank: None,
            own_rank: None,
        };
        let mut pairs: Vec<Pair> = rows
            .iter()
            .map(|row| Pair {
                row: row.to_string(),
                ours: ours.cell(row, dataset).map(standing),
                paper: paper.and_then(|paper| paper.cell(row, dataset).map(standing)),
            })
            .collect();
        let own = |pair: &&mut Pair| !references.unranked.contains(&pair.row);
        let own = pairs.iter_mut().filter(own);
        let own = own.filter_map(|pair| pair.ours.as_mut()).collect();
        rank(own, |s| &mut s.own_rank);
        if paper.is_none() {
            let ours = pairs.iter_mut().filter_map(|pair| pair.ours.as_mut());
            ours.for_each(|s| s.rank = s.own_rank);
        }
        let both = pairs.iter_mut();
        let both = both.filter_map(|pair| pair.ours.as_mut().zip(pair.paper.as_mut()));
        let (ours, paper) = both.unzip();
        let (ours, paper) = (rank(ours, |s| &mut s.rank), rank(paper, |s| &mut s.rank));
        let ranked = |pair: &&Pair| pair.ours.as_ref().is_some_and(|s| s.rank.is_some());
        let subject = references.subject.as_deref();
        Self {
            dataset: dataset.to_string(),
            common: pairs.iter().filter(ranked).count(),
            spearman: stats::spearman(&ours, &paper),
            kendall: stats::kendall(&ours, &paper),
            ours: lead(pairs.iter().filter_map(|pair| pair.ours.as_ref()), subject),
            paper: lead(pairs.iter().filter_map(|pair| pair.paper.as_ref()), subject),
            pairs,
        }
    }
}

/// Sets the ranks of some standings; returns their scores.
fn rank(
    standings: Vec<&mut Standing>,
    place: impl Fn(&mut Standing) -> &mut Option<f64>,
) -> Vec<f64> {
    let means: Vec<f64> = standings.iter().map(|s| s.cell.rouge_l_mean).collect();
    let ranks = stats::ranks(&means).into_iter().flatten();
    for (standing, rank) in standings.into_iter().zip(ranks) {
        *place(standing) = Some(rank);
    }
    means
}

/// The subject against the best other ranked row of a side.
fn lead<'a>(side: impl Iterator<Item = &'a Standing>, subject: Option<&str>) -> Option<Lead> {
    let name = subject?;
    let ranked = side.filter(|s| s.rank.is_some()).map(|s| &s.cell);
    let (subject, others): (Vec<&Cell>, Vec<&Cell>) = ranked.partition(|cell| cell.row == name);
    let best = others
        .into_iter()
        .max_by(|a, b| a.rouge_l_mean.total_cmp(&b.rouge_l_mean))?;
    Some(Lead {
        best_other: best.row.clone(),
        margin: subject.first()?.rouge_l_mean - best.rouge_l_mean,
    })
}

/// Mean rank of a row over the data sets where it has one, and their number.
fn mean_rank(
    row: &str,
    datasets: &[Agreement],
    rank: impl Fn(&Pair) -> Option<f64>,
) -> Option<(f64, usize)> {
    let pairs = datasets.iter().flat_map(|agreement| &agreement.pairs);
    let of_row = pairs.filter(|pair| pair.row == row);
    let ranks: Vec<f64> = of_row.filter_map(rank).collect();
    Some((stats::mean(&ranks)?, ranks.len()))
}

fn average_rank(row: &str, datasets: &[Agreement]) -> Option<AverageRank> {
    let (ours, number) = mean_rank(row, datasets, |pair| pair.ours.as_ref()?.rank)?;
    let paper = mean_rank(row, datasets, |pair| pair.paper.as_ref()?.rank);
    Some(AverageRank {
        row: row.to_string(),
        datasets: number,
        ours,
        paper: paper.map(|(mean, _)| mean),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn cell(row: &str, dataset: &str, mean: f64, std: Option<f64>) -> Cell {
        Cell {
            row: row.into(),
            dataset: dataset.into(),
            rouge_l_mean: mean,
            training_std: std,
            sampling_std: None,
            training_seeds: Some(3),
            sampling_seeds: Some(5),
            exact_match_mean: None,
        }
    }

    fn table(cells: Vec<Cell>) -> Table {
        Table {
            row_key: "loss".into(),
            cells,
        }
    }

    /// On Dolly, a tie of ours and one row on each side only; on Vicuna, ABKD is behind and two cells are missing.
    pub(crate) fn sample() -> Comparison {
        let paper = table(vec![
            cell("FKLD", "dolly", 10.0, Some(0.5)),
            cell("FKLD", "vicuna", 5.0, Some(0.1)),
            cell("RKLD", "dolly", 20.0, Some(0.3)),
            cell("RKLD", "vicuna", 6.0, Some(0.1)),
            cell("AKL", "dolly", 15.0, Some(0.5)),
            cell("AKL", "vicuna", 7.0, Some(0.5)),
            cell("ABKD", "dolly", 21.0, Some(0.4)),
            cell("ABKD", "vicuna", 8.0, Some(0.1)),
        ]);
        let ours = table(vec![
            cell("Teacher", "dolly", 50.0, None),
            cell("FKLD", "dolly", 1.0, Some(0.5)),
            cell("RKLD", "dolly", 1.0, Some(0.5)),
            cell("ABKD", "dolly", 2.0, Some(3.0)),
            cell("RKLD", "vicuna", 4.0, Some(0.1)),
            cell("ABKD", "vicuna", 3.0, None),
        ]);
        let scale = "GPT-2 at 1/100 of the steps";
        Comparison::new("table1", "tiny", scale, &ours, Some(&paper), references()).unwrap()
    }

    fn references() -> References {
        References {
            subject: Some("ABKD".into()),
            unranked: vec!["Teacher".into()],
        }
    }

    /// Rows of ours; the paper has only `RKLD`, or there is no paper.
    pub(crate) fn mine(with_paper: bool) -> Comparison {
        let ours = table(vec![
            cell("Teacher", "dolly", 50.0, None),
            cell("Mine", "dolly", 3.0, Some(0.1)),
            cell("RKLD", "dolly", 1.0, Some(0.5)),
            cell("Other", "dolly", 2.0, Some(0.5)),
        ]);
        let paper = table(vec![cell("RKLD", "dolly", 20.0, Some(0.3))]);
        let references = References {
            subject: Some("Other".into()),
            ..references()
        };
        let paper = with_paper.then_some(&paper);
        Comparison::new("mine", "tiny", "", &ours, paper, references).unwrap()
    }

    #[test]
    fn without_a_paper_ranks_are_among_ours() {
        let comparison = mine(false);
        assert_eq!(comparison.coverage, None);
        let dolly = &comparison.datasets[0];
        let rank = |pair: &Pair| pair.ours.as_ref().and_then(|s| s.rank);
        let ranks: Vec<Option<f64>> = dolly.pairs.iter().map(rank).collect();
        assert_eq!(ranks, [None, Some(1.0), Some(3.0), Some(2.0)]);
        assert_eq!((dolly.common, dolly.spearman), (3, None));
        let lead = dolly.ours.as_ref().unwrap();
        assert_eq!((lead.best_other.as_str(), lead.margin), ("Mine", -1.0));
        assert_eq!(dolly.paper, None);
        assert!(!comparison.ranks_among_ours_differ());
        assert_eq!(comparison.overall_spearman(), None);
    }

    #[test]
    fn a_row_that_the_paper_does_not_have_is_ranked_among_ours() {
        let comparison = mine(true);
        let dolly = &comparison.datasets[0];
        let of = |pair: &Pair| pair.ours.as_ref().map(|s| (s.rank, s.own_rank));
        let ranks: Vec<_> = dolly.pairs.iter().filter_map(of).collect();
        let (one, two, three) = (Some(1.0), Some(2.0), Some(3.0));
        // the paper's row first, then ours
        assert_eq!(
            ranks,
            [(one, three), (None, None), (None, one), (None, two)]
        );
        assert!(comparison.ranks_among_ours_differ() && !sample().ranks_among_ours_differ());
        assert_eq!(comparison.own_average("Other"), Some(2.0));
    }

    #[test]
    fn ranks_and_correlations_by_hand() {
        let comparison = sample();
        assert_eq!(comparison.rows, ["FKLD", "RKLD", "AKL", "ABKD", "Teacher"]);
        assert_eq!(comparison.coverage, Some((5, 8)));
        let dolly = &comparison.datasets[0];
        let ranks: Vec<_> = dolly
            .pairs
            .iter()
            .map(|pair| {
                let rank = |side: &Option<Standing>| side.as_ref().map(|s| s.rank);
                (pair.row.as_str(), rank(&pair.ours), rank(&pair.paper))
            })
            .collect();
        assert_eq!(
            ranks,
            [
                ("FKLD", Some(Some(2.5)), Some(Some(3.0))),
                ("RKLD", Some(Some(2.5)), Some(Some(2.0))),
                ("AKL", None, Some(None)),
                ("ABKD", Some(Some(1.0)), Some(Some(1.0))),
                ("Teacher", Some(None), None),
            ]
        );
        assert_eq!(dolly.common, 3);
        // Ranks 2.5, 2.5, 1 against 3, 2, 1: rho = 1.5 / sqrt(1.5 * 2), tau-b = 2 / sqrt(2 * 3).
        assert!((dolly.spearman.unwrap() - 1.5 / 3.0_f64.sqrt()).abs() < 1e-12);
        assert!((dolly.kendall.unwrap() - 2.0 / 6.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(comparison.datasets[1].spearman, Some(-1.0));
    }

    #[test]
    fn leads_by_hand() {
        let comparison = sample();
        let [dolly, vicuna] = &comparison.datasets[..] else {
            panic!("two data sets")
        };
        let lead = dolly.ours.as_ref().unwrap();
        assert_eq!((lead.best_other.as_str(), lead.margin), ("RKLD", 1.0));
        let lead = dolly.paper.as_ref().unwrap();
        assert_eq!((lead.best_other.as_str(), lead.margin), ("RKLD", 1.0));
        assert_eq!(vicuna.ours.as_ref().unwrap().margin, -1.0);
        // AKL is the paper's runner-up on Vicuna, but we do not have it there.
        assert_eq!(vicuna.paper.as_ref().unwrap().best_other, "RKLD");
    }

    #[test]
    fn average_ranks_count_their_data_sets() {
        let comparison = sample();
        let ranks: Vec<_> = comparison
            .average_ranks
            .iter()
            .map(|r| (r.row.as_str(), r.datasets, r.ours, r.paper))
            .collect();
        assert_eq!(
            ranks,
            [
                ("FKLD", 1, 2.5, Some(3.0)),
                ("RKLD", 2, 1.75, Some(2.0)),
                ("ABKD", 2, 1.5, Some(1.0))
            ]
        );
        assert_eq!(comparison.overall_spearman(), Some(1.0));
    }

    #[test]
    fn nothing_in_common_is_no_error_but_another_key_is() {
        let paper = table(vec![cell("ABKD", "dolly", 1.0, None)]);
        let empty = table(Vec::new());
        let new = |ours: &Table, paper: &Table| {
            Comparison::new("table1", "tiny", "", ours, Some(paper), references())
        };
        let comparison = new(&empty, &paper).unwrap();
        assert_eq!(comparison.coverage, Some((0, 1)));
        assert_eq!(comparison.overall_spearman(), None);
        assert_eq!(comparison.datasets[0].ours, None);
        let other = Table {
            row_key: "method".into(),
            cells: Vec::new(),
        };
        assert!(new(&other, &paper).is_err());
    }

    #[test]
    fn a_tie_at_the_top_has_no_margin() {
        let ours = table(vec![
            cell("RKLD", "dolly", 2.0, Some(0.0)),
            cell("ABKD", "dolly", 2.0, Some(0.0)),
        ]);
        let comparison =
            Comparison::new("table1", "tiny", "", &ours, Some(&ours), references()).unwrap();
        let lead = comparison.datasets[0].ours.as_ref().unwrap();
        assert_eq!(lead.margin, 0.0);
        assert_eq!(comparison.datasets[0].spearman, None);
    }
}
