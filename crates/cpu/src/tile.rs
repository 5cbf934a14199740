//! Panels unpacked into tiles, and the portable products over tiles.
//!
//! A tile is a panel's next [`PIECE`] columns in the plainest form: one byte a quant and one `f32` scale (and
//! minimum) a group, or plain `f32`. It is made once and used for every row of activations, so that one product serves
//! all formats.

use half::{f16, slice::HalfFloatSliceExt};
use tensor::DType;

use crate::{
    activations::{Block, PIECE, PIECE_GROUPS, Piece, power_of_two},
    format::{Format, TILE_ZERO, scale_value},
    isa::{Isa, for_isa},
    pack::PANEL,
};

/// Columns a tile of floats.
pub(crate) const FLOAT_TILE_COLS: usize = 256;

/// Sixteen lanes: one element for each row of a panel.
pub(crate) type Lanes = [f32; PANEL];

/// An unpacked piece of a panel, and room for one. Quants are shifted by [`Format::TILE_SHIFT`] and keep the order of the
/// panel: 8 chunks of 64 bytes for 32 columns.
#[repr(C, align(64))]
pub(crate) struct Tile {
    pub(crate) quants: [u8; PIECE * PANEL],
    pub(crate) scales: [Lanes; PIECE / 16],
    pub(crate) mins: [Lanes; PIECE / 16],
    pub(crate) floats: [Lanes; FLOAT_TILE_COLS],
}

impl Tile {
    pub(crate) fn boxed() -> Box<Tile> {
        Box::new(Tile {
            quants: [0; PIECE * PANEL],
            scales: [[0.0; PANEL]; PIECE / 16],
            mins: [[0.0; PANEL]; PIECE / 16],
            floats: [[0.0; PANEL]; FLOAT_TILE_COLS],
        })
    }
}

for_isa! {
    /// [`unpack_body`]
    fn unpack[F: Format][F](blocks: &[u8], tile: &mut Tile) = unpack_body;
    /// [`multiply_body`]
    fn multiply[F: Format][F](tile: &Tile, at: usize, cols: usize, block: &Block<'_>, acc: &mut [Lanes]) = multiply_body;
    /// [`to_floats_body`]
    fn to_floats[F: Format][F](tile: &mut Tile, cols: usize) = to_floats_body;
    /// [`widen_body`]
    fn widen(bits: &[u16], floats: &mut [f32]) = widen_body;
}

/// Unpacks whole blocks of a panel (at most [`PIECE`] columns) into quants, scales and minimums.
#[inline(always)]
fn unpack_body<F: Format>(blocks: &[u8], tile: &mut Tile) {
    let mut groups = 0;
    let mut chunks = tile.quants.chunks_exact_mut(512);
    for block in blocks.chunks_exact(F::STRIDE) {
        let (header, quants) = block.split_at(F::HEADER_BYTES);
        unpack_header::<F>(header, &mut tile.scales[groups..], &mut tile.mins[groups..]);
        groups += F::GROUPS;
        for (planes, out) in quants.chunks_exact(F::QUANT_BYTES).zip(&mut chunks) {
            unpack_planes::<F>(planes, out);
        }
    }
}

#[inline(always)]
fn unpack_header<F: Format>(header: &[u8], scales: &mut [Lanes], mins: &mut [Lanes]) {
    let stored = |at: usize, lane: usize| {
        scale_value::<F>(u16::from_le_bytes([header[at + lane * 2], header[at + lane * 2 + 1]]))
    };
    for lane in 0..PANEL {
        let (d, m) = (stored(0, lane), if F::MIN { stored(32, lane) * F::MIN_SIGN } else { 0.0 });
        for group in 0..F::GROUPS {
            let at = group * 16 + lane;
            scales[group][lane] = if F::SUPER { d * f32::from(header[F::SCALES_AT + at] as i8) } else { d };
            if F::MIN {
                mins[group][lane] = if F::SUPER { m * f32::from(header[F::MINS_AT + at]) } else { m };
            }
        }
    }
}

#[inline(always)]
fn unpack_planes<F: Format>(planes: &[u8], out: &mut [u8]) {
    if F::BITS == 8 {
        const { assert!(F::BITS != 8 || F::TILE_SHIFT == 0) };
        out.copy_from_slice(planes);
        return;
    }
    for c in 0..8 {
        for i in 0..64 {
            let low = planes[c % 4 * 64 + i] >> (c / 4 * 4) & 15;
            let high = match F::BITS {
                5 => (planes[256 + i] >> c & 1) << 4,
                6 => (planes[256 + c / 4 * 64 + i] >> (c % 4 * 2) & 3) << 4,
                _ => 0,
            };
            let code = low | high;
            out[c * 64 + i] = F::TABLE.map_or(code, |table| table[code as usize]) + F::TILE_SHIFT;
        }
    }
}

/// `acc[row] += tile x block` over `cols` columns, the piece that begins at column `at` of the activations.
#[inline(always)]
fn multiply_body<F: Format>(tile: &Tile, at: usize, cols: usize, block: &Block<'_>, acc: &mut [Lanes]) {
    let rows = block.rows;
    let (q, shifts) = (block.q(), block.shifts());
    let (offsets, scaled_sums) = (block.offsets(F::GROUP), block.scaled_sums(F::GROUP));
    for (row, acc) in acc.iter_mut().enumerate() {
        for group in 0..cols / F::GROUP {
            let of = at / F::GROUP + group;
            let x = |chunk: usize| &q[((of * F::GROUP / 4 + chunk) * rows + row) * 4..][..4];
            let dot = dot::<F>(tile, group, x, offsets[of * rows + row]);
            let d = power_of_two(shifts[of * F::GROUP / 32 * rows + row]);
            add::<F>(tile, group, &dot, d, scaled_sums[of * rows + row], acc);
        }
        let Piece { start, groups } = block.pieces(at)[row];
        for remainder in &block.remainders()[start as usize..][..groups.count_ones() as usize] {
            for half in 0..32 / F::GROUP {
                let group = remainder.group as usize % PIECE_GROUPS * (32 / F::GROUP) + half;
                let x = |chunk: usize| &remainder.q[half * F::GROUP + chunk * 4..][..4];
                let sum = remainder.sum(F::GROUP, half);
                let dot = dot::<F>(tile, group, x, -TILE_ZERO * sum);
                add::<F>(tile, group, &dot, remainder.unit, remainder.unit * sum as f32, acc);
            }
        }
    }
}

/// Dot products of a group of the tile with activations, four of which are `x(chunk)`; `offset` is `-TILE_ZERO` times
/// their sum.
#[inline(always)]
fn dot<'a, F: Format>(tile: &Tile, group: usize, x: impl Fn(usize) -> &'a [i8], offset: i32) -> [i32; PANEL] {
    let mut dot = [if F::ZERO == 0 { 0 } else { offset }; PANEL];
    for chunk in 0..F::GROUP / 4 {
        let quants = &tile.quants[(group * F::GROUP / 4 + chunk) * 64..][..64];
        let x = x(chunk);
        for (lane, dot) in dot.iter_mut().enumerate() {
            for i in 0..4 {
                *dot += i32::from(quants[lane * 4 + i]) * i32::from(x[i]);
            }
        }
    }
    dot
}

/// Adds the dot products of a group with activations of unit `d`, which sum to `scaled_sum`.
#[inline(always)]
fn add<F: Format>(tile: &Tile, group: usize, dot: &[i32; PANEL], d: f32, scaled_sum: f32, acc: &mut Lanes) {
    for lane in 0..PANEL {
        acc[lane] += dot[lane] as f32 * (tile.scales[group][lane] * d);
        if F::MIN {
            acc[lane] += tile.mins[group][lane] * scaled_sum;
        }
    }
}

/// Turns the first `cols` unpacked columns into floats.
#[inline(always)]
fn to_floats_body<F: Format>(tile: &mut Tile, cols: usize) {
    for (column, out) in tile.floats[..cols].iter_mut().enumerate() {
        let group = column / F::GROUP;
        let quants = &tile.quants[column / 4 * 64..][..64];
        for (lane, out) in out.iter_mut().enumerate() {
            let q = i32::from(quants[lane * 4 + column % 4]) - if F::ZERO == 0 { 0 } else { TILE_ZERO };
            *out = tile.scales[group][lane] * q as f32 + if F::MIN { tile.mins[group][lane] } else { 0.0 };
        }
    }
}

/// Reads columns of a float panel (`panel` begins at the first of them).
pub(crate) fn read_floats(isa: Isa, dtype: DType, panel: &[u8], floats: &mut [Lanes]) {
    let floats = &mut floats.as_flattened_mut()[..panel.len() / dtype.block_bytes()];
    match dtype {
        DType::F32 => floats.copy_from_slice(bytemuck::cast_slice(panel)),
        DType::BF16 => widen(isa, bytemuck::cast_slice(panel), floats),
        _ => bytemuck::cast_slice::<u8, f16>(panel).convert_to_f32_slice(floats),
    }
}

/// bfloat16 to `f32`: its bits are the upper half.
#[inline(always)]
fn widen_body(bits: &[u16], floats: &mut [f32]) {
    for (out, bits) in floats.iter_mut().zip(bits) {
        *out = f32::from_bits(u32::from(*bits) << 16);
    }
}

/// `acc[row] += floats x rows`: each row of `x` holds the elements for these columns.
pub(crate) fn multiply_floats<const ROWS: usize>(
    isa: Isa,
    floats: &[Lanes],
    x: &[&[f32]; ROWS],
    acc: &mut [Lanes; ROWS],
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn avx512<const ROWS: usize>(floats: &[Lanes], x: &[&[f32]; ROWS], acc: &mut [Lanes; ROWS]) {
        multiply_floats_body::<true, ROWS>(floats, x, acc);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2<const ROWS: usize>(floats: &[Lanes], x: &[&[f32]; ROWS], acc: &mut [Lanes; ROWS]) {
        multiply_floats_body::<true, ROWS>(floats, x, acc);
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the value in the variant exists only where its features were detected.
        Isa::Avx512(_) => unsafe { avx512(floats, x, acc) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2(_) => unsafe { avx2(floats, x, acc) },
        _ => multiply_floats_body::<false, ROWS>(floats, x, acc),
    }
}

/// `FMA` fuses the multiply-add: without the instruction it would be a call.
#[inline(always)]
fn multiply_floats_body<const FMA: bool, const ROWS: usize>(
    floats: &[Lanes],
    x: &[&[f32]; ROWS],
    acc: &mut [Lanes; ROWS],
) {
    let mut sums = *acc;
    let x: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row][..floats.len()]);
    for (column, w) in floats.iter().enumerate() {
        for (x, sums) in x.iter().zip(&mut sums) {
            let x = x[column];
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = if FMA { w.mul_add(x, *sum) } else { w * x + *sum };
            }
        }
    }
    *acc = sums;
}
