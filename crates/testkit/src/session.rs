//! One sequence fed to a compiled graph.

use std::sync::Arc;

use graph::{Device, Execution, Graph, KV_BLOCK_TOKENS, PlanOptions, Span, Step};

/// A sequence on a device, with the simplest block tables that a plan allows.
pub struct Session {
    execution: Execution,
    tables: Vec<Vec<u32>>,
    past: usize,
}

/// What a step made.
#[derive(Clone, Debug)]
pub struct Fed {
    /// Logits of the wanted rows, `[R, vocab]`.
    pub logits: Vec<f32>,
    /// Every tapped value with its name.
    pub taps: Vec<(String, Vec<f32>)>,
}

impl Session {
    /// Plans and compiles a graph for one device.
    ///
    /// # Panics
    /// Where there is no plan or it does not compile.
    pub fn new(device: &dyn Device, graph: &Arc<Graph>, options: PlanOptions) -> Session {
        let plan = graph::plan(graph, &[device], &options).unwrap_or_else(|error| panic!("no plan: {error}"));
        let whole = plan.limits.context.div_ceil(KV_BLOCK_TOKENS);
        // Blocks come round again once they have left the window, and in an order that is not the identity, so that
        // a device which ignores the table fails.
        let table = |blocks: &usize| (0..whole).map(|i| (blocks - 1 - i % blocks) as u32).collect();
        let tables = plan.kv.blocks.iter().map(table).collect();
        let execution = plan.compile(graph.clone(), &[device], &mut |_, _| ());
        Session { execution: execution.unwrap_or_else(|error| panic!("{error}")), tables, past: 0 }
    }

    /// Forgets the sequence.
    pub fn restart(&mut self) {
        self.past = 0;
    }

    /// Tokens of the sequence so far.
    pub fn len(&self) -> usize {
        self.past
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.past == 0
    }

    /// Runs a step over the next tokens of the sequence. `outputs` are the rows of the step whose logits are wanted.
    ///
    /// # Panics
    /// Where the step is refused or fails.
    pub fn feed(&mut self, ids: &[u32], outputs: &[u32]) -> Fed {
        let end = self.past + ids.len();
        let positions: Vec<u32> = (self.past as u32..end as u32).collect();
        let spans = [Span { rows: 0..ids.len(), past: self.past, tables: &self.tables }];
        let step = Step { ids, positions: &positions, spans: &spans, outputs };
        let logits = self.execution.run(&step).unwrap_or_else(|error| panic!("{error}")).to_vec();
        let names: Vec<String> = self.execution.graph().taps().iter().map(|(name, _)| name.clone()).collect();
        let value = |name: &String| self.execution.tap(name, &step).expect("a tap of the graph").to_vec();
        let taps = names.iter().map(|name| (name.clone(), value(name))).collect();
        self.past = end;
        Fed { logits, taps }
    }

    /// Feeds tokens in steps of `chunk` and returns what every row made, joined over the steps.
    ///
    /// # Panics
    /// As [`Session::feed`].
    pub fn feed_in_chunks(&mut self, ids: &[u32], chunk: usize) -> Fed {
        let mut all = Fed { logits: vec![], taps: vec![] };
        for ids in ids.chunks(chunk.max(1)) {
            let fed = self.feed(ids, &(0..ids.len() as u32).collect::<Vec<_>>());
            all.logits.extend(fed.logits);
            if all.taps.is_empty() {
                all.taps = fed.taps;
            } else {
                all.taps.iter_mut().zip(fed.taps).for_each(|(all, step)| all.1.extend(step.1));
            }
        }
        all
    }
}
