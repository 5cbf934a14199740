//! What a plan expects of a step's time: counted by hand here.

use graph::{
    Arithmetic, Device, DeviceError, Graph, GraphBuilder, KvType, Memory, NodeId, Op, Part, Plan, PlanOptions, Program,
    Rates, Share, StepTimes, Weight, plan,
};

/// A device with rates, which computes nothing.
struct Rated {
    name: &'static str,
    lacks_head: bool,
    rates: Option<Rates>,
}

impl Device for Rated {
    fn name(&self) -> &str {
        self.name
    }
    fn memory(&self) -> Memory {
        Memory { total_bytes: u64::MAX, available_bytes: u64::MAX }
    }
    fn rates(&self) -> Option<Rates> {
        self.rates
    }
    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String> {
        if self.lacks_head && graph.node(node).part == Part::Head { Err("no head".to_owned()) } else { Ok(()) }
    }
    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, _: Arithmetic) -> u64 {
        if matches!(graph.node(node).op, Op::Embed { .. }) { 0 } else { weight.data.len() as u64 }
    }
    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        share.arena.bytes()
    }
    fn compile(&self, _: &Share<'_>, _: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        unreachable!("only planned for")
    }
}

const WIDTH: usize = 8;
const VOCAB: usize = 16;
/// Bytes of a square matrix, and of the head.
const MATRIX: f64 = (WIDTH * WIDTH * 4) as f64;
const HEAD: f64 = 2.0 * MATRIX;
const ROW: f64 = (WIDTH * 4) as f64;

/// A layer with a window of 4 tokens, and a head.
fn graph() -> Graph {
    let mut b = GraphBuilder::new();
    let matrix = |b: &mut GraphBuilder, rows: usize| {
        b.weight(Weight::from_f32("w", rows, WIDTH, &vec![0.5; rows * WIDTH])).unwrap()
    };
    b.scope(Part::Embedding, None);
    let table = matrix(&mut b, VOCAB);
    let x = b.embed(table, 1.0).unwrap();
    b.scope(Part::Attention, Some(0));
    let w = matrix(&mut b, WIDTH);
    let k = b.linear(x, w, None).unwrap();
    let cache = b.cache(1, WIDTH, Some(4)).unwrap();
    b.kv_write(cache, k, k).unwrap();
    let x = b.attention(cache, x, 1.0, None).unwrap();
    b.scope(Part::Head, None);
    let x = b.select_outputs(x).unwrap();
    let head = matrix(&mut b, VOCAB);
    let x = b.linear(x, head, None).unwrap();
    b.finish(x).unwrap()
}

fn planned(devices: &[&dyn Device], arithmetic: Arithmetic) -> Plan {
    let options =
        PlanOptions { context: Some(64), step_tokens: 6, kv: KvType::F32, arithmetic, ..PlanOptions::default() };
    plan(&graph(), devices, &options).unwrap()
}

fn assert_times(times: StepTimes, decode_s: Option<f64>, prompt_s: Option<f64>) {
    for (what, got, want) in [("decoding", times.decode_s, decode_s), ("the prompt", times.prompt_s, prompt_s)] {
        match (got, want) {
            (Some(got), Some(want)) => assert!((got - want).abs() <= 1e-9 * want, "{what}: {got}, want {want}"),
            (got, want) => assert_eq!(got, want, "{what}"),
        }
    }
}

/// Operations of the prompt of 6 tokens: products, attention that sees 1, 2, 3, 4, 4, 4 tokens, and one row of the head.
const PROMPT_OPS: f64 = 6.0 * 128.0 + 4.0 * 8.0 * 18.0 + 256.0;
/// Keys and values that a token with 63 before it reads.
const SEEN: f64 = 4.0 * 2.0 * ROW;

#[test]
fn bytes_over_bandwidth_or_operations_over_a_rate() {
    let read = 100.0;
    for (int8, product, ops, is_roof) in [
        (Some(50.0), None, Some(50.0), true),
        (Some(50.0), Some(20.0), Some(20.0), false),
        (None, Some(20.0), Some(20.0), false),
        (None, None, None, true),
        // Faster than memory: bytes decide.
        (Some(1e9), None, Some(1e9), true),
    ] {
        let rates =
            Rates { read_bytes_per_s: read, int8_ops_per_s: int8, product_ops_per_s: product, ..Rates::default() };
        let device = Rated { name: "one", lacks_head: false, rates: Some(rates) };
        let plan = planned(&[&device], Arithmetic::Fast);
        let estimate = plan.estimate();
        let own = &estimate.devices[0];
        assert_eq!((estimate.context, estimate.prompt_tokens), (63, 6));
        assert_eq!((own.ops_per_s, own.ops_are_roof), (ops, is_roof));
        let weights = MATRIX + HEAD + ROW;
        let decode_ops = 128.0 + 4.0 * 8.0 * 4.0 + 256.0;
        let decode = f64::max((weights + SEEN) / read, ops.map_or(0.0, |rate| decode_ops / rate));
        let prompt = ops.map(|rate| f64::max((weights + 6.0 * 2.0 * ROW) / read, PROMPT_OPS / rate));
        assert_times(own.times, Some(decode), prompt);
        assert_times(estimate.total, Some(decode), prompt);
        assert_eq!(estimate.transfers, None);
        let text = estimate.to_string();
        assert!(text.contains("estimate: one decodes a token in"), "{text}");
        assert_eq!(text.contains("estimate: none for a prompt on one"), ops.is_none(), "{text}");
    }
}

#[test]
fn what_is_not_known_is_not_estimated() {
    let unknown = Rated { name: "one", lacks_head: true, rates: None };
    let rates = Rates { read_bytes_per_s: 1e3, int8_ops_per_s: Some(1e3), ..Rates::default() };
    let known = Rated { name: "two", lacks_head: false, rates: Some(rates) };
    let plan = planned(&[&unknown, &known], Arithmetic::Fast);
    let estimate = plan.estimate();
    assert_eq!(estimate.devices[0].times, StepTimes::default());
    assert!(estimate.devices[1].times.decode_s.is_some());
    assert_eq!((estimate.transfers, estimate.total), (Some(StepTimes::default()), StepTimes::default()));
    let text = estimate.to_string();
    assert!(text.contains("none for one, whose rates are not known") && !text.contains("cannot exceed"), "{text}");
    // Rates of integers say nothing of floats.
    let rates = Some(Rates { product_ops_per_s: Some(1e3), ..rates });
    let plan = planned(&[&Rated { name: "one", lacks_head: false, rates }], Arithmetic::F32);
    assert_eq!(plan.estimate().devices[0].times.prompt_s, None);
}

#[test]
fn what_crosses_takes_time_at_the_slower_rate() {
    let rates = |transfer_bytes_per_s| Some(Rates { read_bytes_per_s: 1e3, transfer_bytes_per_s, ..Rates::default() });
    for (first, second, want) in [(Some(10.0), None, 10.0), (Some(40.0), Some(20.0), 20.0), (None, None, f64::INFINITY)]
    {
        let one = Rated { name: "one", lacks_head: true, rates: rates(first) };
        let two = Rated { name: "two", lacks_head: false, rates: rates(second) };
        let plan = planned(&[&one, &two], Arithmetic::Fast);
        assert_eq!(plan.transfers.len(), 1, "{plan}");
        let row = plan.transfers[0].bytes_per_row as f64;
        assert_times(plan.estimate().transfers.unwrap(), Some(row / want), Some(6.0 * row / want));
    }
}
