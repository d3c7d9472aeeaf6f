//! Dropout. Whether a number is dropped is a function of a key and of its place, so neither a mask nor random numbers are
//! kept: the backward pass asks again. The function is the same on processors and on the cards that CubeCL serves;
//! libtorch on a card draws with its own generator, seeded from the key. The keys are a sequence that each thread has of its
//! own: Burn's random state is one a process, and tasks that run side by side would take each other's numbers.

use std::cell::Cell;
use std::sync::Mutex;

use abkd_host::dispatch;
use burn::nn::Dropout;
use burn::tensor::{Device, Shape, Tensor};
#[cfg(feature = "cube")]
use burn_cubecl::tensor::CubeTensor;
use rayon::prelude::*;

#[cfg(feature = "cube")]
use super::cube;
use super::{Operation, apply_1, serve_rows};
use crate::params::{GAMMA, mix};

/// Numbers that a thread takes at a time.
const PART: usize = 1 << 13;

thread_local! {
    /// State of the thread's keys (SplitMix64).
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// Seeds the dropout of the models that this thread runs from now on.
pub fn seed_dropout(seed: u64) {
    // Mixed, because seeds are often consecutive numbers.
    STATE.set(mix(seed));
}

/// State of the thread's keys, for [`resume`].
pub(crate) fn state() -> u64 {
    STATE.get()
}

/// Draws again what the thread drew from a state on.
pub(crate) fn resume(state: u64) {
    STATE.set(state);
}

/// Numbers to drop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropped {
    key: u64,
    share: f64,
}

impl Dropped {
    /// Draws a key from the thread's sequence; `None` where dropout is inactive.
    pub fn draw(how: &Dropout, device: &Device) -> Option<Self> {
        let active = how.training.is_enabled() && device.is_autodiff() && how.prob != 0.0;
        active.then(|| {
            let state = STATE.get();
            STATE.set(state.wrapping_add(GAMMA));
            let key = mix(state);
            let share = how.prob;
            Self { key, share }
        })
    }

    /// The two halves of the key.
    pub fn halves(self) -> [u32; 2] {
        [self.key as u32, (self.key >> 32) as u32]
    }

    /// Numbers whose draws are below the first are dropped; the second is the factor of all others.
    pub fn limit(self) -> (u32, f32) {
        let share = self.share;
        ((share * 2f64.powi(32)) as u32, (1.0 / (1.0 - share)) as f32)
    }

    /// Key of row `row` of head `head`.
    fn row_key(self, row: usize, head: usize) -> u32 {
        let [low, high] = self.halves();
        scatter(scatter(scatter(row as u32 ^ low) ^ high) ^ head as u32)
    }

    /// Drops numbers of a row of a head, the first of which is its `first`-th.
    pub fn drop_row(self, row: usize, head: usize, first: usize, x: &mut [f32]) {
        let (limit, kept) = self.limit();
        drop_numbers(x, self.row_key(row, head), first as u32, limit, kept);
    }

    /// All numbers are one row.
    fn drop_all(self, x: &[f32], out: &mut [f32]) {
        let parts = out.par_chunks_mut(PART).zip(x.par_chunks(PART));
        parts.enumerate().for_each(|(i, (out, x))| {
            out.copy_from_slice(x);
            self.drop_row(0, 0, i * PART, out);
        });
    }
}

/// Dropout of a tensor, seeded by [`seed_dropout`].
pub(crate) fn apply<const D: usize>(x: Tensor<D>, how: &Dropout) -> Tensor<D> {
    /// libtorch's generator on a card is one a process, too.
    static GENERATOR: Mutex<()> = Mutex::new(());

    let device = x.device();
    let Some(dropped) = Dropped::draw(how, &device) else {
        return x;
    };
    if serve_rows(&device) {
        return apply_1(dropped, x);
    }
    let _alone = GENERATOR
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    device.seed(dropped.key);
    how.forward(x)
}

impl Operation<1> for Dropped {
    fn keeps_inputs(&self) -> bool {
        false
    }

    fn shape(&self, [x]: [Shape; 1]) -> Shape {
        x
    }

    fn forward(&self, [x]: [&[f32]; 1], out: &mut [f32]) {
        self.drop_all(x, out);
    }

    fn backward(&self, _: [&[f32]; 1], g: &[f32], [dx]: [&mut [f32]; 1]) {
        self.drop_all(g, dx);
    }

    #[cfg(feature = "cube")]
    fn forward_on_card(&self, [x]: &[CubeTensor; 1]) -> CubeTensor {
        cube::dropout(x, *self)
    }

    #[cfg(feature = "cube")]
    fn backward_on_card(&self, _: &[CubeTensor; 1], g: &CubeTensor) -> [CubeTensor; 1] {
        [cube::dropout(g, *self)]
    }
}

dispatch!(drop_numbers => drop_values(x: &mut [f32], key: u32, first: u32, limit: u32, kept: f32));

#[inline(always)]
fn drop_values(x: &mut [f32], key: u32, first: u32, limit: u32, kept: f32) {
    for (i, x) in x.iter_mut().enumerate() {
        let place = first.wrapping_add(i as u32);
        let drawn = scatter(place.wrapping_mul(0x9E37_79B9).wrapping_add(key));
        *x *= if drawn < limit { 0.0 } else { kept };
    }
}

/// A bijection under which consecutive arguments give unrelated results.
#[inline(always)]
fn scatter(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use burn::nn::DropoutConfig;

    use super::*;
    use crate::params::to_vec;

    fn devices() -> Vec<Device> {
        let host = [Some(Device::flex()), abkd_host::libtorch()];
        let all = host.into_iter().chain([super::super::card()]);
        all.flatten().map(Device::autodiff).collect()
    }

    /// Kept numbers are scaled, as many are dropped as asked, the same ones by the gradient and on every device, and a seed
    /// gives one draw.
    #[test]
    fn numbers_are_dropped_by_seed_and_place() {
        let how = DropoutConfig::new(0.3).init();
        let mut of_first = None;
        for device in devices() {
            let x = Tensor::<2>::ones([300, 70], &device).require_grad();
            let drawn = |seed| {
                seed_dropout(seed);
                apply(x.clone(), &how)
            };
            let y = drawn(1);
            let gradient = to_vec(x.grad(&y.clone().sum().backward()).unwrap());
            let y = to_vec(y.inner());
            assert_eq!(y, gradient);
            assert_eq!(y, to_vec(drawn(1).inner()));
            assert_ne!(y, to_vec(drawn(2).inner()));
            assert_eq!(&y, of_first.get_or_insert_with(|| y.clone()));
            assert!(y.iter().all(|&y| y == 0.0 || (y - 1.0 / 0.7).abs() < 1e-6));
            // of rows and of columns, too; six standard deviations
            let dropped = |part: &[f32]| part.iter().filter(|y| **y == 0.0).count() as f64;
            let expect = |part: &[f32]| {
                let n = part.len() as f64;
                let sigma = (n * 0.3 * 0.7).sqrt();
                assert!((dropped(part) - 0.3 * n).abs() < 6.0 * sigma);
            };
            expect(&y);
            y.chunks(70).for_each(expect);
            for column in 0..70 {
                let column: Vec<f32> = y.iter().skip(column).step_by(70).copied().collect();
                expect(&column);
            }
            let inactive = apply(x.clone().inner(), &how);
            assert_eq!(to_vec(inactive), vec![1.0; 21_000]);
        }
    }

    #[test]
    fn threads_do_not_take_each_others_draws() {
        let how = DropoutConfig::new(0.5).init();
        let device = Device::flex().autodiff();
        let drawn = || {
            seed_dropout(3);
            let x = || Tensor::<2>::ones([8, 8], &device);
            (0..20).map(|_| to_vec(apply(x(), &how))).collect()
        };
        let alone: Vec<Vec<f32>> = drawn();
        assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(drawn)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), alone);
            }
        });
    }
}
