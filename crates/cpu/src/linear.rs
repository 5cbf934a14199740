//! Products of panels with rows of activations: picks the kernel and walks the tiles.

use graph::Weight;
use tensor::{DType, blocks::dequantize};

use crate::{
    activations::{BLOCK_ROWS, Quantised},
    avx512,
    format::{Format, with_format},
    isa::{Avx512, Isa},
    pack::{Layout, PANEL, Packed},
    tile::{self, FLOAT_TILE_COLS, Lanes, TILE_COLS, Tile},
};

/// What a thread needs to itself while it multiplies.
pub(crate) struct Scratch {
    tile: Box<Tile>,
    acc: Vec<Lanes>,
    row: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(rows: usize) -> Scratch {
        Scratch { tile: Tile::boxed(), acc: vec![[0.0; PANEL]; rows], row: vec![0.0; FLOAT_TILE_COLS] }
    }

    /// Bytes that [`Scratch::new`] takes.
    pub(crate) fn bytes(rows: usize) -> u64 {
        (size_of::<Tile>() + rows * size_of::<Lanes>() + FLOAT_TILE_COLS * 4) as u64
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

/// Multiplies one panel with `rows` rows; element `(row, lane)` of the result is `scratch[row][lane]`.
pub(crate) fn panel<'s>(
    isa: Isa,
    weight: &Packed,
    panel: usize,
    input: Input<'_>,
    rows: usize,
    scratch: &'s mut Scratch,
) -> &'s [Lanes] {
    match (&weight.layout, input) {
        (Layout::Quant { dtype, data }, Input::Quantised(x)) => {
            with_format!(*dtype, F => integer::<F>(isa, panel_of(data, weight, panel), x, rows, scratch), else unreachable!("{dtype} was packed without a format"))
        }
        (_, Input::Floats(x)) => floats(isa, weight, panel, x, rows, scratch),
        (_, Input::Quantised(_)) => unreachable!("only quantised weights take quantised activations"),
    }
    &scratch.acc[..rows]
}

fn panel_of<'a>(data: &'a [u8], weight: &Packed, panel: usize) -> &'a [u8] {
    let bytes = data.len() / weight.panels();
    &data[panel * bytes..(panel + 1) * bytes]
}

fn integer<F: Format>(isa: Isa, panel: &[u8], x: &Quantised, rows: usize, scratch: &mut Scratch) {
    let Scratch { tile, acc, .. } = scratch;
    if let Isa::Avx512(isa) = isa
        && rows <= avx512::DIRECT_ROWS
    {
        return avx512::direct::<F>(isa, panel, &x.block(0, rows, F::GROUP), &mut acc[..rows]);
    }
    acc[..rows].fill([0.0; PANEL]);
    for (piece, blocks) in panel.chunks(TILE_COLS / F::BLOCK * F::STRIDE).enumerate() {
        let (at, cols) = (piece * TILE_COLS, blocks.len() / F::STRIDE * F::BLOCK);
        match isa {
            Isa::Avx512(isa) => integer_tile_avx512::<F>(isa, blocks, (at, cols), x, &mut acc[..rows], tile),
            Isa::Avx2(isa) => isa.run(|| integer_tile::<F>(blocks, (at, cols), x, &mut acc[..rows], tile)),
            Isa::Portable => integer_tile::<F>(blocks, (at, cols), x, &mut acc[..rows], tile),
        }
    }
}

fn integer_tile_avx512<F: Format>(
    isa: Avx512,
    blocks: &[u8],
    (at, cols): (usize, usize),
    x: &Quantised,
    acc: &mut [Lanes],
    tile: &mut Tile,
) {
    avx512::unpack::<F>(isa, blocks, tile);
    let rows = acc.len();
    for (block, acc) in acc.chunks_mut(BLOCK_ROWS).enumerate() {
        avx512::multiply::<F>(isa, tile, at, cols, &x.block(block * BLOCK_ROWS, rows, F::GROUP), acc);
    }
}

#[inline(always)]
fn integer_tile<F: Format>(
    blocks: &[u8],
    (at, cols): (usize, usize),
    x: &Quantised,
    acc: &mut [Lanes],
    tile: &mut Tile,
) {
    tile::unpack::<F>(blocks, tile);
    let rows = acc.len();
    for (block, acc) in acc.chunks_mut(BLOCK_ROWS).enumerate() {
        tile::multiply::<F>(tile, at, cols, &x.block(block * BLOCK_ROWS, rows, F::GROUP), acc);
    }
}

fn floats(isa: Isa, weight: &Packed, panel: usize, x: &[f32], rows: usize, scratch: &mut Scratch) {
    scratch.acc[..rows].fill([0.0; PANEL]);
    for at in (0..weight.cols).step_by(FLOAT_TILE_COLS) {
        let cols = FLOAT_TILE_COLS.min(weight.cols - at);
        match isa {
            Isa::Avx512(isa) => isa.run(|| float_tile::<true>(weight, panel, (at, cols), x, rows, scratch)),
            Isa::Avx2(isa) => isa.run(|| float_tile::<true>(weight, panel, (at, cols), x, rows, scratch)),
            Isa::Portable => float_tile::<false>(weight, panel, (at, cols), x, rows, scratch),
        }
    }
}

#[inline(always)]
fn float_tile<const FMA: bool>(
    weight: &Packed,
    panel: usize,
    (at, cols): (usize, usize),
    x: &[f32],
    rows: usize,
    scratch: &mut Scratch,
) {
    match &weight.layout {
        Layout::Quant { dtype, data } => {
            let panel = panel_of(data, weight, panel);
            with_format!(*dtype, F => {
                // Blocks that hold these columns: FLOAT_TILE_COLS is a multiple of every block.
                let blocks = &panel[at / F::BLOCK * F::STRIDE..(at + cols) / F::BLOCK * F::STRIDE];
                tile::unpack::<F>(blocks, &mut scratch.tile);
                tile::to_floats::<F>(&mut scratch.tile, 0, cols);
            }, else ());
        }
        Layout::Float { dtype, data } => {
            let panel = panel_of(data, weight, panel);
            let line = panel.len() / weight.cols;
            tile::read_floats(*dtype, &panel[at * line..(at + cols) * line], &mut scratch.tile.floats);
        }
        Layout::Raw { weight } => raw_tile(weight, panel, (at, cols), scratch),
    }
    let floats = &scratch.tile.floats[..cols];
    let part = |row: usize| &x[row * weight.cols + at..][..cols];
    let mut row = 0;
    while row + 8 <= rows {
        let acc: &mut [Lanes; 8] = (&mut scratch.acc[row..row + 8]).try_into().expect("eight rows");
        tile::multiply_floats::<FMA, 8>(floats, &std::array::from_fn(|i| part(row + i)), acc);
        row += 8;
    }
    while row < rows {
        let acc: &mut [Lanes; 1] = (&mut scratch.acc[row..row + 1]).try_into().expect("one row");
        tile::multiply_floats::<FMA, 1>(floats, &[part(row)], acc);
        row += 1;
    }
}

/// Decodes columns of 16 rows of the file. Raw types have blocks of 256 elements, as many as a tile of floats.
#[inline(always)]
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
