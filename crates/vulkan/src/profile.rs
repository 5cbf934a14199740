//! Times of kernels by the device's own clock.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use ash::vk;

use crate::{context::Context, error::VulkanError, kernels::Dispatch, record::Recorded, tuning::Variant};

/// How often a kernel ran and how long it took in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTime {
    /// The kernel: shader, types and shape.
    pub kernel: String,
    /// Runs.
    pub runs: u64,
    /// Nanoseconds from the end of the kernel before it to its own end, all runs together.
    pub total_ns: f64,
    /// The kernel as tuning knows it, and the variant that ran, where it has several.
    pub choice: Option<(String, Variant)>,
    /// Bytes and operations of a run, by estimate.
    pub bytes: u64,
    /// As above.
    pub ops: u64,
}

/// What a recorded dispatch is.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    name: String,
    choice: Option<(String, Variant)>,
    bytes: u64,
    ops: u64,
}

impl Label {
    pub(crate) fn of(dispatch: &Dispatch) -> Label {
        let Dispatch { label, choice, bytes, work, .. } = dispatch;
        Label { name: label.clone(), choice: choice.clone(), bytes: *bytes, ops: *work }
    }
}

/// By name and choice.
type Times = BTreeMap<(String, Option<(String, Variant)>), KernelTime>;

/// Adds up times, where that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    on: bool,
    kernels: Mutex<Times>,
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
            let Label { name, choice, bytes, ops } = label.clone();
            let entry = kernels.entry((name.clone(), choice.clone())).or_default();
            let (runs, total_ns) = (entry.runs + 1, entry.total_ns + time);
            *entry = KernelTime { kernel: name, runs, total_ns, choice, bytes, ops };
        }
        Ok(())
    }

    /// What was added since the last call, the longest first.
    pub(crate) fn drain(&self) -> Vec<KernelTime> {
        let kernels = std::mem::take(&mut *self.kernels.lock().unwrap_or_else(PoisonError::into_inner));
        let mut list: Vec<KernelTime> = kernels.into_values().collect();
        list.sort_by(|a, b| b.total_ns.total_cmp(&a.total_ns));
        list
    }
}
