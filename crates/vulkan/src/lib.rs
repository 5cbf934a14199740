//! The Vulkan device.
//!
//! A share of a plan becomes a list of operations (modules `fuse` and `operation`): products with the norms before them
//! and the activation or sum after them, heads with their norms, rotation and cache, attention. For each size of step
//! the list becomes a command buffer, recorded once and submitted again: what changes from step to step (positions,
//! block tables) lies in a buffer that the processor writes (module `inbox`). Addresses of memory travel in push
//! constants; there are no descriptor sets.
//!
//! ```text
//!   Graph --fuse--> groups --compile--> operations --list--> dispatches --record--> command buffers
//!                                (addresses)       (a size of step)          (barriers, cuts)
//! ```
//!
//! Weights are packed once, when the share is compiled (module `pack`), with quants apart from scales. Products of
//! quantised weights and few rows use integers, with activations rounded to 8 bits in groups of 32; from some rows on they
//! use matrix units where the device has them, halves summed in floats, and integers, then floats elsewhere (module
//! `products`). With [`graph::Arithmetic::F32`] all is floats. In decoding, what lies between two products is one kernel or
//! none: norms stand before the products that read them, rounding behind what makes the input, and heads, cache, attention
//! and the join of its shares in `attend.comp`. Kernels are chosen by [`Capabilities`] and by nothing else: each capability
//! with a fallback can be left unused, so that what one device runs can be tested on another.
//!
//! How products divide their work follows from rules, or from what was measured on the device (module `tuning`), and a
//! step's commands are cut into submits of bounded length (module `pace`).
//!
//! The loader is found at run time. A machine without Vulkan gets an error that says so, and the program needs no
//! library of Vulkan to start. Shaders are compiled beforehand (`cargo xtask shaders` checks that they are those of
//! their sources).
//!
//! A device may be used by one thread and dropped by another. But where a thread used a device and ends after another
//! has dropped it, NVIDIA's driver (580.159) can go round for ever in that thread's end and hold a lock that all its
//! calls take (seen in 2 of 19 runs of 20 devices at once, on an H100). So whoever opens a device on a thread of its own
//! lets that thread end while the device lives, as `unicorn serve` does.
//!
//! Not promised, unlike by the CPU device: the same bits for a row whatever runs beside it. Kernels for few rows and for
//! many sum in different orders.
//!
//! ```no_run
//! use graph::Device;
//! let vulkan = vulkan::Vulkan::open(vulkan::VulkanOptions::default())?;
//! println!("{}: {}", vulkan.name(), vulkan.capabilities().name);
//! # Ok::<(), vulkan::VulkanError>(())
//! ```

mod capabilities;
mod compile;
mod context;
mod error;
mod fragments;
mod fuse;
mod inbox;
mod instance;
mod kernels;
mod list;
mod memory;
mod operation;
mod pace;
mod pack;
mod pipeline;
mod products;
mod profile;
mod program;
mod rates;
mod record;
mod room;
mod shaders;
mod top;
mod tuning;
mod upload;
mod variants;

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use ash::vk;
use graph::{Arithmetic, Device, DeviceError, Graph, Memory, NodeId, Op, Program, Rates, Share, Weight};

pub use capabilities::{Capabilities, Kind, MatrixShape, OPTIONAL};
pub use error::VulkanError;
pub use instance::validation_complaints;
pub use profile::KernelTime;
pub use tuning::{Choices, NoVariant, Variant};

use context::Context;
use instance::Instance;
use profile::Profile;
use rates::KernelRates;

/// How the device is set up.
#[derive(Clone, Debug, Default)]
pub struct VulkanOptions {
    /// The device's number in [`list`]; `None` takes the first that is no software.
    pub index: Option<usize>,
    /// Capabilities to leave unused, of [`OPTIONAL`].
    pub without: Vec<String>,
    /// Whether the validation layer watches, where it is installed.
    pub validation: bool,
    /// Folder of the pipeline cache; `None` keeps none.
    pub cache: Option<PathBuf>,
    /// Whether kernels are timed: see [`Vulkan::profile`].
    pub profile: bool,
    /// How long a submit may last by estimate, before a step's commands are cut into several; zero sets no bound, `None`
    /// takes that of the kind of device: 100 ms of an integrated one, a second of a card, none of software.
    pub submit_bound: Option<Duration>,
}

/// What [`list`] tells of a device.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What it can do, or what it lacks.
    pub capabilities: Result<Capabilities, VulkanError>,
}

/// The devices of this machine, in the order of their numbers.
///
/// # Errors
/// Where there is no Vulkan.
pub fn list() -> Result<Vec<Listed>, VulkanError> {
    let candidates = Instance::get(false)?.candidates()?;
    Ok(candidates.into_iter().map(|one| Listed { capabilities: one.capabilities }).collect())
}

/// An opened device. Programs compiled by it share its queue and pipelines.
pub struct Vulkan {
    name: String,
    context: Arc<Context>,
    profile: Arc<Profile>,
    read_bytes_per_s: OnceLock<f64>,
    kernel_rates: OnceLock<KernelRates>,
}

impl Vulkan {
    /// Opens a device.
    ///
    /// # Errors
    /// Where there is none, it lacks what every kernel needs, or a call fails.
    pub fn open(options: VulkanOptions) -> Result<Vulkan, VulkanError> {
        let instance = Instance::get(options.validation)?;
        let (physical, capabilities) = instance.choose(options.index)?;
        let capabilities = capabilities.without(&options.without)?;
        let context = Context::open(instance, physical, capabilities, options.cache, options.submit_bound)?;
        let mut context = Arc::new(context);
        let fragments = fragments::are_known(&context)?;
        Arc::get_mut(&mut context).expect("nothing else holds it yet").capabilities.matrix_fragments = fragments;
        Ok(Vulkan {
            name: options.index.map_or("vulkan".to_owned(), |index| format!("vulkan:{index}")),
            context,
            profile: Arc::new(Profile::new(options.profile)),
            read_bytes_per_s: OnceLock::new(),
            kernel_rates: OnceLock::new(),
        })
    }

    /// What it can do, as far as it is used.
    pub fn capabilities(&self) -> &Capabilities {
        &self.context.capabilities
    }

    /// Whether a capability of [`OPTIONAL`] is in use.
    pub fn uses(&self, capability: &str) -> bool {
        self.context.capabilities.uses(capability)
    }

    /// What results depend on beside the model: [`Vulkan::build_id`], and what was chosen for it.
    pub fn kernels_id(&self) -> String {
        let choices = self.choices();
        if choices.is_empty() {
            return self.build_id();
        }
        let text: String = choices.iter().map(|(kernel, variant)| format!("{kernel}: {variant}\n")).collect();
        format!("{} tuned {:016x}", self.build_id(), pipeline::digest(text.as_bytes()))
    }

    /// The variants that were chosen by [`Vulkan::choose`].
    pub fn choices(&self) -> Choices {
        self.context.tuning.choices()
    }

    /// Takes these variants of kernels from the next step on. What is not valid for a kernel's shape is not taken.
    pub fn choose(&self, choices: Choices) {
        self.context.tuning.set(choices);
    }

    /// Lets every kernel that has variants take the one at this place among its own, of which the rule's is the first;
    /// `None` ends that. [`KernelTime::choice`] says which ran.
    pub fn try_variant(&self, place: Option<usize>) {
        self.context.tuning.begin_trial(place);
    }

    /// The most variants that a kernel had since trials began.
    pub fn variants(&self) -> usize {
        self.context.tuning.most()
    }

    /// Device, driver, shaders, this crate's version, and the capabilities in use.
    pub fn build_id(&self) -> String {
        let own = &self.context.capabilities;
        let used: Vec<&str> = OPTIONAL.into_iter().filter(|name| own.uses(name)).collect();
        let shaders = shaders::digest();
        format!("{} {} {shaders:016x} {} {}", own.cache_id, own.driver, env!("CARGO_PKG_VERSION"), used.join(","))
    }

    /// A file beside the pipeline cache; `None` where none is kept.
    pub fn cache_file(&self, extension: &str) -> Option<PathBuf> {
        Some(self.context.cache_path.as_ref()?.with_extension(extension))
    }

    /// The kernels made so far: shaders with their constants.
    pub fn kernels(&self) -> Vec<String> {
        let pipelines = self.context.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> =
            pipelines.keys().map(|key| format!("{} {:?}", key.shader.name(), key.constants)).collect();
        names.sort();
        names
    }

    /// Bytes of memory that its programs hold at present, as the driver was asked for them.
    pub fn allocated_bytes(&self) -> u64 {
        self.context.allocated.load(Ordering::Relaxed)
    }

    /// Submits so far: each step is one at least.
    pub fn submits(&self) -> u64 {
        self.context.submits()
    }

    /// Makes the device count as lost after so many more submits: for tests of what comes then.
    pub fn lose_after(&self, submits: u64) {
        self.context.lose_after(submits);
    }

    /// Whether the validation layer watches.
    pub fn is_validated(&self) -> bool {
        self.context.instance.validates()
    }

    /// Measures the bandwidth of reading memory, once; later calls return the same.
    ///
    /// # Errors
    /// Where memory for it cannot be had, or the device fails.
    pub fn measure(&self) -> Result<Rates, VulkanError> {
        if self.read_bytes_per_s.get().is_none() {
            let measured = rates::read_bandwidth(&self.context)?;
            self.read_bytes_per_s.get_or_init(|| measured);
        }
        Ok(self.rates().expect("just measured"))
    }

    /// Measures what its kernel for products of many rows reaches and how fast its memory is read by the processor, beside
    /// the bandwidth; each once.
    ///
    /// # Errors
    /// As [`Vulkan::measure`].
    pub fn measure_kernels(&self) -> Result<Rates, VulkanError> {
        if self.kernel_rates.get().is_none() {
            let measured = KernelRates::measure(&self.context)?;
            self.kernel_rates.get_or_init(|| measured);
        }
        self.measure()
    }

    /// Times of kernels since the last call, the longest first; none where it was opened without.
    pub fn profile(&self) -> Vec<KernelTime> {
        self.profile.drain()
    }

    /// An error of this device while it was given `bytes` bytes for `what`.
    fn fail(&self, error: VulkanError, what: &str, bytes: u64) -> DeviceError {
        match error {
            VulkanError::Call {
                result: vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY,
                ..
            } => DeviceError::OutOfMemory { device: self.name.clone(), what: what.to_owned(), bytes },
            error => error.for_plan(&self.name),
        }
    }
}

impl Device for Vulkan {
    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Memory {
        memory::memory(&self.context)
    }

    fn rates(&self) -> Option<Rates> {
        let own = self.kernel_rates.get();
        Some(Rates {
            read_bytes_per_s: *self.read_bytes_per_s.get()?,
            int8_ops_per_s: None,
            product_ops_per_s: own.map(|own| own.product_ops_per_s),
            transfer_bytes_per_s: own.map(|own| own.transfer_bytes_per_s),
        })
    }

    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String> {
        match &graph.node(node).op {
            Op::Attention { cache, .. } | Op::KvWrite { cache, .. } => match graph.cache(*cache).head_dim {
                head_dim if head_dim % 8 == 0 && head_dim <= 256 => Ok(()),
                head_dim => Err(format!("attention with heads of {head_dim}: multiples of 8 up to 256 are supported")),
            },
            Op::Rope { head_dim, .. } if *head_dim > 1024 => {
                Err(format!("rotation of heads of {head_dim}: up to 1024 are supported"))
            }
            _ => Ok(()),
        }
    }

    fn phases(&self, graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
        fuse::phase_indices(graph, nodes)
    }

    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, arithmetic: Arithmetic) -> u64 {
        match &graph.node(node).op {
            // Rows of the table are looked up in the mapped file.
            Op::Embed { .. } => 0,
            Op::Linear { weight: matrix, .. } if std::ptr::eq(graph.weight(*matrix), weight) => {
                compile::matrix_bytes(weight, arithmetic)
            }
            _ => compile::vector_bytes(weight.cols),
        }
    }

    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        room::working_bytes(&self.context, share)
    }

    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        Ok(Box::new(compile::compile(self, share, progress)?))
    }
}
