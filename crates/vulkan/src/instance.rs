//! The loader, the instance, and the choice of a device.

use std::{
    ffi::{CStr, c_void},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use ash::{ext, vk};

use crate::{
    capabilities::{Capabilities, Kind},
    error::VulkanError,
};

const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The instance with what it was loaded from. The loader is found at run time, so that the program starts without it.
/// Once loaded it stays until the program ends, since a loader takes the drivers from memory with its last instance:
/// threads that have used a driver may end later, and would run its code then.
pub(crate) struct Instance {
    pub(crate) entry: ash::Entry,
    pub(crate) raw: ash::Instance,
    /// Where validation is on: its functions and its messenger.
    messenger: Option<(ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
}

/// A device before it is opened.
pub(crate) struct Candidate {
    pub(crate) physical: vk::PhysicalDevice,
    /// What it can do, or what it lacks.
    pub(crate) capabilities: Result<Capabilities, VulkanError>,
}

/// Complaints of the validation layer since the program began.
static COMPLAINTS: AtomicUsize = AtomicUsize::new(0);

/// How often the validation layer complained, in all devices opened with validation. Tests ask that it stay 0.
pub fn validation_complaints() -> usize {
    COMPLAINTS.load(Ordering::Relaxed)
}

impl Instance {
    /// The instance of this program, loaded when it is first asked for. With `validation` the validation layer is on,
    /// where it is installed, and complains to standard error.
    pub(crate) fn get(validation: bool) -> Result<&'static Instance, VulkanError> {
        /// Without the layer, and with it.
        static LOADED: Mutex<[Option<&'static Instance>; 2]> = Mutex::new([None; 2]);
        let place = &mut LOADED.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(validation)];
        match place {
            Some(instance) => Ok(instance),
            None => Ok(place.insert(Box::leak(Box::new(Instance::load(validation)?)))),
        }
    }

    fn load(validation: bool) -> Result<Instance, VulkanError> {
        // SAFETY: loads the system's Vulkan loader, whose initialisers are taken to be sound as those of any library
        // the system installs.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| VulkanError::NoLoader(error.to_string()))?;
        let app = vk::ApplicationInfo::default().application_name(c"unicorn").api_version(vk::API_VERSION_1_3);
        let mut layers = Vec::new();
        let mut extensions = Vec::new();
        if validation && has_layer(&entry)? {
            layers.push(VALIDATION.as_ptr());
            extensions.push(ext::debug_utils::NAME.as_ptr());
        }
        let info = vk::InstanceCreateInfo::default()
            .application_info(&app)
            .enabled_layer_names(&layers)
            .enabled_extension_names(&extensions);
        // SAFETY: the structures and the names they point to live through the call.
        let raw = unsafe { entry.create_instance(&info, None) }.map_err(VulkanError::of("vkCreateInstance"))?;
        let messenger = (!layers.is_empty()).then(|| messenger(&entry, &raw)).transpose()?;
        Ok(Instance { entry, raw, messenger })
    }

    /// Whether the validation layer is on.
    pub(crate) fn validates(&self) -> bool {
        self.messenger.is_some()
    }

    /// All devices: discrete, integrated, virtual, software; among equals in the loader's order.
    pub(crate) fn candidates(&self) -> Result<Vec<Candidate>, VulkanError> {
        // SAFETY: the instance is alive.
        let list = unsafe { self.raw.enumerate_physical_devices() };
        let list = list.map_err(VulkanError::of("vkEnumeratePhysicalDevices"))?;
        let query = |physical| Capabilities::query(&self.entry, &self.raw, physical);
        let mut list: Vec<Candidate> =
            list.into_iter().map(|physical| Candidate { physical, capabilities: query(physical) }).collect();
        list.sort_by_key(|one| one.capabilities.as_ref().map_or(Kind::Software, |capabilities| capabilities.kind));
        Ok(list)
    }

    /// The device with a number, or the first that is no software.
    pub(crate) fn choose(&self, index: Option<usize>) -> Result<(vk::PhysicalDevice, Capabilities), VulkanError> {
        let mut list = self.candidates()?;
        if list.is_empty() {
            return Err(VulkanError::NoDevice);
        }
        if let Some(index) = index {
            let count = list.len();
            if index >= count {
                return Err(VulkanError::NoSuchDevice { index, count });
            }
            let one = list.swap_remove(index);
            return Ok((one.physical, one.capabilities?));
        }
        let mut software = Vec::new();
        let mut lacking = None;
        for one in list {
            match one.capabilities {
                Ok(capabilities) if capabilities.kind != Kind::Software => return Ok((one.physical, capabilities)),
                Ok(capabilities) => software.push(capabilities.name),
                Err(error) => lacking = lacking.or(Some(error)),
            }
        }
        Err(lacking.unwrap_or_else(|| VulkanError::OnlySoftware(software.join(", "))))
    }
}

fn has_layer(entry: &ash::Entry) -> Result<bool, VulkanError> {
    // SAFETY: the loader is loaded.
    let layers = unsafe { entry.enumerate_instance_layer_properties() };
    let layers = layers.map_err(VulkanError::of("vkEnumerateInstanceLayerProperties"))?;
    Ok(layers.iter().any(|layer| layer.layer_name_as_c_str() == Ok(VALIDATION)))
}

fn messenger(
    entry: &ash::Entry,
    instance: &ash::Instance,
) -> Result<(ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT), VulkanError> {
    let functions = ext::debug_utils::Instance::new(entry, instance);
    let severity = vk::DebugUtilsMessageSeverityFlagsEXT::ERROR | vk::DebugUtilsMessageSeverityFlagsEXT::WARNING;
    let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
        .message_severity(severity)
        .message_type(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
        .pfn_user_callback(Some(complain));
    // SAFETY: the extension is enabled, and the callback is a function that lives as long as the program.
    let messenger = unsafe { functions.create_debug_utils_messenger(&info, None) };
    Ok((functions, messenger.map_err(VulkanError::of("vkCreateDebugUtilsMessengerEXT"))?))
}

unsafe extern "system" fn complain(
    _: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    _: *mut c_void,
) -> vk::Bool32 {
    COMPLAINTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the layer hands a valid structure that lives through the call; its message may be absent.
    let message = unsafe { data.as_ref().and_then(|data| data.message_as_c_str()) };
    eprintln!("vulkan validation: {}", message.unwrap_or_default().to_string_lossy());
    vk::FALSE
}
