//! The planner: which device runs what, within which memory, cut into which stages.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    arena::Arena,
    device::{Arithmetic, Device, DeviceError, KvPlan, KvType, Limits, Memory, Program, Rates, Share, Stage},
    execution::Execution,
    graph::{Graph, NodeId, Part, ValueId},
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
    /// Where a node was not placed on the first device, and why.
    pub fallbacks: Vec<String>,
    /// Sequences that run at once, at most.
    pub sequences: usize,
    /// What was asked of the context, and what the model was made for.
    pub context_asked: Option<usize>,
    /// The model's own context.
    pub model_context: usize,
    pub(crate) arenas: Vec<Arena>,
    pub(crate) summary: Vec<crate::report::PartRow>,
}

/// Tokens of the smallest context the planner proposes by itself, and the grain of its proposals.
const CONTEXT_GRAIN: usize = 256;

/// Places every node of `graph` on `devices`, given in order of preference.
///
/// A unit (one part of one layer) goes to the first device that supports all of it and has room. Where no device supports
/// a whole unit, its nodes are placed one by one. Where no device has room, the last that supports the unit takes it and
/// the plan reports the shortage. A KV cache lies on one device: whoever writes it and whoever reads it are placed there,
/// or refused.
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
    let whole = planner.with_context(options.model_context)?;
    if !whole.is_short() {
        return Ok(whole);
    }
    // The largest multiple of the grain that fits; the smallest of all where none does, with its shortage.
    let (mut low, mut high) = (1, options.model_context.div_ceil(CONTEXT_GRAIN));
    while low < high {
        let middle = (low + high).div_ceil(2);
        let fits = !planner.with_context((middle * CONTEXT_GRAIN).min(options.model_context))?.is_short();
        if fits { low = middle } else { high = middle - 1 }
    }
    planner.with_context((low * CONTEXT_GRAIN).min(options.model_context))
}

/// Bytes that a device may use where no budget is given: a tenth of what is available stays free for the system.
pub fn default_budget(memory: Memory) -> u64 {
    let available = memory.available_bytes;
    if available == u64::MAX { available } else { available / 10 * 9 }
}

impl Plan {
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
    units: Vec<Vec<NodeId>>,
    budgets: Vec<u64>,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, devices: &'a [&'a dyn Device], options: &'a PlanOptions) -> Result<Self, PlanError> {
        for (_, name) in &options.pins {
            if !devices.iter().any(|device| device.name() == name) {
                let known = devices.iter().map(|device| device.name()).collect::<Vec<_>>().join(", ");
                return Err(PlanError::UnknownDevice { name: name.clone(), known });
            }
        }
        let mut units: Vec<Vec<NodeId>> = Vec::new();
        for id in graph.node_ids() {
            let of = |id: NodeId| (graph.node(id).part, graph.node(id).layer);
            match units.last_mut() {
                Some(unit) if of(unit[0]) == of(id) => unit.push(id),
                _ => units.push(vec![id]),
            }
        }
        let budget = |index: usize, device: &dyn Device| {
            options.budgets.get(index).copied().flatten().unwrap_or_else(|| default_budget(device.memory()))
        };
        let budgets = devices.iter().enumerate().map(|(index, device)| budget(index, *device)).collect();
        Ok(Planner { graph, devices, options, units, budgets })
    }

    fn with_context(&self, context: usize) -> Result<Plan, PlanError> {
        let together = context.saturating_mul(self.options.sequences);
        let limits = Limits {
            tokens: self.options.step_tokens.min(together),
            outputs: self.options.step_outputs.min(self.options.step_tokens).min(together),
            context,
        };
        let kv = self.kv_plan(&limits);
        let (placement, fallbacks) = self.place(&kv, &limits)?;
        let stages = stages(self.graph, &placement);
        let phase_of = self.phase_of(&stages);
        let arenas: Vec<Arena> =
            (0..self.devices.len()).map(|device| Arena::new(self.graph, &stages, device, &limits, &phase_of)).collect();
        let bytes = (0..self.devices.len())
            .map(|device| {
                let exchanged = stages.iter().filter(|stage| stage.device == device).flat_map(|stage| &stage.outputs);
                let exchanged: u64 = exchanged.map(|value| exchange_bytes(self.graph, *value, &limits)).sum();
                self.device_bytes(device, &placement, &kv, &limits, arenas[device].bytes() + exchanged)
            })
            .collect();
        let summary = crate::report::summarise(self.graph, &placement, self.devices.len());
        Ok(Plan {
            placement,
            stages,
            devices: self.devices.iter().map(|device| device.name().to_owned()).collect(),
            limits,
            kv,
            arithmetic: self.options.arithmetic,
            bytes,
            fallbacks,
            sequences: self.options.sequences,
            context_asked: self.options.context,
            model_context: self.options.model_context,
            arenas,
            summary,
        })
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

    fn place(&self, kv: &KvPlan, limits: &Limits) -> Result<(Vec<usize>, Vec<String>), PlanError> {
        let mut placement = vec![usize::MAX; self.graph.nodes().len()];
        let mut fallbacks = Vec::new();
        let mut homes = vec![None; self.graph.caches().len()];
        let mut left: Vec<u64> = (0..self.devices.len())
            .map(|d| self.budgets[d].saturating_sub(self.devices[d].scratch_bytes(self.graph, limits)))
            .collect();
        for unit in &self.units {
            let choice = self.choose(unit, kv, &left, &homes)?;
            for (node, device) in choice.devices {
                if let Some(cache) = self.graph.node(node).op.cache() {
                    let home = *homes[cache.index()].get_or_insert(device);
                    assert_eq!(home, device, "a cache lies on one device");
                }
                placement[node.index()] = device;
                left[device] = left[device].saturating_sub(self.node_bytes(node, device, kv));
            }
            fallbacks.extend(choice.reason);
        }
        fallbacks.dedup();
        Ok((placement, fallbacks))
    }

    /// Why a node cannot be placed on a device; `homes` tells where the caches lie that were placed before.
    fn refusal(&self, node: NodeId, device: usize, homes: &[Option<usize>]) -> Option<String> {
        if let Err(reason) = self.devices[device].supports(self.graph, node) {
            return Some(reason);
        }
        let op = &self.graph.node(node).op;
        let home = homes[op.cache()?.index()].filter(|home| *home != device)?;
        Some(format!("{} needs the KV cache, which lies on {}", op.name(), self.devices[home].name()))
    }

    fn choose(&self, unit: &[NodeId], kv: &KvPlan, left: &[u64], homes: &[Option<usize>]) -> Result<Choice, PlanError> {
        let first = self.graph.node(unit[0]);
        let whole = |device: usize, reason: Option<String>| Choice {
            devices: unit.iter().map(|node| (*node, device)).collect(),
            reason,
        };
        let refusal = |device: usize| unit.iter().find_map(|node| self.refusal(*node, device, homes));
        if let Some((part, name)) = self.options.pins.iter().find(|(part, _)| *part == first.part) {
            let device = self.devices.iter().position(|d| d.name() == name).expect("checked in new");
            return match refusal(device) {
                None => Ok(whole(device, None)),
                Some(reason) => Err(PlanError::Pin { part: part.name(), device: name.clone(), reason }),
            };
        }
        let label = || match first.layer {
            Some(layer) => format!("{} of layer {layer}", first.part.name()),
            None => first.part.name().to_owned(),
        };
        let mut reasons = Vec::new();
        let mut last_resort = None;
        for (device, &room) in left.iter().enumerate() {
            let name = self.devices[device].name();
            if let Some(reason) = refusal(device) {
                reasons.push(format!("{name}: {reason}"));
                continue;
            }
            let bytes: u64 = unit.iter().map(|node| self.node_bytes(*node, device, kv)).sum();
            if bytes <= room {
                let why = (!reasons.is_empty()).then(|| format!("{} on {name} ({})", label(), reasons.join("; ")));
                return Ok(whole(device, why));
            }
            reasons.push(format!("{name}: {bytes} bytes needed, {room} left"));
            last_resort = Some(device);
        }
        if let Some(device) = last_resort {
            return Ok(whole(device, None));
        }
        let mut devices = Vec::new();
        for node in unit {
            let Some(device) = self.split(unit, *node, homes) else {
                let node = format!("{} in {}", self.graph.node(*node).op.name(), label());
                return Err(PlanError::Unsupported { node, reasons: reasons.join("; ") });
            };
            devices.push((*node, device));
        }
        Ok(Choice { devices, reason: Some(format!("{} split ({})", label(), reasons.join("; "))) })
    }

    /// The first device for one node of a unit that is taken apart: it takes all nodes of the unit that share the node's
    /// cache.
    fn split(&self, unit: &[NodeId], node: NodeId, homes: &[Option<usize>]) -> Option<usize> {
        let cache_of = |node: NodeId| self.graph.node(node).op.cache();
        let together =
            |other: &&NodeId| **other == node || cache_of(node).is_some() && cache_of(**other) == cache_of(node);
        let takes_all =
            |device: &usize| unit.iter().filter(together).all(|other| self.refusal(*other, *device, homes).is_none());
        (0..self.devices.len()).find(takes_all)
    }

    /// Bytes that placing a node on a device adds: its weights, packed or in place, and the cache with the node that
    /// writes it.
    fn node_bytes(&self, node: NodeId, device: usize, kv: &KvPlan) -> u64 {
        let op = &self.graph.node(node).op;
        let weights = op.weights().into_iter().map(|weight| {
            let weight = self.graph.weight(weight);
            match self.devices[device].weight_bytes(self.graph, node, weight, self.options.arithmetic) {
                0 if !matches!(op, crate::Op::Embed { .. }) => weight.data.len() as u64,
                bytes => bytes,
            }
        });
        let cache = match op {
            crate::Op::KvWrite { cache, .. } => cache_bytes(self.graph, *cache, kv),
            _ => 0,
        };
        weights.sum::<u64>() + cache
    }

    fn device_bytes(
        &self,
        device: usize,
        placement: &[usize],
        kv: &KvPlan,
        limits: &Limits,
        arena_bytes: u64,
    ) -> DeviceBytes {
        let mut resident: BTreeMap<usize, (Part, u64)> = BTreeMap::new();
        let (mut mapped, mut looked_up) = (BTreeMap::new(), BTreeMap::new());
        let (mut kv_bytes, mut read_per_token) = (0, 0);
        for id in self.graph.node_ids().filter(|id| placement[id.index()] == device) {
            let node = self.graph.node(id);
            if let crate::Op::KvWrite { cache, .. } = &node.op {
                kv_bytes += cache_bytes(self.graph, *cache, kv);
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
        let used = placement.contains(&device);
        let scratch = if used { self.devices[device].scratch_bytes(self.graph, limits) } else { 0 };
        DeviceBytes {
            device: self.devices[device].name().to_owned(),
            weights,
            mapped: mapped.into_values().sum(),
            looked_up: looked_up.into_values().sum(),
            kv: kv_bytes,
            activations: arena_bytes + scratch,
            budget: self.budgets[device],
            read_per_token,
            rates: self.devices[device].rates(),
        }
    }
}

struct Choice {
    devices: Vec<(NodeId, usize)>,
    reason: Option<String>,
}

fn cache_bytes(graph: &Graph, cache: crate::CacheId, kv: &KvPlan) -> u64 {
    let cache = graph.cache(cache);
    kv.blocks[cache.group] as u64 * KV_BLOCK_TOKENS as u64 * cache.token_bytes(kv.dtype)
}

/// Bytes of host memory for a value that leaves a stage.
fn exchange_bytes(graph: &Graph, value: ValueId, limits: &Limits) -> u64 {
    let value = graph.value(value);
    (limits.rows(value.rows) * value.width) as u64 * 4
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
