//! What holds for blocks of any content: no panic, typed errors, and synthetic weights of the size asked for.

use tensor::{
    DType,
    blocks::{BlockError, dequantize, quantize, random_blocks},
};

fn weight_types() -> impl Iterator<Item = DType> {
    DType::all().filter(|dtype| dtype.is_weight())
}

/// Random bytes without a dependency (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(byte).collect()
}

#[test]
fn any_content_of_a_valid_length_decodes_and_fills_the_output() {
    for dtype in weight_types() {
        for blocks in [0, 1, 2, 3, 7, 129, 1000] {
            let len = blocks * dtype.block_bytes();
            let contents = [vec![0; len], vec![255; len], noise(1, len), noise(2, len), noise(3, len)];
            for content in contents {
                // Two different fills: an element left alone would show in one of them.
                let mut out = vec![1.0; blocks * dtype.block_len()];
                let mut again = vec![2.0; out.len()];
                dequantize(dtype, &content, &mut out).unwrap();
                dequantize(dtype, &content, &mut again).unwrap();
                assert!(out.iter().zip(&again).all(|(a, b)| a == b || a.is_nan() && b.is_nan()), "{dtype}");
            }
        }
    }
}

#[test]
fn sources_need_no_alignment() {
    for dtype in weight_types() {
        let bytes = noise(4, 300 * dtype.block_bytes() + 1);
        let (mut odd, mut copied) = (vec![0.0; 300 * dtype.block_len()], vec![0.0; 300 * dtype.block_len()]);
        dequantize(dtype, &bytes[1..], &mut odd).unwrap();
        let moved = bytes[1..].to_vec();
        dequantize(dtype, &moved, &mut copied).unwrap();
        assert!(odd.iter().zip(&copied).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype}");
    }
}

#[test]
fn wrong_lengths_are_errors() {
    for dtype in weight_types() {
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        for (src, dst) in [(bytes, 0), (0, len), (bytes - 1, len), (bytes + 1, len), (bytes, 2 * len), (bytes, len + 1)]
        {
            let want = Err(BlockError::Length { dtype, bytes: src, elements: dst });
            assert_eq!(dequantize(dtype, &vec![0; src], &mut vec![0.0; dst]), want, "{dtype}");
            let got = quantize(dtype, &vec![0.0; dst], &mut vec![0; src]);
            assert!(got == want || got == Err(BlockError::CannotQuantize(dtype)), "{dtype}: {got:?}");
        }
    }
}

#[test]
fn integers_are_no_weights_and_most_types_have_no_quantiser() {
    let covered = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];
    for dtype in DType::all() {
        let (mut bytes, mut values) = (vec![0; dtype.block_bytes()], vec![0.0; dtype.block_len()]);
        if !dtype.is_weight() {
            assert_eq!(dequantize(dtype, &bytes, &mut values), Err(BlockError::NotAWeight(dtype)));
            assert_eq!(quantize(dtype, &values, &mut bytes), Err(BlockError::NotAWeight(dtype)));
        } else if covered.contains(&dtype.name()) {
            assert_eq!(quantize(dtype, &values, &mut bytes), Ok(()));
        } else {
            assert_eq!(quantize(dtype, &values, &mut bytes), Err(BlockError::CannotQuantize(dtype)));
        }
    }
}

#[test]
fn a_block_that_cannot_be_represented_is_named() {
    use DType::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e8] {
            for at in [32, 47, 63] {
                let mut values = vec![1.0; 96];
                values[at] = bad;
                let got = quantize(dtype, &values, &mut vec![0; dtype.row_bytes(96).unwrap()]);
                assert_eq!(got, Err(BlockError::OutOfRange { dtype, first: 32, last: 63 }), "{dtype} {bad}");
            }
        }
        // The reciprocal of a subnormal scale is infinite: whatever the quants are, the scale is 0.
        let mut bytes = vec![0; dtype.row_bytes(32).unwrap()];
        let tiny: Vec<f32> = (0..32).map(f32::from_bits).collect();
        quantize(dtype, &tiny, &mut bytes).unwrap();
        let mut back = [1.0; 32];
        dequantize(dtype, &bytes, &mut back).unwrap();
        assert_eq!(back, [0.0; 32], "{dtype}");
    }
}

#[test]
fn plain_types_round_to_nearest_even() {
    // (value, bits of F16, bits of BF16)
    let table = [
        (1.0, 0x3c00, 0x3f80),
        (-0.0, 0x8000, 0x8000),
        (65504.0, 0x7bff, 0x4780),
        (65519.0, 0x7bff, 0x4780),
        (65520.0, 0x7c00, 0x4780),
        (f32::MAX, 0x7c00, 0x7f80),
        (f32::NEG_INFINITY, 0xfc00, 0xff80),
        (2f32.powi(-24), 0x0001, 0x3380),
        (2f32.powi(-25), 0x0000, 0x3300),
        (1.0 + 2f32.powi(-8), 0x3c04, 0x3f80),
        (1.0 + 3.0 * 2f32.powi(-8), 0x3c0c, 0x3f82),
        (1.0 + 2f32.powi(-11), 0x3c00, 0x3f80),
        (1.0 + 3.0 * 2f32.powi(-11), 0x3c02, 0x3f80),
    ];
    for (value, half, bfloat) in table {
        for (dtype, want) in [(DType::F16, half), (DType::BF16, bfloat)] {
            let mut bytes = [0; 2];
            quantize(dtype, &[value], &mut bytes).unwrap();
            assert_eq!(u16::from_le_bytes(bytes), want, "{dtype} of {value:e}");
        }
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (mut bytes, mut back) = (vec![0; dtype.block_bytes()], [0.0]);
        for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            quantize(dtype, &[nan], &mut bytes).unwrap();
            dequantize(dtype, &bytes, &mut back).unwrap();
            assert!(back[0].is_nan(), "{dtype}");
        }
    }
}

/// The error of an element is at most half a step (a whole one where the largest quant is cut off), and a step is the
/// range over the number of quants.
#[test]
fn quantising_and_decoding_stays_within_a_step() {
    let table =
        [(DType::Q4_0, 8.0), (DType::Q4_1, 7.5), (DType::Q5_0, 16.0), (DType::Q5_1, 15.5), (DType::Q8_0, 127.0)];
    let bytes = random_blocks(DType::F32, 32 * 500, 5, 1.0);
    let mut values = vec![0.0; 32 * 500];
    dequantize(DType::F32, &bytes, &mut values).unwrap();
    for (dtype, steps) in table {
        let (mut packed, mut back) = (vec![0; dtype.row_bytes(values.len()).unwrap()], vec![0.0; values.len()]);
        quantize(dtype, &values, &mut packed).unwrap();
        dequantize(dtype, &packed, &mut back).unwrap();
        for (x, y) in values.iter().zip(&back) {
            assert!((x - y).abs() <= 1.01 * 3f32.sqrt() / steps, "{dtype}: {x} became {y}");
        }
    }
}

#[test]
fn random_blocks_are_finite_and_of_the_scale_asked_for() {
    for dtype in weight_types() {
        for scale in [0.005, 0.02, 1.0, 30.0] {
            let len = 256 * 200;
            let bytes = random_blocks(dtype, len, 7, scale);
            assert_eq!(Some(bytes.len()), dtype.row_bytes(len));
            let mut values = vec![f32::NAN; len];
            dequantize(dtype, &bytes, &mut values).unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{dtype}");
            let squares: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
            let rms = (squares / len as f64).sqrt() / f64::from(scale);
            // The promise is a factor of 4; the ratio is near 1, and half of that says so.
            assert!((0.5..2.0).contains(&rms), "{dtype}: rms {rms} times the scale {scale}");
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64 / f64::from(scale);
            assert!(mean.abs() < 0.2, "{dtype}: mean {mean} times the scale {scale}");
        }
    }
}

#[test]
fn random_blocks_stay_finite_at_extreme_scales() {
    for dtype in weight_types() {
        for scale in [0.0, 1e-30, 1e4, 1e30, -1.0, f32::MAX, f32::MIN_POSITIVE] {
            let mut values = vec![f32::NAN; 256 * 20];
            dequantize(dtype, &random_blocks(dtype, values.len(), 1, scale), &mut values).unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{dtype} at {scale:e}");
        }
    }
}

#[test]
fn random_blocks_follow_the_seed() {
    for dtype in weight_types() {
        let make = |seed| random_blocks(dtype, 256, seed, 1.0);
        assert_eq!(make(3), make(3), "{dtype}");
        assert_ne!(make(3), make(4), "{dtype}");
        assert_eq!(random_blocks(dtype, 0, 3, 1.0), [0u8; 0], "{dtype}");
    }
}
