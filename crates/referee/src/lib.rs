//! A referee for implementations of distillation losses. [`emit`] writes cases: logits of a student and a teacher, and labels.
//! Another program computes its loss of each, and the gradient in the student's logits. [`judge`] says what it computed: which
//! divergence, in which direction, times which scale; how it averages tokens; and in which cases it breaks.

mod averaging;
mod cases;
mod error;
mod identify;
mod report;
mod rows;
mod theirs;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use abkd_host::files;

pub use error::Error;
pub use report::Verdict;

/// The file of logits and labels.
pub const CASES: &str = "cases.safetensors";
/// The file of the right values.
pub const RIGHT: &str = "right.safetensors";
/// What is in the folder, and what to compute.
pub const README: &str = "README.md";

/// Writes the cases, the right values and their description into a folder; returns the files.
///
/// # Errors
///
/// A folder that holds other files; a failed write.
pub fn emit(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let named = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::File { path, source }
    };
    files::create_folder(folder).map_err(named(folder))?;
    let cases = cases::all();
    let contents = [
        (CASES, cases::encode(&cases)),
        (RIGHT, rows::encode_right(&cases)?),
        (README, describe(&cases).into_bytes()),
    ];
    for entry in std::fs::read_dir(folder).map_err(named(folder))? {
        let entry = entry.map_err(named(folder))?;
        let name = entry.file_name();
        if contents.iter().all(|(known, _)| name != *known) {
            return Err(Error::NotEmpty {
                path: folder.to_path_buf(),
                entry: name.to_string_lossy().into_owned(),
            });
        }
    }
    let mut written = Vec::new();
    for (name, bytes) in contents {
        let path = folder.join(name);
        files::replace(&path, &bytes).map_err(named(&path))?;
        written.push(path);
    }
    Ok(written)
}

/// Judges another implementation's answers to the cases of a folder that [`emit`] wrote.
///
/// # Errors
///
/// Cases that are not those of this version; answers that cannot be read, or lack those to the first case.
pub fn judge(folder: &Path, theirs: &Path) -> Result<Verdict, Error> {
    let cases = cases::all();
    let path = folder.join(CASES);
    let found = files::read(&path, 1 << 28).map_err(|source| Error::File {
        path: path.clone(),
        source,
    })?;
    if found != cases::encode(&cases) {
        return Err(Error::OtherCases { path });
    }
    report::judge(&cases, &theirs::read(theirs, &cases)?)
}

fn describe(cases: &[cases::Case]) -> String {
    let mut text = String::from(
        "# Cases for a distillation loss\n\n\
         `cases.safetensors` holds for each case NAME:\n\n\
         - `NAME.student`, `NAME.teacher`: logits `[B, T, V]`\n\
         - `NAME.labels`: token ids `[B, T]` (int64); -100 is a token that is not counted\n\n\
         Compute the loss of every case as a training step would, and its gradient in the student's logits. Write a \
         safetensors file with\n\n\
         - `NAME.loss`: one number\n\
         - `NAME.grad`: `[B, T, V]`\n\n\
         in float64, float32, bfloat16 or float16, then run `abkd check judge FOLDER FILE`. Cases may be left out, but not \
         the first.\n\n\
         `right.safetensors` holds every divergence's own values: `NAME/LOSS.value` `[B, T]`, in nats, and `NAME/LOSS.grad` \
         `[B, T, V]`, the gradient of each token's value. An entry that is -inf in either model is left out of the sums.\n\n\
         | case | B x T x V | type | what it tries |\n|---|---|---|---|\n",
    );
    for case in cases {
        let [b, t, v] = case.shape;
        let dtype = if case.bf16 { "bfloat16" } else { "float32" };
        let _ = writeln!(
            text,
            "| {} | {b} x {t} x {v} | {dtype} | {} |",
            case.name, case.about
        );
    }
    text
}
