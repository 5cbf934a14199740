//! After a device was lost, or ran out of memory: it is opened anew and the plan compiled again, or the plan moves to the
//! CPU. The scheduler then computes its sequences again from their tokens; who waits for them sees a pause.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use graph::{DeviceError, Execution, Graph, Plan, PlanOptions};

use crate::{EngineError, check_fits, devices::Devices};

/// Losses within [`SPELL`] after which a device is not trusted any more.
const MOST_LOSSES: usize = 3;
const SPELL: Duration = Duration::from_secs(600);

/// What it takes to go on.
pub(crate) struct Recovery {
    pub(crate) graph: Arc<Graph>,
    pub(crate) plan: Plan,
    pub(crate) options: PlanOptions,
    pub(crate) cpu_memory: Option<u64>,
    pub(crate) devices: Arc<Mutex<Devices>>,
    /// Whether the CPU may not take over.
    pub(crate) strict: bool,
    /// When it was lost, the last time first.
    pub(crate) losses: Vec<Instant>,
}

impl Recovery {
    /// An execution of the same graph and context. The old one has given its memory back.
    ///
    /// # Errors
    /// Where nothing helps.
    pub(crate) fn recover(&mut self, error: &DeviceError) -> Result<Execution, EngineError> {
        self.losses.retain(|at| at.elapsed() < SPELL);
        self.losses.push(Instant::now());
        let devices = self.devices.clone();
        let mut devices = lock(&devices);
        if self.losses.len() <= MOST_LOSSES {
            match self.rebuild(&mut devices) {
                Ok(execution) => {
                    tracing::warn!(%error, "the device was opened anew; its sequences are computed again");
                    return Ok(execution);
                }
                Err(again) => tracing::warn!(%error, %again, "the device cannot be opened anew"),
            }
        }
        if self.strict {
            return Err(EngineError::Failed(error.clone()));
        }
        let execution = self.on_cpu(&mut devices)?;
        tracing::warn!(%error, "from here on everything runs on the CPU; sequences are computed again");
        Ok(execution)
    }

    fn rebuild(&self, devices: &mut Devices) -> Result<Execution, EngineError> {
        devices.reopen_vulkan(None)?;
        Ok(self.plan.clone().compile(self.graph.clone(), &devices.list(), &mut |_, _| ())?)
    }

    fn on_cpu(&mut self, devices: &mut Devices) -> Result<Execution, EngineError> {
        devices.give_up_vulkan()?;
        let options = PlanOptions {
            context: Some(self.plan.limits.context),
            budgets: vec![self.cpu_memory],
            pins: Vec::new(),
            ..self.options.clone()
        };
        self.plan = graph::plan(&self.graph, &devices.list(), &options)?;
        check_fits(&self.plan)?;
        Ok(self.plan.clone().compile(self.graph.clone(), &devices.list(), &mut |_, _| ())?)
    }
}

pub(crate) fn lock(devices: &Mutex<Devices>) -> MutexGuard<'_, Devices> {
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
