//! Decoding where tensors lie in host memory: the forward pass of any architecture over packed weights and slices of f32.
//!
//! A step has one token per row, so that the calls of a tensor operation cost more than its arithmetic. Here a layer is eight
//! loops, each in parallel: norm, queries with keys and values, attention, its output, norm, the two halves of the
//! feed-forward network and the activation between them.

mod parts;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

pub(crate) use parts::{Dense, Norm};

use crate::attention::{self, Rotary, Rows, Store};
use crate::on_device::OnDevice;
use crate::ops::{gelu, silu};
use crate::packed::{Factors, Packed, Put};
use crate::params::to_vec;
use crate::rope::Angles;
use crate::span::Heads;
use crate::{LanguageModel, Precision};

/// A decoding engine: packed weights where tensors lie in host memory, the model's own tensors elsewhere.
pub(crate) trait Engine {
    /// Makes room for batches of at most `rows` rows and `capacity` positions.
    fn make_room(&mut self, rows: usize, capacity: usize);

    /// Empties the cache and begins a batch of `batch` rows of at most `capacity` positions.
    fn begin(&mut self, batch: usize, capacity: usize);

    /// Appends the columns of `ids` `[B, T]`; `pads` are the numbers of padding positions that begin the rows. `logits`
    /// `[B, V]` are those after the last column.
    fn step(&mut self, ids: &[i32], pads: &[usize], logits: &mut Vec<f32>);

    /// Keeps only the given rows of the batch, in that order.
    fn keep_rows(&mut self, rows: &[usize]);

    /// Whether dropping finished rows pays off when `open` rows of `batch` are unfinished.
    fn leaves(&self, open: usize, batch: usize) -> bool;

    /// The model, if it can be decoded without the host.
    fn on_device(&self) -> Option<&OnDevice> {
        None
    }
}

/// A model prepared for decoding, whose weights are rounded to its precision once, and the KV cache of a batch.
pub(crate) struct HostModel {
    /// `[V, d]`
    tokens: Tensor<2>,
    parts: Parts,
    head: Packed,
    precision: Precision,
    /// With rotary positions.
    angles: Option<Angles>,
    cache: Cache,
    work: Work,
}

/// Buffers of a step, kept for the next.
struct Work {
    /// The residual stream `[N, d]`.
    x: Vec<f32>,
    normed: Factors,
    qkv: Vec<f32>,
    /// `[B, H, T, dh]`
    attended: Vec<f32>,
    /// `[N, H dh]`
    heads: Factors,
    up: Vec<f32>,
    active: Factors,
}

impl Work {
    fn new(d: usize, heads: usize, inner: usize, precision: Precision) -> Self {
        let factors = |width| Factors::new(width, precision);
        Self {
            x: Vec::new(),
            normed: factors(d),
            qkv: Vec::new(),
            attended: Vec::new(),
            heads: factors(heads),
            up: Vec::new(),
            active: factors(inner),
        }
    }
}

/// The parts that an architecture provides: packed weights, and how they are used.
pub(crate) struct Parts {
    /// `[positions, d]`, where positions are embedded.
    pub positions: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    pub norm: Norm,
    /// Whether the activation is SwiGLU; GELU if not.
    pub gated: bool,
    pub heads: Heads,
    /// Width of the feed-forward network.
    pub inner: usize,
}

/// A pre-norm layer.
pub(crate) struct Layer {
    pub norm_1: Norm,
    /// Queries, keys and values.
    pub qkv: Dense,
    /// Of each head of queries and of keys.
    pub qk_norm: Option<[Norm; 2]>,
    pub out: Dense,
    pub norm_2: Norm,
    /// Gate and value side by side, where there is a gate.
    pub up: Dense,
    pub down: Dense,
}

#[derive(Default)]
struct Cache {
    /// Capacity: rows and positions.
    room: (usize, usize),
    layers: Vec<Box<dyn Store>>,
    /// With rotary positions.
    rotary: Option<Rotary>,
    /// The place in the cache of each row of the batch.
    places: Vec<usize>,
    /// Positions in the cache.
    length: usize,
}

impl HostModel {
    /// Without a KV cache yet.
    pub fn new(model: &LanguageModel) -> Self {
        let parts = model.inner().parts();
        let heads = parts.heads.heads * parts.heads.dh;
        let precision = model.precision();
        let tokens = model.embedding().val();
        let d = tokens.dims()[1];
        Self {
            tokens: tokens.to_device(&Device::flex()),
            head: Packed::transposed(model.head().val(), precision),
            precision,
            angles: model.inner().angles(),
            cache: Cache::default(),
            work: Work::new(d, heads, parts.inner, precision),
            parts,
        }
    }

    /// Logits after the last column of `ids`, which follow the positions in the cache.
    ///
    /// # Shapes
    ///
    /// - `ids`: `[B, T]`; `pads`: B, the number of each row's first positions (cache included) that are padding
    /// - `logits`: `[B, V]`
    fn last_logits(&mut self, ids: &[i32], pads: &[usize], logits: &mut Vec<f32>) {
        let (batch, past) = (pads.len(), self.cache.length);
        let columns = ids.len() / batch;
        let d = self.tokens.dims()[1];
        let Heads {
            heads: count,
            kv_heads,
            dh,
        } = self.parts.heads;
        self.work.x = self.embed(ids, columns, pads);
        let Work {
            x,
            normed,
            qkv,
            attended,
            heads,
            up,
            active,
        } = &mut self.work;
        let last = self.parts.layers.len() - 1;
        for (i, layer) in self.parts.layers.iter().enumerate() {
            normed.fill(batch * columns, |r, to| {
                layer.norm_1.apply(&x[r * d..(r + 1) * d], to);
            });
            layer.qkv.apply(normed, Put::Over, qkv);
            if let Some([of_q, of_k]) = &layer.qk_norm {
                qkv.par_chunks_exact_mut((count + 2 * kv_heads) * dh)
                    .for_each_init(
                        || vec![0.0; dh],
                        |normed, row| {
                            let heads = row.chunks_exact_mut(dh).take(count + kv_heads);
                            for (h, head) in heads.enumerate() {
                                let norm = if h < count { of_q } else { of_k };
                                norm.apply(head, normed);
                                head.copy_from_slice(normed);
                            }
                        },
                    );
            }
            attended.resize(batch * columns * count * dh, 0.0);
            let rows = Rows {
                places: &self.cache.places,
                pads,
                past,
                width: columns,
            };
            let rotary = self.cache.rotary.as_ref();
            self.cache.layers[i].step(&rows, qkv, rotary, attended);
            // In the last layer, only keys and values are needed in columns other than the last.
            let first = if i == last { columns - 1 } else { 0 };
            if first > 0 {
                let rows = x.chunks_exact(columns * d);
                *x = rows.flat_map(|row| &row[first * d..]).copied().collect();
            }
            let width = columns - first;
            heads.fill(batch * width, |r, to| {
                let (row, column) = (r / width, first + r % width);
                for (h, to) in to.chunks_exact_mut(dh).enumerate() {
                    let from = ((row * count + h) * columns + column) * dh;
                    to.copy_from_slice(&attended[from..from + dh]);
                }
            });
            layer.out.apply(heads, Put::Onto, x);
            normed.fill(batch * width, |r, to| {
                layer.norm_2.apply(&x[r * d..(r + 1) * d], to);
            });
            layer.up.apply(normed, Put::Over, up);
            let inner = layer.up.weight.output();
            active.fill(batch * width, |r, to| {
                let (value, more) = up[r * inner..(r + 1) * inner].split_at(to.len());
                to.copy_from_slice(value);
                if self.parts.gated {
                    silu(to);
                    to.iter_mut().zip(more).for_each(|(to, up)| *to *= up);
                } else {
                    gelu(to);
                }
            });
            layer.down.apply(active, Put::Onto, x);
        }
        self.cache.length += columns;
        normed.fill(batch, |r, to| {
            self.parts.norm.apply(&x[r * d..(r + 1) * d], to);
        });
        logits.resize(batch * self.head.output(), 0.0);
        self.head.product(normed, Put::Over, logits);
    }

    /// `[B, T] -> [B T, d]`
    fn embed(&self, ids: &[i32], columns: usize, pads: &[usize]) -> Vec<f32> {
        let data = TensorData::new(ids.to_vec(), [ids.len()]);
        let ids = Tensor::<1, Int>::from_data(data, &self.tokens.device());
        let mut x = to_vec(self.tokens.clone().select(0, ids));
        if let Some(positions) = &self.parts.positions {
            let d = self.tokens.dims()[1];
            for (i, x) in x.chunks_exact_mut(d).enumerate() {
                let column = self.cache.length + i % columns;
                let position = column.saturating_sub(pads[i / columns]);
                let place = &positions[position * d..(position + 1) * d];
                x.iter_mut().zip(place).for_each(|(x, place)| *x += place);
            }
        }
        x
    }
}

impl Engine for HostModel {
    fn make_room(&mut self, rows: usize, capacity: usize) {
        let room = self.cache.room;
        if rows <= room.0 && capacity <= room.1 {
            return;
        }
        let (rows, capacity) = (rows.max(room.0), capacity.max(room.1));
        let Heads { kv_heads, dh, .. } = self.parts.heads;
        let store = |_| attention::store(self.precision, rows, kv_heads, capacity, dh);
        self.cache = Cache {
            room: (rows, capacity),
            layers: self.parts.layers.iter().map(store).collect(),
            rotary: self.angles.map(|angles| Rotary::new(capacity, angles)),
            ..Cache::default()
        };
    }

    fn begin(&mut self, batch: usize, _: usize) {
        self.cache.places = (0..batch).collect();
        self.cache.length = 0;
    }

    fn step(&mut self, ids: &[i32], pads: &[usize], logits: &mut Vec<f32>) {
        // On a thread of the pool, so that each product only has to wake the other threads.
        rayon::scope(|_| self.last_logits(ids, pads, logits));
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        let places = &self.cache.places;
        self.cache.places = rows.iter().map(|&r| places[r]).collect();
    }

    fn leaves(&self, open: usize, batch: usize) -> bool {
        open < batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::{self, LoraConfig};
    use crate::{KvCache, ModelConfig};

    const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 37, "n_positions": 24, "n_embd": 20, "n_layer": 2,
        "n_head": 4, "initializer_range": 0.3}"#;
    /// With an untied head.
    const UNTIED: &str = r#"{"model_type": "gpt2", "vocab_size": 37, "n_positions": 24, "n_embd": 20, "n_layer": 2,
        "n_head": 4, "initializer_range": 0.3, "tie_word_embeddings": false}"#;
    /// With scaled rotary frequencies.
    const SCALED: &str = r#"{"model_type": "llama", "vocab_size": 37, "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 2, "num_attention_heads": 3, "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 12}}"#;
    /// With biases.
    const QWEN2: &str = r#"{"model_type": "qwen2", "vocab_size": 37, "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}"#;
    /// With norms on heads.
    const QWEN3: &str = r#"{"model_type": "qwen3", "vocab_size": 37, "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "initializer_range": 0.3}"#;
    const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 37, "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}"#;

    fn model(config: &str) -> LanguageModel {
        let config: ModelConfig = serde_json::from_str(config).unwrap();
        // Norms and biases that are not neutral.
        let model = config.init(3, &Device::flex());
        let changed = crate::params::replace(model, |name, shape| {
            let key = name.bytes().map(u32::from).sum::<u32>();
            let value = |i: usize| ((i as f32 + key as f32) * 0.7).sin();
            let base = if name.contains("bias") { 0.0 } else { 1.0 };
            Ok((shape.len() < 2).then(|| (0..shape[0]).map(|i| base + 0.3 * value(i)).collect()))
        });
        changed.unwrap()
    }

    /// Logits of three rows in four steps, the middle row gone before the third.
    fn steps(mut step: impl FnMut(&[i32], &[usize], Option<&[usize]>) -> Vec<f32>) -> Vec<f32> {
        let mut pads = vec![0, 2, 1];
        let mut all = Vec::new();
        for (n, columns) in [5, 1, 1, 4].into_iter().enumerate() {
            let kept = [0, 2];
            let kept = (n == 2).then_some(&kept[..]);
            if kept.is_some() {
                pads.remove(1);
            }
            let ids: Vec<i32> = (0..pads.len() * columns)
                .map(|i| ((i * 13 + n * 5) % 37) as i32)
                .collect();
            all.extend(step(&ids, &pads, kept));
        }
        all
    }

    fn on_host(model: &LanguageModel) -> Vec<f32> {
        let mut host = HostModel::new(model);
        host.make_room(1, 4);
        host.make_room(3, 11);
        host.make_room(2, 5);
        // An earlier batch must leave nothing behind.
        host.begin(2, 5);
        host.last_logits(&[1, 2, 3, 4, 5, 6], &[0, 1], &mut Vec::new());
        host.begin(3, 11);
        steps(|ids, pads, kept| {
            if let Some(rows) = kept {
                host.keep_rows(rows);
            }
            let mut logits = Vec::new();
            host.last_logits(ids, pads, &mut logits);
            logits
        })
    }

    fn in_tensors(model: &LanguageModel) -> Vec<f32> {
        let mut cache = KvCache::new(model.config().layers(), 11);
        steps(|ids, pads, kept| {
            if let Some(rows) = kept {
                cache.keep_rows(rows);
            }
            let (batch, columns) = (pads.len(), ids.len() / pads.len());
            let data = TensorData::new(ids.to_vec(), [batch, columns]);
            let ids = Tensor::<2, Int>::from_data(data, &Device::flex());
            let hidden = model.hidden(ids, pads, Some(&mut cache));
            let d = hidden.dims()[2];
            let last = hidden.slice([0..batch, columns - 1..columns, 0..d]);
            to_vec(model.logits(last.reshape([batch, d])))
        })
    }

    fn assert_alike(model: &LanguageModel) {
        for (precision, near) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.04)] {
            let model = model.clone().with_precision(precision);
            let (host, tensors) = (on_host(&model), in_tensors(&model));
            assert_eq!(host.len(), tensors.len());
            let size = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let difference = size(&mut host.iter().zip(&tensors).map(|(a, b)| a - b));
            let share = difference / size(&mut tensors.iter().copied());
            assert!(share < near, "{precision:?}: {share}");
        }
    }

    #[test]
    fn logits_are_those_of_the_tensors() {
        for config in [GPT2, UNTIED, LLAMA, SCALED, QWEN2, QWEN3] {
            assert_alike(&model(config));
        }
    }

    #[test]
    fn with_and_without_the_processors_bfloat16_they_are_too() {
        crate::bf16::each_way(|| {
            assert_alike(&model(GPT2));
            assert_alike(&model(LLAMA));
        });
    }

    #[test]
    fn adapters_add_what_they_add_to_tensors() {
        let plain = model(LLAMA);
        let config = LoraConfig {
            r: 3,
            alpha: 6.0,
            dropout: 0.0,
            target_modules: ["q_proj", "v_proj", "up_proj", "down_proj"]
                .map(String::from)
                .to_vec(),
            start: lora::Start::Continue,
        };
        let adapted = lora::attach(plain.clone(), &config, 1).unwrap();
        let adapted = crate::params::replace(adapted, |name, shape| {
            let n: usize = shape.iter().product();
            let ours = name.ends_with("adapter.b");
            Ok(ours.then(|| (0..n).map(|i| 0.1 * (i as f32).sin()).collect()))
        })
        .unwrap();
        let difference = on_host(&adapted)
            .iter()
            .zip(on_host(&plain))
            .fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(difference > 0.1, "{difference}");
        assert_alike(&adapted);
    }
}
