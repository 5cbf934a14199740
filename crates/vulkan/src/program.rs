//! A compiled share: what it owns, and how a step runs through it.

use std::{collections::HashMap, sync::Arc};

use ash::vk;
use graph::{Arithmetic, DeviceError, Exchange, Program, Rows, Step, ValueId, Weight};

use crate::{
    Vulkan,
    context::Context,
    error::VulkanError,
    inbox::{self, InboxLayout, TileList},
    list::{Addresses, Bucket, Lister},
    memory::{Buffer, Place, Slabs, Want},
    operation::{Matrix, Operation},
    profile::Profile,
    record::{self, Recorded, Recording},
    top,
};

/// Recordings kept: one a size of step. Beyond it the one unused for longest goes.
const RECORDINGS: usize = 64;

/// A value that the processor writes: where in the inbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostValue {
    pub(crate) at: u64,
    pub(crate) width: usize,
    pub(crate) rows: Rows,
}

/// A value that leaves the stage: from where, and where in the outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutValue {
    pub(crate) value: ValueId,
    pub(crate) matrix: Matrix,
    pub(crate) outbox: u64,
    /// Whether it is the graph's result.
    pub(crate) is_logits: bool,
}

/// A stage.
pub(crate) struct StageProgram {
    pub(crate) inputs: Vec<(ValueId, HostValue)>,
    /// Tables whose rows the processor looks up in the mapped file, with the factor.
    pub(crate) embeds: Vec<(Weight, f32, HostValue)>,
    pub(crate) outputs: Vec<OutValue>,
    pub(crate) operations: Vec<Operation>,
}

/// A cache on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheAt {
    pub(crate) group: usize,
    /// Keys and values, `[block][head][slot][element]`.
    pub(crate) places: [Place; 2],
    pub(crate) block_bytes: u64,
}

/// Memory that a program owns.
pub(crate) struct Owned {
    pub(crate) caches: Vec<CacheAt>,
    /// Weights: kernels know them by address.
    pub(crate) _weights: Slabs,
    pub(crate) memory: Slabs,
    pub(crate) layout: InboxLayout,
    pub(crate) lists: Vec<TileList>,
    pub(crate) inbox: Buffer,
    pub(crate) mirror: Option<Buffer>,
    pub(crate) outbox: Buffer,
    pub(crate) addresses: Addresses,
}

/// A compiled share.
pub(crate) struct VulkanProgram {
    name: String,
    context: Arc<Context>,
    profile: Arc<Profile>,
    arithmetic: Arithmetic,
    stages: Vec<StageProgram>,
    /// Before what it names, so that it goes first.
    recordings: HashMap<Bucket, (Recorded, u64)>,
    steps: u64,
    /// Of [`crate::tuning::Tuning`] when they were made.
    generation: u64,
    owned: Owned,
}

impl VulkanProgram {
    pub(crate) fn new(
        vulkan: &Vulkan,
        arithmetic: Arithmetic,
        stages: Vec<StageProgram>,
        owned: Owned,
    ) -> VulkanProgram {
        VulkanProgram {
            name: vulkan.name.clone(),
            context: vulkan.context.clone(),
            profile: vulkan.profile.clone(),
            arithmetic,
            stages,
            recordings: HashMap::new(),
            steps: 0,
            generation: 0,
            owned,
        }
    }

    fn step(&mut self, stage: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), VulkanError> {
        self.make_room(step)?;
        self.write_inbox(stage, step, exchange)?;
        let longest = step.spans.iter().map(|span| span.past + span.rows.len()).max().unwrap_or(1);
        let bucket = Bucket {
            stage,
            tokens: step.tokens() as u32,
            outputs: step.outputs.len() as u32,
            tiles: inbox::tile_counts(&self.owned.lists, step),
            many: step.spans.iter().any(|span| span.rows.len() > 1),
            longest: u32::try_from(longest.next_power_of_two()).unwrap_or(u32::MAX).max(128),
            top: self
                .logits(stage)
                .map_or(0, |out| top::wanted(exchange, step.outputs.len(), out.matrix.width as usize)),
        };
        self.steps += 1;
        let generation = self.context.tuning.generation();
        if self.generation != generation {
            // Recorded with other variants of kernels.
            self.recordings.clear();
            self.generation = generation;
        }
        if !self.recordings.contains_key(&bucket) {
            self.record(stage, &bucket, step)?;
        }
        let (recorded, used) = self.recordings.get_mut(&bucket).expect("recorded above");
        *used = self.steps;
        let is_outdated = recorded.run(&self.context)?;
        self.profile.take(&self.context, recorded)?;
        if is_outdated {
            self.recordings.remove(&bucket);
        }
        self.read_outbox(stage, step, exchange, bucket.top)
    }

    /// The logits, where they leave this stage.
    fn logits(&self, stage: usize) -> Option<OutValue> {
        self.stages[stage].outputs.iter().find(|out| out.is_logits).copied()
    }

    fn record(&mut self, stage: usize, bucket: &Bucket, step: &Step<'_>) -> Result<(), VulkanError> {
        if self.recordings.len() >= RECORDINGS {
            let oldest = self.recordings.iter().min_by_key(|(_, (_, used))| *used).map(|(bucket, _)| bucket.clone());
            oldest.map(|oldest| self.recordings.remove(&oldest));
        }
        let mut lister = Lister {
            capabilities: &self.context.capabilities,
            arithmetic: self.arithmetic,
            tuning: &self.context.tuning,
            bucket,
            addresses: &self.owned.addresses,
            list: Vec::new(),
            made: None,
            halved: None,
        };
        lister.add(&self.stages[stage].operations);
        if let Some(logits) = self.logits(stage).filter(|_| bucket.top > 0) {
            lister.top(&logits.matrix);
        }
        let list = lister.list;
        let recording = Recording {
            context: &self.context,
            owned: &self.owned,
            timed: self.profile.is_on(),
            mirrored: self.mirrored(stage, step),
            outputs: self.outputs(stage, step, bucket.top),
        };
        let recorded = recording.record(&list)?;
        self.recordings.insert(bucket.clone(), (recorded, self.steps));
        Ok(())
    }

    /// The parts of the inbox that this stage uses: (begin, bytes). Tables are copied whole, for their length changes
    /// while the bucket stays.
    fn mirrored(&self, stage: usize, step: &Step<'_>) -> Vec<(u64, u64)> {
        let layout = &self.owned.layout;
        let (tokens, outputs) = (step.tokens() as u64, step.outputs.len() as u64);
        let mut parts = vec![(layout.positions, tokens * 4), (layout.outputs, outputs * 4), (layout.ids, tokens * 4)];
        parts.extend(layout.places.iter().map(|at| (*at, tokens * 4)));
        parts.extend(layout.tiles.iter().map(|at| (*at, tokens * 16)));
        let values = self.stages[stage].inputs.iter().map(|(_, value)| value);
        let values = values.chain(self.stages[stage].embeds.iter().map(|(_, _, value)| value));
        parts.extend(values.map(|value| (value.at, (count(value.rows, step) * value.width) as u64 * 4)));
        parts.push((layout.tables, self.owned.inbox.bytes.saturating_sub(layout.tables)));
        parts.retain(|(_, bytes)| *bytes > 0);
        parts
    }

    /// What is copied to the outbox, (address, begin there, bytes): of the logits the `top` largest, unless that is 0.
    fn outputs(&self, stage: usize, step: &Step<'_>, top: u32) -> Vec<(u64, u64, u64)> {
        let outputs = self.stages[stage].outputs.iter();
        outputs
            .map(|out| {
                if out.is_logits && top > 0 {
                    let bytes = step.outputs.len() as u64 * u64::from(top) * top::PAIR_BYTES;
                    return (self.owned.addresses.top, out.outbox, bytes);
                }
                let bytes = (count(out.matrix.rows, step) * out.matrix.width as usize) as u64 * 4;
                (out.matrix.address, out.outbox, bytes)
            })
            .filter(|(_, _, bytes)| *bytes > 0)
            .collect()
    }

    /// A larger inbox, where the block tables of this step are longer than any before. Addresses change with it, so
    /// what was recorded is void.
    fn make_room(&mut self, step: &Step<'_>) -> Result<(), VulkanError> {
        let owned = &mut self.owned;
        let needed = owned.layout.tables + inbox::table_bytes(step);
        if needed <= owned.inbox.bytes {
            return Ok(());
        }
        self.recordings.clear();
        let old = owned.mirror.as_ref().map_or(owned.inbox.address, |mirror| mirror.address);
        owned.inbox = Buffer::new(&self.context, needed.next_power_of_two(), Want::DeviceFromHost)?;
        owned.mirror = match owned.mirror {
            Some(_) => Some(Buffer::new(&self.context, needed.next_power_of_two(), Want::Device)?),
            None => None,
        };
        let new = owned.mirror.as_ref().map_or(owned.inbox.address, |mirror| mirror.address);
        let range = old..old + owned.layout.tables + 1;
        let moved = |address: &mut u64| {
            if range.contains(address) {
                *address = *address - old + new;
            }
        };
        owned.addresses.visit(&moved);
        for stage in &mut self.stages {
            stage.operations.iter_mut().for_each(|operation| operation.visit(&moved));
            stage.outputs.iter_mut().for_each(|out| moved(&mut out.matrix.address));
        }
        Ok(())
    }

    fn write_inbox(&mut self, stage: usize, step: &Step<'_>, exchange: &Exchange) -> Result<(), VulkanError> {
        let Owned { layout, lists, inbox, .. } = &mut self.owned;
        let Some(bytes) = inbox.bytes_mut() else {
            return Err(VulkanError::Call { call: "vkMapMemory", result: vk::Result::ERROR_MEMORY_MAP_FAILED });
        };
        inbox::write(layout, lists, step, bytes);
        for (value, at) in &self.stages[stage].inputs {
            let source = &exchange.get(*value)[..count(at.rows, step) * at.width];
            bytes[at.at as usize..][..source.len() * 4].copy_from_slice(bytemuck::cast_slice(source));
        }
        for (table, scale, at) in &self.stages[stage].embeds {
            let row_bytes = table.cols * 4;
            let out = &mut bytes[at.at as usize..][..step.ids.len() * row_bytes];
            let each = step.ids.len().div_ceil(threads_for(out.len())).max(1);
            std::thread::scope(|scope| {
                for (ids, out) in step.ids.chunks(each).zip(out.chunks_mut(each * row_bytes)) {
                    let mut work = move || decode_rows(table, *scale, ids, out);
                    if each < step.ids.len() {
                        scope.spawn(work);
                    } else {
                        work();
                    }
                }
            });
        }
        Ok(())
    }

    fn read_outbox(
        &mut self,
        stage: usize,
        step: &Step<'_>,
        exchange: &mut Exchange,
        top: u32,
    ) -> Result<(), VulkanError> {
        let bytes = outbox_bytes(&mut self.owned)?;
        for out in self.stages[stage].outputs.iter().filter(|out| top == 0 || !out.is_logits) {
            let len = count(out.matrix.rows, step) * out.matrix.width as usize;
            let target = &mut exchange.get_mut(out.value)[..len];
            copy_out(&bytes[out.outbox as usize..][..len * 4], bytemuck::cast_slice_mut(target));
        }
        match self.logits(stage).filter(|_| top > 0) {
            Some(logits) => self.read_top(&logits, step.outputs.len(), exchange, top as usize),
            None => Ok(()),
        }
    }

    /// Takes the largest logits of the rows of which they suffice, and fetches the other rows.
    fn read_top(
        &mut self,
        logits: &OutValue,
        rows: usize,
        exchange: &mut Exchange,
        top: usize,
    ) -> Result<(), VulkanError> {
        let row_bytes = top * top::PAIR_BYTES as usize;
        let found = &outbox_bytes(&mut self.owned)?[logits.outbox as usize..][..rows * row_bytes];
        let mut whole = Vec::new();
        for (row, found) in found.chunks_exact(row_bytes).enumerate() {
            match exchange.top(row).is_some_and(|wanted| wanted <= top) {
                true => exchange.keep(row, top::pairs(found)),
                false => whole.push(row),
            }
        }
        if whole.is_empty() {
            return Ok(());
        }
        let row_bytes = logits.matrix.width as usize * 4;
        let (from, begin) = record::buffer_of(&self.owned, logits.matrix.address);
        let copies: Vec<vk::BufferCopy> = whole
            .iter()
            .map(|row| vk::BufferCopy {
                src_offset: begin + (row * row_bytes) as u64,
                dst_offset: logits.outbox + (row * row_bytes) as u64,
                size: row_bytes as u64,
            })
            .collect();
        let (device, outbox) = (&self.context.device, self.owned.outbox.raw);
        self.context.run_once(|commands| {
            // SAFETY: the buffer is being recorded; the rows lie in the value and in its place in the outbox.
            unsafe {
                record::barrier(device, commands, record::COMPUTE, record::TRANSFER);
                device.cmd_copy_buffer(commands, from, outbox, &copies);
                record::barrier(device, commands, record::TRANSFER, record::HOST);
            }
        })?;
        let bytes = outbox_bytes(&mut self.owned)?;
        for row in whole {
            let source = &bytes[logits.outbox as usize + row * row_bytes..][..row_bytes];
            copy_out(source, bytemuck::cast_slice_mut(exchange.logits_mut(row)));
        }
        Ok(())
    }

    fn copy(&mut self, group: usize, from: u32, to: u32) -> Result<(), VulkanError> {
        if from == to {
            return Ok(());
        }
        let mut copies = Vec::new();
        for cache in self.owned.caches.iter().filter(|cache| cache.group == group) {
            for place in cache.places {
                let copy = vk::BufferCopy {
                    src_offset: place.offset + u64::from(from) * cache.block_bytes,
                    dst_offset: place.offset + u64::from(to) * cache.block_bytes,
                    size: cache.block_bytes,
                };
                copies.push((self.owned.memory.buffers[place.slab].raw, copy));
            }
        }
        let device = &self.context.device;
        self.context.run_once(|commands| {
            for (buffer, copy) in &copies {
                // SAFETY: both blocks lie in the cache: the execution checked their numbers. They do not overlap.
                unsafe { device.cmd_copy_buffer(commands, *buffer, *buffer, &[*copy]) };
            }
        })
    }
}

impl Program for VulkanProgram {
    fn run(&mut self, stage: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), DeviceError> {
        self.step(stage, step, exchange).map_err(|error| error.for_plan(&self.name))
    }

    fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), DeviceError> {
        self.copy(group, from, to).map_err(|error| error.for_plan(&self.name))
    }
}

/// Rows of a table, times a factor, as floats.
fn decode_rows(table: &Weight, scale: f32, ids: &[u32], out: &mut [u8]) {
    let mut row = vec![0.0; table.cols];
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(table.cols * 4)) {
        table.decode_row(*id as usize, &mut row);
        row.iter_mut().for_each(|value| *value *= scale);
        out.copy_from_slice(bytemuck::cast_slice(&row));
    }
}

fn outbox_bytes(owned: &mut Owned) -> Result<&mut [u8], VulkanError> {
    let failed = VulkanError::Call { call: "vkMapMemory", result: vk::Result::ERROR_MEMORY_MAP_FAILED };
    owned.outbox.bytes_mut().ok_or(failed)
}

/// Copies bytes of as great a number, with several threads where they are many.
fn copy_out(source: &[u8], target: &mut [u8]) {
    let each = source.len().div_ceil(threads_for(source.len())).max(1);
    std::thread::scope(|scope| {
        for (source, target) in source.chunks(each).zip(target.chunks_mut(each)) {
            let mut work = move || target.copy_from_slice(source);
            if each < source.len() {
                scope.spawn(work);
            } else {
                work();
            }
        }
    });
}

/// Threads worth starting to write so many bytes.
fn threads_for(bytes: usize) -> usize {
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    (bytes >> 20).clamp(1, there.min(8))
}

fn count(rows: Rows, step: &Step<'_>) -> usize {
    match rows {
        Rows::Tokens => step.tokens(),
        Rows::Outputs => step.outputs.len(),
    }
}
