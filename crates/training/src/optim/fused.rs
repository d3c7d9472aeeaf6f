//! AdamW in one pass over a parameter, its gradient and its moments; the gradient is scaled on the way.
//!
//! Burn's own AdamW runs some fifteen operations, each with a separate pass over memory. Results and state are equal, on
//! Flex bit by bit; libtorch rounds some of the operations in another way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use abkd_host::{LANES, dispatch, fault};
use burn::backend::Flex;
use burn::optim::{
    AdamW, AdamWState, AdaptiveMomentumState, LearningRate, Optimizer, RecordState, StateSink,
    StateSource,
};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

/// Values per task.
const CHUNK: usize = 1 << 14;

/// Burn's [`AdamW`] with a kernel for tensors in host memory that are accessible without a copy.
#[derive(Clone)]
pub(super) struct FusedAdamW {
    pub burn: AdamW,
    pub beta_1: f32,
    pub beta_2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    pub factor: Factor,
}

/// What the gradients of an update are multiplied by: one number for the optimizers of all groups of parameters.
#[derive(Clone)]
pub(super) struct Factor(Arc<AtomicU32>);

impl Default for Factor {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1.0f32.to_bits())))
    }
}

impl Factor {
    pub fn set(&self, factor: f32) {
        self.0.store(factor.to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Burn's state, which a checkpoint is read into in host memory; the first update moves it to the device of its gradient.
/// Burn would read it onto the build's default device: a card where CUDA is built in, whatever the run computes on.
#[derive(Clone)]
pub(super) struct State<const D: usize>(AdamWState<D>);

impl<const D: usize> RecordState for State<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        self.0.state_flatten(prefix, out);
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, _: &Device) -> Option<Self> {
        AdamWState::state_unflatten(prefix, src, &Device::flex()).map(Self)
    }
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = State<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<State<D>>,
    ) -> (Tensor<D>, Option<State<D>>) {
        let state = state.map(|state| state.0);
        let on_host = abkd_host::serves(&tensor.device());
        #[cfg(feature = "cube")]
        let on_card = !on_host && super::cube::serves(&tensor);
        #[cfg(not(feature = "cube"))]
        let on_card = false;
        let factor = self.factor.get();
        if !(on_host || on_card) || tensor.dtype() != DType::F32 {
            let grad = if factor == 1.0 { grad } else { grad * factor };
            let (tensor, state) = self.burn.step(lr, tensor, grad, state);
            return (tensor, state.map(State));
        }
        let momentum = state.map_or_else(
            || AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
            |s| s.momentum,
        );
        let time = momentum.time + 1;
        let numbers = Numbers {
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            bias_1: 1.0 - self.beta_1.powi(time as i32),
            bias_2: fault!(
                "second moment not corrected",
                1.0 - self.beta_2.powi(time as i32),
                1.0
            ),
            epsilon: self.epsilon,
            keep: (1.0 - f64::from(self.weight_decay) * fault!("decay without the rate", lr, 1.0))
                as f32,
            lr: lr as f32,
            factor,
        };
        let tensors = [tensor, momentum.moment_1, momentum.moment_2];
        #[cfg(feature = "cube")]
        if on_card {
            return next(time, super::cube::in_place(numbers, tensors, grad));
        }
        next(time, in_place(numbers, tensors, grad))
    }

    fn to_device<const D: usize>(state: State<D>, device: &Device) -> State<D> {
        State(AdamW::to_device(state.0, device))
    }
}

/// The weights after update `time`, and the state of the optimizer.
fn next<const D: usize>(
    time: usize,
    [weights, first, second]: [Tensor<D>; 3],
) -> (Tensor<D>, Option<State<D>>) {
    let momentum = AdaptiveMomentumState::new(time, first, second);
    (weights, Some(State(AdamWState::new(momentum))))
}

/// Sum of squares in one pass, for a tensor in host memory that is readable without a copy; else `None`.
pub(super) fn sum_of_squares<const D: usize>(x: &Tensor<D>) -> Option<f64> {
    #[cfg(feature = "tch")]
    if let Some(sum) = libtorch::sum_of_squares(x) {
        return Some(sum);
    }
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(all_squares(x.as_slice()?))
}

fn all_squares(x: &[f32]) -> f64 {
    // Chunks of a fixed size, so that the sum does not depend on the number of threads.
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(squares).collect();
    sums.into_iter().sum()
}

/// Updates weights and both moments, given in this order.
fn in_place<const D: usize>(
    numbers: Numbers,
    tensors: [Tensor<D>; 3],
    grad: Tensor<D>,
) -> [Tensor<D>; 3] {
    let device = grad.device();
    #[cfg(feature = "tch")]
    if device != Device::flex() {
        return libtorch::in_place(numbers, tensors, grad);
    }
    let mut data = tensors.map(Tensor::into_data);
    let grad = grad.into_data();
    let slices = data.each_mut().map(floats);
    update_all(numbers, slices, grad.as_slice().expect("as the weights"));
    data.map(|data| Tensor::from_data(data, &device))
}

fn update_all(numbers: Numbers, [weights, first, second]: [&mut [f32]; 3], grad: &[f32]) {
    weights
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((w, g), m), v)| update(numbers, w, g, m, v));
}

/// libtorch's tensors on the CPU, without a copy to data of Burn's own.
#[cfg(feature = "tch")]
#[allow(deprecated)] // Burn will drop libtorch one day
mod libtorch {
    use abkd_host::libtorch::{Primitive, dense, is_dense, read, write};
    use burn::backend::LibTorch;
    use burn::tensor::Tensor;

    use super::{Numbers, all_squares, update_all};

    pub(super) fn in_place<const D: usize>(
        numbers: Numbers,
        tensors: [Tensor<D>; 3],
        grad: Tensor<D>,
    ) -> [Tensor<D>; 3] {
        let mut tensors = tensors.map(primitive);
        let grad = dense(primitive(grad));
        update_all(numbers, tensors.each_mut().map(write), read(&grad));
        tensors.map(Tensor::from_primitive::<LibTorch>)
    }

    pub(super) fn sum_of_squares<const D: usize>(x: &Tensor<D>) -> Option<f64> {
        let x = x.clone().try_into_primitive::<LibTorch>().ok()?;
        is_dense::<f32>(&x).then(|| all_squares(read(&x)))
    }

    fn primitive<const D: usize>(x: Tensor<D>) -> Primitive {
        let x = x.try_into_primitive::<LibTorch>();
        x.unwrap_or_else(|_| panic!("the caller checks the device"))
    }
}

fn floats(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("moments are as the weights")
}

#[derive(Clone, Copy)]
pub(super) struct Numbers {
    pub beta_1: f32,
    pub beta_2: f32,
    pub bias_1: f32,
    pub bias_2: f32,
    pub epsilon: f32,
    /// 1 - lr x decay
    pub keep: f32,
    pub lr: f32,
    /// Of the gradient.
    pub factor: f32,
}

dispatch!(update => update_scan(n: Numbers, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]));

dispatch!(squares => sum_squares(x: &[f32]) -> f64);

#[inline(always)]
fn sum_squares(x: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = chunk[i].mul_add(chunk[i], lanes[i]);
        }
    }
    let rest: f32 = rest.iter().map(|x| x * x).sum();
    lanes.iter().chain([&rest]).map(|&x| f64::from(x)).sum()
}

#[inline(always)]
fn update_scan(n: Numbers, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * n.factor;
        *m = *m * n.beta_1 + g * (1.0 - n.beta_1);
        *v = *v * n.beta_2 + g * g * (1.0 - n.beta_2);
        let delta = (*m / n.bias_1) / ((*v / n.bias_2).sqrt() + n.epsilon);
        *w = *w * n.keep - delta * n.lr;
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::AdamWConfig;
    use burn::tensor::Distribution;

    use super::*;

    #[test]
    fn it_is_burns_bit_by_bit() {
        is_burns(&Device::flex(), 0.0);
    }

    #[cfg(feature = "tch")]
    #[test]
    fn on_libtorch_it_is_burns_but_for_rounding() {
        is_burns(&abkd_host::libtorch().unwrap(), 5e-7);
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn on_wgpu_it_is_burns_but_for_rounding() {
        let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
        is_burns(&device, 1e-6);
    }

    /// `tolerance` is relative to the value, or to 1 where that is smaller.
    fn is_burns(device: &Device, tolerance: f32) {
        let alike = |ours: TensorData, theirs: TensorData| {
            let (ours, theirs) = (ours.as_slice::<f32>(), theirs.as_slice::<f32>());
            for (a, b) in ours.unwrap().iter().zip(theirs.unwrap()) {
                assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} {b}");
            }
        };
        for decay in [0.0f32, 0.01] {
            let burn = AdamWConfig::new()
                .with_beta_2(0.98)
                .with_epsilon(1e-8)
                .with_weight_decay(decay)
                .build();
            let fused = FusedAdamW {
                burn: burn.clone(),
                beta_1: 0.9,
                beta_2: 0.98,
                epsilon: 1e-8,
                weight_decay: decay,
                factor: Factor::default(),
            };
            let random = || Tensor::<2>::random([130, 257], Distribution::Normal(0.0, 1.0), device);
            let start = random();
            let (mut ours, mut theirs) = ((start.clone(), None), (start, None));
            for step in 0..5 {
                // Rows that lie apart.
                let grad = Tensor::<2>::random([130, 300], Distribution::Normal(0.0, 1.0), device);
                let grad = grad.slice([0..130, 0..257]);
                let lr = 1e-3 / f64::from(step + 1);
                let factor = 1.0 - 0.17 * step as f32;
                fused.factor.set(factor);
                ours = fused.step(lr, ours.0, grad.clone(), ours.1);
                theirs = burn.step(lr, theirs.0, grad * factor, theirs.1);
                alike(ours.0.to_data(), theirs.0.to_data());
            }
            let burns = |s: Option<State<2>>| s.map(|s| s.0);
            let moments = |s: Option<AdamWState<2>>| {
                let m = s.unwrap().momentum;
                (m.time, m.moment_1.into_data(), m.moment_2.into_data())
            };
            let ((time, first, second), theirs) = (moments(burns(ours.1)), moments(theirs.1));
            assert_eq!(time, theirs.0);
            alike(first, theirs.1);
            alike(second, theirs.2);
        }
    }
}
