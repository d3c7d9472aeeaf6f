//! Complete results replace those of an earlier run.

use std::fs;
use std::path::Path;

use abkd_host::files;
use anyhow::{Context, Result};

use super::Places;
use crate::results::PARTIAL;
use crate::spec::{ENDINGS, Spec};

/// Replaces the results of an earlier run with those of an experiment whose tasks are all done, and removes curves and
/// masses that this one does not make; returns a line per file that compares the two.
///
/// # Errors
///
/// A file that cannot be read or written.
pub fn publish(places: &Places, spec: &Spec) -> Result<Vec<String>> {
    let name = &spec.experiment.name;
    let mut told = Vec::new();
    let remove = |path: &Path| fs::remove_file(path).with_context(|| path.display().to_string());
    let file = |end: &str| {
        let file = format!("{name}{end}");
        (places.partial(spec, &file), places.result(spec, &file))
    };
    let figures = places.figures.join(&spec.profile.name);
    let picture = figures.join(format!("{name}_masses.png"));
    let whole = file(".csv").0.exists();
    for end in ["_curves.csv", "_masses.csv"] {
        let (made, stale) = file(end);
        if whole && !made.exists() && stale.exists() {
            remove(&stale)?;
            told.push(format!("{}: removed, this run makes none", stale.display()));
            if end == "_masses.csv" && picture.exists() {
                remove(&picture)?;
            }
        }
    }
    for end in [
        ".csv",
        "_scores.csv",
        "_examples.csv",
        "_curves.csv",
        "_masses.csv",
        ".json",
    ] {
        let (from, to) = file(end);
        if !from.exists() {
            continue;
        }
        let place = || to.display().to_string();
        let read = |path: &Path| {
            files::read(path, files::TEXT_LIMIT).with_context(|| path.display().to_string())
        };
        let new = read(&from)?;
        let before = to.exists().then(|| read(&to)).transpose()?;
        let (before, whose) = match committed(&to) {
            Some(bytes) => (Some(bytes), "the committed results"),
            None => (before, "the earlier results"),
        };
        told.push(match before {
            None => format!("{}: written", place()),
            Some(bytes) if bytes == new => format!("{}: identical to {whose}", place()),
            Some(_) => format!("{}: differs from {whose}", place()),
        });
        files::write(&to, &new).with_context(place)?;
        remove(&from)?;
    }
    // Files made from partial results are out of date.
    for end in ENDINGS
        .iter()
        .flat_map(|end| [format!("{end}.csv"), format!("{end}.md")])
    {
        let stale = places.partial(spec, &format!("{name}{end}"));
        if stale.exists() {
            remove(&stale)?;
        }
    }
    // Fails if the folder holds another experiment's partial results.
    let _ = fs::remove_dir(places.result(spec, PARTIAL));
    Ok(told)
}

/// A file's content in the last commit; `None` outside a repository, without git, or if it is not committed.
fn committed(path: &Path) -> Option<Vec<u8>> {
    let name = path.file_name()?.to_str()?;
    let output = std::process::Command::new("git")
        .arg("-C")
        .arg(files::folder_of(path))
        .args(["show", &format!("HEAD:./{name}")])
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    output.status.success().then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn masses_that_a_run_does_not_make_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let spec = Spec::load(&places.root, "table1", "tiny").unwrap();
        let result = |end: &str| places.result(&spec, &format!("table1{end}"));
        let picture = places.figures.join("tiny/table1_masses.png");
        for path in [
            result("_masses.csv"),
            result("_curves.csv"),
            picture.clone(),
        ] {
            write(path, "of an earlier run");
        }
        write(places.result(&spec, "table2_masses.csv"), "another's");
        // Without a table there is no other run.
        assert!(publish(&places, &spec).unwrap().is_empty());
        assert!(result("_masses.csv").exists() && picture.exists());
        write(places.partial(&spec, "table1.csv"), "one");
        write(places.partial(&spec, "table1_curves.csv"), "new");
        let told = publish(&places, &spec).unwrap();
        assert!(
            told.len() == 3 && told[0].ends_with("table1_masses.csv: removed, this run makes none")
        );
        assert!(!result("_masses.csv").exists() && !picture.exists());
        assert_eq!(fs::read_to_string(result("_curves.csv")).unwrap(), "new");
        assert!(places.result(&spec, "table2_masses.csv").exists());
    }

    #[test]
    fn a_whole_table_replaces_another_and_says_how_they_compare() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let spec = Spec::load(&places.root, "table1", "tiny").unwrap();
        let other = places.partial(&spec, "table2.csv");
        write(other.clone(), "another table that is not whole");
        for (text, says) in [
            ("one", "table1.csv: written"),
            ("one", "identical to the earlier results"),
            ("two", "differs from the earlier results"),
        ] {
            write(places.partial(&spec, "table1.csv"), text);
            write(places.partial(&spec, "table1_comparison.md"), "of parts");
            let told = publish(&places, &spec).unwrap();
            assert!(!places.partial(&spec, "table1_comparison.md").exists());
            assert!(told.len() == 1 && told[0].ends_with(says), "{told:?}");
            let path = places.result(&spec, "table1.csv");
            assert_eq!(fs::read_to_string(path).unwrap(), text);
            assert!(other.exists() && !places.partial(&spec, "table1.csv").exists());
        }
        // Inside a repository, results are compared with the committed ones.
        let git = |args: &[&str]| {
            let mut git = std::process::Command::new("git");
            git.arg("-C")
                .arg(dir.path())
                .args(["-c", "user.name=a", "-c", "user.email=a@b"]);
            git.args(args).output().is_ok_and(|o| o.status.success())
        };
        if !(git(&["init", "-q"]) && git(&["add", "-A"]) && git(&["commit", "-qm", "x"])) {
            eprintln!("git is not there: the committed results are not compared with");
            return;
        }
        for (text, says) in [
            ("three", "differs from the committed results"),
            ("two", "identical to the committed results"),
        ] {
            write(places.partial(&spec, "table1.csv"), text);
            let told = publish(&places, &spec).unwrap();
            assert!(told[0].ends_with(says), "{told:?}");
        }
    }
}
