//! Rounding of activations.

use std::arch::x86_64::*;

use crate::{
    activations::{GROUP, Rounded, Units},
    isa::Avx512,
};

/// As the plain loops of `activations`, to the bit.
#[inline]
pub(crate) fn round_group(_isa: Avx512, x: &[f32; GROUP], units: &Units, out: &mut Rounded) {
    // SAFETY: holding an `Avx512` proves the instruction set.
    unsafe { round(x, units, out) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn round(x: &[f32; GROUP], units: &Units, out: &mut Rounded) {
    // SAFETY: 32 floats are read.
    let (low, high) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))) };
    out.largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    let inverse;
    (out.shift, inverse) = units.of_group(out.largest);
    let inverse = _mm512_set1_ps(inverse);
    // Conversion rounds to nearest, ties to even.
    let bytes = |x: __m512| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
    let q = _mm256_set_m128i(bytes(high), bytes(low));
    // SAFETY: 32 bytes are written.
    unsafe { _mm256_storeu_si256(out.q.as_mut_ptr().cast(), q) };
    // Sums of four bytes in each of 8 lanes, then of the four lanes of each half.
    let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b01_00_11_10>(sums));
    let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b10_11_00_01>(sums));
    out.sums = [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)];
}
