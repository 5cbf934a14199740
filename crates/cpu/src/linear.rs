//! Products of panels with rows of activations: picks the kernel and walks the tiles.

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
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(isa) = isa
        && rows <= avx512::DIRECT_ROWS
    {
        for (block, acc) in acc[..rows].chunks_mut(BLOCK_ROWS).enumerate() {
            avx512::direct::<F>(isa, panel, &x.block(block * BLOCK_ROWS, rows, F::GROUP), acc);
        }
        return;
    }
    acc[..rows].fill([0.0; PANEL]);
    for (piece, blocks) in panel.chunks(PIECE / F::BLOCK * F::STRIDE).enumerate() {
        let (at, cols) = (piece * PIECE, blocks.len() / F::STRIDE * F::BLOCK);
        integer_tile::<F>(isa, blocks, (at, cols), x, &mut acc[..rows], tile);
    }
}

fn integer_tile<F: Format>(
    isa: Isa,
    blocks: &[u8],
    (at, cols): (usize, usize),
    x: &Quantised,
    acc: &mut [Lanes],
    tile: &mut Tile,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => avx512::unpack::<F>(isa, blocks, tile),
        _ => tile::unpack::<F>(isa, blocks, tile),
    }
    let rows = acc.len();
    for (block, acc) in acc.chunks_mut(BLOCK_ROWS).enumerate() {
        let block = x.block(block * BLOCK_ROWS, rows, F::GROUP);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(isa) => avx512::multiply::<F>(isa, tile, at, cols, &block, acc),
            _ => tile::multiply::<F>(isa, tile, at, cols, &block, acc),
        }
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
            let panel = panel_of(data, weight, panel);
            with_format!(*dtype, F => {
                // Blocks that hold these columns: FLOAT_TILE_COLS is a multiple of every block.
                let blocks = &panel[at / F::BLOCK * F::STRIDE..(at + cols) / F::BLOCK * F::STRIDE];
                tile::unpack::<F>(isa, blocks, &mut scratch.tile);
                tile::to_floats::<F>(isa, &mut scratch.tile, cols);
            }, else ());
        }
        Layout::Float { dtype, data } => {
            let panel = panel_of(data, weight, panel);
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
