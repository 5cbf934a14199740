//! Weights on their way to the device: packed by the processor's threads into one buffer while the device copies the
//! other, or straight into their place where the processor reaches it.

use std::sync::Arc;

use ash::vk;
use graph::{Arithmetic, Weight};

use crate::{
    context::Context,
    error::VulkanError,
    memory::{Buffer, Place, Slabs, Want},
    pack::Layout,
};

/// Bytes of each of the two buffers.
const STAGING_BYTES: u64 = 64 << 20;

/// Uploads into slabs.
pub(crate) struct Uploader {
    context: Arc<Context>,
    staging: Vec<Staging>,
    next: usize,
    threads: usize,
    arithmetic: Arithmetic,
}

struct Staging {
    buffer: Buffer,
    pool: vk::CommandPool,
    /// The submit that reads it.
    pending: Option<u64>,
}

impl Uploader {
    pub(crate) fn new(context: &Arc<Context>, arithmetic: Arithmetic) -> Uploader {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(16));
        Uploader { context: context.clone(), staging: Vec::new(), next: 0, threads, arithmetic }
    }

    /// Packs a weight into its place.
    pub(crate) fn matrix(&mut self, slabs: &mut Slabs, place: Place, weight: &Weight) -> Result<(), VulkanError> {
        let layout = Layout::of(weight, self.arithmetic);
        let row_bytes = layout.row_total().max(1);
        let rows_at_once = (STAGING_BYTES as usize / row_bytes).clamp(1, weight.rows.max(1));
        for first in (0..weight.rows).step_by(rows_at_once) {
            let rows = first..(first + rows_at_once).min(weight.rows);
            let bytes = row_bytes * rows.len();
            let parts = layout.parts(&rows);
            let threads = self.threads;
            self.write(slabs, place, bytes, &parts, |out| layout.pack(weight, rows, out, threads))?;
        }
        Ok(())
    }

    /// Writes words into a place.
    pub(crate) fn words(&mut self, slabs: &mut Slabs, place: Place, words: &[f32]) -> Result<(), VulkanError> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let mut at = 0;
        for chunk in bytes.chunks(STAGING_BYTES as usize) {
            self.write(slabs, place, chunk.len(), &[(0, at, chunk.len())], |out| out.copy_from_slice(chunk))?;
            at += chunk.len();
        }
        Ok(())
    }

    /// Lets `fill` write `bytes` bytes, whose parts (from, to, bytes) go to their places.
    fn write(
        &mut self,
        slabs: &mut Slabs,
        place: Place,
        bytes: usize,
        parts: &[(usize, usize, usize)],
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), VulkanError> {
        if let Some(slab) = slabs.buffers[place.slab].bytes_mut() {
            let mut own = vec![0; bytes];
            fill(&mut own);
            for (from, to, len) in parts {
                let to = place.offset as usize + to;
                slab[to..to + len].copy_from_slice(&own[*from..from + len]);
            }
            return Ok(());
        }
        if self.staging.len() < 2 {
            let buffer = Buffer::new(&self.context, STAGING_BYTES.max(bytes as u64), Want::HostWrites)?;
            let pool = self.context.command_pool()?;
            self.staging.push(Staging { buffer, pool, pending: None });
            self.next = self.staging.len() - 1;
        }
        self.settle(self.next)?;
        if self.staging[self.next].buffer.bytes < bytes as u64 {
            self.staging[self.next].buffer = Buffer::new(&self.context, bytes as u64, Want::HostWrites)?;
        }
        let staging = &mut self.staging[self.next];
        let Some(memory) = staging.buffer.bytes_mut() else {
            return Err(VulkanError::Call { call: "vkMapMemory", result: vk::Result::ERROR_MEMORY_MAP_FAILED });
        };
        fill(&mut memory[..bytes]);
        let copies: Vec<vk::BufferCopy> = parts
            .iter()
            .filter(|(_, _, len)| *len > 0)
            .map(|(from, to, len)| vk::BufferCopy {
                src_offset: *from as u64,
                dst_offset: place.offset + *to as u64,
                size: *len as u64,
            })
            .collect();
        let (from, to) = (staging.buffer.raw, slabs.buffers[place.slab].raw);
        let device = &self.context.device;
        let commands = self.context.record(staging.pool, true, |commands| {
            // SAFETY: both ranges lie in their buffers: the layout of the weight says so, and the place was made for it.
            unsafe { device.cmd_copy_buffer(commands, from, to, &copies) }
        })?;
        staging.pending = Some(self.context.submit(&[commands])?.end - 1);
        self.next = (self.next + 1) % 2;
        Ok(())
    }

    fn settle(&mut self, index: usize) -> Result<(), VulkanError> {
        if let Some(number) = self.staging[index].pending.take() {
            self.context.wait(number)?;
            // SAFETY: the wait is over, so nothing of the pool is pending.
            unsafe {
                self.context
                    .device
                    .reset_command_pool(self.staging[index].pool, vk::CommandPoolResetFlags::RELEASE_RESOURCES)
            }
            .map_err(VulkanError::of("vkResetCommandPool"))?;
        }
        Ok(())
    }

    /// Waits until everything lies in its place.
    pub(crate) fn finish(mut self) -> Result<(), VulkanError> {
        (0..self.staging.len()).try_for_each(|index| self.settle(index))
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        for index in 0..self.staging.len() {
            // Where the device is lost nothing is pending any more.
            let _ = self.settle(index);
            // SAFETY: as in `settle`.
            unsafe { self.context.device.destroy_command_pool(self.staging[index].pool, None) };
        }
    }
}
