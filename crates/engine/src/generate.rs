//! One request at a time: prompt in, text out as it comes.

use std::ops::ControlFlow;

use crate::{Engine, EngineError, Event, Generation, Request, Speculation, peak_memory_bytes};

impl Engine {
    /// Generates, alone. What the KV cache knows of the prompt is not computed again. `on_event` hears what happens
    /// before the end, and may break off.
    ///
    /// # Errors
    /// Where the prompt is empty or too long, a setting is out of range, or a device fails.
    pub fn generate(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        self.check(request)?;
        let tokenizer = self.tokenizer()?.clone();
        let id = self.scheduler.submit(request, 1, &tokenizer)[0];
        let mut outputs = Vec::new();
        loop {
            self.scheduler.step(&mut outputs);
            let mut cancelled = false;
            for (_, event) in outputs.drain(..) {
                match event {
                    Event::Done(mut generation) => {
                        // Read from the system, so not for every answer of a service.
                        generation.metrics.peak_memory_bytes = peak_memory_bytes();
                        return Ok(generation);
                    }
                    Event::Failed(error) => return Err(error),
                    event => cancelled |= on_event(event).is_break(),
                }
            }
            if cancelled {
                self.scheduler.cancel(id, &mut outputs);
            }
        }
    }

    /// Drafts from now on as it says. Text and probabilities do not depend on it. After [`crate::LoadOptions`] with
    /// [`Speculation::Off`] the plan may have no room for drafts.
    pub fn set_speculation(&mut self, speculation: Speculation) {
        self.scheduler.set_speculation(speculation);
    }

    /// Forgets every prefix in the KV cache.
    pub fn forget(&mut self) {
        self.scheduler.blocks.forget();
    }

    /// Runs ids as one sequence of their own, `chunk` at a time, and hands over the logits of the last rows of each
    /// chunk: of all with `all_rows`, else of one. `on_rows` hears the index of the first row and `[rows, vocab]`.
    pub(crate) fn run_alone(
        &mut self,
        ids: &[u32],
        chunk: usize,
        all_rows: bool,
        on_rows: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_ids(ids)?;
        let (execution, blocks) = (&mut self.scheduler.execution, &mut self.scheduler.blocks);
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let mut lease = blocks.empty_lease();
        let mut done = 0;
        let mut result = Ok(());
        for piece in ids.chunks(chunk) {
            let end = done + piece.len();
            if !blocks.grow(&mut lease, end) {
                let (context, limit) = (self.model.context(), self.model.limit_hint());
                result = Err(EngineError::PromptTooLong { prompt: ids.len(), context, limit });
                break;
            }
            let first = if all_rows { 0 } else { piece.len() - 1 };
            let outputs: Vec<u32> = (first as u32..piece.len() as u32).collect();
            let spans = [graph::Span { rows: 0..piece.len(), past: done, tables: lease.tables() }];
            let step = graph::Step { ids: piece, positions: &positions[done..end], spans: &spans, outputs: &outputs };
            match execution.run(&step) {
                Ok(logits) => on_rows(done + first, logits),
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
            blocks.commit(&mut lease, &ids[..end]);
            done = end;
        }
        blocks.release(lease, &ids[..done]);
        result
    }
}
