//! What becomes of finished sums of products: units, biases, gates, and their place in the output.

use std::marker::PhantomData;

use graph::Activation;
use tensor::AlignedBuf;

#[cfg(target_arch = "x86_64")]
use crate::avx512::output as avx512;
use crate::{
    isa::{Isa, for_isa},
    math,
    pack::PANEL,
    tile::Lanes,
};

/// Some columns of a matrix of `f32`, at most 16: what one thread writes of it.
pub(crate) struct Columns<'a> {
    start: *mut f32,
    width: usize,
    rows: usize,
    count: usize,
    matrix: PhantomData<&'a mut f32>,
}

impl<'a> Columns<'a> {
    /// Columns `first..first + count` of the first `rows` rows of a matrix `width` wide.
    ///
    /// # Safety
    /// Nothing else refers to these elements while the columns live.
    pub(crate) unsafe fn new(matrix: &'a AlignedBuf, rows: usize, width: usize, first: usize, count: usize) -> Self {
        assert!(count <= PANEL && first + count <= width && rows * width * 4 <= matrix.len());
        Columns { start: matrix.raw().cast::<f32>().wrapping_add(first), width, rows, count, matrix: PhantomData }
    }

    /// Writes a row.
    #[inline(always)]
    fn put(&mut self, row: usize, value: &Lanes) {
        assert!(row < self.rows);
        let start = self.start.wrapping_add(row * self.width);
        // SAFETY: inside the buffer by this assertion and that of `new`, where was promised that nothing else refers to
        // these elements; aligned since the buffer is.
        unsafe {
            if self.count == PANEL {
                start.cast::<Lanes>().write(*value); // one store
            } else {
                start.copy_from_nonoverlapping(value.as_ptr(), self.count);
            }
        }
    }
}

/// Multiplies sums with their units (none: ones) and adds the bias.
pub(crate) fn finish(isa: Isa, sums: &mut [Lanes], units: &[f32], bias: &Lanes) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) if !units.is_empty() => avx512::finish(isa, sums, units, bias),
        _ => {
            for (row, sum) in sums.iter_mut().enumerate() {
                let unit = units.get(row).copied().unwrap_or(1.0);
                sum.iter_mut().zip(bias).for_each(|(x, bias)| *x = *x * unit + bias);
            }
        }
    }
}

for_isa! {
    /// Writes finished sums as rows from `first` on.
    fn write(sums: &[Lanes], first: usize, out: &mut Columns<'_>) = write_body;
    /// As [`write`], times `activation(gates)`, which takes the place of the gates.
    fn write_gated(kind: Activation, gates: &mut [Lanes], sums: &[Lanes], first: usize, out: &mut Columns<'_>)
        = write_gated_body;
}

#[inline(always)]
fn write_body(sums: &[Lanes], first: usize, out: &mut Columns<'_>) {
    for (row, sum) in sums.iter().enumerate() {
        out.put(first + row, sum);
    }
}

#[inline(always)]
fn write_gated_body(kind: Activation, gates: &mut [Lanes], sums: &[Lanes], first: usize, out: &mut Columns<'_>) {
    let gates_flat = gates.as_flattened_mut();
    math::activate(kind, gates_flat);
    gates_flat.iter_mut().zip(sums.as_flattened()).for_each(|(gate, x)| *gate *= x);
    write_body(gates, first, out);
}
