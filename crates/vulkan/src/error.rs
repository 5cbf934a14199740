//! Why the device could not be set up or used.

use ash::vk;
use graph::DeviceError;

/// Why there is no Vulkan device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VulkanError {
    /// The system has no Vulkan loader.
    #[error("no Vulkan here: {0} (on Debian and Ubuntu the loader is in libvulkan1, drivers in mesa-vulkan-drivers)")]
    NoLoader(String),
    /// No driver reports a device.
    #[error("the Vulkan loader finds no device")]
    NoDevice,
    /// Only software devices are there, and none was asked for by number.
    #[error("only software devices are there ({0}): name one, as vulkan:0, to use it all the same")]
    OnlySoftware(String),
    /// No device has this number.
    #[error("no Vulkan device {index}: there are {count}, counted from 0")]
    NoSuchDevice {
        /// As asked.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The device lacks what every kernel needs.
    #[error("{device} lacks {feature}")]
    Lacks {
        /// The device.
        device: String,
        /// What is missing.
        feature: &'static str,
    },
    /// A capability that is not known was to be left unused.
    #[error("unknown capability {name:?}; there are: {known}")]
    UnknownCapability {
        /// As given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A call failed.
    #[error("{call}: {result}")]
    Call {
        /// What was called.
        call: &'static str,
        /// What it returned.
        result: vk::Result,
    },
}

impl VulkanError {
    /// Turns the result of a call into an error.
    pub(crate) fn of(call: &'static str) -> impl Fn(vk::Result) -> VulkanError {
        move |result| VulkanError::Call { call, result }
    }

    /// The same for whoever runs a plan.
    pub(crate) fn for_plan(self, device: &str) -> DeviceError {
        match self {
            VulkanError::Call { result: vk::Result::ERROR_DEVICE_LOST, .. } => {
                DeviceError::Lost { device: device.to_owned() }
            }
            VulkanError::Call {
                call,
                result: vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY,
            } => DeviceError::OutOfMemory { device: device.to_owned(), what: call.to_owned(), bytes: 0 },
            error => DeviceError::Failed { device: device.to_owned(), detail: error.to_string() },
        }
    }
}
