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
    logits: ValueId,
    vocab: usize,
    /// Whether nothing but the caller reads the logits.
    leaves_out: bool,
    /// Of each output row of this step, how many of its largest logits suffice; 0, or nothing, where all are wanted.
    top: Vec<usize>,
    /// Of each output row the ids whose logits it holds, minus infinity in all other places; none where it holds all.
    kept: Vec<Vec<u32>>,
}

impl Exchange {
    pub(crate) fn new(plan: &Plan, graph: &Graph) -> Exchange {
        let mut buffers = vec![None; graph.values().len()];
        for value in plan.stages.iter().flat_map(|stage| &stage.outputs) {
            let Value { rows, width } = graph.value(*value);
            buffers[value.index()] = Some(vec![0.0; plan.limits.rows(*rows) * width]);
        }
        let logits = graph.logits();
        let is_read = plan.stages.iter().any(|stage| stage.inputs.contains(&logits))
            || graph.taps().iter().any(|(_, tapped)| *tapped == logits);
        Exchange {
            buffers,
            logits,
            vocab: graph.vocab(),
            leaves_out: !is_read,
            top: Vec::new(),
            kept: vec![Vec::new(); plan.limits.outputs],
        }
    }

    /// How many of the largest logits of an output row suffice, for a program that makes them: it may give those to
    /// [`Exchange::keep`] and leave out the others. `None` where all are wanted.
    pub fn top(&self, row: usize) -> Option<usize> {
        self.top.get(row).copied().filter(|top| *top > 0)
    }

    /// The logits of an output row: these, by id, and minus infinity in all other places. They are the largest, of equal
    /// ones those of the lowest ids, as many as [`Exchange::top`] asks for or more; NaN counts as the largest.
    ///
    /// # Panics
    /// Where the plan does not exchange the logits, or a row or an id is not there: a defect of the device.
    pub fn keep(&mut self, row: usize, largest: impl Iterator<Item = (u32, f32)>) {
        let logits = self.buffers[self.logits.index()].as_mut().expect("the logits leave the graph");
        let logits = &mut logits[row * self.vocab..(row + 1) * self.vocab];
        let kept = &mut self.kept[row];
        if kept.is_empty() {
            logits.fill(f32::NEG_INFINITY);
        }
        kept.drain(..).for_each(|id| logits[id as usize] = f32::NEG_INFINITY);
        for (id, logit) in largest {
            logits[id as usize] = logit;
            kept.push(id);
        }
    }

    /// All logits of an output row, for writing.
    ///
    /// # Panics
    /// As [`Exchange::keep`].
    pub fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        self.kept[row].clear();
        let logits = self.buffers[self.logits.index()].as_mut().expect("the logits leave the graph");
        &mut logits[row * self.vocab..(row + 1) * self.vocab]
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
        if value == self.logits {
            self.kept.iter_mut().for_each(Vec::clear);
        }
        self.buffers[value.index()].as_deref_mut().expect("only values that cross stages are exchanged")
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
    /// Where the step is malformed or larger than planned, a sequence grows beyond the planned context, or a device fails.
    pub fn run(&mut self, step: &Step<'_>) -> Result<&mut [f32], RunError> {
        self.run_top(step, &[])?;
        Ok(self.logits_mut(step.outputs.len()).0)
    }

    /// Runs a step of which not all logits are wanted: of wanted row `i` the `top[i]` largest suffice, of equal ones
    /// those of the lowest ids; all where that is 0, or `top` is empty. A device may leave out the others, so that they
    /// need not cross to the host: [`Execution::logits_mut`] tells. A NaN of a row is never left out.
    ///
    /// # Errors
    /// As [`Execution::run`], and where `top` is of another number of rows.
    pub fn run_top(&mut self, step: &Step<'_>, top: &[usize]) -> Result<(), RunError> {
        step.check(&self.graph, &self.plan.kv.blocks)?;
        if !top.is_empty() && top.len() != step.outputs.len() {
            let what = format!("{} bounds on logits for {} outputs", top.len(), step.outputs.len());
            return Err(StepError::Malformed(what).into());
        }
        let limits = &self.plan.limits;
        for (what, asked, limit) in
            [("tokens", step.tokens(), limits.tokens), ("outputs", step.outputs.len(), limits.outputs)]
        {
            if asked > limit {
                return Err(StepError::TooLarge { what, asked, limit }.into());
            }
        }
        for asked in step.spans.iter().map(|span| span.past + span.rows.len()) {
            if asked > limits.context {
                return Err(StepError::TooLarge { what: "tokens in a sequence", asked, limit: limits.context }.into());
            }
        }
        self.exchange.top.clear();
        if self.exchange.leaves_out {
            self.exchange.top.extend_from_slice(top);
        }
        let mut done = vec![0; self.programs.len()];
        for stage in &self.plan.stages {
            let Some(program) = &mut self.programs[stage.device] else {
                return Err(DeviceError::Lost { device: self.plan.devices[stage.device].clone() }.into());
            };
            program.run(done[stage.device], step, &mut self.exchange)?;
            done[stage.device] += 1;
        }
        Ok(())
    }

    /// Gives back what the devices hold, as after one was lost. Steps fail from then on.
    pub fn clear(&mut self) {
        self.programs.iter_mut().for_each(|program| *program = None);
    }

    /// Copies a KV block of a group, on every device that holds caches of it.
    ///
    /// # Errors
    /// Where a block is not there, or a device fails.
    pub fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), RunError> {
        let blocks = self.plan.kv.blocks.get(group).copied().unwrap_or(0);
        if let Some(block) = [from, to].into_iter().find(|block| *block as usize >= blocks) {
            return Err(StepError::Malformed(format!("a copy names block {block} of {blocks}")).into());
        }
        for program in self.programs.iter_mut().flatten() {
            program.copy_block(group, from, to)?;
        }
        Ok(())
    }

    /// The logits of the wanted rows as the last step left them, `[outputs, vocab]`, and for each row the ids that it
    /// holds: none where it holds all. In all other places it has minus infinity, and a caller that changes logits leaves
    /// those as they are.
    pub fn logits_mut(&mut self, outputs: usize) -> (&mut [f32], &[Vec<u32>]) {
        let Exchange { buffers, logits, vocab, kept, .. } = &mut self.exchange;
        let logits = buffers[logits.index()].as_mut().expect("the logits leave the graph");
        (&mut logits[..outputs * *vocab], &kept[..outputs])
    }

    /// A tapped value as the last step left it, `[T or R, width]`.
    pub fn tap(&self, name: &str, step: &Step<'_>) -> Option<&[f32]> {
        let (_, value) = self.graph.taps().iter().find(|(tap, _)| tap == name)?;
        let rows = match self.graph.value(*value).rows {
            Rows::Tokens => step.tokens(),
            Rows::Outputs => step.outputs.len(),
        };
        self.tap_rows(name, rows)
    }

    /// The first `rows` rows of a tapped value as the last step left it, `[rows, width]`.
    pub fn tap_rows(&self, name: &str, rows: usize) -> Option<&[f32]> {
        let (_, value) = self.graph.taps().iter().find(|(tap, _)| tap == name)?;
        Some(&self.exchange.get(*value)[..rows * self.graph.value(*value).width])
    }
}
