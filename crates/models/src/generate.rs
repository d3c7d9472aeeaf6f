//! Decoding with a KV cache: greedy or sampled, in batches, each row stopping at its own end.
//!
//! The random number that draws a token depends on (seed, example, position) alone, so an answer does
//! not depend on the batch it was drawn in, on the order of the prompts or on the number of threads.
//! What remains is rounding: logits that differ in their last bits between batch shapes could turn a
//! draw that falls between two tokens within that distance.

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::decoder::HostModel;
use crate::draw::draw;
use crate::params::{mix, to_vec, unit};
use crate::{Error, KvCache, LanguageModel};

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Most tokens of an answer, its end included.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Draw among this many likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Draw among the likeliest tokens that together reach this mass; 1 is off.
    pub top_p: f64,
    /// No token n-gram of this size occurs twice in prompt and answer; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Rows decoded together.
    pub batch_size: usize,
}

impl Decoding {
    /// The likeliest token at each step.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::sampling()
        }
    }

    /// Sampling at temperature 1 from the whole vocabulary.
    pub fn sampling() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            no_repeat_ngram_size: 0,
            batch_size: 32,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |key: &str, value: String, reason: &str| {
            Err(Error::Setting {
                key: key.into(),
                value,
                reason: reason.into(),
            })
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse(
                "temperature",
                self.temperature.to_string(),
                "it must be 0 or more",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p.to_string(), "it must lie in (0, 1]");
        }
        if self.batch_size == 0 || self.max_new_tokens == 0 {
            return refuse(
                "batch_size/max_new_tokens",
                "0".into(),
                "it must be 1 or more",
            );
        }
        Ok(())
    }
}

/// Answers `prompts`; each answer ends with one of `ends` unless it was cut at `max_new_tokens`.
///
/// `examples` names the prompts for the random numbers and for errors. `progress` is called with the
/// number of answers finished since the last call.
///
/// # Errors
///
/// A setting out of range, an empty prompt, one too long for the model or with a token that the model has not, weights
/// that give no finite logit.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    examples: &[u64],
    seed: u64,
    ends: &[u32],
    decoding: &Decoding,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, Error> {
    generate_from_mixture(
        &[(model, 1.0)],
        prompts,
        examples,
        seed,
        ends,
        decoding,
        progress,
    )
}

/// As [`generate`], each token from a mixture of models: `sum_i w_i p_i`, e.g. MiniLLM's
/// teacher-mixed sampling. Temperature, top-k and the like act on the mixture.
///
/// # Errors
///
/// As [`generate`], and vocabularies that differ.
///
/// # Panics
///
/// Without a model.
pub fn generate_from_mixture(
    models: &[(&LanguageModel, f64)],
    prompts: &[Vec<u32>],
    examples: &[u64],
    seed: u64,
    ends: &[u32],
    decoding: &Decoding,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, Error> {
    decoding.check()?;
    let positions = models
        .iter()
        .map(|(m, _)| m.config().max_positions())
        .min()
        .expect("a mixture has a model");
    let vocabulary = models[0].0.config().vocab_size();
    for (model, _) in models {
        let other = model.config().vocab_size();
        if other != vocabulary {
            return Err(Error::Setting {
                key: "vocab_size".into(),
                value: other.to_string(),
                reason: format!("another model of the mixture has {vocabulary}"),
            });
        }
    }
    for (prompt, &example) in prompts.iter().zip(examples) {
        let length = prompt.len().saturating_add(decoding.max_new_tokens);
        if prompt.is_empty() || length > positions {
            return Err(Error::TooLong {
                example,
                prompt: prompt.len(),
                new: decoding.max_new_tokens,
                positions,
            });
        }
        if let Some(&token) = prompt.iter().find(|&&t| t as usize >= vocabulary) {
            return Err(Error::Vocabulary {
                example,
                token,
                vocabulary,
            });
        }
    }
    let rows = decoding.batch_size.min(prompts.len());
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = (rows, longest + decoding.max_new_tokens);
    let mut decoders: Vec<Decoder> = models
        .iter()
        .map(|(model, share)| Decoder::new(model, *share, room))
        .collect();
    // Prompts of like length share a batch, so that there is little padding.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| (prompts[i].len(), i));
    let mut answers = vec![Vec::new(); prompts.len()];
    for batch in order.chunks(decoding.batch_size) {
        let mut rows: Vec<Row> = batch
            .iter()
            .map(|&index| Row {
                index,
                key: mix(mix(seed) ^ examples[index]),
                example: examples[index],
                prompt: &prompts[index],
                answer: Vec::new(),
            })
            .collect();
        decode_batch(&mut decoders, &mut rows, ends, decoding, &mut |row| {
            answers[row.index] = row.answer;
            progress(1);
        })?;
    }
    Ok(answers)
}

/// A model made ready to decode: what its precision rounds is rounded once.
struct Decoder {
    engine: Engine,
    /// Weight in the mixture.
    share: f64,
    /// After the last column: `[B, V]`
    logits: Vec<f32>,
}

#[allow(clippy::large_enum_variant)] // one a model
enum Engine {
    /// Where tensors lie in host memory.
    Host(HostModel),
    /// Elsewhere; the head is `[d, V]`.
    Device(LanguageModel, Tensor<2>, KvCache),
}

impl Decoder {
    /// With room for so many rows and positions.
    fn new(model: &LanguageModel, share: f64, (batch, capacity): (usize, usize)) -> Self {
        let engine = if abkd_host::serves(&model.device()) {
            Engine::Host(HostModel::new(model, batch, capacity))
        } else {
            let (model, head) = model.clone().for_decoding();
            Engine::Device(model, head, KvCache::new(0, 0))
        };
        Self {
            engine,
            share,
            logits: Vec::new(),
        }
    }

    /// Forgets what was seen; from here on it is `batch` rows of at most `capacity` positions.
    fn begin(&mut self, batch: usize, capacity: usize) {
        match &mut self.engine {
            Engine::Host(model) => model.begin(batch),
            Engine::Device(model, _, cache) => {
                *cache = KvCache::new(model.config().layers(), capacity);
            }
        }
    }

    /// Whether rows are worth being left behind when so many of `batch` are still open: elsewhere than in host memory
    /// that copies the cache.
    fn leaves(&self, open: usize, batch: usize) -> bool {
        match &self.engine {
            Engine::Host(_) => open < batch,
            Engine::Device(..) => open * 8 <= batch * 7,
        }
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        match &mut self.engine {
            Engine::Host(model) => model.keep_rows(rows),
            Engine::Device(_, _, cache) => cache.keep_rows(rows),
        }
    }

    /// Goes on by the columns of `ids` `[B, T]`.
    fn step(&mut self, ids: &[i32], pads: &[usize]) {
        match &mut self.engine {
            // On a thread of the pool, so that only the others have to be woken for each product.
            Engine::Host(model) => {
                rayon::scope(|_| model.last_logits(ids, pads, &mut self.logits));
            }
            Engine::Device(model, head, cache) => {
                let [batch, columns] = [pads.len(), ids.len() / pads.len()];
                let ids = TensorData::new(ids.to_vec(), [batch, columns]);
                let input = Tensor::<2, Int>::from_data(ids, &model.device());
                let hidden = model.hidden(input, pads, Some(cache));
                let d = hidden.dims()[2];
                let last = hidden
                    .slice([0..batch, columns - 1..columns, 0..d])
                    .reshape([batch, d]);
                self.logits = to_vec(model.precision().matmul(last, head.clone()));
            }
        }
    }
}

/// In the columns before a prompt, and after the end of an answer: any token of the vocabulary does, since none is seen.
const PADDING: u32 = 0;

struct Row<'a> {
    index: usize,
    key: u64,
    example: u64,
    prompt: &'a [u32],
    answer: Vec<u32>,
}

fn decode_batch(
    decoders: &mut [Decoder],
    rows: &mut Vec<Row>,
    ends: &[u32],
    decoding: &Decoding,
    done: &mut dyn FnMut(Row),
) -> Result<(), Error> {
    let width = rows.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
    let capacity = width + decoding.max_new_tokens;
    decoders
        .iter_mut()
        .for_each(|d| d.begin(rows.len(), capacity));
    let mut pads: Vec<usize> = rows.iter().map(|r| width - r.prompt.len()).collect();
    let mut ids: Vec<i32> = Vec::with_capacity(rows.len() * width);
    for row in rows.iter() {
        ids.extend(std::iter::repeat_n(
            PADDING as i32,
            width - row.prompt.len(),
        ));
        ids.extend(row.prompt.iter().map(|&t| t as i32));
    }
    // For each row of the decoders its place in `open`, while it has not ended.
    let mut alive: Vec<Option<usize>> = (0..rows.len()).map(Some).collect();
    let mut open: Vec<Option<Row>> = rows.drain(..).map(Some).collect();
    for step in 0..decoding.max_new_tokens {
        let batch = alive.len();
        decoders.iter_mut().for_each(|d| d.step(&ids, &pads));
        let mixed;
        let logits = if let [one] = decoders {
            &one.logits
        } else {
            mixed = log_mixture(decoders, batch);
            &mixed
        };
        let vocab = logits.len() / batch;
        let drawn: Vec<Result<u32, Error>> = logits
            .par_chunks_exact(vocab)
            .zip(alive.par_iter())
            .map(
                |(row_logits, place)| match place.and_then(|p| open[p].as_ref()) {
                    Some(row) => next_token(row_logits, row, step, decoding),
                    None => Ok(PADDING),
                },
            )
            .collect();
        let mut tokens = Vec::with_capacity(batch);
        for (place, token) in alive.iter_mut().zip(drawn) {
            let token = token?;
            tokens.push(token as i32);
            let Some(p) = *place else { continue };
            let ended = open[p].as_mut().is_none_or(|row| {
                row.answer.push(token);
                ends.contains(&token) || row.answer.len() == decoding.max_new_tokens
            });
            if ended {
                *place = None;
                if let Some(row) = open[p].take() {
                    done(row);
                }
            }
        }
        let kept: Vec<usize> = (0..batch).filter(|&i| alive[i].is_some()).collect();
        if kept.is_empty() {
            break;
        }
        if decoders.iter().all(|d| d.leaves(kept.len(), batch)) {
            decoders.iter_mut().for_each(|d| d.keep_rows(&kept));
            pads = kept.iter().map(|&i| pads[i]).collect();
            alive = kept.iter().map(|&i| alive[i]).collect();
            tokens = kept.iter().map(|&i| tokens[i]).collect();
        }
        ids = tokens;
    }
    Ok(())
}

/// `log sum_i w_i softmax(z_i)`, row by row.
fn log_mixture(decoders: &[Decoder], batch: usize) -> Vec<f32> {
    let vocab = decoders[0].logits.len() / batch;
    let mut out = vec![0.0f32; vocab * batch];
    out.par_chunks_exact_mut(vocab)
        .enumerate()
        .for_each(|(row, out)| {
            for decoder in decoders {
                let logits = &decoder.logits[row * vocab..(row + 1) * vocab];
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
                let scale = (decoder.share / total) as f32;
                for (o, &x) in out.iter_mut().zip(logits) {
                    *o += scale * (x - max).exp();
                }
            }
            out.iter_mut().for_each(|o| *o = o.ln());
        });
    out
}

fn next_token(logits: &[f32], row: &Row, step: usize, decoding: &Decoding) -> Result<u32, Error> {
    let banned = banned_tokens(row.prompt, &row.answer, decoding.no_repeat_ngram_size);
    let mut masked;
    let logits = if banned.is_empty() {
        logits
    } else {
        masked = logits.to_vec();
        for token in banned {
            masked[token as usize] = f32::NEG_INFINITY;
        }
        &masked
    };
    let u = unit(mix(row.key ^ mix(step as u64)));
    draw(logits, u, decoding).ok_or(Error::NotFinite {
        example: row.example,
        position: row.prompt.len() + step,
    })
}

/// Tokens that would complete an n-gram seen before (the rule of `transformers`).
fn banned_tokens(prompt: &[u32], answer: &[u32], n: usize) -> Vec<u32> {
    let length = prompt.len() + answer.len();
    if n == 0 || length + 1 < n {
        return Vec::new();
    }
    let at = |i: usize| {
        if i < prompt.len() {
            prompt[i]
        } else {
            answer[i - prompt.len()]
        }
    };
    let tail = length + 1 - n; // start of the last n - 1 tokens
    (0..length + 1 - n)
        .filter(|&start| (0..n - 1).all(|k| at(start + k) == at(tail + k)))
        .map(|start| at(start + n - 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ngram_does_not_occur_twice() {
        assert_eq!(banned_tokens(&[1, 2, 3], &[1, 2], 3), [3]);
        assert_eq!(banned_tokens(&[1, 2, 3, 1, 2, 4], &[1, 2], 3), [3, 4]);
        assert!(banned_tokens(&[1, 2], &[], 6).is_empty());
        assert!(banned_tokens(&[1, 2, 3], &[], 0).is_empty());
        assert_eq!(banned_tokens(&[5, 6], &[], 1), [5, 6]);
    }
}
