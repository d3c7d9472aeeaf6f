//! One objective on given sequences, for fine-tuning and distillation on the data.

use serde::{Deserialize, Serialize};

use super::{Driver, Moment};
use crate::head::Objective;
use crate::step::Term;
use crate::{Error, Prepared};

/// Settings of methods that have none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoSettings {}

pub(super) struct Fixed(pub Objective);

impl Driver for Fixed {
    fn terms(&mut self, _: &mut Moment, data: Prepared) -> Result<Vec<Term>, Error> {
        Ok(vec![data.term(self.0.clone())])
    }
}
