//! Which of two devices runs what, where neither runs everything.

use graph::{
    Arithmetic, Device, DeviceError, Graph, GraphBuilder, Limits, Memory, NodeId, Op, Part, PlanError, PlanOptions,
    Program, Rates, Share, Weight, plan,
};

/// A device that plans for the operations it is told of, and computes nothing.
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

    fn scratch_bytes(&self, _graph: &Graph, _limits: &Limits) -> u64 {
        0
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
