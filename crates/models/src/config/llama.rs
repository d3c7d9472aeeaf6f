//! The keys of a LLaMA `config.json`.

use super::{MOST, known};
use crate::Error;
use crate::keys::{Keys, Neutral};
use crate::llama::LlamaConfig;
use crate::rope;

/// Names of one activation in `transformers`.
const ACTIVATIONS: &[&str] = &["silu", "swish"];

/// Keys that leave the function unchanged with one value.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("attention_bias", Neutral::False),
    ("attention_dropout", Neutral::Zero),
    ("attn_pdrop", Neutral::Zero),
    ("embd_pdrop", Neutral::Zero),
    ("hidden_dropout", Neutral::Zero),
    ("is_llama_config", Neutral::Any),
    // of the first LLaMA files; `max_position_embeddings` alone counts today
    ("max_sequence_length", Neutral::Any),
    // which layers have a sliding window, where there is one
    ("max_window_layers", Neutral::Any),
    ("mlp_bias", Neutral::False),
    ("partial_rotary_factor", Neutral::One),
    // in how many pieces the same products are computed
    ("pretraining_tp", Neutral::Any),
    ("qk_layernorm", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("resid_pdrop", Neutral::Zero),
    ("rope_interleaved", Neutral::False),
    ("use_qk_norm", Neutral::False),
];

impl LlamaConfig {
    /// The keys that matter.
    pub(super) const KEYS: &'static [&'static str] = &[
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "tie_word_embeddings",
        "hidden_act",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
    ];

    /// Takes all keys, with the defaults of `transformers` but for the sizes.
    pub(super) fn take(keys: &mut Keys) -> Result<Self, Error> {
        let vocab_size = keys.size("vocab_size", None)?;
        let max_position_embeddings = keys.size("max_position_embeddings", Some(2048))?;
        let (rope_theta, rope_scaling) = rope::take(keys, max_position_embeddings)?;
        let config = Self {
            vocab_size,
            hidden_size: keys.size("hidden_size", None)?,
            intermediate_size: keys.size("intermediate_size", None)?,
            num_hidden_layers: keys.size("num_hidden_layers", None)?,
            num_attention_heads: keys.size("num_attention_heads", None)?,
            num_key_value_heads: keys.optional_size("num_key_value_heads")?,
            head_dim: keys.optional_size("head_dim")?,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps", Some(1e-6), 0.0..=1.0)?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            hidden_act: keys.word("hidden_act", "silu", ACTIVATIONS)?,
            initializer_range: keys.number("initializer_range", Some(0.02), 0.0..=1e3)?,
            bos_token_id: keys.id("bos_token_id"),
            eos_token_id: keys.ids("eos_token_id", vocab_size)?,
            generation_eos: Vec::new(),
        };
        keys.pass(NEUTRAL)?;
        known::pass(keys)?;
        Ok(config)
    }

    /// Every size by its key, with the largest that is built; `None` where the file may leave it out and does.
    pub(super) fn sizes(&self) -> Vec<(&'static str, Option<usize>, usize)> {
        let positions = Some(self.max_position_embeddings);
        vec![
            ("vocab_size", Some(self.vocab_size), MOST.vocabulary),
            ("hidden_size", Some(self.hidden_size), MOST.width),
            (
                "intermediate_size",
                Some(self.intermediate_size),
                MOST.inner,
            ),
            (
                "num_hidden_layers",
                Some(self.num_hidden_layers),
                MOST.layers,
            ),
            (
                "num_attention_heads",
                Some(self.num_attention_heads),
                MOST.heads,
            ),
            ("num_key_value_heads", self.num_key_value_heads, MOST.heads),
            ("head_dim", self.head_dim, MOST.head),
            ("max_position_embeddings", positions, MOST.positions),
        ]
    }

    /// A key with its value and what would be right, where what depends on several keys is not.
    pub(super) fn conflict(&self) -> Option<(&'static str, String, String)> {
        let (heads, kv) = (self.num_attention_heads, self.kv_heads());
        if !heads.is_multiple_of(kv) {
            let hint = format!("it must divide num_attention_heads, which is {heads}");
            return Some(("num_key_value_heads", kv.to_string(), hint));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            let hint = format!(
                "it must divide hidden_size, which is {}, or head_dim must be given",
                self.hidden_size
            );
            return Some(("num_attention_heads", heads.to_string(), hint));
        }
        let dh = self.head_width();
        if dh == 0 || !dh.is_multiple_of(2) {
            let hint = "rotary embeddings need an even width; absent, it is hidden_size / num_attention_heads";
            return Some(("head_dim", dh.to_string(), hint.into()));
        }
        None
    }
}
