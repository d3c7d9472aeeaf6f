//! The part of `cubecl-llvm`'s interface that `cubecl-cuda` 0.11.3 names, without LLVM: compiling by this backend is an
//! error that says so. With feature `cpp` of `cubecl-cuda`, which the workspace sets, kernels go through NVRTC and
//! nothing here is called.

use std::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::compiler::{CompilationError, Compiler};
use cubecl_server::kernel::BufferIOAttr;

use nvptx::ptx_version::PtxVersion;

/// Where kernels would run.
#[derive(Clone, Copy, Debug)]
pub enum LlvmTarget {
    /// Nvidia's.
    Nvptx,
}

/// The compiler that is left out.
#[derive(Clone, Copy, Debug)]
pub struct PlironCompiler {
    /// Where kernels would run.
    pub target: LlvmTarget,
}

/// Its options.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Not used.
    pub arch: Option<()>,
    /// The device's architecture.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX.
    pub ptx_version: Option<PtxVersion>,
    /// How scalars would be passed.
    pub grid_constants: bool,
}

/// A compiled module: there is none.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX.
    pub ptx: Vec<std::ffi::c_char>,
    /// Name of the kernel.
    pub entrypoint: String,
    /// Text for logs.
    pub ir: String,
    /// Bytes.
    pub shared_memory_size: usize,
    /// How buffers are used.
    pub io: Vec<BufferIOAttr>,
}

/// What compiling would give.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// For Nvidia's devices.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Validation {
            reason: "this build has no LLVM: CUDA kernels are compiled by NVRTC (feature `cpp` of cubecl-cuda)".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// Nvidia's target.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use std::fmt;

        /// A version of PTX: none is ever chosen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest version that a driver loads. `None`: without LLVM this crate writes no PTX.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What all targets share.
pub mod shared {
    /// Features that a device has and this backend does not support.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// Where kernels would run.
        #[derive(Clone, Copy, Debug)]
        pub enum GpuTarget {
            /// Nvidia's.
            Nvptx,
        }

        /// Removes the features that the backend does not support. It does nothing here: it is called only if this
        /// backend is chosen.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}
