//! Which nodes run together: a stage cut into phases, with a barrier after each.
//!
//! - *Rows*: every operation that maps a row to a row. A thread takes whole rows through all of them, so that norms,
//!   rotations, cache writes, sums and activations between two products cost one barrier.
//! - *Linear*: products of one or more weights whose inputs are ready (q, k and v), as one list of panels; or a gated
//!   product, with the activation of the gate and the multiplication by it.
//! - *Attention*: one operation, divided into tiles.

use std::ops::Range;

use graph::{Activation, Graph, Node, Op, Rows, Weight};

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
    let mut index = nodes.start;
    while index < nodes.end {
        if let Some(last) = phases.last_mut()
            && gated(graph, last.nodes.start..nodes.end.min(index + 2)).is_some()
        {
            last.nodes.end = index + 2;
            index += 2;
            continue;
        }
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
        index += 1;
    }
    phases
}

/// A gated product: `activation(x gate) * (x factor)`, both of one type and shape.
pub(crate) struct Gated<'a> {
    pub(crate) gate: &'a Node,
    pub(crate) activation: Activation,
    pub(crate) factor: &'a Node,
    pub(crate) product: &'a Node,
}

/// The gated product that these nodes are, where nothing else reads what they make on the way.
pub(crate) fn gated(graph: &Graph, nodes: Range<usize>) -> Option<Gated<'_>> {
    let [gate, factor, activate, product] = &graph.nodes()[nodes] else { return None };
    let (Op::Linear { x, weight: a, .. }, Op::Linear { x: same, weight: b, .. }) = (&gate.op, &factor.op) else {
        return None;
    };
    let (Op::Activate { x: activated, kind }, Op::Mul { a: left, b: right }) = (&activate.op, &product.op) else {
        return None;
    };
    let is_chain = (gate.output, activate.output, factor.output) == (Some(*activated), Some(*left), Some(*right));
    let shape = |weight| {
        let Weight { dtype, rows, cols, .. } = *graph.weight(weight);
        (dtype, rows, cols)
    };
    let is_inner = |node: &Node| {
        node.output.is_some_and(|value| !graph.is_output(value) && graph.readers(value).take(2).count() == 1)
    };
    let fits = is_chain && x == same && shape(*a) == shape(*b) && [gate, factor, activate].into_iter().all(is_inner);
    fits.then_some(Gated { gate, activation: *kind, factor, product })
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
