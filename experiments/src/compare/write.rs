//! A comparison as CSV, as Markdown and as a table on the terminal.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table as Grid, presets};

use super::{Agreement, Comparison, Lead, Pair, SUBJECT, Standing};
use crate::results::{dataset_title, write_atomic, write_lines};

/// What stands for a value that does not exist.
const NONE: &str = "–";

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

/// How much room a cell has.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// Each cell on one line.
    Wide,
    /// Cells broken at set places, so that five data sets fit 80 columns.
    Narrow,
}

impl Layout {
    fn gap(self) -> char {
        match self {
            Self::Wide => ' ',
            Self::Narrow => '\n',
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
        write_atomic(&file("comparison.md"), self.markdown().as_bytes())
    }

    fn write_pairs(&self, path: &Path) -> Result<()> {
        let header = [
            self.row_key.as_str(),
            "dataset",
            "ours_mean",
            "ours_training_std",
            "ours_sampling_std",
            "ours_training_seeds",
            "ours_sampling_seeds",
            "ours_rank",
            "paper_mean",
            "paper_std",
            "paper_rank",
        ];
        let lines = self.datasets.iter().flat_map(|agreement| {
            agreement
                .pairs
                .iter()
                .filter(|pair| pair.ours.is_some() || pair.paper.is_some())
                .map(|pair| {
                    let (ours, paper) = (pair.ours.as_ref(), pair.paper.as_ref());
                    [
                        pair.row.as_str().into(),
                        agreement.dataset.as_str().into(),
                        ours.map(|s| s.mean).into(),
                        ours.and_then(|s| s.training_std).into(),
                        ours.and_then(|s| s.sampling_std).into(),
                        ours.and_then(|s| s.training_seeds).into(),
                        ours.and_then(|s| s.sampling_seeds).into(),
                        ours.and_then(|s| s.rank).into(),
                        paper.map(|s| s.mean).into(),
                        paper.and_then(|s| s.sampling_std).into(),
                        paper.and_then(|s| s.rank).into(),
                    ]
                })
        });
        write_lines(path, header, lines)
    }

    fn write_agreement(&self, path: &Path) -> Result<()> {
        let header = [
            "dataset",
            "common_rows",
            "spearman",
            "kendall",
            "ours_best_other",
            "ours_margin",
            "paper_best_other",
            "paper_margin",
        ];
        let lines = self.datasets.iter().map(|agreement| {
            let (ours, paper) = (agreement.ours.as_ref(), agreement.paper.as_ref());
            [
                agreement.dataset.as_str().into(),
                (agreement.common as u64).into(),
                agreement.spearman.into(),
                agreement.kendall.into(),
                ours.map(|lead| lead.best_other.as_str()).into(),
                ours.map(|lead| lead.margin).into(),
                paper.map(|lead| lead.best_other.as_str()).into(),
                paper.map(|lead| lead.margin).into(),
            ]
        });
        write_lines(path, header, lines)
    }

    /// The comparison as a page of Markdown.
    pub fn markdown(&self) -> String {
        let mut page = format!(
            "# {}: ours against the paper\n\n{}\n",
            self.experiment,
            self.note()
        );
        for side in [Side::Ours, Side::Paper] {
            let grid = markdown_grid(&self.scores(side, Layout::Wide));
            let _ = write!(page, "\n## {}\n\n{grid}", self.title(side));
        }
        let grid = markdown_grid(&self.agreement(Layout::Wide));
        let _ = write!(page, "\n## Agreement\n\n{grid}");
        for line in self.closing() {
            let _ = write!(page, "\n{line}\n");
        }
        page
    }

    /// The comparison for a terminal of `width` columns; `None` for a pipe: then nothing is wrapped. Plain text.
    pub fn terminal(&self, width: Option<u16>) -> String {
        let layout = if width.is_some() {
            Layout::Narrow
        } else {
            Layout::Wide
        };
        let mut page = format!(
            "{}: ours against the paper\n{}\n",
            self.experiment,
            self.note()
        );
        for side in [Side::Ours, Side::Paper] {
            let grid = terminal_grid(&self.scores(side, layout), width);
            let _ = write!(page, "\n{}\n{grid}\n", self.title(side));
        }
        let grid = terminal_grid(&self.agreement(layout), width);
        let _ = write!(page, "\nAgreement\n{grid}\n");
        for line in self.closing() {
            let _ = writeln!(page, "{line}");
        }
        page
    }

    fn title(&self, side: Side) -> String {
        match side {
            Side::Ours => format!("Ours ({})", self.profile),
            Side::Paper => "Paper".to_string(),
        }
    }

    /// What must be known to read the numbers.
    fn note(&self) -> String {
        let (done, all) = self.coverage;
        let scale = match self.scale.as_str() {
            "" => String::new(),
            text => format!(" ({text})"),
        };
        let mut note = format!(
            "ROUGE-L in percent: mean ± standard deviation over the trainings / over the sampling seeds of a training \
             (rank){}. Ours is measured at the scale of profile `{}`{scale}, not at the paper's: compare ranks, not \
             scores. Ranks run over the rows that both sides have on a data set. Spreads are no intervals: nothing here \
             says which differences are more than chance.",
            self.counts(),
            self.profile
        );
        for remark in &self.remarks {
            let _ = write!(note, " {remark}");
        }
        if done < all {
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
        let trainings = standings().filter_map(|s| s.training_seeds).max();
        let samples = standings().filter_map(|s| s.sampling_seeds).max();
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

    /// One side: a line per row that it has anywhere, a column per data set, the average rank last.
    fn scores(&self, side: Side, layout: Layout) -> Vec<Vec<String>> {
        let mut header = vec![self.row_key.clone()];
        header.extend(self.datasets.iter().map(|agreement| {
            let title = dataset_title(&agreement.dataset);
            if layout == Layout::Narrow {
                title.replace('-', "-\n")
            } else {
                title.to_string()
            }
        }));
        header.push(format!("average{}rank", layout.gap()));
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
                    .map(|standing| standing_text(standing, layout)),
            );
            line.push(self.average_rank_text(row, side, layout));
            grid.push(line);
        }
        grid
    }

    fn average_rank_text(&self, row: &str, side: Side, layout: Layout) -> String {
        let Some(average) = self.average_ranks.iter().find(|average| average.row == row) else {
            return NONE.to_string();
        };
        let rank = if side == Side::Ours {
            average.ours
        } else {
            average.paper
        };
        let shared = self
            .datasets
            .iter()
            .filter(|agreement| agreement.common > 0)
            .count();
        match average.datasets {
            n if n < shared => format!("{rank:.2}{}({n} of {shared})", layout.gap()),
            _ => format!("{rank:.2}"),
        }
    }

    fn agreement(&self, layout: Layout) -> Vec<Vec<String>> {
        let gap = layout.gap();
        let header = vec![
            "data set".to_string(),
            format!("common{gap}rows"),
            format!("Spearman{gap}ρ"),
            format!("Kendall{gap}τ"),
            format!("{SUBJECT} - best{gap}other, ours"),
            format!("{SUBJECT} - best{gap}other, paper"),
        ];
        let number = |value: Option<f64>| value.map_or(NONE.into(), |value| format!("{value:+.2}"));
        let line = |agreement: &Agreement| {
            vec![
                dataset_title(&agreement.dataset).to_string(),
                agreement.common.to_string(),
                number(agreement.spearman),
                number(agreement.kendall),
                lead_text(agreement.ours.as_ref(), layout),
                lead_text(agreement.paper.as_ref(), layout),
            ]
        };
        [header]
            .into_iter()
            .chain(self.datasets.iter().map(line))
            .collect()
    }

    /// The lines beneath the tables: the whole table in one number, and what only one side has.
    fn closing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(rho) = self.overall_spearman() {
            lines.push(format!("Spearman ρ of the average ranks: {rho:+.2}"));
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
                        dataset_title(&agreement.dataset),
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

/// `25.65 ± 0.31 / 0.24 (1)`: the spread over the trainings and over the sampling seeds; or the spreads beneath.
fn standing_text(standing: Option<&Standing>, layout: Layout) -> String {
    let Some(standing) = standing else {
        return NONE.to_string();
    };
    let (mean, rank) = (standing.mean, standing.rank);
    let rank = rank.map_or(NONE.to_string(), |rank| rank.to_string());
    let spread = |std: Option<f64>| std.map_or(NONE.to_string(), |std| format!("{std:.2}"));
    let spreads = match (standing.training_std, standing.sampling_std) {
        (None, None) => return format!("{mean:.2} ({rank})"),
        (a, b) => format!("± {} / {}", spread(a), spread(b)),
    };
    match layout {
        Layout::Wide => format!("{mean:.2} {spreads} ({rank})"),
        Layout::Narrow => format!("{mean:.2} ({rank})\n{spreads}"),
    }
}

/// `+1.20 (AlphaNet)`
fn lead_text(lead: Option<&Lead>, layout: Layout) -> String {
    lead.map_or(NONE.to_string(), |lead| {
        format!("{:+.2}{}({})", lead.margin, layout.gap(), lead.best_other)
    })
}

/// A grid as Markdown, its columns padded so that the source reads as a table too.
fn markdown_grid(grid: &[Vec<String>]) -> String {
    let mut table = filled(grid);
    table.load_preset(presets::ASCII_MARKDOWN);
    format!("{}\n", table.trim_fmt())
}

fn terminal_grid(grid: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = filled(grid);
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    if let Some(width) = width {
        table
            .set_width(width)
            .set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.trim_fmt()
}

fn filled(grid: &[Vec<String>]) -> Grid {
    let mut table = Grid::new();
    if let Some((header, lines)) = grid.split_first() {
        table.set_header(header).add_rows(lines);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::sample;

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
    fn the_terminal_table_keeps_to_the_width() {
        let comparison = sample();
        let table_lines = |width| {
            let page = comparison.terminal(width);
            let rules = page.lines().filter(|line| line.contains('─'));
            rules.map(|line| line.chars().count()).max().unwrap()
        };
        assert!(table_lines(None) > 80);
        assert!(table_lines(Some(80)) <= 80);
        assert!(table_lines(Some(60)) <= 60);
        assert!(!comparison.terminal(Some(80)).contains('\x1b'));
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
