//! The largest logits of a step's rows, found where the logits lie: see `shaders/top.comp`.

use graph::{Exchange, Share};

use crate::{
    capabilities::Capabilities,
    kernels::{self, Dispatch},
    list::{Lister, bits},
    operation::Matrix,
    shaders::Shader,
};

/// Largest logits of a row that are found here; where more are wanted, all of them cross.
const MOST: usize = 128;

/// Rows of a step of which they are found.
const ROWS: usize = 256;

/// Workgroups that a row is divided among, at most.
const PARTS: u32 = 32;

/// Bytes of a logit with its place.
pub(crate) const PAIR_BYTES: u64 = 8;

/// The place of a pair that there is not.
const NOWHERE: u32 = u32::MAX;

/// How many of the largest logits of each row a step has to find, as its kernels are made: 0 where all are wanted of every
/// row, or as much would cross as without.
pub(crate) fn wanted(exchange: &Exchange, outputs: usize, vocab: usize) -> u32 {
    let tops = (0..outputs).filter_map(|row| exchange.top(row)).filter(|top| *top <= MOST);
    let top = tops.max().unwrap_or(0).next_power_of_two();
    let is_any = (0..outputs).any(|row| exchange.top(row).is_some_and(|top| top <= MOST));
    if is_any && outputs <= ROWS && 4 * top <= vocab { top as u32 } else { 0 }
}

/// Bytes of what is found of the rows of a share, part by part and then row by row.
pub(crate) fn bytes(share: &Share<'_>) -> u64 {
    let logits = share.graph.logits();
    let makes = share.stages.iter().any(|stage| stage.outputs.contains(&logits));
    let top = MOST.min(share.graph.vocab() / 4) as u64;
    if makes { share.limits.outputs.min(ROWS) as u64 * (u64::from(PARTS) + 1) * top * PAIR_BYTES } else { 0 }
}

/// The ids and logits of a row, from what was found of it.
pub(crate) fn pairs(bytes: &[u8]) -> impl Iterator<Item = (u32, f32)> + '_ {
    let word = |bytes: [u8; 4]| u32::from_le_bytes(bytes);
    let pairs = bytes.as_chunks::<4>().0.as_chunks::<2>().0.iter();
    pairs.map(move |[id, logit]| (word(*id), f32::from_bits(word(*logit)))).filter(|(id, _)| *id != NOWHERE)
}

impl Lister<'_> {
    /// Appends what finds the largest of `logits`.
    pub(crate) fn top(&mut self, logits: &Matrix) {
        let (rows, top) = (self.bucket.outputs, self.bucket.top);
        let (invocations, each, parts) = division(self.capabilities, logits.width);
        let whole = u64::from(rows * top) * PAIR_BYTES;
        let result = self.addresses.top..self.addresses.top + whole;
        let shares = result.end..result.end + whole * u64::from(parts);
        let list = |each: u32, found: bool, width: u32, source: u64, to: &std::ops::Range<u64>, groups: u32| {
            let push = kernels::Top { source, result: to.start, width, padding: 0 };
            let constants = vec![(0, invocations), (1, each), (2, top), (3, bits(found))];
            let mut dispatch = Dispatch::new(Shader::Top, constants, &push, [groups, rows, 1]);
            dispatch.label = format!("top {top} of {width}");
            dispatch.writes.push(to.clone());
            dispatch
        };
        if parts == 1 {
            let only = list(each, false, logits.width, logits.address, &result, 1);
            self.push(only, &[logits], &[]);
            return;
        }
        let first = list(each, false, logits.width, logits.address, &shares, parts);
        let mut second = list((parts * top).div_ceil(invocations), true, parts * top, shares.start, &result, 1);
        second.reads.push(shares);
        self.push(first, &[logits], &[]);
        self.push(second, &[], &[]);
    }
}

/// Invocations of a workgroup, logits each of them takes, and workgroups, for rows of `width` logits.
fn division(capabilities: &Capabilities, width: u32) -> (u32, u32, u32) {
    let invocations = capabilities.workgroup.min(512) / capabilities.subgroup * capabilities.subgroup;
    let each = width.div_ceil(invocations * PARTS);
    (invocations, each, width.div_ceil(invocations * each))
}
