use abkd_data::{Sequence, collate};
use abkd_losses::{Divergence, Fidelity};
use abkd_models::{ModelConfig, params};
use burn::module::{ModuleMapper, Param};
use burn::tensor::activation::log_softmax;
use serde_json::{Value, json};

use super::*;

const VOCAB: usize = 11;

fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 8, "n_embd": 6, "n_layer": 1, "n_head": 2,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.3,
    })
}

fn llama(tied: bool) -> Value {
    json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 6, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8,
        "tie_word_embeddings": tied, "initializer_range": 0.3,
    })
}

fn model(config: Value, seed: u64) -> LanguageModel {
    let config: ModelConfig = serde_json::from_value(config).unwrap();
    config.init(seed, &Device::flex())
}

/// Three examples, numbered 343 to 345; only the last one has token 9.
fn sequences() -> [Sequence; 3] {
    let sequence = |example, tokens: &[u32], prompt_len| Sequence {
        example,
        tokens: tokens.to_vec(),
        prompt_len,
    };
    [
        sequence(343, &[1, 2, 3, 4, 0], 2),
        sequence(344, &[5, 6, 7, 0], 1),
        sequence(345, &[9, 1, 3, 0], 2),
    ]
}

fn data() -> Batch {
    collate(&sequences().iter().collect::<Vec<_>>())
}

fn objective() -> Objective {
    Objective::Distill {
        divergence: Divergence::forward_kl(),
        fidelity: Fidelity::Paper,
        kd_ratio: 0.3,
    }
}

/// The gradient of every parameter, by name.
fn by_name(model: &LanguageModel, grads: &GradientsParams) -> Vec<(String, Vec<f32>)> {
    params::list(model)
        .into_iter()
        .map(|p| {
            let data = if p.shape.len() == 1 {
                grads.get::<1>(p.id).unwrap().into_data()
            } else {
                grads.get::<2>(p.id).unwrap().into_data()
            };
            (p.name, data.try_to_vec::<f32>().unwrap())
        })
        .collect()
}

#[test]
fn a_tied_embedding_has_the_gradients_of_both_its_uses() {
    for config in [gpt2(), llama(true), llama(false)] {
        let student = model(config.clone(), 1).train();
        let teacher = model(config, 2);
        let batch = data();
        let scale = 0.2;
        // The same loss in one autodiff graph, from the token ids on.
        let log_q = log_softmax(student.logits(target_rows(&student, &batch)), 1);
        let log_p = log_softmax(teacher.logits(target_rows(&teacher, &batch)), 1);
        let log_p = Tensor::from_inner(log_p);
        let ids: Vec<i32> = labels(&batch).into_iter().map(|l| l as i32).collect();
        let n = ids.len();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), &log_q.device());
        let cross_entropy = log_q.clone().gather(1, ids).sum().neg();
        let kl = (log_p.clone().exp() * (log_p - log_q)).sum();
        let dense = (cross_entropy * 0.7 + kl * 0.3) * scale;
        let expected_loss = f64::from(dense.clone().into_scalar::<f32>());
        let expected = GradientsParams::from_grads(dense.backward(), &student);
        let part = Part {
            batch: Cow::Owned(batch),
            objective: Cow::Owned(objective()),
            first_row: 0,
            scale,
            from_data: true,
            seed: 0,
        };
        let teacher = Some(Teacher {
            model: &teacher,
            cache: None,
        });
        for checkpointing in [false, true] {
            let three_rows = 3 * 4 * VOCAB * 2; // for both models
            let phases = &mut Phases::default();
            let (loss, grads) =
                gradients(&student, teacher, &part, checkpointing, three_rows, phases).unwrap();
            assert!((loss / expected_loss - 1.0).abs() < 1e-5);
            let expected = by_name(&student, &expected);
            for ((name, got), (_, expected)) in by_name(&student, &grads).iter().zip(&expected) {
                let largest = expected.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
                for (a, b) in got.iter().zip(expected) {
                    assert!((a - b).abs() <= 1e-5 * largest, "{name}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn an_error_names_the_term_the_example_and_the_row() {
    /// Makes the embedding of token 9 NaN.
    struct Spoil(Option<burn::module::ParamId>);
    impl ModuleMapper for Spoil {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if Some(param.id) != self.0 {
                return param;
            }
            param.map(|weights| {
                let (mut data, device) = (weights.to_data(), weights.device());
                data.as_mut_slice::<f32>().unwrap()[9 * 6] = f32::NAN;
                Tensor::from_data(data, &device)
            })
        }
    }
    let sound = model(llama(false), 1);
    let embedding = params::list(&sound)
        .into_iter()
        .find(|p| p.name == "model.embed_tokens.weight");
    let student = sound.map(&mut Spoil(embedding.map(|p| p.id))).train();
    for (micro_batch_size, parallel_micro_batches) in [(None, 1), (Some(1), 1), (Some(2), 2)] {
        let mut optimizer = optim::adamw(&student, 0.01, 0.999);
        let term = Term {
            batch: data(),
            objective: Objective::CrossEntropy,
            weight: 1.0,
            from_data: true,
        };
        let how = Update {
            learning_rate: 1e-3,
            max_grad_norm: 1.0,
            micro_batch_size,
            parallel_micro_batches,
            gradient_checkpointing: false,
            seed: 0,
            step: 11,
        };
        let phases = Phases::default();
        let error =
            update(student.clone(), &mut optimizer, None, &[term], &how, phases).unwrap_err();
        // 3 + 3 response tokens come before
        assert_eq!(
            error.to_string(),
            "update 12, example 345: student logits, row 6: a logit is NaN or +inf"
        );
    }
    let [first, second, third] = sequences();
    let batches = [collate(&[&first, &second]), collate(&[&third])];
    assert_eq!(
        cross_entropy(&student, &batches).unwrap_err().to_string(),
        "validation, example 345: student logits, row 6: a logit is NaN or +inf"
    );
}

#[test]
fn micro_batches_side_by_side_and_recomputed_layers_drop_the_same_numbers() {
    let mut config = gpt2();
    for key in ["embd_pdrop", "attn_pdrop", "resid_pdrop"] {
        config[key] = 0.4.into();
    }
    config["n_layer"] = 3.into();
    let weights = |seed, parallel_micro_batches, gradient_checkpointing| {
        let student = model(config.clone(), 1).train();
        let mut optimizer = optim::adamw(&student, 0.01, 0.999);
        let term = Term {
            batch: data(),
            objective: Objective::CrossEntropy,
            weight: 1.0,
            from_data: true,
        };
        let how = Update {
            learning_rate: 1e-3,
            max_grad_norm: 1e9,
            micro_batch_size: Some(1),
            parallel_micro_batches,
            gradient_checkpointing,
            seed,
            step: 0,
        };
        let phases = Phases::default();
        let (student, _) = update(student, &mut optimizer, None, &[term], &how, phases).unwrap();
        params::values(&student.valid())
    };
    let one_by_one = weights(0, 1, false);
    assert!(one_by_one != weights(9, 1, false));
    for (parallel, checkpointing) in [(3, false), (1, true), (3, true)] {
        assert!(one_by_one == weights(0, parallel, checkpointing));
    }
}
