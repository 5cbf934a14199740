//! A compiled share: weights packed, buffers laid out, phases listed; and how a step runs through it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use graph::{
    Activation, DeviceError, Exchange, KV_BLOCK_TOKENS, Program, RopeTable, Rows, Span, Step, ValueId, Weight,
};
use tensor::AlignedBuf;

use crate::{
    activations::Quantised,
    attention::{self, Attention, Over, Tiling},
    isa::Isa,
    kv::{KvCache, Rounded},
    linear::{self, Finished, Input, MOST_PANELS, Panel, panels_at_once},
    output::{self, Columns},
    pack::{PANEL, Packed},
    pool::Pool,
    rows,
};

/// Where a value lies: a buffer and the width of its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) buffer: usize,
    pub(crate) width: usize,
}

/// An operation on rows. `Place`s name buffers, other indices name lists of [`CpuProgram`].
pub(crate) enum RowOp {
    Embed {
        table: Box<Weight>,
        scale: f32,
        out: Place,
    },
    RmsNorm {
        x: Place,
        weight: Arc<[f32]>,
        group: usize,
        eps: f32,
        out: Place,
    },
    Rope {
        x: Place,
        head_dim: usize,
        angles: usize,
        out: Place,
    },
    KvWrite {
        cache: usize,
        k: Place,
        v: Place,
    },
    Add {
        a: Place,
        b: Place,
        out: Place,
    },
    Mul {
        a: Place,
        b: Place,
        out: Place,
    },
    Activate {
        x: Place,
        kind: Activation,
        out: Place,
    },
    Scale {
        x: Place,
        factor: f32,
        out: Place,
    },
    SoftCap {
        x: Place,
        cap: f32,
        out: Place,
    },
    Select {
        x: Place,
        out: Place,
    },
    /// Rounds a row for the integer products of the next phase.
    Quantise {
        x: Place,
        into: usize,
    },
}

/// A weight and its bias, empty where there is none.
pub(crate) struct Factor {
    pub(crate) weight: Arc<Packed>,
    pub(crate) bias: Arc<[f32]>,
}

/// A product, or a gated one: `activation(x gate) * (x factor)`, with factors of one shape.
pub(crate) struct LinearOp {
    pub(crate) factor: Factor,
    pub(crate) gate: Option<(Activation, Factor)>,
    pub(crate) x: Place,
    /// The quantised input, where the integer kernels apply.
    pub(crate) quantised: Option<usize>,
    pub(crate) out: Place,
    pub(crate) rows: Rows,
}

/// What runs between two barriers.
pub(crate) enum PhaseOp {
    /// Cosines and sines of this step's positions.
    Angles,
    Rows {
        rows: Rows,
        ops: Vec<RowOp>,
    },
    Linear(Vec<LinearOp>),
    Attention {
        op: Attention,
        /// Index of its tiling.
        tiling: usize,
        cache: usize,
        q: Place,
        out: Place,
    },
}

/// A stage with its phases.
pub(crate) struct StageProgram {
    pub(crate) inputs: Vec<(ValueId, Place, Rows)>,
    pub(crate) outputs: Vec<(ValueId, Place, Rows)>,
    pub(crate) phases: Vec<PhaseOp>,
}

/// The angles of one rope table for the tokens of a step: `[T, 2 * frequencies]`.
pub(crate) struct Angles {
    pub(crate) table: Arc<RopeTable>,
    pub(crate) values: AlignedBuf,
}

/// A compiled share.
pub(crate) struct CpuProgram {
    pub(crate) pool: Arc<Mutex<Pool>>,
    pub(crate) isa: Isa,
    pub(crate) stages: Vec<StageProgram>,
    pub(crate) buffers: Vec<AlignedBuf>,
    pub(crate) quantised: Vec<Quantised>,
    pub(crate) caches: Vec<Option<KvCache>>,
    /// How the step at hand divides, for each shape of attention in the share.
    pub(crate) tilings: Vec<Tiling>,
    pub(crate) angles: Vec<Angles>,
    pub(crate) threads: Vec<Mutex<ThreadScratch>>,
}

/// What each thread needs to itself.
pub(crate) struct ThreadScratch {
    pub(crate) linear: linear::Scratch,
    pub(crate) attention: attention::Scratch,
    pub(crate) rounded: Rounded,
}

impl Program for CpuProgram {
    fn run(&mut self, stage: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), DeviceError> {
        for tiling in &mut self.tilings {
            tiling.fill(step.spans, self.threads.len());
        }
        let stage = &self.stages[stage];
        for (value, place, rows) in &stage.inputs {
            let len = count(*rows, step) * place.width;
            self.buffers[place.buffer].as_mut_slice::<f32>()[..len].copy_from_slice(&exchange.get(*value)[..len]);
        }
        let counters: Vec<AtomicUsize> = stage.phases.iter().map(|_| AtomicUsize::new(0)).collect();
        {
            let mut pool = self.pool.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let barrier = pool.barrier();
            let run = Run { program: self, step, threads: pool.threads() };
            pool.run(&|thread| {
                let mut scratch = run.program.threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                for (phase, next) in stage.phases.iter().zip(&counters) {
                    // SAFETY: all threads run the same phase at a time, kept together by the barrier, and within a
                    // phase `Run::phase` gives each thread its own rows, panels or tiles to write.
                    unsafe { run.phase(phase, thread, next, &mut scratch) };
                    barrier();
                }
            });
        }
        for (value, place, rows) in &stage.outputs {
            let len = count(*rows, step) * place.width;
            exchange.get_mut(*value)[..len].copy_from_slice(&self.buffers[place.buffer].as_slice::<f32>()[..len]);
        }
        Ok(())
    }

    fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), DeviceError> {
        for cache in self.caches.iter_mut().flatten().filter(|cache| cache.group == group) {
            cache.copy_block(from as usize, to as usize);
        }
        Ok(())
    }
}

fn count(rows: Rows, step: &Step<'_>) -> usize {
    match rows {
        Rows::Tokens => step.tokens(),
        Rows::Outputs => step.outputs.len(),
    }
}

/// One step on its way through the phases, as all threads see it.
struct Run<'a> {
    program: &'a CpuProgram,
    step: &'a Step<'a>,
    threads: usize,
}

impl Run<'_> {
    /// Runs this thread's part of a phase.
    ///
    /// # Safety
    /// Every thread calls this for the same phase, and none goes on to the next before all are done.
    unsafe fn phase(&self, phase: &PhaseOp, thread: usize, next: &AtomicUsize, scratch: &mut ThreadScratch) {
        match phase {
            PhaseOp::Angles => {
                for row in self.rows_of(thread, self.step.tokens()) {
                    for angles in &self.program.angles {
                        let width = angles.table.rotary_dim();
                        // SAFETY: rows are divided over threads without overlap.
                        let out = unsafe { row_mut(&angles.values, row, width) };
                        rows::angles(&angles.table, self.step.positions[row], out);
                    }
                }
            }
            PhaseOp::Rows { rows, ops } => {
                let count = count(*rows, self.step);
                for row in self.rows_of(thread, count) {
                    for op in ops {
                        // SAFETY: this thread alone works on the row; the arena gives values that live in one phase
                        // separate buffers, so rows of different widths cannot overlap.
                        unsafe { self.row_op(op, row, count, scratch) };
                    }
                }
            }
            PhaseOp::Linear(ops) => {
                // SAFETY: panels are handed out once each by the counter.
                unsafe { self.linear(ops, next, scratch) };
            }
            PhaseOp::Attention { op, tiling, cache, q, out } => {
                let cache = self.program.caches[*cache].as_ref().expect("attention runs where its cache is");
                // SAFETY: the queries were written in an earlier phase, and no thread writes them in this one.
                let q = unsafe { values(&self.program.buffers[q.buffer], self.step.tokens() * q.width) };
                let spans = self.step.spans;
                let tiling = &self.program.tilings[*tiling];
                while let Some(tile) = take(next, tiling.tiles()) {
                    let mut write = |row: usize, element: usize, head: &[f32]| {
                        // SAFETY: each tile owns its heads of its rows; tiles are handed out once each.
                        unsafe { part_mut(&self.program.buffers[out.buffer], row * out.width + element, head.len()) }
                            .copy_from_slice(head);
                    };
                    let over = Over { isa: self.program.isa, tiling, cache, q, spans };
                    op.tile(&over, tile, &mut scratch.attention, &mut write);
                }
            }
        }
    }

    /// The rows of a thread: an even share, consecutive.
    fn rows_of(&self, thread: usize, count: usize) -> std::ops::Range<usize> {
        count * thread / self.threads..count * (thread + 1) / self.threads
    }

    /// # Safety
    /// As [`Run::phase`], for a list of products.
    unsafe fn linear(&self, ops: &[LinearOp], next: &AtomicUsize, scratch: &mut ThreadScratch) {
        // A step may want no outputs: then there is nothing to multiply the head with.
        if ops.iter().all(|op| count(op.rows, self.step) == 0) {
            return;
        }
        let panels: usize = ops.iter().map(|op| op.factor.weight.panels()).sum();
        let rows = ops.iter().map(|op| count(op.rows, self.step)).max().unwrap_or(0);
        let long = (panels / (self.threads * 8)).clamp(1, panels_at_once(rows));
        // With few rows it is memory that is waited for, and short streams cost more than the last wait.
        let short = if rows > PANEL { long.div_ceil(4) } else { long };
        let runs = Runs::new(panels, long, short);
        while let Some(index) = take(next, runs.count()) {
            let run = runs.range(index);
            let mut first = 0;
            for op in ops {
                let all = first..first + op.factor.weight.panels();
                first = all.end;
                let mine = run.start.max(all.start)..run.end.min(all.end);
                if !mine.is_empty() {
                    // SAFETY: as the caller promises; runs are handed out once each, and so are their panels.
                    unsafe { self.panels(op, mine.start - all.start..mine.end - all.start, scratch) };
                }
            }
        }
    }

    /// # Safety
    /// No other thread works on these panels of the product.
    unsafe fn panels(&self, op: &LinearOp, panels: std::ops::Range<usize>, scratch: &mut ThreadScratch) {
        let program = self.program;
        let rows = count(op.rows, self.step);
        if rows == 0 {
            return;
        }
        let input = match op.quantised {
            Some(quantised) => Input::Quantised(&program.quantised[quantised]),
            // SAFETY: the input was written in an earlier phase, and no thread writes it in this one.
            None => Input::Floats(unsafe { values(&program.buffers[op.x.buffer], rows * op.x.width) }),
        };
        let isa = program.isa;
        let weight = &op.factor.weight;
        let factors = [op.gate.as_ref().map(|(_, gate)| gate), Some(&op.factor)];
        let each = factors.iter().flatten().count();
        for first in panels.clone().step_by(panels_at_once(rows) / each) {
            let here = first..panels.end.min(first + panels_at_once(rows) / each);
            // The panels of the gate, then those of the factor.
            let mut list = [Panel { weight, index: 0 }; MOST_PANELS];
            let of =
                factors.iter().flatten().flat_map(|f| here.clone().map(|index| Panel { weight: &f.weight, index }));
            list.iter_mut().zip(of).for_each(|(slot, panel)| *slot = panel);
            let gates = here.len() * (each - 1);
            let mut done = |Finished { panel, first: row, count, units, sums }: Finished<'_>| {
                let index = list[panel].index;
                let columns = index * PANEL..weight.rows.min((index + 1) * PANEL);
                let bias = |factor: &Factor| {
                    let mut lanes = [-0.0; PANEL]; // adding it leaves every number as it is
                    let bias = factor.bias.get(columns.clone()).unwrap_or_default();
                    lanes[..bias.len()].copy_from_slice(bias);
                    lanes
                };
                let (before, sums) = sums.split_at_mut(panel * rows + row);
                let sums = &mut sums[..count];
                if let Some((_, gate)) = &op.gate
                    && panel < gates
                {
                    return output::finish(isa, sums, units, &bias(gate));
                }
                output::finish(isa, sums, units, &bias(&op.factor));
                let buffer = &program.buffers[op.out.buffer];
                // SAFETY: these columns of the output belong to this thread: panels are handed out once.
                let mut out = unsafe { Columns::new(buffer, rows, op.out.width, columns.start, columns.len()) };
                match &op.gate {
                    None => output::write(isa, sums, row, &mut out),
                    Some((kind, _)) => {
                        let gates = &mut before[(panel - gates) * rows + row..][..count];
                        output::write_gated(isa, *kind, gates, sums, row, &mut out);
                    }
                }
            };
            let list = &list[..each * here.len()];
            linear::multiply(isa, list, input, rows, &mut scratch.linear, &mut done);
        }
    }

    /// # Safety
    /// No other thread works on this row.
    unsafe fn row_op(&self, op: &RowOp, row: usize, count: usize, scratch: &mut ThreadScratch) {
        let program = self.program;
        // SAFETY: the caller keeps other threads away from the row.
        let get = |place: &Place| unsafe { row_ref(&program.buffers[place.buffer], row, place.width) };
        // SAFETY: as above, and inputs and output of an operation lie in different buffers.
        let put = |place: &Place| unsafe { row_mut(&program.buffers[place.buffer], row, place.width) };
        let isa = program.isa;
        match op {
            RowOp::Embed { table, scale, out } => rows::embed(table, self.step.ids[row], *scale, put(out)),
            RowOp::RmsNorm { x, weight, group, eps, out } => {
                rows::rms_norm(isa, get(x), weight, *group, *eps, put(out));
            }
            RowOp::Rope { x, head_dim, angles, out } => {
                let angles = &program.angles[*angles];
                // SAFETY: angles were written in an earlier phase.
                let values = unsafe { row_ref(&angles.values, row, angles.table.rotary_dim()) };
                rows::rope(isa, get(x), *head_dim, angles.table.pairs, values, put(out));
            }
            RowOp::KvWrite { cache, k, v } => {
                let cache = program.caches[*cache].as_ref().expect("a cache is written where it lies");
                let (span, token) = self.token(row);
                let block = span.tables[cache.group][token / KV_BLOCK_TOKENS] as usize;
                // SAFETY: the step was checked, so the block exists and no other span writes it: each token has its own
                // slot. Attention reads caches in phases of its own.
                unsafe { cache.write(block, token % KV_BLOCK_TOKENS, get(k), get(v), &mut scratch.rounded) };
            }
            RowOp::Add { a, b, out } => rows::add(isa, get(a), get(b), put(out)),
            RowOp::Mul { a, b, out } => rows::mul(isa, get(a), get(b), put(out)),
            RowOp::Activate { x, kind, out } => rows::activate(isa, *kind, get(x), put(out)),
            RowOp::Scale { x, factor, out } => rows::scale(isa, get(x), *factor, put(out)),
            RowOp::SoftCap { x, cap, out } => rows::soft_cap(isa, get(x), *cap, put(out)),
            RowOp::Select { x, out } => {
                let source = self.step.outputs[row] as usize;
                // SAFETY: the source was written in an earlier phase.
                put(out).copy_from_slice(unsafe { row_ref(&program.buffers[x.buffer], source, x.width) });
            }
            RowOp::Quantise { x, into } => {
                // SAFETY: as for `put`; products read the blocks in a later phase.
                unsafe { program.quantised[*into].write_row(isa, row, count, get(x)) };
            }
        }
    }

    /// The sequence of a row, and the row's token in it.
    fn token(&self, row: usize) -> (&Span<'_>, usize) {
        let index = self.step.spans.partition_point(|span| span.rows.end <= row);
        let span = &self.step.spans[index];
        (span, span.past + row - span.rows.start)
    }
}

/// A list divided into runs, which threads take one after the other: three quarters of it into long ones, so that each
/// thread reads long streams, the rest into short ones, so that threads end together.
struct Runs {
    items: usize,
    long: usize,
    /// Long runs.
    many: usize,
    short: usize,
}

impl Runs {
    fn new(items: usize, long: usize, short: usize) -> Runs {
        Runs { items, long, many: items * 3 / 4 / long, short }
    }

    fn count(&self) -> usize {
        self.many + (self.items - self.many * self.long).div_ceil(self.short)
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        if index < self.many {
            return index * self.long..(index + 1) * self.long;
        }
        let start = self.many * self.long + (index - self.many) * self.short;
        start..(start + self.short).min(self.items)
    }
}

/// The next item of a shared list, or `None` when all are taken.
fn take(next: &AtomicUsize, count: usize) -> Option<usize> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index < count).then_some(index)
}

/// The first `len` values of a buffer.
///
/// # Safety
/// No thread writes them while the slice lives.
unsafe fn values(buffer: &AlignedBuf, len: usize) -> &[f32] {
    // SAFETY: as the caller promises.
    unsafe { row_ref(buffer, 0, len) }
}

/// A row, for reading.
///
/// # Safety
/// No thread writes it while the slice lives.
unsafe fn row_ref(buffer: &AlignedBuf, row: usize, width: usize) -> &[f32] {
    assert!((row + 1) * width * 4 <= buffer.len());
    // SAFETY: inside the buffer by the assertion, and aligned, since the buffer is; plain bytes are values of `f32`. The
    // reference covers this row alone, whose writers the caller answers for.
    unsafe { std::slice::from_raw_parts(buffer.raw().cast::<f32>().add(row * width), width) }
}

/// A row, for writing.
///
/// # Safety
/// Nothing else refers to it while the slice lives.
#[allow(clippy::mut_from_ref, reason = "threads share the buffers and divide their rows; see Run::phase")]
unsafe fn row_mut(buffer: &AlignedBuf, row: usize, width: usize) -> &mut [f32] {
    // SAFETY: as the caller promises.
    unsafe { part_mut(buffer, row * width, width) }
}

/// Elements `at..at + len`, for writing.
///
/// # Safety
/// Nothing else refers to them while the slice lives.
#[allow(clippy::mut_from_ref, reason = "threads share the buffers and divide their elements; see Run::phase")]
unsafe fn part_mut(buffer: &AlignedBuf, at: usize, len: usize) -> &mut [f32] {
    assert!((at + len) * 4 <= buffer.len());
    // SAFETY: inside the buffer by the assertion, aligned and of plain bytes as above. The pointer comes from `raw`, which
    // makes no reference to the buffer, and the caller promises that no other covers these elements.
    unsafe { std::slice::from_raw_parts_mut(buffer.raw().cast::<f32>().add(at), len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_list_once() {
        for (items, long, short) in [(1, 1, 1), (5, 4, 1), (24, 1, 1), (96, 6, 6), (560, 16, 4), (100, 3, 2)] {
            let runs = Runs::new(items, long, short);
            let all: Vec<usize> = (0..runs.count()).flat_map(|index| runs.range(index)).collect();
            assert_eq!(all, (0..items).collect::<Vec<_>>(), "{items} in runs of {long} and {short}");
        }
    }
}
