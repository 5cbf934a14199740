//! The planner: which device runs what, within which memory, cut into which stages.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    arena::Arena,
    device::{Arithmetic, Device, DeviceError, KvPlan, KvType, Limits, Memory, Program, Rates, Share, Stage},
    estimate::Work,
    execution::Execution,
    graph::{Graph, Part, ValueId},
    placement::{Placed, Placer},
    step::KV_BLOCK_TOKENS,
};

/// What the planner is asked for.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Tokens a sequence may have; `None` takes what memory allows, up to the model's own.
    pub context: Option<usize>,
    /// The context the model was made for.
    pub model_context: usize,
    /// Sequences that run at once, at most.
    pub sequences: usize,
    /// Bytes of KV cache to aim at. `None` makes room for a full context of every sequence, and of caches with a window
    /// for the window. Otherwise one full context is sure; what these bytes allow beyond it holds first what has left
    /// the windows, so that earlier tokens can be gone on from, and then more sequences.
    pub kv_bytes: Option<u64>,
    /// Tokens a step: the size of a prefill chunk.
    pub step_tokens: usize,
    /// Wanted outputs a step.
    pub step_outputs: usize,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Bytes each device may use, in the order of the devices; `None` takes what is available, less a reserve.
    pub budgets: Vec<Option<u64>>,
    /// Parts that must run on a named device.
    pub pins: Vec<(Part, String)>,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            context: None,
            model_context: 4096,
            sequences: 1,
            kv_bytes: None,
            step_tokens: 512,
            step_outputs: 1,
            kv: KvType::default(),
            arithmetic: Arithmetic::default(),
            budgets: vec![],
            pins: vec![],
        }
    }
}

/// Why no plan could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No device runs a node.
    #[error("no device runs {node}: {reasons}")]
    Unsupported {
        /// The operation and its layer.
        node: String,
        /// What each device said.
        reasons: String,
    },
    /// A pin names a device that is not there.
    #[error("no device is named {name}; there are: {known}")]
    UnknownDevice {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A pinned part cannot run there.
    #[error("{part} cannot run on {device}: {reason}")]
    Pin {
        /// The part.
        part: &'static str,
        /// The device.
        device: String,
        /// Why not.
        reason: String,
    },
    /// More context than the model was made for.
    #[error("a context of {asked} tokens is asked for, and the model was made for {own} at most")]
    Context {
        /// Asked for.
        asked: usize,
        /// The model's own.
        own: usize,
    },
    /// A number that makes no plan.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

/// Memory of one device under a plan, in bytes.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DeviceBytes {
    /// The device.
    pub device: String,
    /// Weights packed in its own memory, by part.
    pub weights: BTreeMap<Part, u64>,
    /// Matrices that every step reads in place from the mapped file. The system may drop their pages and read them
    /// again, but where they do not fit every token waits for the disk: they count as held.
    pub mapped: u64,
    /// Embedding tables of which a step looks rows up in the mapped file. They need not be resident and do not count.
    pub looked_up: u64,
    /// KV cache.
    pub kv: u64,
    /// Activations and working memory.
    pub activations: u64,
    /// What it may use.
    pub budget: u64,
    /// Weight bytes a token reads in decoding.
    pub read_per_token: u64,
    /// What it computes beside.
    #[serde(skip)]
    pub work: Work,
    /// Its measured rates, where known.
    #[serde(skip)]
    pub rates: Option<Rates>,
}

impl DeviceBytes {
    /// Weights of all parts.
    pub fn weights_total(&self) -> u64 {
        self.weights.values().sum()
    }

    /// Everything the device must hold.
    pub fn total(&self) -> u64 {
        self.weights_total() + self.mapped + self.kv + self.activations
    }

    /// Bytes by which the budget falls short; 0 where everything fits.
    pub fn short_by(&self) -> u64 {
        self.total().saturating_sub(self.budget)
    }
}

/// A placement of every node, with memory and stages. Prints itself (`Display`) as a table.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Device index of each node.
    pub placement: Vec<usize>,
    /// Runs of nodes on one device, in order.
    pub stages: Vec<Stage>,
    /// Names of the devices.
    pub devices: Vec<String>,
    /// The largest step.
    pub limits: Limits,
    /// The KV cache.
    pub kv: KvPlan,
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Memory by device.
    pub bytes: Vec<DeviceBytes>,
    /// What was not placed on the first device or where it was pinned, and why.
    pub fallbacks: Vec<String>,
    /// What crosses from device to device in each step, through host memory.
    pub transfers: Vec<Transfer>,
    /// Sequences that run at once, at most.
    pub sequences: usize,
    /// What was asked of the context, and what the model was made for.
    pub context_asked: Option<usize>,
    /// The model's own context.
    pub model_context: usize,
    pub(crate) arenas: Vec<Arena>,
    pub(crate) summary: Vec<crate::report::PartRow>,
}

/// Values that one device makes and another reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Index of the device that makes them.
    pub from: usize,
    /// Index of the device that reads them.
    pub to: usize,
    /// Values.
    pub values: usize,
    /// Bytes of all of them for a row of a step: a token, or a wanted output.
    pub bytes_per_row: u64,
}

/// Tokens of the smallest context the planner proposes by itself, and the grain of its proposals.
const CONTEXT_GRAIN: usize = 256;

/// Tokens of a context that is worth giving a faster device up for.
pub const CONTEXT_ENOUGH: usize = 4096;

/// Places every node of `graph` on `devices`, given in order of preference.
///
/// A unit (one part of one layer) goes to the first device that supports all of it; where none does, its nodes are placed
/// one by one. The first layer that a device has no room for, and all that follows, goes to the next device; the last
/// takes what is left, and the plan reports the shortage. A KV cache lies on one device: whoever writes it and whoever
/// reads it are placed there, or refused.
///
/// Where no context is asked for, it is the longest that memory allows up to the model's own. One of more than
/// [`CONTEXT_ENOUGH`] tokens pushes nothing off a device that a shorter one would leave there.
///
/// # Errors
/// Where a node is supported nowhere, a pin cannot be kept, or the options make no plan.
pub fn plan(graph: &Graph, devices: &[&dyn Device], options: &PlanOptions) -> Result<Plan, PlanError> {
    for (what, number) in [
        ("sequences", options.sequences),
        ("tokens a step", options.step_tokens),
        ("outputs a step", options.step_outputs),
        ("the context", options.context.unwrap_or(1)),
        ("the model's context", options.model_context),
    ] {
        if number == 0 {
            return Err(PlanError::Zero(what));
        }
    }
    let planner = Planner::new(graph, devices, options)?;
    if let Some(asked) = options.context {
        if asked > options.model_context {
            return Err(PlanError::Context { asked, own: options.model_context });
        }
        return planner.with_context(asked);
    }
    let enough = planner.with_context(options.model_context.min(CONTEXT_ENOUGH))?;
    let fits = |plan: &Plan| !plan.is_short() && (enough.is_short() || plan.placement == enough.placement);
    let whole = planner.with_context(options.model_context)?;
    if fits(&whole) {
        return Ok(whole);
    }
    // The largest multiple of the grain that fits; the smallest of all where none does, with its shortage.
    let (mut low, mut high) = (1, options.model_context.div_ceil(CONTEXT_GRAIN));
    if !enough.is_short() {
        low = enough.limits.context / CONTEXT_GRAIN;
    }
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(&planner.with_context((middle * CONTEXT_GRAIN).min(options.model_context))?) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    planner.with_context((low.max(1) * CONTEXT_GRAIN).min(options.model_context))
}

/// Bytes that a device may use where no budget is given: a tenth of what is available stays free for the system.
pub fn default_budget(memory: Memory) -> u64 {
    let available = memory.available_bytes;
    if available == u64::MAX { available } else { available / 10 * 9 }
}

impl Plan {
    /// Names of the devices that run anything.
    pub fn used_devices(&self) -> Vec<&str> {
        let used = |index: &usize| self.stages.iter().any(|stage| stage.device == *index);
        (0..self.devices.len()).filter(used).map(|index| self.devices[index].as_str()).collect()
    }

    /// Whether a device lacks memory for its share.
    pub fn is_short(&self) -> bool {
        self.bytes.iter().any(|bytes| bytes.short_by() > 0)
    }

    /// Compiles every device's share. `progress` hears (bytes of weights done, bytes of all weights).
    ///
    /// # Errors
    /// What the devices report.
    pub fn compile(
        self,
        graph: Arc<Graph>,
        devices: &[&dyn Device],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Execution, DeviceError> {
        let total: u64 = graph.weights().iter().map(|weight| weight.data.len() as u64).sum();
        let mut before = 0;
        let mut programs: Vec<Option<Box<dyn Program>>> = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            let stages: Vec<&Stage> = self.stages.iter().filter(|stage| stage.device == index).collect();
            if stages.is_empty() {
                programs.push(None);
                continue;
            }
            let share = Share {
                graph: &graph,
                stages,
                arena: &self.arenas[index],
                kv: &self.kv,
                limits: self.limits,
                arithmetic: self.arithmetic,
            };
            let mut done = 0;
            programs.push(Some(device.compile(&share, &mut |bytes| {
                done = bytes;
                progress(before + bytes, total);
            })?));
            before += done;
        }
        Ok(Execution::new(graph, self, programs))
    }
}

struct Planner<'a> {
    graph: &'a Graph,
    devices: &'a [&'a dyn Device],
    options: &'a PlanOptions,
    placer: Placer<'a>,
    budgets: Vec<u64>,
}

/// Placements that are tried until what they compute in fits beside what they hold.
const ROUNDS: usize = 8;

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, devices: &'a [&'a dyn Device], options: &'a PlanOptions) -> Result<Self, PlanError> {
        let budget = |index: usize, device: &dyn Device| {
            options.budgets.get(index).copied().flatten().unwrap_or_else(|| default_budget(device.memory()))
        };
        let budgets = devices.iter().enumerate().map(|(index, device)| budget(index, *device)).collect();
        Ok(Planner { graph, devices, options, placer: Placer::new(graph, devices, options)?, budgets })
    }

    fn with_context(&self, context: usize) -> Result<Plan, PlanError> {
        let together = context.saturating_mul(self.options.sequences);
        let limits = Limits {
            tokens: self.options.step_tokens.min(together),
            outputs: self.options.step_outputs.min(self.options.step_tokens).min(together),
            context,
        };
        let kv = self.kv_plan(&limits);
        // What a device computes in is known once it is known what lies there.
        let mut working = vec![0; self.devices.len()];
        let mut last = None;
        for _ in 1..ROUNDS {
            let room: Vec<i128> = self
                .budgets
                .iter()
                .zip(&working)
                .map(|(budget, used)| i128::from(*budget) - i128::from(*used))
                .collect();
            let placed = self.placer.place(&kv, &room)?;
            if last.as_ref().is_some_and(|plan: &Plan| plan.placement == placed.placement) {
                break;
            }
            let plan = self.laid_out(placed, kv.clone(), limits);
            for (working, bytes) in working.iter_mut().zip(&plan.bytes) {
                *working = bytes.activations.max(*working);
            }
            let is_short = plan.is_short();
            last = Some(plan);
            if !is_short {
                break;
            }
        }
        Ok(last.expect("the first round has nothing to be the same as"))
    }

    /// The plan of a placement.
    fn laid_out(&self, placed: Placed, kv: KvPlan, limits: Limits) -> Plan {
        let Placed { placement, fallbacks } = placed;
        let stages = stages(self.graph, &placement);
        let phase_of = self.phase_of(&stages);
        let arenas: Vec<Arena> =
            (0..self.devices.len()).map(|device| Arena::new(self.graph, &stages, device, &limits, &phase_of)).collect();
        let bytes = (0..self.devices.len())
            .map(|device| {
                let share = Share {
                    graph: self.graph,
                    stages: stages.iter().filter(|stage| stage.device == device).collect(),
                    arena: &arenas[device],
                    kv: &kv,
                    limits,
                    arithmetic: self.options.arithmetic,
                };
                self.device_bytes(device, &placement, &share)
            })
            .collect();
        let summary = crate::report::summarise(self.graph, &placement, self.devices.len());
        let transfers = transfers(self.graph, &stages);
        Plan {
            placement,
            stages,
            devices: self.devices.iter().map(|device| device.name().to_owned()).collect(),
            limits,
            kv,
            arithmetic: self.options.arithmetic,
            bytes,
            fallbacks,
            transfers,
            sequences: self.options.sequences,
            context_asked: self.options.context,
            model_context: self.options.model_context,
            arenas,
            summary,
        }
    }

    /// The phase of every node, counted through all stages.
    fn phase_of(&self, stages: &[Stage]) -> Vec<usize> {
        let mut phase_of = Vec::with_capacity(self.graph.nodes().len());
        let mut first = 0;
        for stage in stages {
            let phases = self.devices[stage.device].phases(self.graph, stage.nodes.clone());
            phase_of.extend(phases.iter().map(|phase| first + phase));
            first += phases.last().map_or(0, |last| last + 1);
        }
        phase_of
    }

    /// A group with a window needs blocks for the window and one step, however long the context.
    fn kv_plan(&self, limits: &Limits) -> KvPlan {
        let whole = limits.context.div_ceil(KV_BLOCK_TOKENS);
        let windows = self.graph.windows();
        let needed = |window: &Option<usize>| {
            window.map_or(whole, |window| (window + limits.tokens).div_ceil(KV_BLOCK_TOKENS) + 1).min(whole)
        };
        let mut blocks: Vec<usize> = windows.iter().map(needed).collect();
        match self.options.kv_bytes {
            None => blocks.iter_mut().for_each(|count| *count = count.saturating_mul(self.options.sequences)),
            Some(bytes) => self.spend(bytes, whole, &mut blocks),
        }
        KvPlan { dtype: self.options.kv, blocks }
    }

    /// Raises the blocks of one full context as far as `bytes` allow: groups with a window up to the whole context,
    /// then all alike up to a full context of every sequence.
    fn spend(&self, bytes: u64, whole: usize, blocks: &mut [usize]) {
        let block_bytes: Vec<u64> = (0..blocks.len()).map(|group| self.block_bytes(group)).collect();
        let cost = |blocks: &[usize]| -> u64 { blocks.iter().zip(&block_bytes).map(|(n, b)| *n as u64 * b).sum() };
        let left = bytes.saturating_sub(cost(blocks));
        let short: u64 = blocks.iter().zip(&block_bytes).map(|(n, b)| (whole - n) as u64 * b).sum();
        for count in blocks.iter_mut() {
            let missing = (whole - *count) as u64;
            // Every group the same share of what it lacks.
            *count += (u128::from(missing) * u128::from(left.min(short)) / u128::from(short.max(1))) as usize;
        }
        let left = bytes.saturating_sub(cost(blocks));
        let more = (left / block_bytes.iter().sum::<u64>().max(1)) as usize;
        let most = whole.saturating_mul(self.options.sequences.saturating_sub(1));
        if blocks.iter().all(|count| *count == whole) {
            blocks.iter_mut().for_each(|count| *count += more.min(most));
        }
    }

    /// Bytes of one block in all caches of a group.
    fn block_bytes(&self, group: usize) -> u64 {
        let caches = self.graph.caches().iter().filter(|cache| cache.group == group);
        caches.map(|cache| KV_BLOCK_TOKENS as u64 * cache.token_bytes(self.options.kv)).sum()
    }

    fn device_bytes(&self, device: usize, placement: &[usize], share: &Share<'_>) -> DeviceBytes {
        let mut resident: BTreeMap<usize, (Part, u64)> = BTreeMap::new();
        let (mut mapped, mut looked_up) = (BTreeMap::new(), BTreeMap::new());
        let (mut kv_bytes, mut read_per_token) = (0, 0);
        for id in self.graph.node_ids().filter(|id| placement[id.index()] == device) {
            let node = self.graph.node(id);
            if let crate::Op::KvWrite { cache, .. } = &node.op {
                kv_bytes += cache_bytes(self.graph, *cache, share.kv);
            }
            for weight_id in node.op.weights() {
                let weight = self.graph.weight(weight_id);
                let bytes = self.devices[device].weight_bytes(self.graph, id, weight, self.options.arithmetic);
                if bytes == 0 {
                    let is_looked_up = matches!(node.op, crate::Op::Embed { .. });
                    let of = if is_looked_up { &mut looked_up } else { &mut mapped };
                    of.insert(weight_id.index(), weight.data.len() as u64);
                }
                // A weight that two parts share (a tied head) is listed with the one that packs it.
                let entry = resident.entry(weight_id.index()).or_insert((node.part, bytes));
                if bytes > entry.1 {
                    *entry = (node.part, bytes);
                }
                read_per_token += match node.op {
                    crate::Op::Embed { .. } => weight.row_bytes() as u64,
                    // Read from the file's pages.
                    _ if bytes == 0 => weight.data.len() as u64,
                    _ => bytes,
                };
            }
        }
        // A table that is the head too is read whole.
        looked_up.retain(|weight, _| !mapped.contains_key(weight));
        let mut weights = BTreeMap::new();
        for (part, bytes) in resident.into_values() {
            *weights.entry(part).or_insert(0) += bytes;
        }
        let activations = if share.stages.is_empty() { 0 } else { self.devices[device].working_bytes(share) };
        DeviceBytes {
            device: self.devices[device].name().to_owned(),
            weights,
            mapped: mapped.into_values().sum(),
            looked_up: looked_up.into_values().sum(),
            kv: kv_bytes,
            activations,
            budget: self.budgets[device],
            read_per_token,
            work: Work::of(self.graph, share.kv.dtype, |node| placement[node] == device),
            rates: self.devices[device].rates(),
        }
    }
}

pub(crate) fn cache_bytes(graph: &Graph, cache: crate::CacheId, kv: &KvPlan) -> u64 {
    let cache = graph.cache(cache);
    kv.blocks[cache.group] as u64 * KV_BLOCK_TOKENS as u64 * cache.token_bytes(kv.dtype)
}

/// Cuts the nodes into runs on one device and finds what crosses the borders.
fn stages(graph: &Graph, placement: &[usize]) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for (index, &device) in placement.iter().enumerate() {
        match stages.last_mut() {
            Some(stage) if stage.device == device => stage.nodes.end = index + 1,
            _ => stages.push(Stage { device, nodes: index..index + 1, inputs: vec![], outputs: vec![] }),
        }
    }
    let mut made_in: Vec<Option<usize>> = vec![None; graph.values().len()];
    let mut outputs: Vec<Vec<ValueId>> = vec![vec![]; stages.len()];
    for (index, stage) in stages.iter_mut().enumerate() {
        for node in &graph.nodes()[stage.nodes.clone()] {
            for value in node.op.inputs() {
                let maker = made_in[value.index()].expect("nodes come after what they read");
                if maker != index && !stage.inputs.contains(&value) {
                    stage.inputs.push(value);
                    if !outputs[maker].contains(&value) {
                        outputs[maker].push(value);
                    }
                }
            }
            if let Some(value) = node.output {
                made_in[value.index()] = Some(index);
                if graph.is_output(value) {
                    outputs[index].push(value);
                }
            }
        }
    }
    for (stage, outputs) in stages.iter_mut().zip(outputs) {
        stage.outputs = outputs;
    }
    stages
}

/// What crosses from device to device.
fn transfers(graph: &Graph, stages: &[Stage]) -> Vec<Transfer> {
    let mut transfers: Vec<Transfer> = Vec::new();
    for stage in stages {
        for input in &stage.inputs {
            let maker = stages.iter().find(|other| other.outputs.contains(input));
            let from = maker.expect("what a stage takes in another gives").device;
            let bytes = graph.value(*input).width as u64 * 4;
            match transfers.iter_mut().find(|known| (known.from, known.to) == (from, stage.device)) {
                Some(known) => {
                    known.values += 1;
                    known.bytes_per_row += bytes;
                }
                None => transfers.push(Transfer { from, to: stage.device, values: 1, bytes_per_row: bytes }),
            }
        }
    }
    transfers
}
