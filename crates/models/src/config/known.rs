//! Keys of `config.json` that both architectures share and that do not change what the model computes: with any value, or
//! with one. Only keys known to be harmless are listed, so that a future key is refused, not overlooked.

use crate::Error;
use crate::keys::{Keys, Neutral};

/// Keys about the file, its heads for other tasks, and how `transformers` runs it.
const ANY: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attn_implementation",
    // the feed-forward network in chunks, with the same result
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cls_token_id",
    "decoder_start_token_id",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    // distinguishes the decoder of an encoder-decoder model
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    // of the trainer of `transformers`
    "loss_type",
    "mask_token_id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_last_hidden_states",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    "xla_device",
];

/// Sampling settings, which older versions of `transformers` kept here. An experiment has its own.
const SAMPLING: &[&str] = &[
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "penalty_alpha",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Harmless with one value.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("add_cross_attention", Neutral::False),
    ("attn_logit_softcapping", Neutral::Unset),
    // the folder's own code
    ("auto_map", Neutral::Empty),
    ("compression_config", Neutral::Unset),
    ("cross_attention_hidden_size", Neutral::Unset),
    ("final_logit_softcapping", Neutral::Unset),
    ("is_causal", Neutral::True),
    ("is_encoder_decoder", Neutral::False),
    ("layer_types", Neutral::All("full_attention")),
    ("neftune_noise_alpha", Neutral::Zero),
    ("per_layer_config", Neutral::Empty),
    ("pruned_heads", Neutral::Empty),
    ("quantization_config", Neutral::Unset),
    ("sliding_window", Neutral::Unset),
    ("tie_encoder_decoder", Neutral::False),
    (
        "transformers_weights",
        Neutral::Words(&["model.safetensors"]),
    ),
    ("use_sliding_window", Neutral::False),
];

/// Takes the keys that both architectures share.
///
/// # Errors
///
/// A key whose value would change what the model computes.
pub(crate) fn pass(keys: &mut Keys) -> Result<(), Error> {
    keys.pass_where(|key| {
        ANY.contains(&key) || SAMPLING.contains(&key) || key.starts_with("unsloth_")
    });
    keys.pass(NEUTRAL)
}
