//! What cells work on: data, tokenizer, base models; and the hashes that tell one input from another.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use abkd_data::indexed::{Documents, IndexedTokens};
use abkd_data::{DataSets, Encoding, Example, Limits, TestSet, Tokenizer};
use abkd_models::{LanguageModel, ModelConfig, checkpoint};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::spec::{DataSpec, ModelSpec, Profile, Source, Spec};

/// Data of a spec, as tokens, each with its hash.
pub struct Inputs {
    /// Tokenizer of both models.
    pub tokenizer: Tokenizer,
    /// Training sequences.
    pub train: Encoding,
    /// Training examples read.
    pub train_examples: usize,
    /// Validation examples.
    pub valid: Vec<Example>,
    /// Their prompts.
    pub valid_prompts: Vec<Vec<u32>>,
    /// Their sequences.
    pub valid_sequences: Encoding,
    /// The token that prompts begin with where answers are drawn for a test or from the teacher, if any.
    pub bos: Option<u32>,
    /// Where texts are cut.
    pub limits: Limits,
    /// Plain text for the language-modelling term.
    pub text: Option<IndexedTokens>,
    /// Test sets with prompts.
    pub tests: BTreeMap<&'static str, (Vec<Example>, Vec<Vec<u32>>)>,
    /// Hashes of `train`, `valid`, each test set, and the tokenizer.
    pub hashes: BTreeMap<String, String>,
}

impl Inputs {
    /// Reads and encodes what `spec` needs.
    ///
    /// # Errors
    ///
    /// Data or tokenizer that cannot be read.
    pub fn load(root: &Path, spec: &Spec) -> Result<Self> {
        let profile = &spec.profile;
        let data = &profile.data;
        let tokenizer = load_tokenizer(root, profile)?;
        let sets = load_sets(root, data)?;
        let limits = Limits {
            max_prompt_length: data.max_prompt_length,
            max_length: data.max_length,
        };
        let first = |examples: &[Example], limit: Option<usize>| -> Vec<Example> {
            examples
                .iter()
                .take(limit.unwrap_or(usize::MAX))
                .cloned()
                .collect()
        };
        let train = first(&sets.train, data.train);
        let valid = first(&sets.valid, Some(profile.validation.examples));
        let mut hashes = BTreeMap::from([
            ("train".to_owned(), hash_examples(&train)),
            ("valid".to_owned(), hash_examples(&valid)),
            ("tokenizer".to_owned(), short(&tokenizer.hash())),
        ]);
        let bos = if profile.evaluation.bos {
            Some(tokenizer.bos().context("[evaluation] bos = true")?)
        } else {
            None
        };
        let mut tests = BTreeMap::new();
        for set in spec.datasets()? {
            let examples = first(sets.test(set), data.test);
            ensure!(!examples.is_empty(), "test set {}: no examples", set.id());
            hashes.insert(set.id().to_owned(), hash_examples(&examples));
            let prompts = abkd_data::encode_prompts(&examples, &tokenizer, &limits, bos)?;
            tests.insert(set.id(), (examples, prompts));
        }
        let mut train_examples = train.len();
        let vocabulary = tokenizer.vocab_size();
        let encoded = match &data.train_tokens {
            None => abkd_data::encode_training(&train, &tokenizer, &limits)?,
            Some(prefix) => {
                let prefix = root.join(prefix);
                let tokens = IndexedTokens::open(&prefix)?;
                tokens.check_ids(vocabulary, Documents::Instructions)?;
                train_examples = tokens.len().min(data.train.unwrap_or(usize::MAX));
                let mut hasher = Sha256::new();
                hash_file(&prefix.with_added_extension("bin"), &mut hasher)
                    .with_context(|| prefix.display().to_string())?;
                let hash = short(&hex(&hasher.finalize()));
                hashes.insert("train".into(), format!("{hash}-{train_examples}"));
                let mut encoding = Encoding::default();
                for index in 0..train_examples {
                    match tokens.sequence(index, &limits) {
                        Some(sequence) => encoding.sequences.push(sequence),
                        None => encoding.skipped.push(index),
                    }
                }
                encoding
            }
        };
        ensure!(
            !encoded.sequences.is_empty(),
            "training data: none of {} examples has a response token left; raise [data] max_length",
            train_examples
        );
        let text = match &data.text {
            None => None,
            Some(prefix) => {
                let text = IndexedTokens::open(&root.join(prefix))?;
                text.check_ids(vocabulary, Documents::Text)?;
                ensure!(
                    text.values() > text.len(),
                    "{}: no document has two tokens, so there is nothing to predict",
                    prefix.display()
                );
                hashes.insert("text".into(), format!("{}-{}", text.len(), text.values()));
                Some(text)
            }
        };
        Ok(Self {
            text,
            train: encoded,
            train_examples,
            bos,
            limits,
            valid_prompts: abkd_data::encode_prompts(&valid, &tokenizer, &limits, None)?,
            valid_sequences: abkd_data::encode_training(&valid, &tokenizer, &limits)?,
            valid,
            tests,
            hashes,
            tokenizer,
        })
    }

    /// Examples and prompts of a test set of the spec.
    ///
    /// # Panics
    ///
    /// When the spec does not have the set.
    pub fn test(&self, set: TestSet) -> (&[Example], &[Vec<u32>]) {
        let (examples, prompts) = &self.tests[set.id()];
        (examples, prompts)
    }
}

fn load_tokenizer(root: &Path, profile: &Profile) -> Result<Tokenizer> {
    if profile.data.source == Source::Embedded && profile.data.tokenizer.is_none() {
        return Ok(Tokenizer::embedded());
    }
    let beside = profile
        .teacher
        .checkpoint
        .as_ref()
        .map(|dir| dir.join("tokenizer.json"));
    let Some(path) = profile.data.tokenizer.clone().or(beside) else {
        bail!(
            "[data] tokenizer: name a tokenizer.json; the teacher has no checkpoint folder to take it from"
        );
    };
    let path = root.join(path);
    let eos = match &profile.teacher.checkpoint {
        Some(dir) => ModelConfig::read(&root.join(dir).join("config.json"))
            .with_context(weights_hint)?
            .eos(),
        None => None,
    };
    Ok(Tokenizer::from_file(&path, eos)?)
}

/// The folder of the instruction sets: `[data] path`, else `ABKD_DATA`, else `data`.
pub fn data_folder(root: &Path, data: &DataSpec) -> PathBuf {
    match &data.path {
        Some(path) => root.join(path),
        None => std::env::var_os("ABKD_DATA").map_or_else(|| root.join("data"), PathBuf::from),
    }
}

fn load_sets(root: &Path, data: &DataSpec) -> Result<DataSets> {
    match data.source {
        Source::Embedded => Ok(abkd_data::embedded(data.seed, &sizes(data))),
        Source::Folder => {
            let folder = data_folder(root, data);
            ensure!(
                folder.exists(),
                "{}: this profile reads the instruction sets from a folder; set ABKD_DATA to one, or get them with `abkd fetch data` (README, \"Real data\")",
                folder.display()
            );
            Ok(abkd_data::from_folder(&folder)?)
        }
    }
}

fn sizes(data: &DataSpec) -> abkd_data::Sizes {
    let defaults = abkd_data::Sizes::default();
    abkd_data::Sizes {
        train: data.train.unwrap_or(defaults.train),
        valid: data.valid.unwrap_or(defaults.valid),
        test: data.test.unwrap_or(defaults.test),
    }
}

fn weights_hint() -> String {
    "the checkpoint is not there: `make weights` fetches it, or set [teacher] checkpoint".into()
}

/// What a base model is, for the ids of the cells that start from it.
///
/// # Errors
///
/// A configuration that is not valid.
pub fn identity(root: &Path, model: &ModelSpec, teacher: &ModelSpec) -> Result<Value> {
    if let Some(config) = model.fresh(root)? {
        return Ok(json!({ "config": config, "seed": model.seed }));
    }
    if let Some(layers) = model.layers {
        return Ok(json!({ "layers": layers, "of": identity(root, teacher, teacher)? }));
    }
    let dir = model
        .checkpoint
        .as_ref()
        .context("a model without a source")?;
    Ok(json!({ "checkpoint": hash_checkpoint(&root.join(dir))? }))
}

/// Loads a base model, before any training.
///
/// # Errors
///
/// A checkpoint that cannot be read.
pub fn base_model(
    root: &Path,
    model: &ModelSpec,
    teacher: &ModelSpec,
    device: &Device,
) -> Result<LanguageModel> {
    if let Some(config) = model.fresh(root)? {
        return Ok(config.init(model.seed, device));
    }
    if let Some(layers) = model.layers {
        return Ok(base_model(root, teacher, teacher, device)?.with_layers(layers)?);
    }
    let dir = model
        .checkpoint
        .as_ref()
        .context("a model without a source")?;
    let loaded = checkpoint::load(&root.join(dir), device).with_context(weights_hint)?;
    if let Some(declared) = model.declared(root)? {
        let found = loaded.config();
        let shape = |c: &ModelConfig| (c.vocab_size(), c.width(), c.layers(), c.heads());
        ensure!(
            shape(&declared) == shape(&found),
            "{}: (vocabulary, width, layers, heads) is {:?}, the profile says {:?}",
            root.join(dir).display(),
            shape(&found),
            shape(&declared)
        );
    }
    Ok(loaded)
}

/// The shape of a base model: from its checkpoint if that is there, else as declared.
///
/// # Errors
///
/// When there is neither.
pub fn base_shape(root: &Path, model: &ModelSpec, teacher: &ModelSpec) -> Result<ModelConfig> {
    if let Some(layers) = model.layers {
        return Ok(base_shape(root, teacher, teacher)?.with_layers(layers));
    }
    if let Some(dir) = &model.checkpoint {
        let path = root.join(dir).join("config.json");
        if path.exists() {
            return Ok(ModelConfig::read(&path)?);
        }
    }
    model.declared(root)?.with_context(weights_hint)
}

/// Hash of a checkpoint folder's configuration and weights; `absent` when there is none yet.
fn hash_checkpoint(dir: &Path) -> Result<String> {
    if !dir.join("config.json").exists() {
        return Ok("absent".into());
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.ends_with("config.json") || p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    let mut hasher = Sha256::new();
    for path in files {
        hash_file(&path, &mut hasher).with_context(|| path.display().to_string())?;
    }
    Ok(short(&hex(&hasher.finalize())))
}

fn hash_file(path: &Path, hasher: &mut Sha256) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..n]);
    }
}

fn hash_examples(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for e in examples {
        for text in [&e.instruction, &e.input].into_iter().chain(&e.outputs) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    short(&hex(&hasher.finalize()))
}

/// Hash of a JSON value, short enough for a folder's name.
pub fn hash_json(value: &Value) -> String {
    short(&hex(&Sha256::digest(value.to_string().as_bytes())))[..10].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn short(hex: &str) -> String {
    hex.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use abkd_data::indexed::{pack, write_indexed};

    #[test]
    fn packed_training_data_are_the_same_sequences() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut spec = Spec::load(&root, "table1", "tiny").unwrap();
        spec.profile.data.train = Some(40);
        let plain = Inputs::load(&root, &spec).unwrap();
        let sets = load_sets(&root, &spec.profile.data).unwrap();
        let mut documents = pack(&sets.train, &Tokenizer::embedded()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("train_0");
        write_indexed(&prefix, &documents).unwrap();
        spec.profile.data.train_tokens = Some(prefix.clone());
        let packed = Inputs::load(&root, &spec).unwrap();
        assert_eq!(packed.train, plain.train);
        assert_ne!(packed.hashes["train"], plain.hashes["train"]);

        documents[3][0] = 9000;
        write_indexed(&prefix, &documents).unwrap();
        let error = Inputs::load(&root, &spec).err().unwrap().to_string();
        assert!(error.contains("packed with another"), "{error}");
    }
}
