//! Weights as the kernels read them: 16 rows side by side, one stream a panel, in the order of the inner loop.
//!
//! ```text
//! panel = 16 rows; a panel is a run of blocks; a block (32 or 256 columns) is
//!   header   d[16] (and m[16]) as 16-bit floats; super-blocks: factors u8[group][16] (and for m)
//!   quants   for each 32 columns: 8 chunks of 4 columns; chunk c of row r is the 4 bytes (r * 4..) of a 64-byte line
//! ```
//!
//! One line is one AVX-512 register: `vpdpbusd` multiplies its 16 x 4 quants with 4 activations broadcast to all
//! rows. Quants of fewer than 8 bits lie in planes: 4 lines hold the low nibbles of chunk c and, above them, of chunk
//! c + 4; a fifth bit of all chunks fills one line, the upper two bits of Q6 two.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tensor::DType;

use graph::{Arithmetic, Weight};

use crate::{
    format::{Exploded, Format, scale_value, with_format},
    isa::{Isa, for_isa},
    pool::Pool,
    region::{Region, Regions},
};

/// Rows a panel.
pub(crate) const PANEL: usize = 16;

/// A weight packed for the kernels.
pub(crate) struct Packed {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) layout: Layout,
}

/// How a packed weight lies.
pub(crate) enum Layout {
    /// Quantised panels of a type that has a [`Format`].
    Quant { dtype: DType, data: Region },
    /// Float panels: for each column 16 rows, in the type of the file.
    Float { dtype: DType, data: Region },
    /// The file's own rows, decoded while they are used: for the types without a packed form.
    Raw { weight: Weight },
}

impl Layout {
    /// The type of quantised panels.
    pub(crate) fn dtype(&self) -> Option<DType> {
        match self {
            Layout::Quant { dtype, .. } => Some(*dtype),
            _ => None,
        }
    }
}

impl Packed {
    /// Panels, the last padded with rows of zeros.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Whether the integer kernels apply.
    pub(crate) fn is_integer(&self, arithmetic: Arithmetic) -> bool {
        arithmetic == Arithmetic::Fast && matches!(self.layout, Layout::Quant { .. })
    }
}

/// Bytes of one packed panel; `None` for types that stay raw.
fn panel_bytes(dtype: DType, cols: usize) -> Option<usize> {
    match dtype {
        DType::F32 => Some(cols * PANEL * 4),
        DType::F16 | DType::BF16 => Some(cols * PANEL * 2),
        _ => with_format!(dtype, F => Some(cols / F::BLOCK * F::STRIDE), else None),
    }
}

/// Bytes a weight takes when packed: none for types that stay raw, which are read from the file's pages.
pub(crate) fn packed_bytes(weight: &Weight) -> u64 {
    panel_bytes(weight.dtype, weight.cols).map_or(0, |bytes| (bytes * weight.rows.div_ceil(PANEL)) as u64)
}

/// Bytes of the file that a thread packs before it lets go of their pages.
const RELEASE_BYTES: usize = 2 << 20;

/// Scales below this are packed: the kernels add to the exponents of products, which must not run over.
const LARGEST_SCALE: f32 = (1u64 << 60) as f32;

/// Packs a weight, its panels divided over the threads of the pool, and lets go of the file's pages as it goes: a table
/// is never in memory twice. A weight with a scale that is not finite, or beyond all reason, stays raw: products with it
/// show what is wrong with it.
pub(crate) fn pack(weight: &Weight, isa: Isa, pool: &mut Pool, regions: &mut Regions) -> Packed {
    let Weight { dtype, rows, cols, .. } = *weight;
    let raw = || Packed { rows, cols, layout: Layout::Raw { weight: weight.clone() } };
    let Some(bytes) = panel_bytes(dtype, cols) else { return raw() };
    let panels = rows.div_ceil(PANEL);
    let share = panels.div_ceil(pool.threads()).max(1);
    let row_bytes = weight.row_bytes();
    let at_once = (RELEASE_BYTES / (PANEL * row_bytes).max(1)).max(1);
    let is_sound = AtomicBool::new(true);
    let data = regions.take(bytes * panels, |data| {
        let parts = Mutex::new(data.chunks_mut((share * bytes).max(1)).enumerate());
        pool.run(&|_| {
            let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some((index, part)) = next() {
                for (piece, out) in part.chunks_mut(at_once * bytes).enumerate() {
                    let first = index * share + piece * at_once;
                    for (panel, out) in out.chunks_exact_mut(bytes).enumerate() {
                        if !pack_panel(isa, weight, first + panel, out) {
                            is_sound.store(false, Ordering::Relaxed);
                        }
                    }
                    let rows = first * PANEL..((first + at_once) * PANEL).min(rows);
                    if let Some(packed) = weight.data.slice(rows.start * row_bytes..rows.end * row_bytes) {
                        packed.release();
                    }
                }
            }
        });
    });
    // The pages that two pieces share.
    weight.data.release();
    if !is_sound.into_inner() {
        return raw();
    }
    let layout = if dtype.is_block() { Layout::Quant { dtype, data } } else { Layout::Float { dtype, data } };
    Packed { rows, cols, layout }
}

for_isa! {
    /// Packs one panel; whether the kernels can multiply by its scales.
    fn pack_panel(weight: &Weight, panel: usize, out: &mut [u8]) -> bool = pack_panel_body;
}

#[inline(always)]
fn pack_panel_body(weight: &Weight, panel: usize, out: &mut [u8]) -> bool {
    let mut is_sound = true;
    let rows = panel * PANEL..((panel + 1) * PANEL).min(weight.rows);
    for (lane, row) in rows.enumerate() {
        let bytes = weight.row(row);
        match weight.dtype {
            DType::F32 => interleave::<4>(bytes, lane, out),
            DType::F16 | DType::BF16 => interleave::<2>(bytes, lane, out),
            _ => with_format!(weight.dtype, F => is_sound &= pack_row::<F>(bytes, lane, out), else ()),
        }
    }
    is_sound
}

#[inline(always)]
fn interleave<const BYTES: usize>(row: &[u8], lane: usize, out: &mut [u8]) {
    for (element, line) in row.as_chunks::<BYTES>().0.iter().zip(out.chunks_exact_mut(BYTES * PANEL)) {
        line[lane * BYTES..][..BYTES].copy_from_slice(element);
    }
}

#[inline(always)]
fn pack_row<F: Format>(row: &[u8], lane: usize, out: &mut [u8]) -> bool {
    let mut exploded = Exploded::EMPTY;
    let mut is_sound = true;
    for (block, out) in row.chunks_exact(F::DTYPE.block_bytes()).zip(out.chunks_exact_mut(F::STRIDE)) {
        F::explode(block, &mut exploded);
        is_sound &= scale_value::<F>(exploded.d).abs() < LARGEST_SCALE;
        let (header, quants) = out.split_at_mut(F::HEADER_BYTES);
        header[lane * 2..][..2].copy_from_slice(&exploded.d.to_le_bytes());
        if F::MIN {
            header[32 + lane * 2..][..2].copy_from_slice(&exploded.m.to_le_bytes());
        }
        if F::SUPER {
            for group in 0..F::GROUPS {
                header[F::SCALES_AT + group * 16 + lane] = exploded.scales[group] as u8;
                if F::MIN {
                    header[F::MINS_AT + group * 16 + lane] = exploded.mins[group];
                }
            }
        }
        for (codes, planes) in
            exploded.quants[..F::BLOCK].as_chunks::<32>().0.iter().zip(quants.chunks_exact_mut(F::QUANT_BYTES))
        {
            pack_planes::<F>(codes, lane, planes);
        }
    }
    is_sound
}

/// Writes 32 codes of one row into its lane of the planes.
#[inline(always)]
fn pack_planes<F: Format>(codes: &[u8; 32], lane: usize, planes: &mut [u8]) {
    let chunk = |c: usize| u32::from_le_bytes([codes[4 * c], codes[4 * c + 1], codes[4 * c + 2], codes[4 * c + 3]]);
    let mut store = |line: usize, word: u32| planes[line * 64 + lane * 4..][..4].copy_from_slice(&word.to_le_bytes());
    if F::BITS == 8 {
        (0..8).for_each(|c| store(c, chunk(c)));
        return;
    }
    const LOW: u32 = 0x0f0f_0f0f;
    (0..4).for_each(|c| store(c, (chunk(c) & LOW) | (chunk(c + 4) & LOW) << 4));
    if F::BITS == 5 {
        store(4, (0..8).fold(0, |word, c| word | (chunk(c) >> 4 & 0x0101_0101) << c));
    }
    if F::BITS == 6 {
        for half in 0..2 {
            let word = (0..4).fold(0, |word, c| word | (chunk(half * 4 + c) >> 4 & 0x0303_0303) << (2 * c));
            store(4 + half, word);
        }
    }
}
