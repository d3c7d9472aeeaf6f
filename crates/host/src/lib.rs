//! Code that the other crates share: which devices the kernels over host memory serve, elementary functions that compile to
//! vector code, the choice of an instruction set at run time, random numbers, and files: atomic writes and checksums.

mod choice;
pub mod chunks;
pub mod fault;
pub mod files;
#[cfg(feature = "tch")]
pub mod libtorch;
pub mod math;
mod memory;
pub mod rng;
pub mod seal;

pub use memory::{KeptMemory, keep_freed_memory, peak_memory, return_freed_memory};

#[cfg(feature = "burn")]
use burn::tensor::Device;

/// Lanes of every sum. The number is fixed, so that a result depends neither on the instruction set nor on the number of
/// threads.
pub const LANES: usize = 16;

/// libtorch's CPU, where this build has it (feature `tch`).
#[cfg(feature = "burn")]
pub fn libtorch() -> Option<Device> {
    #[cfg(feature = "tch")]
    #[allow(deprecated)] // Burn will drop libtorch one day
    return Some(Device::libtorch());
    #[cfg(not(feature = "tch"))]
    None
}

/// Whether tensors of `device` lie in host memory and outside any autodiff graph, so that a kernel may read them there and
/// write its result there.
#[cfg(feature = "burn")]
pub fn serves(device: &Device) -> bool {
    // Device equality ignores autodiff.
    if device.is_autodiff() {
        return false;
    }
    *device == Device::flex() || libtorch().is_some_and(|libtorch| *device == libtorch)
}

/// Whether `device` is an NVIDIA card, by CUDA or by libtorch.
#[cfg(feature = "burn")]
pub fn is_card(device: &Device) -> bool {
    /// No machine has more.
    const CARDS: usize = 64;
    (0..CARDS).any(|number| {
        #[cfg(feature = "tch")]
        #[allow(deprecated)] // as above
        if *device == Device::libtorch_cuda(number) {
            return true;
        }
        #[cfg(feature = "cuda")]
        if *device == Device::cuda(number) {
            return true;
        }
        let _ = (device, number);
        false
    })
}

/// Has the threads of libtorch (libgomp's) sleep soon after they are done. By default they spin for milliseconds, on the cores
/// that this program's own threads need next: an update of SmolLM2-135M's shape took 5 to 10% longer on two cores. libgomp
/// reads `GOMP_SPINCOUNT` when it is loaded, so the program sets it and replaces itself by itself. Called at program start,
/// before any output; does nothing where that variable or `OMP_WAIT_POLICY` is set, without the feature `tch`, and elsewhere
/// than on Linux.
pub fn share_cores_with_libtorch() {
    #[cfg(all(feature = "tch", target_os = "linux"))]
    {
        use std::os::unix::process::CommandExt;
        let set = |name: &str| std::env::var_os(name).is_some();
        if set("GOMP_SPINCOUNT") || set("OMP_WAIT_POLICY") {
            return;
        }
        let Ok(program) = std::env::current_exe() else {
            return;
        };
        let mut again = std::process::Command::new(program);
        let mut arguments = std::env::args_os();
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        // It returns only where it fails, and then this process goes on, with threads that spin.
        let _ = again.args(arguments).env("GOMP_SPINCOUNT", "10000").exec();
    }
}

/// Runs `install`, which sets signal handlers. A SIGHUP that was ignored before stays ignored, so that a program under `nohup`
/// goes on when its terminal closes.
pub fn keeping_nohup<T>(install: impl FnOnce() -> T) -> T {
    #[cfg(unix)]
    // SAFETY: reads the action of SIGHUP by setting another one, then restores it.
    let ignored = unsafe {
        let before = libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, before);
        before == libc::SIG_IGN
    };
    let done = install();
    #[cfg(unix)]
    if ignored {
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    done
}

/// Prefetches the memory at an address, which need not be valid, into the second-level cache.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the instruction is part of x86-64, and a prefetch faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `dispatch!(f => g(x: T) -> U)`: a function `f` that calls the inlined `g`, compiled for AVX-512, AVX2 and the baseline;
/// the machine's features choose at run time. `g` must be `#[inline(always)]`; it may have one type parameter: `g<D: Bound>`.
#[macro_export]
macro_rules! dispatch {
    ($vis:vis $name:ident => $inner:ident $(<$d:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?) => {
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$d: $bound>)? ($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512 $(<$d: $bound>)? ($($arg: $ty),*) $(-> $out)? { $inner($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$d: $bound>)? ($($arg: $ty),*) $(-> $out)? { $inner($($arg),*) }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $inner($($arg),*)
        }
    };
}
