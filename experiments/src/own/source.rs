//! A model named on the command line: a folder, or a repository of the Hugging Face Hub.

use std::fs;
use std::path::{Path, PathBuf};

use abkd_data::hub::Hub;
use anyhow::{Context, Result, bail};

use crate::fetch;
use crate::inputs::checkpoints::check_folder;
use crate::message::say;

/// A model's folder, and the repository that it was fetched from.
#[derive(Clone, Debug)]
pub(super) struct NamedModel {
    pub folder: PathBuf,
    pub hub: Option<String>,
}

impl NamedModel {
    /// The folder at this path, else the folder of the repository of this name, fetched if missing. `who` is the argument
    /// to name in errors.
    pub fn find(name: &str, who: &str) -> Result<Self> {
        let path = Path::new(name);
        if path.exists() {
            let folder = fs::canonicalize(path).with_context(|| format!("{who}: {name}"))?;
            check_folder(&folder).with_context(|| who.to_owned())?;
            return Ok(Self { folder, hub: None });
        }
        if !is_repository(name) {
            bail!(
                "{who}: {name}: there is no such folder; a model is a Hugging Face folder, or OWNER/NAME on the Hub"
            );
        }
        let hub = Hub::from_env()?;
        // A folder in the Hub's cache, in which the files have their plain names: the profile names it as a checkpoint.
        let folder = hub.cache.join("abkd").join(name);
        let whole =
            |folder: &Path| check_folder(folder).is_ok() && folder.join("tokenizer.json").exists();
        if !whole(&folder) {
            say(&format!(
                "{name}: there is no such folder here; it is fetched from the Hub"
            ));
            fetch::checkpoint(&hub, name, None, &folder).with_context(|| {
                format!(
                    "{who}: {name} is no folder here, and it cannot be fetched; give the path of a folder with config.json, \
                     model.safetensors and tokenizer.json, or put these files into {}",
                    folder.display()
                )
            })?;
            check_folder(&folder).with_context(|| who.to_owned())?;
        }
        let folder = fs::canonicalize(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self {
            folder,
            hub: Some(name.into()),
        })
    }

    /// Display name: the repository, else the name of the folder.
    pub fn name(&self) -> String {
        let folder = || {
            self.folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        };
        self.hub.clone().unwrap_or_else(|| folder().into())
    }
}

/// Whether a name has the form of a Hub repository: OWNER/NAME.
fn is_repository(name: &str) -> bool {
    let good = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    matches!(name.split('/').collect::<Vec<_>>()[..], [owner, name] if good(owner) && good(name))
}
