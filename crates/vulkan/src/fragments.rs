//! Where a device keeps the elements of a matrix. Vulkan leaves that open; `gemm_fragments.comp` is for one way of it, and
//! runs where a small kernel has found that the device's is this one.

use std::sync::Arc;

use ash::vk;

use crate::{
    context::Context,
    error::VulkanError,
    kernels::{Dispatch, Fragments},
    memory::{Buffer, Want},
    pipeline::PipelineKey,
    record,
    shaders::Shader,
};

const LANES: usize = 32;
const OWN: usize = 8;

/// Whether left and right matrices of 16 x 16 halves lie as the kernel wants them.
pub(crate) fn are_known(context: &Arc<Context>) -> Result<bool, VulkanError> {
    if !context.capabilities.matrix_fragments {
        return Ok(false);
    }
    let bytes = 2 * LANES * OWN * 4;
    let mut result = Buffer::new(context, bytes as u64, Want::HostReads)?;
    let push = Fragments { result: result.address };
    let dispatch = Dispatch::new(Shader::Fragments, vec![], &push, [1, 1, 1]);
    let pipeline = context.pipeline(PipelineKey { shader: dispatch.shader, constants: vec![] })?;
    let device = &context.device;
    context.run_once(|commands| {
        // SAFETY: the buffer is being recorded; the address is of a buffer that lives through the wait.
        unsafe {
            device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
            let stage = vk::ShaderStageFlags::COMPUTE;
            device.cmd_push_constants(commands, pipeline.layout, stage, 0, &dispatch.push);
            device.cmd_dispatch(commands, 1, 1, 1);
            record::barrier(device, commands, record::COMPUTE, record::HOST);
        }
    })?;
    let found = result.bytes_mut().map(|bytes| bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
    Ok(found.is_some_and(|found| found.take(bytes / 4).eq(known())))
}

/// The elements, 16 * row + column: of each invocation those of a left matrix, then those of a right one. As NVIDIA's
/// `mma.m16n8k16` has them (PTX ISA 9.7.15, "Matrix Fragments for mma.m16n8k16"), with two right ones side by side.
fn known() -> impl Iterator<Item = u32> {
    let elements = |of: fn(u32, u32) -> (u32, u32)| {
        (0..(LANES * OWN) as u32).map(move |at| {
            let (row, column) = of(at / OWN as u32, at % OWN as u32);
            16 * row + column
        })
    };
    let left = elements(|lane, i| (lane / 4 + 8 * (i / 4), 2 * (lane % 4) + i % 2 + 8 * (i / 2 % 2)));
    let right = elements(|lane, i| (2 * (lane % 4) + i % 2 + 8 * (i / 2 % 2), lane / 4 + 8 * (i / 4)));
    left.chain(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_lies_in_one_place() {
        let mut elements: Vec<u32> = known().collect();
        for half in elements.chunks_mut(LANES * OWN) {
            half.sort_unstable();
            assert!(half.iter().copied().eq(0..256));
        }
    }
}
