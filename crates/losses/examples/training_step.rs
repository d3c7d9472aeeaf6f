//! A student that learns a teacher's distribution: a linear layer each, updates of AdamW.
//! `cargo run --release -p abkd-losses --features burn --example training_step`

use abkd_losses::{Divergence, Fidelity, Logits, divergence};
use burn::nn::LinearConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let abkd: Divergence = "ab:0.2,0.7".parse()?;
    let device = Device::flex().autodiff();
    let layer = LinearConfig::new(16, 100);
    let (teacher, mut student) = (layer.init(&device), layer.init(&device));
    let mut adamw = AdamWConfig::new().init();
    for update in 0..=200 {
        let x = Tensor::<2>::random([32, 16], Distribution::Normal(0.0, 1.0), &device);
        let logits = Logits {
            student: student.forward(x.clone()),
            teacher: teacher.forward(x), // a constant for the gradient
        };
        // [32], one value a row; a mask over tokens would be a product here
        let loss = divergence(&abkd, Fidelity::Paper, logits)?.mean();
        if update % 50 == 0 {
            println!(
                "update {update}: {:.4} nats",
                loss.clone().into_scalar::<f32>()
            );
        }
        let grads = GradientsParams::from_grads(loss.backward(), &student);
        student = adamw.step(1e-2, student, grads);
    }
    Ok(())
}
