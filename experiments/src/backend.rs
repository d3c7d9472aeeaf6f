//! The devices that this build can compute on.

use std::fmt::{self, Display};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;

use crate::suggest::nearest;

/// Every backend, and whether this build has it.
pub const BACKENDS: [(&str, bool); 5] = [
    ("flex", true),
    ("tch", cfg!(feature = "tch")),
    ("tch-cuda", cfg!(feature = "tch")),
    ("cuda", cfg!(feature = "cuda")),
    ("wgpu", cfg!(feature = "wgpu")),
];

/// Cards to compute on, by number, e.g. `0`, `cuda:1` or `0,1`; none: the backend's first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cards {
    numbers: Vec<usize>,
    /// Whether they are named as CUDA's.
    cuda: bool,
}

impl FromStr for Cards {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` names no cards; give numbers separated by commas, e.g. 0 or cuda:0,cuda:1"
            )
        };
        let mut cards = Self::default();
        for name in text.split(',') {
            let number = match name.trim().split_once(':') {
                None => name.trim(),
                Some(("cuda", number)) => {
                    cards.cuda = true;
                    number
                }
                Some(_) => return Err(wrong()),
            };
            let number = number.parse().map_err(|_| wrong())?;
            if cards.numbers.contains(&number) {
                return Err(format!("`{text}` names card {number} twice"));
            }
            cards.numbers.push(number);
        }
        Ok(cards)
    }
}

impl Display for Cards {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let numbers = self.numbers.iter().map(usize::to_string);
        f.write_str(&numbers.collect::<Vec<_>>().join(","))
    }
}

impl Cards {
    /// The numbers of the cards; the first card where none is named.
    fn chosen(&self) -> &[usize] {
        match &self.numbers[..] {
            [] => &[0],
            numbers => numbers,
        }
    }

    /// Number of cards, at least one.
    pub fn count(&self) -> usize {
        self.chosen().len()
    }

    /// [`chosen`](Self::chosen), of the cards that were found on `what`.
    #[cfg(any(feature = "tch", feature = "cuda", feature = "wgpu"))]
    fn of(&self, found: usize, what: &str) -> Result<&[usize]> {
        for &number in &self.numbers {
            ensure!(
                number < found,
                "--device {number}: {what} has {found} {}, numbered from 0",
                if found == 1 { "card" } else { "cards" }
            );
        }
        Ok(self.chosen())
    }

    /// The backend that a name means for these cards: libtorch on a card is a backend of its own, since it rounds in
    /// another order than on the processor.
    pub fn backend<'a>(&self, name: &'a str) -> &'a str {
        match name {
            "tch" if self.cuda => "tch-cuda",
            name => name,
        }
    }
}

/// The devices of a backend: one for each card.
///
/// # Errors
///
/// A backend that is unknown, or not built in: the error names the feature to build with. No driver, no compiler for
/// kernels, no such card: the error says what was found.
pub fn devices(name: &str, cards: &Cards) -> Result<Vec<Device>> {
    check(name)?;
    Ok(match name {
        #[cfg(feature = "tch")]
        "tch-cuda" => {
            let found = Device::enumerate(burn::tensor::DeviceType::LibTorch).len();
            ensure!(
                found > 0,
                "libtorch finds no CUDA card: it needs a libtorch with CUDA (LIBTORCH, LD_LIBRARY_PATH) and the card's driver"
            );
            // Burn will drop libtorch one day.
            #[allow(deprecated)]
            let device = |number: usize| Device::libtorch_cuda(number);
            let numbers = cards.of(found, "this machine")?;
            numbers.iter().copied().map(device).collect()
        }
        #[cfg(feature = "cuda")]
        "cuda" => {
            let found = Device::enumerate(burn::tensor::DeviceType::Cuda).len();
            cuda::check(found)?;
            let numbers = cards.of(found, "this machine")?;
            numbers.iter().map(|&number| Device::cuda(number)).collect()
        }
        #[cfg(feature = "wgpu")]
        "wgpu" if !cards.numbers.is_empty() => {
            let found: Vec<Device> = Device::enumerate(burn::tensor::DeviceType::Wgpu)
                .into_iter()
                .collect();
            let numbers = cards.of(found.len(), "wgpu")?;
            numbers.iter().map(|&n| found[n].clone()).collect()
        }
        #[cfg(feature = "wgpu")]
        "wgpu" => vec![Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)],
        name => {
            ensure!(
                cards.numbers.is_empty(),
                "--device {cards}: backend `{name}` computes on the processor; cards belong to cuda, tch-cuda and wgpu"
            );
            match name {
                #[cfg(feature = "tch")]
                "tch" => {
                    // Until Burn drops it, it is the fastest backend on a processor.
                    #[allow(deprecated)]
                    let device = Device::libtorch();
                    vec![device]
                }
                _ => vec![Device::flex()],
            }
        }
    })
}

/// Memory of the smallest of the cards, bytes; `None` where it is not known. The devices were found before.
pub fn memory(name: &str, cards: &Cards) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if name == "cuda" {
        return cards.chosen().iter().filter_map(|&n| cuda::memory(n)).min();
    }
    let _ = (name, cards);
    None
}

/// The first device of [`devices`].
///
/// # Errors
///
/// As [`devices`].
pub fn device(name: &str, cards: &Cards) -> Result<Device> {
    let devices = devices(name, cards)?;
    devices.into_iter().next().context("a backend has a device")
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::{Path, PathBuf};

    use anyhow::{Result, bail, ensure};

    /// The folder of the CUDA toolkit, in which CubeCL looks for headers.
    fn home() -> Option<PathBuf> {
        if let Some(path) = std::env::var_os("CUDA_PATH") {
            return Some(path.into());
        }
        let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
        usual.into_iter().find(|path| path.exists())
    }

    /// Memory of a card, bytes.
    pub(super) fn memory(number: usize) -> Option<u64> {
        cudarc::driver::result::init().ok()?;
        let device = cudarc::driver::result::device::get(i32::try_from(number).ok()?).ok()?;
        // SAFETY: the driver has just given the device.
        let bytes = unsafe { cudarc::driver::result::device::total_mem(device) };
        bytes.ok().map(|bytes| bytes as u64)
    }

    /// What a kernel needs before it can run: a driver, a card, NVRTC, headers.
    pub(super) fn check(cards: usize) -> Result<()> {
        // SAFETY: both functions only load a library.
        let (driver, nvrtc) = unsafe {
            (
                cudarc::driver::sys::is_culib_present(),
                cudarc::nvrtc::sys::is_culib_present(),
            )
        };
        ensure!(
            driver,
            "no CUDA driver: libcuda.so.1 is not on the library path; it comes with the card's driver (nvidia-smi shows it)"
        );
        ensure!(
            cards > 0,
            "the CUDA driver finds no card (nvidia-smi, CUDA_VISIBLE_DEVICES)"
        );
        ensure!(
            nvrtc,
            "no NVRTC, which compiles the kernels: libnvrtc.so is not on the library path; `make cuda` fetches it into \
             .cuda/lib, for LD_LIBRARY_PATH"
        );
        let Some(home) = home() else {
            bail!(
                "no CUDA headers: set CUDA_PATH to a CUDA toolkit, or to .cuda after `make cuda`"
            );
        };
        let header = Path::new("include/cuda_runtime.h");
        ensure!(
            home.join(header).exists(),
            "no CUDA headers: {} is missing; set CUDA_PATH to a CUDA toolkit, or to .cuda after `make cuda`",
            home.join(header).display()
        );
        Ok(())
    }
}

/// Memory limit of a chunk of logits, see [`abkd_training::head::chunk_bytes`].
pub fn chunk_bytes(name: &str) -> usize {
    match name {
        "cuda" | "tch-cuda" => abkd_training::head::CARD_CHUNK_BYTES,
        _ => abkd_training::head::CHUNK_BYTES,
    }
}

/// Whether the backend's tensors lie on a card.
pub fn is_card(name: &str) -> bool {
    !matches!(name, "flex" | "tch")
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
/// As [`devices`].
pub fn check(name: &str) -> Result<()> {
    known(name)?;
    if !BACKENDS.contains(&(name, true)) {
        let feature = name.split('-').next().unwrap_or(name);
        bail!(
            "backend `{name}` is not built in; build with it: cargo run --release --features {feature} --bin abkd -- ..."
        );
    }
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
                    let feature = format!("--features {}", name.trim_end_matches("-cuda"));
                    assert!(error.to_string().contains(&feature), "{error}");
                }
            }
        }
    }

    #[test]
    fn cards_are_numbers_and_each_is_named_once() {
        let cards: Cards = "0, 2,1".parse().unwrap();
        assert_eq!((cards.to_string(), cards.count()), ("0,2,1".into(), 3));
        assert_eq!(cards.backend("tch"), "tch");
        let cards: Cards = "cuda:1".parse().unwrap();
        assert_eq!(
            (
                cards.to_string(),
                cards.backend("tch"),
                cards.backend("wgpu")
            ),
            ("1".into(), "tch-cuda", "wgpu")
        );
        assert_eq!(Cards::default().count(), 1);
        for (text, said) in [
            ("", "names no cards"),
            ("a", "names no cards"),
            ("-1", "names no cards"),
            ("1,", "names no cards"),
            ("gpu:0", "names no cards"),
            ("cuda:", "names no cards"),
            ("1,cuda:1", "twice"),
        ] {
            let error = text.parse::<Cards>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_card_of_the_processor_is_refused() {
        assert_eq!(devices("flex", &Cards::default()).unwrap().len(), 1);
        let error = devices("flex", &"0".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("computes on the processor"), "{error}");
    }
}
