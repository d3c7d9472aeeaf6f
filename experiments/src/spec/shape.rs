//! Shapes of models as a profile declares them.

use abkd_models::ModelConfig;
use anyhow::{Result, ensure};

use crate::suggest::nearest;

/// The configuration of a shape.
pub(super) fn shape(model_type: &str, table: &toml::Table) -> Result<ModelConfig> {
    finite(table)?;
    let mut json = serde_json::to_value(table)?;
    json["model_type"] = model_type.into();
    let known = ModelConfig::keys(model_type);
    for key in table.keys() {
        ensure!(
            known.contains(&key.as_str()),
            "unknown key `{key}`{}",
            nearest(key, known.iter().copied())
        );
    }
    let config: ModelConfig = serde_json::from_value(json)?;
    Ok(config)
}

/// Maximum number of layers; the deepest published language models have about a thousand.
const MOST_LAYERS: usize = 1024;
/// Maximum of the vocabulary size, the width and similar sizes.
const LARGEST_SIZE: i64 = 1 << 24;
/// Maximum number of parameters: 400 GB of weights.
const MOST_PARAMETERS: usize = 100_000_000_000;

/// Refuses sizes that fit on no machine, before a model is built.
pub(super) fn bounded(table: &toml::Table, config: &ModelConfig) -> Result<()> {
    for (key, value) in table {
        ensure!(
            value.as_integer().is_none_or(|n| n <= LARGEST_SIZE),
            "`{key}` = {value}: it must be {LARGEST_SIZE} or less"
        );
        ensure!(
            value.as_float().is_none_or(|x| x >= 0.0),
            "`{key}` = {value}: it must be 0 or more"
        );
    }
    let layers = config.layers();
    ensure!(
        layers <= MOST_LAYERS,
        "{layers} layers: the maximum is {MOST_LAYERS}"
    );
    // The sizes above are small enough that these counts do not wrap.
    let parameters = config.parameters().total();
    ensure!(
        parameters <= MOST_PARAMETERS,
        "{parameters} parameters: the maximum is {MOST_PARAMETERS}"
    );
    Ok(())
}

/// Refuses NaN and infinities, which TOML has and JSON has not.
pub(super) fn finite(table: &toml::Table) -> Result<()> {
    for (key, value) in table {
        ensure!(
            value.as_float().is_none_or(f64::is_finite),
            "`{key}` = {value}: it must be a finite number"
        );
    }
    Ok(())
}
