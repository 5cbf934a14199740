//! Where each node goes: which device runs what, and what falls to the next for want of room.

use crate::{
    device::{Device, KvPlan},
    graph::{Graph, NodeId},
    plan::{PlanError, PlanOptions, cache_bytes},
    report::bytes_text,
};

/// Places the nodes of a graph on devices, given in order of preference.
///
/// What a device supports is asked for each unit, one part of one layer. What it has room for is asked for whole layers:
/// the first layer that a device has no room for, and all that follows, goes to the next one. So attention lies with its
/// KV cache and its feed-forward, and values cross once.
pub(crate) struct Placer<'a> {
    graph: &'a Graph,
    devices: &'a [&'a dyn Device],
    options: &'a PlanOptions,
    /// Units by layer; what belongs to none is by itself.
    layers: Vec<Vec<Vec<NodeId>>>,
}

/// A placement of every node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    /// Device index of each node.
    pub(crate) placement: Vec<usize>,
    /// What is not on the first device or where it was pinned, and why.
    pub(crate) fallbacks: Vec<String>,
}

/// Where a unit goes.
struct Choice {
    devices: Vec<(NodeId, usize)>,
    reason: Option<String>,
}

/// What was decided so far.
struct Progress {
    placed: Placed,
    /// Where each cache lies.
    homes: Vec<Option<usize>>,
    /// Bytes left on each device; below zero where less than nothing is.
    left: Vec<i128>,
    /// The first device that has room.
    first: usize,
}

impl<'a> Placer<'a> {
    pub(crate) fn new(
        graph: &'a Graph,
        devices: &'a [&'a dyn Device],
        options: &'a PlanOptions,
    ) -> Result<Placer<'a>, PlanError> {
        for (_, name) in &options.pins {
            if !devices.iter().any(|device| device.name() == name) {
                let known = devices.iter().map(|device| device.name()).collect::<Vec<_>>().join(", ");
                return Err(PlanError::UnknownDevice { name: name.clone(), known });
            }
        }
        let ids: Vec<NodeId> = graph.node_ids().collect();
        let of = |id: &NodeId| (graph.node(*id).part, graph.node(*id).layer);
        let units = ids.chunk_by(|a, b| of(a) == of(b)).map(<[NodeId]>::to_vec);
        let mut layers: Vec<Vec<Vec<NodeId>>> = Vec::new();
        for unit in units {
            let layer = graph.node(unit[0]).layer;
            match layers.last_mut() {
                Some(units) if layer.is_some() && graph.node(units[0][0]).layer == layer => units.push(unit),
                _ => layers.push(vec![unit]),
            }
        }
        Ok(Placer { graph, devices, options, layers })
    }

    /// A placement within `room` bytes of each device for weights and caches. Where no device has room, the last that
    /// supports a unit takes it all the same.
    pub(crate) fn place(&self, kv: &KvPlan, room: &[i128]) -> Result<Placed, PlanError> {
        let mut fallbacks = Vec::new();
        let mut first = 0;
        loop {
            let mut progress = Progress {
                placed: Placed { placement: vec![usize::MAX; self.graph.nodes().len()], fallbacks },
                homes: vec![None; self.graph.caches().len()],
                left: room.to_vec(),
                first,
            };
            for layer in &self.layers {
                self.place_layer(layer, kv, &mut progress)?;
            }
            // A device that had no room for the first layer would only look up embeddings for the next.
            match (first..progress.first).find(|device| progress.left[*device] == room[*device]) {
                Some(idle) => (first, fallbacks) = (idle + 1, progress.placed.fallbacks),
                None => {
                    progress.placed.fallbacks.dedup();
                    return Ok(progress.placed);
                }
            }
        }
    }

    fn place_layer(&self, layer: &[Vec<NodeId>], kv: &KvPlan, progress: &mut Progress) -> Result<(), PlanError> {
        loop {
            let mut homes = progress.homes.clone();
            let choices = layer.iter().map(|unit| self.choose(unit, progress.first, &mut homes));
            let choices = choices.collect::<Result<Vec<Choice>, _>>()?;
            let placed = || choices.iter().flat_map(|choice| &choice.devices);
            let mut bytes = vec![0; self.devices.len()];
            placed().for_each(|(node, device)| bytes[*device] += i128::from(self.node_bytes(*node, *device, kv)));
            let first = progress.first;
            let is_used = placed().any(|(_, device)| *device == first);
            if is_used && bytes[first] > progress.left[first] && first + 1 < self.devices.len() {
                progress.placed.fallbacks.push(self.spill(layer, first, bytes[first], progress.left[first]));
                progress.first += 1;
                continue;
            }
            placed().for_each(|(node, device)| progress.placed.placement[node.index()] = *device);
            progress.left.iter_mut().zip(bytes).for_each(|(left, bytes)| *left -= bytes);
            progress.homes = homes;
            progress.placed.fallbacks.extend(choices.into_iter().filter_map(|choice| choice.reason));
            return Ok(());
        }
    }

    /// Why a layer and what follows is not on a device.
    fn spill(&self, layer: &[Vec<NodeId>], device: usize, needed: i128, left: i128) -> String {
        let text = |bytes: i128| bytes_text(u64::try_from(bytes.max(0)).unwrap_or(u64::MAX));
        let node = self.graph.node(layer[0][0]);
        let what = node.layer.map_or(node.part.name().to_owned(), |layer| format!("layer {layer}"));
        let (name, next) = (self.devices[device].name(), self.devices[device + 1].name());
        let (needed, left) = (text(needed), text(left));
        format!("{what} and what follows on {next} (it needs {needed}, and {name} has {left} left)")
    }

    /// Why a node cannot be placed on a device; `homes` tells where the caches lie that were placed before.
    fn refusal(&self, node: NodeId, device: usize, homes: &[Option<usize>]) -> Option<String> {
        if let Err(reason) = self.devices[device].supports(self.graph, node) {
            return Some(reason);
        }
        let op = &self.graph.node(node).op;
        let cache = op.cache()?;
        if let Err(reason) = self.devices[device].holds(self.options.kv) {
            return Some(reason);
        }
        let home = homes[cache.index()].filter(|home| *home != device)?;
        Some(format!("{} needs the KV cache, which lies on {}", op.name(), self.devices[home].name()))
    }

    /// The device of a unit: where it is pinned, else the first from `first` on that supports it, else any that does.
    fn choose(&self, unit: &[NodeId], first: usize, homes: &mut [Option<usize>]) -> Result<Choice, PlanError> {
        let choice = self.choose_device(unit, first, homes)?;
        for (node, device) in &choice.devices {
            if let Some(cache) = self.graph.node(*node).op.cache() {
                let home = *homes[cache.index()].get_or_insert(*device);
                assert_eq!(home, *device, "a cache lies on one device");
            }
        }
        Ok(choice)
    }

    fn choose_device(&self, unit: &[NodeId], first: usize, homes: &[Option<usize>]) -> Result<Choice, PlanError> {
        let node = self.graph.node(unit[0]);
        let whole = |device: usize, reason: Option<String>| Choice {
            devices: unit.iter().map(|node| (*node, device)).collect(),
            reason,
        };
        let refusal = |device: usize| unit.iter().find_map(|node| self.refusal(*node, device, homes));
        if let Some((part, name)) = self.options.pins.iter().find(|(part, _)| *part == node.part) {
            let device = self.devices.iter().position(|d| d.name() == name).expect("checked in new");
            return match refusal(device) {
                None => Ok(whole(device, None)),
                Some(reason) => Err(PlanError::Pin { part: part.name(), device: name.clone(), reason }),
            };
        }
        let label = || match node.layer {
            Some(layer) => format!("{} of layer {layer}", node.part.name()),
            None => node.part.name().to_owned(),
        };
        let mut reasons = Vec::new();
        for device in (first..self.devices.len()).chain(0..first) {
            let name = self.devices[device].name();
            let Some(reason) = refusal(device) else {
                let why = (!reasons.is_empty()).then(|| format!("{} on {name} ({})", label(), reasons.join("; ")));
                return Ok(whole(device, why));
            };
            reasons.push(format!("{name}: {reason}"));
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
}
