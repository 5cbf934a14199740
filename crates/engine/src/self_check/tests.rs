//! A device that computes wrongly, or not at all, is found out; what is known is not asked again.

use std::sync::atomic::{AtomicUsize, Ordering};

use graph::{Exchange, GraphBuilder, Step, ValueId, reference::Reference};

use super::*;

/// The reference, with a fault.
#[derive(Default)]
struct Faulty {
    /// Steps of so many rows give a wrong logit.
    wrong_rows: Option<usize>,
    is_lost: bool,
    compiled: AtomicUsize,
}

struct FaultyProgram {
    inner: Box<dyn Program>,
    wrong_rows: Option<usize>,
    logits: ValueId,
}

impl Device for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }
    fn memory(&self) -> Memory {
        Reference.memory()
    }
    fn rates(&self) -> Option<Rates> {
        None
    }
    fn supports(&self, _: &Graph, _: NodeId) -> Result<(), String> {
        Ok(())
    }
    fn weight_bytes(&self, _: &Graph, _: NodeId, _: &Weight, _: Arithmetic) -> u64 {
        0
    }
    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        Reference.working_bytes(share)
    }
    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        if self.is_lost {
            return Err(DeviceError::Lost { device: "faulty".to_owned() });
        }
        let inner = Reference.compile(share, progress)?;
        Ok(Box::new(FaultyProgram { inner, wrong_rows: self.wrong_rows, logits: share.graph.logits() }))
    }
}

impl Program for FaultyProgram {
    fn run(&mut self, stage: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), DeviceError> {
        self.inner.run(stage, step, exchange)?;
        if self.wrong_rows == Some(step.tokens()) {
            exchange.get_mut(self.logits)[0] += 10.0;
        }
        Ok(())
    }
    fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), DeviceError> {
        self.inner.copy_block(group, from, to)
    }
}

/// Two layers alike and a head.
fn graph() -> Graph {
    const WIDTH: usize = 32;
    let mut b = GraphBuilder::new();
    let values = vec![0.1; 100 * WIDTH];
    let table = b.weight(Weight::from_f32("table", 100, WIDTH, &values)).unwrap();
    b.scope(Part::Embedding, None);
    let mut x = b.embed(table, 1.0).unwrap();
    for layer in 0..3 {
        b.scope(Part::Attention, Some(layer));
        let w = b.weight(Weight::from_f32("w", WIDTH, WIDTH, &values[..WIDTH * WIDTH])).unwrap();
        let y = b.linear(x, w, None).unwrap();
        let cache = b.cache(1, WIDTH, None).unwrap();
        b.kv_write(cache, y, y).unwrap();
        let y = b.attention(cache, y, 1.0, None).unwrap();
        x = b.add(x, y).unwrap();
    }
    b.scope(Part::Head, None);
    let x = b.select_outputs(x).unwrap();
    let logits = b.linear(x, table, None).unwrap();
    b.finish(logits).unwrap()
}

#[test]
fn what_differs_is_found_and_known() {
    let graph = graph();
    let cases = graph::check::cases(&graph);
    // Embedding and layer 0, layers 0 and 1 (as 1 and 2), layer 2 and the head.
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["embedding and layer 0", "layer 0 and layer 1", "layer 2 and head"]);
    assert!(cases[1].units.contains(&(Part::Attention, Some(2))), "{:?}", cases[1].units);
    for (wrong_rows, failures) in [(None, 0), (Some(12), 3), (Some(1000), 0)] {
        let device = Faulty { wrong_rows, ..Faulty::default() };
        let mut known = Known::default();
        for _ in 0..2 {
            let fast = (Arithmetic::Fast, KvType::F16);
            let failed = check_cases(&cases, &device, &Reference, fast, &mut known).unwrap();
            assert_eq!(failed.len(), failures, "{wrong_rows:?}: {failed:?}");
            assert!(failed.iter().all(|(_, reason)| reason.contains("12 rows")), "{failed:?}");
        }
        assert_eq!(device.compiled.load(Ordering::Relaxed), cases.len(), "the second time nothing is run");
    }
    let lost = Faulty { is_lost: true, ..Faulty::default() };
    let mut known = Known::default();
    assert!(check_cases(&cases, &lost, &Reference, (Arithmetic::F32, KvType::F32), &mut known).is_err());
    assert!(known.cases.is_empty(), "nothing is known of what did not run");
}

#[test]
fn what_is_refused_goes_to_the_next_device_with_the_reason() {
    let graph = graph();
    let units = vec![(Part::Attention, Some(1))];
    let first = Refusing { inner: Arc::new(Faulty::default()), units, reason: "it differs".to_owned() };
    let plan = graph::plan(&graph, &[&first, &Reference], &graph::PlanOptions::default()).unwrap();
    assert_eq!(plan.fallbacks, ["attention of layer 1 on reference (faulty: it differs)"]);
    assert_eq!(plan.used_devices(), ["faulty", "reference"]);
}

#[test]
fn a_damaged_file_is_left_aside_with_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.checks");
    let mut notices = Vec::new();
    assert_eq!(Known::read(Some(&path), "a", &mut notices).kernels, "a");
    let cases = BTreeMap::from([("1".to_owned(), None), ("2".to_owned(), Some("off".to_owned()))]);
    let known = Known { kernels: "a".to_owned(), cases };
    known.write(&path);
    assert_eq!(Known::read(Some(&path), "a", &mut notices), known);
    assert!(Known::read(Some(&path), "b", &mut notices).cases.is_empty(), "other kernels are not known");
    assert!(notices.is_empty(), "{notices:?}");
    for damaged in [&b"{"[..], b"", b"\xff\x00", b"[1, 2]"] {
        std::fs::write(&path, damaged).unwrap();
        assert!(Known::read(Some(&path), "a", &mut notices).cases.is_empty());
    }
    assert_eq!(notices.len(), 4);
    assert!(notices[0].contains("damaged"), "{notices:?}");
}
