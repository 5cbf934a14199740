//! What a device can do, asked once. Kernels are chosen by these fields and by nothing else, and each that has a
//! fallback can be switched off to test it.

use ash::{khr, vk};

use crate::error::VulkanError;

/// What kind of device it is, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor, sharing its memory.
    Integrated,
    /// A slice of a device, given to a virtual machine.
    Virtual,
    /// A processor that plays a device: for tests.
    Software,
}

impl Kind {
    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Discrete => "discrete",
            Kind::Integrated => "integrated",
            Kind::Virtual => "virtual",
            Kind::Software => "software",
        }
    }
}

/// A matrix product that a subgroup computes as one, halves summed in floats: `M x K` by `K x N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// Rows of the left matrix.
    pub m: u32,
    /// Columns of the right matrix.
    pub n: u32,
    /// Columns of the left matrix.
    pub k: u32,
}

impl MatrixShape {
    /// Whether all sides are 16, as some kernels want it.
    pub(crate) fn is_square(self) -> bool {
        (self.m, self.n, self.k) == (16, 16, 16)
    }
}

/// A device as it describes itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// The product's name.
    pub name: String,
    /// Driver, with its version in the driver's words.
    pub driver: String,
    /// Vulkan version: major, minor, patch.
    pub api: (u32, u32, u32),
    /// Kind.
    pub kind: Kind,
    /// Invocations of a subgroup, as the kernels are run.
    pub subgroup: u32,
    /// Invocations of a workgroup at most, with subgroups of this size.
    pub workgroup: u32,
    /// The sizes a subgroup can be asked to have.
    pub subgroup_range: (u32, u32),
    /// Multiprocessors or compute units, where the driver says how many there are.
    pub processors: Option<u32>,
    /// Products of four bytes at once, at more than the speed of four products.
    pub integer_dot: bool,
    /// Matrix products of halves, where the device has them for a whole subgroup.
    pub cooperative_matrix: Option<MatrixShape>,
    /// Whether invocations may make matrices of their own elements: once the device is open, whether these are where a
    /// kernel for it wants them.
    pub matrix_fragments: bool,
    /// Device memory that the processor reaches as well: weights are written once, in place.
    pub unified: bool,
    /// Whether it reports what memory is left.
    pub memory_budget: bool,
    /// Shared memory of a workgroup, bytes.
    pub shared_bytes: u32,
    /// Bytes of one allocation, at most.
    pub allocation_bytes: u64,
    /// Nanoseconds a tick of its clock; 0 where it has none.
    pub tick_ns: f32,
    /// Identifies device and driver for the pipeline cache.
    pub cache_id: String,
}

/// Capabilities that can be left unused, by name: the fallbacks are what other devices run.
pub const OPTIONAL: [&str; 5] =
    ["integer-dot", "cooperative-matrix", "matrix-fragments", "unified-memory", "memory-budget"];

impl Capabilities {
    /// Leaves capabilities unused.
    ///
    /// # Errors
    /// Where a name is not one of [`OPTIONAL`].
    pub(crate) fn without(mut self, names: &[String]) -> Result<Capabilities, VulkanError> {
        for name in names {
            match name.as_str() {
                "integer-dot" => self.integer_dot = false,
                "cooperative-matrix" => (self.cooperative_matrix, self.matrix_fragments) = (None, false),
                "matrix-fragments" => self.matrix_fragments = false,
                "unified-memory" => self.unified = false,
                "memory-budget" => self.memory_budget = false,
                _ => {
                    return Err(VulkanError::UnknownCapability { name: name.clone(), known: OPTIONAL.join(", ") });
                }
            }
        }
        Ok(self)
    }

    /// Whether a capability of [`OPTIONAL`] is there and in use.
    pub(crate) fn uses(&self, name: &str) -> bool {
        match name {
            "integer-dot" => self.integer_dot,
            "cooperative-matrix" => self.cooperative_matrix.is_some(),
            "matrix-fragments" => self.matrix_fragments,
            "unified-memory" => self.unified,
            "memory-budget" => self.memory_budget,
            _ => false,
        }
    }

    /// Asks a device.
    ///
    /// # Errors
    /// Where it lacks what every kernel needs.
    pub(crate) fn query(
        entry: &ash::Entry,
        instance: &ash::Instance,
        physical: vk::PhysicalDevice,
    ) -> Result<Capabilities, VulkanError> {
        let mut driver = vk::PhysicalDeviceDriverProperties::default();
        let mut subgroups = vk::PhysicalDeviceSubgroupSizeControlProperties::default();
        let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
        let mut dots = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
        let mut maintenance = vk::PhysicalDeviceMaintenance3Properties::default();
        // SAFETY: the handle comes from this instance.
        let plain = unsafe { instance.get_physical_device_properties(physical) };
        let name = plain.device_name_as_c_str().unwrap_or_default().to_string_lossy().into_owned();
        let lacks = |feature| VulkanError::Lacks { device: name.clone(), feature };
        if plain.api_version < vk::API_VERSION_1_3 {
            return Err(lacks("Vulkan 1.3"));
        }
        let mut properties = vk::PhysicalDeviceProperties2::default()
            .push_next(&mut driver)
            .push_next(&mut subgroups)
            .push_next(&mut subgroup)
            .push_next(&mut dots)
            .push_next(&mut maintenance);
        // SAFETY: as above; the chained structures belong to Vulkan 1.3 and live through the call.
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut v13 = vk::PhysicalDeviceVulkan13Features::default();
        let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut v12).push_next(&mut v13);
        // SAFETY: as above.
        unsafe { instance.get_physical_device_features2(physical, &mut features) };
        let needed = [
            (v12.buffer_device_address, "buffer device addresses"),
            (v12.timeline_semaphore, "timeline semaphores"),
            (v13.subgroup_size_control, "control of the subgroup size"),
            (v13.compute_full_subgroups, "full subgroups"),
            (v13.shader_integer_dot_product, "integer dot products"),
        ];
        if let Some((_, feature)) = needed.into_iter().find(|(there, _)| *there == vk::FALSE) {
            return Err(lacks(feature));
        }
        let operations = vk::SubgroupFeatureFlags::ARITHMETIC | vk::SubgroupFeatureFlags::SHUFFLE;
        if !subgroup.supported_operations.contains(operations) {
            return Err(lacks("sums and exchange within a subgroup"));
        }
        if subgroups.max_subgroup_size < 8 {
            return Err(lacks("subgroups of 8 or more"));
        }
        let extensions = extensions(instance, physical)?;
        let has = |name: &std::ffi::CStr| extensions.iter().any(|known| known.as_c_str() == name);
        let kind = match plain.device_type {
            vk::PhysicalDeviceType::DISCRETE_GPU => Kind::Discrete,
            vk::PhysicalDeviceType::INTEGRATED_GPU => Kind::Integrated,
            vk::PhysicalDeviceType::VIRTUAL_GPU => Kind::Virtual,
            _ => Kind::Software,
        };
        // 32 where it can be had: registers go further, and matrix units of RDNA3 want it.
        let range = (subgroups.min_subgroup_size, subgroups.max_subgroup_size);
        let size = 32.clamp(range.0, range.1);
        let matrix =
            has(khr::cooperative_matrix::NAME) && v12.shader_float16 == vk::TRUE && v12.vulkan_memory_model == vk::TRUE;
        let driver_text =
            |text: Result<&std::ffi::CStr, _>| text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
        let matrix = if matrix { matrix_shape(entry, instance, physical) } else { None };
        let version = plain.api_version;
        Ok(Capabilities {
            driver: format!(
                "{} {}",
                driver_text(driver.driver_name_as_c_str()),
                driver_text(driver.driver_info_as_c_str())
            ),
            api: (vk::api_version_major(version), vk::api_version_minor(version), vk::api_version_patch(version)),
            kind,
            subgroup: size,
            workgroup: plain
                .limits
                .max_compute_work_group_invocations
                .min(subgroups.max_compute_workgroup_subgroups.saturating_mul(size)),
            subgroup_range: range,
            processors: match kind {
                // Few, so that tests have kernels whose workgroups take several shares.
                Kind::Software => Some(2),
                _ => processors(instance, physical, has),
            },
            // A processor has no such instruction reported, but the path is tested there.
            integer_dot: kind == Kind::Software
                || dots.integer_dot_product4x8_bit_packed_signed_accelerated == vk::TRUE,
            cooperative_matrix: matrix,
            matrix_fragments: size == 32 && matrix.is_some_and(MatrixShape::is_square),
            unified: kind != Kind::Discrete && has_unified_memory(instance, physical),
            memory_budget: has(ash::ext::memory_budget::NAME),
            shared_bytes: plain.limits.max_compute_shared_memory_size,
            allocation_bytes: maintenance.max_memory_allocation_size,
            tick_ns: if plain.limits.timestamp_compute_and_graphics == vk::TRUE {
                plain.limits.timestamp_period
            } else {
                0.0
            },
            cache_id: format!(
                "{:08x}-{:08x}-{:08x}-{}",
                plain.vendor_id,
                plain.device_id,
                plain.driver_version,
                plain.pipeline_cache_uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            ),
            name,
        })
    }
}

/// How many multiprocessors or compute units there are.
fn processors(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    has: impl Fn(&std::ffi::CStr) -> bool,
) -> Option<u32> {
    let mut nv = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
    let mut amd = vk::PhysicalDeviceShaderCoreProperties2AMD::default();
    let mut properties = vk::PhysicalDeviceProperties2::default();
    if has(ash::nv::shader_sm_builtins::NAME) {
        properties = properties.push_next(&mut nv);
    }
    if has(ash::amd::shader_core_properties2::NAME) {
        properties = properties.push_next(&mut amd);
    }
    // SAFETY: the handle comes from this instance; what is chained belongs to extensions the device has.
    unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
    [nv.shader_sm_count, amd.active_compute_unit_count].into_iter().find(|count| *count > 0)
}

/// Names of the extensions a device has.
pub(crate) fn extensions(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
) -> Result<Vec<std::ffi::CString>, VulkanError> {
    // SAFETY: the handle comes from this instance.
    let list = unsafe { instance.enumerate_device_extension_properties(physical) };
    let list = list.map_err(VulkanError::of("vkEnumerateDeviceExtensionProperties"))?;
    Ok(list.iter().filter_map(|one| one.extension_name_as_c_str().ok().map(Into::into)).collect())
}

/// The shape for halves summed in floats by a subgroup; 16 x 16 x 16 where there are several.
fn matrix_shape(entry: &ash::Entry, instance: &ash::Instance, physical: vk::PhysicalDevice) -> Option<MatrixShape> {
    let functions = khr::cooperative_matrix::Instance::new(entry, instance);
    // SAFETY: the device has the extension, and the handle comes from this instance.
    let list = unsafe { functions.get_physical_device_cooperative_matrix_properties(physical) }.ok()?;
    let halves = vk::ComponentTypeKHR::FLOAT16;
    let floats = vk::ComponentTypeKHR::FLOAT32;
    let fits = |one: &&vk::CooperativeMatrixPropertiesKHR<'_>| {
        (one.a_type, one.b_type, one.c_type, one.result_type) == (halves, halves, floats, floats)
            && one.scope == vk::ScopeKHR::SUBGROUP
            && 32u32.is_multiple_of(one.k_size)
            && one.m_size <= 32
            && one.n_size <= 16
    };
    let shapes = list.iter().filter(fits).map(|one| MatrixShape { m: one.m_size, n: one.n_size, k: one.k_size });
    shapes.min_by_key(|shape| (shape.m.abs_diff(16), shape.n.abs_diff(16), shape.k.abs_diff(16)))
}

/// Whether the largest device-local memory can be written by the processor.
fn has_unified_memory(instance: &ash::Instance, physical: vk::PhysicalDevice) -> bool {
    // SAFETY: the handle comes from this instance.
    let memory = unsafe { instance.get_physical_device_memory_properties(physical) };
    let both = vk::MemoryPropertyFlags::DEVICE_LOCAL | vk::MemoryPropertyFlags::HOST_VISIBLE;
    let heaps = memory.memory_heaps_as_slice().iter().enumerate();
    let local = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let Some((largest, _)) = local.max_by_key(|(_, heap)| heap.size) else { return false };
    memory
        .memory_types_as_slice()
        .iter()
        .any(|kind| kind.heap_index as usize == largest && kind.property_flags.contains(both))
}
