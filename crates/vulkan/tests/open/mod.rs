//! The device that tests run on, here and in `engine`: the first that is no software, else the software device.
#![allow(dead_code, reason = "not every test opens it in every way")]

use vulkan::{Vulkan, VulkanError, VulkanOptions};

/// The device, or nothing where this machine has no Vulkan: unless it is told that there is one.
pub(crate) fn open(without: &[&str]) -> Option<Vulkan> {
    let without: Vec<String> = without.iter().map(|name| (*name).to_owned()).collect();
    open_with(VulkanOptions { without, ..VulkanOptions::default() })
}

/// The same, set up in another way; the validation layer watches.
pub(crate) fn open_with(options: VulkanOptions) -> Option<Vulkan> {
    let options = VulkanOptions { validation: true, ..options };
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
