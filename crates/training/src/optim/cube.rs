//! AdamW in one launch for each parameter, and the gradient's norm in one for six, on a device that CubeCL serves.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeDim, calculate_cube_count_elemwise};

use super::fused::Numbers;

#[derive(CubeLaunch, CubeType)]
struct Given {
    beta_1: f32,
    beta_2: f32,
    bias_1: f32,
    bias_2: f32,
    epsilon: f32,
    keep: f32,
    lr: f32,
    factor: f32,
}

#[cube(launch)]
fn adamw_kernel(
    weights: &mut cubecl::prelude::Tensor<f32>,
    grad: &cubecl::prelude::Tensor<f32>,
    first: &mut cubecl::prelude::Tensor<f32>,
    second: &mut cubecl::prelude::Tensor<f32>,
    n: &Given,
    #[comptime] apart: bool,
) {
    let i = ABSOLUTE_POS;
    if i >= weights.len() {
        terminate!();
    }
    let g = grad[place(grad, i, apart)] * n.factor;
    let m = first[i] * n.beta_1 + g * (1.0f32 - n.beta_1);
    let v = second[i] * n.beta_2 + g * g * (1.0f32 - n.beta_2);
    first[i] = m;
    second[i] = v;
    let delta = (m / n.bias_1) / ((v / n.bias_2).sqrt() + n.epsilon);
    weights[i] = weights[i] * n.keep - delta * n.lr;
}

/// Where the number `i` of a tensor lies, whose rows may lie apart: CUDA's begin at multiples of 512 bytes.
#[cube]
fn place(x: &cubecl::prelude::Tensor<f32>, i: usize, #[comptime] apart: bool) -> usize {
    let mut at = i;
    if comptime!(apart) {
        at = i / x.shape(1) * x.stride(0) + i % x.shape(1);
    }
    at
}

/// Cubes that share a tensor's sum.
const SHARES: usize = 64;
/// Units per cube; no more than WebGPU grants everywhere.
const UNITS: u32 = 256;

/// Tensors whose squares one launch sums: WebGPU grants eight tensors everywhere, and one holds the sums.
const TOGETHER: usize = 6;

/// The squares of `count` tensors: row `first` and those after it get a sum for each cube. `apart` has a bit for each tensor,
/// see [`place`].
#[cube(launch)]
fn squares_kernel(
    a: &cubecl::prelude::Tensor<f32>,
    b: &cubecl::prelude::Tensor<f32>,
    c: &cubecl::prelude::Tensor<f32>,
    d: &cubecl::prelude::Tensor<f32>,
    e: &cubecl::prelude::Tensor<f32>,
    f: &cubecl::prelude::Tensor<f32>,
    to: &mut cubecl::prelude::Tensor<f32>,
    first: usize,
    #[comptime] count: usize,
    #[comptime] apart: u32,
    #[comptime] units: usize,
) {
    sum_squares(a, to, first, comptime!(apart & 1 != 0), units);
    if count > 1 {
        sum_squares(b, to, first + 1, comptime!(apart >> 1 & 1 != 0), units);
    }
    if count > 2 {
        sum_squares(c, to, first + 2, comptime!(apart >> 2 & 1 != 0), units);
    }
    if count > 3 {
        sum_squares(d, to, first + 3, comptime!(apart >> 3 & 1 != 0), units);
    }
    if count > 4 {
        sum_squares(e, to, first + 4, comptime!(apart >> 4 & 1 != 0), units);
    }
    if count > 5 {
        sum_squares(f, to, first + 5, comptime!(apart >> 5 & 1 != 0), units);
    }
}

#[cube]
fn sum_squares(
    x: &cubecl::prelude::Tensor<f32>,
    to: &mut cubecl::prelude::Tensor<f32>,
    row: usize,
    #[comptime] apart: bool,
    #[comptime] units: usize,
) {
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    let mut i = ABSOLUTE_POS;
    while i < x.len() {
        let number = x[place(x, i, apart)];
        sum += number * number;
        i += units * SHARES;
    }
    let mut sums = Shared::<[f32]>::new_slice(units);
    sums[unit] = sum;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    if unit == 0 {
        to[row * SHARES + CUBE_POS] = sums[0];
    }
}

/// Sums of squares of several tensors.
pub(super) struct Squares {
    /// `[tensors, SHARES]`, of which `filled` rows are written.
    to: CubeTensor,
    filled: usize,
    waiting: Vec<CubeTensor>,
}

impl Squares {
    /// Sums for at most `tensors` tensors, on the device of `x`; `None` if CubeCL does not serve this device.
    pub fn beside<const D: usize>(x: &Tensor<D>, tensors: usize) -> Option<Self> {
        let x = x.clone().try_into_primitive::<CubeBackend>().ok()?;
        let shape = Shape::new([tensors, SHARES]);
        Some(Self {
            to: empty_device_contiguous_dtype(x.client, x.device, shape, DType::F32),
            filled: 0,
            waiting: Vec::new(),
        })
    }

    pub fn add<const D: usize>(&mut self, x: Tensor<D>) {
        self.waiting.push(rows(x.cast(DType::F32)));
        if self.waiting.len() == TOGETHER {
            self.launch();
        }
    }

    fn launch(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let Some(last) = waiting.last() else {
            return;
        };
        let client = last.client.clone();
        let most = client.properties().hardware.max_units_per_cube;
        // a power of 2: sums halve the units until one is left
        let units = 1 << UNITS.min(most).ilog2();
        let apart = (0..)
            .zip(&waiting)
            .map(|(i, x)| u32::from(is_apart(x)) << i);
        let argument = |i: usize| waiting.get(i).unwrap_or(last).clone().into_tensor_arg();
        squares_kernel::launch(
            &client,
            CubeCount::Static(SHARES as u32, 1, 1),
            CubeDim::new_1d(units),
            argument(0),
            argument(1),
            argument(2),
            argument(3),
            argument(4),
            argument(5),
            self.to.clone().into_tensor_arg(),
            self.filled,
            waiting.len(),
            apart.sum(),
            units as usize,
        );
        self.filled += waiting.len();
    }

    pub fn sum(mut self) -> f64 {
        self.launch();
        let all = Tensor::<2>::from_primitive::<CubeBackend>(self.to);
        let sums = all.slice([0..self.filled, 0..SHARES]).sum_dim(1);
        let sums = sums.into_data_as::<f32>();
        let sums = sums.as_slice::<f32>().expect("converted to f32 above");
        sums.iter().map(|&s| f64::from(s)).sum()
    }
}

fn primitive<const D: usize>(x: Tensor<D>) -> CubeTensor {
    let x = x.try_into_primitive::<CubeBackend>();
    x.unwrap_or_else(|_| panic!("the caller checks the device"))
}

/// The numbers row after row. Rows may lie apart, see [`place`].
fn rows<const D: usize>(x: Tensor<D>) -> CubeTensor {
    let x = primitive(x);
    if D == 2 && x.meta.strides()[1] == 1 {
        x
    } else {
        into_contiguous(x)
    }
}

fn is_apart(rows: &CubeTensor) -> bool {
    !rows.is_contiguous()
}

/// Whether a tensor lies on such a device.
pub(super) fn serves<const D: usize>(x: &Tensor<D>) -> bool {
    x.clone().try_into_primitive::<CubeBackend>().is_ok()
}

/// Updates weights and both moments, given in this order, on a device that is served; all are of f32.
pub(super) fn in_place<const D: usize>(
    numbers: Numbers,
    tensors: [Tensor<D>; 3],
    grad: Tensor<D>,
) -> [Tensor<D>; 3] {
    let own = |x: CubeTensor| if x.can_mut() { x } else { x.copy() };
    let [weights, first, second] = tensors.map(|x| own(into_contiguous(primitive(x))));
    let grad = rows(grad);
    let apart = is_apart(&grad);
    let client = weights.client.clone();
    let count = weights.meta.num_elements();
    let dim = CubeDim::new(&client, count);
    adamw_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, count, dim),
        dim,
        weights.clone().into_tensor_arg(),
        grad.into_tensor_arg(),
        first.clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        GivenLaunch::new(
            numbers.beta_1,
            numbers.beta_2,
            numbers.bias_1,
            numbers.bias_2,
            numbers.epsilon,
            numbers.keep,
            numbers.lr,
            numbers.factor,
        ),
        apart,
    );
    [weights, first, second].map(Tensor::from_primitive::<CubeBackend>)
}
