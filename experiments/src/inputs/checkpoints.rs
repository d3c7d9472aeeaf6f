//! Checks of checkpoint folders on disk; an error names the problem, the side and a remedy.

use std::fs;
use std::io::Read;
use std::path::Path;

use abkd_host::files;
use abkd_models::ModelConfig;
use abkd_models::checkpoint::weight_files;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Absent;
use crate::spec::{ModelSpec, Spec};

/// Largest header of a safetensors file that readers accept.
const HEADER_LIMIT: u64 = 100_000_000;
/// The folder that `make weights` fills.
const MADE: &str = "weights/smollm2-135m";

/// The teacher or the student of a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The teacher.
    Teacher,
    /// The student.
    Student,
}

impl Side {
    /// Section of the side in the profile.
    pub fn section(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        }
    }

    /// Model of the side in the profile.
    pub fn of(self, spec: &Spec) -> &ModelSpec {
        match self {
            Self::Teacher => &spec.profile.teacher,
            Self::Student => &spec.profile.student,
        }
    }
}

/// Problem of a checkpoint.
enum Trouble {
    /// The checkpoint is missing.
    Absent(String),
    /// The checkpoint exists but cannot be read.
    Broken {
        what: String,
        /// Remedy, if the cause implies one.
        remedy: Option<&'static str>,
    },
}

/// Checks the checkpoint folder of a side, if it has one: present, complete, no truncated file, no git-lfs pointer. Does
/// not read the weights.
///
/// # Errors
///
/// The problem, the side and a remedy; [`Absent`] if the checkpoint is missing.
pub fn check(root: &Path, spec: &Spec, side: Side) -> Result<()> {
    let model = side.of(spec);
    let Some(dir) = &model.checkpoint else {
        return Ok(());
    };
    let dir = root.join(dir);
    let who = side.section();
    let place = spec.in_profile(&[who, "checkpoint"]);
    match trouble(&dir) {
        None => Ok(()),
        Some(Trouble::Absent(what)) => Err(anyhow!(Absent(format!(
            "{place}: the {who}'s checkpoint: {what}; {}",
            remedy(spec, side)
        )))),
        Some(Trouble::Broken {
            what,
            remedy: fitting,
        }) => Err(anyhow!(
            "{place}: the {who}'s checkpoint: {what}; {}",
            fitting.map_or_else(|| remedy(spec, side), str::to_owned)
        )),
    }
}

/// Checks the checkpoint folder of a model that no profile names, as [`check`] does.
///
/// # Errors
///
/// The problem and a remedy; [`Absent`] if the checkpoint is missing.
pub fn check_folder(dir: &Path) -> Result<()> {
    const WANTED: &str =
        "a Hugging Face folder is wanted: config.json, model.safetensors and tokenizer.json";
    match trouble(dir) {
        None => Ok(()),
        Some(Trouble::Absent(what)) => Err(anyhow!(Absent(format!("{what}; {WANTED}")))),
        Some(Trouble::Broken { what, remedy }) => {
            Err(anyhow!("{what}; {}", remedy.unwrap_or(WANTED)))
        }
    }
}

/// How to get a side's checkpoint.
pub fn remedy(spec: &Spec, side: Side) -> String {
    let model = side.of(spec);
    if let Some(repo) = &model.hub {
        return format!(
            "`abkd fetch weights --profile {}` fetches {repo} (files that exist are not fetched again: remove damaged files first)",
            spec.profile.name
        );
    }
    if model.checkpoint.as_ref().is_some_and(|d| d.ends_with(MADE)) {
        return "`make weights` makes it".into();
    }
    format!(
        "set [{}] checkpoint to a Hugging Face folder: config.json, model.safetensors and, for the teacher, tokenizer.json",
        side.section()
    )
}

fn trouble(dir: &Path) -> Option<Trouble> {
    let broken = |what: String| Some(Trouble::Broken { what, remedy: None });
    if fs::symlink_metadata(dir).is_err() || !dir.exists() {
        return Some(Trouble::Absent(format!("{}: not there", dir.display())));
    }
    if !dir.is_dir() {
        return broken(format!(
            "{}: a file, and a checkpoint is a folder",
            dir.display()
        ));
    }
    let config = dir.join("config.json");
    if !config.exists() {
        let adapter = dir.join("adapter_config.json").exists();
        let why = if adapter {
            "an adapter (adapter_config.json), and a whole model belongs here; merge it into its base first"
        } else {
            "no config.json in it"
        };
        return broken(format!("{}: {why}", dir.display()));
    }
    if let Err(error) = files::open(&config) {
        return broken(format!("{}: {error}", config.display()));
    }
    if let Some(trouble) = pointer(&config) {
        return Some(trouble);
    }
    if let Err(error) = ModelConfig::read(&config) {
        return Some(Trouble::Broken {
            what: error.to_string(),
            remedy: Some("GPT-2, LLaMA, Mistral, Qwen2 and Qwen3 checkpoints are supported"),
        });
    }
    let files = match weight_files(dir) {
        Ok(files) => files,
        Err(error) => return broken(error.to_string()),
    };
    let Some(files) = files else {
        let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        if pickled.iter().any(|file| dir.join(file).exists()) {
            return Some(Trouble::Broken {
                what: format!("{}: it holds PyTorch's files", dir.display()),
                remedy: Some(
                    "safetensors are read: load it with Python's transformers and write it with save_pretrained",
                ),
            });
        }
        return Some(Trouble::Absent(format!(
            "{}: no model.safetensors in it",
            dir.display()
        )));
    };
    files.iter().find_map(|file| {
        pointer(file).or_else(|| match header(file) {
            Ok(()) => None,
            Err(error) => broken(format!("{}: {error}", file.display())),
        })
    })
}

fn pointer(path: &Path) -> Option<Trouble> {
    let mut begin = Vec::new();
    let read = files::open(path).and_then(|file| file.take(64).read_to_end(&mut begin));
    (read.is_ok() && files::is_pointer(&begin)).then(|| Trouble::Broken {
        what: format!("{}: a git-lfs pointer, not the file itself", path.display()),
        remedy: Some("`git lfs pull` in its repository gets the file"),
    })
}

/// Checks that the file is as long as its header says.
fn header(path: &Path) -> std::io::Result<()> {
    let fail = |what: String| Err(std::io::Error::other(what));
    let mut file = files::open(path)?;
    let length = file.metadata()?.len();
    let mut size = [0; 8];
    if length < 8 {
        return fail(format!("truncated: {length} bytes"));
    }
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > HEADER_LIMIT {
        return fail("no safetensors file: its first 8 bytes give too large a header".into());
    }
    if 8 + size > length {
        return fail(format!(
            "truncated: {length} bytes, its header alone has {}",
            8 + size
        ));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text)?;
    let Ok(Value::Object(tensors)) = serde_json::from_slice(&text) else {
        return fail("no safetensors file: its header is not JSON".into());
    };
    let ends = tensors.iter().filter(|(name, _)| *name != "__metadata__");
    let ends = ends.filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64());
    let expected = ends.max().unwrap_or(0).saturating_add(8 + size);
    if length < expected {
        return fail(format!("truncated: {length} of {expected} bytes"));
    }
    if length > expected {
        return fail(format!(
            "{length} bytes, but its header declares {expected}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type":"gpt2","vocab_size":50,"n_positions":9,"n_embd":8,"n_layer":1,"n_head":2}"#;

    fn told(dir: &Path) -> String {
        match trouble(dir) {
            None => "nothing".into(),
            Some(Trouble::Absent(what)) => format!("absent: {what}"),
            Some(Trouble::Broken { what, .. }) => format!("broken: {what}"),
        }
    }

    #[test]
    fn each_cause_is_told() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("m");
        let says = |what: &str| {
            let told = told(&dir);
            assert!(told.contains(what), "{what}: {told}");
        };
        says("absent: ");
        fs::create_dir(&dir).unwrap();
        says("no config.json");
        let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
        write("adapter_config.json", b"{}");
        says("an adapter");
        write("config.json", CONFIG.as_bytes());
        says("absent: ");
        write("pytorch_model.bin", b"x");
        says("PyTorch's files");
        write(
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
        );
        says("git-lfs pointer");
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend(header);
        whole.extend([0; 8]);
        write("model.safetensors", &whole);
        says("nothing");
        for cut in 0..whole.len() {
            write("model.safetensors", &whole[..cut]);
            says("truncated");
        }
        write("model.safetensors", &[&whole[..], &[0]].concat());
        says("its header declares");
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        let index = |name: &str| format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        write(
            "model.safetensors.index.json",
            index("b.safetensors").as_bytes(),
        );
        says("this file is not there");
        for outside in ["../b.safetensors", "/etc/passwd", "a/b", "..", "."] {
            write("model.safetensors.index.json", index(outside).as_bytes());
            says("not the name of a file beside the index");
        }
        write("config.json", b"{");
        says("config.json");
    }
}
