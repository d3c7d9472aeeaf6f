//! Checkpoints of a run: all state that the next step depends on.
//!
//! `<run>/state-<step>/` holds the trained parameters (`student.bpk`), the optimizer (`optimizer.bpk`), `state.json` and a seal. A
//! checkpoint is written atomically: its folder is renamed once it is complete and synced, and only then are older ones
//! removed. A run can be killed or lose power at any moment and still finds a complete checkpoint.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use abkd_host::files;
use abkd_host::seal::{self, Seal};
use abkd_models::LanguageModel;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Tensor};
use serde::{Deserialize, Serialize};

use crate::log::Mark;
use crate::optim::AdamW;
use crate::trainer::ValidationRecord;
use crate::{Error, folders};

/// Progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Hash of all inputs of the run; the checkpoint of another run is refused.
    pub fingerprint: String,
    /// Updates done. Data order, dropout and learning rate are functions of this number.
    pub step: usize,
    /// Sum of the losses since the last validation.
    pub loss_sum: f64,
    /// One record for each validation.
    pub curve: Vec<ValidationRecord>,
    /// Response tokens so far that the teacher's distribution was needed for.
    pub teacher_tokens: u64,
    /// The part of `teacher_tokens` whose hidden states were in the cache.
    pub cached_tokens: u64,
    /// Length and hash of `steps.jsonl` at the checkpoint.
    pub log: Mark,
    /// State of the method: replay buffer, rollouts, threshold.
    #[serde(default)]
    pub method: serde_json::Value,
}

const PREFIX: &str = "state-";
const STUDENT: &str = "student.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// Minimum time between checkpoints that nothing else asks for, as a multiple of the time to save one.
const SAVES: u32 = 20;

/// Saves the checkpoints of a run, one after the other. Beside a training on a card, another thread writes them.
pub struct Saver<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    beside: bool,
    /// Minimum time between checkpoints that nothing else asks for.
    least: Duration,
    /// The same, raised where saving takes long.
    interval: Duration,
    last: Instant,
    /// Writes the last checkpoint, and returns the time that saving it took.
    writes: Option<ScopedJoinHandle<'scope, Result<Duration, Error>>>,
}

impl<'scope, 'env> Saver<'scope, 'env> {
    /// A saver whose threads end before `scope`; `beside`: the training goes on while a checkpoint is written.
    pub fn new(scope: &'scope Scope<'scope, 'env>, least: Duration, beside: bool) -> Self {
        Self {
            scope,
            beside,
            least,
            interval: least,
            last: Instant::now(),
            writes: None,
        }
    }

    /// Whether the last checkpoint is written and old.
    ///
    /// # Errors
    ///
    /// When it could not be written, as soon as that is known.
    pub fn due(&mut self) -> Result<bool, Error> {
        if self.writes.as_ref().is_some_and(|t| t.is_finished()) {
            self.wait()?;
        }
        Ok(self.writes.is_none() && self.last.elapsed() > self.interval)
    }

    /// Saves a checkpoint. When it is complete, older ones and `replaced` are removed. No other may be on its way.
    ///
    /// # Errors
    ///
    /// When it cannot be written, unless another thread writes it; the previous checkpoint is then still there.
    pub fn save(
        &mut self,
        run: &Path,
        state: &State,
        student: &LanguageModel,
        optimizer: &AdamW,
        replaced: Vec<PathBuf>,
    ) -> Result<(), Error> {
        assert!(self.writes.is_none(), "the last one was waited for");
        let begun = Instant::now();
        let checkpoint = Checkpoint {
            target: run.join(format!("{PREFIX}{:09}", state.step)),
            state: state.clone(),
            replaced,
        };
        let fail = |e: burn::store::RecordError| Error::checkpoint(&checkpoint.target, e);
        let trained = ParamGroup::from_ids(trained(student));
        let student = student.valid().into_record_group(trained);
        if self.beside {
            // A record of a card's tensors is read when it is used, and the next update writes over them.
            let student = student.into_bytes().map_err(fail)?;
            let optimizer = optimizer.to_record().into_bytes().map_err(fail)?;
            self.writes = Some(self.scope.spawn(move || {
                checkpoint.write(|partial| {
                    for (name, bytes) in [(STUDENT, student), (OPTIMIZER, optimizer)] {
                        let path = partial.join(name);
                        fs::write(&path, &*bytes).map_err(Error::io(&path))?;
                    }
                    Ok(())
                })?;
                Ok(begun.elapsed())
            }));
        } else {
            checkpoint.write(|partial| {
                student.save(partial.join(STUDENT)).map_err(fail)?;
                let optimizer = optimizer.to_record();
                optimizer.save(partial.join(OPTIMIZER)).map_err(fail)
            })?;
            self.interval = self.least.max(SAVES * begun.elapsed());
        }
        self.last = Instant::now();
        Ok(())
    }

    /// Waits until the last checkpoint is written.
    ///
    /// # Errors
    ///
    /// When it could not be written; the previous checkpoint is then still there.
    pub fn wait(&mut self) -> Result<(), Error> {
        if let Some(thread) = self.writes.take() {
            let written = thread.join();
            let took = written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            self.interval = self.least.max(SAVES * took);
        }
        Ok(())
    }
}

/// A checkpoint without its tensors.
struct Checkpoint {
    target: PathBuf,
    state: State,
    replaced: Vec<PathBuf>,
}

impl Checkpoint {
    /// Writes the checkpoint's folder, then removes older ones and what it replaces; `tensors` writes student and optimizer.
    fn write(&self, tensors: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
        let target = &self.target;
        let json = serde_json::to_vec_pretty(&self.state);
        let json = json.map_err(|e| Error::checkpoint(target, e))?;
        let mut replaces = checkpoints(&files::folder_of(target))?;
        replaces.retain(|old| old != target);
        replaces.extend_from_slice(&self.replaced);
        folders::publish(target, &self.state.fingerprint, &replaces, |partial| {
            tensors(partial)?;
            let path = partial.join(STATE);
            fs::write(&path, json).map_err(Error::io(&path))
        })
    }
}

/// The state of the newest checkpoint and the seal of its folder, if there is a checkpoint.
///
/// # Errors
///
/// When it belongs to another run, is damaged, or cannot be read.
pub fn find(run: &Path, fingerprint: &str) -> Result<Option<(State, Seal)>, Error> {
    let Some(dir) = checkpoints(run)?.pop() else {
        return Ok(None);
    };
    let anew = anew(&dir);
    let untrusted = |error: seal::Error| Error::untrusted(error, &anew);
    // Checked before the seal: "another run" is a clearer message than a checksum error.
    let path = dir.join(STATE);
    if let Ok(state) = files::read(&path, files::TEXT_LIMIT)
        && let Ok(state) = serde_json::from_slice::<State>(&state)
        && state.fingerprint != fingerprint
    {
        return Err(Error::checkpoint(
            &dir,
            format!(
                "this checkpoint belongs to another run (its fingerprint is {}, this run's is {fingerprint}); {anew}",
                state.fingerprint
            ),
        ));
    }
    let seal = Seal::open(&dir, fingerprint).map_err(untrusted)?;
    let text = seal.read(STATE).map_err(untrusted)?;
    let state = serde_json::from_slice(&text)
        .map_err(|e| Error::checkpoint(&path, format!("{e}; {anew}")))?;
    Ok(Some((state, seal)))
}

/// Loads student and optimizer from a checkpoint. `student` gives shape and device; `optimizer` makes the optimizer for
/// the loaded student. The checked bytes are loaded from memory: Burn would read a file only when its tensors are used,
/// and by then it may be removed.
///
/// # Errors
///
/// When a file is missing, damaged or of another shape.
pub fn load(
    seal: &Seal,
    student: LanguageModel,
    optimizer: impl FnOnce(&LanguageModel) -> AdamW,
) -> Result<(LanguageModel, AdamW), Error> {
    let dir = seal.folder();
    let anew = anew(dir);
    let read = |name: &str| {
        let content = seal.read(name).map_err(|e| Error::untrusted(e, &anew))?;
        Ok::<_, Error>(Bytes::from_bytes_vec(content))
    };
    let fail = |e: burn::store::RecordError| Error::checkpoint(dir, format!("{e}; {anew}"));
    let record = ModuleRecord::from_bytes(read(STUDENT)?).map_err(fail)?;
    let (found, wanted) = (record.len(), trained(&student).len());
    if found != wanted {
        return Err(Error::checkpoint(
            dir,
            format!("it holds {found} parameters, and {wanted} are trained; {anew}"),
        ));
    }
    let record = record.allow_partial(true);
    let student = student.try_load_record(record).map_err(fail)?;
    let optimizer = optimizer(&student);
    let optimizer = optimizer.with_state(read(OPTIMIZER)?).map_err(fail)?;
    Ok((student, optimizer))
}

/// The parameters that are trained. The others are those of the model that the run starts from.
fn trained(student: &LanguageModel) -> Vec<ParamId> {
    struct Trained(Vec<ParamId>);
    impl ModuleVisitor for Trained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.push(param.id);
            }
        }
    }
    let mut trained = Trained(Vec::new());
    student.visit(&mut trained);
    trained.0
}

fn anew(dir: &Path) -> String {
    format!("remove {} to restart the training", dir.display())
}

/// Complete checkpoint folders, oldest first.
///
/// # Errors
///
/// When the folder of the run cannot be read.
pub fn checkpoints(run: &Path) -> Result<Vec<PathBuf>, Error> {
    folders::entries(run, PREFIX)
}

#[cfg(test)]
mod tests {
    use abkd_models::ModelConfig;
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::optim;

    #[test]
    fn what_a_thread_cannot_write_is_an_error_and_the_last_checkpoint_stays() {
        let config: ModelConfig = serde_json::from_value(json!({
            "model_type": "gpt2", "vocab_size": 5, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 1,
        }))
        .unwrap();
        let student = config.init(1, &Device::flex()).train();
        let optimizer = optim::adamw(&student, 0.01, 0.999);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "no folder").unwrap();
        for beside in [true, false] {
            std::thread::scope(|scope| {
                let mut saver = Saver::new(scope, Duration::ZERO, beside);
                let save = |saver: &mut Saver, run: &Path, step| {
                    let state = State {
                        fingerprint: "a".into(),
                        step,
                        ..State::default()
                    };
                    saver.save(run, &state, &student, &optimizer, Vec::new())
                };
                for step in [1, 2] {
                    save(&mut saver, dir.path(), step).unwrap();
                    saver.wait().unwrap();
                }
                let mut end = save(&mut saver, &file, 3);
                assert_eq!(end.is_ok(), beside);
                // Known without another save.
                while end.is_ok() {
                    end = saver.due().map(drop);
                }
                let error = end.unwrap_err().to_string();
                assert!(error.contains(&file.display().to_string()), "{error}");
            });
            let (state, _) = find(dir.path(), "a").unwrap().unwrap();
            assert_eq!((state.step, checkpoints(dir.path()).unwrap().len()), (2, 1));
        }
    }

    /// A checkpoint holds what was saved, whatever the updates write while it is on its way.
    #[cfg(feature = "wgpu")]
    #[test]
    fn updates_do_not_reach_a_checkpoint_that_another_thread_writes() {
        use abkd_data::{Sequence, collate};
        use abkd_models::params;

        use crate::head::Objective;
        use crate::step::{Term, Update, update};
        use crate::timing::Phases;

        // 16 MB of embeddings: a file is written in windows of 8 MB.
        let config: ModelConfig = serde_json::from_value(json!({
            "model_type": "gpt2", "vocab_size": 32_768, "n_positions": 4, "n_embd": 128, "n_layer": 1, "n_head": 1,
        }))
        .unwrap();
        let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
        let first = config.init(1, &device).train();
        let mut optimizer = optim::adamw(&first, 0.01, 0.999);
        let tokens = vec![1, 2, 3, 0];
        let sequence = Sequence {
            example: 0,
            tokens,
            prompt_len: 1,
        };
        let updated = |student: LanguageModel, optimizer: &mut AdamW, step| {
            let term = Term {
                batch: collate(&[&sequence]),
                objective: Objective::CrossEntropy,
                weight: 1.0,
                from_data: true,
            };
            let how = Update {
                learning_rate: 1e-2,
                max_grad_norm: 1.0,
                micro_batch_size: None,
                parallel_micro_batches: 1,
                gradient_checkpointing: false,
                seed: 0,
                step,
            };
            let phases = Phases::default();
            update(student, optimizer, None, &[term], &how, phases)
                .unwrap()
                .0
        };
        let weights = |student: &LanguageModel| params::values(&student.valid());
        let student = updated(first.clone(), &mut optimizer, 0);
        let saved = weights(&student);
        let dir = tempfile::tempdir().unwrap();
        let second = std::thread::scope(|scope| {
            let mut student = student;
            let mut saver = Saver::new(scope, Duration::ZERO, true);
            let state = State {
                fingerprint: "a".into(),
                step: 1,
                ..State::default()
            };
            let run = dir.path();
            let begun = saver.save(run, &state, &student, &optimizer, Vec::new());
            begun.unwrap();
            // Not a copy, so that weights and moments are updated in place.
            student = updated(student, &mut optimizer, 1);
            let second = weights(&student);
            for step in 2..4 {
                student = updated(student, &mut optimizer, step);
            }
            saver.wait().unwrap();
            second
        });
        let (_, seal) = find(dir.path(), "a").unwrap().unwrap();
        let loaded = load(&seal, first, |student| optim::adamw(student, 0.01, 0.999)).unwrap();
        let (student, mut optimizer) = loaded;
        assert!(weights(&student) == saved);
        // Follows from the moments, too.
        let student = updated(student, &mut optimizer, 1);
        assert!(saved != second && weights(&student) == second);
    }
}
