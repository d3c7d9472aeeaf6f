use abkd_host::rng::Rng;

use super::*;
use crate::results::Cell;

/// Scores of rows with these means on `dolly` and `vicuna`; trainings and examples vary a little.
pub(crate) fn scores(means: &[(&str, f64)], trainings: u64, noise: f64) -> Vec<Examples> {
    let mut all = Vec::new();
    for dataset in ["dolly", "vicuna"] {
        for (row, mean) in means {
            for training in 1..=trainings {
                let mut rng = Rng::new(&[training, dataset.len() as u64, row.len() as u64]);
                let of_training = noise * rng.normal();
                for sampling_seed in [10, 20] {
                    let mut examples = Rng::new(&[dataset.len() as u64]);
                    let rouge_l = (0..30)
                        .map(|_| mean + of_training + examples.normal() + 0.1 * rng.normal())
                        .collect();
                    all.push(Examples {
                        row: (*row).into(),
                        training_seed: Some(training),
                        dataset: dataset.into(),
                        sampling_seed,
                        rouge_l,
                    });
                }
            }
        }
    }
    all
}

pub(crate) fn paper(means: &[(&str, f64)]) -> Table {
    let cell = |row: &str, dataset: &str, mean| Cell {
        row: row.into(),
        dataset: dataset.into(),
        rouge_l_mean: mean,
        training_std: None,
        sampling_std: None,
        training_seeds: None,
        sampling_seeds: None,
        exact_match_mean: None,
    };
    let cells = ["dolly", "vicuna"]
        .iter()
        .flat_map(|set| means.iter().map(|(row, mean)| cell(row, set, *mean)));
    Table {
        row_key: "loss".into(),
        cells: cells.collect(),
    }
}

fn verdict(evidence: &Evidence, text: &str) -> Verdict {
    let claim = evidence.claims.iter().find(|c| evidence.text(c) == text);
    claim.unwrap_or_else(|| panic!("no `{text}`")).verdict
}

pub(crate) const ROWS: [&str; 4] = ["a", "bb", "ccc", "dddd"];

#[test]
fn claims_are_decided_by_what_is_more_than_chance() {
    let far = [("a", 40.0), ("bb", 30.0), ("ccc", 20.0), ("dddd", 10.0)];
    let scores = scores(&far, 3, 0.1);
    let right = Evidence::new(&scores, &ROWS, Some(&paper(&far))).unwrap();
    assert_eq!(
        right.claims.len(),
        5,
        "first and second on two sets, first over all"
    );
    for text in [
        "a is first on Dolly",
        "bb is second on Vicuna",
        "a is first over all data sets",
    ] {
        assert_eq!(verdict(&right, text), Verdict::Supported, "{text}");
    }
    let turned = [("a", 10.0), ("bb", 20.0), ("ccc", 30.0), ("dddd", 40.0)];
    let wrong = Evidence::new(&scores, &ROWS, Some(&paper(&turned))).unwrap();
    for text in [
        "dddd is first on Dolly",
        "ccc is second on Dolly",
        "dddd is first over all data sets",
    ] {
        assert_eq!(verdict(&wrong, text), Verdict::Refuted, "{text}");
    }
    // Ties in the paper claim nothing.
    let tied = [("a", 20.0), ("bb", 20.0), ("ccc", 10.0), ("dddd", 5.0)];
    let tied = Evidence::new(&scores, &ROWS, Some(&paper(&tied))).unwrap();
    assert!(tied.claims.is_empty(), "{:?}", tied.claims);
    // Without a paper nothing is claimed.
    let own = Evidence::new(&scores, &ROWS, None).unwrap();
    assert!(own.claims.is_empty(), "{:?}", own.claims);
    // A subject that the experiment names is claimed to be first.
    let named = own.claiming(Some("bb"));
    assert_eq!(verdict(&named, "bb is first on Dolly"), Verdict::Refuted);
    // A difference changes its sign with the order of its rows.
    let dolly = right.on(Some("dolly")).unwrap();
    let (one, other) = (
        dolly.difference("bb", "a").unwrap(),
        dolly.difference("a", "bb").unwrap(),
    );
    assert!(one.mean < 0.0 && (one.mean + other.mean).abs() < 1e-12);
    assert!(other.losses.unwrap().0.interval(LEVEL)[0] > 9.0);
    assert!(dolly.rows[0].first > Some(0.99) && dolly.agreement == Some([1.0, 1.0]));
}

#[test]
fn what_chance_can_do_is_undecided_and_the_reason_says_what_it_takes() {
    let near = [("a", 20.3), ("bb", 20.2), ("ccc", 20.1), ("dddd", 20.0)];
    let evidence = Evidence::new(&scores(&near, 3, 2.0), &ROWS, Some(&paper(&near))).unwrap();
    for claim in &evidence.claims {
        assert_eq!(claim.verdict, Verdict::Undecided, "{claim:?}");
        assert!(claim.reason.contains("would be found"), "{claim:?}");
    }
    // These students differ: their examples do not vary.
    let dolly = evidence.on(Some("dolly")).unwrap();
    assert!(dolly.pairs.iter().any(|d| d.students < Some(0.01)));
}

#[test]
fn one_training_decides_nothing() {
    let far = [("a", 40.0), ("bb", 30.0), ("ccc", 20.0), ("dddd", 10.0)];
    let evidence = Evidence::new(&scores(&far, 1, 0.1), &ROWS, Some(&paper(&far))).unwrap();
    for set in &evidence.sets {
        assert!(
            set.rows
                .iter()
                .all(|r| r.estimate.is_none() && r.first.is_none())
        );
        assert!(set.pairs.iter().all(|d| d.losses.is_none()));
        assert_eq!(set.agreement, None);
    }
    for claim in &evidence.claims {
        assert_eq!(claim.verdict, Verdict::Undecided);
        assert!(
            claim.reason.contains("how much trainings vary is unknown"),
            "{claim:?}"
        );
    }
    assert!(evidence.note().contains("no intervals of the losses"));
    assert!(evidence.on(Some("dolly")).unwrap().pairs[0].students < Some(0.01));
}

#[test]
fn statistics_are_over_what_the_rows_have_in_common() {
    let far = [("a", 40.0), ("bb", 30.0), ("ccc", 20.0), ("dddd", 10.0)];
    let table = paper(&far);
    let mut some = scores(&far, 3, 0.1);
    // `bb` is not on Vicuna, `ccc` has one training on Dolly, `a` lacks a training and a sampling seed there.
    some.retain(|e| !(e.row == "bb" && e.dataset == "vicuna"));
    some.retain(|e| !(e.row == "ccc" && e.dataset == "dolly" && e.training_seed > Some(1)));
    some.retain(|e| !(e.row == "a" && e.dataset == "dolly" && e.training_seed == Some(2)));
    some.retain(|e| !(e.row == "a" && e.dataset == "dolly" && e.sampling_seed == 20));
    let evidence = Evidence::new(&some, &ROWS, Some(&table)).unwrap();
    let dolly = evidence.on(Some("dolly")).unwrap();
    assert_eq!(dolly.left_out, ["ccc"]);
    assert_eq!(
        (
            dolly.shape.rows,
            dolly.shape.trainings,
            dolly.shape.samplings
        ),
        (3, 2, 1)
    );
    let vicuna = evidence.on(Some("vicuna")).unwrap();
    assert_eq!((vicuna.shape.rows, vicuna.shape.trainings), (3, 3));
    let all = evidence.on(None).unwrap();
    let rows: Vec<&str> = all.rows.iter().map(|r| r.row.as_str()).collect();
    assert_eq!(rows, ["a", "dddd"]);
    assert!(evidence.note().contains("On Dolly without ccc, which has"));
    let mut two = evidence.clone();
    two.sets[0].left_out.push("bb".into());
    let note = two.note();
    assert!(
        note.contains("On Dolly without ccc, bb, which have"),
        "{note}"
    );
    // A missing cell in the block, or another number of examples: no statistics on that set.
    let mut holed = scores(&far, 3, 0.1);
    holed.remove(0);
    let evidence = Evidence::new(&holed, &ROWS, Some(&table)).unwrap();
    assert!(evidence.on(Some("dolly")).is_none() && evidence.on(None).is_none());
    let mut short = scores(&far, 3, 0.1);
    short[0].rouge_l.pop();
    let evidence = Evidence::new(&short, &ROWS, Some(&table)).unwrap();
    assert!(evidence.on(Some("dolly")).is_none());
    // One row, or none.
    assert!(Evidence::new(&short, &["a"], Some(&table)).is_none());
    assert!(Evidence::new(&[], &ROWS, Some(&table)).is_none());
}

#[test]
fn files_and_tables_hold_what_was_found() {
    let far = [("a", 40.0), ("bb", 30.0), ("ccc", 20.0), ("dddd", 10.0)];
    let evidence = Evidence::new(&scores(&far, 3, 0.1), &ROWS, Some(&paper(&far))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    evidence.write(dir.path(), "table1", "loss").unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let intervals = read("table1_intervals.csv");
    assert_eq!(intervals.lines().count(), 1 + 3 * 4, "{intervals}");
    assert!(intervals.contains("\na,dolly,4"), "{intervals}");
    assert!(intervals.contains("\na,all,4"), "{intervals}");
    assert_eq!(read("table1_differences.csv").lines().count(), 1 + 3 * 6);
    assert!(read("table1_verdicts.csv").contains("\na is first on Dolly,dolly,supported,"));
    let again = Evidence::new(&scores(&far, 3, 0.1), &ROWS, Some(&paper(&far))).unwrap();
    assert_eq!(evidence, again, "the same scores, the same evidence");
    let grid = evidence.interval_grid("loss", ' ');
    assert_eq!((grid.len(), grid[0].len()), (5, 4));
    assert!(
        grid[1][1].starts_with('4') && grid[1][1].ends_with("100%"),
        "{:?}",
        grid[1]
    );
    assert!(evidence.closing()[0].starts_with("Dolly: 6 of 6 pairs differ as losses"));
}
