//! Blocks against golden vectors from an independent implementation, bit for bit: see `make_golden.py`.

use std::{collections::HashMap, path::PathBuf};

use tensor::{
    DType,
    blocks::{dequantize, quantize},
};

/// Types that `quantize` covers and `make_golden.py` has vectors for.
const ENCODED: [DType; 7] = [DType::F16, DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0];

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn weight_types() -> impl Iterator<Item = DType> {
    DType::all().filter(|dtype| dtype.is_weight())
}

/// (elements, bytes) of a block; 32 numbers for the plain types, as in the script.
fn geometry(dtype: DType) -> (usize, usize) {
    if dtype.is_block() { (dtype.block_len(), dtype.block_bytes()) } else { (32, 32 * dtype.block_bytes()) }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn decoded(dtype: DType, src: &[u8]) -> Vec<f32> {
    let (len, bytes) = geometry(dtype);
    let mut out = vec![f32::NAN; src.len() / bytes * len];
    dequantize(dtype, src, &mut out).unwrap();
    out
}

fn assert_same(dtype: DType, got: &[f32], want: &[f32], same: impl Fn(f32, f32) -> bool) {
    assert_eq!(got.len(), want.len(), "{dtype}");
    let (block, _) = geometry(dtype);
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(same(got, want), "{dtype}: block {} element {}: {got:e}, not {want:e}", i / block, i % block);
    }
}

#[test]
fn every_weight_type_decodes_to_the_golden_bits() {
    for dtype in weight_types() {
        let file = golden(&format!("{dtype}.decode"));
        let count = |at| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let (finite, rest) = (count(0), count(4));
        let (len, bytes) = geometry(dtype);
        let (blocks, values) = file[8..].split_at((finite + rest) * bytes);
        let (finite_blocks, rest_blocks) = blocks.split_at(finite * bytes);
        let (finite_values, rest_values) = values.split_at(finite * len * 4);
        assert!(finite >= 10 && (rest >= 3 || dtype == DType::MXFP4), "{dtype}: too few golden blocks");

        let got = decoded(dtype, finite_blocks);
        assert_same(dtype, &got, &f32s(finite_values), |got, want| got.to_bits() == want.to_bits());
        // Which NaN it is may differ from processor to processor; that it is one may not.
        let got = decoded(dtype, rest_blocks);
        assert_same(dtype, &got, &f32s(rest_values), |got, want| {
            got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
        });
    }
}

#[test]
fn the_covered_types_quantise_to_the_golden_bytes() {
    let source = f32s(&golden("source.f32"));
    for dtype in ENCODED {
        let want = golden(&format!("{dtype}.encode"));
        let mut got = vec![0xa5; dtype.row_bytes(source.len()).unwrap()];
        quantize(dtype, &source, &mut got).unwrap();
        let bytes = geometry(dtype).1;
        for (i, (got, want)) in got.chunks(bytes).zip(want.chunks(bytes)).enumerate() {
            assert_eq!(got, want, "{dtype}: block {i} of {:?}", &source[32 * i..32 * i + 32]);
        }
        assert_eq!(got.len(), want.len(), "{dtype}");
    }
}

/// The first outputs of splitmix64 from seed 0.
fn mix() -> impl Iterator<Item = u64> {
    (1u64..).map(|i| {
        let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

fn checksum(words: impl Iterator<Item = u32>) -> u64 {
    words.zip(mix()).fold(0, |sum, (word, weight)| sum.wrapping_add(u64::from(word).wrapping_mul(weight | 1)))
}

fn sums() -> HashMap<String, u64> {
    let text = String::from_utf8(golden("sums.txt")).unwrap();
    let line = |line: &str| {
        let (name, sum) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), u64::from_str_radix(sum, 16).unwrap())
    };
    text.lines().map(line).collect()
}

/// 4096 blocks of random bytes: every entry of every codebook is met many times.
#[test]
fn large_random_content_decodes_to_the_golden_checksum() {
    const BLOCKS: usize = 4096;
    let sums = sums();
    for dtype in weight_types() {
        let bytes: Vec<u8> = mix().flat_map(u64::to_le_bytes).take(BLOCKS * geometry(dtype).1).collect();
        let values = decoded(dtype, &bytes);
        let got = checksum(values.iter().map(|v| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() }));
        assert_eq!(Some(&got), sums.get(&format!("decode {dtype}")), "{dtype}");
    }
}

#[test]
fn large_random_content_quantises_to_the_golden_checksum() {
    const LEN: usize = 1 << 18;
    let sums = sums();
    let ramp: Vec<f32> = (mix().take(LEN).enumerate())
        .map(|(i, word)| ((word >> 40) as f32 - 8_388_608.0) * 2f32.powi((i / 32 % 16) as i32 - 28))
        .collect();
    for dtype in ENCODED {
        let mut bytes = vec![0; dtype.row_bytes(LEN).unwrap()];
        quantize(dtype, &ramp, &mut bytes).unwrap();
        let got = checksum(bytes.iter().map(|&b| u32::from(b)));
        assert_eq!(Some(&got), sums.get(&format!("encode {dtype}")), "{dtype}");
    }
}
