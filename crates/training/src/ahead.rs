//! Data of the updates, prepared by another thread while the previous update runs.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use abkd_data::indexed::IndexedTokens;
use abkd_data::rng::Rng;
use abkd_data::{Batch, Sequence, batches_of_epoch, collate};

use crate::cache::TeacherCache;
use crate::head::Objective;
use crate::step::Term;
use crate::{Settings, TrainRun};

/// The data of one update.
pub struct Prepared<'a> {
    /// The update's sequences, in the epoch's order of batches.
    pub sequences: Vec<&'a Sequence>,
    /// The same sequences, collated.
    pub batch: Batch,
    /// Documents of the plain text, where the run has one.
    pub(crate) text: Option<Batch>,
}

impl Prepared<'_> {
    /// A term on the unchanged sequences.
    pub fn term(self, objective: Objective) -> Term {
        Term {
            batch: self.batch,
            objective,
            weight: 1.0,
            from_data: true,
        }
    }
}

/// Prepares the data of these updates, with a prefetch distance of one update. The thread sends all of them unless it
/// panics.
pub(crate) fn prepare<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    run: &TrainRun<'a>,
    steps: Range<usize>,
) -> (Receiver<Prepared<'a>>, ScopedJoinHandle<'scope, ()>) {
    let source = Source {
        sequences: run.sequences,
        settings: run.settings,
        cache: run.cache,
        text: run.text,
    };
    let (sender, receiver) = sync_channel(0);
    let thread = scope.spawn(move || {
        let per_epoch = source.settings.steps_an_epoch(source.sequences.len());
        let (mut epoch, mut batches) = (None, Vec::new());
        for step in steps {
            if epoch != Some(step / per_epoch) {
                epoch = Some(step / per_epoch);
                let (n, settings) = (source.sequences.len(), source.settings);
                let number = (step / per_epoch) as u64;
                batches = batches_of_epoch(n, settings.batch_size, settings.seed, number);
            }
            // The receiver is dropped when training stops.
            if sender
                .send(source.update(step, &batches[step % per_epoch]))
                .is_err()
            {
                break;
            }
        }
    });
    (receiver, thread)
}

struct Source<'a> {
    sequences: &'a [Sequence],
    settings: &'a Settings,
    cache: Option<&'a TeacherCache>,
    text: Option<&'a IndexedTokens>,
}

impl<'a> Source<'a> {
    fn update(&self, step: usize, indices: &[usize]) -> Prepared<'a> {
        let mut sequences: Vec<&Sequence> = indices.iter().map(|&i| &self.sequences[i]).collect();
        // So that micro-batches hold sequences of similar length.
        sequences.sort_by_key(|s| s.tokens.len());
        let batch = collate(&sequences);
        if let Some(cache) = self.cache {
            cache.fetch(&batch);
        }
        let text = self.text.map(|text| self.documents(text, step));
        Prepared {
            sequences,
            batch,
            text,
        }
    }

    /// Documents that depend on (seed, step) alone.
    fn documents(&self, text: &IndexedTokens, step: usize) -> Batch {
        let mut rng = Rng::new(&[self.settings.seed, step as u64, 6]);
        // A document of one token predicts nothing.
        let documents: Vec<Sequence> = std::iter::repeat_with(|| text.text(rng.below(text.len())))
            .filter(|d| d.tokens.len() > 1)
            .take(self.settings.batch_size)
            .collect();
        collate(&documents.iter().collect::<Vec<_>>())
    }
}
