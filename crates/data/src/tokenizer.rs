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

/// End of text where neither caller nor files say which it is, and a tokenizer has one of these.
const USUAL_ENDS: [&str; 3] = ["<|endoftext|>", "</s>", "<|im_end|>"];

/// Runs the library, which panics on some files that are JSON and yet no tokenizer.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .map_err(|_| "the library for tokenizers gave up on it; is the file damaged?".into())
}

/// Refuses a character map that is none.
fn check_precompiled(normalizer: &Value) -> Result<(), String> {
    if let Some(inner) = normalizer["normalizers"].as_array() {
        return inner.iter().try_for_each(check_precompiled);
    }
    if normalizer["type"] == "Precompiled" {
        // From text: it borrows from that.
        serde_json::from_str::<Precompiled>(&normalizer.to_string())
            .map_err(|e| format!("precompiled_charsmap: {e}"))?;
    }
    Ok(())
}

/// Part of a `tokenizer.json`.
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

/// A Hugging Face tokenizer and its end-of-text token, which also pads.
pub struct Tokenizer {
    inner: Inner,
    /// The first is appended to texts.
    ends: Vec<u32>,
    /// Above every id.
    bound: usize,
    /// The file itself where its model's ids have gaps: the library prints a warning to stdout when it writes those.
    gapped: Option<Value>,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Which token ends a text, the files beside it say (`tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json`); where they say nothing, it is `eos`, the model's
    /// own, where the tokenizer has that; else the one usual end-of-text token that it has. Each of those that are said ends
    /// an answer, `eos` among them.
    ///
    /// # Errors
    ///
    /// When the files cannot be read, or no end of text is to be found in them.
    pub fn from_file(path: &Path, eos: Option<u32>) -> Result<Self, Error> {
        let mut tokenizer = Self::open(path)?;
        let said = ends::Said::read(&files::folder_of(path))?;
        let appended = match &said.token {
            Some((token, file)) => {
                let id = tokenizer.inner.token_to_id(token);
                Some(id.ok_or_else(|| Error::Tokenizer {
                    path: file.clone(),
                    reason: format!(
                        "its `eos_token` {token:?} is no token of {}; do the two files belong together?",
                        path.display()
                    ),
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

    /// The same, and texts end with `eos`: a token, or the number of one.
    ///
    /// # Errors
    ///
    /// When the files cannot be read, or the tokenizer has no such token.
    pub fn from_file_with_eos(path: &Path, eos: &str) -> Result<Self, Error> {
        let mut tokenizer = Self::open(path)?;
        let inner = &tokenizer.inner;
        // Digits are the number of a token, though they are the text of another.
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

    /// Reads the file; its end of text is not known yet.
    fn open(path: &Path) -> Result<Self, Error> {
        let fail = |reason: String| Error::Tokenizer {
            path: path.into(),
            reason,
        };
        let bytes = files::read(path, files::TEXT_LIMIT).map_err(Error::io(path))?;
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let other = |e: String| fail(format!("no tokenizer.json of Hugging Face ({e})"));
        // The library panics where these parts are malformed.
        let mut json: Value = serde_json::from_slice(text).map_err(|e| other(e.to_string()))?;
        check_precompiled(&json["normalizer"]).map_err(other)?;
        let mut inner = guarded(|| Inner::from_bytes(text))
            .and_then(|read| read.map_err(|e| e.to_string()))
            .map_err(other)?;
        // A file may carry limits of its own; ours are the experiment's.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| fail(e.to_string()))?;
        // The library numbers added tokens itself, whatever the file says.
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

    /// The end of text by its name, which must be the only one of the usual names.
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

    /// The embedded corpus's tokenizer: a word or punctuation mark a token, and one token for each part of
    /// the prompt template.
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

    /// The token that this tokenizer puts before a text encoded with special tokens.
    ///
    /// # Errors
    ///
    /// When it puts none there, or other tokens too.
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

    /// The size of a vocabulary that holds every id, added ones included: the highest id and one more. A vocabulary with gaps
    /// has fewer tokens.
    pub fn vocab_size(&self) -> usize {
        self.bound
    }

    /// End of text: what is appended to a text.
    pub fn eos(&self) -> u32 {
        self.ends[0]
    }

    /// What ends an answer: [`eos`](Self::eos), and others where the model's files list more.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The text of a token in the vocabulary, as `tokenizer_config.json` names it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Padding; the end of text, as in the published code. Masks go by length, so that an end that is
    /// meant is not taken for padding.
    pub fn pad(&self) -> u32 {
        self.eos()
    }

    /// SHA-256 of the serialised tokenizer and its ends of text, in hexadecimal.
    ///
    /// # Panics
    ///
    /// Never: what was read can be written.
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
        Error::Tokenizer {
            path: self.path.clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
