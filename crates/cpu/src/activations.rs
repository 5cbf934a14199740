//! Activations rounded to 8 bits in groups of 32, with the sums the kernels subtract.

use tensor::AlignedBuf;

use crate::isa::{Isa, for_isa};

/// Elements that share a scale.
pub(crate) const GROUP: usize = 32;

/// Rows that the kernels take at once, and so the width of an interleaved block.
pub(crate) const BLOCK_ROWS: usize = 12;

/// Rows of activations, quantised: `x = d * q`, `d` the largest absolute value of a group over 127.
///
/// Sums of quants by 16 and by 32 come along as integers and times `d`: a format whose weights are `scale * (q - zero)`
/// starts its integer dot product at `-zero * sum`, one with a minimum adds `min * d * sum`.
///
/// Rows lie interleaved in blocks of [`BLOCK_ROWS`] (the last block has the rows that are left): 4 elements of row 0,
/// 4 of row 1 and so on, then the next 4 columns. A kernel walks a block with one pointer and constant offsets.
pub(crate) struct Quantised {
    cols: usize,
    q: AlignedBuf,
    d: AlignedBuf,
    sums: [AlignedBuf; 2],
    scaled_sums: [AlignedBuf; 2],
}

/// A block of interleaved rows, as the kernels read it: element `(row, col)` of `q` is at
/// `(col / 4 * rows + row) * 4 + col % 4`, group `g` of the others at `g * rows + row`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) rows: usize,
    pub(crate) q: &'a [i8],
    pub(crate) d: &'a [f32],
    pub(crate) sums: &'a [i32],
    pub(crate) scaled_sums: &'a [f32],
}

impl Quantised {
    /// Room for `rows` rows of `cols` elements, a multiple of 32.
    pub(crate) fn new(rows: usize, cols: usize) -> Quantised {
        let sums = |by: usize| AlignedBuf::zeroed_of::<i32>(rows * cols / by);
        Quantised {
            cols,
            q: AlignedBuf::zeroed(rows * cols),
            d: AlignedBuf::zeroed_of::<f32>(rows * cols / GROUP),
            sums: [sums(16), sums(32)],
            scaled_sums: [sums(16), sums(32)],
        }
    }

    /// Bytes that [`Quantised::new`] takes.
    pub(crate) fn bytes(rows: usize, cols: usize) -> u64 {
        (rows * (cols + cols / 32 * 4 + 2 * (cols / 16 * 4 + cols / 32 * 4))) as u64
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The block that begins at row `first` of `rows`, with sums by `group` (16 or 32) elements.
    pub(crate) fn block(&self, first: usize, rows: usize, group: usize) -> Block<'_> {
        let count = (rows - first).min(BLOCK_ROWS);
        let part = |by: usize| first * self.cols / by..(first + count) * self.cols / by;
        let which = usize::from(group == 32);
        Block {
            rows: count,
            q: &self.q.as_slice::<i8>()[part(1)],
            d: &self.d.as_slice::<f32>()[part(GROUP)],
            sums: &self.sums[which].as_slice::<i32>()[part(group)],
            scaled_sums: &self.scaled_sums[which].as_slice::<f32>()[part(group)],
        }
    }

    /// Quantises row `row` of `rows`.
    ///
    /// # Safety
    /// No other thread writes the same row or reads its block meanwhile.
    pub(crate) unsafe fn write_row(&self, isa: Isa, row: usize, rows: usize, x: &[f32]) {
        assert!(x.len() == self.cols && row < rows && rows * self.cols <= self.q.len());
        let (first, lane) = (row / BLOCK_ROWS * BLOCK_ROWS, row % BLOCK_ROWS);
        let count = (rows - first).min(BLOCK_ROWS);
        let base =
            |buf: &AlignedBuf, by: usize| buf.as_ptr().cast_mut().cast::<u32>().wrapping_add(first * self.cols / by);
        let (q, d) = (base(&self.q, 4), base(&self.d, GROUP));
        let sums = [base(&self.sums[0], 16), base(&self.sums[1], 32)];
        let scaled = [base(&self.scaled_sums[0], 16), base(&self.scaled_sums[1], 32)];
        for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut quants = [0i8; GROUP];
            let (scale, halves) = quantise_group(isa, x, &mut quants);
            let whole = halves[0] + halves[1];
            // SAFETY: all of these lie in the block of this row, inside the buffers by the assertion above, and
            // only in this row's lane of it, which the caller keeps to this thread.
            unsafe {
                for (c, four) in quants.as_chunks::<4>().0.iter().enumerate() {
                    let four = u32::from_ne_bytes(four.map(|q| q as u8));
                    q.add((group * 8 + c) * count + lane).write(four);
                }
                d.add(group * count + lane).write(scale.to_bits());
                for (half, sum) in halves.into_iter().enumerate() {
                    let at = (group * 2 + half) * count + lane;
                    sums[0].add(at).write(sum as u32);
                    scaled[0].add(at).write((scale * sum as f32).to_bits());
                }
                sums[1].add(group * count + lane).write(whole as u32);
                scaled[1].add(group * count + lane).write((scale * whole as f32).to_bits());
            }
        }
    }
}

for_isa! {
    /// [`round_group`]
    fn quantise_group(x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, [i32; 2]) = round_group;
}

/// Rounds 32 elements to even; returns the scale and the sums of both halves.
#[inline(always)]
fn round_group(x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, [i32; 2]) {
    let mut largest = [0.0f32; 16];
    for (i, x) in x.iter().enumerate() {
        largest[i % 16] = largest[i % 16].max(x.abs());
    }
    let largest = largest.iter().fold(0.0f32, |a, b| a.max(*b));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 && scale.is_finite() { 1.0 / scale } else { 0.0 };
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, without a call.
    const ROUND: f32 = 12_582_912.0;
    let mut rounded = [0i32; GROUP];
    for (r, x) in rounded.iter_mut().zip(x) {
        *r = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
    }
    for (q, r) in q.iter_mut().zip(&rounded) {
        *q = *r as i8;
    }
    (scale, [rounded[..16].iter().sum(), rounded[16..].iter().sum()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_rounds_to_nearest_and_sums_add_up() {
        const ROWS: usize = 14;
        let x = |row: usize| -> Vec<f32> { (0..64).map(|i| (((i + row) * 37 % 64) as f32 - 31.0) * 0.3).collect() };
        let quantised = Quantised::new(ROWS, 64);
        for isa in [Isa::detect(), Isa::Portable] {
            for row in 0..ROWS {
                // SAFETY: one thread.
                unsafe { quantised.write_row(isa, row, ROWS, &x(row)) };
            }
            for row in 0..ROWS {
                let block = quantised.block(row / BLOCK_ROWS * BLOCK_ROWS, ROWS, 16);
                let lane = row % BLOCK_ROWS;
                let q = |col: usize| i32::from(block.q[(col / 4 * block.rows + lane) * 4 + col % 4]);
                for (col, x) in x(row).iter().enumerate() {
                    let d = block.d[col / 32 * block.rows + lane];
                    assert!((q(col) as f32 * d - x).abs() <= d * 0.5001);
                }
                for group in 0..4 {
                    let sum: i32 = (0..16).map(|i| q(group * 16 + i)).sum();
                    assert_eq!(block.sums[group * block.rows + lane], sum);
                }
                let wide = quantised.block(row / BLOCK_ROWS * BLOCK_ROWS, ROWS, 32);
                let sum: i32 = (32..64).map(q).sum();
                assert_eq!(wide.sums[block.rows + lane], sum);
                assert_eq!(wide.scaled_sums[block.rows + lane], wide.d[block.rows + lane] * sum as f32);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let quantised = Quantised::new(1, 32);
        // SAFETY: one thread.
        unsafe { quantised.write_row(Isa::detect(), 0, 1, &[0.0; 32]) };
        assert!(quantised.block(0, 1, 32).q.iter().all(|q| *q == 0));
        assert_eq!(quantised.block(0, 1, 32).d[0], 0.0);
    }
}
