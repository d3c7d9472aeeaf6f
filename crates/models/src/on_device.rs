//! Decoding where tensors do not lie in host memory. All that a step needs is on the device and stays in place: tokens,
//! keys and values, the column, the random numbers of all steps. So a step uploads nothing and reads nothing back, and
//! where the backend has graphs it is captured once and replayed as one launch. The host reads answers every few steps, and
//! puts new prompts in the place of finished answers.
//!
//! All rows of a batch write at one column, and columns are a ring: a new prompt is laid so that it ends there, whatever its
//! length, and a row sees as many columns back as it has tokens.
//!
//! Draws are the host decoder's: the same random numbers, cumulative sums in another order.

use std::cell::RefCell;
use std::collections::VecDeque;

use burn::tensor::{Bool, Device, Graph, IndexingUpdateOp, Int, Tensor, TensorData, capture};

use crate::generate::{Decoding, Prompts, Row};
use crate::kv_cache::{KvCache, ring};
use crate::rotary::Rotary;
use crate::span::Span;
use crate::{Error, LanguageModel};

/// Steps between two reads of the answers.
const EVERY: usize = 8;

/// Steps beyond the last token of an answer: a row may end in any of the steps between two reads, and capturing a graph
/// runs a few steps.
const SLACK: usize = EVERY + 4;

/// New prompts are run when `1 / REFILL` of the rows are free, or all that wait have a place.
const REFILL: usize = 8;

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

/// Whether these settings can be drawn on the device: top-k (but 1) and top-p sort, which the host does.
pub(crate) fn serves(decoding: &Decoding) -> bool {
    decoding.is_greedy() || (decoding.top_k == 0 && decoding.top_p >= 1.0)
}

/// Whether graphs are used where the backend has them; `ABKD_GRAPHS=off` launches every kernel of every step.
fn with_graphs() -> bool {
    std::env::var_os("ABKD_GRAPHS").is_none_or(|value| value != "off")
}

/// Answers the rows, `batch_size` of them at a time. `done` gets each row when it has ended.
///
/// # Errors
///
/// Weights that give no finite logit.
pub(crate) fn decode(
    models: &[(&OnDevice, f64)],
    rows: Vec<Row>,
    ends: &[u32],
    decoding: &Decoding,
    done: &mut dyn FnMut(Row),
) -> Result<(), Error> {
    let longest = rows.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
    let capacity = longest + decoding.max_new_tokens + SLACK;
    let mut queue = VecDeque::from(rows);
    let first = queue.drain(..decoding.batch_size.min(queue.len()));
    let mut open: Vec<Option<Row>> = first.map(Some).collect();
    let rows: Vec<&Row> = open.iter().flatten().collect();
    if rows.is_empty() {
        return Ok(());
    }
    let mut state = State::new(models, &rows, decoding, capacity, 0).with_rotary();
    let mut compared = 0;
    loop {
        let state_now = RefCell::new(state);
        let mut answers = Answers {
            open: &mut open,
            queue: &mut queue,
            ends,
            decoding,
            done,
        };
        run(&state_now, &mut answers, &mut compared)?;
        state = state_now.into_inner();
        let kept: Vec<usize> = (0..open.len()).filter(|&i| open[i].is_some()).collect();
        if kept.is_empty() {
            return Ok(());
        }
        state.keep_rows(&kept);
        open.retain(Option::is_some);
    }
}

/// The rows of a batch, and those that wait for a place in it.
struct Answers<'a, 'b> {
    /// `None` where the answer has ended.
    open: &'a mut [Option<Row<'b>>],
    queue: &'a mut VecDeque<Row<'b>>,
    ends: &'a [u32],
    decoding: &'a Decoding,
    done: &'a mut dyn FnMut(Row),
}

impl Answers<'_, '_> {
    /// Reads the new tokens, and fills free places. Whether at most half of the rows are open and no others wait.
    fn collect(&mut self, state: &mut State) -> Result<bool, Error> {
        for (row, tokens) in self.open.iter_mut().zip(state.new_tokens()) {
            take(row, &tokens, self.ends, self.decoding, self.done)?;
        }
        let rows = self.open.len();
        let mut free: Vec<usize> = (0..rows).filter(|&i| self.open[i].is_none()).collect();
        free.truncate(self.queue.len());
        // A few at a time: their prompts are run together.
        let enough = free.len() * REFILL >= rows || free.len() == self.queue.len();
        if enough && !free.is_empty() {
            let new = self.queue.drain(..free.len());
            for (&place, row) in free.iter().zip(new) {
                self.open[place] = Some(row);
            }
            let new: Vec<&Row> = free.iter().filter_map(|&i| self.open[i].as_ref()).collect();
            state.refill(&free, &new, self.decoding);
        }
        let left = self.open.iter().flatten().count();
        Ok(self.queue.is_empty() && 2 * left <= rows)
    }
}

/// Runs steps until at most half of the rows are open.
fn run(state: &RefCell<State>, answers: &mut Answers, compared: &mut usize) -> Result<(), Error> {
    let device = state.borrow().device.clone();
    // The prompt's pass has drawn the first token.
    if answers.collect(&mut state.borrow_mut())? {
        return Ok(());
    }
    let step = || state.borrow_mut().step();
    if !with_graphs() {
        loop {
            (0..EVERY).for_each(|_| step());
            if answers.collect(&mut state.borrow_mut())? {
                return Ok(());
            }
        }
    }
    let mut graph = capture(&device, step);
    state.borrow_mut().captured(graph.is_hardware());
    loop {
        if answers.collect(&mut state.borrow_mut())? {
            return Ok(());
        }
        // Once before the graph is used, and once after new rows were written into its buffers.
        let due = 1 + usize::from(state.borrow().refilled);
        if graph.is_hardware() && *compared < due {
            *compared = due;
            if !agrees(&mut graph, state) {
                return Err(Error::Graph);
            }
        }
        (0..EVERY).for_each(|_| replay(&mut graph, state));
    }
}

/// Runs the captured step.
fn replay(graph: &mut Graph<(), impl FnMut()>, state: &RefCell<State>) {
    // SAFETY: the state holds every tensor that a step reads or writes, and outlives the graph; steps and reads are issued by
    // one thread, on the stream of the capture.
    unsafe { graph.replay() };
    if graph.is_hardware() {
        state.borrow_mut().advanced();
    }
}

/// Whether the captured steps give the tokens of plain ones: what was captured works only where each step writes into the
/// buffers that the next one reads.
fn agrees(graph: &mut Graph<(), impl FnMut()>, state: &RefCell<State>) -> bool {
    (0..EVERY).for_each(|_| replay(graph, state));
    let captured = host(state.borrow().last_columns(EVERY));
    state.borrow_mut().go_back(EVERY);
    (0..EVERY).for_each(|_| state.borrow_mut().step());
    let plain = host(state.borrow().last_columns(EVERY));
    state.borrow_mut().go_back(EVERY);
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
    /// The number of drawn tokens of each row: `[B, 1]`
    steps: Tensor<2, Int>,
    /// The position of each row's last token: `[B, 1]`
    positions: Tensor<2, Int>,
    /// Tokens by column: -1 for padding, for those to come and where no logit was finite: `[B, C]`
    seen: Tensor<2, Int>,
    /// The random numbers: `[B, steps]`
    draws: Tensor<2>,
    /// The first of each row's blocks: `[B]`
    first_block: Tensor<1, Int>,
    /// Column numbers: `[1, C]`
    columns: Tensor<2, Int>,
    /// 0 takes the likeliest token.
    temperature: f64,
    ngram: usize,
    /// What `column` holds.
    next: usize,
    /// Steps that the host has not read.
    unread: usize,
    /// Rows of whose tokens the host has read none.
    fresh: Vec<bool>,
    /// Whether rows were replaced since the graph was captured.
    refilled: bool,
}

/// A model of the mixture.
struct Part<'a> {
    on: &'a OnDevice,
    share: f64,
    cache: KvCache,
    /// Of all positions, if the model has rotations.
    rotary: Option<Rotary>,
}

impl<'a> State<'a> {
    /// Runs the prompts, and draws the first tokens; `next` is the column of the second ones.
    fn new(
        models: &[(&'a OnDevice, f64)],
        rows: &[&Row],
        decoding: &Decoding,
        capacity: usize,
        next: usize,
    ) -> Self {
        let device = models[0].0.model.device();
        let batch = rows.len();
        let Prompts { width, pads, ids } = Prompts::new(rows);
        let steps = decoding.max_new_tokens + SLACK;
        let start = (next + capacity - 1 - width) % capacity;
        let mut seen = vec![-1; batch * capacity];
        let mut draws = Vec::with_capacity(batch * steps);
        for ((row, pad), seen) in rows.iter().zip(&pads).zip(seen.chunks_exact_mut(capacity)) {
            for (i, &token) in row.prompt.iter().enumerate() {
                seen[(start + pad + i) % capacity] = token as i32;
            }
            draws.extend((0..steps).map(|step| (row.random(step) as f32).min(BELOW_ONE)));
        }
        let mut logits = Vec::new();
        let mut parts = Vec::new();
        for &(on, share) in models {
            let mut cache = on.cache(capacity).starting_at(start);
            logits.push(on.append(&ids, &pads, &mut cache));
            parts.push(Part {
                on,
                share,
                cache,
                rotary: None,
            });
        }
        let blocks = logits[0].dims()[1].div_ceil(BLOCK);
        let column = (start + width) % capacity;
        let last = rows.iter().map(|row| row.prompt.len() as i32 - 1);
        let mut state = Self {
            models: parts,
            column: numbers([column as i32], [1], &device),
            steps: numbers(vec![0; batch], [batch, 1], &device),
            positions: numbers(last, [batch, 1], &device),
            seen: numbers(seen, [batch, capacity], &device),
            draws: Tensor::from_data(TensorData::new(draws, [batch, steps]), &device),
            first_block: numbers((0..batch).map(|b| (b * blocks) as i32), [batch], &device),
            columns: numbers(0..capacity as i32, [1, capacity], &device),
            temperature: if decoding.is_greedy() {
                0.0
            } else {
                decoding.temperature
            },
            ngram: decoding.no_repeat_ngram_size,
            next: column,
            unread: 0,
            fresh: vec![true; batch],
            refilled: false,
            device,
        };
        state.draw(logits);
        // The first token is read with the row's first steps.
        state.unread = 0;
        state
    }

    /// Uploads what steps need beyond prompts.
    fn with_rotary(mut self) -> Self {
        let (capacity, device) = (self.capacity(), self.device.clone());
        for part in &mut self.models {
            let model = &part.on.model;
            let count = model.config().max_positions().min(capacity);
            let positions: Vec<usize> = (0..count).collect();
            let angles = model.inner().angles();
            part.rotary = angles.map(|angles| Rotary::new(&positions, 1, angles, &device));
        }
        self
    }

    /// Columns of the ring.
    fn capacity(&self) -> usize {
        self.seen.dims()[1]
    }

    /// Puts new rows in the place of others.
    fn refill(&mut self, places: &[usize], rows: &[&Row], decoding: &Decoding) {
        let models: Vec<_> = self
            .models
            .iter()
            .map(|part| (part.on, part.share))
            .collect();
        let new = State::new(&models, rows, decoding, self.capacity(), self.next);
        let ids = places.iter().map(|&place| place as i32);
        let ids = numbers(ids, [places.len()], &self.device);
        let assign = IndexingUpdateOp::Assign;
        let put = |to: Tensor<2, Int>, new| to.select_assign(0, ids.clone(), new, assign);
        self.steps.inplace(|to| put(to, new.steps));
        self.positions.inplace(|to| put(to, new.positions));
        self.seen.inplace(|to| put(to, new.seen));
        (self.draws).inplace(|to| to.select_assign(0, ids.clone(), new.draws, assign));
        for (part, new) in self.models.iter_mut().zip(new.models) {
            part.cache.replace_rows(&ids, new.cache);
        }
        places.iter().for_each(|&place| self.fresh[place] = true);
        self.refilled = true;
    }

    /// The column before the next token's: `[1]`
    fn last(&self) -> Tensor<1, Int> {
        self.back(1)
    }

    /// The column so many before the next token's: `[1]`
    fn back(&self, count: usize) -> Tensor<1, Int> {
        let capacity = self.capacity();
        let column = self.column.clone();
        column
            .add_scalar((capacity - count) as i32)
            .remainder_scalar(capacity as i32)
    }

    /// Columns that hold no token of a row: those further back than it has tokens, `[B, C]`.
    fn hidden(&self) -> Tensor<2, Bool> {
        let shape = self.seen.dims();
        let capacity = shape[1] as i32;
        let last = self.last().unsqueeze::<2>().expand([1, shape[1]]);
        let back = (last - self.columns.clone())
            .add_scalar(capacity)
            .remainder_scalar(capacity);
        back.expand(shape)
            .greater(self.positions.clone().expand(shape))
    }

    /// Feeds the last tokens, and draws the next ones.
    fn step(&mut self) {
        let last = self.last();
        let tokens = self.seen.clone().select(1, last.clone()).clamp_min(0); // [B, 1]
        let hidden_keys = self.hidden();
        let capacity = self.capacity();
        let logits = self.models.iter_mut().map(|part| {
            let model = &part.on.model;
            // Rows whose answer has ended run on. No clone of the positions may live on until they are written: they would be
            // written elsewhere, and a graph would go on reading the old ones.
            let limit = model.config().max_positions().min(capacity) as i32 - 1;
            let positions = self.positions.clone().clamp_max(limit);
            let span = Span::step(
                last.clone(),
                positions,
                hidden_keys.clone(),
                part.rotary.as_ref(),
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
                let most = self.draws.dims()[1] as i32 - 1;
                let at = self.steps.clone().clamp_max(most);
                let u = self.draws.clone().gather(1, at);
                sample(logits / temperature, u, self.first_block.clone())
            }
        };
        let column = self.column.clone();
        self.seen
            .inplace(|seen| seen.select_assign(1, column, token, IndexingUpdateOp::Assign));
        let capacity = self.capacity() as i32;
        self.column
            .inplace(|column| column.add_scalar(1).remainder_scalar(capacity));
        self.steps.inplace(|steps| steps.add_scalar(1));
        self.positions.inplace(|positions| positions.add_scalar(1));
        self.advanced();
    }

    /// Counts a step.
    fn advanced(&mut self) {
        self.next = (self.next + 1) % self.capacity();
        self.unread += 1;
    }

    /// After `capture`, which calls the step several times: with a graph, the last call was recorded, not run.
    fn captured(&mut self, with_graph: bool) {
        let capacity = self.capacity();
        let column = match with_graph {
            true => (self.next + capacity - 1) % capacity,
            false => host(self.column.clone())[0] as usize,
        };
        self.unread -= (self.next + capacity - column) % capacity;
        self.next = column;
        self.refilled = false;
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
        // Windows by their last column. Those that end at padding or at a token to come complete nothing.
        let mut same = self.hidden().bool_not();
        same = same.bool_and(self.seen.clone().greater_equal_elem(0));
        for k in 1..n {
            // The last n - 1 tokens are those before the next column.
            let tail = self.seen.clone().select(1, self.back(n - k)); // [B, 1]
            let token = self.turned(n - k);
            same = same.bool_and(token.equal(tail.expand([batch, capacity])));
        }
        let ruled_out = Tensor::<2>::zeros([batch, capacity], &self.device).mask_fill(same, -1e30);
        let tokens = self.seen.clone().clamp_min(0);
        logits.scatter(1, tokens, ruled_out, IndexingUpdateOp::Add)
    }

    /// For each column the token that stands `by` columns before it: `[B, C]`.
    fn turned(&self, by: usize) -> Tensor<2, Int> {
        let [batch, capacity] = self.seen.dims();
        let part = |columns| self.seen.clone().slice([0..batch, columns]);
        let (end, begin) = (part(capacity - by..capacity), part(0..capacity - by));
        Tensor::cat(vec![end, begin], 1)
    }

    /// Tokens that were drawn since the last call, row by row.
    fn new_tokens(&mut self) -> Vec<Vec<i32>> {
        // A fresh row has drawn a token before its first step.
        let count = 1 + std::mem::take(&mut self.unread);
        let tokens = host(self.last_columns(count));
        let rows = tokens.chunks_exact(count).zip(&mut self.fresh);
        rows.map(|(tokens, fresh)| {
            let read = usize::from(!std::mem::take(fresh));
            tokens[read..].to_vec()
        })
        .collect()
    }

    /// The tokens of the columns before the next one's: `[B, count]`.
    fn last_columns(&self, count: usize) -> Tensor<2, Int> {
        let [batch, capacity] = self.seen.dims();
        let parts = ring(self.next + capacity - count, count, capacity)
            .map(|columns| self.seen.clone().slice([0..batch, columns]));
        let whole = parts.reduce(|a, b| Tensor::cat(vec![a, b], 1));
        whole.expect("there are columns")
    }

    /// Takes back steps: columns after them are written again before they are read.
    fn go_back(&mut self, steps: usize) {
        let capacity = self.capacity();
        self.next = (self.next + capacity - steps) % capacity;
        self.unread -= steps;
        let [at, column] = [0, self.next as i32].map(|x| numbers([x], [1], &self.device));
        (self.column).inplace(|to| to.select_assign(0, at, column, IndexingUpdateOp::Assign));
        self.steps.inplace(|to| to.sub_scalar(steps as i32));
        self.positions.inplace(|to| to.sub_scalar(steps as i32));
    }

    /// Keeps only these rows, in that order.
    fn keep_rows(&mut self, rows: &[usize]) {
        let batch = rows.len();
        let ids = numbers(rows.iter().map(|&r| r as i32), [batch], &self.device);
        self.fresh = rows.iter().map(|&row| self.fresh[row]).collect();
        self.steps.inplace(|x| x.select(0, ids.clone()));
        self.positions.inplace(|x| x.select(0, ids.clone()));
        self.seen.inplace(|x| x.select(0, ids.clone()));
        self.draws.inplace(|x| x.select(0, ids.clone()));
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
    use crate::draw::draw;
    use crate::generate::{Sampler, banned_tokens, generate};
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
        (0..31u32)
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
        let answers = sampler.generate(&prompts, &examples, SEED, &ends, decoding, &mut |_| {});
        answers.unwrap()
    }

    const SEED: u64 = 7;

    /// Whether two answers are the same up to a token whose random number lies within 1e-5 of the border between the two.
    fn same_but_for_rounding(
        models: &[(&LanguageModel, f64)],
        example: usize,
        a: &[u32],
        b: &[u32],
        decoding: &Decoding,
    ) -> bool {
        let Some(step) = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i)) else {
            return true;
        };
        let prompt = prompts().swap_remove(example);
        let tokens = prompt.iter().chain(&a[..step.min(a.len())]);
        let ids: Vec<i32> = tokens.map(|&t| t as i32).collect();
        let mut mixed = vec![0.0; 300];
        for (model, share) in models {
            let ids = numbers(ids.iter().copied(), [1, ids.len()], &model.device());
            let hidden = model.hidden(ids, &[], None);
            let [_, t, d] = hidden.dims();
            let logits = model.logits(hidden.slice([0..1, t - 1..t, 0..d]).reshape([1, d]));
            let p = crate::params::to_vec(burn::tensor::activation::softmax(logits, 1));
            mixed
                .iter_mut()
                .zip(p)
                .for_each(|(m, p)| *m += *share as f32 * p);
        }
        let mut logits: Vec<f32> = mixed.iter().map(|p| p.ln()).collect();
        let n = decoding.no_repeat_ngram_size;
        for token in banned_tokens(&prompt, &a[..step], n) {
            logits[token as usize] = f32::NEG_INFINITY;
        }
        let key = mix(mix(SEED) ^ example as u64);
        let u = unit(mix(key ^ mix(step as u64)));
        let near = [u - 1e-5, u + 1e-5].map(|u| draw(&logits, u, decoding));
        near.contains(&a.get(step).copied()) && near.contains(&b.get(step).copied())
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
                Decoding {
                    top_k: 1,
                    ..Decoding::sampling()
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
                    let device = answers(&models, true, &decoding);
                    for (example, (device, host)) in device.iter().zip(&host).enumerate() {
                        assert!(
                            same_but_for_rounding(&models, example, device, host, &decoding),
                            "models {i}, example {example}: {device:?} {host:?}, {decoding:?}"
                        );
                    }
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
            Ok(Some(vec![f32::NAN; shape.iter().product()]))
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
