//! Whether products of bfloat16 are faster than those of f32 here. Where they are not, rounded factors are multiplied in
//! f32 and the sum is rounded.
//!
//! Intel's `vdpbf16ps` takes twice as long as two products of f32 (2.3 GHz, one thread: 85 and 173 GFLOP/s), so there AMX
//! alone counts, which a virtual machine can hide. Without either, libtorch's bfloat16 is up to a hundred times slower
//! than f32.

use std::sync::LazyLock;

use burn::tensor::Device;

/// Asked once: a virtual machine answers slowly.
static PROCESSOR: LazyLock<Processor> = LazyLock::new(Processor::ask);

/// Whether products of bfloat16 are faster on a device.
pub(crate) fn on_device(device: &Device) -> bool {
    abkd_host::libtorch().is_none_or(|libtorch| *device != libtorch) || on_libtorch()
}

/// Whether libtorch's products of bfloat16 are faster, on the processor.
pub(crate) fn on_libtorch() -> bool {
    PROCESSOR.tiles || PROCESSOR.dots == Some(Dots::Fast)
}

/// The processor's `vdpbf16ps`: a sum of two products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Dots {
    /// Slower than two of f32.
    Slow,
    Fast,
}

/// What the processor has.
pub(crate) fn dots() -> Option<Dots> {
    #[cfg(test)]
    if let Some(given) = GIVEN.get() {
        return given;
    }
    PROCESSOR.dots
}

#[cfg(test)]
thread_local! {
    static GIVEN: std::cell::Cell<Option<Option<Dots>>> = const { std::cell::Cell::new(None) };
}

/// Runs a test without `vdpbf16ps` and, where the processor has it, with it, as if it was slow or fast.
#[cfg(test)]
pub(crate) fn each_way(test: impl Fn()) {
    for given in [None, Some(Dots::Slow), Some(Dots::Fast)] {
        if given.is_none() || PROCESSOR.dots.is_some() {
            GIVEN.set(Some(given));
            test();
        }
    }
    GIVEN.set(None);
}

struct Processor {
    dots: Option<Dots>,
    /// AMX's products of bfloat16.
    tiles: bool,
}

impl Processor {
    #[cfg(target_arch = "x86_64")]
    fn ask() -> Self {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        let amx = 1 << 22 | 1 << 24; // products of bfloat16, tiles
        let intel = __cpuid(0).ebx.to_le_bytes() == *b"Genu";
        let dots = if intel { Dots::Slow } else { Dots::Fast };
        Self {
            dots: (avx512 && is_x86_feature_detected!("avx512bf16")).then_some(dots),
            tiles: avx512 && intel && __cpuid_count(7, 0).edx & amx == amx,
        }
    }

    /// Other processors use libtorch's own products of bfloat16.
    #[cfg(not(target_arch = "x86_64"))]
    fn ask() -> Self {
        Self {
            dots: None,
            tiles: true,
        }
    }
}
