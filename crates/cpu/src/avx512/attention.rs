//! Attention over one head of a block of the cache: 32 tokens.
//!
//! Elements of the cache are widened in registers, once for up to twelve queries. Each query adds the same terms in the
//! same order whatever the number of queries beside it: its scores over the elements of the head, its values over the
//! tokens, both ascending, each product fused with its sum.

#![allow(clippy::needless_range_loop, reason = "several arrays run along; their lengths are constants")]

use std::{arch::x86_64::*, ops::Range};

use graph::{KV_BLOCK_TOKENS, KvType};
use half::f16;

use crate::{attention::Scores, isa::Avx512, kv::Bytes};

/// An element type of the cache.
pub(crate) trait Element: Copy {
    /// The 16 elements at `at` under `mask`, zero elsewhere.
    ///
    /// # Safety
    /// This processor has AVX-512, and the elements under the mask can be read.
    unsafe fn load(at: *const Self, mask: __mmask16) -> __m512;
}

impl Element for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn load(at: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_maskz_loadu_ps(mask, at) }
    }
}

impl Element for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn load(at: *const f16, mask: __mmask16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())) }
    }
}

/// A head of a block, read in registers of 16.
pub(crate) trait Lines: Copy {
    /// Elements of the keys, and of the values.
    fn lens(self) -> [usize; 2];

    /// Element `d` of all keys.
    ///
    /// # Safety
    /// This processor has AVX-512, and there is such an element.
    unsafe fn keys(self, d: usize) -> [__m512; 2];

    /// The 32 elements from `at` on, a multiple of 32, of the value of token `t`, those of them that `masks` has.
    ///
    /// # Safety
    /// This processor has AVX-512, the elements under the masks are there, and values have `dim` elements.
    unsafe fn values(self, dim: usize, t: usize, at: usize, masks: [__mmask16; 2]) -> [__m512; 2];
}

impl<E: Element> Lines for (&[E], &[E]) {
    fn lens(self) -> [usize; 2] {
        [self.0.len(), self.1.len()]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn keys(self, d: usize) -> [__m512; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let line = self.0.as_ptr().add(d * KV_BLOCK_TOKENS);
            [E::load(line, !0), E::load(line.add(16), !0)]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn values(self, dim: usize, t: usize, at: usize, masks: [__mmask16; 2]) -> [__m512; 2] {
        let line = self.1.as_ptr().wrapping_add(t * dim + at);
        // SAFETY: as the caller promises.
        unsafe { [E::load(line, masks[0]), E::load(line.wrapping_add(16), masks[1])] }
    }
}

impl Lines for Bytes<'_> {
    fn lens(self) -> [usize; 2] {
        let groups = (self.keys.len() / KV_BLOCK_TOKENS).div_ceil(KvType::GROUP) * KV_BLOCK_TOKENS;
        assert!(self.key_scales.len() == groups && self.value_scales.len() == groups);
        [self.keys.len(), self.values.len()]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn keys(self, d: usize) -> [__m512; 2] {
        // SAFETY: as the caller promises; `lens` checked that every group has its scales.
        unsafe {
            let line = self.keys.as_ptr().add(d * KV_BLOCK_TOKENS);
            let scales = self.key_scales.as_ptr().add(d / KvType::GROUP * KV_BLOCK_TOKENS);
            [scaled(line, f16::load(scales, !0), !0), scaled(line.add(16), f16::load(scales.add(16), !0), !0)]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn values(self, dim: usize, t: usize, at: usize, masks: [__mmask16; 2]) -> [__m512; 2] {
        let line = self.values.as_ptr().wrapping_add(t * dim + at);
        // SAFETY: as the caller promises; `lens` checked that every group has its scale.
        unsafe {
            let group = t * dim.div_ceil(KvType::GROUP) + at / KvType::GROUP;
            let scale =
                _mm512_cvtph_ps(_mm256_set1_epi16(self.value_scales.get_unchecked(group).to_bits().cast_signed()));
            [scaled(line, scale, masks[0]), scaled(line.wrapping_add(16), scale, masks[1])]
        }
    }
}

/// 16 bytes times their scales.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scaled(at: *const i8, scales: __m512, mask: __mmask16) -> __m512 {
    // SAFETY: as the caller promises, the bytes under the mask can be read.
    let bytes = unsafe { _mm_maskz_loadu_epi8(mask, at) };
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scales)
}

/// Calls `$f::<L, N>` for as many of the `$count` queries at hand as one call takes; evaluates to how many.
macro_rules! by_twelves {
    ($count:expr, $f:ident($($arg:expr),*)) => {
        // SAFETY: holding an `Avx512` proves the instruction set; the caller of the macro checked the lengths.
        unsafe {
            match $count {
                12.. => { $f::<L, 12>($($arg),*); 12 }
                8.. => { $f::<L, 8>($($arg),*); 8 }
                4.. => { $f::<L, 4>($($arg),*); 4 }
                2.. => { $f::<L, 2>($($arg),*); 2 }
                _ => { $f::<L, 1>($($arg),*); 1 }
            }
        }
    };
}

/// Scores of queries (`[queries][dim]`) with the keys of a head (`[dim][32]`). `cpu-attention-*-avx512-scores`.
pub(crate) fn scores<L: Lines>(_isa: Avx512, queries: &[f32], dim: usize, head: L, scores: &mut [Scores]) {
    assert!(queries.len() == scores.len() * dim && head.lens()[0] == dim * KV_BLOCK_TOKENS);
    let mut query = 0;
    while query < scores.len() {
        let (queries, scores) = (&queries[query * dim..], &mut scores[query..]);
        query += by_twelves!(scores.len(), scores_of(queries, dim, head, scores));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scores_of<L: Lines, const N: usize>(queries: &[f32], dim: usize, head: L, scores: &mut [Scores]) {
    let mut acc = [[_mm512_setzero_ps(); 2]; N];
    for d in 0..dim {
        // SAFETY: the caller checked that there are `N` queries of `dim` elements, and `dim` lines of 32 keys.
        unsafe {
            let keys = head.keys(d);
            for i in 0..N {
                let q = _mm512_set1_ps(*queries.as_ptr().add(i * dim + d));
                for half in 0..2 {
                    acc[i][half] = _mm512_fmadd_ps(q, keys[half], acc[i][half]);
                }
            }
        }
    }
    for i in 0..N {
        for half in 0..2 {
            // SAFETY: a `Scores` is 32 floats, and there are `N`.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr().add(i).cast::<f32>().add(half * 16), acc[i][half]) };
        }
    }
}

/// Adds the values of a head (`[32][dim]`), by the weights of each query for the tokens it sees, to the sums of the
/// queries (`[queries][dim]`). Values out of sight are not read: they may belong to a sequence that is gone, and zero
/// times infinity is no number. `cpu-attention-*-avx512-weigh`.
pub(crate) fn weigh<L: Lines>(
    _isa: Avx512,
    weights: &[Scores],
    visible: &[Range<usize>],
    head: L,
    dim: usize,
    sums: &mut [f32],
) {
    assert!(weights.len() == visible.len() && sums.len() == weights.len() * dim);
    assert!(head.lens()[1] == KV_BLOCK_TOKENS * dim && visible.iter().all(|seen| seen.end <= KV_BLOCK_TOKENS));
    let mut query = 0;
    while query < weights.len() {
        let seen = visible[query].clone();
        let alike = visible[query..].iter().take_while(|other| **other == seen).count();
        if seen.is_empty() {
            query += alike;
            continue;
        }
        let (weights, sums) = (&weights[query..], &mut sums[query * dim..]);
        query += by_twelves!(alike, weigh_of(weights, seen, head, dim, sums));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn weigh_of<L: Lines, const N: usize>(
    weights: &[Scores],
    seen: Range<usize>,
    head: L,
    dim: usize,
    sums: &mut [f32],
) {
    for at in (0..dim).step_by(32) {
        let left = (dim - at).min(32) as u32;
        let whole = u32::MAX >> (32 - left);
        let masks = [whole as __mmask16, (whole >> 16) as __mmask16];
        // SAFETY: the caller checked that there are `N` queries with sums of `dim` elements and 32 lines of `dim` values,
        // all of which `seen` lies in; the masks end with the line.
        unsafe {
            let place = |i: usize, half: usize| sums.as_ptr().wrapping_add(i * dim + at + half * 16).cast_mut();
            let mut acc = [[_mm512_setzero_ps(); 2]; N];
            for i in 0..N {
                for half in 0..2 {
                    acc[i][half] = _mm512_maskz_loadu_ps(masks[half], place(i, half));
                }
            }
            for t in seen.clone() {
                let values = head.values(dim, t, at, masks);
                for i in 0..N {
                    let weight = _mm512_set1_ps(*weights.get_unchecked(i).get_unchecked(t));
                    for half in 0..2 {
                        acc[i][half] = _mm512_fmadd_ps(weight, values[half], acc[i][half]);
                    }
                }
            }
            for i in 0..N {
                for half in 0..2 {
                    _mm512_mask_storeu_ps(place(i, half), masks[half], acc[i][half]);
                }
            }
        }
    }
}
