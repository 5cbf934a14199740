//! Device memory: allocations of at most a gibibyte, cut in order, and buffers the processor reaches.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use ash::vk;
use graph::Memory;

use crate::{context::Context, error::VulkanError};

/// Largest allocation, unless a single tensor is larger: drivers place such allocations without trouble.
const SLAB_BYTES: u64 = 1 << 30;

/// Places begin at multiples of this: the widest loads, and whole lines of every cache.
pub(crate) const ALIGN: u64 = 256;

/// What memory a buffer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// The device's, reached by it alone.
    Device,
    /// The device's, reached by the processor too where that can be had; else the processor's.
    DeviceFromHost,
    /// The processor's, for it to write.
    HostWrites,
    /// The processor's, cached for it to read.
    HostReads,
}

/// A buffer with memory of its own.
pub(crate) struct Buffer {
    pub(crate) raw: vk::Buffer,
    memory: vk::DeviceMemory,
    pub(crate) bytes: u64,
    pub(crate) address: u64,
    /// Where the processor reaches it.
    mapped: Option<*mut u8>,
    /// Bytes of its memory.
    allocated: u64,
    context: Arc<Context>,
}

// SAFETY: the pointer is to memory that belongs to the buffer alone and is bound to no thread.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A buffer of `bytes` bytes.
    pub(crate) fn new(context: &Arc<Context>, bytes: u64, want: Want) -> Result<Buffer, VulkanError> {
        let device = &context.device;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let bytes = rounded(bytes.max(1));
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage);
        // SAFETY: plain creation; handles are destroyed in `drop`, or here where a later call fails.
        unsafe {
            let raw = device.create_buffer(&info, None).map_err(VulkanError::of("vkCreateBuffer"))?;
            let needs = device.get_buffer_memory_requirements(raw);
            let found = memory_type(context, needs.memory_type_bits, want);
            let allocated = found.and_then(|(kind, flags)| {
                let mut addresses =
                    vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
                let info = vk::MemoryAllocateInfo::default()
                    .allocation_size(needs.size)
                    .memory_type_index(kind)
                    .push_next(&mut addresses);
                let memory = device.allocate_memory(&info, None).map_err(VulkanError::of("vkAllocateMemory"))?;
                context.allocated.fetch_add(needs.size, Ordering::Relaxed);
                Ok((memory, flags))
            });
            let (memory, flags) = match allocated {
                Ok(found) => found,
                Err(error) => {
                    device.destroy_buffer(raw, None);
                    return Err(error);
                }
            };
            let mut buffer = Buffer {
                raw,
                memory,
                bytes,
                address: 0,
                mapped: None,
                allocated: needs.size,
                context: context.clone(),
            };
            device.bind_buffer_memory(raw, memory, 0).map_err(VulkanError::of("vkBindBufferMemory"))?;
            buffer.address = device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(raw));
            if want != Want::Device && flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE) {
                let map = device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty());
                buffer.mapped = Some(map.map_err(VulkanError::of("vkMapMemory"))?.cast());
            }
            Ok(buffer)
        }
    }

    /// Its bytes, where the processor reaches them.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: the memory is mapped for as long as the buffer lives and has at least `bytes` bytes. The device uses
        // it only between a submit and its wait, during which a program holds no slice of it.
        self.mapped.map(|at| unsafe { std::slice::from_raw_parts_mut(at, self.bytes as usize) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: programs wait for what they submit, so nothing pending uses it. Freeing unmaps.
        unsafe {
            self.context.device.destroy_buffer(self.raw, None);
            self.context.device.free_memory(self.memory, None);
        }
        self.context.allocated.fetch_sub(self.allocated, Ordering::Relaxed);
    }
}

/// Whether what kernels read from the processor lies in the device's own memory.
pub(crate) fn is_local_from_host(context: &Context) -> bool {
    memory_type(context, u32::MAX, Want::DeviceFromHost)
        .is_ok_and(|(_, flags)| flags.contains(vk::MemoryPropertyFlags::DEVICE_LOCAL))
}

/// The first type of memory that has what is wanted, and its properties.
fn memory_type(context: &Context, allowed: u32, want: Want) -> Result<(u32, vk::MemoryPropertyFlags), VulkanError> {
    use vk::MemoryPropertyFlags as Flags;
    let host = Flags::HOST_VISIBLE | Flags::HOST_COHERENT;
    let choices = match want {
        Want::Device => [Flags::DEVICE_LOCAL, Flags::empty()],
        Want::DeviceFromHost => [Flags::DEVICE_LOCAL | host, host],
        Want::HostWrites => [host, host],
        Want::HostReads => [Flags::HOST_CACHED | host, host],
    };
    // SAFETY: the handle comes from the context's instance.
    let memory = unsafe { context.instance.raw.get_physical_device_memory_properties(context.physical) };
    for wanted in choices {
        let types = memory.memory_types_as_slice().iter().enumerate();
        let mut fits =
            types.filter(|(index, kind)| allowed & (1 << index) != 0 && kind.property_flags.contains(wanted));
        if let Some((index, kind)) = fits.next() {
            return Ok((index as u32, kind.property_flags));
        }
    }
    Err(VulkanError::Call { call: "vkAllocateMemory", result: vk::Result::ERROR_OUT_OF_DEVICE_MEMORY })
}

/// A place in a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) slab: usize,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

/// Memory handed out in order and freed as a whole.
pub(crate) struct Slabs {
    context: Arc<Context>,
    pub(crate) buffers: Vec<Buffer>,
    want: Want,
    used: u64,
    /// Bytes of the slabs that are still to come.
    to_come: VecDeque<u64>,
}

/// Bytes that a tensor takes in a slab.
pub(crate) fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

/// Bytes of the slabs for places of these sizes, in this order: each as large as what it holds.
pub(crate) fn slab_bytes(places: impl IntoIterator<Item = u64>, most: u64) -> VecDeque<u64> {
    let mut slabs: VecDeque<u64> = VecDeque::new();
    for bytes in places.into_iter().map(|bytes| rounded(bytes.max(1))) {
        match slabs.back_mut() {
            Some(slab) if *slab + bytes <= most => *slab += bytes,
            _ => slabs.push_back(bytes),
        }
    }
    slabs
}

impl Slabs {
    /// Slabs for places of these sizes, to be taken in this order.
    pub(crate) fn new(context: &Arc<Context>, want: Want, places: impl IntoIterator<Item = u64>) -> Slabs {
        let to_come = slab_bytes(places, SLAB_BYTES.min(context.capabilities.allocation_bytes));
        Slabs { context: context.clone(), buffers: Vec::new(), want, used: 0, to_come }
    }

    /// A place for `bytes` bytes.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<Place, VulkanError> {
        let bytes = rounded(bytes.max(1));
        let fits = self.buffers.last().is_some_and(|slab| slab.bytes - self.used >= bytes);
        if !fits {
            let size = self.to_come.pop_front().unwrap_or(bytes).max(bytes);
            self.buffers.push(Buffer::new(&self.context, size, self.want)?);
            self.used = 0;
        }
        let slab = self.buffers.len() - 1;
        let offset = self.used;
        self.used += bytes;
        Ok(Place { slab, offset, address: self.buffers[slab].address + offset, bytes })
    }
}

/// Memory of the device: of its largest heap, less what others use where that is reported.
pub(crate) fn memory(context: &Context) -> Memory {
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if context.capabilities.memory_budget {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: the handle comes from the context's instance; the chained structure lives through the call.
    unsafe { context.instance.raw.get_physical_device_memory_properties2(context.physical, &mut properties) };
    let heaps = properties.memory_properties.memory_heaps_as_slice().to_vec();
    let local = heaps.iter().enumerate().filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let Some((index, heap)) = local.max_by_key(|(_, heap)| heap.size) else {
        return Memory { total_bytes: 0, available_bytes: 0 };
    };
    let available = if context.capabilities.memory_budget {
        budget.heap_budget[index].saturating_sub(budget.heap_usage[index])
    } else {
        heap.size
    };
    Memory { total_bytes: heap.size, available_bytes: available.min(heap.size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_as_large_as_what_they_hold() {
        for (places, want) in [
            (&[][..], &[][..]),
            (&[1, 256, 300], &[1024]),
            (&[512, 512, 256], &[1024, 256]),
            // What is larger than a slab has one of its own.
            (&[512, 4096, 512], &[512, 4096, 512]),
        ] {
            assert_eq!(slab_bytes(places.iter().copied(), 1024), want, "{places:?}");
        }
    }
}
