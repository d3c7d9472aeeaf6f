//! Decoding where tensors do not lie in host memory. All that a step needs is on the device and stays in place: tokens,
//! keys and values, the column, the random numbers of all steps. So a step uploads nothing and reads nothing back, and
//! where the backend has graphs it is captured once and replayed as one launch. The host reads answers every few steps.
//!
//! Draws are the host decoder's: the same random numbers, cumulative sums in another order.

use std::cell::RefCell;

use burn::tensor::{Bool, Device, Graph, IndexingUpdateOp, Int, Tensor, TensorData, capture};

use crate::generate::{Decoding, Prompts, Row};
use crate::kv_cache::KvCache;
use crate::rotary::Tables;
use crate::span::Span;
use crate::{Error, LanguageModel};

/// Steps between two reads of the answers.
const EVERY: usize = 8;

/// Steps beyond the last token of an answer: a row may end in any of the steps between two reads, and capturing a graph
/// runs a few steps.
const SLACK: usize = EVERY + 4;

/// Entries whose weights are summed together.
const BLOCK: usize = 256;

/// The largest f32 below 1 whose product with any total is below the total, too.
const BELOW_ONE: f32 = 1.0 - 2.0 * f32::EPSILON;

/// A model prepared for decoding.
pub(crate) struct OnDevice {
    model: LanguageModel,
    /// `[d, V]`
    head: Tensor<2>,
}

impl OnDevice {
    pub(crate) fn new(model: &LanguageModel) -> Self {
        let (model, head) = model.clone().for_decoding();
        Self { model, head }
    }

    /// An empty cache for up to `capacity` positions.
    pub(crate) fn cache(&self, capacity: usize) -> KvCache {
        KvCache::new(self.model.config().layers(), capacity).of(self.model.precision())
    }

    /// Appends columns `[B, T]` to the cache, and gives the logits after the last one: `[B, V]`.
    pub(crate) fn append(&self, ids: &[i32], pads: &[usize], cache: &mut KvCache) -> Tensor<2> {
        let [batch, columns] = [pads.len(), ids.len() / pads.len()];
        let ids = TensorData::new(ids.to_vec(), [batch, columns]);
        let input = Tensor::<2, Int>::from_data(ids, &self.model.device());
        let hidden = self.model.hidden(input, pads, Some(cache));
        let d = hidden.dims()[2];
        let last = hidden
            .slice([0..batch, columns - 1..columns, 0..d])
            .reshape([batch, d]);
        self.logits(last)
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.model.precision().matmul(hidden, self.head.clone())
    }
}

/// Whether these settings can be drawn on the device: top-k and top-p sort, which the host does.
pub(crate) fn serves(decoding: &Decoding) -> bool {
    decoding.top_k == 0 && decoding.top_p >= 1.0
}

/// Whether graphs are used where the backend has them; `ABKD_GRAPHS=off` launches every kernel of every step.
fn with_graphs() -> bool {
    std::env::var_os("ABKD_GRAPHS").is_none_or(|value| value != "off")
}

/// Answers a batch. `done` gets each row when it has ended.
///
/// # Errors
///
/// Weights that give no finite logit.
pub(crate) fn decode(
    models: &[(&OnDevice, f64)],
    rows: &mut Vec<Row>,
    ends: &[u32],
    decoding: &Decoding,
    done: &mut dyn FnMut(Row),
) -> Result<(), Error> {
    let mut state = State::new(models, rows, decoding);
    let mut open: Vec<Option<Row>> = rows.drain(..).map(Some).collect();
    let mut checked = false;
    loop {
        let state_now = RefCell::new(state);
        run(&state_now, &mut open, ends, decoding, done, &mut checked)?;
        state = state_now.into_inner();
        let kept: Vec<usize> = (0..open.len()).filter(|&i| open[i].is_some()).collect();
        if kept.is_empty() {
            return Ok(());
        }
        state.keep_rows(&kept);
        open.retain(Option::is_some);
    }
}

/// Runs steps until at most half of the rows are open.
fn run(
    state: &RefCell<State>,
    open: &mut [Option<Row>],
    ends: &[u32],
    decoding: &Decoding,
    done: &mut dyn FnMut(Row),
    checked: &mut bool,
) -> Result<(), Error> {
    let device = state.borrow().device.clone();
    let mut collect = |state: &RefCell<State>| -> Result<bool, Error> {
        let tokens = state.borrow_mut().new_tokens();
        for (row, tokens) in open.iter_mut().zip(tokens) {
            take(row, &tokens, ends, decoding, done)?;
        }
        let left = open.iter().flatten().count();
        Ok(2 * left <= open.len())
    };
    // The prompt's pass has drawn the first token.
    if collect(state)? {
        return Ok(());
    }
    let step = || state.borrow_mut().step();
    if !with_graphs() {
        loop {
            (0..EVERY).for_each(|_| step());
            if collect(state)? {
                return Ok(());
            }
        }
    }
    let mut graph = capture(&device, step);
    if graph.is_hardware() {
        // `capture` calls the step several times. The last call was recorded, not run.
        state.borrow_mut().taken -= 1;
    } else {
        let mut state = state.borrow_mut();
        state.taken = host(state.steps.clone())[0] as usize;
    }
    if collect(state)? {
        return Ok(());
    }
    if graph.is_hardware() && !std::mem::replace(checked, true) && !agrees(&mut graph, state) {
        return Err(Error::Graph);
    }
    loop {
        (0..EVERY).for_each(|_| replay(&mut graph, state));
        if collect(state)? {
            return Ok(());
        }
    }
}

/// Runs the captured step.
fn replay(graph: &mut Graph<(), impl FnMut()>, state: &RefCell<State>) {
    // SAFETY: the state holds every tensor that a step reads or writes, and outlives the graph; steps and reads are issued by
    // one thread, on the stream of the capture.
    unsafe { graph.replay() };
    if graph.is_hardware() {
        state.borrow_mut().taken += 1;
    }
}

/// Whether the captured steps give the tokens of plain ones: what was captured works only where each step writes into the
/// buffers that the next one reads.
fn agrees(graph: &mut Graph<(), impl FnMut()>, state: &RefCell<State>) -> bool {
    let taken = state.borrow().taken;
    (0..EVERY).for_each(|_| replay(graph, state));
    let captured = state.borrow().answers();
    state.borrow_mut().go_back(taken);
    (0..EVERY).for_each(|_| state.borrow_mut().step());
    let plain = state.borrow().answers();
    state.borrow_mut().go_back(taken);
    captured == plain
}

/// Adds tokens to a row until it ends.
fn take(
    open: &mut Option<Row>,
    tokens: &[i32],
    ends: &[u32],
    decoding: &Decoding,
    done: &mut dyn FnMut(Row),
) -> Result<(), Error> {
    for &token in tokens {
        let Some(row) = open else {
            return Ok(());
        };
        let token = u32::try_from(token).map_err(|_| Error::NotFinite {
            example: row.example,
            position: row.prompt.len() + row.answer.len(),
        })?;
        row.answer.push(token);
        if ends.contains(&token) || row.answer.len() == decoding.max_new_tokens {
            open.take().into_iter().for_each(&mut *done);
        }
    }
    Ok(())
}

/// The state of a batch. Every tensor that changes is written in place.
struct State<'a> {
    models: Vec<Part<'a>>,
    device: Device,
    /// The column of the next token: `[1]`
    column: Tensor<1, Int>,
    /// The number of drawn tokens of each row: `[1]`
    steps: Tensor<1, Int>,
    /// Numbers of columns of padding: `[B, 1]`
    pads: Tensor<2, Int>,
    /// Tokens by column, -1 for padding and for those to come: `[B, C]`
    seen: Tensor<2, Int>,
    /// The random numbers: `[B, steps]`
    draws: Tensor<2>,
    /// Drawn tokens; -1 where no logit was finite: `[B, steps]`
    answers: Tensor<2, Int>,
    /// The first of each row's blocks: `[B]`
    first_block: Tensor<1, Int>,
    /// Column numbers: `[1, C]`
    columns: Tensor<2, Int>,
    temperature: f64,
    ngram: usize,
    /// Columns of the prompts.
    width: usize,
    /// Steps that were run, and those that the host has read.
    taken: usize,
    read: usize,
}

/// A model of the mixture.
struct Part<'a> {
    on: &'a OnDevice,
    share: f64,
    cache: KvCache,
    /// Rotations by position, if the model has such.
    tables: Option<Tables>,
}

impl<'a> State<'a> {
    /// Runs the prompts, and draws the first tokens.
    fn new(models: &[(&'a OnDevice, f64)], rows: &[Row], decoding: &Decoding) -> Self {
        let device = models[0].0.model.device();
        let batch = rows.len();
        let Prompts { width, pads, ids } = Prompts::new(rows);
        let steps = decoding.max_new_tokens + SLACK;
        let capacity = width + steps;
        let mut seen = Vec::with_capacity(batch * capacity);
        let mut draws = Vec::with_capacity(batch * steps);
        for (row, &pad) in rows.iter().zip(&pads) {
            seen.extend(std::iter::repeat_n(-1, pad));
            seen.extend(row.prompt.iter().map(|&t| t as i32));
            seen.extend(std::iter::repeat_n(-1, steps));
            draws.extend((0..steps).map(|step| (row.random(step) as f32).min(BELOW_ONE)));
        }
        let mut logits = Vec::new();
        let mut parts = Vec::new();
        for &(on, share) in models {
            let mut cache = on.cache(capacity);
            logits.push(on.append(&ids, &pads, &mut cache));
            let positions = on.model.config().max_positions().min(capacity);
            let tables = on
                .model
                .angles()
                .map(|angles| Tables::new(positions, angles, &device));
            parts.push(Part {
                on,
                share,
                cache,
                tables,
            });
        }
        let blocks = logits[0].dims()[1].div_ceil(BLOCK);
        let mut state = Self {
            models: parts,
            column: numbers([width as i32], [1], &device),
            steps: numbers([0], [1], &device),
            pads: numbers(pads.iter().map(|&p| p as i32), [batch, 1], &device),
            seen: numbers(seen, [batch, capacity], &device),
            draws: Tensor::from_data(TensorData::new(draws, [batch, steps]), &device),
            answers: numbers(
                std::iter::repeat_n(-1, batch * steps),
                [batch, steps],
                &device,
            ),
            first_block: numbers((0..batch).map(|b| (b * blocks) as i32), [batch], &device),
            columns: numbers(0..capacity as i32, [1, capacity], &device),
            temperature: decoding.temperature,
            ngram: decoding.no_repeat_ngram_size,
            width,
            taken: 0,
            read: 0,
            device,
        };
        state.draw(logits);
        state
    }

    /// Feeds the last tokens, and draws the next ones.
    fn step(&mut self) {
        let last = self.column.clone().sub_scalar(1); // [1]
        let tokens = self.seen.clone().select(1, last.clone()).clamp_min(0); // [B, 1]
        let shape = self.seen.dims();
        let positions = last.clone().unsqueeze::<2>().expand([shape[0], 1]) - self.pads.clone(); // [B, 1]
        let columns = self.columns.clone().expand(shape);
        let hidden_keys = (columns.clone().lower(self.pads.clone().expand(shape)))
            .bool_or(columns.greater(last.clone().unsqueeze::<2>().expand(shape))); // [B, C]
        let logits = self.models.iter_mut().map(|part| {
            let model = &part.on.model;
            let limit = model.config().max_positions() as i32 - 1;
            let positions = positions.clone().clamp_max(limit);
            let span = Span::step(
                last.clone(),
                positions,
                hidden_keys.clone(),
                part.tables.as_ref(),
            );
            let hidden = model.step(tokens.clone().flatten(0, 1), &span, &mut part.cache);
            part.on.logits(hidden)
        });
        let logits = logits.collect();
        self.draw(logits);
    }

    /// Draws a token for each row from the logits `[B, V]` of each model, and advances.
    fn draw(&mut self, logits: Vec<Tensor<2>>) {
        let logits = self.mixed(logits);
        let logits = self.without_repeats(logits);
        let token = match self.temperature {
            0.0 => likeliest(logits),
            temperature => {
                let u = self.draws.clone().select(1, self.steps.clone());
                sample(logits / temperature, u, self.first_block.clone())
            }
        };
        let (column, steps) = (self.column.clone(), self.steps.clone());
        let write = |to: Tensor<2, Int>, at| {
            to.select_assign(1, at, token.clone(), IndexingUpdateOp::Assign)
        };
        self.seen.inplace(|seen| write(seen, column));
        self.answers.inplace(|answers| write(answers, steps));
        self.column.inplace(|column| column.add_scalar(1));
        self.steps.inplace(|steps| steps.add_scalar(1));
        self.taken += 1;
    }

    /// `log sum_i w_i softmax(z_i)`
    fn mixed(&self, mut logits: Vec<Tensor<2>>) -> Tensor<2> {
        if logits.len() == 1 {
            return logits.remove(0);
        }
        let weighted = logits
            .into_iter()
            .zip(&self.models)
            .map(|(z, part)| burn::tensor::activation::softmax(z, 1).mul_scalar(part.share));
        weighted
            .reduce(|a, b| a + b)
            .expect("a mixture has a model")
            .log()
    }

    /// Rules out tokens that would complete an n-gram seen before (the rule of `transformers`).
    fn without_repeats(&self, logits: Tensor<2>) -> Tensor<2> {
        let n = self.ngram;
        let [batch, capacity] = self.seen.dims();
        if n == 0 || capacity < n {
            return logits;
        }
        let starts = capacity + 1 - n;
        // A window counts if its last column holds a token.
        let end = self
            .column
            .clone()
            .sub_scalar(n as i32 - 1)
            .unsqueeze::<2>(); // [1, 1]
        let mut same = (self.columns.clone().slice([0..1, 0..starts]))
            .lower(end.expand([1, starts]))
            .expand([batch, starts]);
        for k in 0..n - 1 {
            // The last n - 1 tokens are those at column - (n - 1) and after.
            let at = self
                .column
                .clone()
                .sub_scalar((n - 1 - k) as i32)
                .clamp_min(0);
            let tail = self.seen.clone().select(1, at); // [B, 1]
            let window = self.seen.clone().slice([0..batch, k..k + starts]);
            same = same.bool_and(window.equal(tail.expand([batch, starts])));
        }
        let next = self.seen.clone().slice([0..batch, n - 1..capacity]);
        // Windows over padding complete nothing.
        let same = same.bool_and(next.clone().greater_equal_elem(0));
        let ruled_out = Tensor::<2>::zeros([batch, starts], &self.device).mask_fill(same, -1e30);
        logits.scatter(1, next.clamp_min(0), ruled_out, IndexingUpdateOp::Add)
    }

    /// Tokens that were drawn since the last call, row by row.
    fn new_tokens(&mut self) -> Vec<Vec<i32>> {
        let steps = self.taken.min(self.answers.dims()[1]);
        let from = std::mem::replace(&mut self.read, steps);
        let batch = self.answers.dims()[0];
        if from >= steps {
            return vec![Vec::new(); batch];
        }
        let new = self.answers.clone().slice([0..batch, from..steps]);
        let new = host(new);
        new.chunks_exact(steps - from)
            .map(<[i32]>::to_vec)
            .collect()
    }

    fn answers(&self) -> Vec<i32> {
        host(self.answers.clone())
    }

    /// Goes back to an earlier step: columns after it are written again before they are read.
    fn go_back(&mut self, taken: usize) {
        let write = |to: Tensor<1, Int>, value: usize| {
            let [at, value] = [0, value as i32].map(|x| numbers([x], [1], &self.device));
            to.select_assign(0, at, value, IndexingUpdateOp::Assign)
        };
        let column = self.width + taken;
        self.column.inplace(|to| write(to, column));
        self.steps.inplace(|to| write(to, taken));
        self.taken = taken;
    }

    /// Keeps only these rows, in that order.
    fn keep_rows(&mut self, rows: &[usize]) {
        let batch = rows.len();
        let ids = numbers(rows.iter().map(|&r| r as i32), [batch], &self.device);
        self.pads.inplace(|x| x.select(0, ids.clone()));
        self.seen.inplace(|x| x.select(0, ids.clone()));
        self.draws.inplace(|x| x.select(0, ids.clone()));
        self.answers.inplace(|x| x.select(0, ids.clone()));
        self.first_block.inplace(|x| x.narrow(0, 0, batch));
        self.models
            .iter_mut()
            .for_each(|part| part.cache.keep_rows(rows));
    }
}

fn numbers<const D: usize>(
    values: impl IntoIterator<Item = i32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let values: Vec<i32> = values.into_iter().collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn host<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i32> {
    tensor
        .into_data()
        .convert::<i32>()
        .try_to_vec()
        .expect("converted")
}

/// -1 where no logit is finite, or one is NaN or `+inf`: `total` is a sum of `exp(z - max z)`.
fn checked(token: Tensor<2, Int>, total: Tensor<2>) -> Tensor<2, Int> {
    let good: Tensor<2, Bool> = total
        .clone()
        .greater_equal_elem(0.5)
        .bool_and(total.lower_elem(1e30));
    token.mask_fill(good.bool_not(), -1)
}

/// The likeliest token of each row: `[B, V] -> [B, 1]`.
fn likeliest(logits: Tensor<2>) -> Tensor<2, Int> {
    let largest = logits.clone().max_dim(1);
    let total = (logits.clone() - largest).exp().sum_dim(1);
    checked(logits.argmax(1), total)
}

/// The token whose share of the cumulative probability contains `u` `[B, 1]`: `[B, V] -> [B, 1]`. The blocks' sums find the
/// block that holds it; only that block is searched token by token.
fn sample(logits: Tensor<2>, u: Tensor<2>, first_block: Tensor<1, Int>) -> Tensor<2, Int> {
    let [batch, vocabulary] = logits.dims();
    let blocks = vocabulary.div_ceil(BLOCK);
    let largest = logits.clone().max_dim(1);
    let weights = (logits - largest).exp();
    let rest = blocks * BLOCK - vocabulary;
    let weights = match rest {
        0 => weights,
        _ => {
            let none = Tensor::zeros([batch, rest], &weights.device());
            Tensor::cat(vec![weights, none], 1)
        }
    };
    let weights = weights.reshape([batch * blocks, BLOCK]);
    let sums = weights.clone().sum_dim(1).reshape([batch, blocks]);
    let up_to = sums.clone().cumsum(1);
    let total = up_to.clone().slice([0..batch, blocks - 1..blocks]);
    let mass = total.clone() * u; // below the total
    let block = passed(up_to.clone(), mass.clone());
    let before = (up_to - sums).gather(1, block.clone());
    let row = block.clone().flatten::<1>(0, 1) + first_block;
    let inside = weights.select(0, row).cumsum(1); // [B, BLOCK]
    // Sums in another order: rounding must not lead beyond the block.
    let most = inside
        .clone()
        .slice([0..batch, BLOCK - 1..BLOCK])
        .mul_scalar(BELOW_ONE);
    let mass = (mass - before).min_pair(most);
    let token = block.mul_scalar(BLOCK as i32) + passed(inside, mass);
    checked(token, total)
}

/// How many cumulative sums `[B, N]` are at most `mass` `[B, 1]`: `[B, 1]`.
fn passed(up_to: Tensor<2>, mass: Tensor<2>) -> Tensor<2, Int> {
    let mass = mass.expand(up_to.dims());
    up_to.lower_equal(mass).int().sum_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::generate::{Sampler, generate};
    use crate::params::{mix, unit};

    fn models() -> Vec<LanguageModel> {
        [
            r#"{"model_type": "gpt2", "vocab_size": 300, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}"#,
            r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}"#,
        ]
        .into_iter()
        .zip(1..)
        .map(|(config, seed)| {
            let config: ModelConfig = serde_json::from_str(config).unwrap();
            config.init(seed, &Device::flex())
        })
        .collect()
    }

    /// Prompts of 1 to 20 tokens.
    fn prompts() -> Vec<Vec<u32>> {
        (0..11u32)
            .map(|i| {
                (0..1 + (i * 7) % 20)
                    .map(|t| (i * 31 + t * t * 17) % 300)
                    .collect()
            })
            .collect()
    }

    fn answers(
        models: &[(&LanguageModel, f64)],
        on_device: bool,
        decoding: &Decoding,
    ) -> Vec<Vec<u32>> {
        let mut sampler = match on_device {
            true => Sampler::by_step(models),
            false => Sampler::mixture(models).unwrap(),
        };
        let prompts = prompts();
        let examples: Vec<u64> = (0..prompts.len() as u64).collect();
        let ends: Vec<u32> = (0..12).collect();
        let answers = sampler.generate(&prompts, &examples, 7, &ends, decoding, &mut |_| {});
        answers.unwrap()
    }

    #[test]
    fn answers_are_those_of_the_host() {
        let models = models();
        let alone = models.iter().map(|model| vec![(model, 1.0)]);
        let mixed = vec![(&models[0], 0.3), (&models[1], 0.7)];
        for (i, models) in alone.chain([mixed]).enumerate() {
            for decoding in [
                Decoding::greedy(),
                Decoding::sampling(),
                Decoding {
                    temperature: 0.7,
                    ..Decoding::sampling()
                },
                // Repeats at once when it may.
                Decoding {
                    temperature: 0.2,
                    no_repeat_ngram_size: 2,
                    ..Decoding::sampling()
                },
                Decoding {
                    no_repeat_ngram_size: 3,
                    ..Decoding::greedy()
                },
            ] {
                let decoding = Decoding {
                    max_new_tokens: 40,
                    ..decoding
                };
                let host = answers(&models, false, &decoding);
                assert!(host.iter().any(|a| a.len() < 40) && host.iter().any(|a| a.len() > 2));
                for batch_size in [1, 3, 8, 32] {
                    let decoding = Decoding {
                        batch_size,
                        ..decoding.clone()
                    };
                    assert_eq!(
                        answers(&models, true, &decoding),
                        host,
                        "models {i}, {decoding:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn tokens_beyond_a_block_are_found() {
        let device = Device::flex();
        let (batch, vocabulary) = (4, 1000);
        let logits: Vec<f32> = (0..batch * vocabulary)
            .map(|i| (unit(mix(i as u64)) * 20.0 - 10.0) as f32)
            .collect();
        let first = numbers((0..batch as i32).map(|b| b * 4), [batch], &device);
        for k in 0..200 {
            let u = unit(mix(1_000_000 + k)).min(f64::from(BELOW_ONE));
            let us = Tensor::from_data(TensorData::new(vec![u as f32; batch], [batch, 1]), &device);
            let rows = Tensor::from_data(
                TensorData::new(logits.clone(), [batch, vocabulary]),
                &device,
            );
            let drawn = host(sample(rows, us, first.clone()));
            for (row, &token) in logits.chunks(vocabulary).zip(&drawn) {
                let weights: Vec<f64> = row.iter().map(|&z| f64::from(z).exp()).collect();
                let total: f64 = weights.iter().sum();
                let below: f64 = weights[..token as usize].iter().sum::<f64>() / total;
                let share = weights[token as usize] / total;
                assert!(
                    below <= u + 1e-5 && u <= below + share + 1e-5,
                    "{u} {below} {share}"
                );
            }
        }
    }

    #[test]
    fn a_row_without_a_finite_logit_is_named() {
        let device = Device::flex();
        for bad in [f32::NAN, f32::INFINITY] {
            let values = vec![0.0, bad, 1.0, 0.0, 0.5, 1.0];
            let logits = || Tensor::from_data(TensorData::new(values.clone(), [2, 3]), &device);
            assert_eq!(host(likeliest(logits())), [-1, 2]);
            let u = Tensor::full([2, 1], 0.99, &device);
            assert_eq!(
                host(sample(logits(), u, numbers([0, 1], [2], &device))),
                [-1, 2]
            );
        }
        let none = || Tensor::full([1, 3], f32::NEG_INFINITY, &device);
        assert_eq!(host(likeliest(none())), [-1]);
        let mut model = models().remove(0);
        model = crate::params::replace(model, |_, shape| {
            Ok::<_, std::convert::Infallible>(Some(vec![f32::NAN; shape.iter().product()]))
        })
        .unwrap();
        let mut sampler = Sampler::by_step(&[(&model, 1.0)]);
        let error = sampler.generate(
            &[vec![1, 2]],
            &[5],
            1,
            &[],
            &Decoding::sampling(),
            &mut |_| {},
        );
        let error = error.unwrap_err().to_string();
        let host = generate(
            &model,
            &[vec![1, 2]],
            &[5],
            1,
            &[],
            &Decoding::sampling(),
            &mut |_| {},
        );
        assert_eq!(error, host.unwrap_err().to_string());
    }
}
