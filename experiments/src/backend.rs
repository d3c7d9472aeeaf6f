//! The devices that this build can compute on.

use anyhow::{Result, ensure};
use burn::tensor::Device;

use crate::suggest::nearest;

/// Every backend, and whether this build has it.
pub const BACKENDS: [(&str, bool); 4] = [
    ("flex", true),
    ("tch", cfg!(feature = "tch")),
    ("cuda", cfg!(feature = "cuda")),
    ("wgpu", cfg!(feature = "wgpu")),
];

/// The device of a backend's name.
///
/// # Errors
///
/// A backend that is unknown, or not built in: the error names the feature to build with.
pub fn device(name: &str) -> Result<Device> {
    check(name)?;
    Ok(match name {
        #[cfg(feature = "tch")]
        "tch" => {
            // Burn will drop libtorch one day; until then it is the fastest backend on a CPU.
            #[allow(deprecated)]
            Device::libtorch()
        }
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        _ => Device::flex(),
    })
}

/// Whether the name is a backend, built in or not.
///
/// # Errors
///
/// An unknown name; the known ones are listed.
pub fn known(name: &str) -> Result<()> {
    let names = BACKENDS.map(|(b, _)| b);
    ensure!(
        names.contains(&name),
        "unknown backend `{name}`{}; known: {}",
        nearest(name, names),
        names.join(", ")
    );
    Ok(())
}

/// Whether the name is a backend of this build.
///
/// # Errors
///
/// As [`device`].
pub fn check(name: &str) -> Result<()> {
    known(name)?;
    ensure!(
        BACKENDS.contains(&(name, true)),
        "backend `{name}` is not built in; build with it: cargo run --release --features {name} --bin abkd -- ..."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_is_not_built_in_names_its_feature() {
        assert!(check("flex").is_ok());
        let error = check("flax").unwrap_err().to_string();
        assert!(error.contains("did you mean `flex`"), "{error}");
        for (name, built) in BACKENDS {
            match check(name) {
                Ok(()) => assert!(built),
                Err(error) => {
                    assert!(!built);
                    let feature = format!("--features {name}");
                    assert!(error.to_string().contains(&feature), "{error}");
                }
            }
        }
    }
}
