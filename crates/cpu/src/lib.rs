//! The CPU device.
//!
//! A share of a plan becomes a list of phases (module `schedule`: rows, products, attention) that a pool of threads runs
//! together, with one barrier after each. Weights are packed once, when the share is compiled: 16 rows side by side,
//! quants unsigned, in the order of the inner loop (module `pack`). Products of quantised weights use integers, with
//! activations rounded to 8 bits in groups of 32; with [`graph::Arithmetic::F32`] the same packed weights are unpacked
//! to `f32`.
//!
//! Kernels are chosen at run time: AVX-512 with VNNI by intrinsics; AVX2 by intrinsics where quantised weights
//! are multiplied; all else by plain loops, compiled for AVX2 or for the base instruction set. The types without a packed form (the IQ1, IQ2, IQ3 and TQ
//! families) are read from the mapped file and decoded while they are multiplied.
//!
//! # A row's numbers do not depend on what runs beside it
//!
//! Whatever the number of rows in a step, the other sequences in it, the cut of a prompt into chunks, and the number of
//! threads, the numbers of a row have the same bits. (Of a NaN only that it is one is certain.) It is what lets a seed
//! give the same text on a busy server and on an idle one. The reasons:
//!
//! - No sum is divided: every element of a product is one chain of `f32` operations over ascending columns, by one
//!   thread. A tile's end stores the chain and goes on from there. The kernels for few rows and for many do the same
//!   operations in the same order (`f32` fused or not, as the instruction set has it), and Rust never reorders or fuses
//!   them by itself.
//! - Activations are rounded by row, with scales of their own; outliers are rounded twice.
//! - A query meets its keys in blocks of [`graph::KV_BLOCK_TOKENS`], counted from the first token of its sequence and
//!   not from the chunk's, always through the cache and its rounding. Keys and values that it does not see are left
//!   out, so that nothing in them, infinity included, can reach it.
//!
//! It holds for one instruction set and one [`graph::Arithmetic`]; between two of them bits differ. Tested in
//! `tests/batch_invariance.rs`.
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
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod compile;
mod format;
mod info;
mod isa;
mod kv;
mod linear;
mod math;
mod output;
mod pack;
mod pool;
mod program;
mod region;
mod rows;
mod schedule;
mod tile;

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use graph::{Arithmetic, Device, DeviceError, Graph, Memory, NodeId, Op, Program, Rates, Share, Weight};

pub use info::CpuInfo;

use isa::Isa;
use pool::Pool;

/// How the device is set up.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads; `None` takes one a core, and no more than the system lets this process run at once.
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
    read_bytes_per_s: OnceLock<f64>,
    int8_ops_per_s: OnceLock<Option<f64>>,
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
        Ok(Cpu { pool, isa, threads, read_bytes_per_s: OnceLock::new(), int8_ops_per_s: OnceLock::new() })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set the kernels are chosen by.
    pub fn isa(&self) -> &'static str {
        self.isa.name()
    }

    /// Measures both rates with all threads, each once; later calls return the same. The best of several passes, as a
    /// roof should be.
    pub fn measure(&self) -> Rates {
        Rates { read_bytes_per_s: self.measure_bandwidth(), int8_ops_per_s: self.measure_int8(), ..Rates::default() }
    }

    /// The read bandwidth of memory, bytes a second: about a tenth of a second, and 256 MiB while it lasts.
    pub fn measure_bandwidth(&self) -> f64 {
        *self.read_bytes_per_s.get_or_init(|| info::read_bandwidth(&mut self.pool(), self.isa))
    }

    /// The rate of the kernels' integer products on registers: a few hundredths of a second.
    fn measure_int8(&self) -> Option<f64> {
        *self.int8_ops_per_s.get_or_init(|| info::int8_rate(&mut self.pool(), self.isa))
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
        let (read_bytes_per_s, int8_ops_per_s) = (*self.read_bytes_per_s.get()?, self.int8_ops_per_s.get());
        Some(Rates { read_bytes_per_s, int8_ops_per_s: int8_ops_per_s.copied().flatten(), ..Rates::default() })
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

    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        share.arena.bytes() + share.exchanged_bytes() + compile::scratch_bytes(self, share.graph, &share.limits)
    }

    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        Ok(Box::new(compile::compile(self, share, progress)))
    }
}
