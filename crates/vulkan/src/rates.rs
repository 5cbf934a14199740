//! What the device reaches, measured.

use std::sync::Arc;

use ash::vk;

use crate::{
    context::Context,
    error::VulkanError,
    kernels::{Dispatch, Stream},
    memory::{Buffer, Want},
    pipeline::PipelineKey,
    shaders::Shader,
};

/// Bytes read a pass: beyond every cache, but on a processor that plays a device.
const BYTES: u64 = 512 << 20;
const SOFTWARE_BYTES: u64 = 64 << 20;

/// Bytes a second that reading memory reaches: the best of several passes, as a roof should be.
pub(crate) fn read_bandwidth(context: &Arc<Context>) -> Result<f64, VulkanError> {
    let is_software = context.capabilities.kind == crate::Kind::Software;
    let bytes = if is_software { SOFTWARE_BYTES } else { BYTES };
    let source = Buffer::new(context, bytes, Want::Device)?;
    let result = Buffer::new(context, 256, Want::Device)?;
    let push = Stream { source: source.address, result: result.address, count: (bytes / 16) as u32, padding: 0 };
    let groups = if is_software { 64 } else { 4096 };
    let dispatch = Dispatch::new(Shader::Stream, vec![], &push, [groups, 1, 1]);
    let key = PipelineKey { shader: dispatch.shader, constants: vec![], divided: false };
    let pipeline = context.pipeline(key)?;
    let device = &context.device;
    context.run_once(|commands| {
        // SAFETY: the buffer is being recorded, and the range is the whole buffer.
        unsafe { device.cmd_fill_buffer(commands, source.raw, 0, vk::WHOLE_SIZE, 0x5a5a_1234) };
    })?;
    // Several passes a submit, so that the way to the device and back does not count.
    let passes = if is_software { 1 } else { 16 };
    let mut best = 0.0f64;
    for _ in 0..5 {
        let begin = std::time::Instant::now();
        context.run_once(|commands| {
            // SAFETY: the buffer is being recorded; the addresses are of buffers that live through the wait.
            unsafe {
                device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
                let stage = vk::ShaderStageFlags::COMPUTE;
                device.cmd_push_constants(commands, pipeline.layout, stage, 0, &dispatch.push);
                for _ in 0..passes {
                    device.cmd_dispatch(commands, groups, 1, 1);
                }
            }
        })?;
        best = best.max((bytes * passes) as f64 / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
