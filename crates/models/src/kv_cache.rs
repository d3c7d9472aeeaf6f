//! Keys and values of the tokens seen so far, allocated once.
//!
//! Where tensors lie in host memory, so does the cache: new tokens are written in place, a row that leaves the batch
//! costs nothing, and attention reads the cache where it is ([`host`]). Elsewhere it is a tensor of the device.

mod host;

use burn::tensor::{Int, Tensor, TensorData};

use crate::Precision;
use crate::layers::{Span, attend};
use crate::params::floats;
use host::{Rows, Store};

/// Keys and values of the tokens seen so far, one pair a layer, allocated once.
pub struct KvCache {
    layers: Vec<Layer>,
    capacity: usize,
    precision: Precision,
    length: usize,
    /// Rows in the batch by their place in the cache; set by the first tokens.
    rows: Vec<usize>,
}

#[allow(clippy::large_enum_variant)] // there are as many as layers
enum Layer {
    Empty,
    Host(Box<dyn Store>),
    /// `[B, K, capacity, dh]` each.
    Device(Tensor<4>, Tensor<4>),
}

impl KvCache {
    /// A cache for `layers` layers and sequences of up to `capacity` tokens. In host memory its numbers are those of the
    /// model's products.
    pub fn new(layers: usize, capacity: usize, precision: Precision) -> Self {
        Self {
            layers: (0..layers).map(|_| Layer::Empty).collect(),
            capacity,
            precision,
            length: 0,
            rows: Vec::new(),
        }
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
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        span: &Span,
    ) -> Tensor<4> {
        if abkd_host::serves(&q.device()) {
            return self.attend_on_host(layer, q, k, v, span);
        }
        let (k, v) = self.append_on_device(layer, k, v);
        attend(q, k, v, span.bias.clone(), |w| w)
    }

    fn attend_on_host(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        span: &Span,
    ) -> Tensor<4> {
        let [batch, kv_heads, width, dh] = k.dims();
        if self.rows.is_empty() {
            self.rows = (0..batch).collect();
        }
        let store = &mut self.layers[layer];
        if let Layer::Empty = store {
            let store_of = host::store(self.precision, batch, kv_heads, self.capacity, dh);
            *store = Layer::Host(store_of);
        }
        let Layer::Host(store) = store else {
            unreachable!("a cache stays on one device")
        };
        let data = |t: Tensor<4>| t.into_data_as::<f32>();
        let pads = if span.rows == 1 {
            vec![span.pads[0]; batch]
        } else {
            span.pads.clone()
        };
        let rows = Rows {
            places: &self.rows,
            pads: &pads,
            past: self.length,
            width,
        };
        if self.length == 0 {
            let (keys, values) = (data(k.clone()), data(v.clone()));
            store.step(&rows, &[], floats(&keys), floats(&values));
            // Matrix products are faster while there are as many queries as keys.
            return attend(q, k, v, span.bias.clone(), |w| w);
        }
        let (device, shape) = (q.device(), q.dims());
        let (q, k, v) = (data(q), data(k), data(v));
        let out = store.step(&rows, floats(&q), floats(&k), floats(&v));
        Tensor::from_data(TensorData::new(out, shape), &device)
    }

    fn append_on_device(
        &mut self,
        layer: usize,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let [batch, heads, width, dh] = k.dims();
        let end = self.length + width;
        let (keys, values) = match std::mem::replace(&mut self.layers[layer], Layer::Empty) {
            Layer::Device(keys, values) => (keys, values),
            _ => {
                let empty = Tensor::zeros([batch, heads, self.capacity, dh], &k.device());
                (empty.clone(), empty)
            }
        };
        let place = [0..batch, 0..heads, self.length..end, 0..dh];
        let keys = keys.slice_assign(place.clone(), k);
        let values = values.slice_assign(place, v);
        let seen = [0..batch, 0..heads, 0..end, 0..dh];
        let all = (keys.clone().slice(seen.clone()), values.clone().slice(seen));
        self.layers[layer] = Layer::Device(keys, values);
        all
    }

    /// Called once by the model after all layers have appended `width` tokens.
    pub(crate) fn advance(&mut self, width: usize) {
        self.length += width;
    }

    /// Keeps only the given rows of the batch, in that order.
    pub fn keep_rows(&mut self, rows: &[usize]) {
        if !self.rows.is_empty() {
            self.rows = rows.iter().map(|&r| self.rows[r]).collect();
        }
        for layer in &mut self.layers {
            let Layer::Device(keys, values) = layer else {
                continue;
            };
            let ids: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
            let ids =
                Tensor::<1, Int>::from_data(TensorData::new(ids, [rows.len()]), &keys.device());
            *keys = keys.clone().select(0, ids.clone());
            *values = values.clone().select(0, ids);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// What a cache answers to three rows in three steps, the middle row gone before the last.
    fn answers(device: &Device, precision: Precision) -> Vec<Vec<f32>> {
        let (heads, kv_heads, dh) = (4, 2, 20);
        let mut cache = KvCache::new(1, 40, precision);
        let mut pads = vec![0, 2, 1];
        let mut out = Vec::new();
        for (step, width) in [4, 1, 30].into_iter().enumerate() {
            if step == 2 {
                cache.keep_rows(&[0, 2]);
                pads.remove(1);
            }
            let rows = pads.len();
            let part = |heads: usize, seed: u64| {
                let values: Vec<f32> = (0..rows * heads * width * dh)
                    .map(|i| {
                        (crate::params::unit(crate::params::mix(seed ^ (i as u64) << 8)) * 4.0
                            - 2.0) as f32
                    })
                    .collect();
                Tensor::<4>::from_data(TensorData::new(values, [rows, heads, width, dh]), device)
            };
            let key = 10 * step as u64;
            let (q, k, v) = (
                part(heads, key),
                part(kv_heads, key + 1),
                part(kv_heads, key + 2),
            );
            let span = Span::new(width, cache.len(), &pads, device);
            let y = cache.attend(0, q, k, v, &span);
            cache.advance(width);
            out.push(crate::params::to_vec(y));
        }
        out
    }

    #[test]
    fn in_host_memory_and_on_a_device_it_answers_alike() {
        // An autodiff device is served by the tensors' path.
        let device = answers(&Device::flex().autodiff(), Precision::F32);
        for (precision, near) in [(Precision::F32, 1e-5), (Precision::Bf16, 2e-2)] {
            let host = answers(&Device::flex(), precision);
            for (step, (a, b)) in host.iter().zip(&device).enumerate() {
                assert_eq!(a.len(), b.len());
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    // Rows of padding alone differ: nobody reads them.
                    let padding = step == 0 && [0, 2, 1][i / (4 * 4 * 20)] > i / 20 % 4;
                    let alike = (a - b).abs() < near;
                    assert!(padding || alike, "{precision:?}, step {step}, {i}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn chosen_rows_are_kept_in_their_order() {
        let device = Device::flex();
        let at = |values: &[f32]| {
            Tensor::<1>::from_floats(values, &device).reshape([values.len(), 1, 1, 1])
        };
        let mut cache = KvCache::new(1, 4, Precision::F32);
        let step = |cache: &mut KvCache, values: &[f32]| {
            let span = Span::new(1, cache.len(), &vec![0; values.len()], &device);
            let zeros = at(values) * 0.0;
            let y = cache.attend(0, zeros.clone(), zeros, at(values), &span);
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
