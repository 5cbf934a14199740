//! What a device is asked, and what it is handed to compile.

use std::ops::Range;

use crate::{
    arena::Arena,
    execution::Exchange,
    graph::{Graph, NodeId, ValueId, Weight},
    step::Step,
};

/// A processor that runs operations of a graph.
///
/// The planner asks first ([`Device::supports`], [`Device::weight_bytes`], [`Device::working_bytes`]) and compiles
/// last. A device may support some operations in some shapes only; it says which, and why not the others.
pub trait Device: Send + Sync {
    /// Its name in plans and on the command line.
    fn name(&self) -> &str;

    /// Memory it computes in.
    fn memory(&self) -> Memory;

    /// What it was measured to do; `None` where nothing was measured.
    fn rates(&self) -> Option<Rates>;

    /// Whether it can run a node.
    ///
    /// # Errors
    /// The reason why not, for the plan.
    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String>;

    /// Whether its caches can hold elements of a type.
    ///
    /// # Errors
    /// The reason why not, for the plan.
    fn holds(&self, _kv: KvType) -> Result<(), String> {
        Ok(())
    }

    /// The phase in which each node of a stage runs, counted from 0: nodes of one phase run at the same time, so none
    /// may overwrite what another reads. One node a phase unless the device says otherwise.
    fn phases(&self, _graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
        (0..nodes.len()).collect()
    }

    /// Bytes of its own memory that a weight takes once packed for the operation that reads it: nothing where it is
    /// read in place from the mapped file.
    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, arithmetic: Arithmetic) -> u64;

    /// Bytes of its own memory that a share takes beside weights and KV cache: the arena, what crosses to other devices,
    /// what kernels need beside.
    fn working_bytes(&self, share: &Share<'_>) -> u64;

    /// Compiles a share of a plan: packs weights, allocates memory, records kernels. `progress` hears the bytes of
    /// weights done so far.
    ///
    /// # Errors
    /// Where memory is exhausted, or the share holds a node this device does not support.
    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError>;
}

impl<D: Device + ?Sized> Device for &D {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn memory(&self) -> Memory {
        (**self).memory()
    }
    fn rates(&self) -> Option<Rates> {
        (**self).rates()
    }
    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String> {
        (**self).supports(graph, node)
    }
    fn holds(&self, kv: KvType) -> Result<(), String> {
        (**self).holds(kv)
    }
    fn phases(&self, graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
        (**self).phases(graph, nodes)
    }
    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, arithmetic: Arithmetic) -> u64 {
        (**self).weight_bytes(graph, node, weight, arithmetic)
    }
    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        (**self).working_bytes(share)
    }
    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        (**self).compile(share, progress)
    }
}

/// A compiled share of a plan.
pub trait Program: Send {
    /// Runs one stage of the share (an index into [`Share::stages`]) for a checked step. Inputs of the stage are read
    /// from `exchange`, its outputs are written there.
    ///
    /// # Errors
    /// Where the device failed; the contents of the cache for this step's tokens are then undefined.
    fn run(&mut self, stage: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), DeviceError>;

    /// Copies block `from` to block `to` in every cache of a group that lies on this device.
    ///
    /// # Errors
    /// Where the device failed; the contents of `to` are then undefined.
    fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), DeviceError>;
}

/// Why a device could not compile or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The device has no kernel for this.
    #[error("{device} does not support {what}")]
    Unsupported {
        /// The device.
        device: String,
        /// The operation and why.
        what: String,
    },
    /// Memory is exhausted.
    #[error("{device} is out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// What they were for.
        what: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The device is gone: what it held, the cache too, is lost, and it has to be opened anew.
    #[error("{device} was lost")]
    Lost {
        /// The device.
        device: String,
    },
    /// The device failed while it ran.
    #[error("{device} failed: {detail}")]
    Failed {
        /// The device.
        device: String,
        /// What it reported.
        detail: String,
    },
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What can be had now.
    pub available_bytes: u64,
}

/// Measured rates of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Reading from memory, bytes a second.
    pub read_bytes_per_s: f64,
    /// Products of 8-bit integers and their sums, each counted as an operation, a second: the roof of products with
    /// quantised weights. `None` where the kernels have no instruction for them.
    pub int8_ops_per_s: Option<f64>,
    /// What a product of its own kernels reaches with many rows, a multiply-add counted as two, a second. `None` where it
    /// was not measured.
    pub product_ops_per_s: Option<f64>,
    /// Copying from its memory to the processor's, bytes a second. `None` where it computes in the processor's, or where
    /// it was not measured.
    pub transfer_bytes_per_s: Option<f64>,
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// The device's fastest that keeps the quality of the weights: integer products for quantised weights with
    /// activations rounded to 8 bits in groups of 32.
    #[default]
    Fast,
    /// `f32` products and sums throughout.
    F32,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Single precision, for comparisons.
    F32,
    /// Integers of 8 bits with a half-precision scale for every [`KvType::GROUP`] elements of a head.
    Q8,
}

impl KvType {
    /// Elements of a head that share a scale; the last ones of a head may be fewer.
    pub const GROUP: usize = 32;

    /// Bytes of one head of one token's keys, or of its values.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvType::F16 => 2 * head_dim,
            KvType::F32 => 4 * head_dim,
            KvType::Q8 => head_dim + 2 * head_dim.div_ceil(KvType::GROUP),
        }
    }
}

/// The KV cache as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// Element type.
    pub dtype: KvType,
    /// Blocks each group of caches has ([`Graph::windows`]); every cache of the group has that many.
    pub blocks: Vec<usize>,
}

/// The largest step a plan makes room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens a step.
    pub tokens: usize,
    /// Wanted outputs a step.
    pub outputs: usize,
    /// Tokens a sequence.
    pub context: usize,
}

impl Limits {
    /// Rows a value may have.
    pub fn rows(&self, rows: crate::Rows) -> usize {
        match rows {
            crate::Rows::Tokens => self.tokens,
            crate::Rows::Outputs => self.outputs,
        }
    }
}

/// A run of nodes on one device, with the values that cross its borders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Index of the device.
    pub device: usize,
    /// The nodes, in order.
    pub nodes: Range<usize>,
    /// Values made elsewhere that it reads, through the exchange.
    pub inputs: Vec<ValueId>,
    /// Values that others read, through the exchange.
    pub outputs: Vec<ValueId>,
}

/// What a device compiles: its stages of a plan.
#[derive(Debug)]
pub struct Share<'a> {
    /// The whole graph.
    pub graph: &'a Graph,
    /// The stages of this device, in order.
    pub stages: Vec<&'a Stage>,
    /// Where its values lie.
    pub arena: &'a Arena,
    /// The KV cache.
    pub kv: &'a KvPlan,
    /// The largest step.
    pub limits: Limits,
    /// How products are computed.
    pub arithmetic: Arithmetic,
}

impl Share<'_> {
    /// Bytes of host memory for the values that leave its stages.
    pub fn exchanged_bytes(&self) -> u64 {
        let values = self.stages.iter().flat_map(|stage| &stage.outputs).map(|value| self.graph.value(*value));
        values.map(|value| (self.limits.rows(value.rows) * value.width) as u64 * 4).sum()
    }
}
