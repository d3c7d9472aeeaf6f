//! Checkpoint folders that a test changes before it reads them.
#![allow(dead_code)] // no test uses all

use std::path::{Path, PathBuf};

use abkd_models::{Error, LanguageModel, checkpoint};
use burn::tensor::Device;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

pub fn load(name: &str) -> LanguageModel {
    checkpoint::load(&goldens().join(name), &Device::flex()).unwrap()
}

/// A tensor of a file: name, shape, numbers.
pub type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// A copy of a checkpoint that a test may change.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Copies all files of a golden checkpoint.
    pub fn of(name: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for entry in std::fs::read_dir(goldens().join(name)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(
                &from,
                folder.path(from.file_name().unwrap().to_str().unwrap()),
            )
            .unwrap();
        }
        folder
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir().join(file)
    }

    pub fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    pub fn set_json(&self, file: &str, value: &Value) {
        std::fs::write(self.path(file), value.to_string()).unwrap();
    }

    pub fn edit(&self, file: &str, key: &str, value: Value) {
        let mut json = self.json(file);
        json[key] = value;
        self.set_json(file, &json);
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.path(file)).unwrap();
    }

    /// Tensors of a safetensors file of f32.
    pub fn tensors(&self, file: &str) -> Tensors {
        let bytes = std::fs::read(self.path(file)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let numbers = view.data().as_chunks::<4>().0.iter();
                let numbers = numbers.map(|b| f32::from_le_bytes(*b)).collect();
                (name, view.shape().to_vec(), numbers)
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    pub fn set_tensors(&self, file: &str, tensors: &Tensors) {
        let stored: Vec<(&str, &[usize], Vec<u8>)> = tensors
            .iter()
            .map(|(name, shape, numbers)| {
                let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                (name.as_str(), &shape[..], bytes)
            })
            .collect();
        let views = stored.iter().map(|(name, shape, bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap(),
            )
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(self.path(file), bytes).unwrap();
    }

    /// Changes the tensors of model.safetensors.
    pub fn edit_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = self.tensors("model.safetensors");
        change(&mut tensors);
        self.set_tensors("model.safetensors", &tensors);
    }

    /// Splits model.safetensors into two files with an index.
    pub fn shard(&self) {
        let tensors = self.tensors("model.safetensors");
        let mut map = serde_json::Map::new();
        for (part, chunk) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
            let name = format!("model-0000{}-of-00002.safetensors", part + 1);
            self.set_tensors(&name, &chunk.to_vec());
            for (tensor, ..) in chunk {
                map.insert(tensor.clone(), name.clone().into());
            }
        }
        let index = serde_json::json!({ "metadata": {"total_size": 0}, "weight_map": map });
        self.set_json("model.safetensors.index.json", &index);
        self.remove("model.safetensors");
    }

    pub fn load(&self) -> Result<LanguageModel, Error> {
        checkpoint::load(self.dir(), &Device::flex())
    }

    /// The error message of a folder that is refused.
    pub fn refused(&self) -> String {
        match self.load() {
            Ok(_) => panic!("read"),
            Err(error) => error.to_string(),
        }
    }
}

/// All parameters of a model.
pub fn values(model: &LanguageModel) -> Tensors {
    abkd_models::params::values(model)
}
