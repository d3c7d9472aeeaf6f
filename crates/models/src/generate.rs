//! Decoding with a KV cache: greedy or sampled, in batches, each row stopping at its own end.
//!
//! The random number that draws a token depends on (seed, example, position) alone, so an answer does not depend on the batch
//! it was drawn in, on the order of the prompts or on the number of threads. Only rounding remains: logits may differ in
//! their last bits between batch shapes, which can change a draw that falls this close to the border between two tokens.

use rayon::prelude::*;

use crate::decoder::{Engine, HostModel};
use crate::draw::draw;
use crate::on_device::{self, OnDevice};
use crate::params::{mix, to_vec, unit};
use crate::{Error, KvCache, LanguageModel};

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Largest number of tokens of an answer, its end included.
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

    /// Whether each step takes the likeliest token, whatever the random number.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    fn check(&self) -> Result<(), Error> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let reason = "it must be 0 or more";
            return Err(Error::setting("temperature", self.temperature, reason));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting("top_p", self.top_p, "it must lie in (0, 1]"));
        }
        if self.batch_size == 0 || self.max_new_tokens == 0 {
            let key = "batch_size/max_new_tokens";
            return Err(Error::setting(key, 0, "it must be 1 or more"));
        }
        Ok(())
    }
}

/// Answers `prompts` once, see [`Sampler::generate`].
///
/// # Errors
///
/// As there.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    examples: &[u64],
    seed: u64,
    ends: &[u32],
    decoding: &Decoding,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, Error> {
    Sampler::new(model).generate(prompts, examples, seed, ends, decoding, progress)
}

/// A model prepared for generation, or a mixture of models: `sum_i w_i p_i`, e.g. MiniLLM's teacher-mixed sampling. Weights
/// are packed and rounded once for all calls.
pub struct Sampler {
    decoders: Vec<Decoder>,
    /// Largest number of positions of a prompt and its answer.
    positions: usize,
    vocabulary: usize,
}

impl Sampler {
    /// A sampler of one model.
    pub fn new(model: &LanguageModel) -> Self {
        Self {
            decoders: vec![Decoder::new(model, 1.0)],
            positions: model.config().max_positions(),
            vocabulary: model.config().vocab_size(),
        }
    }

    /// A sampler of models as if their tensors did not lie in host memory.
    #[cfg(test)]
    pub(crate) fn by_step(models: &[(&LanguageModel, f64)]) -> Self {
        let mut sampler = Self::mixture(models).expect("one vocabulary");
        for (decoder, (model, _)) in sampler.decoders.iter_mut().zip(models) {
            decoder.engine = Box::new(ByStep::new(model));
        }
        sampler
    }

    /// A sampler of models with their weights in the mixture. Temperature, top-k and the like act on the mixture.
    ///
    /// # Errors
    ///
    /// Vocabularies that differ.
    ///
    /// # Panics
    ///
    /// Without a model.
    pub fn mixture(models: &[(&LanguageModel, f64)]) -> Result<Self, Error> {
        let vocabulary = models[0].0.config().vocab_size();
        for (model, _) in models {
            let other = model.config().vocab_size();
            if other != vocabulary {
                let reason = format!("another model of the mixture has {vocabulary}");
                return Err(Error::setting("vocab_size", other, reason));
            }
        }
        let positions = models.iter().map(|(m, _)| m.config().max_positions());
        Ok(Self {
            positions: positions.min().expect("a mixture has a model"),
            vocabulary,
            decoders: models
                .iter()
                .map(|(model, share)| Decoder::new(model, *share))
                .collect(),
        })
    }

    /// Answers `prompts`; each answer ends with one of `ends` unless it was cut at `max_new_tokens`.
    ///
    /// `examples` names the prompts for the random numbers and for errors. `progress` is called with the
    /// number of answers finished since the last call.
    ///
    /// # Errors
    ///
    /// A setting out of range, an empty prompt, one too long for the model or with a token outside the vocabulary, weights
    /// that give no finite logit.
    ///
    /// # Panics
    ///
    /// With fewer `examples` than `prompts`.
    pub fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        examples: &[u64],
        seed: u64,
        ends: &[u32],
        decoding: &Decoding,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u32>>, Error> {
        decoding.check()?;
        for (prompt, &example) in prompts.iter().zip(examples) {
            if prompt.is_empty() {
                return Err(Error::EmptyPrompt { example });
            }
            let length = prompt.len().saturating_add(decoding.max_new_tokens);
            if length > self.positions {
                return Err(Error::TooLong {
                    example,
                    prompt: prompt.len(),
                    new: decoding.max_new_tokens,
                    positions: self.positions,
                });
            }
            let vocabulary = self.vocabulary;
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
        let capacity = longest + decoding.max_new_tokens;
        let decoders = &mut self.decoders;
        decoders
            .iter_mut()
            .for_each(|d| d.engine.make_room(rows, capacity));
        // Prompts of similar length share a batch, so that there is little padding.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| (prompts[i].len(), i));
        let rows = order.into_iter().map(|index| Row {
            index,
            key: mix(mix(seed) ^ examples[index]),
            example: examples[index],
            prompt: &prompts[index],
            answer: Vec::new(),
        });
        let mut rows: Vec<Row> = rows.collect();
        let mut answers = vec![Vec::new(); prompts.len()];
        let mut done = |row: Row| {
            answers[row.index] = row.answer;
            progress(1);
        };
        let models = decoders
            .iter()
            .filter_map(|d| Some((d.engine.on_device()?, d.share)));
        let models: Vec<_> = models.collect();
        if models.len() == decoders.len() && on_device::serves(decoding) {
            on_device::decode(&models, rows, ends, decoding, &mut done)?;
        } else {
            while !rows.is_empty() {
                let batch = rows.drain(..decoding.batch_size.min(rows.len())).collect();
                decode_batch(decoders, batch, ends, decoding, &mut done)?;
            }
        }
        Ok(answers)
    }
}

/// A model of the mixture, and its state.
struct Decoder {
    engine: Box<dyn Engine>,
    /// Weight in the mixture.
    share: f64,
    /// Logits after the last column: `[B, V]`
    logits: Vec<f32>,
}

impl Decoder {
    fn new(model: &LanguageModel, share: f64) -> Self {
        let engine: Box<dyn Engine> = if abkd_host::serves(&model.device()) {
            Box::new(HostModel::new(model))
        } else {
            Box::new(ByStep::new(model))
        };
        Self {
            engine,
            share,
            logits: Vec::new(),
        }
    }
}

/// A model on another device, and its cache; used where tokens are drawn on the host.
struct ByStep {
    model: OnDevice,
    cache: KvCache,
}

impl ByStep {
    fn new(model: &LanguageModel) -> Self {
        Self {
            model: OnDevice::new(model),
            cache: KvCache::new(0, 0),
        }
    }
}

impl Engine for ByStep {
    fn make_room(&mut self, _: usize, _: usize) {}

    fn begin(&mut self, _: usize, capacity: usize) {
        self.cache = self.model.cache(capacity);
    }

    fn step(&mut self, ids: &[i32], pads: &[usize], logits: &mut Vec<f32>) {
        *logits = to_vec(self.model.append(ids, pads, &mut self.cache));
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        self.cache.keep_rows(rows);
    }

    /// Dropping rows copies the cache here.
    fn leaves(&self, open: usize, batch: usize) -> bool {
        open * 8 <= batch * 7
    }

    fn on_device(&self) -> Option<&OnDevice> {
        Some(&self.model)
    }
}

/// Padding in the columns before a prompt and after the end of an answer. Any token will do, since attention sees none of
/// them.
const PADDING: u32 = 0;

/// A prompt and its answer so far.
pub(crate) struct Row<'a> {
    index: usize,
    /// Of the random numbers.
    key: u64,
    pub example: u64,
    pub prompt: &'a [u32],
    pub answer: Vec<u32>,
}

impl Row<'_> {
    /// The random number of a step, in `[0, 1)`.
    pub(crate) fn random(&self, step: usize) -> f64 {
        unit(mix(self.key ^ mix(step as u64)))
    }
}

/// The prompts of a batch side by side, padded on the left.
pub(crate) struct Prompts {
    /// Columns.
    pub width: usize,
    /// Columns of padding of each row.
    pub pads: Vec<usize>,
    /// `[B, width]`
    pub ids: Vec<i32>,
}

impl Prompts {
    pub(crate) fn new(rows: &[&Row]) -> Self {
        let width = rows.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
        let pads: Vec<usize> = rows.iter().map(|r| width - r.prompt.len()).collect();
        let mut ids = Vec::with_capacity(rows.len() * width);
        for (row, &pad) in rows.iter().zip(&pads) {
            ids.extend(std::iter::repeat_n(PADDING as i32, pad));
            ids.extend(row.prompt.iter().map(|&t| t as i32));
        }
        Self { width, pads, ids }
    }
}

fn decode_batch(
    decoders: &mut [Decoder],
    rows: Vec<Row>,
    ends: &[u32],
    decoding: &Decoding,
    done: &mut dyn FnMut(Row),
) -> Result<(), Error> {
    let Prompts {
        width,
        mut pads,
        mut ids,
    } = Prompts::new(&rows.iter().collect::<Vec<_>>());
    let capacity = width + decoding.max_new_tokens;
    decoders
        .iter_mut()
        .for_each(|d| d.engine.begin(rows.len(), capacity));
    // `None` once a row has ended.
    let mut open: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
    for step in 0..decoding.max_new_tokens {
        let batch = open.len();
        decoders
            .iter_mut()
            .for_each(|d| d.engine.step(&ids, &pads, &mut d.logits));
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
            .zip(open.par_iter())
            .map(|(logits, row)| match row {
                Some(row) => next_token(logits, row, step, decoding),
                None => Ok(PADDING),
            })
            .collect();
        let mut tokens = Vec::with_capacity(batch);
        for (row, token) in open.iter_mut().zip(drawn) {
            let token = token?;
            tokens.push(token as i32);
            let ended = row.take_if(|row| {
                row.answer.push(token);
                ends.contains(&token) || row.answer.len() == decoding.max_new_tokens
            });
            if let Some(row) = ended {
                done(row);
            }
        }
        let kept: Vec<usize> = (0..batch).filter(|&i| open[i].is_some()).collect();
        if kept.is_empty() {
            break;
        }
        if decoders.iter().all(|d| d.engine.leaves(kept.len(), batch)) {
            decoders.iter_mut().for_each(|d| d.engine.keep_rows(&kept));
            pads = kept.iter().map(|&i| pads[i]).collect();
            open.retain(Option::is_some);
            tokens = kept.iter().map(|&i| tokens[i]).collect();
        }
        ids = tokens;
    }
    Ok(())
}

/// `log sum_i w_i softmax(z_i)`, row by row.
fn log_mixture(decoders: &[Decoder], batch: usize) -> Vec<f32> {
    let parts: Vec<(f64, &[f32])> = decoders
        .iter()
        .map(|d| (d.share, d.logits.as_slice()))
        .collect();
    let vocab = parts[0].1.len() / batch;
    let mut out = vec![0.0f32; vocab * batch];
    out.par_chunks_exact_mut(vocab)
        .enumerate()
        .for_each(|(row, out)| {
            for (share, logits) in &parts {
                let logits = &logits[row * vocab..(row + 1) * vocab];
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
                let scale = (share / total) as f32;
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
    let u = row.random(step);
    draw(logits, u, decoding).ok_or(Error::NotFinite {
        example: row.example,
        position: row.prompt.len() + step,
    })
}

/// Tokens that would complete an n-gram seen before (the rule of `transformers`).
pub(crate) fn banned_tokens(prompt: &[u32], answer: &[u32], n: usize) -> Vec<u32> {
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
