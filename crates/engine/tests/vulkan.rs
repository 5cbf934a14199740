//! The fixtures of every text family on a Vulkan device: the first that is no software, else the software device.

use std::sync::{Arc, OnceLock};

use files::hf::HfDir;
use graph::Graph;
use models::{BuildOptions, Source};
use testkit::Bound;
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
