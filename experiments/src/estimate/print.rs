//! The estimate as text.

use std::fmt::Write;

use abkd_models::{ModelConfig, Precision};
use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::{Cost, Estimate, Memory};
use crate::plan::{Who, row_label};
use crate::task::Work;

/// A processor that time is estimated for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accelerator {
    /// Name.
    pub name: &'static str,
    /// Dense half-precision peak, TFLOP/s, as stated by the manufacturer.
    pub half: f64,
    /// Peak of f32, TFLOP/s, without tensor cores.
    pub single: f64,
    /// Memory bandwidth, GB/s.
    pub bandwidth: f64,
    /// Memory, GB.
    pub memory: f64,
}

/// Assumed utilisation: of the peak in training, of the bandwidth in sampling.
const UTILISATION: f64 = 0.35;
/// Assumed seconds that the host takes to launch a kernel, and that a card takes for a small kernel of a replayed graph.
const LAUNCH: f64 = 8e-6;
const REPLAYED: f64 = 2.5e-6;

impl Accelerator {
    const ALL: [Self; 7] = [
        Self::new("v100", [125.0, 15.7], 900.0, 32.0),
        Self::new("a6000", [155.0, 38.7], 768.0, 48.0),
        Self::new("rtx4090", [165.0, 82.6], 1008.0, 24.0),
        Self::new("a100", [312.0, 19.5], 2039.0, 80.0),
        Self::new("l40s", [362.0, 91.6], 864.0, 48.0),
        Self::new("h100", [989.0, 67.0], 3350.0, 80.0),
        Self::new("h200", [989.0, 67.0], 4800.0, 141.0),
    ];

    const fn new(
        name: &'static str,
        [half, single]: [f64; 2],
        bandwidth: f64,
        memory: f64,
    ) -> Self {
        Self {
            name,
            half,
            single,
            bandwidth,
            memory,
        }
    }

    /// Peak of the matrix products in this precision, TFLOP/s.
    fn tflops(&self, precision: Precision) -> f64 {
        match precision {
            Precision::F32 => self.single,
            Precision::Bf16 => self.half,
        }
    }

    /// Seconds for a task: its matrix products at the assumed share of the peak, or the launches of its updates where they
    /// take longer; plus reading the weights for each sampled token, or the kernels that it takes.
    fn seconds(&self, cost: &Cost, precision: Precision) -> f64 {
        let compute = cost.flops / (self.tflops(precision) * 1e12 * UTILISATION);
        let reading = cost.sampling_bytes / (self.bandwidth * 1e9 * UTILISATION);
        compute.max(cost.launches * LAUNCH) + reading.max(cost.replayed * REPLAYED)
    }
}

impl ValueEnum for Accelerator {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(self.name.into())
    }
}

/// The whole estimate. `seconds` are the measured times of the tasks on this machine, if known;
/// `done` marks finished tasks.
pub fn report(
    estimate: &Estimate,
    done: &[bool],
    accelerator: Option<Accelerator>,
    seconds: Option<&[f64]>,
) -> String {
    let costs = estimate.costs();
    let mut text = String::new();
    let lengths = estimate.lengths;
    let _ = writeln!(
        text,
        "\nmodels    teacher {}, student {} parameters",
        count(parameters(&estimate.teacher)),
        count(parameters(&estimate.student))
    );
    let _ = writeln!(
        text,
        "data      {} training sequences, mean prompt {:.1}, response {:.1} tokens ({})",
        lengths.sequences,
        lengths.prompt,
        lengths.response,
        if lengths.counted {
            "counted"
        } else {
            "assumed: Dolly under GPT-2's tokenizer"
        }
    );
    let _ = writeln!(
        text,
        "\n{:34} {:>8} {:>9} {:>9} {:>9} {:>9}{}",
        "kind of task (number)",
        "updates",
        "trained",
        "sampled",
        "PFLOP",
        "peak GB",
        if seconds.is_some() { "      time" } else { "" }
    );
    for (name, tasks) in kinds(estimate) {
        let of = |f: fn(&Cost) -> f64| tasks.iter().map(|&i| f(&costs[i])).sum::<f64>();
        let peak = tasks
            .iter()
            .map(|&i| costs[i].memory.total())
            .fold(0.0, f64::max);
        let time = seconds.map_or(String::new(), |s| {
            format!("{:>10}", duration(tasks.iter().map(|&i| s[i]).sum()))
        });
        let _ = writeln!(
            text,
            "{:34} {:>8} {:>9} {:>9} {:>9.4} {:>9.3}{time}",
            format!("{name} ({})", tasks.len()),
            of(|c| c.updates as f64),
            count(of(|c| c.trained_tokens)),
            count(of(|c| c.sampled_tokens)),
            of(|c| c.flops) / 1e15,
            peak / 1e9,
        );
    }
    let jobs = estimate.spec.jobs();
    let peak = costs
        .iter()
        .map(|c| c.memory)
        .max_by(|a, b| a.total().total_cmp(&b.total()))
        .unwrap_or_default();
    let _ = writeln!(text, "\npeak memory of a task, estimated: {}", parts(&peak));
    if jobs > 1 {
        let _ = writeln!(
            text,
            "{jobs} tasks run in parallel: up to {jobs} times that"
        );
    }
    let total = |f: fn(&Cost) -> f64| costs.iter().map(f).sum::<f64>();
    let checkpoint = peak.weights + peak.optimizer;
    let _ = writeln!(
        text,
        "disk: {:.2} GB of students, and {:.2} GB for checkpoints while a task runs (two at a time)",
        total(|c| c.disk) / 1e9,
        2.0 * checkpoint / 1e9
    );
    let left = |cell_seconds: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..costs.len())
            .map(|i| if done[i] { 0.0 } else { cell_seconds(i) })
            .collect()
    };
    let tasks = &estimate.plan.tasks;
    if let Some(a) = accelerator {
        let precision = estimate.spec.profile.precision;
        let seconds = left(&|i| a.seconds(&costs[i], precision));
        let _ = writeln!(
            text,
            "time on one {} (assuming {:.0}% of {} TFLOP/s in {} and of {} GB/s, {:.0} us a launch, {} us a kernel of a graph): {}; \
             its memory: {} GB",
            a.name,
            100.0 * UTILISATION,
            a.tflops(precision),
            match precision {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
            },
            a.bandwidth,
            1e6 * LAUNCH,
            1e6 * REPLAYED,
            duration(super::makespan(tasks, &seconds, 1)),
            a.memory
        );
    }
    if let Some(measured) = seconds {
        let seconds = left(&|i| measured[i]);
        let _ = writeln!(
            text,
            "time on this machine ({jobs} tasks in parallel, calibrated just now): {}",
            duration(super::makespan(tasks, &seconds, jobs))
        );
    } else if accelerator.is_none() {
        let _ = writeln!(
            text,
            "time: --calibrate measures a few updates here; --accelerator NAME estimates for another machine"
        );
    }
    text
}

/// The tasks by kind, in the plan's order.
fn kinds(estimate: &Estimate) -> Vec<(String, Vec<usize>)> {
    let mut kinds: Vec<(String, Vec<usize>)> = Vec::new();
    for (i, task) in estimate.plan.tasks.iter().enumerate() {
        let label = row_label(estimate.spec, task.of[0]);
        let name = match (&task.task.work, task.of[0]) {
            (Work::Train(_), Who::Row { .. }) => format!("train {label}"),
            (Work::Train(_), who) => format!("{who:?} fine-tuning").to_lowercase(),
            (Work::TeacherHidden(_), _) => "teacher's hidden states".into(),
            (Work::TeacherAnswers(_), _) => "teacher's answers".into(),
            (Work::Time(_), _) => format!("time {label}"),
            (Work::Evaluate(e), _) => format!("evaluate on {}", e.dataset),
        };
        match kinds.iter_mut().find(|(n, _)| *n == name) {
            Some((_, tasks)) => tasks.push(i),
            None => kinds.push((name, vec![i])),
        }
    }
    kinds
}

fn parameters(shape: &ModelConfig) -> f64 {
    shape.parameters().total() as f64
}

fn parts(m: &Memory) -> String {
    let gb = |x: f64| format!("{:.3}", x / 1e9);
    format!(
        "{} GB = weights {} + gradients {} + optimizer {} + activations {} + logits {}",
        gb(m.total()),
        gb(m.weights),
        gb(m.gradients),
        gb(m.optimizer),
        gb(m.activations),
        gb(m.logits)
    )
}

/// A number with a suffix: 1.53G.
fn count(x: f64) -> String {
    let (scale, suffix) = match x {
        x if x >= 1e9 => (1e9, "G"),
        x if x >= 1e6 => (1e6, "M"),
        x if x >= 1e3 => (1e3, "k"),
        _ => return format!("{x:.0}"),
    };
    format!("{:.2}{suffix}", x / scale)
}

/// Seconds, minutes, hours or days.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::spec::Spec;
    use std::path::Path;

    fn estimate(experiment: &str, profile: &str) -> (String, Vec<Cost>, f64, f64) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let spec = Spec::load(&root, experiment, profile).unwrap();
        let plan = Plan::new(&root, &spec, &Default::default()).unwrap();
        let estimate = Estimate::new(&root, &spec, &plan, None).unwrap();
        let done = vec![false; plan.tasks.len()];
        let a100 = Accelerator::from_str("a100", false).unwrap();
        let text = report(&estimate, &done, Some(a100), None);
        let sizes = (parameters(&estimate.teacher), parameters(&estimate.student));
        (text, estimate.costs(), sizes.0, sizes.1)
    }

    #[test]
    fn the_papers_models_have_their_published_sizes() {
        let (text, costs, teacher, student) = estimate("table1", "paper-gpt2");
        // GPT-2 XL and GPT-2: 1,557,611,200 and 124,439,808 parameters
        assert_eq!((teacher, student), (1_557_611_200.0, 124_439_808.0));
        // 357 updates an epoch at batch 32, 20 epochs: the published 7,140
        assert!(costs.iter().any(|c| c.updates == 7_140));
        assert!(text.contains("a100") && text.contains("35%"), "{text}");
        let (_, _, teacher, student) = estimate("table2", "paper-openllama2");
        // OpenLLaMA v2: 6,738,415,616 and 3,426,473,600
        assert_eq!((teacher, student), (6_738_415_616.0, 3_426_473_600.0));
    }

    #[test]
    fn a_token_costs_six_flops_a_parameter_and_two_of_the_cached_teacher_once() {
        let (_, costs, teacher, student) = estimate("table1", "paper-gpt2");
        let distill = costs.iter().find(|c| c.updates == 7_140).unwrap();
        // only response tokens, about half, go through the heads; of the teacher, only the head is computed
        let head = 50_257.0 * (3.0 * 768.0 + 1600.0);
        let rough = distill.trained_tokens * (6.0 * (student - 39e6) + head);
        let ratio = distill.flops / rough;
        assert!((0.8..1.4).contains(&ratio), "{ratio}");
        let tokens = 11_435.0 * 152.4;
        let cached = costs
            .iter()
            .find(|c| c.updates == 0 && c.disk > 1e9)
            .unwrap();
        let ratio = cached.flops / (tokens * 2.0 * (teacher - 82e6));
        assert!((0.9..1.2).contains(&ratio), "{ratio}");
        assert!((cached.disk / (11_435.0 * 81.1 * 1600.0 * 4.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn products_in_f32_are_not_priced_as_half_precision() {
        let (text, costs, ..) = estimate("table1", "tiny");
        assert!(text.contains("19.5 TFLOP/s in f32"), "{text}");
        let (text, ..) = estimate("table2", "paper-openllama2");
        assert!(text.contains("312 TFLOP/s in bf16"), "{text}");
        let a100 = Accelerator::from_str("a100", false).unwrap();
        let [single, half] = [Precision::F32, Precision::Bf16].map(|p| a100.seconds(&costs[0], p));
        assert!(single > half);
    }

    #[test]
    fn durations_have_a_fitting_unit() {
        assert_eq!(duration(90.0), "90 s");
        assert_eq!(duration(600.0), "10.0 min");
        assert_eq!(count(1_557_611_200.0), "1.56G");
    }
}
