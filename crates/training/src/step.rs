//! One update of the student.

use std::borrow::Cow;

use abkd_data::Batch;
use abkd_host::fault;
use abkd_models::{Checkpoints, LanguageModel, seed_dropout};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::cache::TeacherCache;
use crate::head::{HeadLoss, Objective, PolicyRows, Rows, chunk_bytes, head_loss, log_probs};
use crate::timing::{Phase, Phases};
use crate::{Error, optim};

/// A part of the loss: the mean of an objective over the response tokens of a batch.
#[derive(Clone, Debug)]
pub struct Term {
    /// Sequences.
    pub batch: Batch,
    /// Objective that is minimised on the batch.
    pub objective: Objective,
    /// Weight of the term in the loss.
    pub weight: f64,
    /// Whether the sequences are unchanged training data: the teacher's rows may then be cached.
    pub from_data: bool,
}

impl Term {
    /// A term of weight 1 on sequences that are not the training data's.
    pub(crate) fn sampled(batch: Batch, objective: Objective) -> Self {
        Self {
            batch,
            objective,
            weight: 1.0,
            from_data: false,
        }
    }
}

/// The teacher, with cached hidden states where there are some.
#[derive(Clone, Copy)]
pub struct Teacher<'a> {
    /// The model, on a plain device.
    pub model: &'a LanguageModel,
    /// Cache of the teacher's hidden states of the training data.
    pub cache: Option<&'a TeacherCache>,
}

/// Settings of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate.
    pub learning_rate: f64,
    /// Limit of the global gradient norm.
    pub max_grad_norm: f64,
    /// Sequences of a micro-batch; `None`: all. Gradients accumulate, and the loss is the mean over all
    /// tokens of the update.
    pub micro_batch_size: Option<usize>,
    /// Micro-batches that run in parallel.
    pub parallel_micro_batches: usize,
    /// Whether the student's layers are recomputed in the backward pass, see [`Checkpoints`].
    pub gradient_checkpointing: bool,
    /// Seed of dropout.
    pub seed: u64,
    /// Number of the update, counted from 0, for errors.
    pub step: usize,
}

impl Teacher<'_> {
    fn rows(&self, batch: &Batch) -> Result<Rows, Error> {
        let Some(cache) = self.cache else {
            return Ok(rows_of(self.model, batch));
        };
        Ok(Rows {
            hidden: cache.rows(batch, &self.model.device())?,
            head: self.model.head().val(),
            precision: self.model.precision(),
        })
    }
}

/// Report of an update.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Loss before the update, nats per response token.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Response tokens.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Response tokens that the teacher's distribution was needed for.
    pub teacher_tokens: usize,
    /// The part of `teacher_tokens` whose hidden states were in the cache.
    pub cached_tokens: usize,
    /// Time spent in each phase.
    pub phases: Phases,
}

/// Hidden states of the batch's target rows: `[N, d]`.
pub fn target_rows(model: &LanguageModel, batch: &Batch) -> Tensor<2> {
    let hidden = model.hidden_packed(token_ids(batch, &model.device()), &batch.lengths);
    select_targets(hidden, batch)
}

/// Ids of all tokens: `[M]`
fn token_ids(batch: &Batch, device: &Device) -> Tensor<1, Int> {
    indices(batch.input_ids.iter().map(|&t| t as i32), device)
}

/// `[M, d] -> [N, d]`
fn select_targets(hidden: Tensor<2>, batch: &Batch) -> Tensor<2> {
    let positions = target_positions(batch, &hidden.device());
    hidden.select(0, positions)
}

/// Gradient of [`select_targets`]: `[N, d] -> [M, d]`, zero at rows that are no targets.
fn spread_targets(rows: Tensor<2>, batch: &Batch) -> Tensor<2> {
    let (d, device) = (rows.dims()[1], rows.device());
    let positions = target_positions(batch, &device);
    Tensor::<2>::zeros([batch.input_ids.len(), d], &device).select_assign(
        0,
        positions,
        rows,
        IndexingUpdateOp::Add,
    )
}

fn target_positions(batch: &Batch, device: &Device) -> Tensor<1, Int> {
    indices(batch.targets.iter().map(|(at, _)| *at as i32), device)
}

fn indices(all: impl Iterator<Item = i32>, device: &Device) -> Tensor<1, Int> {
    let all: Vec<i32> = all.collect();
    let n = all.len();
    Tensor::from_data(TensorData::new(all, [n]), device)
}

/// Target rows and head of a model on a plain device.
pub fn rows_of(model: &LanguageModel, batch: &Batch) -> Rows {
    Rows {
        hidden: target_rows(model, batch),
        head: model.head().val(),
        precision: model.precision(),
    }
}

/// The tokens that the target rows predict.
pub fn labels(batch: &Batch) -> Vec<u32> {
    batch.targets.iter().map(|(_, label)| *label).collect()
}

/// One update: forward, loss, backward, clipping, AdamW.
///
/// `student` is on an autodiff device, `teacher` on a plain one. `phases` holds the time that the
/// preparation of the terms took.
///
/// # Errors
///
/// A NaN or infinite loss or gradient; vocabularies of different sizes.
pub fn update(
    student: LanguageModel,
    optimizer: &mut optim::AdamW,
    teacher: Option<Teacher>,
    terms: &[Term],
    how: &Update,
    mut phases: Phases,
) -> Result<(LanguageModel, StepReport), Error> {
    let parts = parts(terms, how);
    let chunk_bytes = chunk_bytes(&student.device());
    let work = |student: &LanguageModel, part: &Part, phases: &mut Phases| {
        // The teacher runs where there is no cache, and for sequences that are not in it.
        let teacher = teacher.map(|t| Teacher {
            cache: t.cache.filter(|_| part.from_data),
            ..t
        });
        gradients(
            student,
            teacher,
            part,
            how.gradient_checkpointing,
            chunk_bytes,
            phases,
        )
        .map_err(Error::in_update(how.step, &part.batch, part.first_row))
    };
    let mut loss = 0.0;
    let mut sum: GradientsAccumulator<LanguageModel> = GradientsAccumulator::new();
    for group in parts.chunks(how.parallel_micro_batches.max(1)) {
        let done = if let [part] = group {
            vec![work(&student, part, &mut phases)]
        } else {
            side_by_side(&student, group, &mut phases, &work)
        };
        for result in done {
            let (value, grads) = result?;
            loss += value;
            sum.accumulate(&student, grads);
        }
    }
    let finite = |what: &'static str, value: f64| {
        if value.is_finite() {
            Ok(())
        } else {
            Err(Error::NotFinite {
                step: how.step + 1,
                what,
                value,
            })
        }
    };
    finite("the loss", loss)?;
    let grads = sum.grads();
    let (grad_norm, student) = phases.time(Phase::Update, || {
        let grad_norm = optim::global_norm(&student, &grads);
        finite("the gradient norm", grad_norm)?;
        let factor = optim::clip_factor(grad_norm, how.max_grad_norm);
        let student = optimizer.step(how.learning_rate, student, grads, factor);
        Ok::<_, Error>((grad_norm, student))
    })?;
    let (mut teacher_tokens, mut cached_tokens) = (0, 0);
    if let Some(teacher) = teacher {
        for part in parts.iter().filter(|p| p.objective.has_teacher()) {
            let tokens = part.batch.targets.len();
            teacher_tokens += tokens;
            if part.from_data && teacher.cache.is_some() {
                cached_tokens += tokens;
            }
        }
    }
    let report = StepReport {
        loss,
        grad_norm,
        tokens: terms.iter().map(|t| t.batch.targets.len()).sum(),
        sequences: terms.first().map_or(0, |t| t.batch.lengths.len()),
        teacher_tokens,
        cached_tokens,
        phases,
    };
    Ok((student, report))
}

/// A micro-batch of a term.
struct Part<'a> {
    batch: Cow<'a, Batch>,
    objective: Cow<'a, Objective>,
    /// Index of its first response token among those of the term.
    first_row: usize,
    scale: f64,
    from_data: bool,
    seed: u64,
}

fn parts<'a>(terms: &'a [Term], how: &Update) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for term in terms.iter().filter(|t| !t.batch.targets.is_empty()) {
        let scale = term.weight / term.batch.targets.len() as f64;
        let mut push = |batch: Cow<'a, Batch>, objective, first_row| {
            let of_part = term.weight / batch.targets.len() as f64;
            parts.push(Part {
                batch,
                objective,
                first_row,
                scale: fault!("mean of each micro-batch", scale, of_part),
                from_data: term.from_data,
                // Seeds of other trainings differ in low bits.
                seed: how.seed ^ (parts.len() as u64) << 32,
            });
        };
        let all = term.batch.lengths.len();
        let size = how.micro_batch_size.unwrap_or(all);
        if size >= all {
            let (batch, objective) = (&term.batch, &term.objective);
            push(Cow::Borrowed(batch), Cow::Borrowed(objective), 0);
            continue;
        }
        for (batch, range) in term.batch.split(size) {
            if range.is_empty() {
                continue;
            }
            let first_row = range.start;
            let objective = match &term.objective {
                Objective::Policy(all) => Cow::Owned(Objective::Policy(part(all, range))),
                other => Cow::Borrowed(other),
            };
            push(Cow::Owned(batch), objective, first_row);
        }
    }
    parts
}

type Gradients = Result<(f64, GradientsParams), Error>;

/// Each part on its own thread with its own copy of the student: only one thread at a time can use an autodiff graph.
fn side_by_side(
    student: &LanguageModel,
    group: &[Part],
    phases: &mut Phases,
    work: &(impl Fn(&LanguageModel, &Part, &mut Phases) -> Gradients + Sync),
) -> Vec<Gradients> {
    let students: Vec<LanguageModel> = group
        .iter()
        .map(|_| student.clone().fork(&student.device()))
        .collect();
    let (done, times): (Vec<_>, Vec<_>) = std::thread::scope(|scope| {
        let threads: Vec<_> = group
            .iter()
            .zip(students)
            .map(|(part, student)| {
                scope.spawn(move || {
                    let mut phases = Phases::default();
                    (work(&student, part, &mut phases), phases)
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<_>| {
            t.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).unzip()
    });
    phases.add_parallel(&times);
    done
}

fn part(all: &PolicyRows, range: std::ops::Range<usize>) -> PolicyRows {
    PolicyRows {
        old_log_prob: all.old_log_prob[range.clone()].to_vec(),
        advantage: all.advantage[range.clone()].to_vec(),
        weight: all.weight[range].to_vec(),
        clip: all.clip,
        single_step: all.single_step,
    }
}

/// Result of the student's forward pass, the start of its backward pass.
#[allow(clippy::large_enum_variant)] // one an update
enum Forward<'a> {
    /// The target rows with their autodiff graph, and its inputs: the tokens' embedding rows.
    Graph {
        rows: Tensor<2>,
        tokens: Tensor<2>,
    },
    Checkpoints(Checkpoints<'a>),
}

impl Forward<'_> {
    /// Gradients of the parameters, and of the tokens' embedding rows where they require a gradient.
    fn backward(
        self,
        d_rows: Tensor<2>,
        student: &LanguageModel,
        batch: &Batch,
    ) -> (GradientsParams, Option<Tensor<2>>) {
        match self {
            Self::Checkpoints(pass) => {
                let (grads, d_tokens) = pass.backward(spread_targets(d_rows, batch));
                (grads, Some(d_tokens))
            }
            // The gradient of sum(rows * d_rows) in the rows is d_rows: backward starts from it.
            Self::Graph { rows, tokens } => {
                let mut grads = (rows * Tensor::from_inner(d_rows)).sum().backward();
                let params = GradientsParams::from_module(&mut grads, student);
                (params, tokens.grad_remove(&mut grads))
            }
        }
    }
}

/// Adds the gradients of embedding and head, `[V, d]` each. The embedding's is zero but for the rows of the tokens; where
/// the two are tied, those rows are added to the head's gradient.
fn embedding_gradient(
    grads: &mut GradientsParams,
    student: &LanguageModel,
    batch: &Batch,
    d_tokens: Option<Tensor<2>>,
    mut d_head: Option<Tensor<2>>,
) {
    let (embedding, head) = (student.embedding(), student.head());
    if let Some(d_tokens) = d_tokens.filter(|_| embedding.is_require_grad()) {
        let device = d_tokens.device();
        let tied = d_head.take_if(|_| head.id == embedding.id);
        let sum = tied.unwrap_or_else(|| Tensor::zeros(embedding.val().dims(), &device));
        let ids = token_ids(batch, &device);
        let sum = sum.select_assign(0, ids, d_tokens, IndexingUpdateOp::Add);
        grads.register(embedding.id, sum);
    }
    if let Some(d_head) = d_head {
        grads.register(head.id, d_head);
    }
}

/// Loss of a part and its gradients in the student's parameters.
fn gradients(
    student: &LanguageModel,
    teacher: Option<Teacher>,
    part: &Part,
    checkpointing: bool,
    chunk_bytes: usize,
    phases: &mut Phases,
) -> Gradients {
    let (batch, objective) = (&*part.batch, &*part.objective);
    let (rows, pass) = phases.time(Phase::Student, || {
        let embedding = student.embedding();
        let tokens = embedding.val().inner();
        let ids = token_ids(batch, &tokens.device());
        let tokens = tokens.select(0, ids);
        seed_dropout(part.seed);
        if checkpointing {
            let pass = student.checkpointed(tokens, &batch.lengths);
            let rows = select_targets(pass.hidden(), batch);
            (rows, Forward::Checkpoints(pass))
        } else {
            let mut tokens = Tensor::from_inner(tokens);
            if embedding.is_require_grad() {
                tokens = tokens.require_grad();
            }
            let hidden = student.hidden_of_tokens(tokens.clone(), &batch.lengths);
            let rows = select_targets(hidden, batch);
            (rows.clone().inner(), Forward::Graph { rows, tokens })
        }
    });
    let head = student.head();
    let student_rows = Rows {
        hidden: rows,
        head: head.val().inner(),
        precision: student.precision(),
    };
    let teacher_rows = match teacher {
        Some(teacher) if objective.has_teacher() => {
            Some(phases.time(Phase::Teacher, || teacher.rows(batch))?)
        }
        _ => None,
    };
    let trains_head = head.is_require_grad();
    let HeadLoss {
        loss,
        d_hidden,
        d_head,
    } = phases.time(Phase::Loss, || {
        head_loss(
            objective,
            &student_rows,
            teacher_rows.as_ref(),
            &labels(batch),
            part.scale,
            trains_head,
            chunk_bytes,
        )
    })?;
    let grads = phases.time(Phase::Backward, || {
        let (mut grads, d_tokens) = pass.backward(d_hidden, student, batch);
        embedding_gradient(&mut grads, student, batch, d_tokens, d_head);
        grads
    });
    Ok((loss, grads))
}

/// Mean cross-entropy over the response tokens of the validation's `batches`.
///
/// # Errors
///
/// Logits that are NaN or +inf.
pub fn cross_entropy(model: &LanguageModel, batches: &[Batch]) -> Result<f64, Error> {
    let model = model.valid();
    let (mut total, mut tokens) = (0.0, 0);
    for batch in batches {
        let (rows, labels) = (rows_of(&model, batch), labels(batch));
        let log_probs = log_probs(&rows, &labels, chunk_bytes(&model.device()));
        let named = Error::in_term(|| "validation".into(), batch, tokens);
        let log_probs = log_probs.map_err(named)?.into_iter();
        total += log_probs.map(|x| -f64::from(x)).sum::<f64>();
        tokens += batch.targets.len();
    }
    Ok(total / tokens.max(1) as f64)
}

#[cfg(test)]
mod tests;
