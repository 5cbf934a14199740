//! Products of panels with rows of activations: picks the kernel and walks the tiles.

use std::ops::Range;

use graph::Weight;
use tensor::{DType, blocks::dequantize};

#[cfg(target_arch = "x86_64")]
use crate::avx512::linear as avx512;
use crate::{
    activations::{BLOCK_ROWS, PIECE, Quantised},
    format::{Format, with_format},
    isa::Isa,
    pack::{Layout, PANEL, Packed},
    tile::{self, FLOAT_TILE_COLS, Lanes, Tile},
};

/// Panels that a thread multiplies at once with many rows: for each piece of columns one after the other, so that the
/// activations of the piece (512 rows take 0.7 MB) come from the second-level cache for all but the first.
pub(crate) const PANELS_AT_ONCE: usize = 4;

/// What a thread needs to itself while it multiplies.
pub(crate) struct Scratch {
    tile: Box<Tile>,
    /// Sums by panel and row.
    acc: Vec<Lanes>,
    row: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(rows: usize) -> Scratch {
        Scratch { tile: Tile::boxed(), acc: vec![[0.0; PANEL]; PANELS_AT_ONCE * rows], row: vec![0.0; FLOAT_TILE_COLS] }
    }

    /// Bytes that [`Scratch::new`] takes.
    pub(crate) fn bytes(rows: usize) -> u64 {
        (size_of::<Tile>() + PANELS_AT_ONCE * rows * size_of::<Lanes>() + FLOAT_TILE_COLS * 4) as u64
    }
}

/// The input of a product.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Rows of 8-bit activations: the integer kernels apply.
    Quantised(&'a Quantised),
    /// Rows of `f32`, row-major.
    Floats(&'a [f32]),
}

/// Takes finished rows of a product: the panel, the first row's index and the rows' 16 elements each.
pub(crate) type Done<'a> = &'a mut dyn FnMut(usize, usize, &[Lanes]);

/// Multiplies some panels with `rows` rows and hands the rows of the product to `done`, some at a time and each once.
pub(crate) fn panels(
    isa: Isa,
    weight: &Packed,
    panels: Range<usize>,
    input: Input<'_>,
    rows: usize,
    scratch: &mut Scratch,
    done: Done<'_>,
) {
    match (&weight.layout, input) {
        (Layout::Quant { dtype, data }, Input::Quantised(x)) => {
            for first in panels.clone().step_by(PANELS_AT_ONCE) {
                let data = panels_of(data, weight, first..panels.end.min(first + PANELS_AT_ONCE));
                let mut done = |panel: usize, row: usize, product: &[Lanes]| done(first + panel, row, product);
                with_format!(*dtype, F => integer::<F>(isa, data, x, rows, scratch, &mut done), else unreachable!("{dtype} was packed without a format"));
            }
        }
        (_, Input::Floats(x)) => {
            for panel in panels {
                floats(isa, weight, panel, x, rows, scratch);
                done(panel, 0, &scratch.acc[..rows]);
            }
        }
        (_, Input::Quantised(_)) => unreachable!("only quantised weights take quantised activations"),
    }
}

fn panels_of<'a>(data: &'a [u8], weight: &Packed, panels: Range<usize>) -> &'a [u8] {
    let bytes = data.len() / weight.panels();
    &data[panels.start * bytes..panels.end * bytes]
}

/// Multiplies panels, at most [`PANELS_AT_ONCE`].
fn integer<F: Format>(isa: Isa, panels: &[u8], x: &Quantised, rows: usize, scratch: &mut Scratch, done: Done<'_>) {
    let Scratch { tile, acc, .. } = scratch;
    let cols = x.cols();
    let bytes = cols / F::BLOCK * F::STRIDE;
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(isa) = isa
        && rows <= avx512::DIRECT_ROWS
    {
        for (index, panel) in panels.chunks_exact(bytes).enumerate() {
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let block = x.block(first, rows, F::GROUP);
                let acc = &mut acc[..block.rows];
                avx512::direct::<F>(isa, panel, &block, acc);
                multiply_by(block.units, acc);
                done(index, first, acc);
            }
        }
        return;
    }
    let piece_bytes = PIECE / F::BLOCK * F::STRIDE;
    for (piece, at) in (0..cols).step_by(PIECE).enumerate() {
        let cols_here = PIECE.min(cols - at);
        for (index, (panel, acc)) in panels.chunks_exact(bytes).zip(acc.chunks_exact_mut(rows)).enumerate() {
            let blocks = &panel[piece * piece_bytes..bytes.min((piece + 1) * piece_bytes)];
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(isa) => avx512::unpack::<F>(isa, blocks, tile),
                _ => tile::unpack::<F>(isa, blocks, tile),
            }
            if piece == 0 {
                acc.fill([0.0; PANEL]);
            }
            for (first, acc) in (0..rows).step_by(BLOCK_ROWS).zip(acc.chunks_mut(BLOCK_ROWS)) {
                let block = x.block(first, rows, F::GROUP);
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(isa) => avx512::multiply::<F>(isa, tile, at, cols_here, &block, acc),
                    _ => tile::multiply::<F>(isa, tile, at, cols_here, &block, acc),
                }
                if at + cols_here == cols {
                    multiply_by(block.units, acc);
                    done(index, first, acc);
                }
            }
        }
    }
}

/// Multiplies each row by its unit.
fn multiply_by(units: &[f32], rows: &mut [Lanes]) {
    for (row, unit) in rows.iter_mut().zip(units) {
        row.iter_mut().for_each(|x| *x *= unit);
    }
}

fn floats(isa: Isa, weight: &Packed, panel: usize, x: &[f32], rows: usize, scratch: &mut Scratch) {
    scratch.acc[..rows].fill([0.0; PANEL]);
    for at in (0..weight.cols).step_by(FLOAT_TILE_COLS) {
        let cols = FLOAT_TILE_COLS.min(weight.cols - at);
        float_tile(isa, weight, panel, (at, cols), scratch);
        let floats = &scratch.tile.floats[..cols];
        let part = |row: usize| &x[row * weight.cols + at..][..cols];
        let (blocks, rest) = scratch.acc[..rows].as_chunks_mut::<8>();
        let whole = blocks.len() * 8;
        for (block, acc) in blocks.iter_mut().enumerate() {
            tile::multiply_floats::<8>(isa, floats, &std::array::from_fn(|i| part(block * 8 + i)), acc);
        }
        for (row, acc) in rest.iter_mut().enumerate() {
            tile::multiply_floats::<1>(isa, floats, &[part(whole + row)], std::array::from_mut(acc));
        }
    }
}

/// Makes a tile of floats from columns of any weight.
fn float_tile(isa: Isa, weight: &Packed, panel: usize, (at, cols): (usize, usize), scratch: &mut Scratch) {
    match &weight.layout {
        Layout::Quant { dtype, data } => {
            let panel = panels_of(data, weight, panel..panel + 1);
            with_format!(*dtype, F => {
                // Blocks that hold these columns: FLOAT_TILE_COLS is a multiple of every block.
                let blocks = &panel[at / F::BLOCK * F::STRIDE..(at + cols) / F::BLOCK * F::STRIDE];
                tile::unpack::<F>(isa, blocks, &mut scratch.tile);
                tile::to_floats::<F>(isa, &mut scratch.tile, cols);
            }, else ());
        }
        Layout::Float { dtype, data } => {
            let panel = panels_of(data, weight, panel..panel + 1);
            let line = panel.len() / weight.cols;
            tile::read_floats(isa, *dtype, &panel[at * line..(at + cols) * line], &mut scratch.tile.floats);
        }
        Layout::Raw { weight } => raw_tile(weight, panel, (at, cols), scratch),
    }
}

/// Decodes columns of 16 rows of the file. Raw types have blocks of 256 elements, as many as a tile of floats.
fn raw_tile(weight: &Weight, panel: usize, (at, cols): (usize, usize), scratch: &mut Scratch) {
    let dtype: DType = weight.dtype;
    let bytes = |n: usize| n / dtype.block_len() * dtype.block_bytes();
    for lane in 0..PANEL {
        let row = panel * PANEL + lane;
        let decoded = &mut scratch.row[..cols];
        if row < weight.rows {
            let source = &weight.row(row)[bytes(at)..bytes(at + cols)];
            dequantize(dtype, source, decoded).expect("whole blocks of a weight type");
        } else {
            decoded.fill(0.0);
        }
        for (out, value) in scratch.tile.floats.iter_mut().zip(&scratch.row[..cols]) {
            out[lane] = *value;
        }
    }
}
