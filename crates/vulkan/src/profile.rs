//! Times of kernels by the device's own clock.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use ash::vk;

use crate::{context::Context, error::VulkanError, record::Recorded};

/// How often a kernel ran and how long it took in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTime {
    /// The kernel: shader, types and shape.
    pub kernel: String,
    /// Runs.
    pub runs: u64,
    /// Nanoseconds from the end of the kernel before it to its own end, all runs together.
    pub total_ns: f64,
}

/// Adds up times, where that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    on: bool,
    kernels: Mutex<BTreeMap<String, (u64, f64)>>,
}

impl Profile {
    pub(crate) fn new(on: bool) -> Profile {
        Profile { on, kernels: Mutex::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Adds the times of commands that have run.
    pub(crate) fn take(&self, context: &Context, recorded: &Recorded) -> Result<(), VulkanError> {
        let Some(queries) = recorded.queries else { return Ok(()) };
        let mut ticks = vec![0u64; recorded.labels.len() + 1];
        // SAFETY: the pool has as many queries, and all were written by commands that have been waited for.
        unsafe { context.device.get_query_pool_results(queries, 0, &mut ticks, vk::QueryResultFlags::TYPE_64) }
            .map_err(VulkanError::of("vkGetQueryPoolResults"))?;
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        for (label, pair) in recorded.labels.iter().zip(ticks.windows(2)) {
            let time = pair[1].saturating_sub(pair[0]) as f64 * f64::from(context.capabilities.tick_ns);
            let entry = kernels.entry(label.clone()).or_default();
            entry.0 += 1;
            entry.1 += time;
        }
        Ok(())
    }

    /// What was added since the last call, the longest first.
    pub(crate) fn drain(&self) -> Vec<KernelTime> {
        let kernels = std::mem::take(&mut *self.kernels.lock().unwrap_or_else(PoisonError::into_inner));
        let mut list: Vec<KernelTime> =
            kernels.into_iter().map(|(kernel, (runs, total_ns))| KernelTime { kernel, runs, total_ns }).collect();
        list.sort_by(|a, b| b.total_ns.total_cmp(&a.total_ns));
        list
    }
}
