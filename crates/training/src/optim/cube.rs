//! AdamW in one launch for each parameter, on a device that CubeCL serves.

use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
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
}

#[cube(launch)]
fn adamw_kernel(
    weights: &mut cubecl::prelude::Tensor<f32>,
    grad: &cubecl::prelude::Tensor<f32>,
    first: &mut cubecl::prelude::Tensor<f32>,
    second: &mut cubecl::prelude::Tensor<f32>,
    n: &Given,
) {
    let i = ABSOLUTE_POS;
    if i >= weights.len() {
        terminate!();
    }
    let g = grad[i];
    let m = first[i] * n.beta_1 + g * (1.0f32 - n.beta_1);
    let v = second[i] * n.beta_2 + g * g * (1.0f32 - n.beta_2);
    first[i] = m;
    second[i] = v;
    let delta = (m / n.bias_1) / ((v / n.bias_2).sqrt() + n.epsilon);
    weights[i] = weights[i] * n.keep - delta * n.lr;
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
    let primitive = |x: Tensor<D>| {
        let x = x.try_into_primitive::<CubeBackend>();
        into_contiguous(x.unwrap_or_else(|_| panic!("the caller checks the device")))
    };
    let own = |x: CubeTensor| if x.can_mut() { x } else { x.copy() };
    let [weights, first, second] = tensors.map(|x| own(primitive(x)));
    let grad = primitive(grad);
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
        ),
    );
    [weights, first, second].map(Tensor::from_primitive::<CubeBackend>)
}
