//! A divergence on the data: KD with forward KL (Hinton et al. 2015), ABKD with the alpha-beta divergence (Wang et al.
//! 2025), or any other.

use abkd_losses::Divergence;

use super::fixed::{Fixed, NoSettings};
use super::{Behaviour, Driver, Entry, Loss, Parts, parse};

pub(super) const KD: Entry = Entry {
    id: "kd",
    about: "a divergence on the data, kd_ratio from the profile; default forward KL",
    build: |loss, settings| {
        parse::<NoSettings>(settings)?;
        Ok(Box::new(OnData(
            loss.unwrap_or(Loss::new(Divergence::forward_kl())),
        )))
    },
};

pub(super) const ABKD: Entry = Entry {
    id: "abkd",
    about: "the alpha-beta divergence on the data; `distillm` with divergence `ab` samples adaptively",
    build: |loss, settings| {
        parse::<NoSettings>(settings)?;
        let paper = Divergence::alpha_beta(0.2, 0.7);
        Ok(Box::new(OnData(loss.unwrap_or(Loss::new(paper)))))
    },
};

#[derive(Debug)]
struct OnData(Loss);

impl Behaviour for OnData {
    fn parts(&self) -> Parts {
        Parts::new(KD.id, Some(self.0), &NoSettings {})
    }

    fn driver(&self, kd_ratio: f64) -> Box<dyn Driver> {
        Box::new(Fixed(self.0.objective(kd_ratio)))
    }
}
