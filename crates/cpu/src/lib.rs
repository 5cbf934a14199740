//! The CPU device.
//!
//! A share of a plan becomes a list of phases (module `schedule`: rows, products, attention) that a pool of threads runs
//! together, with one barrier after each. Weights are packed once, when the share is compiled: 16 rows side by side,
//! quants unsigned, in the order of the inner loop (module `pack`). Products of quantised weights use integers, with
//! activations rounded to 8 bits in groups of 32; with [`graph::Arithmetic::F32`] the same packed weights are unpacked
//! to `f32`.
//!
//! Kernels are chosen at run time: AVX-512 with VNNI by intrinsics; AVX2 and any other processor by the same plain
//! loops, compiled for AVX2 or for the base instruction set. The types without a packed form (the IQ1, IQ2, IQ3 and TQ
//! families) are read from the mapped file and decoded while they are multiplied.
//!
//! The crate knows no model and no file format. Own code, and not a library's thread pool or matrix product, because
//! these are what the project is for: a pool that wakes in a microsecond and meets at barriers inside a step, and
//! products of ggml's block types.
//!
//! ```
//! use graph::Device;
//! let cpu = cpu::Cpu::new(cpu::CpuOptions { threads: Some(2), ..Default::default() })?;
//! assert_eq!(cpu.name(), "cpu");
//! # Ok::<(), cpu::CpuError>(())
//! ```

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod compile;
mod format;
mod info;
mod isa;
mod kv;
mod linear;
mod math;
mod pack;
mod pool;
mod program;
mod rows;
mod schedule;
mod tile;

use std::{
    ops::Range,
    sync::{Arc, Mutex, OnceLock},
};

use graph::{Arithmetic, Device, DeviceError, Graph, Limits, Memory, NodeId, Op, Program, Rates, Share, Weight};

pub use info::CpuInfo;

use isa::Isa;
use pool::Pool;

/// How the device is set up.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads; `None` takes as many as the system lets this process run at once.
    pub threads: Option<usize>,
    /// Instruction set: `avx512`, `avx2` or `portable`; `None` takes the best there is.
    pub isa: Option<String>,
}

/// Why the device could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The instruction set is unknown or not there.
    #[error("instruction set {0} is not to be had here: choose avx512, avx2 or portable as the processor allows")]
    Isa(String),
    /// A number of threads that makes no pool.
    #[error("{0} threads: choose between 1 and {max}", max = MAX_THREADS)]
    Threads(usize),
    /// The system refused a thread.
    #[error("cannot start a thread: {0}")]
    Spawn(#[from] std::io::Error),
}

const MAX_THREADS: usize = 1024;

/// The CPU device. Programs compiled by it share its threads.
pub struct Cpu {
    pool: Arc<Mutex<Pool>>,
    isa: Isa,
    threads: usize,
    rates: OnceLock<Rates>,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the instruction set is not there or threads cannot be had.
    pub fn new(options: CpuOptions) -> Result<Cpu, CpuError> {
        let isa = match options.isa {
            None => Isa::detect(),
            Some(name) => Isa::named(&name).ok_or(CpuError::Isa(name))?,
        };
        let threads = options.threads.unwrap_or_else(info::available_threads);
        if threads == 0 || threads > MAX_THREADS {
            return Err(CpuError::Threads(threads));
        }
        let pool = Arc::new(Mutex::new(Pool::new(threads)?));
        Ok(Cpu { pool, isa, threads, rates: OnceLock::new() })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set the kernels are chosen by.
    pub fn isa(&self) -> &'static str {
        self.isa.name()
    }

    /// Measures the read bandwidth of memory with all threads (about a tenth of a second, 256 MiB), once; later calls
    /// return the same. Bytes a second: the best of several passes, as a roof should be.
    pub fn measure(&self) -> Rates {
        *self.rates.get_or_init(|| {
            let mut pool = self.pool.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            Rates { read_bytes_per_s: info::read_bandwidth(&mut pool, self.isa), ops_per_s: f64::NAN }
        })
    }
}

impl Device for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn memory(&self) -> Memory {
        info::memory()
    }

    fn rates(&self) -> Option<Rates> {
        self.rates.get().copied()
    }

    fn supports(&self, _graph: &Graph, _node: NodeId) -> Result<(), String> {
        Ok(())
    }

    fn phases(&self, graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
        compile::phase_indices(graph, nodes)
    }

    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, _arithmetic: Arithmetic) -> u64 {
        match &graph.node(node).op {
            // Rows of the table are decoded from the file's pages.
            Op::Embed { .. } => 0,
            Op::Linear { weight: matrix, .. } if std::ptr::eq(graph.weight(*matrix), weight) => {
                pack::packed_bytes(weight)
            }
            // Vectors are held as `f32`.
            _ => weight.cols as u64 * 4,
        }
    }

    fn scratch_bytes(&self, graph: &Graph, limits: &Limits) -> u64 {
        compile::scratch_bytes(self, graph, limits)
    }

    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        Ok(Box::new(compile::compile(self, share, progress)?))
    }
}
