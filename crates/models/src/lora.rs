//! Low-rank adapters (LoRA): Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022).
//!
//! An adapted projection computes `x W + (alpha / r) dropout(x) A B` with `A` `[in, r]` and `B` `[r, out]`; `W` and all else
//! are frozen. Files have PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), so Python's `peft` loads what
//! is written here, and the other way round.

mod peft;

use abkd_host::choice;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::ops;
use crate::params::{mix, unit};
use crate::{Error, LanguageModel};

pub use peft::{load, load_trainable, save, tensors};

/// Which projections are adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale `alpha / r`.
    pub alpha: f64,
    /// Dropout on the adapters' input while training.
    #[serde(default)]
    pub dropout: f64,
    /// Projections by name.
    #[serde(default = "q_and_v")]
    pub target_modules: Vec<String>,
    /// What training does with adapters that the model already has.
    #[serde(default, skip_serializing_if = "Start::is_default")]
    pub start: Start,
}

choice! {
    "lora.start"
    /// What training does with the adapters of a model that has some. A model without adapters gets new ones either way.
    #[derive(Default)]
    pub enum Start {
        /// They are trained further, as in the published code.
        #[default]
        Continue = "continue",
        /// They are folded into the weights, and new ones are trained.
        Merge = "merge",
    }
}

impl Start {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn q_and_v() -> Vec<String> {
    vec!["q_proj".into(), "v_proj".into()]
}

impl LoraConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] names the key.
    pub fn validate(&self) -> Result<(), Error> {
        if self.r == 0 {
            return Err(Error::setting("lora.r", 0, "the rank must be 1 or more"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            let reason = "it must be a positive number";
            return Err(Error::setting("lora.alpha", self.alpha, reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = "it must lie in [0, 1)";
            return Err(Error::setting("lora.dropout", self.dropout, reason));
        }
        let targets = &self.target_modules;
        let refuse = |value, reason| Err(Error::setting("lora.target_modules", value, reason));
        if targets.is_empty() {
            return refuse("[]", "name at least one layer");
        }
        for (i, name) in targets.iter().enumerate() {
            if targets[..i].contains(name) {
                return refuse(name, "this layer is named twice");
            }
        }
        Ok(())
    }

    /// Refuses to train adapters of another shape or scale further.
    fn check_same(&self, own: &Self) -> Result<(), Error> {
        let sorted = |config: &Self| {
            let mut names = config.target_modules.clone();
            names.sort();
            names.join(", ")
        };
        for (key, asked, found) in [
            ("r", self.r.to_string(), own.r.to_string()),
            ("alpha", self.alpha.to_string(), own.alpha.to_string()),
            ("target_modules", sorted(self), sorted(own)),
        ] {
            if asked != found {
                let reason = format!(
                    "the model's own adapter has {found}; give {key} that value to train it on, or start = \"merge\" for a new adapter"
                );
                return Err(Error::setting(format!("lora.{key}"), asked, reason));
            }
        }
        Ok(())
    }
}

/// The adapter of one projection.
#[derive(Module, Debug)]
pub struct Adapter {
    /// `A`, `[in, r]`
    pub a: Param<Tensor<2>>,
    /// `B`, `[r, out]`
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    pub(crate) scale: f64,
}

impl Adapter {
    /// `[N, in] -> [N, out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let low = ops::dropout::apply(x, &self.dropout).matmul(self.a.val()) * self.scale; // [N, r]
        low.matmul(self.b.val())
    }

    fn delta(&self) -> Tensor<2> {
        self.a.val().matmul(self.b.val()) * self.scale
    }
}

/// Freezes `model` and gives the target projections adapters that change nothing yet: `A` uniform in
/// +-1/sqrt(in) as in PEFT, drawn from `seed` and the projection's name; `B` zero.
///
/// # Errors
///
/// A setting out of range; a target that matches no layer, or an architecture without targets.
pub fn attach(
    model: LanguageModel,
    config: &LoraConfig,
    seed: u64,
) -> Result<LanguageModel, Error> {
    config.validate()?;
    let device = model.device();
    let mut model = model.frozen().no_grad();
    let mut matched = vec![false; config.target_modules.len()];
    let mut known = Vec::new();
    for (path, name, linear) in model.inner_mut().adaptable_mut() {
        if !known.contains(&name) {
            known.push(name);
        }
        let Some(target) = config.target_modules.iter().position(|t| t == name) else {
            continue;
        };
        matched[target] = true;
        let [input, output] = linear.weight.dims();
        let widest = input.max(output);
        if config.r > widest {
            let reason = format!("`{path}` is {widest} wide, and the rank must not exceed that");
            return Err(Error::setting("lora.r", config.r, reason));
        }
        let limit = 1.0 / (input as f64).sqrt();
        let key = path.bytes().fold(seed, |h, b| mix(h ^ u64::from(b)));
        let a = (0..(input * config.r) as u64)
            .map(|i| ((2.0 * unit(mix(key ^ mix(i))) - 1.0) * limit) as f32)
            .collect();
        let b = vec![0.0; config.r * output];
        linear.adapter = Some(adapter(a, b, [input, output], config, &device));
    }
    if let Some(miss) = matched.iter().position(|m| !m) {
        let reason = if known.is_empty() {
            "this architecture has no layer that can be adapted; LoRA is built for LLaMA".into()
        } else {
            format!("no layer has this name; there are {}", known.join(", "))
        };
        let name = &config.target_modules[miss];
        return Err(Error::setting("lora.target_modules", name, reason));
    }
    Ok(model)
}

/// Prepares `model` for training only its adapters. A model without adapters gets new ones ([`attach`]);
/// [`LoraConfig::start`] chooses what happens to existing ones. If they are trained further, they get the dropout of
/// `config`.
///
/// # Errors
///
/// As [`attach`]; adapters to be trained further whose rank, scale or targets differ from `config`.
pub fn adapt(
    mut model: LanguageModel,
    config: &LoraConfig,
    seed: u64,
) -> Result<LanguageModel, Error> {
    config.validate()?;
    let Some(own) = config_of(&mut model) else {
        return attach(model, config, seed);
    };
    if config.start == Start::Merge {
        return attach(merge(model), config, seed);
    }
    config.check_same(&own)?;
    let mut model = model.frozen().no_grad();
    for adapter in adapters_mut(&mut model) {
        adapter.a = adapter.a.clone().set_require_grad(true);
        adapter.b = adapter.b.clone().set_require_grad(true);
        adapter.dropout.prob = config.dropout;
    }
    Ok(model)
}

/// Rank, scale, dropout and targets of the adapters of `model`, if it has some.
fn config_of(model: &mut LanguageModel) -> Option<LoraConfig> {
    let mut config: Option<LoraConfig> = None;
    for (_, name, linear) in model.inner_mut().adaptable_mut() {
        let Some(adapter) = &linear.adapter else {
            continue;
        };
        let r = adapter.a.dims()[1];
        let config = config.get_or_insert_with(|| LoraConfig {
            r,
            // Removes the rounding error of the quotient.
            alpha: (adapter.scale * r as f64 * 1e9).round() / 1e9,
            dropout: adapter.dropout.prob,
            target_modules: Vec::new(),
            start: Start::Continue,
        });
        if !config.target_modules.iter().any(|t| t == name) {
            config.target_modules.push(name.into());
        }
    }
    config
}

/// Turns the adapters' dropout off.
pub(crate) fn without_dropout(model: &mut LanguageModel) {
    for adapter in adapters_mut(model) {
        adapter.dropout.prob = 0.0;
    }
}

fn adapters_mut(model: &mut LanguageModel) -> impl Iterator<Item = &mut Adapter> {
    let adaptable = model.inner_mut().adaptable_mut().into_iter();
    adaptable.filter_map(|(_, _, linear)| linear.adapter.as_mut())
}

fn adapter(
    a: Vec<f32>,
    b: Vec<f32>,
    [input, output]: [usize; 2],
    config: &LoraConfig,
    device: &Device,
) -> Adapter {
    let r = config.r;
    Adapter {
        a: Param::from_tensor(Tensor::from_data(TensorData::new(a, [input, r]), device)),
        b: Param::from_tensor(Tensor::from_data(TensorData::new(b, [r, output]), device)),
        dropout: DropoutConfig::new(config.dropout).init(),
        scale: config.alpha / r as f64,
    }
}

/// Folds the adapters into the weights, `W + (alpha / r) A B`, and makes all parameters trainable. A model without adapters
/// stays unchanged.
pub fn merge(mut model: LanguageModel) -> LanguageModel {
    let mut merged = false;
    for (_, _, linear) in model.inner_mut().adaptable_mut() {
        if let Some(adapter) = linear.adapter.take() {
            let delta = adapter.delta();
            let weight = linear.weight.clone();
            linear.weight = weight.map(|w| w.cast(DType::F32) + delta);
            merged = true;
        }
    }
    match merged {
        true => model.set_require_grad(true),
        false => model,
    }
}
