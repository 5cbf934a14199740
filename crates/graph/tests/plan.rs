//! What the planner counts against a device's memory.

use graph::{
    Arithmetic, Device, DeviceError, Graph, GraphBuilder, Memory, NodeId, Op, Part, PlanOptions, Program, Rates, Share,
    Weight, plan,
};

/// Rows of the embedding table.
const VOCAB: usize = 64;
/// Elements of a row.
const WIDTH: usize = 32;
/// Bytes of a matrix: the table and the head have as many.
const MATRIX: u64 = (VOCAB * WIDTH * 4) as u64;

/// A device that packs matrices or reads them in the file, and computes nothing.
struct Counting {
    packs: bool,
}

impl Device for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    fn memory(&self) -> Memory {
        Memory { total_bytes: u64::MAX, available_bytes: u64::MAX }
    }

    fn rates(&self) -> Option<Rates> {
        None
    }

    fn supports(&self, _graph: &Graph, _node: NodeId) -> Result<(), String> {
        Ok(())
    }

    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, _arithmetic: Arithmetic) -> u64 {
        let is_looked_up = matches!(graph.node(node).op, Op::Embed { .. });
        if self.packs && !is_looked_up { weight.data.len() as u64 } else { 0 }
    }

    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        share.arena.bytes()
    }

    fn compile(&self, _share: &Share<'_>, _progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        unreachable!("only planned for")
    }
}

/// An embedding and a head, of one matrix or of two.
fn graph(tied: bool) -> Graph {
    let values = vec![0.5; VOCAB * WIDTH];
    let mut b = GraphBuilder::new();
    b.scope(Part::Embedding, None);
    let table = b.weight(Weight::from_f32("table", VOCAB, WIDTH, &values)).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    b.scope(Part::Head, None);
    let head = if tied { table } else { b.weight(Weight::from_f32("head", VOCAB, WIDTH, &values)).unwrap() };
    let x = b.select_outputs(x).unwrap();
    let logits = b.linear(x, head, None).unwrap();
    b.finish(logits).unwrap()
}

#[test]
fn matrices_that_every_step_reads_in_place_count_against_the_budget() {
    for (tied, packs, weights, mapped, looked_up) in [
        (false, false, 0, MATRIX, MATRIX),
        (false, true, MATRIX, 0, MATRIX),
        (true, false, 0, MATRIX, 0),
        (true, true, MATRIX, 0, MATRIX),
    ] {
        let what = format!("tied {tied}, packed {packs}");
        let planned = |budget| {
            let options = PlanOptions { budgets: vec![Some(budget)], ..PlanOptions::default() };
            plan(&graph(tied), &[&Counting { packs }], &options).unwrap()
        };
        let roomy = planned(u64::MAX / 2);
        let bytes = &roomy.bytes[0];
        assert_eq!((bytes.weights_total(), bytes.mapped, bytes.looked_up), (weights, mapped, looked_up), "{what}");
        assert_eq!(bytes.total(), MATRIX + bytes.activations, "{what}");
        assert!(!roomy.is_short(), "{what}");
        // Room for what is computed in, not for the matrix.
        let tight = planned(MATRIX - 1);
        assert!(tight.is_short() && tight.to_string().contains("DOES NOT FIT"), "{what}: {tight}");
        if looked_up > 0 {
            assert!(tight.to_string().contains("looked up"), "{what}: {tight}");
        }
    }
}

#[test]
fn no_more_outputs_are_planned_than_the_context_has_tokens() {
    let options = PlanOptions { context: Some(5), step_outputs: 512, ..PlanOptions::default() };
    let plan = plan(&graph(false), &[&Counting { packs: true }], &options).unwrap();
    assert_eq!((plan.limits.tokens, plan.limits.outputs), (5, 5));
}

#[test]
fn contexts_beyond_the_model_are_refused_with_both_numbers() {
    let options = PlanOptions { context: Some(100), model_context: 64, ..PlanOptions::default() };
    let error = plan(&graph(false), &[&Counting { packs: true }], &options).unwrap_err().to_string();
    assert!(error.contains("100") && error.contains("64"), "{error}");
}
