//! Which of two devices runs what, where neither runs everything.

use graph::{
    Arithmetic, Device, DeviceError, Graph, GraphBuilder, Memory, NodeId, Op, Part, PlanError, PlanOptions, Program,
    Rates, Share, Weight, plan,
};

/// A device that plans for the operations it is told of, and computes nothing.
#[derive(Clone, Copy)]
struct Partial {
    name: &'static str,
    lacks: &'static [&'static str],
}

impl Device for Partial {
    fn name(&self) -> &str {
        self.name
    }

    fn memory(&self) -> Memory {
        Memory { total_bytes: u64::MAX, available_bytes: u64::MAX }
    }

    fn rates(&self) -> Option<Rates> {
        None
    }

    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String> {
        let op = graph.node(node).op.name();
        if self.lacks.contains(&op) { Err(format!("no {op}")) } else { Ok(()) }
    }

    fn weight_bytes(&self, _graph: &Graph, _node: NodeId, weight: &Weight, _arithmetic: Arithmetic) -> u64 {
        weight.data.len() as u64
    }

    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        share.arena.bytes()
    }

    fn compile(&self, _share: &Share<'_>, _progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        unreachable!("only planned for")
    }
}

const WIDTH: usize = 8;

/// Two layers: a product, a cache write and attention in one part; `reader` is the part of the attention.
fn graph(reader: Part) -> Graph {
    let mut b = GraphBuilder::new();
    let matrix = |b: &mut GraphBuilder| b.weight(Weight::from_f32("w", WIDTH, WIDTH, &[0.5; WIDTH * WIDTH])).unwrap();
    b.scope(Part::Embedding, None);
    let table = matrix(&mut b);
    let mut x = b.embed(table, 1.0).unwrap();
    for layer in 0..2 {
        b.scope(Part::Attention, Some(layer));
        let w = matrix(&mut b);
        let k = b.linear(x, w, None).unwrap();
        let cache = b.cache(1, WIDTH, None).unwrap();
        b.kv_write(cache, k, k).unwrap();
        x = b.scale(x, 2.0).unwrap();
        b.scope(reader, Some(layer));
        x = b.attention(cache, x, 1.0, None).unwrap();
    }
    b.scope(Part::Head, None);
    let x = b.select_outputs(x).unwrap();
    b.finish(x).unwrap()
}

/// The devices of all nodes with this operation.
fn placed(graph: &Graph, placement: &[usize], is: impl Fn(&Op) -> bool) -> Vec<usize> {
    graph.nodes().iter().zip(placement).filter(|(node, _)| is(&node.op)).map(|(_, device)| *device).collect()
}

#[test]
fn whoever_writes_a_cache_and_whoever_reads_it_share_a_device() {
    for reader in [Part::Attention, Part::FeedForward] {
        for (first, second, caches, products) in [
            (&[][..], &[][..], 0, 0),
            (&["attention"][..], &["linear"][..], 1, 0),
            (&["kv_write"][..], &["linear"][..], 1, 0),
            (&["kv_write", "attention", "linear"][..], &["scale"][..], 1, 1),
        ] {
            let graph = graph(reader);
            let devices = [Partial { name: "first", lacks: first }, Partial { name: "second", lacks: second }];
            let planned = plan(&graph, &[&devices[0], &devices[1]], &PlanOptions::default());
            // The write is placed before its reader is seen, where they belong to different parts.
            if reader != Part::Attention && first == ["attention"] {
                let error = planned.unwrap_err().to_string();
                assert!(error.contains("no attention") && error.contains("lies on first"), "{error}");
                continue;
            }
            let placement = planned.unwrap().placement;
            let on = |is: fn(&Op) -> bool| placed(&graph, &placement, is);
            assert_eq!(on(|op| op.cache().is_some()), [caches; 4], "{first:?}, {second:?}, {reader:?}");
            assert_eq!(on(|op| matches!(op, Op::Linear { .. })), [products; 2], "{first:?}, {second:?}, {reader:?}");
        }
    }
}

#[test]
fn a_cache_that_no_device_both_writes_and_reads_is_refused() {
    let devices = [Partial { name: "first", lacks: &["attention"] }, Partial { name: "second", lacks: &["kv_write"] }];
    for reader in [Part::Attention, Part::FeedForward] {
        let error = plan(&graph(reader), &[&devices[0], &devices[1]], &PlanOptions::default()).unwrap_err();
        assert!(matches!(error, PlanError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("no attention"), "{error}");
    }
}

#[test]
fn pins_that_tear_a_cache_apart_are_refused() {
    let devices = [Partial { name: "first", lacks: &[] }, Partial { name: "second", lacks: &[] }];
    let pins = vec![(Part::Attention, "second".to_owned()), (Part::FeedForward, "first".to_owned())];
    let options = PlanOptions { pins, ..PlanOptions::default() };
    let error = plan(&graph(Part::FeedForward), &[&devices[0], &devices[1]], &options).unwrap_err();
    assert!(matches!(&error, PlanError::Pin { device, .. } if device == "first"), "{error}");
    assert!(error.to_string().contains("lies on second"), "{error}");
}

/// Bytes of a matrix, and of what lies of each layer on a device: matrix and cache of one block.
const MATRIX: u64 = (WIDTH * WIDTH * 4) as u64;
const LAYER: u64 = MATRIX + (32 * WIDTH * 2 * 2) as u64;

#[test]
fn what_a_device_has_no_room_for_goes_to_the_next_layer_by_layer() {
    let devices = ["first", "second"].map(|name| Partial { name, lacks: &[] });
    let placed_with = |budget: u64, pins: Vec<(Part, String)>| {
        let options = PlanOptions { context: Some(32), budgets: vec![Some(budget)], pins, ..PlanOptions::default() };
        plan(&graph(Part::FeedForward), &[&devices[0], &devices[1]], &options).unwrap()
    };
    // What is computed in counts too, and is found while placing.
    let working = placed_with(u64::MAX / 2, vec![]).bytes[0].activations;
    // The table is counted although it is read in place.
    for (budget, layers, reason) in [
        (MATRIX + 2 * LAYER + working, 2, None),
        (MATRIX + 2 * LAYER + working - 1, 1, Some("layer 1 and what follows on second")),
        (MATRIX + LAYER - 1 + working, 0, Some("layer 0 and what follows on second")),
        (1, 0, Some("embedding and what follows on second")),
    ] {
        let plan = placed_with(budget, vec![]);
        assert!(!plan.is_short(), "{budget}: {plan}");
        let first = plan.placement.iter().filter(|device| **device == 0).count();
        assert!(plan.placement.is_sorted(), "{budget}: values cross once");
        let wrote = |node: &graph::Node| matches!(node.op, Op::KvWrite { .. });
        let nodes = graph(Part::FeedForward);
        let caches = nodes.nodes().iter().zip(&plan.placement).filter(|(node, device)| wrote(node) && **device == 0);
        assert_eq!(caches.count(), layers, "{budget}: {plan}");
        assert_eq!(plan.fallbacks.len(), usize::from(reason.is_some()), "{budget}: {:?}", plan.fallbacks);
        assert!(reason.is_none_or(|reason| plan.fallbacks[0].starts_with(reason)), "{:?}", plan.fallbacks);
        let crosses: Vec<_> = plan.transfers.iter().map(|t| (t.from, t.to, t.values, t.bytes_per_row)).collect();
        let is_split = first > 0 && layers < 2;
        assert_eq!(crosses, if is_split { vec![(0, 1, 1, WIDTH as u64 * 4)] } else { vec![] }, "{budget}");
        assert_eq!(plan.to_string().contains("transfer: first to second, 1 value a step, 32 B a token"), is_split);
    }
    // A part that is pinned stays, and the shortage is told.
    let pinned = placed_with(1, vec![(Part::Attention, "first".to_owned()), (Part::FeedForward, "first".to_owned())]);
    assert!(pinned.is_short(), "{pinned}");
}

#[test]
fn no_context_pushes_layers_away_unless_it_is_asked_for() {
    let devices = ["first", "second"].map(|name| Partial { name, lacks: &[] });
    let token = (2 * WIDTH * 2 * 2) as u64;
    let budgets = vec![Some(3 * MATRIX + 6000 * token + (1 << 20))];
    let planned = |context| {
        let options =
            PlanOptions { context, model_context: 1 << 17, budgets: budgets.clone(), ..PlanOptions::default() };
        plan(&graph(Part::FeedForward), &[&devices[0], &devices[1]], &options).unwrap()
    };
    let own = planned(None);
    assert_eq!((own.used_devices(), own.fallbacks.len()), (vec!["first"], 0));
    assert!((4096..1 << 17).contains(&own.limits.context), "{}", own.limits.context);
    assert_eq!(planned(Some(1 << 17)).used_devices(), ["first", "second"]);
}
