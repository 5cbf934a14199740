//! The opened device: its queue, submitting and waiting, and what pipelines were made.

use std::{
    collections::HashMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ash::{khr, vk};

use crate::{
    capabilities::Capabilities,
    error::VulkanError,
    instance::Instance,
    pace::Pace,
    pipeline::{Pipeline, PipelineKey},
    tuning::Tuning,
};

/// How long a sleep lasts at most.
const SLEEP_NS: u64 = 5_000_000;

/// Sleeps after which the device counts as lost, five minutes together: submits are cut well below it, but a processor
/// that plays a device compiles kernels while it runs them. Sleeps and not seconds are counted, so that a program which
/// was stopped and goes on does not take its own absence for the device's.
const SLEEPS: u32 = 60_000;

/// How long a wait polls before it sleeps: a token of a small model is ready within this.
const POLL: Duration = Duration::from_micros(2000);

/// An opened device.
pub(crate) struct Context {
    pub(crate) device: ash::Device,
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) capabilities: Capabilities,
    pub(crate) queue_family: u32,
    pub(crate) cache: vk::PipelineCache,
    pub(crate) cache_path: Option<PathBuf>,
    pub(crate) pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// Bytes of memory that buffers hold.
    pub(crate) allocated: AtomicU64,
    /// How long kernels take, and submits may.
    pub(crate) pace: Pace,
    /// Which variants of kernels were chosen.
    pub(crate) tuning: Tuning,
    /// The submit from which on the device counts as lost, in tests.
    lost_from: AtomicU64,
    queue: Mutex<Queue>,
    timeline: vk::Semaphore,
    pub(crate) instance: &'static Instance,
}

struct Queue {
    raw: vk::Queue,
    /// The number of the last submit.
    submitted: u64,
}

impl Context {
    /// Opens a device. Pipelines are cached in a file of the folder `cache`.
    pub(crate) fn open(
        instance: &'static Instance,
        physical: vk::PhysicalDevice,
        capabilities: Capabilities,
        cache: Option<PathBuf>,
        submit_bound: Option<Duration>,
    ) -> Result<Context, VulkanError> {
        let queue_family = queue_family(&instance.raw, physical)
            .ok_or(VulkanError::Lacks { device: capabilities.name.clone(), feature: "a queue for compute" })?;
        let device = device(&instance.raw, physical, &capabilities, queue_family)?;
        // SAFETY: the family was created with one queue.
        let raw = unsafe { device.get_device_queue(queue_family, 0) };
        let mut kind =
            vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE).initial_value(0);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: timeline semaphores are enabled.
        let timeline = unsafe { device.create_semaphore(&info, None) }.map_err(VulkanError::of("vkCreateSemaphore"))?;
        let cache_path = cache.map(|folder| folder.join(format!("{}.pipelines", capabilities.cache_id)));
        let cache = crate::pipeline::open_cache(&device, cache_path.as_deref())?;
        let pace = Pace::new(capabilities.kind, submit_bound);
        Ok(Context {
            device,
            physical,
            capabilities,
            queue_family,
            cache,
            cache_path,
            pipelines: Mutex::default(),
            allocated: AtomicU64::new(0),
            pace,
            tuning: Tuning::default(),
            lost_from: AtomicU64::new(u64::MAX),
            queue: Mutex::new(Queue { raw, submitted: 0 }),
            timeline,
            instance,
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits so far.
    pub(crate) fn submits(&self) -> u64 {
        self.queue().submitted
    }

    /// As [`crate::Vulkan::lose_after`].
    pub(crate) fn lose_after(&self, submits: u64) {
        let last = self.submits().saturating_add(submits);
        self.lost_from.store(last.saturating_add(1), Ordering::Relaxed);
    }

    /// Submits command buffers, one after another, and returns their numbers, of which the last is to be waited for.
    pub(crate) fn submit(&self, buffers: &[vk::CommandBuffer]) -> Result<Range<u64>, VulkanError> {
        let mut queue = self.queue();
        let first = queue.submitted + 1;
        for buffer in buffers {
            let number = queue.submitted + 1;
            let commands = [vk::CommandBufferSubmitInfo::default().command_buffer(*buffer)];
            let signals = [vk::SemaphoreSubmitInfo::default()
                .semaphore(self.timeline)
                .value(number)
                .stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS)];
            let submit = vk::SubmitInfo2::default().command_buffer_infos(&commands).signal_semaphore_infos(&signals);
            let done = if number >= self.lost_from.load(Ordering::Relaxed) {
                Err(vk::Result::ERROR_DEVICE_LOST)
            } else {
                // SAFETY: the queue is locked, and the buffers are recorded and not pending: programs wait for each step.
                unsafe { self.device.queue_submit2(queue.raw, &[submit], vk::Fence::null()) }
            };
            if let Err(result) = done {
                // Those before it may be at work: whoever hears of the error is free to drop what they use.
                let _ = self.wait(queue.submitted);
                return Err(VulkanError::Call { call: "vkQueueSubmit2", result });
            }
            queue.submitted = number;
        }
        Ok(first..queue.submitted + 1)
    }

    /// Waits for a submit: polls first, then sleeps.
    pub(crate) fn wait(&self, number: u64) -> Result<(), VulkanError> {
        let begin = Instant::now();
        let (semaphores, values) = ([self.timeline], [number]);
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        let mut sleeps = 0;
        loop {
            // SAFETY: the semaphore belongs to the device.
            let reached = unsafe { self.device.get_semaphore_counter_value(self.timeline) }
                .map_err(VulkanError::of("vkGetSemaphoreCounterValue"))?;
            if reached >= number {
                return Ok(());
            }
            if begin.elapsed() < POLL {
                std::hint::spin_loop();
                continue;
            }
            if sleeps == SLEEPS {
                // A device that does not answer is as good as lost.
                return Err(VulkanError::Call { call: "vkWaitSemaphores", result: vk::Result::ERROR_DEVICE_LOST });
            }
            sleeps += 1;
            // SAFETY: as above.
            match unsafe { self.device.wait_semaphores(&info, SLEEP_NS) } {
                Ok(()) | Err(vk::Result::TIMEOUT) => {}
                Err(result) => return Err(VulkanError::Call { call: "vkWaitSemaphores", result }),
            }
        }
    }

    /// A pool of command buffers.
    pub(crate) fn command_pool(&self) -> Result<vk::CommandPool, VulkanError> {
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(self.queue_family);
        // SAFETY: the family is the device's.
        unsafe { self.device.create_command_pool(&info, None) }.map_err(VulkanError::of("vkCreateCommandPool"))
    }

    /// Records into a fresh command buffer of a pool. With `once` it is submitted once.
    pub(crate) fn record(
        &self,
        pool: vk::CommandPool,
        once: bool,
        commands: impl FnOnce(vk::CommandBuffer),
    ) -> Result<vk::CommandBuffer, VulkanError> {
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(pool)
            .level(vk::CommandBufferLevel::PRIMARY)
            .command_buffer_count(1);
        let usage =
            if once { vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT } else { vk::CommandBufferUsageFlags::empty() };
        let begin = vk::CommandBufferBeginInfo::default().flags(usage);
        // SAFETY: the pool is the caller's alone, and the buffer fresh.
        unsafe {
            let buffer =
                self.device.allocate_command_buffers(&info).map_err(VulkanError::of("vkAllocateCommandBuffers"))?[0];
            self.device.begin_command_buffer(buffer, &begin).map_err(VulkanError::of("vkBeginCommandBuffer"))?;
            commands(buffer);
            self.device.end_command_buffer(buffer).map_err(VulkanError::of("vkEndCommandBuffer"))?;
            Ok(buffer)
        }
    }

    /// Records, submits and waits, for what happens outside steps.
    pub(crate) fn run_once(&self, commands: impl FnOnce(vk::CommandBuffer)) -> Result<(), VulkanError> {
        let pool = self.command_pool()?;
        let done = self
            .record(pool, true, commands)
            .and_then(|buffer| self.submit(&[buffer]))
            .and_then(|numbers| self.wait(numbers.end - 1));
        // SAFETY: the wait is over: nothing of the pool is pending, or the device is lost.
        unsafe { self.device.destroy_command_pool(pool, None) };
        done
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        crate::pipeline::store_cache(self);
        let pipelines = std::mem::take(&mut *self.pipelines.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: programs hold the context by `Arc`, so none is left and nothing is pending; all is destroyed once.
        unsafe {
            let _ = self.device.device_wait_idle();
            for pipeline in pipelines.values() {
                self.device.destroy_pipeline(pipeline.raw, None);
                self.device.destroy_pipeline_layout(pipeline.layout, None);
            }
            self.device.destroy_pipeline_cache(self.cache, None);
            self.device.destroy_semaphore(self.timeline, None);
            self.device.destroy_device(None);
        }
    }
}

/// A family of queues for compute: one without graphics where there is one.
fn queue_family(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Option<u32> {
    // SAFETY: the handle comes from this instance.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let with = |index: &usize| families[*index].queue_flags.contains(vk::QueueFlags::COMPUTE);
    let graphics = |index: &usize| families[*index].queue_flags.contains(vk::QueueFlags::GRAPHICS);
    (0..families.len()).filter(with).min_by_key(graphics).map(|index| index as u32)
}

fn device(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    capabilities: &Capabilities,
    queue_family: u32,
) -> Result<ash::Device, VulkanError> {
    let priorities = [1.0];
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(queue_family).queue_priorities(&priorities)];
    let matrix = capabilities.cooperative_matrix.is_some();
    let mut extensions = Vec::new();
    if capabilities.memory_budget {
        extensions.push(ash::ext::memory_budget::NAME.as_ptr());
    }
    if matrix {
        extensions.push(khr::cooperative_matrix::NAME.as_ptr());
    }
    let mut v12 = vk::PhysicalDeviceVulkan12Features::default()
        .buffer_device_address(true)
        .timeline_semaphore(true)
        .shader_float16(matrix)
        .vulkan_memory_model(matrix);
    let mut v13 = vk::PhysicalDeviceVulkan13Features::default()
        .subgroup_size_control(true)
        .compute_full_subgroups(true)
        .shader_integer_dot_product(true)
        .synchronization2(true)
        .maintenance4(true);
    let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
    let mut info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extensions)
        .push_next(&mut v12)
        .push_next(&mut v13);
    if matrix {
        info = info.push_next(&mut matrices);
    }
    // SAFETY: the features and extensions asked for are those the device reported; all pointers live through the call.
    unsafe { instance.create_device(physical, &info, None) }.map_err(VulkanError::of("vkCreateDevice"))
}
