//! Weights as they lie on the device: see `shaders/blocks.glsl`, which reads what is written here.
//!
//! A weight has four regions, one after another: the low bits of its elements, further bits, what every 32 elements have
//! of scales, and what every 256 have. Elements of a region lie in the order of rows, so that the loads of neighbouring
//! invocations join. No bit is added or lost; a region's share of a row is as long as in the file, but for the scales of
//! Q2_K, Q4_K and Q5_K (packed to 4 and 6 bits there, whole bytes here: 1.6 % more) and Q3_K.

use std::ops::Range;

use graph::{Arithmetic, Weight};
use tensor::DType;

/// How a weight lies on the device. The numbers are those of `shaders/blocks.glsl`.
#[allow(non_camel_case_types, reason = "the variants are the field's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Format {
    F32 = 0,
    F16 = 1,
    BF16 = 2,
    Q4_0 = 3,
    Q4_1 = 4,
    Q5_0 = 5,
    Q5_1 = 6,
    Q8_0 = 7,
    Q2_K = 8,
    Q3_K = 9,
    Q4_K = 10,
    Q5_K = 11,
    Q6_K = 12,
    IQ4_NL = 13,
    IQ4_XS = 14,
    MXFP4 = 15,
}

/// Bytes of the four regions for 32 elements, but the last for 256.
type Sizes = [usize; 4];

impl Format {
    /// The format of a type. Types without one of their own are unpacked: to halves, or to floats where products are to
    /// be exact.
    pub(crate) fn of(dtype: DType, arithmetic: Arithmetic) -> Format {
        match dtype {
            DType::F32 => Format::F32,
            DType::F16 => Format::F16,
            DType::BF16 => Format::BF16,
            DType::Q4_0 => Format::Q4_0,
            DType::Q4_1 => Format::Q4_1,
            DType::Q5_0 => Format::Q5_0,
            DType::Q5_1 => Format::Q5_1,
            DType::Q8_0 => Format::Q8_0,
            DType::Q2_K => Format::Q2_K,
            DType::Q3_K => Format::Q3_K,
            DType::Q4_K => Format::Q4_K,
            DType::Q5_K => Format::Q5_K,
            DType::Q6_K => Format::Q6_K,
            DType::IQ4_NL => Format::IQ4_NL,
            DType::IQ4_XS => Format::IQ4_XS,
            DType::MXFP4 => Format::MXFP4,
            _ if arithmetic == Arithmetic::F32 => Format::F32,
            _ => Format::F16,
        }
    }

    /// Whether it holds all that elements of this type are.
    pub(crate) fn is_of(self, dtype: DType) -> bool {
        Format::of(dtype, Arithmetic::Fast) == Format::of(dtype, Arithmetic::F32)
            && Format::of(dtype, Arithmetic::Fast) == self
    }

    /// Whether elements are floats, not quants under scales.
    pub(crate) fn is_float(self) -> bool {
        self <= Format::BF16
    }

    /// Bytes of a row of so many elements in each region.
    fn row_bytes(self, cols: usize) -> Sizes {
        let (sizes, blocks) = (self.sizes(), cols.div_ceil(32));
        [sizes[0] * blocks, sizes[1] * blocks, sizes[2] * blocks, sizes[3] * (blocks / 8)]
    }

    /// Bytes of a matrix, as good as.
    pub(crate) fn bytes(self, rows: u64, cols: u32) -> u64 {
        rows * self.row_bytes(cols as usize).iter().sum::<usize>() as u64
    }

    fn sizes(self) -> Sizes {
        match self {
            Format::F32 => [128, 0, 0, 0],
            Format::F16 | Format::BF16 => [64, 0, 0, 0],
            Format::Q4_0 | Format::IQ4_NL => [16, 0, 2, 0],
            Format::Q4_1 => [16, 0, 4, 0],
            Format::Q5_0 => [16, 4, 2, 0],
            Format::Q5_1 => [16, 4, 4, 0],
            Format::Q8_0 => [32, 0, 2, 0],
            Format::Q2_K => [8, 0, 2, 4],
            Format::Q3_K => [8, 4, 2, 2],
            Format::Q4_K => [16, 0, 2, 4],
            Format::Q5_K => [16, 4, 2, 4],
            Format::Q6_K => [16, 8, 2, 2],
            Format::IQ4_XS => [16, 0, 1, 2],
            Format::MXFP4 => [16, 0, 1, 0],
        }
    }
}

/// A weight's place on the device, relative to its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Bytes of a row in each region.
    row_bytes: Sizes,
    /// Where each region begins.
    starts: Sizes,
    /// Bytes of all regions.
    pub(crate) bytes: usize,
}

impl Layout {
    /// The layout of a weight.
    pub(crate) fn of(weight: &Weight, arithmetic: Arithmetic) -> Layout {
        let format = Format::of(weight.dtype, arithmetic);
        let row_bytes = format.row_bytes(weight.cols);
        let mut starts = [0; 4];
        let mut end = 0;
        for (start, row_bytes) in starts.iter_mut().zip(row_bytes) {
            *start = end;
            end += (row_bytes * weight.rows).next_multiple_of(16);
        }
        Layout { format, rows: weight.rows, cols: weight.cols, row_bytes, starts, bytes: end }
    }

    /// Bytes of a row in all regions.
    pub(crate) fn row_total(&self) -> usize {
        self.row_bytes.iter().sum()
    }

    /// Rows `rows` in memory that holds nothing else, region after region, and where each part belongs in the weight:
    /// (from, to, bytes).
    pub(crate) fn parts(&self, rows: &Range<usize>) -> [(usize, usize, usize); 4] {
        let mut from = 0;
        std::array::from_fn(|region| {
            let bytes = self.row_bytes[region] * rows.len();
            let part = (from, self.starts[region] + self.row_bytes[region] * rows.start, bytes);
            from += bytes;
            part
        })
    }

    /// Packs rows into `out`, [`Layout::row_total`] bytes a row, with `threads` threads.
    pub(crate) fn pack(&self, weight: &Weight, rows: Range<usize>, out: &mut [u8], threads: usize) {
        let parts = self.parts(&rows).map(|(_, _, bytes)| bytes);
        let (q, rest) = out.split_at_mut(parts[0]);
        let (h, rest) = rest.split_at_mut(parts[1]);
        let (s, rest) = rest.split_at_mut(parts[2]);
        let d = &mut rest[..parts[3]];
        let each = rows.len().div_ceil(threads.max(1)).max(1);
        let chunk = |bytes: usize| (bytes * each).max(1);
        std::thread::scope(|scope| {
            let regions = q
                .chunks_mut(chunk(self.row_bytes[0]))
                .zip(padded(h.chunks_mut(chunk(self.row_bytes[1]))))
                .zip(padded(s.chunks_mut(chunk(self.row_bytes[2]))))
                .zip(padded(d.chunks_mut(chunk(self.row_bytes[3]))));
            for (part, (((q, h), s), d)) in regions.enumerate() {
                let first = rows.start + part * each;
                let rows = first..(first + each).min(rows.end);
                let work = move || self.pack_rows(weight, rows, [q, h, s, d]);
                if each >= 8 && threads > 1 {
                    scope.spawn(work);
                } else {
                    work();
                }
            }
        });
    }

    fn pack_rows(&self, weight: &Weight, rows: Range<usize>, regions: [&mut [u8]; 4]) {
        let [q, h, s, d] = regions;
        let mut values = vec![0.0; if self.format.is_float() { weight.cols } else { 0 }];
        for (i, row) in rows.enumerate() {
            let mut part = [&mut *q, &mut *h, &mut *s, &mut *d]
                .into_iter()
                .zip(self.row_bytes)
                .map(|(region, bytes)| &mut region[i * bytes..(i + 1) * bytes]);
            let mut next = || part.next().expect("there are four regions");
            let (q, h, s, d) = (next(), next(), next(), next());
            if self.format.is_float() {
                pack_floats(self.format, weight, row, &mut values, q);
            } else {
                pack_blocks(self.format, weight, row, [q, h, s, d]);
            }
        }
    }
}

/// The chunks, and empty ones after them: a region that the format does not have.
fn padded<'a>(chunks: impl Iterator<Item = &'a mut [u8]>) -> impl Iterator<Item = &'a mut [u8]> {
    chunks.chain(std::iter::repeat_with(|| &mut [][..]))
}

/// A row of floats; what is not in the row's columns stays zero.
fn pack_floats(format: Format, weight: &Weight, row: usize, values: &mut [f32], out: &mut [u8]) {
    out.fill(0);
    let source = weight.row(row);
    let same = matches!(
        (format, weight.dtype),
        (Format::F32, DType::F32) | (Format::F16, DType::F16) | (Format::BF16, DType::BF16)
    );
    if same {
        out[..source.len()].copy_from_slice(source);
        return;
    }
    weight.decode_row(row, values);
    match format {
        Format::F32 => {
            out.chunks_exact_mut(4).zip(values).for_each(|(out, v)| out.copy_from_slice(&v.to_le_bytes()));
        }
        _ => {
            let half = |v: f32| half::f16::from_f32(v).to_le_bytes();
            out.chunks_exact_mut(2).zip(values).for_each(|(out, v)| out.copy_from_slice(&half(*v)));
        }
    }
}

/// A row of quantised blocks, as ggml lays them out (`tensor::blocks` has the same layouts with words to them).
fn pack_blocks(format: Format, weight: &Weight, row: usize, regions: [&mut [u8]; 4]) {
    let sizes = format.sizes();
    let dtype = weight.dtype;
    let per_block = dtype.block_len() / 32;
    let [q, h, s, d] = regions;
    for (i, block) in weight.row(row).chunks_exact(dtype.block_bytes()).enumerate() {
        let of = |region: usize| i * per_block * sizes[region]..(i + 1) * per_block * sizes[region];
        let (q, h, s) = (&mut q[of(0)], &mut h[of(1)], &mut s[of(2)]);
        let d = if per_block == 8 { &mut d[i * sizes[3]..(i + 1) * sizes[3]] } else { &mut [][..] };
        pack_block(format, block, q, h, s, d);
    }
}

fn pack_block(format: Format, block: &[u8], q: &mut [u8], h: &mut [u8], s: &mut [u8], d: &mut [u8]) {
    match format {
        // Scales in front, and quants in the order wanted: byte i holds elements i and 16 + i.
        Format::Q4_0 | Format::IQ4_NL | Format::Q4_1 | Format::Q8_0 | Format::MXFP4 => {
            s.copy_from_slice(&block[..s.len()]);
            q.copy_from_slice(&block[s.len()..]);
        }
        Format::Q5_0 | Format::Q5_1 => {
            let (scales, rest) = block.split_at(s.len());
            let (bits, quants) = rest.split_at(4);
            s.copy_from_slice(scales);
            q.copy_from_slice(quants);
            let fifth = u32::from_le_bytes(bits.try_into().expect("four bytes"));
            h.copy_from_slice(&spread(1, |e| (fifth >> e) as u8)[..4]);
        }
        Format::Q2_K => {
            s.copy_from_slice(&block[..16]);
            d.copy_from_slice(&block[80..84]);
            let quants = &block[16..80];
            for (g, q) in q.chunks_exact_mut(8).enumerate() {
                q.copy_from_slice(&spread(2, |e| two_bits(quants, g, e)));
            }
        }
        Format::Q3_K => {
            let (mask, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
            d.copy_from_slice(&block[108..110]);
            for (g, (q, h)) in q.chunks_exact_mut(8).zip(h.chunks_exact_mut(4)).enumerate() {
                q.copy_from_slice(&spread(2, |e| two_bits(quants, g, e)));
                h.copy_from_slice(&spread(1, |e| mask[e] >> g)[..4]);
            }
            for (i, s) in s.iter_mut().enumerate() {
                let low = (scales[i % 8] >> (4 * (i / 8))) & 15;
                let high = (scales[8 + i % 4] >> (2 * (i / 4))) & 3;
                *s = (low | high << 4).wrapping_sub(32);
            }
        }
        Format::Q4_K | Format::Q5_K => {
            d.copy_from_slice(&block[..4]);
            let (scales, rest) = block[4..].split_at(12);
            let (fifth, quants) = rest.split_at(rest.len() - 128);
            for (g, s) in s.chunks_exact_mut(2).enumerate() {
                s.copy_from_slice(&scale_and_min(scales, g));
            }
            for (g, q) in q.chunks_exact_mut(16).enumerate() {
                let source = &quants[g / 2 * 32..][..32];
                nibbles(q, |e| source[e] >> (4 * (g % 2)));
            }
            for (g, h) in h.chunks_exact_mut(4).enumerate() {
                h.copy_from_slice(&spread(1, |e| fifth[e] >> g)[..4]);
            }
        }
        Format::Q6_K => {
            let (low, high) = (&block[..128], &block[128..192]);
            s.copy_from_slice(&block[192..208]);
            d.copy_from_slice(&block[208..210]);
            for (g, (q, h)) in q.chunks_exact_mut(16).zip(h.chunks_exact_mut(8)).enumerate() {
                // Group g of a half block: low bits of groups 0 and 2 share 32 bytes, those of 1 and 3 the next.
                let (half, group) = (g / 4, g % 4);
                let low = &low[half * 64 + group % 2 * 32..][..32];
                let high = &high[half * 32..][..32];
                nibbles(q, |e| low[e] >> (4 * (group / 2)));
                h.copy_from_slice(&spread(2, |e| high[e] >> (2 * group)));
            }
        }
        Format::IQ4_XS => {
            d.copy_from_slice(&block[..2]);
            let high = u16::from_le_bytes([block[2], block[3]]);
            q.copy_from_slice(&block[8..]);
            for (g, s) in s.iter_mut().enumerate() {
                let low = (block[4 + g / 2] >> (4 * (g % 2))) & 15;
                *s = (low | (((high >> (2 * g)) & 3) as u8) << 4).wrapping_sub(32);
            }
        }
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("floats are no blocks"),
    }
}

/// Low four bits of element `e`, two to a byte: elements i and 16 + i.
fn nibbles(q: &mut [u8], element: impl Fn(usize) -> u8) {
    for (i, q) in q.iter_mut().enumerate() {
        *q = element(i) & 15 | (element(16 + i) & 15) << 4;
    }
}

/// The two bits of element `e` of group `g` of Q2_K and Q3_K: four groups share 32 bytes.
fn two_bits(quants: &[u8], g: usize, e: usize) -> u8 {
    quants[g / 4 * 32 + e] >> (2 * (g % 4))
}

/// One or two bits of each of 32 elements, so that a shift brings those of four consecutive elements to the low ends of
/// the four bytes of a word: element `4 j + k` lies in byte k at bit j, or of two bits in word `j / 4` at `2 (j % 4)`.
fn spread(bits: usize, element: impl Fn(usize) -> u8) -> [u8; 8] {
    let mut words = [0u8; 8];
    for e in 0..32 {
        let (j, k) = (e / 4, e % 4);
        if bits == 1 {
            words[k] |= (element(e) & 1) << j;
        } else {
            words[j / 4 * 4 + k] |= (element(e) & 3) << (2 * (j % 4));
        }
    }
    words
}

/// The 6-bit scale and minimum of group `g` of Q4_K and Q5_K.
fn scale_and_min(packed: &[u8], g: usize) -> [u8; 2] {
    if g < 4 {
        [packed[g] & 63, packed[4 + g] & 63]
    } else {
        let i = g - 4;
        [packed[8 + i] & 15 | (packed[i] >> 2) & 48, packed[8 + i] >> 4 | (packed[4 + i] >> 2) & 48]
    }
}
