//! A divergence that the crate does not have, from two closures: the squared Hellinger distance, beside the same as a member
//! of the alpha-beta family. `cargo run --release -p abkd-losses --example own_loss`

use abkd_losses::{Divergence, Error, Fidelity, Logits, row};

fn main() -> Result<(), Error> {
    let (student, teacher) = ([0.3f32, -1.0, 2.0, 0.5], [1.0f32, -2.0, 1.5, 0.0]);
    let vocab = student.len();

    // f(p, q) = 2 (sqrt p - sqrt q)^2 and its slope df/dq = 2 (1 - sqrt(p / q))
    let f = |e: row::Entry| 2.0 * (e.p.sqrt() - e.q.sqrt()).powi(2);
    let slope = |e: row::Entry| 2.0 * (1.0 - (0.5 * (e.lp - e.lq)).exp());
    let (mut grad, mut value) = (student, [0.0]);
    let logits = Logits {
        student: &mut grad[..],
        teacher: &teacher[..],
    };
    row::own(f, slope, logits, vocab, &mut value)?;
    println!("2 closures   {:.6} {grad:.6?}", value[0]);

    let (mut grad, mut value) = (student, [0.0]);
    let logits = Logits {
        student: &mut grad[..],
        teacher: &teacher[..],
    };
    let hellinger = Divergence::alpha_beta(0.5, 0.5);
    row::divergence(&hellinger, Fidelity::Paper, logits, vocab, &mut value)?;
    println!("{hellinger}   {:.6} {grad:.6?}", value[0]);
    Ok(())
}
