//! Every fixture on a device.

use std::sync::Arc;

use files::hf::HfDir;
use graph::{Arithmetic, Device, Graph, KvType, PlanOptions};

use crate::{Fixture, Session, compare};

/// Builds the graph of a model directory with its taps: `models::build`, from the crate that runs the suite.
pub type Build<'a> = &'a dyn Fn(&HfDir) -> Arc<Graph>;

/// How a device computes in the suite, and what error that allows. Bounds belong to the arithmetic, not the device.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Largest error of logits and of the residual stream, as a share of their largest absolute value.
    pub error: f32,
}

impl Bound {
    /// `f32` throughout.
    pub const F32: Bound = Bound { arithmetic: Arithmetic::F32, kv: KvType::F32, error: 1e-3 };
    /// What a device does by default.
    pub const FAST: Bound = Bound { arithmetic: Arithmetic::Fast, kv: KvType::F16, error: 2e-2 };
}

/// Makes a test of each text fixture on a device: `testkit::text_fixtures!(device, build, bound)`, with the device
/// and the function as expressions and the bound of type [`Bound`]. The device is an `Option`: where the machine has
/// none, `None` makes the tests pass, and whoever gives it says so aloud.
#[macro_export]
macro_rules! text_fixtures {
    ($device:expr, $build:expr, $bound:expr) => {
        $crate::text_fixtures!($device, $build, $bound; llama "llama", llama3_rope "llama3-rope", mistral "mistral",
            qwen2 "qwen2", qwen3 "qwen3", gemma2 "gemma2", gemma3 "gemma3");
    };
    ($device:expr, $build:expr, $bound:expr; $($test:ident $name:literal),*) => {
        $(
            #[test]
            fn $test() {
                if let Some(device) = $device {
                    $crate::check_fixture(&device, $name, &$build, $bound);
                }
            }
        )*
    };
}

/// Runs a fixture: the prompt whole, in chunks of 7 and token by token, each with its logits and residual stream
/// compared, then greedy decoding.
///
/// # Panics
/// Where the device is off by more than the bound.
pub fn check_fixture(device: &dyn Device, name: &str, build: Build<'_>, bound: Bound) {
    let fixture = Fixture::load(name);
    let graph = build(&fixture.dir);
    assert_eq!(graph.vocab(), fixture.vocab(), "{name}");
    let context = fixture.ids.len() + fixture.greedy.len();
    let options = PlanOptions {
        context: Some(context),
        model_context: context,
        step_tokens: fixture.ids.len(),
        step_outputs: fixture.ids.len(),
        kv: bound.kv,
        arithmetic: bound.arithmetic,
        ..PlanOptions::default()
    };
    let mut session = Session::new(device, &graph, options);
    for chunk in [fixture.ids.len(), 7, 1] {
        session.restart();
        check_prompt(&mut session, &fixture, chunk, bound);
    }
    check_greedy(&mut session, &fixture, bound);
}

fn check_prompt(session: &mut Session, fixture: &Fixture, chunk: usize, bound: Bound) {
    let what = |value: &str| format!("{} in steps of {chunk}: {value}", fixture.name);
    let fed = session.feed_in_chunks(&fixture.ids, chunk);
    // From the first layer to the last, so that the message names the first that is off.
    for (layer, want) in fixture.hidden.iter().enumerate() {
        let name = format!("hidden.{layer}");
        let tap = fed.taps.iter().find(|(tap, _)| *tap == name);
        let (_, got) = tap.unwrap_or_else(|| panic!("{} is not tapped", what(&name)));
        compare::assert_close(got, want, bound.error, &what(&name));
    }
    compare::assert_close(&fed.logits, &fixture.logits, bound.error, &what("logits"));
}

/// Continues from the prompt along the expected ids, so that one wrong choice does not hide the next. A choice must
/// be the expected one unless logits off by the bound, up on one side and down on the other, could turn it.
fn check_greedy(session: &mut Session, fixture: &Fixture, bound: Bound) {
    let slack = 2.0 * bound.error * compare::largest(&fixture.logits);
    let slack = if fixture.smallest_greedy_margin > slack { 0.0 } else { slack };
    let vocab = fixture.vocab();
    let mut logits = fixture.logits[fixture.logits.len() - vocab..].to_vec();
    for (step, id) in fixture.greedy.iter().enumerate() {
        compare::assert_greedy(&logits, *id, slack, &format!("{} greedy step {step}", fixture.name));
        logits = session.feed(&[*id], &[0]).logits;
    }
}
