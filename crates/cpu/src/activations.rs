//! Activations rounded to 8 bits in groups of 32, with the sums the kernels subtract.

use tensor::AlignedBuf;

use crate::{
    isa::{Isa, for_isa},
    math,
};

/// Elements that share a scale.
pub(crate) const GROUP: usize = 32;

/// Largest element over the mean absolute value of its row from which a group gets a second plane. Of normally
/// distributed elements the largest of 32 is about 2.6 times the mean.
pub(crate) const FINE_ABOVE: f32 = 8.0;

/// Rows that the kernels take at once, and so the width of an interleaved block.
pub(crate) const BLOCK_ROWS: usize = 12;

/// Rows of activations, quantised: `x = d * q`, `d` the largest absolute value of a group over 127.
///
/// Groups with outliers are kept finer. The activations of a language model have a few channels many times larger than
/// the rest, and 8 bits for such a group would leave little for its other elements: that, and not the rounding of
/// ordinary groups, is most of the error of 8-bit activations. Where the largest element exceeds [`FINE_ABOVE`] times
/// the mean absolute value of the row, a second plane holds the remainder in 1/256 of that: `x = d * (256 * q + fine)`,
/// and `d` is the largest absolute value over `127 * 256`.
///
/// Sums of quants by 16 and by 32 come along as integers and times `d`: a format whose weights are `scale * (q - zero)`
/// starts its integer dot product at `-zero * sum`, one with a minimum adds `min * d * sum`.
///
/// A row that holds a NaN or an infinity becomes NaN: quants and sums of zero, `d` and `d` times the sums NaN. What is
/// broken stays visible in every product with it.
///
/// Rows lie interleaved in blocks of [`BLOCK_ROWS`] (the last block has the rows that are left): 4 elements of row 0,
/// 4 of row 1 and so on, then the next 4 columns. A kernel walks a block with one pointer and constant offsets.
pub(crate) struct Quantised {
    cols: usize,
    q: AlignedBuf,
    /// The second plane, and for each group of a row whether it counts.
    fine: AlignedBuf,
    is_fine: AlignedBuf,
    d: AlignedBuf,
    sums: [AlignedBuf; 2],
    fine_sums: [AlignedBuf; 2],
    scaled_sums: [AlignedBuf; 2],
}

/// A block of interleaved rows, as the kernels read it: element `(row, col)` of `q` is at
/// `(col / 4 * rows + row) * 4 + col % 4`, group `g` of the others at `g * rows + row`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) rows: usize,
    pub(crate) q: &'a [i8],
    /// The second plane, laid out as `q`; it means something where `is_fine`.
    pub(crate) fine: &'a [i8],
    pub(crate) is_fine: &'a [u8],
    pub(crate) d: &'a [f32],
    pub(crate) sums: &'a [i32],
    /// Sums of the second plane; zero where it does not count.
    pub(crate) fine_sums: &'a [i32],
    /// `d` times the sum of quants: with a second plane of `256 * q + fine`.
    pub(crate) scaled_sums: &'a [f32],
}

impl Quantised {
    /// Room for `rows` rows of `cols` elements, a multiple of 32.
    pub(crate) fn new(rows: usize, cols: usize) -> Quantised {
        let sums = |by: usize| AlignedBuf::zeroed_of::<i32>(rows * cols / by);
        Quantised {
            cols,
            q: AlignedBuf::zeroed(rows * cols),
            fine: AlignedBuf::zeroed(rows * cols),
            is_fine: AlignedBuf::zeroed(rows * cols / GROUP),
            d: AlignedBuf::zeroed_of::<f32>(rows * cols / GROUP),
            sums: [sums(16), sums(32)],
            fine_sums: [sums(16), sums(32)],
            scaled_sums: [sums(16), sums(32)],
        }
    }

    /// Bytes that [`Quantised::new`] takes.
    pub(crate) fn bytes(rows: usize, cols: usize) -> u64 {
        (rows * (2 * cols + cols / 32 * 5 + 3 * (cols / 16 * 4 + cols / 32 * 4))) as u64
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
            fine: &self.fine.as_slice::<i8>()[part(1)],
            is_fine: &self.is_fine[part(GROUP)],
            d: &self.d.as_slice::<f32>()[part(GROUP)],
            sums: &self.sums[which].as_slice::<i32>()[part(group)],
            fine_sums: &self.fine_sums[which].as_slice::<i32>()[part(group)],
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
        let base = |buf: &AlignedBuf, by: usize| buf.raw().cast::<u32>().wrapping_add(first * self.cols / by);
        let (q, fine, d) = (base(&self.q, 4), base(&self.fine, 4), base(&self.d, GROUP));
        let is_fine = self.is_fine.raw().wrapping_add(first * self.cols / GROUP);
        let pair = |bufs: &[AlignedBuf; 2]| [base(&bufs[0], 16), base(&bufs[1], 32)];
        let (sums, fine_sums, scaled) = (pair(&self.sums), pair(&self.fine_sums), pair(&self.scaled_sums));
        let limit = FINE_ABOVE * mean_absolute(isa, x);
        // The sum of large numbers overflows too: only then are the elements looked at.
        let is_broken = !limit.is_finite() && x.iter().any(|x| !x.is_finite());
        for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut rounded = Rounded::default();
            if is_broken {
                rounded.scale = f32::NAN;
            } else {
                round_group(isa, x, limit, &mut rounded);
            }
            let words = |quants: &[i8; GROUP]| {
                let mut words = [0u32; GROUP / 4];
                for (word, four) in words.iter_mut().zip(quants.as_chunks::<4>().0) {
                    *word = u32::from_ne_bytes(four.map(|q| q as u8));
                }
                words
            };
            // SAFETY: all of these lie in the block of this row, inside the buffers by the assertion above, and only
            // in this row's lane of it, which the caller keeps to this thread.
            unsafe {
                for (c, word) in words(&rounded.q).into_iter().enumerate() {
                    q.add((group * 8 + c) * count + lane).write(word);
                }
                // Read only where it counts.
                if rounded.is_fine {
                    for (c, word) in words(&rounded.fine).into_iter().enumerate() {
                        fine.add((group * 8 + c) * count + lane).write(word);
                    }
                }
                is_fine.add(group * count + lane).write(u8::from(rounded.is_fine));
                let (unit, steps) = if rounded.is_fine { (rounded.scale / 256.0, 256) } else { (rounded.scale, 1) };
                d.add(group * count + lane).write(unit.to_bits());
                let total = |sum: i32, fine_sum: i32| unit * (sum * steps + fine_sum) as f32;
                for half in 0..2 {
                    let at = (group * 2 + half) * count + lane;
                    sums[0].add(at).write(rounded.sums[half] as u32);
                    fine_sums[0].add(at).write(rounded.fine_sums[half] as u32);
                    scaled[0].add(at).write(total(rounded.sums[half], rounded.fine_sums[half]).to_bits());
                }
                let (sum, fine_sum) = (rounded.sums.iter().sum(), rounded.fine_sums.iter().sum());
                let at = group * count + lane;
                sums[1].add(at).write(sum as u32);
                fine_sums[1].add(at).write(fine_sum as u32);
                scaled[1].add(at).write(total(sum, fine_sum).to_bits());
            }
        }
    }
}

/// A quantised group.
#[derive(Default)]
pub(crate) struct Rounded {
    q: [i8; GROUP],
    fine: [i8; GROUP],
    is_fine: bool,
    scale: f32,
    /// Sums of both halves.
    sums: [i32; 2],
    fine_sums: [i32; 2],
}

for_isa! {
    /// [`round_group_body`]
    fn round_group(x: &[f32; GROUP], limit: f32, out: &mut Rounded) = round_group_body;
    /// The mean of the absolute values: less swayed by outliers than the mean square.
    fn mean_absolute(x: &[f32]) -> f32 = mean_absolute_body;
}

#[inline(always)]
fn mean_absolute_body(x: &[f32]) -> f32 {
    let mut partial = [0.0f32; 16];
    for line in x.as_chunks::<16>().0 {
        partial.iter_mut().zip(line).for_each(|(sum, x)| *sum += x.abs());
    }
    partial.iter().sum::<f32>() / x.len() as f32
}

/// Rounds 32 finite elements to even; where the largest exceeds `limit`, their remainders too.
#[inline(always)]
fn round_group_body(x: &[f32; GROUP], limit: f32, out: &mut Rounded) {
    let largest = math::largest(&x.map(f32::abs));
    out.scale = largest / 127.0;
    // The inverse of a subnormal scale would be infinite: elements that small are zeros.
    let inverse = if out.scale >= f32::MIN_POSITIVE { 1.0 / out.scale } else { 0.0 };
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, without a call.
    const ROUND: f32 = 12_582_912.0;
    let round = |x: f32| (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
    let mut rounded = [0i32; GROUP];
    rounded.iter_mut().zip(x).for_each(|(r, x)| *r = round(x * inverse));
    out.q.iter_mut().zip(&rounded).for_each(|(q, r)| *q = *r as i8);
    out.sums = [rounded[..16].iter().sum(), rounded[16..].iter().sum()];
    out.is_fine = largest > limit;
    if out.is_fine {
        let mut fine = [0i32; GROUP];
        for ((fine, x), r) in fine.iter_mut().zip(x).zip(&rounded) {
            *fine = round((x * inverse - *r as f32) * 256.0).clamp(-127, 127);
        }
        out.fine.iter_mut().zip(&fine).for_each(|(q, r)| *q = *r as i8);
        out.fine_sums = [fine[..16].iter().sum(), fine[16..].iter().sum()];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_rounds_to_nearest_and_sums_add_up() {
        const ROWS: usize = 14;
        // Row 3 has an outlier in its second group.
        let x = |row: usize| -> Vec<f32> {
            let outlier = |i: usize| if row == 3 && i == 40 { 900.0 } else { 0.0 };
            (0..64).map(|i| (((i + row) * 37 % 64) as f32 - 31.0) * 0.3 + outlier(i)).collect()
        };
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
                let fine = |col: usize| i32::from(block.fine[(col / 4 * block.rows + lane) * 4 + col % 4]);
                for (col, x) in x(row).iter().enumerate() {
                    let group = col / 32 * block.rows + lane;
                    let (d, is_fine) = (block.d[group], block.is_fine[group] == 1);
                    assert_eq!(is_fine, row == 3 && col >= 32);
                    let value = d * if is_fine { 256 * q(col) + fine(col) } else { q(col) } as f32;
                    assert!((value - x).abs() <= d * if is_fine { 0.5001 * 256.0 / 127.0 } else { 0.5001 });
                }
                for group in 0..4 {
                    let sum: i32 = (0..16).map(|i| q(group * 16 + i)).sum();
                    let fine_sum: i32 = (0..16).map(|i| fine(group * 16 + i)).sum();
                    assert_eq!(block.sums[group * block.rows + lane], sum);
                    assert_eq!(block.fine_sums[group * block.rows + lane], fine_sum);
                }
                let wide = quantised.block(row / BLOCK_ROWS * BLOCK_ROWS, ROWS, 32);
                let sum: i32 = (32..64).map(q).sum();
                assert_eq!(wide.sums[block.rows + lane], sum);
                let fine_sum: i32 = (32..64).map(fine).sum();
                assert_eq!(wide.fine_sums[block.rows + lane], fine_sum);
                let steps = if wide.is_fine[block.rows + lane] == 1 { 256 } else { 1 };
                let total = wide.d[block.rows + lane] * (sum * steps + fine_sum) as f32;
                assert_eq!(wide.scaled_sums[block.rows + lane], total);
            }
        }
    }

    /// The instruction sets of this machine.
    fn isas() -> impl Iterator<Item = Isa> {
        ["avx512", "avx2", "portable"].into_iter().filter_map(Isa::named)
    }

    #[test]
    fn zeros_and_elements_too_small_to_scale_are_zeros() {
        for (isa, x) in isas().flat_map(|isa| [0.0, 1e-38, -1e-45].map(|x| (isa, x))) {
            let quantised = Quantised::new(1, 32);
            // SAFETY: one thread.
            unsafe { quantised.write_row(isa, 0, 1, &[x; 32]) };
            let block = quantised.block(0, 1, 32);
            assert!(block.q.iter().all(|q| *q == 0) && block.sums[0] == 0, "{x}");
            assert!(block.d[0] <= f32::MIN_POSITIVE && block.scaled_sums[0] == 0.0, "{x}");
        }
    }

    #[test]
    fn a_row_that_is_not_finite_becomes_nan_and_its_neighbours_do_not() {
        const COLS: usize = 96;
        // The last overflows as a sum and is finite.
        let rows = [(f32::NAN, true), (f32::INFINITY, true), (f32::NEG_INFINITY, true), (3e38, false)];
        for isa in isas() {
            let quantised = Quantised::new(rows.len(), COLS);
            for (row, (x, _)) in rows.iter().enumerate() {
                let mut values = [0.5f32; COLS];
                values[40..44].fill(*x);
                // What the row held before must not shine through.
                for values in [[7.0; COLS], values] {
                    // SAFETY: one thread.
                    unsafe { quantised.write_row(isa, row, rows.len(), &values) };
                }
            }
            for (row, (x, is_broken)) in rows.iter().enumerate() {
                let block = quantised.block(0, rows.len(), 32);
                for group in 0..COLS / GROUP {
                    let at = group * rows.len() + row;
                    let (d, sum) = (block.d[at], block.scaled_sums[at]);
                    assert_eq!((d.is_nan(), sum.is_nan()), (*is_broken, *is_broken), "{x} on {}", isa.name());
                    if *is_broken {
                        assert_eq!((block.sums[at], block.is_fine[at]), (0, 0), "{x} on {}", isa.name());
                    } else {
                        assert!(d.is_finite() && block.sums[at] != 0);
                    }
                }
                let quant = |col: usize| block.q[(col / 4 * rows.len() + row) * 4 + col % 4];
                assert!(!is_broken || (0..COLS).all(|col| quant(col) == 0), "{x} on {}", isa.name());
            }
        }
    }
}
