//! Finished sums: units and biases.

use std::arch::x86_64::*;

use crate::{isa::Avx512, tile::Lanes};

/// As the plain loops of `output`, to the bit. (Those the compiler would vectorise across rows, with gathers.)
pub(crate) fn finish(_isa: Avx512, sums: &mut [Lanes], units: &[f32], bias: &Lanes) {
    // SAFETY: holding an `Avx512` proves the instruction set.
    unsafe { finish_rows(sums, units, bias) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn finish_rows(sums: &mut [Lanes], units: &[f32], bias: &Lanes) {
    // SAFETY: a `Lanes` is 16 floats.
    let bias = unsafe { _mm512_loadu_ps(bias.as_ptr()) };
    for (sum, unit) in sums.iter_mut().zip(units) {
        // SAFETY: as above.
        unsafe {
            let product = _mm512_mul_ps(_mm512_loadu_ps(sum.as_ptr()), _mm512_set1_ps(*unit));
            _mm512_storeu_ps(sum.as_mut_ptr(), _mm512_add_ps(product, bias));
        }
    }
}
