//! Checks of all files of a run before anything runs, for `abkd plan` and `abkd run` alike.

use std::path::Path;

use abkd_data::Tokenizer;
use abkd_models::{ModelConfig, checkpoint, lora};
use abkd_training::{Error, Settings};
use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;

use crate::inputs::checkpoints::{self, Side};
use crate::inputs::{self, Inputs, Wanted, is_absent};
use crate::results::{Table, read_curve};
use crate::runner::Places;
use crate::spec::{Kind, ModelSpec, Spec, Start};
use crate::timing;

const SIDES: [Side; 2] = [Side::Teacher, Side::Student];

/// Checks the spec against all files that it names, and loads the data.
///
/// # Errors
///
/// The first wrong input, or a missing one (see [`is_absent`]).
pub fn load(places: &Places, spec: &Spec) -> Result<Inputs> {
    let root = &places.root;
    let mut absent = None;
    for side in SIDES {
        match checkpoints::check(root, spec, side) {
            // A missing checkpoint may have a declared shape, which is checked all the same.
            Err(error) if is_absent(&error) => absent = absent.or(Some(error)),
            checked => checked?,
        }
    }
    paper(places, spec)?;
    folders(places, spec)?;
    let shapes = SIDES.map(|side| inputs::shape_of(root, spec, side));
    let [teacher, student] = match shapes {
        [Ok(teacher), Ok(student)] => [teacher, student],
        [teacher, student] => {
            let error = absent
                .take()
                .map_or_else(|| teacher.and(student).err(), Some);
            return Err(error.context("a shape or an error")?);
        }
    };
    shapes_fit(root, spec, &teacher, &student)?;
    if let Some(error) = absent {
        return Err(error);
    }
    let inputs = Inputs::of(root, spec)?;
    data_fit(root, spec, &inputs, &teacher, &student)?;
    spec.check_run(inputs.train.sequences.len(), inputs.validated())?;
    Ok(inputs)
}

/// Whether the shapes of both models are known, from a checkpoint or as declared: enough for a plan.
pub fn shapes_are_known(places: &Places, spec: &Spec) -> bool {
    SIDES
        .iter()
        .all(|&side| inputs::shape_of(&places.root, spec, side).is_ok())
}

/// Reads the weights of the checkpoints once, so that a tensor that is missing or has the wrong shape is reported before
/// the first update, not after the teacher's training.
///
/// # Errors
///
/// A checkpoint that cannot be loaded; the error names its side.
pub fn weights(places: &Places, spec: &Spec) -> Result<()> {
    let mut read = Vec::new();
    for side in SIDES {
        let Some(dir) = &side.of(spec).checkpoint else {
            continue;
        };
        if read.contains(&dir) {
            continue;
        }
        read.push(dir);
        checkpoint::load(&places.root.join(dir), &Device::flex()).with_context(|| {
            let who = side.section();
            let place = spec.in_profile(&[who, "checkpoint"]);
            format!("{place}: the {who}'s checkpoint")
        })?;
    }
    Ok(())
}

/// Checks the paper's file, if the experiment names one.
fn paper(places: &Places, spec: &Spec) -> Result<()> {
    let e = &spec.experiment;
    let Some(name) = &e.paper else {
        return Ok(());
    };
    let path = places.paper(name);
    let place = || format!("{}: paper = \"{name}\"", spec.in_experiment(&["paper"]));
    ensure!(
        path.exists(),
        "{}: {}: not there; leave `paper` out where there are no numbers to compare with",
        place(),
        path.display()
    );
    match e.kind {
        Kind::Table => {
            let table = Table::read(&path).with_context(place)?;
            ensure!(
                table.row_key == e.row_key,
                "{}: row_key = \"{}\": the first column of {} is `{}`",
                spec.in_experiment(&["row_key"]),
                e.row_key,
                path.display(),
                table.row_key
            );
        }
        Kind::Curve => drop(read_curve(&path).with_context(place)?),
        Kind::Timing => drop(timing::read_paper(&path).with_context(place)?),
    }
    Ok(())
}

/// Whether results, figures and checkpoints can be written. Creates nothing: for a missing folder, its nearest existing
/// parent is tested.
fn folders(places: &Places, spec: &Spec) -> Result<()> {
    let name = &spec.profile.name;
    for (what, folder) in [
        ("results", &places.results),
        ("figures", &places.figures),
        ("checkpoints", &places.runs),
    ] {
        let folder = folder.join(name);
        let there = folder.ancestors().find(|path| path.exists());
        let there = there.filter(|path| !path.as_os_str().is_empty());
        let there = there.unwrap_or(Path::new("."));
        let place = || format!("{what} cannot be written to {}", folder.display());
        ensure!(
            there.is_dir(),
            "{}: {} is a file, and a folder belongs there",
            place(),
            there.display()
        );
        tempfile::tempfile_in(there).with_context(place)?;
    }
    Ok(())
}

/// Whether the shapes of the models fit the spec.
fn shapes_fit(
    root: &Path,
    spec: &Spec,
    teacher: &ModelConfig,
    student: &ModelConfig,
) -> Result<()> {
    let p = &spec.profile;
    for side in SIDES {
        declared_fits(root, spec, side)?;
    }
    if let Some(layers) = &p.student.layers {
        ensure!(
            layers.needs() <= teacher.layers(),
            "{}: [student] layers = {layers}: the teacher has {}",
            spec.in_profile(&["student", "layers"]),
            teacher.layers()
        );
    }
    if spec.recipes.iter().any(|r| r.method.needs_teacher()) {
        let (teacher, student) = (teacher.vocab_size(), student.vocab_size());
        // Tokenizers first: an error about them is more precise than one about vocabulary sizes.
        if teacher != student
            && let Ok((used, _)) = inputs::load_tokenizer(&Wanted::of(root, spec))
        {
            let own = |side| own_tokenizer_fits(root, spec, side, &used);
            SIDES.into_iter().try_for_each(own)?;
        }
        ensure!(
            teacher == student,
            "{}: {}",
            spec.in_profile(&["student"]),
            Error::Vocabulary { teacher, student }
        );
    }
    positions_fit(spec, teacher, student)?;
    adapters_fit(spec, teacher, student)
}

/// Whether a checkpoint has the shape that the profile declares beside it.
fn declared_fits(root: &Path, spec: &Spec, side: Side) -> Result<()> {
    // The shapes as the profile and config.json have them, before rows beyond the tokenizer's vocabulary are cut.
    let whole = ModelSpec {
        vocabulary: None,
        ..side.of(spec).clone()
    };
    let (Some(dir), Some(declared)) = (&whole.checkpoint, whole.declared()?) else {
        return Ok(());
    };
    let found = inputs::base_shape(root, &whole, &whole)?;
    let shape = |c: &ModelConfig| (c.vocab_size(), c.width(), c.layers(), c.heads());
    ensure!(
        shape(&declared) == shape(&found),
        "{}: {}: (vocabulary, width, layers, heads) is {:?}, the profile says {:?}",
        spec.in_profile(&[side.section()]),
        root.join(dir).display(),
        shape(&found),
        shape(&declared)
    );
    Ok(())
}

/// Whether no sequence is longer than a model has positions.
fn positions_fit(spec: &Spec, teacher: &ModelConfig, student: &ModelConfig) -> Result<()> {
    let p = &spec.profile;
    let refuse = |place: String, what: String, length: usize| {
        let models = [("teacher", teacher), ("student", student)];
        for (who, positions) in models.map(|(who, model)| (who, model.max_positions())) {
            ensure!(
                length <= positions,
                "{place}: {what}: sequences of {length} tokens, and the {who} has {positions} positions"
            );
        }
        Ok(())
    };
    let length = p.data.max_length;
    let place = spec.in_profile(&["data", "max_length"]);
    refuse(place, format!("[data] max_length = {length}"), length)?;
    let prompt = p.data.max_prompt_length;
    for (section, new, used) in [
        (
            "validation",
            p.validation.max_new_tokens,
            p.validation.examples > 0,
        ),
        (
            "evaluation",
            p.evaluation.max_new_tokens,
            spec.experiment.kind == Kind::Table,
        ),
    ] {
        if used {
            let what = format!("[data] max_prompt_length and [{section}] max_new_tokens = {new}");
            let place = spec.in_profile(&[section, "max_new_tokens"]);
            refuse(place, what, prompt.saturating_add(new))?;
        }
    }
    for (index, row) in spec.recipes.iter().enumerate() {
        let Some(new) = row.method.longest_answer(p.data.max_new_tokens()) else {
            continue;
        };
        let what = format!(
            "row `{}`: [data] max_prompt_length and max_new_tokens = {new}",
            row.label
        );
        let place = spec.row_place(index);
        refuse(place, what, prompt.saturating_add(new))?;
    }
    Ok(())
}

/// Whether the adapters fit the architectures, and successive adapters fit each other: tried on tiny models whose layers
/// have the same names.
fn adapters_fit(spec: &Spec, teacher: &ModelConfig, student: &ModelConfig) -> Result<()> {
    let p = &spec.profile;
    let try_on = |shape: &ModelConfig,
                  before: Option<&Settings>,
                  settings: &Settings|
     -> Result<()> {
        let Some(config) = &settings.lora else {
            return Ok(());
        };
        let mut model = shape.smallest().zeros(&Device::flex());
        for config in before
            .and_then(|s| s.lora.as_ref())
            .into_iter()
            .chain([config])
        {
            let (rank, width) = (config.r, shape.width());
            ensure!(
                rank <= width,
                "`lora.r` = {rank}: the model is {width} wide, and no matrix of it has a higher rank"
            );
            // The tiny model is narrower.
            let narrow = lora::LoraConfig {
                r: rank.min(1),
                ..config.clone()
            };
            model = lora::adapt(model, &narrow, 0)?;
        }
        Ok(())
    };
    for (name, settings) in spec.fine_tunings() {
        let shape = if name == "teacher_sft" {
            teacher
        } else {
            student
        };
        let place = || format!("{}: [{name}]", spec.in_profile(&[name, "lora"]));
        try_on(shape, None, settings).with_context(place)?;
    }
    for (index, row) in spec.recipes.iter().enumerate() {
        let initialised = row.start == Start::Init;
        let before = p.student_sft.as_ref().filter(|_| initialised);
        try_on(student, before, &row.settings)
            .with_context(|| format!("row `{}`: train", row.label))
            .map_err(|error| spec.blame(index, error))?;
    }
    Ok(())
}

/// Whether tokenizer and texts fit the models.
fn data_fit(
    root: &Path,
    spec: &Spec,
    inputs: &Inputs,
    teacher: &ModelConfig,
    student: &ModelConfig,
) -> Result<()> {
    let tokens = inputs.tokenizer.vocab_size();
    for (side, model) in SIDES.into_iter().zip([teacher, student]) {
        ensure!(
            tokens <= model.vocab_size(),
            "{}: the {}: {}",
            spec.in_profile(&[side.section()]),
            side.section(),
            Error::Tokenizer {
                tokenizer: tokens,
                model: model.vocab_size()
            }
        );
        own_tokenizer_fits(root, spec, side, &inputs.tokenizer)?;
    }
    if let Some(text) = &inputs.text
        && spec.recipes.iter().any(|r| r.with_text)
    {
        let positions = student.max_positions();
        ensure!(
            text.longest() <= positions,
            "{}: [data] text: its longest document has {} tokens, and the student {positions} positions; pack shorter ones",
            spec.in_profile(&["data", "text"]),
            text.longest()
        );
    }
    Ok(())
}

/// Refuses a checkpoint whose tokenizer differs from the one that encodes the data: the same text has other ids for it.
fn own_tokenizer_fits(root: &Path, spec: &Spec, side: Side, used: &Tokenizer) -> Result<()> {
    let Some(dir) = &side.of(spec).checkpoint else {
        return Ok(());
    };
    let path = root.join(dir).join("tokenizer.json");
    if !path.exists() || inputs::tokenizer_path(&Wanted::of(root, spec))?.as_ref() == Some(&path) {
        return Ok(());
    }
    let place = || spec.in_profile(&[side.section(), "checkpoint"]);
    let own = inputs::read_tokenizer(&path, Some(used.eos())).with_context(place)?;
    if let Some(how) = own.differs_from(used) {
        return Err(anyhow!(
            "{}: {}: the tokenizer of the {} differs from the one that encodes the data (SHA-256 {:.12} and {:.12}): {how}; teacher \
             and student must share one",
            place(),
            path.display(),
            side.section(),
            own.hash(),
            used.hash()
        ));
    }
    Ok(())
}
