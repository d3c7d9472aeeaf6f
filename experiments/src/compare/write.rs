//! A comparison as CSV, as Markdown and as a table on the terminal.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use comfy_table::presets;

use super::terminal::{filled, fitted, wrapped};
use super::{Agreement, Comparison, Lead, Pair, Standing};
use crate::evidence::{LEVEL, NONE, broken};
use crate::results::{Field, markdown_cell, write_atomic, write_lines};

const VERDICT: &str = "Verdict";
const INTERVALS: &str = "Intervals";

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Ours,
    Paper,
}

impl Side {
    fn of(self, pair: &Pair) -> Option<&Standing> {
        match self {
            Self::Ours => pair.ours.as_ref(),
            Self::Paper => pair.paper.as_ref(),
        }
    }
}

impl Comparison {
    /// Writes `<experiment>_comparison.csv` (one line per row and data set), `<experiment>_agreement.csv` (one line per
    /// data set) and `<experiment>_comparison.md` into a folder.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let file = |end: &str| folder.join(format!("{}_{end}", self.experiment));
        self.write_pairs(&file("comparison.csv"))?;
        self.write_agreement(&file("agreement.csv"))?;
        if let Some(evidence) = &self.evidence {
            evidence.write(folder, &self.experiment, &self.row_key)?;
        }
        write_atomic(&file("comparison.md"), self.markdown().as_bytes())
    }

    fn write_pairs(&self, path: &Path) -> Result<()> {
        let (both, differ) = (self.coverage.is_some(), self.ranks_among_ours_differ());
        let mut header = vec![
            self.row_key.as_str(),
            "dataset",
            "ours_mean",
            "ours_training_std",
            "ours_sampling_std",
            "ours_training_seeds",
            "ours_sampling_seeds",
            "ours_rank",
        ];
        if both {
            header.extend(["paper_mean", "paper_std", "paper_rank"]);
        }
        if differ {
            header.push("ours_rank_among_ours");
        }
        let lines = self.pairs().map(|(dataset, pair)| {
            let (ours, paper) = (pair.ours.as_ref(), pair.paper.as_ref());
            let mut line = vec![
                pair.row.as_str().into(),
                dataset.into(),
                ours.map(|s| s.cell.rouge_l_mean).into(),
                ours.and_then(|s| s.cell.training_std).into(),
                ours.and_then(|s| s.cell.sampling_std).into(),
                ours.and_then(|s| s.cell.training_seeds).into(),
                ours.and_then(|s| s.cell.sampling_seeds).into(),
                ours.and_then(|s| s.rank).into(),
            ];
            if both {
                line.extend([
                    Field::from(paper.map(|s| s.cell.rouge_l_mean)),
                    paper.and_then(|s| s.cell.sampling_std).into(),
                    paper.and_then(|s| s.rank).into(),
                ]);
            }
            if differ {
                line.push(ours.and_then(|s| s.own_rank).into());
            }
            line
        });
        write_lines(path, &header, lines)
    }

    /// The rows that a side has, by data set.
    fn pairs(&self) -> impl Iterator<Item = (&str, &Pair)> {
        self.datasets.iter().flat_map(|agreement| {
            let pairs = agreement.pairs.iter();
            let there = pairs.filter(|pair| pair.ours.is_some() || pair.paper.is_some());
            there.map(move |pair| (agreement.dataset.as_str(), pair))
        })
    }

    fn write_agreement(&self, path: &Path) -> Result<()> {
        let both = self.coverage.is_some();
        let header: &[&str] = if both {
            &[
                "dataset",
                "common_rows",
                "spearman",
                "kendall",
                "ours_best_other",
                "ours_margin",
                "paper_best_other",
                "paper_margin",
            ]
        } else {
            &["dataset", "rows", "best_other", "margin"]
        };
        let lines = self.datasets.iter().map(|agreement| {
            let mut line = vec![
                agreement.dataset.as_str().into(),
                (agreement.common as u64).into(),
            ];
            if both {
                line.extend([agreement.spearman, agreement.kendall].map(Field::from));
            }
            for side in self.sides() {
                let lead = match side {
                    Side::Ours => agreement.ours.as_ref(),
                    Side::Paper => agreement.paper.as_ref(),
                };
                line.push(lead.map(|lead| lead.best_other.as_str()).into());
                line.push(lead.map(|lead| lead.margin).into());
            }
            line
        });
        write_lines(path, header, lines)
    }

    /// The comparison as a page of Markdown.
    pub fn markdown(&self) -> String {
        let mut page = format!("# {}\n\n{}\n", self.heading(), self.note());
        if let Some(evidence) = &self.evidence {
            if !evidence.claims.is_empty() {
                let grid = markdown_grid(&evidence.verdict_grid());
                let _ = write!(page, "\n## {VERDICT}\n\n{grid}");
            }
            let _ = write!(page, "\n{}\n", evidence.note());
            let grid = markdown_grid(&evidence.interval_grid(&self.row_key, ' '));
            let _ = write!(
                page,
                "\n## {INTERVALS}\n\n{}\n\n{grid}",
                self.interval_note()
            );
            for line in evidence.closing() {
                let _ = write!(page, "\n- {line}");
            }
            page.push('\n');
        }
        for &side in self.sides() {
            let grid = markdown_grid(&self.scores(side, ' '));
            let _ = write!(page, "\n## {}\n\n{grid}", self.title(side));
        }
        let grid = markdown_grid(&self.agreement(' '));
        let _ = write!(page, "\n## Agreement\n\n{grid}");
        for line in self.closing() {
            let _ = write!(page, "\n{line}\n");
        }
        page
    }

    /// The comparison as plain text for a terminal of `width` columns; `None` for a pipe, without wrapping.
    pub fn terminal(&self, width: Option<u16>) -> String {
        let paragraph = |text: &str| wrapped(text, width);
        let mut page = format!("{}\n{}\n", self.heading(), paragraph(&self.note()));
        for &side in self.sides() {
            let grid = fitted(|gap| self.scores(side, gap), width);
            let _ = write!(page, "\n{}\n{grid}", self.title(side));
        }
        let grid = fitted(|gap| self.agreement(gap), width);
        let _ = write!(page, "\nAgreement\n{grid}");
        if let Some(evidence) = &self.evidence {
            let grid = fitted(|gap| evidence.interval_grid(&self.row_key, gap), width);
            let _ = write!(page, "\n{INTERVALS}\n{grid}");
            let _ = writeln!(page, "{}", paragraph(&self.interval_note()));
            for line in evidence.closing() {
                let _ = writeln!(page, "{}", paragraph(&line));
            }
            if !evidence.claims.is_empty() {
                let _ = writeln!(page, "\n{VERDICT}");
            }
            for claim in &evidence.claims {
                let line = format!(
                    "{}: {}. {}.",
                    evidence.text(claim),
                    claim.verdict.name().to_uppercase(),
                    claim.reason
                );
                let _ = writeln!(page, "{}", paragraph(&line));
            }
            let _ = writeln!(page, "{}", paragraph(&evidence.note()));
        }
        for line in self.closing() {
            let _ = writeln!(page, "{}", paragraph(&line));
        }
        page
    }

    /// Explains the cells of the intervals' grid.
    pub fn interval_note(&self) -> String {
        format!(
            "Mean, its interval of {:.0}%, probability that the row is first; over all sets the interquartile mean.",
            100.0 * LEVEL
        )
    }

    /// All tables with their headings: ours, the paper's, their agreement.
    pub fn grids(&self) -> Vec<(String, Vec<Vec<String>>)> {
        let sides = self.sides().iter();
        let scores = sides.map(|&side| (self.title(side), self.scores(side, ' ')));
        let agreement = ("Agreement".to_owned(), self.agreement(' '));
        scores.chain([agreement]).collect()
    }

    fn sides(&self) -> &'static [Side] {
        if self.coverage.is_some() {
            &[Side::Ours, Side::Paper]
        } else {
            &[Side::Ours]
        }
    }

    fn heading(&self) -> String {
        let against = if self.coverage.is_some() {
            " against the paper"
        } else {
            ""
        };
        format!("{}: ours{against}", self.experiment)
    }

    fn title(&self, side: Side) -> String {
        match side {
            Side::Ours => format!("Ours ({})", self.profile),
            Side::Paper => "Paper".to_string(),
        }
    }

    /// Note on how to read the numbers.
    pub fn note(&self) -> String {
        let scale = match self.scale.as_str() {
            "" => String::new(),
            text => format!(" ({text})"),
        };
        let mut note = format!(
            "ROUGE-L in percent: mean ± standard deviation over the trainings / over the sampling seeds of a training \
             (rank){}. Ours is measured at the scale of profile `{}`{scale}",
            self.counts(),
            self.profile
        );
        note += if self.coverage.is_some() {
            ", not at the paper's: compare ranks, not scores. Ranks run over the rows that both sides have on a data set."
        } else {
            ". Ranks run over our rows."
        };
        if self.ranks_among_ours_differ() {
            note += " Ranks among ours run over all rows of ours, also those that the paper does not have.";
        }
        if self.evidence.is_none() {
            note += " Spreads are no intervals, and the scores of single answers are not there: nothing here says which \
                     differences are more than chance.";
        }
        for remark in &self.remarks {
            let _ = write!(note, " {remark}");
        }
        if let Some((done, all)) = self.coverage.filter(|(done, all)| done < all) {
            let _ = write!(
                note,
                " Partial: {done} of the paper's {all} cells are done."
            );
        }
        note
    }

    /// `; 3 trainings, 5 sampling seeds each`, of ours.
    fn counts(&self) -> String {
        let standings = || {
            let pairs = self.datasets.iter().flat_map(|agreement| &agreement.pairs);
            pairs.filter_map(|pair| pair.ours.as_ref())
        };
        let trainings = standings().filter_map(|s| s.cell.training_seeds).max();
        let samples = standings().filter_map(|s| s.cell.sampling_seeds).max();
        let of = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        match (trainings, samples) {
            (Some(t), Some(s)) => format!(
                "; ours: {}, {} each",
                of(t, "training"),
                of(s, "sampling seed")
            ),
            _ => String::new(),
        }
    }

    /// One side: a line per row that it has anywhere, a column per data set, the average rank last. `gap` separates the parts
    /// of a cell.
    fn scores(&self, side: Side, gap: char) -> Vec<Vec<String>> {
        let mut header = vec![self.row_key.clone()];
        header.extend(
            self.datasets
                .iter()
                .map(|agreement| broken(self.titles.of(&agreement.dataset), gap)),
        );
        header.push(format!("average{gap}rank"));
        let among_ours = side == Side::Ours && self.ranks_among_ours_differ();
        if among_ours {
            header.push(format!("average{gap}rank{gap}among{gap}ours"));
        }
        let mut grid = vec![header];
        for (index, row) in self.rows.iter().enumerate() {
            let standings: Vec<Option<&Standing>> = self
                .datasets
                .iter()
                .map(|agreement| side.of(&agreement.pairs[index]))
                .collect();
            if standings.iter().all(Option::is_none) {
                continue;
            }
            let mut line = vec![row.clone()];
            line.extend(
                standings
                    .into_iter()
                    .map(|standing| standing_text(standing, gap)),
            );
            line.push(self.average_rank_text(row, side, gap));
            if among_ours {
                let own = self.own_average(row);
                line.push(own.map_or(NONE.into(), |rank| format!("{rank:.2}")));
            }
            grid.push(line);
        }
        grid
    }

    fn average_rank_text(&self, row: &str, side: Side, gap: char) -> String {
        let Some(average) = self.average_ranks.iter().find(|average| average.row == row) else {
            return NONE.to_string();
        };
        let Some(rank) = (match side {
            Side::Ours => Some(average.ours),
            Side::Paper => average.paper,
        }) else {
            return NONE.to_string();
        };
        let shared = self
            .datasets
            .iter()
            .filter(|agreement| agreement.common > 0)
            .count();
        match average.datasets {
            n if n < shared => format!("{rank:.2}{gap}({n} of {shared})"),
            _ => format!("{rank:.2}"),
        }
    }

    fn agreement(&self, gap: char) -> Vec<Vec<String>> {
        let both = self.coverage.is_some();
        let mut header = vec!["data set".to_string()];
        if both {
            header.push(format!("common{gap}rows"));
            header.push(format!("Spearman{gap}ρ"));
            header.push(format!("Kendall{gap}τ"));
        } else {
            header.push("rows".into());
        }
        let subject = self.references.subject.as_deref();
        if let Some(subject) = subject {
            header.push(format!("{subject} - best{gap}other, ours"));
            if both {
                header.push(format!("{subject} - best{gap}other, paper"));
            }
        }
        let number = |value: Option<f64>| value.map_or(NONE.into(), |value| format!("{value:+.2}"));
        let line = |agreement: &Agreement| {
            let mut line = vec![
                self.titles.of(&agreement.dataset).to_string(),
                agreement.common.to_string(),
            ];
            if both {
                line.push(number(agreement.spearman));
                line.push(number(agreement.kendall));
            }
            if subject.is_some() {
                line.push(lead_text(agreement.ours.as_ref(), gap));
                if both {
                    line.push(lead_text(agreement.paper.as_ref(), gap));
                }
            }
            line
        };
        [header]
            .into_iter()
            .chain(self.datasets.iter().map(line))
            .collect()
    }

    /// The lines below the tables: overall rank correlation, and cells of one side only.
    pub fn closing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(rho) = self.overall_spearman() {
            lines.push(format!("Spearman ρ of the average ranks: {rho:+.2}"));
        }
        if self.coverage.is_none() {
            return lines;
        }
        for (text, has, lacks) in [
            ("Only in ours", Side::Ours, Side::Paper),
            ("Only in the paper (not run yet)", Side::Paper, Side::Ours),
        ] {
            let mut parts = Vec::new();
            for agreement in &self.datasets {
                let alone = |pair: &&Pair| has.of(pair).is_some() && lacks.of(pair).is_none();
                let rows: Vec<&str> = agreement
                    .pairs
                    .iter()
                    .filter(alone)
                    .map(|pair| pair.row.as_str())
                    .collect();
                if !rows.is_empty() {
                    parts.push(format!(
                        "{}: {}",
                        self.titles.of(&agreement.dataset),
                        rows.join(", ")
                    ));
                }
            }
            if !parts.is_empty() {
                lines.push(format!("{text}: {}.", parts.join("; ")));
            }
        }
        lines
    }
}

/// `25.65 ± 0.31 / 0.24 (1)`: the spreads over trainings and over sampling seeds; if narrow, on a second line.
fn standing_text(standing: Option<&Standing>, gap: char) -> String {
    let Some(standing) = standing else {
        return NONE.to_string();
    };
    let mean = standing.cell.rouge_l_mean;
    let rank = standing
        .rank
        .map_or(NONE.to_string(), |rank| rank.to_string());
    let spread = |std: Option<f64>| std.map_or(NONE.to_string(), |std| format!("{std:.2}"));
    let spreads = match (standing.cell.training_std, standing.cell.sampling_std) {
        (None, None) => return format!("{mean:.2} ({rank})"),
        (a, b) => format!("± {} / {}", spread(a), spread(b)),
    };
    match gap {
        ' ' => format!("{mean:.2} {spreads} ({rank})"),
        _ => format!("{mean:.2} ({rank}){gap}{spreads}"),
    }
}

/// `+1.20 (AlphaNet)`
fn lead_text(lead: Option<&Lead>, gap: char) -> String {
    lead.map_or(NONE.to_string(), |lead| {
        format!("{:+.2}{gap}({})", lead.margin, lead.best_other)
    })
}

/// A grid as Markdown, its columns padded so that the source reads as a table too.
fn markdown_grid(grid: &[Vec<String>]) -> String {
    let line = |line: &Vec<String>| line.iter().map(|cell| markdown_cell(cell)).collect();
    let grid: Vec<Vec<String>> = grid.iter().map(line).collect();
    let mut table = filled(&grid);
    table.load_preset(presets::ASCII_MARKDOWN);
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::{mine, sample};

    #[test]
    fn the_page_says_what_a_reader_must_know() {
        let page = sample().markdown();
        for text in [
            "profile `tiny` (GPT-2 at 1/100 of the steps)",
            "compare ranks, not scores",
            "Partial: 5 of the paper's 8 cells are done.",
            "## Ours (tiny)",
            "1.00 ± 0.50 / – (2.5)",
            "50.00 (–)",
            "| RKLD    | 1.00 ± 0.50 / – (2.5) | 4.00 ± 0.10 / – (1) | 1.75 ",
            "ours: 3 trainings, 5 sampling seeds each",
            "2.50 (1 of 2)",
            "+1.00 (RKLD)",
            "-1.00 (RKLD)",
            "Spearman ρ of the average ranks: +1.00",
            "Only in ours: Dolly: Teacher.",
            "Only in the paper (not run yet): Dolly: AKL; Vicuna: FKLD, AKL.",
        ] {
            assert!(page.contains(text), "no `{text}` in\n{page}");
        }
    }

    #[test]
    fn the_terminal_keeps_to_any_width_and_breaks_no_cell() {
        let comparison = sample();
        let longest = |page: &str| page.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(
            longest(&comparison.terminal(None)) > 200,
            "a pipe gets whole lines"
        );
        for width in 40..=200 {
            let page = comparison.terminal(Some(width));
            assert!(longest(&page) <= usize::from(width), "{width}:\n{page}");
            for whole in ["± 0.50 / –", "± 0.30 / –", "(RKLD)", "Vicuna", "Teacher"] {
                assert!(page.contains(whole), "{width}: no `{whole}` in\n{page}");
            }
            assert!(!page.contains('\x1b'));
        }
    }

    #[test]
    fn a_table_without_a_paper_speaks_of_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let comparison = mine(false);
        comparison.write(folder.path()).unwrap();
        let page = read("mine_comparison.md");
        assert!(page.starts_with("# mine: ours\n"), "{page}");
        assert!(page.contains("Other - best other, ours") && page.contains("-1.00 (Mine)"));
        assert!(!page.to_lowercase().contains("paper"), "{page}");
        assert!(read("mine_comparison.csv").contains("\nOther,dolly,2.0000,0.5000,,3,5,2.0000\n"));
        assert!(read("mine_agreement.csv").contains("\ndolly,3,Mine,-1.0000\n"));

        mine(true).write(folder.path()).unwrap();
        let csv = read("mine_comparison.csv");
        assert!(
            csv.lines()
                .next()
                .unwrap()
                .ends_with(",ours_rank_among_ours")
        );
        assert!(
            csv.contains("\nOther,dolly,2.0000,0.5000,,3,5,,,,,2.0000\n"),
            "{csv}"
        );
        assert!(
            csv.contains("\nRKLD,dolly,1.0000,0.5000,,3,5,1.0000,20.0000,,1.0000,3.0000\n"),
            "{csv}"
        );
        let page = read("mine_comparison.md");
        assert!(page.contains("average rank among ours"), "{page}");
    }

    #[test]
    fn a_bar_in_a_label_divides_no_cell() {
        let mut comparison = mine(false);
        comparison.rows[1] = "a|b".into();
        let page = comparison.markdown();
        assert!(page.contains("\n| a\\|b "), "{page}");
        assert!(comparison.terminal(None).contains("a|b "));
    }

    #[test]
    fn files_are_complete_and_byte_identical() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        sample().write(folder.path()).unwrap();
        let csv = read("table1_comparison.csv");
        assert_eq!(
            csv.lines().count(),
            1 + 9,
            "four cells and a teacher, and four cells\n{csv}"
        );
        assert!(
            csv.starts_with("loss,dataset,ours_mean,ours_training_std,ours_sampling_std,ours_training_seeds,ours_sampling_seeds,ours_rank,paper_mean")
        );
        assert!(csv.contains("\nFKLD,dolly,1.0000,0.5000,,3,5,2.5000,10.0000,,3.0000\n"));
        assert!(csv.contains("\nTeacher,dolly,50.0000,,,3,5,,,,\n"));
        let agreement = read("table1_agreement.csv");
        assert!(agreement.contains("\nvicuna,2,-1.0000,-1.0000,RKLD,-1.0000,RKLD,2.0000\n"));
        let page = read("table1_comparison.md");
        sample().write(folder.path()).unwrap();
        assert_eq!(
            (csv, page),
            (read("table1_comparison.csv"), read("table1_comparison.md"))
        );
    }
}
