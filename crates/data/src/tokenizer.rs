use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokenizers::decoders::wordpiece::WordPiece as JoinWords;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::Error;
use crate::corpus::vocabulary;
use crate::prompt::{INPUT, INSTRUCTION, RESPONSE, WITH_INPUT, WITHOUT_INPUT};

/// End of text where neither caller nor file says otherwise.
const USUAL_ENDS: [&str; 3] = ["<|endoftext|>", "</s>", "<|im_end|>"];

/// A Hugging Face tokenizer and its end-of-text token, which also pads.
pub struct Tokenizer {
    inner: Inner,
    eos: u32,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. `eos` comes from the model's `config.json`; without it the usual
    /// end-of-text tokens are looked for.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has no end-of-text token.
    pub fn from_file(path: &Path, eos: Option<u32>) -> Result<Self, Error> {
        let fail = |reason: String| Error::Tokenizer {
            path: path.into(),
            reason,
        };
        let mut inner = Inner::from_file(path).map_err(|e| fail(e.to_string()))?;
        // A file may carry limits of its own; ours are the experiment's.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| fail(e.to_string()))?;
        let eos = eos
            .filter(|&id| inner.id_to_token(id).is_some())
            .or_else(|| USUAL_ENDS.iter().find_map(|t| inner.token_to_id(t)))
            .ok_or_else(|| {
                fail(format!(
                    "no end-of-text token; looked for {}",
                    USUAL_ENDS.join(", ")
                ))
            })?;
        Ok(Self {
            inner,
            eos,
            path: path.into(),
        })
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
        Self {
            inner,
            eos: 0,
            path: "embedded tokenizer".into(),
        }
    }

    /// Tokens of a text; no special tokens are added.
    ///
    /// # Errors
    ///
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| self.fail(&*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token that this tokenizer puts before a text encoded with special tokens.
    ///
    /// # Errors
    ///
    /// When it puts none there, or other tokens too.
    pub fn bos(&self) -> Result<u32, Error> {
        let encode = |special| {
            let encoding = self.inner.encode_fast("a", special);
            encoding.map_err(|e| self.fail(&*e))
        };
        let (plain, full) = (encode(false)?, encode(true)?);
        match full.get_ids().split_first() {
            Some((&bos, rest)) if rest == plain.get_ids() => Ok(bos),
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
        self.inner.decode(tokens, true).map_err(|e| self.fail(&*e))
    }

    /// How another tokenizer gives other tokens for a text, if it does.
    pub fn differs_from(&self, other: &Self) -> Option<String> {
        let plain = |tokenizer: &Self| {
            let text = tokenizer.inner.to_string(false).expect("serialisable");
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
        };
        let (ours, theirs) = (plain(self), plain(other));
        let part = ["model", "added_tokens", "normalizer", "pre_tokenizer"]
            .into_iter()
            .find(|part| ours[part] != theirs[part])?;
        Some(format!("their `{part}` is not the same"))
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// End of text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Padding; the end of text, as in the published code. Masks go by length, so that an end that is
    /// meant is not taken for padding.
    pub fn pad(&self) -> u32 {
        self.eos
    }

    /// SHA-256 of the serialised tokenizer and its end of text, in hexadecimal.
    ///
    /// # Panics
    ///
    /// Never: what was read can be written.
    pub fn hash(&self) -> String {
        let mut json: serde_json::Value =
            serde_json::from_str(&self.inner.to_string(false).expect("serialisable"))
                .expect("JSON");
        json["eos"] = self.eos.into();
        Sha256::digest(json.to_string())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// Writes a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        self.inner.save(path, true).map_err(|e| Error::Tokenizer {
            path: path.into(),
            reason: e.to_string(),
        })
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
mod tests {
    use super::*;

    #[test]
    fn the_template_costs_a_token_a_part() {
        let tokenizer = Tokenizer::embedded();
        let example = crate::Example {
            instruction: "what does anna have?".into(),
            input: "anna has a red hat.".into(),
            outputs: vec!["x".into()],
        };
        let tokens = tokenizer.encode(&crate::prompt(&example)).unwrap();
        assert_eq!(tokens.len(), 4 + 5 + 6);
        assert!(tokens.iter().all(|&t| t != 1), "no unknown word");
        assert!(tokenizer.vocab_size() <= 1024, "{}", tokenizer.vocab_size());
        assert_eq!(
            tokenizer
                .decode(&[tokenizer.encode("anna").unwrap()[0], 0])
                .unwrap(),
            "anna"
        );
    }

    #[test]
    fn a_saved_tokenizer_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let tokenizer = Tokenizer::embedded();
        tokenizer.save(&path).unwrap();
        let again = Tokenizer::from_file(&path, None).unwrap();
        let text = "\n\n### Response:\nanna has a red hat.";
        assert_eq!(tokenizer.encode(text).unwrap(), again.encode(text).unwrap());
        assert_eq!(tokenizer.hash(), again.hash());
        std::fs::write(&path, "{").unwrap();
        assert!(Tokenizer::from_file(&path, None).is_err());
    }

    #[test]
    fn the_beginning_of_sequence_is_what_the_file_puts_there() {
        use tokenizers::processors::template::TemplateProcessing;
        let mut tokenizer = Tokenizer::embedded();
        let text = tokenizer.bos().unwrap_err().to_string();
        assert!(text.contains("beginning of sequence"), "{text}");
        let processor = TemplateProcessing::builder()
            .try_single("<unk> $A")
            .unwrap()
            .special_tokens(vec![("<unk>", 1)])
            .build()
            .unwrap();
        tokenizer.inner.with_post_processor(Some(processor));
        assert_eq!(tokenizer.bos().unwrap(), 1);
        // and other encodings stay as they are
        assert!(!tokenizer.encode("anna").unwrap().contains(&1));
    }
}
