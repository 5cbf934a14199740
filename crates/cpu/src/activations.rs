//! Activations rounded to 8 bits in groups of 32, with the sums the kernels subtract and what rounding left of outliers.

use tensor::AlignedBuf;

#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::{
    format::TILE_ZERO,
    isa::{Isa, for_isa},
    math,
};

/// Elements that share a scale.
pub(crate) const GROUP: usize = 32;

/// Columns whose products are summed before the next begin, in every kernel.
pub(crate) const PIECE: usize = 1024;

/// Largest element over the mean absolute value of its row from which a group gets a remainder. Of normally distributed
/// elements the largest of 32 is about 2.6 times the mean.
pub(crate) const REMAINDER_ABOVE: f32 = 16.0;

/// Rows that the kernels take at once, and so the width of an interleaved block.
pub(crate) const BLOCK_ROWS: usize = 12;

/// Units of the groups of a row lie within this power of two of the row's largest; smaller groups are rounded in the
/// smallest of them.
const MAX_SHIFT: u32 = 24;

/// The exponent's place in an `f32`.
const EXPONENT: u32 = 23;

/// Rows of activations, quantised: `x = unit * 2^shift * q`, `unit` by row and `shift` by group, `2^shift * unit` at most
/// twice the largest absolute value of the group over 127.
///
/// That a group's unit is a power of two is what lets the kernels apply it by adding to the exponent of a product, on
/// ports that the dot products leave idle. It costs half a bit on average: 3 dB of the noise that rounding makes.
///
/// Groups with outliers are kept finer. The activations of a language model have a few channels many times larger than
/// the rest, and 8 bits for such a group leave little for its other elements: that, and not the rounding of ordinary
/// groups, is most of the error of 8-bit activations. Where the largest element exceeds [`REMAINDER_ABOVE`] times the
/// mean absolute value of the row, what rounding left is rounded again, in a unit 254 times smaller ([`Remainder`]).
/// Remainders are few, so they stand in a list by row and not among the quants: the kernels multiply all rows alike and
/// then add the few products of the list.
///
/// Sums of quants by 16 and by 32 come along, times [`-TILE_ZERO`](TILE_ZERO) as integers and times `2^shift`: with
/// weights `scale * (q - TILE_ZERO)` the integer dot product starts at the former, with a minimum `min * 2^shift * sum` is
/// added.
///
/// A row that holds a NaN or an infinity becomes NaN: quants and sums of zero, its unit NaN. What is broken stays visible
/// in every product with it.
///
/// Rows lie interleaved in blocks of [`BLOCK_ROWS`] (the last block has the rows that are left): 4 elements of row 0,
/// 4 of row 1 and so on, then the next 4 columns. A kernel walks a block with one pointer and constant offsets.
pub(crate) struct Quantised {
    cols: usize,
    q: AlignedBuf,
    units: AlignedBuf,
    shifts: AlignedBuf,
    offsets: [AlignedBuf; 2],
    scaled_sums: [AlignedBuf; 2],
    /// By row, room for each of its groups.
    remainders: AlignedBuf,
    /// By block, piece of columns and row ([`Piece`]).
    pieces: AlignedBuf,
}

/// What the list of remainders of a row has for a piece of columns, in the order of the groups.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Piece {
    /// Where in the lists of the block.
    pub(crate) start: u32,
    /// A bit for each group of the piece that has a remainder.
    pub(crate) groups: u32,
}
/// Groups of a piece, as many as [`Piece::groups`] has bits.
pub(crate) const PIECE_GROUPS: usize = PIECE / GROUP;
const _: () = assert!(PIECE_GROUPS == u32::BITS as usize);

/// A block of interleaved rows, as the kernels read it: element `(row, col)` of the quants is at
/// `(col / 4 * rows + row) * 4 + col % 4`, group `g` of the others at `g * rows + row`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) rows: usize,
    first: usize,
    of: &'a Quantised,
}

/// What rounding left of a group of a row: `unit * q` times the unit of the row, to be added to the group.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Remainder {
    pub(crate) q: [i8; GROUP],
    /// Sums of both halves of `q`.
    pub(crate) sums: [i32; 2],
    pub(crate) unit: f32,
    /// Which group of the row.
    pub(crate) group: u32,
}

impl Remainder {
    /// The sum of its quants that group `half` of 16 has, or of all where groups have 32.
    #[inline(always)]
    pub(crate) fn sum(&self, group: usize, half: usize) -> i32 {
        if group == GROUP { self.sums[0] + self.sums[1] } else { self.sums[half] }
    }
}

impl<'a> Block<'a> {
    pub(crate) fn cols(&self) -> usize {
        self.of.cols
    }

    #[inline(always)]
    pub(crate) fn q(&self) -> &'a [i8] {
        self.part(&self.of.q, self.of.cols)
    }

    /// By row: what every product with the row is multiplied by in the end.
    #[inline(always)]
    pub(crate) fn units(&self) -> &'a [f32] {
        self.part(&self.of.units, 1)
    }

    /// The shifts, where the exponent of an `f32` is.
    #[inline(always)]
    pub(crate) fn shifts(&self) -> &'a [u32] {
        self.part(&self.of.shifts, self.of.cols / GROUP)
    }

    /// `-TILE_ZERO` times the sums of `group` (16 or 32) quants.
    #[inline(always)]
    pub(crate) fn offsets(&self, group: usize) -> &'a [i32] {
        self.part(&self.of.offsets[usize::from(group == GROUP)], self.of.cols / group)
    }

    /// `2^shift` times the sums of `group` (16 or 32) quants.
    #[inline(always)]
    pub(crate) fn scaled_sums(&self, group: usize) -> &'a [f32] {
        self.part(&self.of.scaled_sums[usize::from(group == GROUP)], self.of.cols / group)
    }

    /// The elements of this block in a buffer that has `each` for a row.
    #[inline(always)]
    fn part<T: bytemuck::Pod>(&self, buffer: &'a AlignedBuf, each: usize) -> &'a [T] {
        &buffer.as_slice()[self.first * each..(self.first + self.rows) * each]
    }

    /// By row, what there is of remainders in the piece of columns that begins at column `at`, a multiple of [`PIECE`].
    #[inline(always)]
    pub(crate) fn pieces(&self, at: usize) -> &'a [Piece] {
        &self.part::<Piece>(&self.of.pieces, pieces(self.of.cols))[at / PIECE * self.rows..][..self.rows]
    }

    /// The lists of remainders, by row.
    #[inline(always)]
    pub(crate) fn remainders(&self) -> &'a [Remainder] {
        self.part(&self.of.remainders, self.of.cols / GROUP)
    }
}

impl Quantised {
    /// Room for `rows` rows of `cols` elements, a multiple of 32.
    pub(crate) fn new(rows: usize, cols: usize) -> Quantised {
        let sums = |by: usize| AlignedBuf::zeroed_of::<i32>(rows * cols / by);
        Quantised {
            cols,
            q: AlignedBuf::zeroed(rows * cols),
            units: AlignedBuf::zeroed_of::<f32>(rows),
            shifts: AlignedBuf::zeroed_of::<u32>(rows * cols / GROUP),
            offsets: [sums(16), sums(32)],
            scaled_sums: [sums(16), sums(32)],
            remainders: AlignedBuf::zeroed_of::<Remainder>(rows * cols / GROUP),
            pieces: AlignedBuf::zeroed_of::<Piece>(rows * pieces(cols)),
        }
    }

    /// Bytes that [`Quantised::new`] takes.
    pub(crate) fn bytes(rows: usize, cols: usize) -> u64 {
        let groups = cols / GROUP;
        let sums = 2 * (cols / 16 * 4 + groups * 4);
        (rows * (cols + 4 + groups * (4 + size_of::<Remainder>()) + sums + pieces(cols) * size_of::<Piece>())) as u64
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The block that begins at row `first` of `rows`.
    #[inline(always)]
    pub(crate) fn block(&self, first: usize, rows: usize) -> Block<'_> {
        Block { rows: (rows - first).min(BLOCK_ROWS), first, of: self }
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
        let (q, shifts) = (base(&self.q, 4), base(&self.shifts, GROUP));
        let pair = |bufs: &[AlignedBuf; 2]| [base(&bufs[0], 16), base(&bufs[1], 32)];
        let (offsets, scaled) = (pair(&self.offsets), pair(&self.scaled_sums));
        let remainders = self.remainders.raw().cast::<Remainder>().wrapping_add(row * self.cols / GROUP);
        let pieces = self.pieces.raw().cast::<Piece>().wrapping_add(first * pieces(self.cols) + lane);
        let list = lane * (self.cols / GROUP);
        let mut found = 0;
        let Measure { mean, largest } = measure(isa, x);
        let limit = REMAINDER_ABOVE * mean;
        // The sum of large numbers overflows too: only then are the elements looked at.
        let is_broken = !limit.is_finite() && x.iter().any(|x| !x.is_finite());
        let unit = if is_broken { f32::NAN } else { largest / 127.0 };
        let units = Units { inverse: inverse(unit), of_largest: inverse(largest) };
        // SAFETY: the assertion above keeps the row inside the buffer, and the caller other threads from it.
        unsafe { self.units.raw().cast::<f32>().add(row).write(unit / (1 << MAX_SHIFT) as f32) };
        for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut rounded = Rounded::default();
            if !is_broken {
                match isa {
                    // The compiler takes several times as many instructions for the plain loops.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(isa) => avx512::activations::round_group(isa, x, &units, &mut rounded),
                    _ => round_group(isa, x, &units, &mut rounded),
                }
            }
            // SAFETY: all of these lie in the block of this row, inside the buffers by the assertion above, and only
            // in this row's lane of it or in its own list, which the caller keeps to this thread. A row has at most
            // as many remainders as groups.
            unsafe {
                let piece = pieces.add(group / PIECE_GROUPS * count);
                if group % PIECE_GROUPS == 0 {
                    piece.write(Piece { start: (list + found) as u32, groups: 0 });
                }
                if rounded.largest > limit {
                    (*piece).groups |= 1 << (group % PIECE_GROUPS);
                    remainders.add(found).write(remainder(isa, x, &rounded, &units, group as u32));
                    found += 1;
                }
                for (c, four) in rounded.q.as_chunks::<4>().0.iter().enumerate() {
                    q.add((group * 8 + c) * count + lane).write(u32::from_ne_bytes(four.map(|q| q as u8)));
                }
                shifts.add(group * count + lane).write(rounded.shift << EXPONENT);
                let power = power_of_two(rounded.shift << EXPONENT);
                for half in 0..2 {
                    let at = (group * 2 + half) * count + lane;
                    offsets[0].add(at).write((-TILE_ZERO * rounded.sums[half]) as u32);
                    scaled[0].add(at).write((power * rounded.sums[half] as f32).to_bits());
                }
                let (sum, at) = (rounded.sums[0] + rounded.sums[1], group * count + lane);
                offsets[1].add(at).write((-TILE_ZERO * sum) as u32);
                scaled[1].add(at).write((power * sum as f32).to_bits());
            }
        }
    }
}

/// Pieces of a row.
fn pieces(cols: usize) -> usize {
    cols.div_ceil(PIECE)
}

/// `2^shift` of a shift that stands where the exponent of an `f32` is.
#[inline(always)]
pub(crate) fn power_of_two(shift: u32) -> f32 {
    f32::from_bits(shift + (127 << EXPONENT))
}

/// A quantised group.
#[derive(Default)]
pub(crate) struct Rounded {
    pub(crate) q: [i8; GROUP],
    /// The largest absolute value.
    pub(crate) largest: f32,
    /// The unit of the group over that of the row, as an exponent of two.
    pub(crate) shift: u32,
    /// Sums of both halves.
    pub(crate) sums: [i32; 2],
}

/// What the groups of a row are rounded by.
pub(crate) struct Units {
    /// Inverse of the largest unit that a group of the row can have.
    inverse: f32,
    /// Inverse of the largest absolute value of the row.
    of_largest: f32,
}

impl Units {
    /// The shift of a group with this largest absolute value, and the inverse of its unit.
    #[inline(always)]
    pub(crate) fn of_group(&self, largest: f32) -> (u32, f32) {
        // At most 1, but for rounding: an exponent of 126 is that of 1/2.
        let exponent = (largest * self.of_largest).to_bits() >> EXPONENT;
        let down = 126u32.saturating_sub(exponent).min(MAX_SHIFT);
        (MAX_SHIFT - down, self.inverse * power_of_two(down << EXPONENT))
    }
}

/// What is known of a row before it is rounded.
pub(crate) struct Measure {
    /// The mean of the absolute values: less swayed by outliers than the mean square.
    mean: f32,
    /// The largest absolute value, of a row without NaN.
    largest: f32,
}

for_isa! {
    /// [`round_group_body`]
    fn round_group(x: &[f32; GROUP], units: &Units, out: &mut Rounded) = round_group_body;
    /// [`remainder_body`]
    fn remainder(x: &[f32; GROUP], rounded: &Rounded, units: &Units, group: u32) -> Remainder = remainder_body;
    /// [`measure_body`]
    fn measure(x: &[f32]) -> Measure = measure_body;
}

#[inline(always)]
fn measure_body(x: &[f32]) -> Measure {
    let (mut sums, mut largest) = ([0.0f32; 16], [0.0f32; 16]);
    for line in x.as_chunks::<16>().0 {
        for ((sum, largest), x) in sums.iter_mut().zip(&mut largest).zip(line) {
            let x = x.abs();
            *sum += x;
            *largest = if x > *largest { x } else { *largest };
        }
    }
    Measure { mean: sums.iter().sum::<f32>() / x.len() as f32, largest: largest.into_iter().fold(0.0, f32::max) }
}

/// The nearest integer, ties to even: adding and subtracting 1.5 * 2^23 rounds without a call.
#[inline(always)]
fn round(x: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// The inverse of a scale; 0 where it would be infinite: elements that small are zeros.
#[inline(always)]
pub(crate) fn inverse(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

#[inline(always)]
fn half_sums(rounded: &[i32; GROUP]) -> [i32; 2] {
    [rounded[..16].iter().sum(), rounded[16..].iter().sum()]
}

/// Rounds 32 finite elements.
#[inline(always)]
fn round_group_body(x: &[f32; GROUP], units: &Units, out: &mut Rounded) {
    out.largest = math::largest(&x.map(f32::abs));
    let inverse;
    (out.shift, inverse) = units.of_group(out.largest);
    let mut rounded = [0i32; GROUP];
    rounded.iter_mut().zip(x).for_each(|(r, x)| *r = round(x * inverse));
    out.q.iter_mut().zip(&rounded).for_each(|(q, r)| *q = *r as i8);
    out.sums = half_sums(&rounded);
}

/// What rounding left of 32 finite elements: at most half a step, here 127 steps.
#[inline(always)]
fn remainder_body(x: &[f32; GROUP], rounded: &Rounded, units: &Units, group: u32) -> Remainder {
    let (shift, inverse) = units.of_group(rounded.largest);
    let mut again = [0i32; GROUP];
    for ((again, x), q) in again.iter_mut().zip(x).zip(&rounded.q) {
        *again = round((x * inverse - f32::from(*q)) * 254.0).clamp(-127, 127);
    }
    let mut q = [0; GROUP];
    q.iter_mut().zip(&again).for_each(|(q, r)| *q = *r as i8);
    Remainder { q, sums: half_sums(&again), unit: power_of_two(shift << EXPONENT) / 254.0, group }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_row<'a>(block: &Block<'a>, row: usize, at: usize) -> &'a [Remainder] {
        let Piece { start, groups } = block.pieces(at)[row];
        &block.remainders()[start as usize..][..groups.count_ones() as usize]
    }

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
                let block = quantised.block(row / BLOCK_ROWS * BLOCK_ROWS, ROWS);
                let lane = row % BLOCK_ROWS;
                let q = |col: usize| i32::from(block.q()[(col / 4 * block.rows + lane) * 4 + col % 4]);
                let remainders = of_row(&block, lane, 0);
                assert_eq!(remainders.len(), usize::from(row == 3));
                for (col, x) in x(row).iter().enumerate() {
                    let d = block.units()[lane] * power_of_two(block.shifts()[col / 32 * block.rows + lane]);
                    let value = d * q(col) as f32;
                    assert!((value - x).abs() <= d * 0.5001);
                    for r in remainders.iter().filter(|r| r.group as usize == col / 32) {
                        let value = value + block.units()[lane] * r.unit * f32::from(r.q[col % 32]);
                        assert!((value - x).abs() <= d * 0.6 / 254.0, "{value} {x}");
                    }
                }
                for r in remainders {
                    assert_eq!(r.group, 1);
                    let sum = |half: usize| r.q[half * 16..][..16].iter().map(|q| i32::from(*q)).sum::<i32>();
                    assert_eq!([sum(0), sum(1)], r.sums);
                }
                for group in 0..4 {
                    let sum: i32 = (0..16).map(|i| q(group * 16 + i)).sum();
                    assert_eq!(block.offsets(16)[group * block.rows + lane], -TILE_ZERO * sum);
                }
                let sum: i32 = (32..64).map(q).sum();
                let at = block.rows + lane;
                let scaled = power_of_two(block.shifts()[at]) * sum as f32;
                assert_eq!((block.offsets(32)[at], block.scaled_sums(32)[at]), (-TILE_ZERO * sum, scaled));
            }
        }
    }

    #[test]
    fn remainders_are_found_by_piece() {
        // Outliers in columns of three pieces, the last of them short.
        const COLS: usize = 2 * PIECE + 96;
        let outliers = [[5, PIECE - 1, PIECE, COLS - 1], [PIECE + 40, PIECE + 70, COLS - 40, COLS - 1]];
        let quantised = Quantised::new(2, COLS);
        for isa in isas() {
            for (row, outliers) in outliers.iter().enumerate() {
                let mut x = [1.0; COLS];
                outliers.iter().for_each(|at| x[*at] = 100.0);
                // SAFETY: one thread.
                unsafe { quantised.write_row(isa, row, 2, &x) };
            }
            let block = quantised.block(0, 2);
            for (row, outliers) in outliers.iter().enumerate() {
                for at in (0..COLS).step_by(PIECE) {
                    let found: Vec<usize> = of_row(&block, row, at).iter().map(|r| r.group as usize).collect();
                    let bits: u32 = found.iter().map(|group| 1 << (group % PIECE_GROUPS)).sum();
                    assert_eq!(block.pieces(at)[row].groups, bits);
                    let inside = outliers.iter().filter(|col| (at..at + PIECE).contains(col));
                    assert_eq!(found, inside.map(|col| col / GROUP).collect::<Vec<_>>());
                }
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
            let block = quantised.block(0, 1);
            assert!(block.q().iter().all(|q| *q == 0) && block.offsets(32)[0] == 0, "{x}");
            assert!(block.units()[0] <= f32::MIN_POSITIVE && block.scaled_sums(32)[0] == 0.0, "{x}");
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
                let block = quantised.block(0, rows.len());
                for group in 0..COLS / GROUP {
                    let at = group * rows.len() + row;
                    assert_eq!(block.units()[row].is_nan(), *is_broken, "{x} on {}", isa.name());
                    if *is_broken {
                        let nothing = (0, 0.0, 0);
                        let found = (block.offsets(32)[at], block.scaled_sums(32)[at], of_row(&block, row, 0).len());
                        assert_eq!(found, nothing, "{x} on {}", isa.name());
                    } else {
                        assert!(block.units()[row].is_finite() && (group != 40 / GROUP || block.offsets(32)[at] != 0));
                    }
                }
                let quant = |col: usize| block.q()[(col / 4 * rows.len() + row) * 4 + col % 4];
                assert!(!is_broken || (0..COLS).all(|col| quant(col) == 0), "{x} on {}", isa.name());
            }
        }
    }
}
