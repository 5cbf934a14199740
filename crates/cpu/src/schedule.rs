//! Which nodes run together: a stage cut into phases, with a barrier after each.
//!
//! - *Rows*: every operation that maps a row to a row. A thread takes whole rows through all of them, so that norms,
//!   rotations, cache writes, sums and activations between two products cost one barrier.
//! - *Linear*: products of one or more weights whose inputs are ready (q, k and v; gate and up), as one list of panels.
//! - *Attention*: one operation, divided into tiles.

use std::ops::Range;

use graph::{Graph, Op, Rows};

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Row by row, over tokens or over wanted outputs.
    Rows(Rows),
    /// Products.
    Linear,
    /// Attention.
    Attention,
}

/// A phase of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) kind: Kind,
    /// Its nodes, consecutive.
    pub(crate) nodes: Range<usize>,
}

/// Cuts consecutive nodes into phases.
pub(crate) fn phases(graph: &Graph, nodes: Range<usize>) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    for index in nodes {
        let node = &graph.nodes()[index];
        let kind = match &node.op {
            Op::Linear { .. } => Kind::Linear,
            Op::Attention { .. } => Kind::Attention,
            Op::KvWrite { k, .. } => Kind::Rows(graph.value(*k).rows),
            _ => Kind::Rows(node.output.map_or(Rows::Tokens, |value| graph.value(value).rows)),
        };
        match phases.last_mut() {
            Some(phase) if phase.kind == kind && joins(graph, phase, index) => phase.nodes.end = index + 1,
            _ => phases.push(Phase { kind, nodes: index..index + 1 }),
        }
    }
    phases
}

/// Whether a node of the same kind may run in a phase together with the nodes before it.
fn joins(graph: &Graph, phase: &Phase, index: usize) -> bool {
    match (phase.kind, &graph.nodes()[index].op) {
        // A product needs whole rows of its input, so it waits for whoever makes them.
        (Kind::Linear, op) => !graph.nodes()[phase.nodes.clone()]
            .iter()
            .any(|node| node.output.is_some_and(|made| op.inputs().contains(&made))),
        // Selecting reads other rows than it writes.
        (Kind::Rows(_), Op::SelectOutputs { .. }) => false,
        (Kind::Rows(_), _) => true,
        (Kind::Attention, _) => false,
    }
}
