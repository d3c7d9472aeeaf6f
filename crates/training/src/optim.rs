//! AdamW as PyTorch's, cosine schedule, and clipping of the *global* gradient norm.

mod fused;

use abkd_models::{LanguageModel, params};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;

use fused::FusedAdamW;

/// AdamW with betas (0.9, `beta_2`) and epsilon 1e-8; `weight_decay` on matrices, none on biases and
/// norms, i.e. on the parameters of rank 1.
pub fn adamw(model: &LanguageModel, weight_decay: f64, beta_2: f64) -> ModuleOptimizer {
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
    };
    let vectors = params::list(model)
        .into_iter()
        .filter(|p| p.shape.len() == 1)
        .map(|p| p.id);
    let group = ParamGroup::from_ids(vectors.collect());
    ModuleOptimizer::from(optimizer(weight_decay)).with_group(group, optimizer(0.0), None)
}

/// Learning rate of the update numbered `step` from 0: half a cosine from `peak` to `floor` over
/// `steps` updates, without warm-up.
pub fn cosine(step: usize, steps: usize, peak: f64, floor: f64) -> f64 {
    let turn = std::f64::consts::PI * step as f64 / steps as f64;
    floor + (peak - floor) * (1.0 + turn.cos()) / 2.0
}

/// L2 norm of all gradients together.
pub fn global_norm(model: &LanguageModel, grads: &GradientsParams) -> f64 {
    struct Squares<'a> {
        grads: &'a GradientsParams,
        sums: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                self.sums.push(grad.square().sum());
            }
        }
    }
    let mut visitor = Squares {
        grads,
        sums: Vec::new(),
    };
    model.visit(&mut visitor);
    if visitor.sums.is_empty() {
        return 0.0;
    }
    let sums = Tensor::cat(visitor.sums, 0).into_data_as::<f32>();
    let sums = sums.as_slice::<f32>().expect("converted to f32 above");
    sums.iter().map(|&s| f64::from(s)).sum::<f64>().sqrt()
}

/// Scales all gradients such that their global norm is at most `limit`
/// (`torch.nn.utils.clip_grad_norm_`).
pub fn clip(
    model: &LanguageModel,
    grads: GradientsParams,
    norm: f64,
    limit: f64,
) -> GradientsParams {
    let factor = limit / (norm + 1e-6);
    if factor >= 1.0 {
        return grads;
    }
    struct Scale {
        from: GradientsParams,
        to: GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.from.remove::<D>(param.id) {
                self.to.register(param.id, grad * self.factor);
            }
        }
    }
    let mut visitor = Scale {
        from: grads,
        to: GradientsParams::new(),
        factor,
    };
    model.visit(&mut visitor);
    visitor.to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_starts_at_the_peak_and_ends_near_the_floor() {
        assert_eq!(cosine(0, 10, 1.0, 0.1), 1.0);
        assert!((cosine(5, 10, 1.0, 0.1) - 0.55).abs() < 1e-12);
        assert!((cosine(10, 10, 1.0, 0.1) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_global_norm_is_clipped_and_a_small_one_left_alone() {
        use burn::tensor::Device;
        let config: abkd_models::ModelConfig = serde_json::from_str(
            r#"{"model_type":"gpt2","vocab_size":6,"n_positions":4,"n_embd":4,"n_layer":1,"n_head":2}"#,
        )
        .unwrap();
        let model = config.init(1, &Device::flex());
        let grads = |value: f32| {
            let mut grads = GradientsParams::new();
            let ones = Tensor::<2>::ones([6, 4], &Device::flex());
            grads.register(model.head().id, ones * value);
            grads
        };
        // 24 entries of 2: the norm is 2 sqrt(24)
        let norm = global_norm(&model, &grads(2.0));
        assert!((norm - 2.0 * 24f64.sqrt()).abs() < 1e-5);
        let clipped = global_norm(&model, &clip(&model, grads(2.0), norm, 0.5));
        assert!((clipped - 0.5).abs() < 1e-5, "{clipped}");
        let small = global_norm(&model, &grads(0.01));
        let left = global_norm(&model, &clip(&model, grads(0.01), small, 0.5));
        assert!((left - small).abs() < 1e-9);
    }
}
