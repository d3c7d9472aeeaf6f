//! Keys and values of the tokens seen so far, as tensors of the device that are allocated once. Decoding in host memory has
//! its own path: see [`crate::decoder`].

use std::ops::Range;

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::Precision;
use crate::span::attend;

/// Keys and values of the tokens seen so far, one pair per layer, allocated once.
pub struct KvCache {
    /// `[B, K, capacity, dh]` each; set by the first tokens.
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    capacity: usize,
    length: usize,
    /// Column of the first token. Columns are a ring: the first follows the last.
    start: usize,
    /// Number type of keys and values.
    precision: Precision,
}

impl KvCache {
    /// A cache for `layers` layers and sequences of up to `capacity` tokens.
    pub fn new(layers: usize, capacity: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| None).collect(),
            capacity,
            length: 0,
            start: 0,
            precision: Precision::F32,
        }
    }

    /// Keeps keys and values in this number type.
    pub(crate) fn of(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Begins at this column.
    pub(crate) fn starting_at(self, start: usize) -> Self {
        Self { start, ..self }
    }

    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds nothing yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends a layer's new keys and values, then attends to all of them.
    ///
    /// # Shapes
    ///
    /// - `q`: `[B, H, T, dh]`; `k`, `v`: `[B, K, T, dh]`; output `[B, H, T, dh]`
    /// - `bias`, added to the scores: `[B or 1, 1, T, past + T]`
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let [batch, heads, width, dh] = k.dims();
        let (k, v) = (self.precision.round(k), self.precision.round(v));
        let (keys, values) = self.layers[layer].take().unwrap_or_else(|| {
            let shape = [batch, heads, self.capacity, dh];
            let empty = || Tensor::zeros(shape, (&k.device(), k.dtype()));
            (empty(), empty())
        });
        let at = |columns| [0..batch, 0..heads, columns, 0..dh];
        let write = |mut to: Tensor<4>, new: &Tensor<4>| {
            let mut done = 0;
            for part in ring(self.start + self.length, width, self.capacity) {
                let from = done..done + part.len();
                done = from.end;
                to = to.slice_assign(at(part), new.clone().slice(at(from)));
            }
            to
        };
        let (keys, values) = (write(keys, &k), write(values, &v));
        let (k, v) = match self.length {
            0 => (k, v),
            past => [&keys, &values]
                .map(|all| {
                    let seen = ring(self.start, past + width, self.capacity);
                    let parts = seen.map(|part| all.clone().slice(at(part)));
                    let whole = parts.reduce(|a, b| Tensor::cat(vec![a, b], 2));
                    whole.expect("there are columns")
                })
                .into(),
        };
        self.layers[layer] = Some((keys, values));
        attend(q, k.cast(DType::F32), v.cast(DType::F32), bias, |w| w)
    }

    /// Writes a layer's new keys and values in place at a column that the device knows, then attends to all columns.
    ///
    /// # Shapes
    ///
    /// - `column`: `[1]`; `q`: `[B, H, 1, dh]`; `k`, `v`: `[B, K, 1, dh]`; `bias`: `[B, 1, 1, capacity]`
    pub(crate) fn attend_at(
        &mut self,
        layer: usize,
        column: Tensor<1, Int>,
        [q, k, v]: [Tensor<4>; 3],
        bias: Tensor<4>,
    ) -> Tensor<4> {
        let (keys, values) = self.layers[layer]
            .take()
            .expect("the prompt's pass has filled it");
        let write = |to: Tensor<4>, new| {
            let new = self.precision.round(new);
            to.select_assign(2, column.clone(), new, IndexingUpdateOp::Assign)
        };
        let (keys, values) = (write(keys, k), write(values, v));
        let (k, v) = (keys.clone(), values.clone());
        self.layers[layer] = Some((keys, values));
        attend(q, k.cast(DType::F32), v.cast(DType::F32), Some(bias), |w| w)
    }

    /// Called once by the model after all layers have appended `width` tokens.
    pub(crate) fn advance(&mut self, width: usize) {
        self.length += width;
    }

    /// Puts the rows of another cache of the same capacity in the place of these rows.
    pub(crate) fn replace_rows(&mut self, rows: &Tensor<1, Int>, new: Self) {
        for (layer, new) in self.layers.iter_mut().zip(new.layers) {
            let put = |to: Tensor<4>, new| {
                to.select_assign(0, rows.clone(), new, IndexingUpdateOp::Assign)
            };
            *layer = match (layer.take(), new) {
                (Some((k, v)), Some((new_k, new_v))) => Some((put(k, new_k), put(v, new_v))),
                (old, _) => old,
            };
        }
    }

    /// Keeps only the given rows of the batch, in that order.
    pub fn keep_rows(&mut self, rows: &[usize]) {
        for (keys, values) in self.layers.iter_mut().flatten() {
            let ids: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
            let ids =
                Tensor::<1, Int>::from_data(TensorData::new(ids, [rows.len()]), &keys.device());
            *keys = keys.clone().select(0, ids.clone());
            *values = values.clone().select(0, ids);
        }
    }
}

/// The `count` columns of a ring of `capacity` from `start` on, in one part or two.
pub(crate) fn ring(
    start: usize,
    count: usize,
    capacity: usize,
) -> impl Iterator<Item = Range<usize>> {
    let start = start % capacity;
    let before = count.min(capacity - start);
    let parts = [start..start + before, 0..count - before];
    parts.into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn chosen_rows_are_kept_in_their_order() {
        let device = Device::flex();
        let at = |values: &[f32]| {
            Tensor::<1>::from_floats(values, &device).reshape([values.len(), 1, 1, 1])
        };
        let mut cache = KvCache::new(1, 4);
        let step = |cache: &mut KvCache, values: &[f32]| {
            let zeros = at(values) * 0.0;
            let y = cache.attend(0, zeros.clone(), zeros, at(values), None);
            cache.advance(1);
            crate::params::to_vec(y)
        };
        step(&mut cache, &[1.0, 10.0, 100.0]);
        cache.keep_rows(&[2, 0]);
        // Scores are equal, so an answer is the mean of the values.
        assert_eq!(step(&mut cache, &[200.0, 3.0]), [150.0, 2.0]);
        cache.keep_rows(&[1]);
        assert_eq!(step(&mut cache, &[8.0]), [4.0]);
    }
}
