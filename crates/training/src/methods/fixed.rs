//! One objective on given sequences: what fine-tuning and distillation on the data do.

use serde::{Deserialize, Serialize};

use super::{Driver, Moment};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared};

/// For methods without settings of their own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

pub(super) struct Fixed(Objective);

impl Fixed {
    pub(super) fn new(objective: Objective) -> Self {
        Self(objective)
    }
}

impl Driver for Fixed {
    fn terms(&mut self, _: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        Ok(vec![data.term(self.0.clone())])
    }
}
