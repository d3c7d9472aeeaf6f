//! AdamW as in PyTorch, learning-rate schedules, and clipping of the *global* gradient norm.

#[cfg(feature = "cube")]
mod cube;
mod fused;

use abkd_host::fault;
use abkd_models::{LanguageModel, params};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, OptimizerRecord};
use burn::store::RecordError;
use burn::tensor::{Bytes, Tensor};

use fused::{Factor, FusedAdamW};

/// AdamW, which scales the gradients as it reads them: clipping needs no pass over memory of its own.
pub struct AdamW {
    optimizer: ModuleOptimizer,
    /// Of the gradients of this update.
    factor: Factor,
}

impl AdamW {
    /// The model after an update with the gradients times `factor`, see [`clip_factor`].
    pub fn step(
        &mut self,
        learning_rate: f64,
        model: LanguageModel,
        grads: GradientsParams,
        factor: f64,
    ) -> LanguageModel {
        self.factor.set(factor as f32);
        self.optimizer.step(learning_rate, model, grads)
    }

    /// The moments. On a card they are read when the record is used.
    pub(crate) fn to_record(&self) -> OptimizerRecord {
        self.optimizer.to_record()
    }

    /// The same with the moments of a saved record.
    pub(crate) fn with_state(self, bytes: Bytes) -> Result<Self, RecordError> {
        let optimizer = self.optimizer.from_bytes(bytes)?;
        Ok(Self { optimizer, ..self })
    }
}

/// AdamW with betas (0.9, `beta_2`) and epsilon 1e-8; `weight_decay` on matrices, none on biases and
/// norms, i.e. on the parameters of rank 1.
pub fn adamw(model: &LanguageModel, weight_decay: f64, beta_2: f64) -> AdamW {
    let factor = Factor::default();
    let (beta_1, beta_2, epsilon) = (0.9, beta_2 as f32, 1e-8);
    let optimizer = |decay: f64| FusedAdamW {
        burn: AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(epsilon)
            .with_weight_decay(decay as f32)
            .build(),
        beta_1,
        beta_2,
        epsilon,
        weight_decay: decay as f32,
        factor: factor.clone(),
    };
    let vectors = params::list(model)
        .into_iter()
        .filter(|p| p.shape.len() == 1)
        .map(|p| p.id);
    let group = ParamGroup::from_ids(vectors.collect());
    let optimizer_of_vectors = optimizer(0.0);
    let optimizer = ModuleOptimizer::from(optimizer(weight_decay));
    AdamW {
        optimizer: optimizer.with_group(group, optimizer_of_vectors, None),
        factor,
    }
}

/// Learning rate of the update numbered `step` from 0: half a cosine from `peak` to `floor` over
/// `steps` updates, without warm-up.
pub fn cosine(step: usize, steps: usize, peak: f64, floor: f64) -> f64 {
    let turn = std::f64::consts::PI * step as f64
        / fault!(
            "cosine ends an update early",
            steps,
            steps.saturating_sub(1).max(1)
        ) as f64;
    floor + (peak - floor) * (1.0 + turn.cos()) / 2.0
}

/// Learning rate of the update numbered `step` from 0: linear from 0 over `warmup` updates, then `peak`
/// (`get_constant_schedule_with_warmup` of transformers).
pub fn constant_warmup(step: usize, warmup: usize, peak: f64) -> f64 {
    if step < warmup {
        peak * step as f64 / warmup as f64
    } else {
        peak
    }
}

/// Learning rate of the update numbered `step` from 0: linear from 0 over `warmup` updates, then half a cosine from
/// `peak` to 0 over the rest of `steps` (`get_cosine_schedule_with_warmup` of transformers).
pub fn cosine_warmup(step: usize, steps: usize, warmup: usize, peak: f64) -> f64 {
    if step < warmup {
        constant_warmup(step, warmup, peak)
    } else {
        cosine(
            step - warmup,
            steps.saturating_sub(warmup).max(1),
            peak,
            0.0,
        )
    }
}

/// L2 norm of all gradients together.
pub fn global_norm(model: &LanguageModel, grads: &GradientsParams) -> f64 {
    struct Squares<'a> {
        grads: &'a GradientsParams,
        /// Sum over the gradients in host memory.
        sum: f64,
        sums: Vec<Tensor<1>>,
        #[cfg(feature = "cube")]
        on_card: Option<cube::Squares>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(grad) = self.grads.get::<D>(param.id) else {
                return;
            };
            #[cfg(feature = "cube")]
            {
                let count = self.grads.len();
                let on_card = || cube::Squares::beside(&grad, count);
                self.on_card = self.on_card.take().or_else(on_card);
                if let Some(squares) = &mut self.on_card {
                    return squares.add(grad);
                }
            }
            match fused::sum_of_squares(&grad) {
                Some(sum) => self.sum += sum,
                None => self.sums.push(grad.square().sum()),
            }
        }
    }
    let mut visitor = Squares {
        grads,
        sum: 0.0,
        sums: Vec::new(),
        #[cfg(feature = "cube")]
        on_card: None,
    };
    model.visit(&mut visitor);
    #[cfg(feature = "cube")]
    if let Some(squares) = visitor.on_card {
        return squares.sum().sqrt();
    }
    if visitor.sums.is_empty() {
        return visitor.sum.sqrt();
    }
    let sums = Tensor::cat(visitor.sums, 0).into_data_as::<f32>();
    let sums = sums.as_slice::<f32>().expect("converted to f32 above");
    (visitor.sum + sums.iter().map(|&s| f64::from(s)).sum::<f64>()).sqrt()
}

/// What all gradients are multiplied by, so that their global norm is at most `limit`
/// (`torch.nn.utils.clip_grad_norm_`).
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    let factor = fault!("clipped to the square", limit, limit * limit * 0.5) / (norm + 1e-6);
    factor.min(1.0)
}

#[cfg(test)]
mod tests {
    use abkd_models::ModelConfig;
    use abkd_models::lora::{self, LoraConfig};
    use burn::module::ModuleMapper;
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_cosine_starts_at_the_peak_and_ends_near_the_floor() {
        assert_eq!(cosine(0, 10, 1.0, 0.1), 1.0);
        assert!((cosine(5, 10, 1.0, 0.1) - 0.55).abs() < 1e-12);
        assert!((cosine(10, 10, 1.0, 0.1) - 0.1).abs() < 1e-12);
    }

    fn model(config: &str) -> LanguageModel {
        let config: ModelConfig = serde_json::from_str(config).unwrap();
        config.init(1, &Device::flex())
    }

    fn gpt2() -> LanguageModel {
        model(
            r#"{"model_type":"gpt2","vocab_size":6,"n_positions":4,"n_embd":4,"n_layer":1,"n_head":2}"#,
        )
    }

    fn llama() -> LanguageModel {
        model(
            r#"{"model_type":"llama","vocab_size":6,"hidden_size":4,"intermediate_size":5,"num_hidden_layers":1,"num_attention_heads":2}"#,
        )
    }

    #[test]
    fn all_gradients_have_one_norm_and_are_clipped_by_it() {
        let model = gpt2();
        let params = params::list(&model);
        let id = |name: &str| params.iter().find(|p| p.name == name).unwrap().id;
        let ids = ["wte", "wpe"].map(|name| id(&format!("transformer.{name}.weight")));
        // one nonzero entry each: norms 0.3 and 0.4, 0.5 together
        let grads = || {
            let mut grads = GradientsParams::new();
            for (id, (rows, norm)) in ids.into_iter().zip([(6, 0.3), (4, 0.4)]) {
                let grad = Tensor::<2>::zeros([rows, 4], &Device::flex());
                let norm = Tensor::full([1, 1], norm, &Device::flex());
                grads.register(id, grad.slice_assign([1..2, 2..3], norm));
            }
            grads
        };
        let norm = global_norm(&model, &grads());
        assert!((norm - 0.5).abs() < 1e-6);
        // 0.35 is above the first norm and below the second
        assert!((clip_factor(norm, 0.35) - 0.7).abs() < 1e-5);
        assert_eq!(clip_factor(norm, 0.6), 1.0);
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn the_norm_on_a_card_is_the_norm() {
        use burn::tensor::TensorData;

        let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
        let model = llama();
        let wave = |rows: usize, columns: usize, device: &Device| {
            let numbers: Vec<f32> = (0..rows * columns)
                .map(|i| (i as f32 * 0.37).sin())
                .collect();
            Tensor::<2>::from_data(TensorData::new(numbers, [rows, columns]), device)
        };
        let norm = |device: &Device| {
            let mut grads = GradientsParams::new();
            let matrices = params::list(&model).into_iter();
            let matrices = matrices.filter(|p| p.shape.len() == 2);
            for (param, rows) in matrices.zip([1, 40, 700, 3, 90, 9, 300, 2, 8]) {
                // views, whose numbers do not lie side by side
                let grad = if rows % 2 == 0 {
                    wave(rows, 257, device).transpose()
                } else {
                    wave(rows, 300, device).slice([0..rows, 0..257])
                };
                grads.register(param.id, grad);
            }
            // more than one launch takes, and some are left
            assert_eq!(grads.len(), 9);
            global_norm(&model, &grads)
        };
        let (ours, exact) = (norm(&device), norm(&Device::flex()));
        assert!((ours / exact - 1.0).abs() < 1e-6, "{ours} {exact}");
    }

    /// Adds 2 to all weights, so that none is 0 and weight decay changes each of them.
    struct Shift;
    impl ModuleMapper for Shift {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|x| x + 2.0)
        }
    }

    /// Zero gradients for all trained parameters.
    struct Zeros(GradientsParams);
    impl ModuleVisitor for Zeros {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.register(param.id, param.val().inner().zeros_like());
            }
        }
    }

    #[test]
    fn matrices_and_adapters_decay_and_biases_and_norms_do_not() {
        let config: LoraConfig =
            serde_json::from_str(r#"{"r":2,"alpha":4.0,"target_modules":["q_proj"]}"#).unwrap();
        let adapted = lora::attach(llama(), &config, 1).unwrap();
        let all: fn(&str) -> bool = |name| {
            let parts: Vec<&str> = name.split('.').collect();
            let norm = |part: &&str| part.starts_with("ln_") || part.ends_with("norm");
            !(parts.ends_with(&["bias"]) || parts.iter().any(norm))
        };
        let adapters: fn(&str) -> bool = |name| name.contains("adapter");
        for (model, decays, count) in [(gpt2(), all, 6), (llama(), all, 9), (adapted, adapters, 2)]
        {
            let before = model.map(&mut Shift).train();
            let mut zeros = Zeros(GradientsParams::new());
            before.visit(&mut zeros);
            // With a zero gradient AdamW only applies the weight decay: a factor of 1 - 0.5 x 0.1.
            let after = adamw(&before, 0.1, 0.999).step(0.5, before.clone(), zeros.0, 1.0);
            let (before, after) = (params::values(&before), params::values(&after));
            let mut decayed = 0;
            for ((name, _, before), (_, _, after)) in before.iter().zip(&after) {
                let factor = if decays(name) { 0.95 } else { 1.0 };
                decayed += usize::from(decays(name));
                for (x, y) in before.iter().zip(after) {
                    assert!((y - factor * x).abs() < 1e-6, "{name}: {x} -> {y}");
                }
            }
            assert_eq!(decayed, count);
        }
    }
}
