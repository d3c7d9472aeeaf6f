use std::path::{Path, PathBuf};

use abkd_host::files;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::wordpiece::WordPiece as JoinWords;
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::Error;
use crate::corpus::vocabulary;
use crate::prompt::{INPUT, INSTRUCTION, RESPONSE, WITH_INPUT, WITHOUT_INPUT};

mod ends;
mod same;

/// Default end of text, where neither caller nor files name it and the tokenizer has exactly one of these.
const USUAL_ENDS: [&str; 3] = ["<|endoftext|>", "</s>", "<|im_end|>"];

/// Runs the library and catches its panics, which some invalid tokenizer files cause.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .map_err(|_| "the tokenizers library panicked on it; is the file damaged?".into())
}

/// Refuses an invalid character map.
fn check_precompiled(normalizer: &Value) -> Result<(), String> {
    if let Some(inner) = normalizer["normalizers"].as_array() {
        return inner.iter().try_for_each(check_precompiled);
    }
    if normalizer["type"] == "Precompiled" {
        // Parsed from text, as `Precompiled` borrows from its input.
        serde_json::from_str::<Precompiled>(&normalizer.to_string())
            .map_err(|e| format!("precompiled_charsmap: {e}"))?;
    }
    Ok(())
}

/// The added tokens of a `tokenizer.json`.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    added_tokens: Vec<AddedId>,
}

#[derive(Deserialize)]
struct AddedId {
    id: u32,
    content: String,
}

/// A Hugging Face tokenizer and its end-of-text token, which is also the padding.
pub struct Tokenizer {
    inner: Inner,
    /// Tokens that end an answer; the first is appended to texts.
    ends: Vec<u32>,
    /// Highest id + 1.
    bound: usize,
    /// The file's JSON if the model's ids have gaps: the library prints a warning to stdout when it writes such a model.
    gapped: Option<Value>,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. The files beside it name the end of text (`tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json`); else it is `eos`, the model's own, if the
    /// tokenizer has that token; else the only usual end-of-text token of the tokenizer. An answer ends with any token that
    /// the files name, or with `eos`.
    ///
    /// # Errors
    ///
    /// When the files cannot be read, or no end of text is found.
    pub fn from_file(path: &Path, eos: Option<u32>) -> Result<Self, Error> {
        let mut tokenizer = Self::open(path)?;
        let said = ends::Said::read(&files::folder_of(path))?;
        let appended = match &said.token {
            Some((token, file)) => {
                let id = tokenizer.inner.token_to_id(token);
                Some(id.ok_or_else(|| {
                    let path = path.display();
                    let reason = format!(
                        "its `eos_token` {token:?} is no token of {path}; do the two files belong together?"
                    );
                    Error::file(file, reason)
                })?)
            }
            None => None,
        };
        let known = |id: &u32| tokenizer.inner.id_to_token(*id).is_some();
        let ids = said.ids.into_iter().chain(eos);
        let mut ends: Vec<u32> = appended.into_iter().chain(ids.filter(known)).collect();
        if ends.is_empty() {
            ends.push(tokenizer.usual_end()?);
        }
        tokenizer.end_with(&ends);
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json`; texts end with `eos`, a token or its id.
    ///
    /// # Errors
    ///
    /// When the files cannot be read, or the tokenizer has no such token.
    pub fn from_file_with_eos(path: &Path, eos: &str) -> Result<Self, Error> {
        let mut tokenizer = Self::open(path)?;
        let inner = &tokenizer.inner;
        // Digits are an id, even if they are also the text of a token.
        let id = match eos.parse() {
            Ok(id) => inner.id_to_token(id).map(|_| id),
            Err(_) => inner.token_to_id(eos),
        };
        let id = id.ok_or_else(|| {
            tokenizer.refuse(format!(
                "it has no token {eos:?}; `--eos` takes a token or the number of one below {}",
                tokenizer.bound
            ))
        })?;
        tokenizer.end_with(&[id]);
        Ok(tokenizer)
    }

    /// Reads the file, without an end of text.
    fn open(path: &Path) -> Result<Self, Error> {
        let fail = |reason: String| Error::file(path, reason);
        let bytes = files::read(path, files::TEXT_LIMIT).map_err(Error::io(path))?;
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let other = |e: String| fail(format!("no tokenizer.json of Hugging Face ({e})"));
        // The library panics if these parts are malformed.
        let mut json: Value = serde_json::from_slice(text).map_err(|e| other(e.to_string()))?;
        check_precompiled(&json["normalizer"]).map_err(other)?;
        let mut inner = guarded(|| Inner::from_bytes(text))
            .and_then(|read| read.map_err(|e| e.to_string()))
            .map_err(other)?;
        // Limits of the file are dropped: the experiment sets the limits.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| fail(e.to_string()))?;
        // The library assigns ids to added tokens itself and ignores those of the file.
        let listed: Listed = serde_json::from_slice(text).map_err(|e| fail(e.to_string()))?;
        for AddedId { id, content } in &listed.added_tokens {
            if let Some(given) = inner.token_to_id(content).filter(|given| given != id) {
                return Err(fail(format!(
                    "the added token {content:?} has id {id} in it, and is read as {given}: added ids must go on from the vocabulary's without a gap"
                )));
            }
        }
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some_and(|p| p > 0.0)
        {
            return Err(fail(
                "its model has `dropout`, which gives a text other tokens each time; set it to null".into(),
            ));
        }
        let ids = inner.get_vocab(false);
        let gapped = ids
            .values()
            .max()
            .is_some_and(|&id| id as usize >= ids.len());
        let mut tokenizer = Self::new(inner, &[], path.into());
        tokenizer.gapped = gapped.then(|| {
            for limit in ["truncation", "padding"] {
                json[limit] = Value::Null;
            }
            json
        });
        Ok(tokenizer)
    }

    fn new(inner: Inner, ends: &[u32], path: PathBuf) -> Self {
        let highest = inner.get_vocab(true).into_values().max();
        Self {
            ends: ends.to_vec(),
            bound: highest.map_or(0, |id| id as usize + 1),
            gapped: None,
            inner,
            path,
        }
    }

    /// The end of text by its name: the tokenizer must have exactly one of the usual names.
    fn usual_end(&self) -> Result<u32, Error> {
        let has = |name: &&&str| self.inner.token_to_id(name).is_some();
        let found: Vec<&str> = USUAL_ENDS.iter().filter(has).copied().collect();
        match found[..] {
            [name] => Ok(self.inner.token_to_id(name).expect("it was found")),
            _ => Err(self.refuse(format!(
                "no file beside it says which token ends a text ({}), and of {} it has {}; give `--eos ID|TOKEN`, or write {{\"eos_token\": \"...\"}} into tokenizer_config.json beside it",
                ends::FILES.join(", "),
                USUAL_ENDS.join(", "),
                if found.is_empty() { "none".into() } else { found.join(" and ") },
            ))),
        }
    }

    fn end_with(&mut self, ends: &[u32]) {
        self.ends.clear();
        for &end in ends {
            if !self.ends.contains(&end) {
                self.ends.push(end);
            }
        }
    }

    /// The embedded corpus's tokenizer: one token per word or punctuation mark, and one per part of the
    /// prompt template.
    ///
    /// # Panics
    ///
    /// Never: its parts are constants.
    pub fn embedded() -> Self {
        let special = [
            "<|endoftext|>",
            "<unk>",
            WITH_INPUT,
            WITHOUT_INPUT,
            INSTRUCTION,
            INPUT,
            RESPONSE,
        ];
        let words = special.iter().map(|s| (*s).to_owned()).chain(vocabulary());
        let vocab = words
            .enumerate()
            .map(|(id, word)| (word, id as u32))
            .collect();
        let model = WordLevel::builder()
            .vocab(vocab)
            .unk_token("<unk>".into())
            .build();
        let mut inner = Inner::new(model.expect("the unknown token is in the vocabulary"));
        inner.with_pre_tokenizer(Some(Whitespace {}));
        inner.with_decoder(Some(JoinWords::new("##".into(), true)));
        inner.add_special_tokens(&special.map(|s| AddedToken::from(s, true).normalized(false)));
        Self::new(inner, &[0], "embedded tokenizer".into())
    }

    /// Tokens of a text; no special tokens are added.
    ///
    /// # Errors
    ///
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.ids(text, false)
    }

    /// The token that the tokenizer puts before a text when it adds special tokens.
    ///
    /// # Errors
    ///
    /// When it adds no token there, or other tokens too.
    pub fn bos(&self) -> Result<u32, Error> {
        let (plain, full) = (self.ids("a", false)?, self.ids("a", true)?);
        match full.split_first() {
            Some((&bos, rest)) if rest == plain => Ok(bos),
            _ => Err(self.refuse(
                "it does not put exactly one token before a text, so there is no beginning of sequence".into(),
            )),
        }
    }

    /// Text of tokens, without special tokens.
    ///
    /// # Errors
    ///
    /// When the tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        guarded(|| self.inner.decode(tokens, true))
            .map_err(|e| self.refuse(e))?
            .map_err(|e| self.fail(&*e))
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = guarded(|| self.inner.encode_fast(text, special))
            .map_err(|e| self.refuse(e))?
            .map_err(|e| self.fail(&*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Size of a vocabulary that holds every id, added ones included: the highest id + 1. A vocabulary with gaps has fewer
    /// tokens.
    pub fn vocab_size(&self) -> usize {
        self.bound
    }

    /// End of text: the token appended to a text.
    pub fn eos(&self) -> u32 {
        self.ends[0]
    }

    /// Tokens that end an answer: [`eos`](Self::eos), and others if the model's files list more.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The text of a token in the vocabulary, as `tokenizer_config.json` names it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// SHA-256 of the serialised tokenizer and its ends of text, in hexadecimal.
    ///
    /// # Panics
    ///
    /// Never: a tokenizer that was read can be serialised.
    pub fn hash(&self) -> String {
        let mut json = self.json();
        json["eos"] = self.eos().into();
        if self.ends.len() > 1 {
            json["ends"] = self.ends.clone().into();
        }
        files::sha256(json.to_string().as_bytes())
    }

    /// The `tokenizer.json`, as the library writes it.
    fn json(&self) -> Value {
        self.gapped.clone().unwrap_or_else(|| {
            let text = self.inner.to_string(false).expect("serialisable");
            serde_json::from_str(&text).expect("JSON")
        })
    }

    /// Writes a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = match &self.gapped {
            Some(json) => format!("{json:#}"),
            None => self.inner.to_string(true).map_err(|e| self.fail(&*e))?,
        };
        files::write(path, text.as_bytes()).map_err(Error::io(path))
    }

    fn fail(&self, error: &dyn std::error::Error) -> Error {
        self.refuse(error.to_string())
    }

    pub(crate) fn refuse(&self, reason: String) -> Error {
        Error::file(&self.path, reason)
    }
}

#[cfg(test)]
mod tests;
