//! Fine-tuning: cross-entropy on the data, no teacher.

use super::fixed::{Fixed, NoSettings};
use super::{Behaviour, Driver, Entry, Parts, no_loss, parse};
use crate::head::Objective;

pub(super) const ENTRY: Entry = Entry {
    id: "sft",
    about: "cross-entropy on the data",
    build: |loss, settings| {
        no_loss(loss)?;
        parse::<NoSettings>(settings)?;
        Ok(Box::new(Sft))
    },
};

#[derive(Debug)]
pub(super) struct Sft;

impl Behaviour for Sft {
    fn parts(&self) -> Parts {
        Parts::new(ENTRY.id, None, &NoSettings {})
    }

    fn driver(&self, _: f64) -> Box<dyn Driver> {
        Box::new(Fixed(Objective::CrossEntropy))
    }

    fn needs_teacher(&self) -> bool {
        false
    }

    fn uses_teacher_on_data(&self) -> bool {
        false
    }
}
