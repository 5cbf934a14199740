//! A compiled plan: programs run in turn, values cross between them.

use crate::{
    device::{DeviceError, Program},
    graph::{Graph, Rows, Value, ValueId},
    plan::Plan,
    step::{Step, StepError},
};

/// Values that cross between devices or leave the graph, in host memory, row-major `f32`.
#[derive(Debug)]
pub struct Exchange {
    buffers: Vec<Option<Vec<f32>>>,
}

impl Exchange {
    pub(crate) fn new(plan: &Plan, graph: &Graph) -> Exchange {
        let mut buffers = vec![None; graph.values().len()];
        for value in plan.stages.iter().flat_map(|stage| &stage.outputs) {
            let Value { rows, width } = graph.value(*value);
            buffers[value.index()] = Some(vec![0.0; plan.limits.rows(*rows) * width]);
        }
        Exchange { buffers }
    }

    /// A value, for reading.
    ///
    /// # Panics
    /// Where the plan does not exchange this value: a defect of the device that asks.
    pub fn get(&self, value: ValueId) -> &[f32] {
        self.buffers[value.index()].as_deref().expect("only values that cross stages are exchanged")
    }

    /// A value, for writing.
    ///
    /// # Panics
    /// As [`Exchange::get`].
    pub fn get_mut(&mut self, value: ValueId) -> &mut [f32] {
        self.buffers[value.index()].as_deref_mut().expect("only values that cross stages are exchanged")
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().flatten().map(|buffer| buffer.len() as u64 * 4).sum()
    }
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The step was refused before anything ran.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A plan whose shares are compiled.
pub struct Execution {
    graph: std::sync::Arc<Graph>,
    plan: Plan,
    programs: Vec<Option<Box<dyn Program>>>,
    exchange: Exchange,
}

impl Execution {
    pub(crate) fn new(graph: std::sync::Arc<Graph>, plan: Plan, programs: Vec<Option<Box<dyn Program>>>) -> Execution {
        let exchange = Exchange::new(&plan, &graph);
        Execution { graph, plan, programs, exchange }
    }

    /// The plan it obeys.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The graph it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs a step and returns the logits of the wanted rows, `[R, vocab]`, for the caller to change as it likes.
    ///
    /// # Errors
    /// Where the step is malformed or larger than planned, or a device fails.
    pub fn run(&mut self, step: &Step<'_>) -> Result<&mut [f32], RunError> {
        step.check(&self.graph, &self.plan.kv.blocks)?;
        let limits = &self.plan.limits;
        for (what, asked, limit) in
            [("tokens", step.tokens(), limits.tokens), ("outputs", step.outputs.len(), limits.outputs)]
        {
            if asked > limit {
                return Err(StepError::TooLarge { what, asked, limit }.into());
            }
        }
        let mut done = vec![0; self.programs.len()];
        for stage in &self.plan.stages {
            let program = self.programs[stage.device].as_mut().expect("a device with a stage has a program");
            program.run(done[stage.device], step, &mut self.exchange)?;
            done[stage.device] += 1;
        }
        let len = step.outputs.len() * self.graph.vocab();
        Ok(&mut self.exchange.get_mut(self.graph.logits())[..len])
    }

    /// The logits of the first `outputs` wanted rows as the last step left them, `[outputs, vocab]`.
    pub fn logits(&self, outputs: usize) -> &[f32] {
        &self.exchange.get(self.graph.logits())[..outputs * self.graph.vocab()]
    }

    /// A tapped value as the last step left it, `[T or R, width]`.
    pub fn tap(&self, name: &str, step: &Step<'_>) -> Option<&[f32]> {
        let (_, value) = self.graph.taps().iter().find(|(tap, _)| tap == name)?;
        let rows = match self.graph.value(*value).rows {
            Rows::Tokens => step.tokens(),
            Rows::Outputs => step.outputs.len(),
        };
        Some(&self.exchange.get(*value)[..rows * self.graph.value(*value).width])
    }
}
