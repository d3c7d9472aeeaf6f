//! The rotary embedding (Su et al. 2021) as `config.json` describes it, in the layout of transformers 4 (`rope_theta`,
//! `rope_scaling`) or that of transformers 5 (`rope_parameters`).

use std::f64::consts::TAU;

use abkd_host::fault;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::keys::{Keys, Neutral};

/// Base of the frequencies where no file names one.
const THETA: f64 = 10000.0;

/// How the frequencies are scaled for sequences longer than those of pretraining.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// All frequencies are divided (Chen et al. 2023, "Extending Context Window of Large Language Models via Position
    /// Interpolation").
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies are divided, high ones stay, those between are interpolated (LLaMA 3.1).
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Frequencies of fewer turns over the original length are divided.
        low_freq_factor: f64,
        /// Frequencies of more turns stay.
        high_freq_factor: f64,
        /// Longest sequence of pretraining.
        original_max_position_embeddings: usize,
    },
}

/// Parameters of the rotations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Angles {
    /// Base of the frequencies.
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
    /// Width of a head.
    pub dh: usize,
}

impl Angles {
    /// Radians per position, for each of the dh / 2 pairs.
    pub fn frequencies(self) -> Vec<f64> {
        let dh = self.dh as f64;
        let plain = (0..self.dh / 2).map(|i| {
            self.theta
                .powf(-(fault!("half the exponent", 2.0, 1.0) * i as f64) / dh)
        });
        plain.map(|f| self.scaled(f)).collect()
    }

    fn scaled(self, frequency: f64) -> f64 {
        match self.scaling {
            None => frequency,
            Some(RopeScaling::Linear { factor }) => frequency / factor,
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: length,
            }) => {
                let turns = length as f64 * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

/// Takes the keys of the rotary embedding from a `config.json` of at most `positions` positions: theta and scaling.
///
/// # Errors
///
/// A kind that is not supported, a key that it does not have, or layouts that contradict each other.
pub(crate) fn take(keys: &mut Keys, positions: usize) -> Result<(f64, Option<RopeScaling>), Error> {
    let top_theta = theta(keys)?;
    let original = keys.optional_size("original_max_position_embeddings")?;
    // An empty table counts as absent, as in `transformers`.
    let table = |key: &str, keys: &mut Keys| -> Result<Option<Described>, Error> {
        match keys.table(key)? {
            Some(table) if !table.is_empty() => described(table, positions, original).map(Some),
            _ => Ok(None),
        }
    };
    let old = table("rope_scaling", keys)?;
    let new = table("rope_parameters", keys)?;
    if let (Some(old), Some(new)) = (&old, &new)
        && old.scaling != new.scaling
    {
        return Err(keys.refuse(
            "rope_scaling",
            format!("{:?}", old.scaling),
            format!(
                "`rope_parameters` says {:?}; remove one of them",
                new.scaling
            ),
        ));
    }
    let mut found: Option<(&str, f64)> = None;
    for (key, theta) in [
        ("rope_theta", top_theta),
        (
            "rope_scaling.rope_theta",
            old.as_ref().and_then(|d| d.theta),
        ),
        (
            "rope_parameters.rope_theta",
            new.as_ref().and_then(|d| d.theta),
        ),
    ] {
        match (theta, found) {
            (Some(theta), Some((other, known))) if theta != known => {
                let hint = format!("`{other}` says {known}; remove one of them");
                return Err(keys.refuse(key, theta, hint));
            }
            (Some(theta), _) => found = Some((key, theta)),
            (None, _) => {}
        }
    }
    let theta = found.map_or(THETA, |(_, theta)| theta);
    Ok((theta, old.or(new).and_then(|d| d.scaling)))
}

/// The content of one of the two tables.
struct Described {
    theta: Option<f64>,
    scaling: Option<RopeScaling>,
}

fn theta(keys: &mut Keys) -> Result<Option<f64>, Error> {
    if !keys.has("rope_theta") {
        return Ok(None);
    }
    keys.number("rope_theta", None, 1.0..=1e30).map(Some)
}

fn described(
    mut table: Keys,
    positions: usize,
    original: Option<usize>,
) -> Result<Described, Error> {
    const KINDS: &[&str] = &["default", "linear", "llama3"];
    table.rename("type", "rope_type")?;
    let kind = table.word("rope_type", "default", KINDS)?;
    let theta = theta(&mut table)?;
    // At 1 these keys change nothing; another value is refused.
    table.pass(&[
        ("attention_factor", Neutral::One),
        ("partial_rotary_factor", Neutral::One),
    ])?;
    let scaling = match &*kind {
        "linear" => {
            // Used by other kinds only.
            table.pass(&[("original_max_position_embeddings", Neutral::Any)])?;
            Some(RopeScaling::Linear {
                factor: factor(&mut table)?,
            })
        }
        "llama3" => Some(llama3(&mut table, positions, original)?),
        _ => {
            table.pass(&[
                ("factor", Neutral::One),
                ("original_max_position_embeddings", Neutral::Any),
            ])?;
            None
        }
    };
    table.finish()?;
    Ok(Described { theta, scaling })
}

fn factor(table: &mut Keys) -> Result<f64, Error> {
    table.number("factor", None, 1e-6..=1e6)
}

fn llama3(
    table: &mut Keys,
    positions: usize,
    outside: Option<usize>,
) -> Result<RopeScaling, Error> {
    const LENGTH: &str = "original_max_position_embeddings";
    let factor = factor(table)?;
    let low_freq_factor = table.number("low_freq_factor", None, 1e-6..=1e6)?;
    let high_freq_factor = table.number("high_freq_factor", None, 1e-6..=1e6)?;
    if high_freq_factor <= low_freq_factor {
        let hint = format!("more than low_freq_factor, which is {low_freq_factor}");
        return Err(table.refuse("high_freq_factor", high_freq_factor, hint));
    }
    let inside = table.optional_size(LENGTH)?;
    let length = match (inside, outside) {
        (Some(inside), Some(outside)) if inside != outside => {
            let hint = format!("the file also says {outside} beside the table; remove one of them");
            return Err(table.refuse(LENGTH, inside, hint));
        }
        // The default of transformers 5.
        _ => inside.or(outside).unwrap_or(positions),
    };
    if length == 0 {
        return Err(table.refuse(LENGTH, 0, "1 or more"));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: length,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<(f64, Option<RopeScaling>), String> {
        let path = Path::new("config.json");
        let read = || -> Result<_, Error> {
            let mut keys = Keys::new(path, value)?;
            let found = take(&mut keys, 64)?;
            keys.finish()?;
            Ok(found)
        };
        read().map_err(|error| error.to_string())
    }

    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };

    #[test]
    fn both_layouts_say_the_same() {
        let linear = Some(RopeScaling::Linear { factor: 2.0 });
        let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16});
        let with = |mut table: Value, key: &str, value: Value| {
            table[key] = value;
            table
        };
        for (file, theta, scaling) in [
            (json!({}), 1e4, None),
            (
                json!({"rope_theta": 500000, "rope_scaling": null}),
                5e5,
                None,
            ),
            (json!({"rope_theta": 5e5, "rope_scaling": {}}), 5e5, None),
            (json!({"rope_parameters": {"rope_theta": 5e5}}), 5e5, None),
            (
                json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
                5e5,
                None,
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
                1e4,
                linear,
            ),
            (
                json!({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}}),
                1e4,
                linear,
            ),
            (
                json!({"rope_theta": 5e5, "rope_scaling": llama3}),
                5e5,
                Some(LLAMA3),
            ),
            (
                json!({"rope_parameters": with(llama3.clone(), "rope_theta", 5e5.into())}),
                5e5,
                Some(LLAMA3),
            ),
            // twice the same
            (
                json!({"rope_theta": 5e5, "rope_scaling": llama3, "rope_parameters": with(llama3.clone(), "rope_theta", 5e5.into())}),
                5e5,
                Some(LLAMA3),
            ),
            // the length stands beside the table
            (
                json!({"original_max_position_embeddings": 16, "rope_scaling": with(llama3.clone(), "original_max_position_embeddings", Value::Null)}),
                1e4,
                Some(LLAMA3),
            ),
        ] {
            assert_eq!(read(file.clone()), Ok((theta, scaling)), "{file}");
        }
        let absent = with(llama3, "original_max_position_embeddings", Value::Null);
        let Ok((
            _,
            Some(RopeScaling::Llama3 {
                original_max_position_embeddings,
                ..
            }),
        )) = read(json!({"rope_scaling": absent}))
        else {
            panic!("read")
        };
        assert_eq!(original_max_position_embeddings, 64);
    }

    #[test]
    fn what_is_not_built_or_contradicts_itself_is_refused_by_its_key() {
        let llama3 = |key: &str, value: Value| {
            let mut table = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": 16});
            table[key] = value;
            json!({"rope_parameters": table})
        };
        for (file, wanted) in [
            (
                json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
                "`rope_scaling.rope_type` is dynamic",
            ),
            (
                json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}),
                "`rope_parameters.rope_type` is yarn",
            ),
            (
                json!({"rope_parameters": {"rope_type": 3}}),
                "`rope_parameters.rope_type` is 3",
            ),
            (
                json!({"rope_scaling": {"factor": 2.0}}),
                "`rope_scaling.factor` is 2.0",
            ),
            (
                json!({"rope_scaling": "linear"}),
                "`rope_scaling` is \"linear\"",
            ),
            (
                json!({"rope_scaling": {"type": "linear"}}),
                "`rope_scaling.factor` is absent",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 0}}),
                "`rope_scaling.factor` is 0",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "rope_type": "llama3"}}),
                "`rope_scaling.type` is \"linear\"",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}),
                "`rope_scaling.beta_fast`",
            ),
            (json!({"rope_theta": -1}), "`rope_theta` is -1"),
            (json!({"rope_theta": null}), "`rope_theta` is null"),
            (
                json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}),
                "`rope_parameters.rope_theta` is 500000",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 1e4}}),
                "`rope_scaling` is",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
                "`rope_parameters.full_attention`",
            ),
            (
                json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
                "`rope_parameters.partial_rotary_factor` is 0.5",
            ),
            (
                llama3("high_freq_factor", 1.into()),
                "`rope_parameters.high_freq_factor` is 1",
            ),
            (
                llama3("original_max_position_embeddings", 0.into()),
                "original_max_position_embeddings` is 0",
            ),
            (
                llama3("low_freq_factor", Value::Null),
                "`rope_parameters.low_freq_factor` is null",
            ),
        ] {
            let error = read(file.clone()).unwrap_err();
            assert!(error.contains(wanted), "{file}: {error}");
        }
    }

    /// Compared with the formula in LLaMA 3.1's own code, which goes by wavelengths.
    #[test]
    fn frequencies_of_llama3_are_divided_by_their_wavelength() {
        let (theta, dh) = (5e5f64, 16);
        let angles = |scaling| Angles { theta, scaling, dh };
        let plain = angles(None).frequencies();
        let scaled = angles(Some(LLAMA3)).frequencies();
        let (mut low, mut medium, mut high) = (0, 0, 0);
        for (i, (plain, scaled)) in plain.into_iter().zip(scaled).enumerate() {
            assert!((plain - 1.0 / theta.powf(i as f64 / 8.0)).abs() < 1e-15);
            let wavelength = TAU / plain;
            let exact = if wavelength < 16.0 / 4.0 {
                high += 1;
                plain
            } else if wavelength > 16.0 / 1.0 {
                low += 1;
                plain / 8.0
            } else {
                medium += 1;
                let smooth = (16.0 / wavelength - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            assert!(
                (scaled / exact - 1.0).abs() < 1e-12,
                "{i}: {scaled} {exact}"
            );
        }
        // With a length of 16 the first frequency, 1 radian per position, has 2.5 turns.
        assert_eq!((low, medium, high), (7, 1, 0));
        let linear = angles(Some(RopeScaling::Linear { factor: 2.0 })).frequencies();
        assert_eq!(linear[3], angles(None).frequencies()[3] / 2.0);
    }
}
