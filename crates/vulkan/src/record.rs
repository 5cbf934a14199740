//! Command buffers from a list of dispatches: a barrier where one reads what another wrote or writes what another
//! reads, and a cut into submits that no device takes for hanging.

use std::{ops::Range, sync::Arc, time::Instant};

use ash::vk;

use crate::{
    context::Context,
    error::VulkanError,
    kernels::Dispatch,
    pace::{Cost, Piece},
    pipeline::{BEFORE_AT, Pipeline, PipelineKey},
    profile::Label,
    program::Owned,
};

/// Commands of a stage for steps of one size.
pub(crate) struct Recorded {
    context: Arc<Context>,
    pool: vk::CommandPool,
    /// To be submitted in order.
    buffers: Vec<vk::CommandBuffer>,
    /// What kernels cost, and which of them each buffer has.
    costs: Vec<Cost>,
    submits: Vec<Vec<Piece>>,
    /// Where times are taken: before the first dispatch and after each.
    pub(crate) queries: Option<vk::QueryPool>,
    /// What each dispatch is.
    pub(crate) labels: Vec<Label>,
    /// The pipelines it uses live as long as it does.
    _pipelines: Vec<Arc<Pipeline>>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: a program waits for what it submits, so nothing of the pool is pending.
        unsafe {
            self.context.device.destroy_command_pool(self.pool, None);
            if let Some(queries) = self.queries {
                self.context.device.destroy_query_pool(queries, None);
            }
        }
    }
}

impl Recorded {
    /// Submits everything and waits for it. Where submits are bounded, what they lasted is noted. Returns whether
    /// everything should be recorded anew, in other submits.
    pub(crate) fn run(&self, context: &Context) -> Result<bool, VulkanError> {
        let mut last = Instant::now();
        let numbers = context.submit(&self.buffers)?;
        if !context.pace.is_bounded() {
            context.wait(numbers.end - 1)?;
            return Ok(false);
        }
        let mut lasted = Vec::with_capacity(self.submits.len());
        for number in numbers {
            context.wait(number)?;
            let now = Instant::now();
            lasted.push(now - last);
            last = now;
        }
        let (pace, costs, submits) = (&context.pace, &self.costs, &self.submits);
        Ok(pace.learn(costs, submits, &lasted) && pace.is_outdated(costs, submits))
    }
}

/// What a recording is made from.
pub(crate) struct Recording<'a> {
    pub(crate) context: &'a Arc<Context>,
    pub(crate) owned: &'a Owned,
    /// Whether times are taken.
    pub(crate) timed: bool,
    /// Parts of the inbox to copy to its mirror: (begin, bytes).
    pub(crate) mirrored: Vec<(u64, u64)>,
    /// Values to copy to the outbox: (address, begin there, bytes).
    pub(crate) outputs: Vec<(u64, u64, u64)>,
}

impl Recording<'_> {
    /// Records a list.
    pub(crate) fn record(&self, list: &[Dispatch]) -> Result<Recorded, VulkanError> {
        let device = &self.context.device;
        let costs: Vec<Cost> = list.iter().map(|dispatch| self.context.pace.cost(dispatch)).collect();
        let submits = self.context.pace.cut(&costs);
        let mut pipelines = Vec::with_capacity(list.len());
        for dispatch in list {
            let (shader, constants) = (dispatch.shader, dispatch.constants.clone());
            pipelines.push(self.context.pipeline(PipelineKey { shader, constants })?);
        }
        let mut recorded = Recorded {
            context: self.context.clone(),
            pool: self.context.command_pool()?,
            buffers: Vec::new(),
            costs,
            submits,
            queries: None,
            labels: list.iter().map(Label::of).collect(),
            _pipelines: pipelines,
        };
        if self.timed && self.context.capabilities.tick_ns > 0.0 && !list.is_empty() {
            let info = vk::QueryPoolCreateInfo::default()
                .query_type(vk::QueryType::TIMESTAMP)
                .query_count(list.len() as u32 + 1);
            // SAFETY: plain creation; destroyed with the recording.
            let pool = unsafe { device.create_query_pool(&info, None) };
            recorded.queries = Some(pool.map_err(VulkanError::of("vkCreateQueryPool"))?);
        }
        for index in 0..recorded.submits.len() {
            let buffer = self.context.record(recorded.pool, false, |commands| {
                // SAFETY: the buffer is being recorded; all handles belong to the context, and addresses in push
                // constants are of memory that the program owns.
                unsafe { self.commands(commands, list, &recorded, index) };
            })?;
            recorded.buffers.push(buffer);
        }
        Ok(recorded)
    }

    /// The commands of a submit.
    ///
    /// # Safety
    /// `commands` is being recorded.
    unsafe fn commands(&self, commands: vk::CommandBuffer, list: &[Dispatch], recorded: &Recorded, submit: usize) {
        let device = &self.context.device;
        // SAFETY: as the caller promises; ranges of copies lie in their buffers.
        unsafe {
            if submit == 0 {
                self.begin(commands, recorded.queries, list.len());
            } else {
                barrier(device, commands, COMPUTE, COMPUTE);
            }
            let mut hazards = Hazards::default();
            for piece in &recorded.submits[submit] {
                let (dispatch, pipeline) = (&list[piece.index], &recorded._pipelines[piece.index]);
                if hazards.meets(dispatch) {
                    barrier(device, commands, COMPUTE, COMPUTE);
                }
                device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
                let stage = vk::ShaderStageFlags::COMPUTE;
                device.cmd_push_constants(commands, pipeline.layout, stage, 0, &dispatch.push);
                let [x, y, z] = dispatch.groups;
                let rows = piece.rows.clone().unwrap_or(0..y);
                let before = rows.start.to_ne_bytes();
                device.cmd_push_constants(commands, pipeline.layout, stage, BEFORE_AT, &before);
                device.cmd_dispatch(commands, x, rows.end - rows.start, z);
                if let Some(queries) = recorded.queries.filter(|_| piece.is_last(dispatch)) {
                    // The time after a dispatch counts once it is done, so each waits for the one before.
                    let stage = vk::PipelineStageFlags2::COMPUTE_SHADER;
                    device.cmd_write_timestamp2(commands, stage, queries, piece.index as u32 + 1);
                }
            }
            if submit + 1 == recorded.submits.len() {
                self.end(commands);
            }
        }
    }

    /// # Safety
    /// As [`Recording::commands`].
    unsafe fn begin(&self, commands: vk::CommandBuffer, queries: Option<vk::QueryPool>, count: usize) {
        let device = &self.context.device;
        // SAFETY: as the caller promises.
        unsafe {
            if let Some(mirror) = &self.owned.mirror {
                let copies: Vec<vk::BufferCopy> = self
                    .mirrored
                    .iter()
                    .map(|(at, bytes)| vk::BufferCopy { src_offset: *at, dst_offset: *at, size: *bytes })
                    .collect();
                device.cmd_copy_buffer(commands, self.owned.inbox.raw, mirror.raw, &copies);
                barrier(device, commands, TRANSFER, COMPUTE);
            }
            if let Some(queries) = queries {
                device.cmd_reset_query_pool(commands, queries, 0, count as u32 + 1);
                device.cmd_write_timestamp2(commands, vk::PipelineStageFlags2::ALL_COMMANDS, queries, 0);
            }
        }
    }

    /// # Safety
    /// As [`Recording::commands`].
    unsafe fn end(&self, commands: vk::CommandBuffer) {
        let device = &self.context.device;
        // SAFETY: as the caller promises.
        unsafe {
            barrier(device, commands, COMPUTE, TRANSFER);
            for (address, to, bytes) in &self.outputs {
                let (buffer, offset) = buffer_of(self.owned, *address);
                let copy = vk::BufferCopy { src_offset: offset, dst_offset: *to, size: *bytes };
                device.cmd_copy_buffer(commands, buffer, self.owned.outbox.raw, &[copy]);
            }
            barrier(device, commands, TRANSFER, HOST);
        }
    }
}

/// The buffer that holds an address, and the place in it.
pub(crate) fn buffer_of(owned: &Owned, address: u64) -> (vk::Buffer, u64) {
    let buffers = owned.memory.buffers.iter().chain(&owned.mirror).chain([&owned.inbox]);
    let holds = |buffer: &&crate::memory::Buffer| (buffer.address..buffer.address + buffer.bytes).contains(&address);
    let buffer = buffers.into_iter().find(holds).expect("values lie in the memory of the program");
    (buffer.raw, address - buffer.address)
}

/// What was read and written since the last barrier.
#[derive(Default)]
struct Hazards {
    reads: Vec<Range<u64>>,
    writes: Vec<Range<u64>>,
}

impl Hazards {
    /// Whether a dispatch must wait for those since the last barrier. It counts from then on.
    fn meets(&mut self, dispatch: &Dispatch) -> bool {
        let meet = |mine: &[Range<u64>], theirs: &[Range<u64>]| {
            mine.iter().any(|a| theirs.iter().any(|b| a.start < b.end && b.start < a.end))
        };
        let waits = meet(&dispatch.reads, &self.writes)
            || meet(&dispatch.writes, &self.writes)
            || meet(&dispatch.writes, &self.reads);
        if waits {
            self.reads.clear();
            self.writes.clear();
        }
        self.reads.extend(dispatch.reads.iter().cloned());
        self.writes.extend(dispatch.writes.iter().cloned());
        waits
    }
}

pub(crate) type Scope = (vk::PipelineStageFlags2, vk::AccessFlags2);
pub(crate) const COMPUTE: Scope = (
    vk::PipelineStageFlags2::COMPUTE_SHADER,
    vk::AccessFlags2::from_raw(
        vk::AccessFlags2::SHADER_STORAGE_READ.as_raw() | vk::AccessFlags2::SHADER_STORAGE_WRITE.as_raw(),
    ),
);
pub(crate) const TRANSFER: Scope = (
    vk::PipelineStageFlags2::ALL_TRANSFER,
    vk::AccessFlags2::from_raw(vk::AccessFlags2::TRANSFER_READ.as_raw() | vk::AccessFlags2::TRANSFER_WRITE.as_raw()),
);
pub(crate) const HOST: Scope = (vk::PipelineStageFlags2::HOST, vk::AccessFlags2::HOST_READ);

/// A dispatch by itself, behind a barrier.
///
/// # Safety
/// `commands` is being recorded, and what the dispatch reads and writes lives until it is done.
pub(crate) unsafe fn dispatch(
    device: &ash::Device,
    commands: vk::CommandBuffer,
    pipeline: &Pipeline,
    dispatch: &Dispatch,
) {
    let [x, y, z] = dispatch.groups;
    // SAFETY: as the caller promises.
    unsafe {
        barrier(device, commands, COMPUTE, COMPUTE);
        device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
        device.cmd_push_constants(commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, &dispatch.push);
        device.cmd_dispatch(commands, x, y, z);
    }
}

/// A copy that the processor reads.
///
/// # Safety
/// `commands` is being recorded, and both ranges lie in their buffers.
pub(crate) unsafe fn copy_to_host(
    device: &ash::Device,
    commands: vk::CommandBuffer,
    from: vk::Buffer,
    to: vk::Buffer,
    copy: vk::BufferCopy,
) {
    // SAFETY: as the caller promises.
    unsafe {
        device.cmd_copy_buffer(commands, from, to, &[copy]);
        barrier(device, commands, TRANSFER, HOST);
    }
}

/// # Safety
/// `commands` is being recorded.
pub(crate) unsafe fn barrier(device: &ash::Device, commands: vk::CommandBuffer, from: Scope, to: Scope) {
    let barriers = [vk::MemoryBarrier2::default()
        .src_stage_mask(from.0)
        .src_access_mask(from.1)
        .dst_stage_mask(to.0)
        .dst_access_mask(to.1)];
    let info = vk::DependencyInfo::default().memory_barriers(&barriers);
    // SAFETY: as the caller promises.
    unsafe { device.cmd_pipeline_barrier2(commands, &info) };
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of one")]
mod tests {
    use super::*;
    use crate::shaders::Shader;

    fn dispatch(reads: &[Range<u64>], writes: &[Range<u64>]) -> Dispatch {
        let mut dispatch = Dispatch::new(Shader::Merge, vec![], &0u32, [1; 3]);
        (dispatch.reads, dispatch.writes) = (reads.to_vec(), writes.to_vec());
        dispatch
    }

    #[test]
    fn barriers_stand_where_ranges_overlap() {
        let mut hazards = Hazards::default();
        for (reads, writes, waits) in [
            (vec![0..4], vec![4..8], false),
            (vec![0..4], vec![8..12], false),  // reads what is only read
            (vec![6..10], vec![12..16], true), // reads what was written
            (vec![0..4], vec![16..20], false), // the barrier has settled the writes before it
            (vec![], vec![0..2], true),        // writes what is read
            (vec![], vec![1..2], true),        // writes what was written
            (vec![2..3], vec![3..4], false),
        ] {
            assert_eq!(hazards.meets(&dispatch(&reads, &writes)), waits, "{reads:?} {writes:?}");
        }
    }
}
