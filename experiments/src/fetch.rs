//! `abkd fetch`: data sets and checkpoints of a profile from the Hugging Face Hub.

use std::path::Path;

use abkd_data::Error;
use abkd_data::hub::{Hub, RepoKind, Request, WantedFile};
use abkd_models::checkpoint::weight_files;
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

use crate::inputs::data_folder;
use crate::results::write_atomic;
use crate::spec::{Profile, Source, TestSet, test_sets};

/// Training and validation data: repository, path in it, folder below the data folder.
const DOLLY: (&str, &str, &str) = ("MiniLLM/dolly", "raw.jsonl", "dolly");
/// Number of Dolly's validation examples: the first ones of `raw.jsonl`, as in MiniLLM's preparation.
const DEV: usize = 1000;

/// Fetches missing data sets; returns a line per file.
///
/// # Errors
///
/// A profile without files; an error of the Hub; a full disk.
pub fn data(hub: &Hub, root: &Path, profile: &Profile) -> Result<Vec<String>> {
    ensure!(
        profile.data.source == Source::Folder,
        "profile `{}` has its data built in; there is nothing to fetch",
        profile.name
    );
    if let Some(file) = &profile.data.train_file {
        anyhow::bail!(
            "profile `{}` trains on {}; there is nothing to fetch",
            profile.name,
            file.display()
        );
    }
    let folder = data_folder(root, &profile.data);
    let mut lines = Vec::new();
    let mut fetch = |repo: &str, file: &str, target: &Path| -> Result<()> {
        let wanted = request(RepoKind::Dataset, repo, None, file);
        lines.push(one(hub, &wanted, &folder.join(target))?);
        Ok(())
    };
    let (repo, file, target) = DOLLY;
    fetch(repo, file, Path::new(target))?;
    let sets = test_sets(root)?;
    for set in &sets {
        if let (Some([repo, file]), Some(own)) = (&set.hub, &set.file) {
            fetch(repo, file, first_folder(own))?;
        }
    }
    lines.extend(derive(&folder, &sets)?);
    Ok(lines)
}

/// The folder below the data folder that a set is fetched into.
fn first_folder(file: &Path) -> &Path {
    file.iter().next().map_or(file, Path::new)
}

/// Writes the files that are parts of fetched ones: training, validation, and test sets whose path differs on the Hub.
fn derive(folder: &Path, sets: &[TestSet]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut part = |from: &Path, to: &Path, skip: usize, take: usize| -> Result<()> {
        let target = folder.join(to);
        if target.exists() {
            return Ok(());
        }
        let source = folder.join(from);
        let text =
            abkd_host::files::read_text(&source).with_context(|| source.display().to_string())?;
        let chosen: Vec<&str> = text.split_inclusive('\n').skip(skip).take(take).collect();
        write_atomic(&target, chosen.concat().as_bytes())?;
        lines.push(format!("{}: {} examples", target.display(), chosen.len()));
        Ok(())
    };
    let raw = Path::new("dolly/raw.jsonl");
    part(raw, Path::new("dolly/dev.jsonl"), 0, DEV)?;
    part(raw, Path::new("dolly/train.jsonl"), DEV, usize::MAX)?;
    for set in sets {
        if let (Some([_, file]), Some(own)) = (&set.hub, &set.file) {
            let fetched = first_folder(own).join(file);
            part(&fetched, own, 0, set.examples.unwrap_or(usize::MAX))?;
        }
    }
    Ok(lines)
}

/// Fetches missing checkpoints; returns a line per file.
///
/// # Errors
///
/// A profile whose models are not on the Hub; an error of the Hub.
pub fn weights(hub: &Hub, root: &Path, profile: &Profile) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for model in [&profile.teacher, &profile.student] {
        if let (Some(repo), Some(dir)) = (&model.hub, &model.checkpoint) {
            let revision = model.revision.as_deref();
            lines.extend(checkpoint(hub, repo, revision, &root.join(dir))?);
        }
    }
    ensure!(
        !lines.is_empty(),
        "profile `{}` names no model on the Hub ([teacher] hub, [student] hub); `make weights` makes the smollm2 one",
        profile.name
    );
    Ok(lines)
}

/// Fetches a checkpoint's missing files; returns a line per file.
///
/// # Errors
///
/// An error of the Hub; a repository without safetensors.
pub fn checkpoint(
    hub: &Hub,
    repo: &str,
    revision: Option<&str>,
    dir: &Path,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let wanted = |file: &str| request(RepoKind::Model, repo, revision.map(str::to_owned), file);
    for file in ["config.json", "tokenizer.json"] {
        lines.push(one(hub, &wanted(file), dir)?);
    }
    let mut optional = |file: &str| match one(hub, &wanted(file), dir) {
        Ok(line) => {
            lines.push(line);
            Ok(true)
        }
        Err(error) if matches!(error.downcast_ref(), Some(Error::NoFile { .. })) => Ok(false),
        Err(error) => Err(error),
    };
    // These files name the end-of-sequence token, and hold the chat template.
    for file in [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ] {
        optional(file)?;
    }
    let single = dir.join("model.safetensors");
    // Large models are sharded: an index names the files.
    let sharded = !single.exists() && optional("model.safetensors.index.json")?;
    if !sharded {
        let fetched = one(hub, &wanted("model.safetensors"), dir);
        lines.push(fetched.with_context(|| {
            format!("{repo} has no safetensors; load it with Python's transformers, save_pretrained(\"{}\")", dir.display())
        })?);
        return Ok(lines);
    }
    // `weight_files` refuses names that lead out of the folder.
    for file in weight_files(dir)?.unwrap_or_default() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        lines.push(one(hub, &wanted(&name), dir)?);
    }
    Ok(lines)
}

fn request(kind: RepoKind, repo: &str, revision: Option<String>, file: &str) -> Request {
    Request {
        repo: repo.into(),
        kind,
        revision,
        files: vec![WantedFile {
            name: file.into(),
            ..WantedFile::default()
        }],
    }
}

/// Fetches the file of a request to a folder; returns a line about it.
fn one(hub: &Hub, wanted: &Request, folder: &Path) -> Result<String> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
    bar.set_style(ProgressStyle::with_template(style).expect("templates are constants"));
    let file = &wanted.files[0].name;
    bar.set_message(format!("{}/{file}", wanted.repo));
    let target = folder.join(file);
    let was_there = target.exists();
    hub.fetch(wanted, folder, &mut |p| {
        bar.set_length(p.total);
        bar.set_position(p.done);
    })?;
    bar.finish_and_clear();
    Ok(format!(
        "{}: {}",
        target.display(),
        if was_there { "is there" } else { "fetched" }
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn parts_are_cut_from_what_was_fetched_and_not_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let lines = |n: usize| (0..n).map(|i| format!("{i}\n")).collect::<String>();
        for folder in ["dolly", "uinst/11_"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("dolly/raw.jsonl"), lines(1010)).unwrap();
        fs::write(dir.path().join("uinst/11_/valid.jsonl"), lines(10_005)).unwrap();
        let sets = test_sets(dir.path()).unwrap();
        let some: Vec<TestSet> = sets.into_iter().filter(|s| s.id == "unnatural").collect();
        assert_eq!(derive(dir.path(), &some).unwrap().len(), 3);
        let count = |file: &str| {
            let text = fs::read_to_string(dir.path().join(file)).unwrap();
            (
                text.lines().count(),
                text.lines().next().unwrap().to_owned(),
            )
        };
        assert_eq!(count("dolly/dev.jsonl"), (1000, "0".into()));
        assert_eq!(count("dolly/train.jsonl"), (10, "1000".into()));
        assert_eq!(count("uinst/valid.jsonl"), (10_000, "0".into()));
        assert!(derive(dir.path(), &some).unwrap().is_empty());
    }
}
