//! Products of panels with rows of activations: picks the kernel and walks the tiles.

use graph::Weight;
use tensor::{DType, blocks::dequantize};

use crate::{
    activations::{BLOCK_ROWS, PIECE, Quantised},
    format::{Format, with_format},
    isa::Isa,
    pack::{Layout, PANEL, Packed},
    tile::{self, FLOAT_TILE_COLS, Lanes, Tile},
};
#[cfg(target_arch = "x86_64")]
use crate::{avx2, avx512::linear as avx512};

/// Panels that a thread multiplies at once with this many rows. With many rows they are few: for each piece of columns
/// they come one after the other, so that the activations of the piece (512 rows take 0.7 MB) are read from the
/// second-level cache for all but the first. With few rows each is a stream, the longer the better.
pub(crate) const fn panels_at_once(rows: usize) -> usize {
    if rows > PANEL { 4 } else { MOST_PANELS }
}

/// The most that [`panels_at_once`] says.
pub(crate) const MOST_PANELS: usize = 16;

/// What a thread needs to itself while it multiplies.
pub(crate) struct Scratch {
    tile: Box<Tile>,
    /// Sums by panel and row.
    acc: Vec<Lanes>,
    row: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(rows: usize) -> Scratch {
        Scratch { tile: Tile::boxed(), acc: vec![[0.0; PANEL]; sums(rows)], row: vec![0.0; FLOAT_TILE_COLS] }
    }

    /// Bytes that [`Scratch::new`] takes.
    pub(crate) fn bytes(rows: usize) -> u64 {
        (size_of::<Tile>() + sums(rows) * size_of::<Lanes>() + FLOAT_TILE_COLS * 4) as u64
    }
}

/// Sums of 16 that any step of up to `rows` rows needs.
fn sums(rows: usize) -> usize {
    (rows * panels_at_once(rows)).max(MOST_PANELS * rows.min(PANEL))
}

/// The input of a product.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Rows of 8-bit activations: the integer kernels apply.
    Quantised(&'a Quantised),
    /// Rows of `f32`, row-major.
    Floats(&'a [f32]),
}

/// A panel of a weight.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) weight: &'a Packed,
    pub(crate) index: usize,
}

impl Panel<'_> {
    /// Its bytes; none of a weight that stays raw.
    fn data(&self) -> &[u8] {
        match &self.weight.layout {
            Layout::Quant { data, .. } | Layout::Float { data, .. } => {
                let bytes = data.len() / self.weight.panels();
                &data[self.index * bytes..][..bytes]
            }
            Layout::Raw { .. } => &[],
        }
    }
}

/// Rows of a panel's product whose sums are complete.
pub(crate) struct Finished<'a> {
    /// Which panel of the list.
    pub(crate) panel: usize,
    /// The first of the rows, at most [`BLOCK_ROWS`] where they have units.
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// What each of them is yet to be multiplied by; none for inputs of floats.
    pub(crate) units: &'a [f32],
    /// Sums of all panels of the list, `[panels][rows]`. What the closure writes stays until the list is done.
    pub(crate) sums: &'a mut [Lanes],
}

/// Takes finished rows, panel after panel in the order of the list.
pub(crate) type Done<'a> = &'a mut dyn FnMut(Finished<'_>);

/// Multiplies panels, at most [`panels_at_once`], with `rows` rows of one input, and hands the rows of the products to
/// `done`, some at a time and each once. For any row, the panels are handed out in the order of the list. With quantised
/// activations all panels are quantised, in one type.
pub(crate) fn multiply(
    isa: Isa,
    list: &[Panel<'_>],
    input: Input<'_>,
    rows: usize,
    scratch: &mut Scratch,
    done: Done<'_>,
) {
    assert!(list.len() <= panels_at_once(rows));
    match input {
        Input::Quantised(x) => {
            let dtypes = list.iter().map(|panel| panel.weight.layout.dtype());
            let dtype = dtypes.reduce(|a, b| if a == b { a } else { None }).flatten();
            let dtype = dtype.expect("quantised activations meet weights of one quantised type");
            with_format!(dtype, F => integer::<F>(isa, list, x, rows, scratch, done), else unreachable!("{dtype} was packed without a format"));
        }
        Input::Floats(x) => {
            for (panel, of) in list.iter().enumerate() {
                floats(isa, *of, panel * rows, x, rows, scratch);
                done(Finished { panel, first: 0, count: rows, units: &[], sums: &mut scratch.acc });
            }
        }
    }
}

/// Multiplies panels of one type.
fn integer<F: Format>(isa: Isa, list: &[Panel<'_>], x: &Quantised, rows: usize, scratch: &mut Scratch, done: Done<'_>) {
    let Scratch { tile, acc, .. } = scratch;
    let cols = x.cols();
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(isa) = isa
        && rows <= avx512::DIRECT_ROWS
    {
        for (panel, of) in list.iter().enumerate() {
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let block = x.block(first, rows);
                avx512::direct::<F>(isa, of.data(), &block, &mut acc[panel * rows + first..][..block.rows]);
                done(Finished { panel, first, count: block.rows, units: block.units(), sums: acc });
            }
        }
        return;
    }
    let piece_bytes = PIECE / F::BLOCK * F::STRIDE;
    acc[..list.len() * rows].fill([0.0; PANEL]);
    for (piece, from) in (0..cols).step_by(PIECE).enumerate() {
        let cols_here = PIECE.min(cols - from);
        for (panel, of) in list.iter().enumerate() {
            let data = of.data();
            let blocks = &data[piece * piece_bytes..data.len().min((piece + 1) * piece_bytes)];
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(isa) => avx512::unpack::<F>(isa, blocks, tile),
                _ => tile::unpack::<F>(isa, blocks, tile),
            }
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let block = x.block(first, rows);
                let sums = &mut acc[panel * rows + first..][..block.rows];
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(isa) => avx512::multiply::<F>(isa, tile, from, cols_here, &block, sums),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(isa) => avx2::multiply::<F>(isa, tile, from, cols_here, &block, sums),
                    _ => tile::multiply::<F>(isa, tile, from, cols_here, &block, sums),
                }
                if from + cols_here == cols {
                    done(Finished { panel, first, count: block.rows, units: block.units(), sums: acc });
                }
            }
        }
    }
}

/// Multiplies a panel with rows of floats; its sums lie from `sums` on.
fn floats(isa: Isa, panel: Panel<'_>, sums: usize, x: &[f32], rows: usize, scratch: &mut Scratch) {
    let weight = panel.weight;
    let mine = sums..sums + rows;
    scratch.acc[mine.clone()].fill([0.0; PANEL]);
    for at in (0..weight.cols).step_by(FLOAT_TILE_COLS) {
        let cols = FLOAT_TILE_COLS.min(weight.cols - at);
        float_tile(isa, panel, (at, cols), scratch);
        let floats = &scratch.tile.floats[..cols];
        let part = |row: usize| &x[row * weight.cols + at..][..cols];
        let (blocks, rest) = scratch.acc[mine.clone()].as_chunks_mut::<8>();
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
fn float_tile(isa: Isa, panel: Panel<'_>, (at, cols): (usize, usize), scratch: &mut Scratch) {
    match &panel.weight.layout {
        Layout::Quant { dtype, .. } => {
            let panel = panel.data();
            with_format!(*dtype, F => {
                // Blocks that hold these columns: FLOAT_TILE_COLS is a multiple of every block.
                let blocks = &panel[at / F::BLOCK * F::STRIDE..(at + cols) / F::BLOCK * F::STRIDE];
                tile::unpack::<F>(isa, blocks, &mut scratch.tile);
                tile::to_floats::<F>(isa, &mut scratch.tile, cols);
            }, else ());
        }
        Layout::Float { dtype, .. } => {
            let line = panel.data().len() / panel.weight.cols;
            tile::read_floats(isa, *dtype, &panel.data()[at * line..(at + cols) * line], &mut scratch.tile.floats);
        }
        Layout::Raw { weight } => raw_tile(weight, panel.index, (at, cols), scratch),
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
