//! A model's parameters by their Hugging Face names.

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};

use crate::{Error, LanguageModel};

/// A parameter as a checkpoint stores it.
pub struct NamedParam {
    /// Hugging Face name, e.g. `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// Shape as a checkpoint stores it.
    pub shape: Vec<usize>,
    /// Burn's id.
    pub id: ParamId,
}

/// Name, shape and id of every parameter, in the model's order.
pub fn list(model: &LanguageModel) -> Vec<NamedParam> {
    let read = read(model, false).into_iter();
    read.map(|(param, _)| param).collect()
}

/// Every parameter's values in the layout of a checkpoint.
pub fn values(model: &LanguageModel) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let read = read(model, true).into_iter();
    read.map(|(param, values)| (param.name, param.shape, values))
        .collect()
}

/// The parameters, and their values where these are asked for.
fn read(model: &LanguageModel, with_values: bool) -> Vec<(NamedParam, Vec<f32>)> {
    struct Reader {
        path: Path,
        with_values: bool,
        out: Vec<(NamedParam, Vec<f32>)>,
    }
    impl ModuleVisitor for Reader {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut shape = param.lazy_shape().to_vec();
            let mut values = match self.with_values {
                true => to_vec(param.val()),
                false => Vec::new(),
            };
            if D == 2 && self.path.transposed() {
                values = transpose(&values, shape[0], shape[1]);
                shape.reverse();
            }
            let param = NamedParam {
                name: self.path.name(),
                shape,
                id: param.id,
            };
            self.out.push((param, values));
        }
    }
    let mut reader = Reader {
        path: Path::default(),
        with_values,
        out: Vec::new(),
    };
    model.visit_parameters(&mut reader);
    reader.out
}

/// Replaces every parameter by the values that `f(name, shape)` returns, in the layout of a checkpoint; `None` keeps it.
///
/// # Errors
///
/// The first error of `f`; the model is then lost.
pub(crate) fn replace(
    model: LanguageModel,
    f: impl FnMut(&str, &[usize]) -> Result<Option<Vec<f32>>, Error>,
) -> Result<LanguageModel, Error> {
    struct Writer<F> {
        path: Path,
        f: F,
        error: Option<Error>,
    }
    impl<F: FnMut(&str, &[usize]) -> Result<Option<Vec<f32>>, Error>> ModuleMapper for Writer<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.error.is_some() {
                return param;
            }
            let dims = param.lazy_shape().to_vec();
            let transposed = D == 2 && self.path.transposed();
            let mut stored = dims.clone();
            if transposed {
                stored.reverse();
            }
            match (self.f)(&self.path.name(), &stored) {
                Ok(None) => param,
                Ok(Some(mut data)) => {
                    if transposed {
                        data = transpose(&data, stored[0], stored[1]);
                    }
                    let device = param.lazy_device();
                    param.map(|_| Tensor::from_data(TensorData::new(data, dims), &device))
                }
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            }
        }
    }
    let mut writer = Writer {
        path: Path::default(),
        f,
        error: None,
    };
    let model = model.map_parameters(&mut writer);
    match writer.error {
        Some(error) => Err(error),
        None => Ok(model),
    }
}

/// Draws the weights; see [`ModelConfig::init`](crate::ModelConfig::init).
pub(crate) fn draw(model: LanguageModel, seed: u64, std: f64) -> LanguageModel {
    let residual = 1.0 / (2.0 * model.config().layers() as f64).sqrt();
    let drawn = replace(model, |name, shape| {
        if shape.len() < 2 {
            return Ok(None);
        }
        let feeds_residual = ["c_proj.weight", "o_proj.weight", "down_proj.weight"]
            .iter()
            .any(|end| name.ends_with(end));
        let std = if feeds_residual { std * residual } else { std };
        let key = name.bytes().fold(seed, |h, b| mix(h ^ u64::from(b)));
        let n: usize = shape.iter().product();
        Ok(Some(
            (0..n as u64)
                .map(|i| (std * normal(key, i)) as f32)
                .collect(),
        ))
    });
    drawn.expect("a draw has no error")
}

/// Increment of SplitMix64's state.
pub(crate) const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Output of SplitMix64 (Steele, Lea and Flood 2014) for a state: a bijection that scatters all bits.
pub(crate) fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number in [0, 1) from 53 bits.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The `i`-th standard normal number of stream `key` (Box and Muller 1958).
fn normal(key: u64, i: u64) -> f64 {
    let u = 1.0 - unit(mix(key ^ mix(2 * i)));
    let v = unit(mix(key ^ mix(2 * i + 1)));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The values of a tensor on the host.
pub(crate) fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data_as::<f32>();
    data.try_into_vec().expect("converted to f32 above")
}

/// The values of data that was read as f32.
pub(crate) fn floats(data: &TensorData) -> &[f32] {
    data.as_slice().expect("read as f32")
}

pub(crate) fn transpose(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; data.len()];
    for (r, row) in data.chunks_exact(cols).enumerate() {
        for (c, &x) in row.iter().enumerate() {
            out[c * rows + r] = x;
        }
    }
    out
}

/// The current place of a walk through the modules.
#[derive(Default)]
struct Path {
    names: Vec<String>,
    containers: Vec<String>,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    fn name(&self) -> String {
        self.names.join(".")
    }

    /// A `Linear` is `[in, out]` in memory and `[out, in]` in a checkpoint; all else has the same layout in both.
    fn transposed(&self) -> bool {
        self.containers.last().is_some_and(|c| c == "Struct:Linear")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|i| normal(7, i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }

    #[test]
    fn transposes() {
        assert_eq!(
            transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
    }
}
