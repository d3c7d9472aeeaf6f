//! The files that hold the weights of a checkpoint folder: those that `transformers` reads, mapped into memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use abkd_host::files;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::Error;
use crate::keys::{self, Keys};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files that `transformers` reads where the others are absent, and that are not read here.
const OTHERS: &[&str] = &["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// A safetensors file in memory.
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// # Errors
    ///
    /// Where it is not a plain file, is a git-lfs pointer, or is empty.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let file: File = files::open(&path).map_err(Error::io(&path))?;
        let length = file.metadata().map_err(Error::io(&path))?.len();
        if length == 0 {
            let reason = "it is empty".into();
            return Err(Error::Corrupt { path, reason });
        }
        // SAFETY: the file is only read here; no other program may change it meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        files::refuse_pointer(&map).map_err(Error::io(&path))?;
        Ok(Self { path, map })
    }

    /// Its tensors, by name.
    pub fn tensors(&self) -> Result<BTreeMap<String, Stored<'_>>, Error> {
        let file = SafeTensors::deserialize(&self.map).map_err(|e| Error::Corrupt {
            path: self.path.clone(),
            reason: e.to_string(),
        })?;
        let path = self.path.as_path();
        let tensors = file.tensors().into_iter();
        Ok(tensors
            .map(|(name, view)| (name, Stored { path, view }))
            .collect())
    }
}

/// A tensor in a file.
pub(crate) struct Stored<'a> {
    /// The file.
    pub path: &'a Path,
    view: TensorView<'a>,
}

impl Stored<'_> {
    pub fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    /// Its numbers as f32.
    ///
    /// # Errors
    ///
    /// Where they are not floats of 16 or 32 bits.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let bytes = self.view.data();
        let halves = || bytes.as_chunks::<2>().0.iter();
        match self.view.dtype() {
            Dtype::F32 => Ok(bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect()),
            Dtype::F16 => Ok(halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => Ok(halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(Error::Unsupported {
                path: self.path.into(),
                key: name.into(),
                value: format!("{other:?}"),
                hint: "f32, f16 and bf16 are read".into(),
            }),
        }
    }

    /// Whether two tensors hold the same numbers, even in different types.
    pub fn equals(&self, name: &str, other: &Self, other_name: &str) -> Result<bool, Error> {
        if self.shape() != other.shape() {
            return Ok(false);
        }
        let alike = self.view.dtype() == other.view.dtype();
        if alike && self.view.data() == other.view.data() {
            return Ok(true);
        }
        Ok(self.values(name)? == other.values(other_name)?)
    }
}

/// An index of files: its path, and for each tensor the number of its file.
type Index = (PathBuf, BTreeMap<String, usize>);

/// The weights of a folder.
pub(super) struct Weights {
    files: Vec<Mapped>,
    /// The index that lists the files.
    index: Option<Index>,
}

/// The files that `transformers` reads: model.safetensors, or if it is absent the files of an index; `None` if there is
/// neither.
///
/// # Errors
///
/// An index that cannot be read, or that names something other than a file in its folder.
pub fn weight_files(dir: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
    Ok(find(dir)?.map(|(files, _)| files))
}

/// Files, and the index that lists them.
type Found = (Vec<PathBuf>, Option<Index>);

fn find(dir: &Path) -> Result<Option<Found>, Error> {
    let (whole, index) = (dir.join(WEIGHTS), dir.join(INDEX));
    if there(&whole) {
        return Ok(Some((vec![whole], None)));
    }
    if there(&index) {
        let (files, places) = of_index(dir, &index)?;
        return Ok(Some((files, Some((index, places)))));
    }
    Ok(None)
}

/// Whether the path exists. A dangling link does, so that opening it names the missing file.
fn there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn of_index(dir: &Path, index: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, usize>), Error> {
    let mut keys = Keys::new(index, keys::read(index)?)?;
    let shards = match keys.table("weight_map")? {
        Some(table) if !table.is_empty() => table.words()?,
        _ => return Err(keys.refuse("weight_map", "empty", "a table of tensors and files")),
    };
    let mut names: Vec<&str> = shards.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut files = Vec::with_capacity(names.len());
    for name in &names {
        let refuse = |reason: &str| {
            let of_this = shards.iter().find(|(_, shard)| shard == name);
            Error::Index {
                path: index.into(),
                key: of_this.map(|(key, _)| key.clone()).unwrap_or_default(),
                shard: (*name).into(),
                reason: reason.into(),
            }
        };
        if !files::is_file_name(name) {
            return Err(refuse(
                "this is not the name of a file beside the index, and no other file is read",
            ));
        }
        if !dir.join(name).exists() {
            return Err(refuse("this file is not there; fetch the checkpoint again"));
        }
        files.push(dir.join(name));
    }
    let place = |shard: &String| names.binary_search(&shard.as_str()).unwrap_or_default();
    let places = shards
        .iter()
        .map(|(key, shard)| (key.clone(), place(shard)));
    Ok((files, places.collect()))
}

impl Weights {
    /// Opens the [`weight_files`] of a folder.
    ///
    /// # Errors
    ///
    /// Where there are none, and as [`weight_files`] and [`Mapped::open`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        if let Some((files, index)) = find(dir)? {
            let files = files.into_iter().map(Mapped::open);
            return Ok(Self {
                files: files.collect::<Result<_, _>>()?,
                index,
            });
        }
        let other = OTHERS.iter().find(|name| there(&dir.join(name)));
        Err(Error::NoWeights {
            path: dir.into(),
            hint: match other {
                Some(name) => format!(
                    "; {name} is not read: save the model again with `safe_serialization=True` in `transformers`"
                ),
                None => String::new(),
            },
        })
    }

    /// All tensors, by name. A tensor in several files is taken from the file that the index names.
    ///
    /// # Errors
    ///
    /// Files that are not whole; a tensor that is not where the index says; one that is stored twice and differs.
    pub fn tensors(&self) -> Result<BTreeMap<String, Stored<'_>>, Error> {
        let mut files: Vec<BTreeMap<String, Stored>> = Vec::with_capacity(self.files.len());
        for file in &self.files {
            files.push(file.tensors()?);
        }
        let mut all = BTreeMap::new();
        if let Some((path, places)) = &self.index {
            for (name, &place) in places {
                let Some(tensor) = files[place].remove(name) else {
                    let file = &self.files[place].path;
                    return Err(Error::Index {
                        path: path.clone(),
                        key: name.clone(),
                        shard: file.file_name().unwrap_or_default().display().to_string(),
                        reason: "this file does not have it; fetch the checkpoint again".into(),
                    });
                };
                all.insert(name.clone(), tensor);
            }
        }
        for (name, tensor) in files.into_iter().flatten() {
            match all.get(&name) {
                None => {
                    all.insert(name, tensor);
                }
                Some(known) if tensor.equals(&name, known, &name)? => {}
                Some(known) => {
                    return Err(Error::Differs {
                        path: tensor.path.into(),
                        other: format!("that of {}", known.path.display()),
                        name,
                        hint: "fetch the checkpoint again".into(),
                    });
                }
            }
        }
        Ok(all)
    }
}
