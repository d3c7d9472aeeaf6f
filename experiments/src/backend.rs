//! The devices that this build can compute on.

use anyhow::{Result, bail};
use burn::tensor::Device;

use crate::suggest::nearest;

/// Backends of this build.
pub const BACKENDS: &[&str] = &["flex"];

/// The device of a backend's name.
///
/// # Errors
///
/// A backend that is unknown or not built in.
pub fn device(name: &str) -> Result<Device> {
    match name {
        "flex" => Ok(Device::flex()),
        _ => bail!(
            "unknown backend `{name}`{}; this build has: {}",
            nearest(name, BACKENDS.iter().copied()),
            BACKENDS.join(", ")
        ),
    }
}
