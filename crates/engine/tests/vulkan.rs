//! The fixtures of every text family on a Vulkan device: the first that is no software, else the software device.

use std::sync::{Arc, OnceLock};

use cpu::{Cpu, CpuOptions};
use engine::{Engine, EngineError, LoadOptions, ModelFile, Request};
use files::hf::HfDir;
use graph::{Arithmetic, Device, Graph, KvType, Plan, PlanOptions};
use models::{BuildOptions, Source};
use testkit::{Bound, Fixture, Session};
use vulkan::Vulkan;

#[path = "../../vulkan/tests/open/mod.rs"]
mod open;

use open::open;

fn build(dir: &HfDir) -> Arc<Graph> {
    models::build(Source::HuggingFace(dir), BuildOptions { taps: true, ..BuildOptions::default() })
        .expect("fixtures are whole")
        .graph
}

mod fast {
    static DEVICE: std::sync::OnceLock<Option<super::Vulkan>> = std::sync::OnceLock::new();
    fn device() -> Option<&'static super::Vulkan> {
        DEVICE.get_or_init(|| super::open(&[])).as_ref()
    }
    testkit::text_fixtures!(device(), super::build, super::Bound::FAST);
}
mod f32 {
    static DEVICE: std::sync::OnceLock<Option<super::Vulkan>> = std::sync::OnceLock::new();
    fn device() -> Option<&'static super::Vulkan> {
        DEVICE.get_or_init(|| super::open(&["integer-dot", "cooperative-matrix"])).as_ref()
    }
    testkit::text_fixtures!(device(), super::build, super::Bound::F32);
}

#[test]
fn validation_is_silent() {
    static DEVICE: OnceLock<Option<Vulkan>> = OnceLock::new();
    let Some(device) = DEVICE.get_or_init(|| open(&[])) else { return };
    testkit::check_fixture(device, "gemma3", &build, Bound::FAST);
    assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
}

/// Families that differ in what they share, norm and look back on.
const FAMILIES: [&str; 3] = ["llama", "qwen2", "gemma3"];

fn plain(name: &str) -> (Fixture, Arc<Graph>) {
    let fixture = Fixture::load(name);
    let model = models::build(Source::HuggingFace(&fixture.dir), BuildOptions::default()).unwrap();
    (fixture, model.graph)
}

fn options(budget: Option<u64>) -> PlanOptions {
    let context = 96;
    PlanOptions {
        context: Some(context),
        model_context: context,
        step_tokens: 48,
        step_outputs: 48,
        budgets: vec![budget],
        ..PlanOptions::default()
    }
}

/// A budget that leaves about half the layers to the second device.
fn half(plan: &Plan) -> u64 {
    let bytes = &plan.bytes[0];
    bytes.activations + (bytes.total() - bytes.activations) / 2
}

#[test]
fn a_plan_says_what_is_allocated() {
    let Some(device) = open(&[]) else { return };
    let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap();
    for name in FAMILIES {
        let (_, graph) = plain(name);
        let devices: [&dyn Device; 2] = [&device, &cpu];
        let whole = graph::plan(&graph, &devices, &options(None)).unwrap();
        assert_eq!(whole.used_devices().len(), 1, "{whole}");
        for budget in [None, Some(half(&whole))] {
            let plan = graph::plan(&graph, &devices, &options(budget)).unwrap();
            assert_eq!(plan.used_devices().len(), 1 + usize::from(budget.is_some()), "{name}: {plan}");
            let planned = plan.bytes[0].total();
            assert!(budget.is_none_or(|budget| planned <= budget), "{name}: {plan}");
            let execution = plan.compile(graph.clone(), &devices, &mut |_, _| ()).unwrap();
            assert_eq!(device.allocated_bytes(), planned, "{name}, {budget:?}: {}", execution.plan());
            drop(execution);
            assert_eq!(device.allocated_bytes(), 0, "{name}: what a program held is given back");
        }
    }
}

#[test]
fn the_self_check_meets_every_kernel_that_runs() {
    let Some(device) = open(&[]) else { return };
    let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap();
    // Kernels take long to compile in software.
    for (name, kv) in [("qwen2", KvType::F16), ("gemma3", KvType::F16), ("gemma3", KvType::Q8)] {
        let (fixture, graph) = plain(name);
        for case in graph::check::cases(&graph) {
            let checked = case.check(&device, &cpu, Arithmetic::Fast, kv);
            checked.unwrap_or_else(|error| panic!("{name}: {}: {error}", case.name));
        }
        let checked = device.kernels();
        let mut session = Session::new(&device, &graph, PlanOptions { kv, ..options(None) });
        for chunk in [fixture.ids.len(), 7, 1] {
            session.restart();
            session.feed_in_chunks(&fixture.ids, chunk);
        }
        let unmet: Vec<String> = device.kernels().into_iter().filter(|kernel| !checked.contains(kernel)).collect();
        assert!(unmet.is_empty(), "{name}, {kv:?}: {unmet:?}");
    }
}

/// The text of a fixture on these devices, with the plan it ran by.
fn text(name: &str, device: &str, change: impl Fn(&mut LoadOptions)) -> Result<(Vec<u32>, Plan), EngineError> {
    let folder = tempfile::tempdir().unwrap();
    let file = ModelFile::open(&testkit::speaking(name, folder.path()).unwrap()).unwrap();
    let mut options = LoadOptions { device: device.to_owned(), threads: Some(2), ..LoadOptions::default() };
    options.context = Some(96);
    options.chunk = 16;
    change(&mut options);
    let mut engine = Engine::load(&file, &options, &mut |_, _| ())?;
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 320).collect();
    let request = Request { prompt, max_tokens: Some(16), ignore_end: true, ..Request::default() };
    let answer = engine.generate(&request, &mut |_| std::ops::ControlFlow::Continue(()))?;
    Ok((answer.ids, engine.plan().clone()))
}

#[test]
fn half_the_layers_on_the_cpu_give_the_same_text() {
    if open(&[]).is_none() {
        return;
    }
    let exact = |options: &mut LoadOptions| {
        (options.arithmetic, options.kv) = (Arithmetic::F32, KvType::F32);
    };
    for name in FAMILIES {
        let (want, whole) = text(name, "vulkan:0", exact).unwrap();
        assert_eq!((whole.used_devices(), &whole.transfers[..]), (vec!["vulkan:0"], &[][..]), "{name}");
        let gpu_memory = half(&whole);
        let split = |options: &mut LoadOptions| {
            exact(options);
            options.gpu_memory = Some(gpu_memory);
        };
        let (got, plan) = text(name, "vulkan:0", split).unwrap();
        assert_eq!(plan.used_devices(), ["vulkan:0", "cpu"], "{name}: {plan}");
        assert_eq!((plan.fallbacks.len(), plan.transfers.len()), (1, 1), "{name}: {plan}");
        assert_eq!(got, want, "{name}: {plan}");
        let strict = |options: &mut LoadOptions| {
            split(options);
            options.strict = true;
        };
        let error = text(name, "vulkan:0", strict).unwrap_err();
        assert!(matches!(error, EngineError::DoesNotFit { .. }), "{name}: {error}");
        let error = text(name, "vulkan:0,cpu", strict).unwrap_err();
        assert!(matches!(error, EngineError::Strict { .. }), "{name}: {error}");
    }
}
