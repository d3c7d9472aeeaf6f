//! The choice between two divergences that is made once for a whole batch.

use burn::tensor::Tensor;

use crate::divergences::Form;
use crate::{Divergence, Error, Fidelity, Logits, value};

/// Chooses one of two divergences for a batch that is too large for one call, see [`Divergence::choice`].
pub struct Choice {
    members: [Divergence; 2],
    sums: [f64; 2],
}

impl Divergence {
    /// The choice between two members by their sums over all rows of a batch; `None` for a divergence whose rows do not
    /// depend on each other. A call of [`value_and_grad`](crate::value_and_grad) chooses by its own rows. A caller that
    /// splits a batch adds all parts to the choice, and then computes the chosen divergence.
    pub fn choice(&self, fidelity: Fidelity) -> Option<Choice> {
        let Form::Larger(members) = self.definition().form else {
            return None;
        };
        self.chooses_together(fidelity).then(|| Choice {
            members: members(self.values()).map(|member| member.with_view(self.view())),
            sums: [0.0; 2],
        })
    }
}

impl Choice {
    /// Adds rows. `logits` returns the student's and the teacher's logits, `[N, V]` each on a plain (not autodiff) device. It
    /// is called once for each member, so that no copy of them is kept.
    ///
    /// # Errors
    ///
    /// As [`value_and_grad`](crate::value_and_grad).
    pub fn add(&mut self, logits: impl Fn() -> Logits<Tensor<2>>) -> Result<(), Error> {
        for (sum, member) in self.sums.iter_mut().zip(&self.members) {
            let rows = value(member, Fidelity::Paper, logits())?;
            *sum += f64::from(rows.sum().into_scalar::<f32>());
        }
        Ok(())
    }

    /// The divergence with the larger sum, the first where both are equal, and the fidelity to compute it with.
    pub fn chosen(&self) -> (Divergence, Fidelity) {
        let [one, two] = self.sums;
        (self.members[usize::from(two > one)], Fidelity::Paper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn parts_choose_what_the_whole_batch_does() {
        let rows = |rows: [[f32; 3]; 2]| Tensor::<2>::from_floats(rows, &Device::flex());
        let alpha_net = Divergence::alpha_net(0.2, 0.9);
        let calm = [0.1, 0.0, 0.2];
        let peaked = [9.0, 0.0, 1.0];
        let mut seen = Vec::new();
        for (student, teacher) in [([calm, peaked], [peaked; 2]), ([peaked, calm], [calm; 2])] {
            let logits = Logits {
                student: rows(student),
                teacher: rows(teacher),
            };
            let mut choice = alpha_net.choice(Fidelity::Official).unwrap();
            for row in 0..2 {
                let part = || Logits {
                    student: logits.student.clone().narrow(0, row, 1),
                    teacher: logits.teacher.clone().narrow(0, row, 1),
                };
                choice.add(part).unwrap();
            }
            let (chosen, form) = choice.chosen();
            let value = |d, form| value(d, form, logits.clone()).unwrap();
            let whole = value(&alpha_net, Fidelity::Official).into_data();
            let parts = value(&chosen, form).into_data();
            whole.assert_approx_eq::<f32>(&parts, Default::default());
            seen.push(chosen);
        }
        assert_ne!(seen[0], seen[1]);
        assert!(alpha_net.choice(Fidelity::Paper).is_none());
        let plain = Divergence::forward_kl();
        assert!(plain.choice(Fidelity::Official).is_none());
    }
}
