//! Padded vocabularies: a checkpoint may have more rows of embedding and head than its tokenizer has tokens, and teacher and
//! student of one tokenizer different numbers of them. The rows beyond the tokenizer's tokens are left out, so that both models
//! give a probability to the same tokens, and no other is sampled.

use std::path::Path;

use super::{Wanted, base_shape, load_tokenizer};
use crate::spec::{ModelSpec, Spec};

/// Has the models of a spec leave out the rows beyond the tokenizer's tokens, if one of its checkpoints has such rows. Other
/// specs stay as they are. A file that is missing or wrong is left to the checks of the run.
pub fn leave_out_padding(root: &Path, spec: &mut Spec) {
    let p = &spec.profile;
    if p.teacher.checkpoint.is_none() && p.student.checkpoint.is_none() {
        return;
    }
    let Ok((tokenizer, _)) = load_tokenizer(&Wanted::of(root, spec)) else {
        return;
    };
    let tokens = tokenizer.vocab_size();
    // A student of some of the teacher's layers has the teacher's rows.
    let larger = |model: &ModelSpec| {
        model.layers.is_none()
            && base_shape(root, model, model).is_ok_and(|shape| shape.vocab_size() > tokens)
    };
    let models = [&p.teacher, &p.student];
    let padded = |model: &&ModelSpec| model.checkpoint.is_some() && larger(model);
    if !models.iter().any(padded) {
        return;
    }
    let [teacher, student] = models.map(|model| larger(model).then_some(tokens));
    spec.profile.teacher.vocabulary = teacher;
    spec.profile.student.vocabulary = student;
}
