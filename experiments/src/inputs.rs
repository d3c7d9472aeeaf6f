//! Inputs of tasks: data, tokenizer, base models, and the hashes that identify them.

pub mod checkpoints;
mod companions;
mod identity;
mod padding;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use abkd_data::indexed::{Documents, IndexedTokens};
use abkd_data::{
    ChatTemplate, DataSets, Date, Encoding, Example, Limits, PromptTemplate, TestFile, Tokenizer,
};
use abkd_models::{LanguageModel, ModelConfig, checkpoint};
use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;

use self::checkpoints::Side;
use self::identity::{hash_asked, hash_tokens, short};
pub use self::identity::{hash_checkpoint, hash_json, identity};
pub use self::padding::leave_out_padding;
use crate::spec::{DataSpec, Layers, ModelSpec, Source, Spec, Template, TestSet, Validated};

/// A missing input: a plan tolerates it, a run does not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Absent(pub String);

/// Whether an error reports a missing input rather than a wrong one.
pub fn is_absent(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Absent>()
            || matches!(
                cause.downcast_ref(),
                Some(abkd_data::Error::MissingSet { .. })
            )
    })
}

/// Tokenized data of a spec, each set with its hash.
pub struct Inputs {
    /// Tokenizer of both models.
    pub tokenizer: Tokenizer,
    /// Template of the prompts.
    pub template: PromptTemplate,
    /// Training sequences.
    pub train: Encoding,
    /// Number of training examples read.
    pub train_examples: usize,
    /// Validation examples.
    pub valid: Vec<Example>,
    /// Prompts of the validation examples.
    pub valid_prompts: Vec<Vec<u32>>,
    /// Sequences of the validation examples.
    pub valid_sequences: Encoding,
    /// Beginning-of-sequence token of the prompts for test and teacher answers, if any.
    pub bos: Option<u32>,
    /// Length limits of prompts and sequences.
    pub limits: Limits,
    /// Plain text for the language-modelling term.
    pub text: Option<IndexedTokens>,
    /// Test sets with prompts.
    pub tests: BTreeMap<String, (Vec<Example>, Vec<Vec<u32>>)>,
    /// Hashes of `train`, `valid`, each test set, the text and the tokenizer.
    pub hashes: BTreeMap<String, String>,
    /// Files of a student's folder besides the weights.
    pub companions: Vec<companions::File>,
}

/// Data to read, and the spec that names them.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The project's folder.
    pub root: &'a Path,
    /// The data.
    pub data: &'a DataSpec,
    /// The teacher, whose tokenizer is used where there is no other.
    pub teacher: &'a ModelSpec,
    /// Number of validation examples to use.
    pub valid: usize,
    /// Whether prompts for test and teacher answers begin with the beginning-of-sequence token.
    pub bos: bool,
    /// Test sets.
    pub tests: &'a [TestSet],
    /// The spec that names the data; a task has none.
    pub(crate) spec: Option<&'a Spec>,
}

impl<'a> Wanted<'a> {
    /// The data that a spec needs.
    pub fn of(root: &'a Path, spec: &'a Spec) -> Self {
        let p = &spec.profile;
        Self {
            root,
            data: &p.data,
            teacher: &p.teacher,
            valid: p.validation.examples,
            bos: p.evaluation.bos,
            tests: &spec.tests,
            spec: Some(spec),
        }
    }

    /// `path:line` of a key of the profile, where it is known.
    fn place(&self, keys: &[&str]) -> String {
        self.spec.map_or_else(
            || format!("[{}]", keys.join(".")),
            |spec| spec.in_profile(keys),
        )
    }
}

impl Inputs {
    /// Reads and encodes the data that a spec needs.
    ///
    /// # Errors
    ///
    /// As [`Inputs::load`].
    pub fn of(root: &Path, spec: &Spec) -> Result<Self> {
        Self::load(&Wanted::of(root, spec))
    }

    /// Reads and encodes the wanted data.
    ///
    /// # Errors
    ///
    /// Data or tokenizer that cannot be read.
    pub fn load(wanted: &Wanted) -> Result<Self> {
        let (root, data) = (wanted.root, wanted.data);
        let (tokenizer, tokenizer_file) = load_tokenizer(wanted)?;
        let template = prompt_template(data.template, data.date, tokenizer_file.as_deref())
            .with_context(|| {
                let place = wanted.place(&["data", "template"]);
                format!("{place}: [data] template = \"chat\"")
            })?;
        let sets = load_sets(wanted)?;
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
        let most = data.valid.map_or(wanted.valid, |n| n.min(wanted.valid));
        let valid = first(&sets.valid, Some(most));
        let mut hashes = BTreeMap::from([
            ("train".to_owned(), hash_asked(&template, &train)),
            ("valid".to_owned(), hash_asked(&template, &valid)),
            ("tokenizer".to_owned(), short(&tokenizer.hash())),
        ]);
        let bos = if wanted.bos {
            Some(tokenizer.bos().with_context(|| {
                let place = wanted.place(&["evaluation", "bos"]);
                format!("{place}: [evaluation] bos = true")
            })?)
        } else {
            None
        };
        let mut tests = BTreeMap::new();
        for set in wanted.tests {
            let all = match &set.path {
                Some(path) => &abkd_data::read_columns(&root.join(path), &set.columns)?,
                None => sets.test(&set.id),
            };
            let before = all.len().saturating_sub(set.last.unwrap_or(usize::MAX));
            let examples = first(&all[before..], data.test);
            ensure!(
                !examples.is_empty(),
                "test set {}: no examples{}",
                set.id,
                match data.source {
                    Source::Embedded if set.path.is_none() =>
                        "; the embedded corpus has no such set: give it `path` in experiments/datasets.toml",
                    _ => "",
                }
            );
            hashes.insert(set.id.clone(), hash_asked(&template, &examples));
            let prompts = abkd_data::encode_prompts(&examples, &tokenizer, &template, &limits, bos)
                .with_context(|| format!("test set {}", set.id))?;
            tests.insert(set.id.clone(), (examples, prompts));
        }
        let mut train_examples = train.len();
        let vocabulary = tokenizer.vocab_size();
        let encoded = match &data.train_tokens {
            None => abkd_data::encode_training(&train, &tokenizer, &template, &limits)
                .context("training data")?,
            Some(prefix) => {
                let prefix = root.join(prefix);
                let tokens = open_tokens(wanted, "train_tokens", &prefix)?;
                tokens.check_ids(vocabulary, Documents::Instructions)?;
                train_examples = tokens.len().min(data.train.unwrap_or(usize::MAX));
                let hash = hash_tokens(&prefix)?;
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
                let prefix = root.join(prefix);
                let text = open_tokens(wanted, "text", &prefix)?;
                text.check_ids(vocabulary, Documents::Text)?;
                ensure!(
                    text.longest() > 1,
                    "{}: no document has two tokens, so there is nothing to predict",
                    prefix.display()
                );
                hashes.insert("text".into(), hash_tokens(&prefix)?);
                Some(text)
            }
        };
        let teacher = wanted.teacher;
        let positions = base_shape(root, teacher, teacher)
            .map_or(data.max_length, |shape| shape.max_positions());
        let described = teacher.checkpoint.as_ref().map(|dir| root.join(dir));
        let companions = companions::files(
            &tokenizer,
            tokenizer_file.as_deref(),
            described.as_deref(),
            positions,
        )?;
        Ok(Self {
            companions,
            text,
            train: encoded,
            train_examples,
            bos,
            limits,
            valid_prompts: abkd_data::encode_prompts(&valid, &tokenizer, &template, &limits, None)
                .context("validation data")?,
            valid_sequences: abkd_data::encode_training(&valid, &tokenizer, &template, &limits)
                .context("validation data")?,
            valid,
            template,
            tests,
            hashes,
            tokenizer,
        })
    }

    /// Which validation figures the data allow.
    pub fn validated(&self) -> Validated {
        let mut sequences = self.valid_sequences.sequences.iter();
        Validated {
            loss: sequences.any(|s| s.tokens.len() > s.prompt_len),
            answers: !self.valid.is_empty(),
        }
    }

    /// Notes about the data that are not errors.
    pub fn notes(&self) -> Vec<String> {
        if self.validated().loss {
            return Vec::new();
        }
        vec!["no validation example has a response token: there is no validation loss".into()]
    }

    /// Examples and prompts of a test set; empty for a set that was not loaded.
    pub fn test(&self, id: &str) -> (&[Example], &[Vec<u32>]) {
        let found = self.tests.get(id);
        found.map_or((&[], &[]), |(examples, prompts)| (examples, prompts))
    }
}

/// The tokenizer and its file; no file for the embedded one.
///
/// # Errors
///
/// As [`tokenizer_path`], and a tokenizer that cannot be read.
pub fn load_tokenizer(wanted: &Wanted) -> Result<(Tokenizer, Option<PathBuf>)> {
    let Some(path) = tokenizer_path(wanted)? else {
        return Ok((Tokenizer::embedded(), None));
    };
    let eos = match &wanted.teacher.checkpoint {
        Some(dir) => ModelConfig::read(&wanted.root.join(dir).join("config.json"))?.eos(),
        None => None,
    };
    let tokenizer = read_tokenizer(&path, eos)?;
    Ok((tokenizer, Some(path)))
}

/// The file of the tokenizer; `None` for the embedded one.
///
/// # Errors
///
/// When the file is missing, or the profile names none.
pub fn tokenizer_path(wanted: &Wanted) -> Result<Option<PathBuf>> {
    let (root, data) = (wanted.root, wanted.data);
    if data.source == Source::Embedded && data.tokenizer.is_none() {
        return Ok(None);
    }
    let (path, place) = match (&data.tokenizer, &wanted.teacher.checkpoint) {
        (Some(path), _) => (root.join(path), wanted.place(&["data", "tokenizer"])),
        (None, Some(dir)) => (
            root.join(dir).join("tokenizer.json"),
            wanted.place(&["teacher", "checkpoint"]),
        ),
        (None, None) => {
            return Err(anyhow!(
                "{}: [data] tokenizer: name a tokenizer.json; the teacher has no checkpoint folder to take it from",
                wanted.place(&["data"])
            ));
        }
    };
    if !path.exists() {
        let what = format!(
            "{place}: {}: not there; give [data] tokenizer the path of the tokenizer.json that the teacher was trained with",
            path.display()
        );
        // An existing folder without its tokenizer is wrong, not absent.
        return Err(if abkd_host::files::folder_of(&path).exists() {
            anyhow!(what)
        } else {
            anyhow!(Absent(what))
        });
    }
    Ok(Some(path))
}

/// Reads a tokenizer; the error names a git-lfs pointer.
pub(crate) fn read_tokenizer(path: &Path, eos: Option<u32>) -> Result<Tokenizer> {
    // Refuses anything but a plain file: the reader would block on a pipe.
    abkd_host::files::open(path).with_context(|| path.display().to_string())?;
    Ok(Tokenizer::from_file(path, eos)?)
}

/// The template of prompts; a chat template is read beside the tokenizer's file.
///
/// # Errors
///
/// A chat template that is missing or cannot be read.
pub(crate) fn prompt_template(
    template: Template,
    date: Option<Date>,
    tokenizer: Option<&Path>,
) -> Result<PromptTemplate> {
    if template.is_paper() {
        return Ok(PromptTemplate::Paper);
    }
    let tokenizer = tokenizer.context(
        "the embedded tokenizer has no chat template; give [data] tokenizer the path of a tokenizer.json, or leave the template out",
    )?;
    let folder = abkd_host::files::folder_of(tokenizer);
    Ok(PromptTemplate::Chat(Box::new(ChatTemplate::read(
        &folder, date,
    )?)))
}

/// Opens the token files of a key of `[data]`.
fn open_tokens(wanted: &Wanted, key: &str, prefix: &Path) -> Result<IndexedTokens> {
    let place = || format!("{}: [data] {key}", wanted.place(&["data", key]));
    for suffix in ["bin", "idx"] {
        let path = prefix.with_added_extension(suffix);
        if !path.exists() {
            return Err(anyhow!(Absent(format!(
                "{}: {}: not there; {key} is the path of two token files, .bin and .idx, without that ending",
                place(),
                path.display()
            ))));
        }
        abkd_host::files::open(&path).with_context(|| path.display().to_string())?;
    }
    IndexedTokens::open(prefix).with_context(place)
}

/// The folder of the instruction sets: `[data] path`, else `ABKD_DATA`, else `data`.
pub fn data_folder(root: &Path, data: &DataSpec) -> PathBuf {
    match &data.path {
        Some(path) => root.join(path),
        None => std::env::var_os("ABKD_DATA").map_or_else(|| root.join("data"), PathBuf::from),
    }
}

/// Reads the wanted sets, except test sets with their own `path`.
fn load_sets<'a>(wanted: &Wanted<'a>) -> Result<DataSets> {
    let (root, data) = (wanted.root, wanted.data);
    match data.source {
        Source::Embedded => Ok(abkd_data::embedded(data.seed, &sizes(data))),
        Source::Folder => {
            let folder = data_folder(root, data);
            let training = data.train_tokens.is_none() && data.train_file.is_none();
            let validation = data.valid_file.is_none() && data.hold_out.is_none();
            let in_folder = |set: &'a TestSet| {
                let file = set.file.as_deref()?;
                Some(TestFile { id: &set.id, file })
            };
            let tests: Vec<TestFile> = wanted.tests.iter().filter_map(in_folder).collect();
            let needed = training || validation || !tests.is_empty();
            if needed && !folder.exists() {
                return Err(anyhow!(Absent(format!(
                    "{}: this profile reads the instruction sets from a folder; set ABKD_DATA to one, or get them with `abkd fetch data` (README, \"Real data\")",
                    folder.display()
                ))));
            }
            let mut sets = abkd_data::from_folder(&folder, training, validation, &tests)?;
            let read = |file: &Path| abkd_data::read_columns(&root.join(file), &data.columns);
            if let Some(file) = &data.train_file {
                sets.train = read(file)?;
            }
            if let Some(file) = &data.valid_file {
                sets.valid = read(file)?;
            }
            if let Some(held_out) = data.hold_out {
                let left = sets.train.len().saturating_sub(held_out);
                ensure!(
                    left > 0,
                    "{}: [data] hold_out = {held_out}: of {} examples none is left to train on",
                    wanted.place(&["data", "hold_out"]),
                    sets.train.len()
                );
                sets.valid = sets.train.split_off(left);
            }
            Ok(sets)
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
    if let Some(config) = model.fresh()? {
        return Ok(config.init(model.seed, device));
    }
    if let Some(layers) = &model.layers {
        let whole = base_model(root, teacher, teacher, device)?;
        let some = match layers {
            Layers::Count(count) => whole.with_layers(*count),
            Layers::These(layers) => whole.with_these_layers(layers),
        };
        return some.context("[student] layers");
    }
    let dir = model
        .checkpoint
        .as_ref()
        .context("a model without a source")?;
    let tokens = model.vocabulary.unwrap_or(usize::MAX);
    Ok(checkpoint::load_tokens(&root.join(dir), tokens, device)?)
}

/// The shape of a base model: from its checkpoint if that is there, else as declared.
///
/// # Errors
///
/// When there is neither.
pub fn base_shape(root: &Path, model: &ModelSpec, teacher: &ModelSpec) -> Result<ModelConfig> {
    if let Some(layers) = &model.layers {
        return Ok(base_shape(root, teacher, teacher)?.with_layers(layers.count()));
    }
    if let Some(dir) = &model.checkpoint {
        let path = root.join(dir).join("config.json");
        if path.exists() {
            return Ok(model.cut(ModelConfig::read(&path)?));
        }
        if model.declared()?.is_none() {
            return Err(anyhow!(Absent(format!("{}: not there", path.display()))));
        }
    }
    model.declared()?.context("a model without a source")
}

/// The shape of a side's base model.
///
/// # Errors
///
/// As [`base_shape`].
pub fn shape_of(root: &Path, spec: &Spec, side: Side) -> Result<ModelConfig> {
    base_shape(root, side.of(spec), &spec.profile.teacher)
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
        let plain = Inputs::of(&root, &spec).unwrap();
        let sets = load_sets(&Wanted::of(&root, &spec)).unwrap();
        let mut documents = pack(&sets.train, &Tokenizer::embedded()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("train_0");
        write_indexed(&prefix, &documents).unwrap();
        spec.profile.data.train_tokens = Some(prefix.clone());
        let packed = Inputs::of(&root, &spec).unwrap();
        assert_eq!(packed.train, plain.train);
        assert_ne!(packed.hashes["train"], plain.hashes["train"]);

        documents[3][0] = 9000;
        write_indexed(&prefix, &documents).unwrap();
        let error = Inputs::of(&root, &spec).err().unwrap().to_string();
        assert!(error.contains("packed with another"), "{error}");
    }
}
