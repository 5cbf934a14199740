//! Where activations lie: values whose lives do not overlap share a slot.

use crate::{
    device::{Limits, Stage},
    graph::{Graph, ValueId},
};

/// A place for one value at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Elements: rows of the largest step times the widest value placed here.
    pub elements: usize,
}

/// The slots of one device and which value lies in which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    /// The slots.
    pub slots: Vec<Slot>,
    slot_of: Vec<Option<u32>>,
}

impl Arena {
    /// The slot of a value; `None` where the value does not live on this device.
    pub fn slot(&self, value: ValueId) -> Option<usize> {
        self.slot_of[value.index()].map(|slot| slot as usize)
    }

    /// Bytes of all slots.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.elements as u64 * 4).sum()
    }

    /// Lays out the values that live on `device`: each from the phase that makes it (or the stage that takes it in) to
    /// the phase of its last reader there; `phase_of` gives the phase of every node ([`crate::Device::phases`]). Greedy
    /// by order of birth, best fit by size.
    pub fn new(graph: &Graph, stages: &[Stage], device: usize, limits: &Limits, phase_of: &[usize]) -> Arena {
        let mut lives = lives(graph, stages, device, phase_of);
        lives.sort_by_key(|life| life.from);
        let mut slots: Vec<(usize, usize)> = Vec::new(); // (elements, occupied until)
        let mut slot_of = vec![None; graph.values().len()];
        for life in lives {
            let value = graph.value(life.value);
            let elements = limits.rows(value.rows) * value.width;
            let free = (0..slots.len()).filter(|&slot| slots[slot].1 < life.from);
            let best = free.min_by_key(|&slot| slots[slot].0.abs_diff(elements));
            let slot = best.unwrap_or_else(|| {
                slots.push((0, 0));
                slots.len() - 1
            });
            slots[slot] = (slots[slot].0.max(elements), life.to);
            slot_of[life.value.index()] = Some(slot as u32);
        }
        Arena { slots: slots.into_iter().map(|(elements, _)| Slot { elements }).collect(), slot_of }
    }
}

struct Life {
    value: ValueId,
    from: usize,
    to: usize,
}

fn lives(graph: &Graph, stages: &[Stage], device: usize, phase_of: &[usize]) -> Vec<Life> {
    let mut from = vec![None; graph.values().len()];
    let mut to = vec![0; graph.values().len()];
    for stage in stages.iter().filter(|stage| stage.device == device) {
        for value in &stage.inputs {
            from[value.index()].get_or_insert(phase_of[stage.nodes.start]);
        }
        for index in stage.nodes.clone() {
            let node = &graph.nodes()[index];
            for value in node.op.inputs() {
                to[value.index()] = phase_of[index];
            }
            if let Some(value) = node.output {
                from[value.index()] = Some(phase_of[index]);
                to[value.index()] = to[value.index()].max(phase_of[index]);
            }
        }
        // What leaves a stage is copied out when the stage ends.
        for value in &stage.outputs {
            to[value.index()] = to[value.index()].max(phase_of[stage.nodes.end - 1]);
        }
    }
    let alive = from.into_iter().enumerate();
    alive.filter_map(|(i, from)| Some(Life { value: ValueId(i as u32), from: from?, to: to[i] })).collect()
}
