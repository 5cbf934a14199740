//! Quantisers: what they promise of the error, and what they do with weights that are odd or broken.

use tensor::{
    DType,
    blocks::{BlockError, dequantize, quantize},
    encode::{TYPES, encode},
};

fn block_types() -> impl Iterator<Item = DType> {
    TYPES.into_iter().filter(|dtype| dtype.is_block())
}

/// Normal numbers, near enough: twelve uniform ones added up (xorshift64).
fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn pack(dtype: DType, values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut packed = vec![0; dtype.row_bytes(values.len()).unwrap()];
    encode(dtype, values, importance, &mut packed).unwrap();
    let mut back = vec![f32::NAN; values.len()];
    dequantize(dtype, &packed, &mut back).unwrap();
    back
}

fn error(values: &[f32], back: &[f32]) -> f64 {
    values.iter().zip(back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

fn snr_db(values: &[f32], back: &[f32]) -> f64 {
    let power: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
    10.0 * (power / error(values, back)).log10()
}

/// What ggml's quantisers without an importance matrix leave of normal numbers, in dB, measured with
/// `scripts/quantiser_versus.py`; ours leave less error at the same size.
#[test]
fn normal_weights_keep_more_than_ggml_leaves_them() {
    let table = [
        (DType::Q4_0, 21.29),
        (DType::Q4_1, 22.13),
        (DType::Q5_0, 27.38),
        (DType::Q5_1, 28.43),
        (DType::Q8_0, 45.40),
        (DType::Q2_K, 10.55),
        (DType::Q3_K, 16.42),
        (DType::Q4_K, 22.92),
        (DType::Q5_K, 28.83),
        (DType::Q6_K, 35.00),
        (DType::IQ4_NL, 22.36),
        (DType::IQ4_XS, 22.29),
        (DType::MXFP4, 18.86),
    ];
    assert_eq!(table.len(), block_types().count());
    let values: Vec<f32> = normal(3, 256 * 512).iter().map(|x| x * 0.02).collect();
    for (dtype, theirs) in table {
        let ours = snr_db(&values, &pack(dtype, &values, None));
        assert!(ours >= theirs, "{dtype}: {ours:.3} dB, ggml {theirs} dB");
    }
}

#[test]
fn a_search_leaves_no_more_than_the_plain_definition() {
    for seed in 1..6 {
        let values = normal(seed, 256 * 40);
        for dtype in [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0] {
            let mut packed = vec![0; dtype.row_bytes(values.len()).unwrap()];
            quantize(dtype, &values, &mut packed).unwrap();
            let mut plain = vec![0.0; values.len()];
            dequantize(dtype, &packed, &mut plain).unwrap();
            let searched = pack(dtype, &values, None);
            assert!(error(&values, &searched) <= error(&values, &plain), "{dtype}");
        }
    }
}

/// Share of the largest weight that an error may have: about a step of the type.
fn step(dtype: DType) -> f32 {
    match dtype {
        DType::Q8_0 => 0.01,
        DType::Q5_0 | DType::Q5_1 | DType::Q5_K | DType::Q6_K => 0.1,
        DType::Q2_K => 0.6,
        DType::Q3_K => 0.5,
        _ => 0.25,
    }
}

/// The largest error of a block is bounded by its largest weight, whatever the block looks like.
#[test]
fn odd_blocks_stay_near() {
    let ramp = |i: usize| i as f32 / 255.0;
    let blocks: Vec<(&str, Vec<f32>)> = vec![
        ("zeros", vec![0.0; 256]),
        ("negative zeros", vec![-0.0; 256]),
        ("one value", vec![0.7; 256]),
        ("one negative value", vec![-0.7; 256]),
        ("ramp", (0..256).map(ramp).collect()),
        ("two values", (0..256).map(|i| if i % 2 == 0 { -1.0 } else { 1.0 }).collect()),
        ("far from zero", (0..256).map(|i| 5.0 + ramp(i)).collect()),
        ("an outlier", (0..256).map(|i| if i == 77 { 40.0 } else { ramp(i) }).collect()),
        ("all but one zero", (0..256).map(|i| if i == 200 { -3.0 } else { 0.0 }).collect()),
        ("halves apart", (0..256).map(|i| if i < 128 { 1e-3 } else { 10.0 }).collect()),
        ("small", (0..256).map(|i| ramp(i) * 1e-2).collect()),
        ("large", (0..256).map(|i| (ramp(i) - 0.5) * 1e4).collect()),
    ];
    for (name, values) in &blocks {
        let largest = values.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        for dtype in block_types() {
            let back = pack(dtype, values, None);
            for (x, y) in values.iter().zip(&back) {
                assert!((x - y).abs() <= step(dtype) * largest, "{dtype}, {name}: {x} became {y}");
            }
        }
    }
}

#[test]
fn weights_too_small_for_a_scale_become_zero() {
    let values: Vec<f32> = (0..256).map(f32::from_bits).collect();
    for dtype in block_types().filter(|dtype| *dtype != DType::MXFP4) {
        assert!(pack(dtype, &values, None).iter().all(|y| *y == 0.0), "{dtype}");
    }
    assert!(pack(DType::MXFP4, &values, None).iter().all(|y| y.abs() < 1e-30));
}

#[test]
fn broken_weights_are_named() {
    for dtype in block_types() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 256 * 40];
            values[256 * 30 + 5] = bad;
            let got = encode(dtype, &values, None, &mut vec![0; dtype.row_bytes(values.len()).unwrap()]);
            let first = 256 * 30;
            assert_eq!(got, Err(BlockError::OutOfRange { dtype, first, last: first + dtype.block_len() - 1 }));
        }
        if dtype != DType::MXFP4 {
            let mut values = vec![1.0; 256 * 40];
            values[256 * 30 + 5] = f32::MAX;
            let got = encode(dtype, &values, None, &mut vec![0; dtype.row_bytes(values.len()).unwrap()]);
            let Err(BlockError::OutOfRange { first, last, .. }) = got else { panic!("{dtype}: {got:?}") };
            assert!((first..=last).contains(&(256 * 30 + 5)), "{dtype}: {first} to {last}");
        }
    }
}

#[test]
fn lengths_must_belong_together() {
    for dtype in block_types() {
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        for (src, dst, importance) in [(len, bytes + 1, len), (len + 1, bytes, len + 1), (len, bytes, len - 1)] {
            let got = encode(dtype, &vec![0.0; src], Some(&vec![1.0; importance]), &mut vec![0; dst]);
            assert_eq!(got, Err(BlockError::Length { dtype, bytes: dst, elements: src }), "{dtype}");
        }
        assert_eq!(encode(dtype, &[], None, &mut []), Ok(()));
    }
}

#[test]
fn types_without_a_quantiser_are_refused() {
    for dtype in DType::all().filter(|dtype| !TYPES.contains(dtype)) {
        let got = encode(dtype, &vec![0.0; dtype.block_len()], None, &mut vec![0; dtype.block_bytes()]);
        assert!(matches!(got, Err(BlockError::CannotQuantize(_) | BlockError::NotAWeight(_))), "{dtype}: {got:?}");
    }
}

#[test]
fn importance_moves_the_error_away_from_what_matters() {
    let values = normal(9, 256 * 64);
    // Every eighth column counts a hundred times as much.
    let importance: Vec<f32> = (0..values.len()).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
    let weighted = |back: &[f32]| -> f64 {
        let pairs = values.iter().zip(back).zip(&importance);
        pairs.map(|((x, y), a)| f64::from(*a) * f64::from(x - y).powi(2)).sum()
    };
    // The scale of Q8_0 follows from the largest weight alone.
    for dtype in block_types().filter(|dtype| *dtype != DType::Q8_0) {
        let (with, without) = (pack(dtype, &values, Some(&importance)), pack(dtype, &values, None));
        assert!(weighted(&with) < weighted(&without), "{dtype}");
    }
}

/// Columns that a text never met, sums at either end of `f32`, one column far above the others.
#[test]
fn no_importance_breaks_a_block() {
    let values = normal(4, 256 * 16);
    type Importance = fn(usize) -> f32;
    let cases: [(&str, Importance); 6] = [
        ("no column was met", |_| 0.0),
        ("every second 32 were met", |i| (i / 32 % 2) as f32),
        ("every second 16 were met", |i| (i / 16 % 2) as f32),
        ("small", |_| 1e-42),
        ("large", |_| f32::MAX),
        ("one above all", |i| if i % 32 == 5 { 1e12 } else { 1.0 }),
    ];
    for (name, importance) in cases {
        let importance: Vec<f32> = (0..values.len()).map(importance).collect();
        for dtype in block_types() {
            let (with, without) = (pack(dtype, &values, Some(&importance)), pack(dtype, &values, None));
            let (with, without) = (snr_db(&values, &with), snr_db(&values, &without));
            assert!(with > 0.6 * without, "{dtype}, {name}: {with:.1} dB, {without:.1} dB without");
        }
    }
}

/// Weights that a type can hold but for its half-precision numbers: scale and minimum make up for each other's rounding.
#[test]
fn scale_and_minimum_are_rounded_as_a_pair() {
    let noise = normal(5, 32 * 512);
    for (dtype, top) in [(DType::Q4_1, 15.0f32), (DType::Q5_1, 31.0)] {
        let half = |x: f32| half::f16::from_f32(x).to_f32();
        let block = |i: usize| (1e-3 * (1.0 + 0.37 * noise[i].abs()), -8.1e-3 * (1.0 + 0.21 * noise[i + 99].abs()));
        let code = |i: usize| match i % 32 {
            0 => 0.0,
            1 => top,
            _ => ((noise[i] + 3.0) / 6.0 * top).round().clamp(0.0, top),
        };
        let make = |round: &dyn Fn(f32) -> f32| -> Vec<f32> {
            let value = |i: usize| {
                let (scale, minimum) = block(i / 32);
                round(scale) * code(i) + round(minimum)
            };
            (0..noise.len()).map(value).collect()
        };
        let values = make(&|x| x);
        let (apart, found) = (snr_db(&values, &make(&half)), snr_db(&values, &pack(dtype, &values, None)));
        assert!(found > apart + 1.0, "{dtype}: {found:.2} dB, rounded apart {apart:.2} dB");
    }
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// What is packed today, so that a change of the search is a decision: checksums without and with an importance.
#[test]
fn the_same_weights_give_the_same_bytes() {
    let values: Vec<f32> = normal(7, 256 * 64).iter().map(|x| x * 0.02).collect();
    let importance: Vec<f32> = normal(9, values.len()).iter().map(|x| x * x).collect();
    let table = [
        (DType::Q4_0, 0x09ca_5335_37be_e146, 0x241a_38e6_4b26_7d40),
        (DType::Q4_1, 0xf41b_df8b_be37_2078, 0xfaa5_6de3_d46b_bb71),
        (DType::Q5_0, 0x368a_aa80_5760_678e, 0x3c18_38fb_26bb_07f0),
        (DType::Q5_1, 0x60c3_06f8_77f0_4db2, 0x4b29_8298_18cd_28b5),
        (DType::Q8_0, 0x9f5e_c57b_f728_2800, 0x9f5e_c57b_f728_2800),
        (DType::Q2_K, 0x35fe_0bbc_bb59_25b3, 0x7ee2_ade1_1bef_29f2),
        (DType::Q3_K, 0x98ff_8315_19c6_b440, 0xf6ce_3aa9_8c27_5b68),
        (DType::Q4_K, 0xf62b_0e6c_92c1_eed5, 0xbf94_505b_a7f5_3e04),
        (DType::Q5_K, 0x124a_4297_d586_2d99, 0xc771_b9a8_8d58_c9dd),
        (DType::Q6_K, 0xaacd_ae45_f914_d003, 0x67e0_61fd_ee42_339e),
        (DType::IQ4_NL, 0xf41e_4315_4dbb_10f2, 0x6a45_d67a_5740_078b),
        (DType::IQ4_XS, 0x3678_2e17_4ce5_ab16, 0xb6f1_13cb_b792_3f6d),
        (DType::MXFP4, 0x34a7_8846_5761_d777, 0x3e1e_4f28_dfa7_90f4),
    ];
    let found = block_types().map(|dtype| {
        let sum = |importance| {
            let mut packed = vec![0; dtype.row_bytes(values.len()).unwrap()];
            encode(dtype, &values, importance, &mut packed).unwrap();
            checksum(&packed)
        };
        (dtype, sum(None), sum(Some(&importance[..])))
    });
    let shown = |(dtype, plain, weighed): (DType, u64, u64)| format!("{dtype} {plain:#018x} {weighed:#018x}");
    assert_eq!(found.map(shown).collect::<Vec<_>>(), table.map(shown));
}
