//! Pipelines: a shader with its constants. Made when first asked for, kept, and cached on disk by the driver's means.

use std::{
    path::Path,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ash::vk;

use crate::{context::Context, error::VulkanError, shaders::Shader};

/// Bytes of push constants that every device has.
pub(crate) const PUSH_BYTES: usize = 128;

/// Where among them stands how many workgroups of the second dimension other pieces of a dispatch have taken. A base that
/// Vulkan adds (`vkCmdDispatchBase`) was without effect on an H100 (driver 580.159).
pub(crate) const BEFORE_AT: u32 = PUSH_BYTES as u32 - 4;

/// What makes a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PipelineKey {
    pub(crate) shader: Shader,
    /// (constant, bits)
    pub(crate) constants: Vec<(u32, u32)>,
}

/// A pipeline with its layout.
pub(crate) struct Pipeline {
    pub(crate) raw: vk::Pipeline,
    pub(crate) layout: vk::PipelineLayout,
}

impl Context {
    /// The pipeline of a key.
    pub(crate) fn pipeline(&self, key: PipelineKey) -> Result<Arc<Pipeline>, VulkanError> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.make(&key)?);
        pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn make(&self, key: &PipelineKey) -> Result<Pipeline, VulkanError> {
        let entries: Vec<vk::SpecializationMapEntry> = key
            .constants
            .iter()
            .enumerate()
            .map(|(at, (id, _))| vk::SpecializationMapEntry { constant_id: *id, offset: at as u32 * 4, size: 4 })
            .collect();
        let data: Vec<u8> = key.constants.iter().flat_map(|(_, bits)| bits.to_ne_bytes()).collect();
        let constants = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let push =
            [vk::PushConstantRange { stage_flags: vk::ShaderStageFlags::COMPUTE, offset: 0, size: PUSH_BYTES as u32 }];
        let layout_info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&push);
        let code = key.shader.words();
        let module_info = vk::ShaderModuleCreateInfo::default().code(&code);
        let mut size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
            .required_subgroup_size(self.capabilities.subgroup);
        // SAFETY: the module is SPIR-V of this crate's shaders, and all that the structures point to lives through the
        // calls. Constants and push constants fit the shader: both are laid out in `kernels`.
        unsafe {
            let module = self
                .device
                .create_shader_module(&module_info, None)
                .map_err(VulkanError::of("vkCreateShaderModule"))?;
            let layout = self
                .device
                .create_pipeline_layout(&layout_info, None)
                .map_err(VulkanError::of("vkCreatePipelineLayout"))?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS)
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main")
                .specialization_info(&constants)
                .push_next(&mut size);
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout);
            let made = self.device.create_compute_pipelines(self.cache, &[info], None);
            self.device.destroy_shader_module(module, None);
            match made {
                Ok(pipelines) => Ok(Pipeline { raw: pipelines[0], layout }),
                Err((_, result)) => {
                    self.device.destroy_pipeline_layout(layout, None);
                    Err(VulkanError::Call { call: "vkCreateComputePipelines", result })
                }
            }
        }
    }
}

/// The driver's cache, filled from a file. A file that is not this device's is left aside with a line.
pub(crate) fn open_cache(device: &ash::Device, path: Option<&Path>) -> Result<vk::PipelineCache, VulkanError> {
    let stored = path.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let (sound, data) = match unseal(&stored) {
        Some(data) => (true, data),
        None => (stored.is_empty(), &[][..]),
    };
    if let (false, Some(path)) = (sound, path) {
        eprintln!("warning: {} is damaged and is made anew", path.display());
    }
    let create = |data: &[u8]| {
        let info = vk::PipelineCacheCreateInfo::default().initial_data(data);
        // SAFETY: the driver checks the header of the data against itself; that the rest is what it once wrote is
        // checked by the digest of `unseal`.
        unsafe { device.create_pipeline_cache(&info, None) }
    };
    create(data).or_else(|_| create(&[])).map_err(VulkanError::of("vkCreatePipelineCache"))
}

/// Writes the cache beside its place and moves it there. That it cannot be written costs time at the next start and
/// nothing else.
pub(crate) fn store_cache(context: &Context) {
    let Some(path) = &context.cache_path else { return };
    if context.pipelines.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        return;
    }
    // SAFETY: the cache belongs to the device.
    let Ok(data) = (unsafe { context.device.get_pipeline_cache_data(context.cache) }) else { return };
    /// Apart from other processes' files, and from those of this one's other devices.
    static STORED: AtomicU64 = AtomicU64::new(0);
    let mine = STORED.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}-{mine}.tmp", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&beside, seal(&data)))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

/// Data behind its digest: a driver trusts what it is given.
fn seal(data: &[u8]) -> Vec<u8> {
    [&digest(data).to_le_bytes()[..], data].concat()
}

fn unseal(stored: &[u8]) -> Option<&[u8]> {
    let (stated, data) = stored.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*stated) == digest(data)).then_some(data)
}

/// FNV-1a: against accidents, not against forgers, who could as well replace the program.
pub(crate) fn digest(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_not_used() {
        let sealed = seal(b"pipelines");
        assert_eq!(unseal(&sealed), Some(&b"pipelines"[..]));
        for damaged in [&sealed[..sealed.len() - 1], &sealed[1..], b"", b"short"] {
            assert_eq!(unseal(damaged), None);
        }
        let mut flipped = sealed;
        flipped[12] ^= 1;
        assert_eq!(unseal(&flipped), None);
    }
}
