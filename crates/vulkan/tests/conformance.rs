//! The conformance suite, with every capability and with those left unused that have a fallback. The first device that
//! is no software is taken, else the software device; the validation layer must have nothing to say.

use std::sync::OnceLock;

use graph::{Device, reference::Reference};
use vulkan::Vulkan;

mod open;

use open::open;

/// The device of a module's tests. Where this machine has no Vulkan the reference stands in, unless
/// `UNICORN_REQUIRE_VULKAN` says that there is one.
fn device(shared: &'static OnceLock<Option<Vulkan>>, without: &[&str]) -> &'static dyn Device {
    // Seen from the test after the one that caused it.
    assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
    match shared.get_or_init(|| open(without)) {
        Some(device) => device,
        None => &Reference,
    }
}

mod whole {
    static DEVICE: super::OnceLock<Option<super::Vulkan>> = super::OnceLock::new();
    graph::conformance!(super::device(&DEVICE, &[]));
}
mod without_integer_dot {
    static DEVICE: super::OnceLock<Option<super::Vulkan>> = super::OnceLock::new();
    graph::conformance!(super::device(&DEVICE, &["integer-dot"]));
}
mod without_matrix_units {
    static DEVICE: super::OnceLock<Option<super::Vulkan>> = super::OnceLock::new();
    const UNUSED: [&str; 3] = ["cooperative-matrix", "unified-memory", "memory-budget"];
    graph::conformance!(super::device(&DEVICE, &UNUSED));
}

#[test]
fn the_layer_watches_where_it_is_installed() {
    if let Some(device) = open(&[]) {
        let required = std::env::var_os("UNICORN_REQUIRE_VULKAN").is_some();
        assert!(device.is_validated() || !required, "the validation layer is not installed");
    }
}

#[test]
fn rates_are_measured() {
    let Some(device) = open(&[]) else { return };
    assert_eq!(device.rates(), None);
    let rates = device.measure_kernels().unwrap();
    assert_eq!(device.rates(), Some(rates));
    for rate in [Some(rates.read_bytes_per_s), rates.product_ops_per_s, rates.transfer_bytes_per_s] {
        assert!(rate.is_some_and(|rate| rate.is_finite() && rate > 0.0), "{rates:?}");
    }
    assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
}
