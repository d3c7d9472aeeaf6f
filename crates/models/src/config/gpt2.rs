//! The keys of a GPT-2 `config.json`.

use super::{MOST, known};
use crate::Error;
use crate::gpt2::Gpt2Config;
use crate::keys::{Keys, Neutral};

/// Names of one activation in `transformers`: the tanh form of GELU.
const ACTIVATIONS: &[&str] = &[
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_fast",
    "gelu_accurate",
];

/// Names that `transformers` takes for those of GPT-2.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

/// Keys that leave the function unchanged with one value.
const NEUTRAL: &[(&str, Neutral)] = &[
    // once the width of the mask; `n_positions` alone counts today
    ("n_ctx", Neutral::Any),
    ("n_special", Neutral::Zero),
    ("predict_special_tokens", Neutral::Any),
    // the order of the same operations
    ("reorder_and_upcast_attn", Neutral::Any),
    ("scale_attn_by_inverse_layer_idx", Neutral::False),
    ("scale_attn_weights", Neutral::True),
];

impl Gpt2Config {
    /// The keys that matter.
    pub(super) const KEYS: &'static [&'static str] = &[
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "layer_norm_epsilon",
        "activation_function",
        "embd_pdrop",
        "attn_pdrop",
        "resid_pdrop",
        "initializer_range",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    ];

    /// Takes all keys, with the defaults of `transformers`.
    pub(super) fn take(keys: &mut Keys) -> Result<Self, Error> {
        for (other, key) in OTHER_NAMES {
            keys.rename(other, key)?;
        }
        let vocab_size = keys.size("vocab_size", Some(50257))?;
        let config = Self {
            vocab_size,
            n_positions: keys.size("n_positions", Some(1024))?,
            n_embd: keys.size("n_embd", Some(768))?,
            n_layer: keys.size("n_layer", Some(12))?,
            n_head: keys.size("n_head", Some(12))?,
            n_inner: keys.optional_size("n_inner")?,
            layer_norm_epsilon: keys.number("layer_norm_epsilon", Some(1e-5), 0.0..=1.0)?,
            activation_function: keys.word("activation_function", "gelu_new", ACTIVATIONS)?,
            embd_pdrop: keys.number("embd_pdrop", Some(0.1), 0.0..=1.0)?,
            attn_pdrop: keys.number("attn_pdrop", Some(0.1), 0.0..=1.0)?,
            resid_pdrop: keys.number("resid_pdrop", Some(0.1), 0.0..=1.0)?,
            initializer_range: keys.number("initializer_range", Some(0.02), 0.0..=1e3)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
            bos_token_id: keys.id("bos_token_id"),
            eos_token_id: keys.ids("eos_token_id", vocab_size)?,
            generation_eos: Vec::new(),
        };
        keys.pass(NEUTRAL)?;
        // heads for other tasks
        keys.pass_where(|key| key.starts_with("summary_"));
        known::pass(keys)?;
        Ok(config)
    }

    /// Every size by its key, with the largest that is built; `None` where the file may leave it out and does.
    pub(super) fn sizes(&self) -> Vec<(&'static str, Option<usize>, usize)> {
        vec![
            ("vocab_size", Some(self.vocab_size), MOST.vocabulary),
            ("n_positions", Some(self.n_positions), MOST.positions),
            ("n_embd", Some(self.n_embd), MOST.width),
            ("n_layer", Some(self.n_layer), MOST.layers),
            ("n_head", Some(self.n_head), MOST.heads),
            ("n_inner", self.n_inner, MOST.inner),
        ]
    }

    /// A key with its value and what would be right, where what depends on several keys is not.
    pub(super) fn conflict(&self) -> Option<(&'static str, String, String)> {
        if !self.n_embd.is_multiple_of(self.n_head) {
            let hint = format!("it must divide n_embd, which is {}", self.n_embd);
            return Some(("n_head", self.n_head.to_string(), hint));
        }
        let dropouts = [
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
            ("resid_pdrop", self.resid_pdrop),
        ];
        let (key, p) = dropouts.into_iter().find(|(_, p)| *p >= 1.0)?;
        Some((key, p.to_string(), "a probability below 1".into()))
    }
}
