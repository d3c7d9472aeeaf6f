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
use burn::optim::OptimizerRecord;
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Tensor};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::log::Mark;
use crate::optim::AdamW;
use crate::trainer::ValidationRecord;

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

/// A checkpoint in host memory.
pub struct Snapshot {
    target: PathBuf,
    state: State,
    student: ModuleRecord,
    optimizer: OptimizerRecord,
    replaced: Vec<PathBuf>,
}

impl Snapshot {
    /// Reads student and optimizer from their device. `replaced` is removed once the checkpoint is complete.
    pub fn take(
        run: &Path,
        state: &State,
        student: &LanguageModel,
        optimizer: &AdamW,
        replaced: Vec<PathBuf>,
    ) -> Self {
        let trained = ParamGroup::from_ids(trained(student));
        Self {
            target: run.join(format!("{PREFIX}{:09}", state.step)),
            state: state.clone(),
            student: student.valid().into_record_group(trained),
            optimizer: optimizer.to_record(),
            replaced,
        }
    }

    /// Writes the checkpoint, then removes older ones and what it replaces.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written; the previous checkpoint is then still there.
    pub fn write(self) -> Result<(), Error> {
        let (target, state) = (self.target, self.state);
        let partial = files::temporary(&target).map_err(Error::io(&target))?;
        // Left by a failed attempt.
        files::remove_folder(&partial).map_err(Error::io(&partial))?;
        files::create_folder(&partial).map_err(Error::io(&partial))?;
        let fail = |e: burn::store::RecordError| Error::checkpoint(&target, e);
        self.student.save(partial.join(STUDENT)).map_err(fail)?;
        self.optimizer.save(partial.join(OPTIMIZER)).map_err(fail)?;
        let json = serde_json::to_vec_pretty(&state).map_err(|e| Error::checkpoint(&target, e))?;
        let path = partial.join(STATE);
        fs::write(&path, json).map_err(Error::io(&path))?;
        let mut replaces = checkpoints(&files::folder_of(&target))?;
        replaces.retain(|old| *old != target);
        replaces.extend(self.replaced);
        Ok(Seal::publish(
            &partial,
            &target,
            &state.fingerprint,
            &replaces,
        )?)
    }
}

/// Minimum time between checkpoints as a multiple of the time to save one, so that saving takes at most 5% of a training.
const SAVES: u32 = 20;

/// Saves the checkpoints of a run, one after the other, each on a thread of its own.
pub struct Saver<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    /// Whether the training goes on while a checkpoint is written.
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
    /// A saver whose threads end before `scope`.
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

    /// Whether the last checkpoint is old.
    pub fn due(&self) -> bool {
        self.last.elapsed() > self.interval
    }

    /// Saves a checkpoint, after the last one is written.
    ///
    /// # Errors
    ///
    /// When it cannot be taken, or the last one could not be written. The newest complete checkpoint is then still there.
    pub fn save(&mut self, take: impl FnOnce() -> Result<Snapshot, Error>) -> Result<(), Error> {
        self.wait()?;
        let begun = Instant::now();
        let snapshot = take()?;
        let write = move || snapshot.write().map(|()| begun.elapsed());
        self.writes = Some(self.scope.spawn(write));
        if !self.beside {
            self.wait()?;
        }
        self.last = Instant::now();
        Ok(())
    }

    /// Waits until the last checkpoint is written.
    ///
    /// # Errors
    ///
    /// When it could not be written. The newest complete checkpoint is then still there.
    pub fn wait(&mut self) -> Result<(), Error> {
        if let Some(thread) = self.writes.take() {
            let written = thread.join();
            let took = written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            self.interval = self.least.max(SAVES * took);
        }
        Ok(())
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
    crate::kept::entries(run, PREFIX)
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
        let take = |run: &Path, step| {
            let state = State {
                fingerprint: "a".into(),
                step,
                ..State::default()
            };
            Ok(Snapshot::take(
                run,
                &state,
                &student,
                &optimizer,
                Vec::new(),
            ))
        };
        for beside in [true, false] {
            std::thread::scope(|scope| {
                let mut saver = Saver::new(scope, Duration::from_secs(1000), beside);
                saver.save(|| take(dir.path(), 1)).unwrap();
                saver.save(|| take(dir.path(), 2)).unwrap();
                let begun = saver.save(|| take(&file, 3));
                assert_eq!(begun.is_ok(), beside);
                let error = begun.and_then(|()| saver.wait()).unwrap_err().to_string();
                assert!(error.contains(&file.display().to_string()), "{error}");
                saver.wait().unwrap();
            });
            let (state, _) = find(dir.path(), "a").unwrap().unwrap();
            assert_eq!((state.step, checkpoints(dir.path()).unwrap().len()), (2, 1));
        }
    }
}
