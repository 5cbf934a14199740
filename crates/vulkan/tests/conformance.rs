//! The conformance suite, with every capability and with those left unused that have a fallback. The first device that
//! is no software is taken, else the software device; the validation layer must have nothing to say.

use std::sync::OnceLock;

use graph::{Arithmetic, Device, DeviceError, Graph, Limits, Memory, NodeId, Program, Rates, Share, Weight};
use vulkan::{Vulkan, VulkanError, VulkanOptions};

/// A device that all tests of a module share, and that fails a test once validation has complained.
struct Watched(Option<&'static Vulkan>);

/// The device, or nothing where this machine has no Vulkan: unless it is told that there is one.
fn open(without: &[&str]) -> Option<Vulkan> {
    let without: Vec<String> = without.iter().map(|name| (*name).to_owned()).collect();
    let options = VulkanOptions { without, validation: true, ..VulkanOptions::default() };
    let found = match Vulkan::open(options.clone()) {
        Err(VulkanError::OnlySoftware(_)) => Vulkan::open(VulkanOptions { index: Some(0), ..options }),
        found => found,
    };
    match found {
        Ok(device) => Some(device),
        Err(error @ (VulkanError::NoLoader(_) | VulkanError::NoDevice)) => {
            assert!(std::env::var_os("UNICORN_REQUIRE_VULKAN").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Device for Watched {
    fn name(&self) -> &str {
        self.0.map_or("vulkan", |device| device.name())
    }
    fn memory(&self) -> Memory {
        self.0.map_or(Memory { total_bytes: 0, available_bytes: 0 }, |device| device.memory())
    }
    fn rates(&self) -> Option<Rates> {
        None
    }
    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String> {
        self.0.map_or(Err("no Vulkan here".to_owned()), |device| device.supports(graph, node))
    }
    fn phases(&self, graph: &Graph, nodes: std::ops::Range<usize>) -> Vec<usize> {
        self.0.map_or_else(|| vec![0; nodes.len()], |device| device.phases(graph, nodes.clone()))
    }
    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, arithmetic: Arithmetic) -> u64 {
        self.0.map_or(0, |device| device.weight_bytes(graph, node, weight, arithmetic))
    }
    fn scratch_bytes(&self, graph: &Graph, limits: &Limits) -> u64 {
        self.0.map_or(0, |device| device.scratch_bytes(graph, limits))
    }
    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        self.0.expect("supports nothing without").compile(share, progress)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
        }
    }
}

mod whole {
    use super::*;
    static DEVICE: OnceLock<Option<Vulkan>> = OnceLock::new();
    graph::conformance!(Watched(DEVICE.get_or_init(|| open(&[])).as_ref()));
}
mod without_integer_dot {
    use super::*;
    static DEVICE: OnceLock<Option<Vulkan>> = OnceLock::new();
    graph::conformance!(Watched(DEVICE.get_or_init(|| open(&["integer-dot"])).as_ref()));
}
mod without_matrix_units {
    use super::*;
    static DEVICE: OnceLock<Option<Vulkan>> = OnceLock::new();
    const UNUSED: [&str; 3] = ["cooperative-matrix", "unified-memory", "memory-budget"];
    graph::conformance!(Watched(DEVICE.get_or_init(|| open(&UNUSED)).as_ref()));
}
