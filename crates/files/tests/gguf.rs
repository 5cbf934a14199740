//! GGUF: what is read, and what each lie is answered with.

mod common;

use common::{Rng, Writer, array, mutate, sample, string, strings, ty};
use files::gguf::{Array, Gguf, Value};
use files::{FileError, Problem, TensorProblem};
use tensor::{Bytes, DType};

fn parse(writer: &Writer) -> Result<Gguf, FileError> {
    Gguf::parse(Bytes::from(writer.bytes()), "t.gguf")
}

/// The message, without the file's name.
fn message(writer: &Writer) -> String {
    let text = parse(writer).expect_err("the file is broken").to_string();
    text.strip_prefix("t.gguf: ").expect("messages begin with the file").into()
}

#[test]
fn everything_of_a_sound_file_is_read() {
    for version in [2, 3] {
        let model = parse(&Writer { version, ..sample() }).unwrap();
        assert_eq!(model.version(), version);
        let meta = model.metadata();
        assert_eq!(meta.len(), 12);
        assert_eq!(meta.iter().next().unwrap().0, "general.architecture");
        assert_eq!(meta.str("general.architecture").unwrap(), "gemma3");
        assert_eq!(meta.u32("gemma3.context_length").unwrap(), 32768, "a u64 that fits");
        assert_eq!(meta.u64("gemma3.block_count").unwrap(), 3, "a u32 as u64");
        assert_eq!(meta.f32("eps").unwrap(), 1e-6);
        assert_eq!(meta.f32("base").unwrap(), 1e6, "an f64 as f32");
        assert!(meta.bool("flag").unwrap());
        assert_eq!(meta.strings("tokens").unwrap(), ["<bos>", "", "\u{e9}"]);
        assert_eq!(meta.f32s("scores").unwrap(), [0.5, -1.0, 2.0]);
        assert_eq!(meta.i32s("types").unwrap(), [1, 2, 3]);
        assert_eq!(meta.bools("flags").unwrap(), [false, true]);
        assert!(matches!(meta.get("nested"), Some(Value::Array(Array::Arrays(inner))) if inner[0].len() == 2));
        assert_eq!(meta.opt_u32("absent").unwrap(), None);
        assert_eq!(meta.opt_strings("absent").unwrap(), None);

        let names: Vec<_> = model.tensors().iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"]);
        let embd = model.tensor("token_embd.weight").unwrap();
        assert_eq!((embd.dtype, &embd.shape[..], embd.elements()), (DType::Q8_0, &[3, 32][..], 96));
        assert_eq!(&*embd.data, &[3u8; 102]);
        assert_eq!(&*model.tensor("blk.0.attn_q.weight").unwrap().data, &[1u8; 128]);
        assert!(model.tensor("blk.0").is_none());
    }
}

#[test]
fn one_integer_or_one_a_layer() {
    let meta = parse(&sample()).unwrap().metadata().clone();
    assert_eq!(meta.u32_or_array("types", 3).unwrap(), [1, 2, 3]);
    assert_eq!(meta.u32_or_array("gemma3.block_count", 2).unwrap(), [3, 3]);
    assert_eq!(meta.opt_u32_or_array("absent", 2).unwrap(), None);
    let err = meta.u32_or_array("types", 2).unwrap_err().to_string();
    assert_eq!(err, "t.gguf: key \"types\": expected a u32 or an array of 2, found an array of 3 i32");
    assert!(meta.u32_or_array("gemma3.block_count", usize::MAX).is_err(), "no allocation of that size");
}

#[test]
fn a_wrong_type_is_named() {
    let writer = sample()
        .raw(b"nan", ty::F32, &f32::NAN.to_le_bytes())
        .array("halves", &array(ty::BOOL, 2, &[0, 2]))
        .array("latin1", &strings(&[b"ok", b"\xe9"]));
    let model = parse(&writer).unwrap();
    let meta = model.metadata();
    let table = [
        (meta.u32("minus").unwrap_err(), r#"key "minus": expected an integer that fits u32, found an i32 of value -1"#),
        (meta.u32("eps").unwrap_err(), r#"key "eps": expected an integer that fits u32, found an f32"#),
        (meta.str("flag").map(|_| ()).unwrap_err(), r#"key "flag": expected a string, found a bool"#),
        (meta.f32("nan").unwrap_err(), r#"key "nan": expected a finite float, found the f32 NaN"#),
        (meta.bool("absent").unwrap_err(), r#"key "absent" is missing"#),
        (
            meta.bools("halves").unwrap_err(),
            r#"key "halves": expected an array of bools, found a bool neither 0 nor 1 as element 1"#,
        ),
        (
            meta.f32s("tokens").unwrap_err(),
            r#"key "tokens": expected an array of finite floats, found an array of 3 string"#,
        ),
        (
            meta.strings("latin1").map(|_| ()).unwrap_err(),
            r#"key "latin1": expected UTF-8, found other bytes in string 1"#,
        ),
    ];
    for (err, expected) in table {
        assert_eq!(err.to_string(), format!("t.gguf: {expected}"));
    }
    assert_eq!(meta.opt_str_array("latin1").unwrap().unwrap().bytes(1), Some(&b"\xe9"[..]));
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample().bytes();
    assert!(Gguf::parse(Bytes::from(whole.clone()), "t.gguf").is_ok());
    for len in 0..whole.len() {
        let err = Gguf::parse(Bytes::from(whole[..len].to_vec()), "t.gguf").expect_err("a part of a file");
        let expected = matches!(err.problem, Problem::Truncated { .. } | Problem::Count { .. });
        assert!(expected, "{len}: {err}");
    }
    let err = Gguf::parse(Bytes::from(whole[..whole.len() - 1].to_vec()), "t.gguf").unwrap_err().to_string();
    let (end, found) = (whole.len(), whole.len() - 1);
    assert!(err.contains(&format!("ends at byte {end}, the file has {found}: download it again")), "{err}");
    assert!(err.contains("tensor \"blk.0.attn_q.weight\""), "{err}");
}

#[test]
fn headers_that_are_something_else() {
    let table = [
        (Writer { magic: *b"ggjt", ..sample() }, "not a GGUF file: it begins with \"ggjt\""),
        (Writer { magic: *b"vers", ..sample() }, "git lfs pull"),
        (Writer { version: 1, ..sample() }, "GGUF version 1; versions 2 and 3 are read"),
        (Writer { version: 4, ..sample() }, "GGUF version 4"),
        (Writer { version: 0, ..sample() }, "GGUF version 0"),
        (Writer { version: 3u32.swap_bytes(), ..sample() }, "a big-endian GGUF file"),
        (Writer { key_count: Some(1 << 60), ..sample() }, "promises 1152921504606846976 metadata keys"),
        (Writer { tensor_count: Some(u64::MAX), ..sample() }, "promises 18446744073709551615 tensors"),
    ];
    for (writer, expected) in table {
        let found = message(&writer);
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
}

#[test]
fn values_that_lie() {
    let deep = (0..5).fold(array(ty::U8, 0, &[]), |inner, _| array(ty::ARRAY, 1, &inner));
    let wide = array(ty::ARRAY, 1 << 60, &[0; 64]);
    let table = [
        (Writer::new().raw(b"k", 13, &[0; 8]), "key \"k\": value type 13 at byte 33 does not exist"),
        (Writer::new().raw(b"k", ty::BOOL, &[2]), "key \"k\": expected a bool of value 0 or 1, found the byte 2"),
        (Writer::new().raw(b"\xff", ty::U32, &[0; 4]), "a metadata key at byte 32 is not UTF-8"),
        (Writer::new().raw(b"k", ty::STRING, &string(b"\xff")), "a metadata string at byte 45 is not UTF-8"),
        (Writer::new().raw(b"k", ty::STRING, &u64::MAX.to_le_bytes()), "truncated: a metadata string at byte 45 ends"),
        (Writer::new().array("k", &array(ty::STRING, 1 << 60, &[0; 64])), "promises 1152921504606846976 strings"),
        (Writer::new().array("k", &array(ty::F64, u64::MAX, &[0; 64])), "array elements; a file of this size"),
        (Writer::new().array("k", &array(ty::U8, 65, &[0; 64])), "promises 65 array elements"),
        (Writer::new().array("k", &array(99, 1, &[0; 64])), "value type 99"),
        (Writer::new().array("k", &wide), "arrays within an array"),
        (Writer::new().array("k", &deep), "key \"k\": arrays nested deeper than 4"),
        (Writer::new().u32("a", 1).u32("b", 1).u32("a", 2), "key \"a\" appears twice"),
        (Writer::new().u32("general.alignment", 0), "general.alignment is 0"),
        (Writer::new().u32("general.alignment", 4), "general.alignment is 4"),
        (Writer::new().u32("general.alignment", 48), "general.alignment is 48"),
        (Writer::new().u32("general.alignment", 1 << 31), "general.alignment is 2147483648"),
        (Writer::new().str("general.alignment", "32"), "key \"general.alignment\": expected an integer"),
        (Writer::new().u32("split.count", 2).u32("split.no", 0).u32("split.tensors.count", 0), "one of 2 parts"),
        (Writer::new().u32("split.count", 2).u32("split.no", 2).u32("split.tensors.count", 0), "below split.count, 2"),
    ];
    for (writer, expected) in table {
        let found = message(&writer);
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
    let at_the_limit = (0..3).fold(array(ty::U8, 0, &[]), |inner, _| array(ty::ARRAY, 1, &inner));
    assert!(parse(&Writer::new().array("k", &at_the_limit)).is_ok());
}

#[test]
fn tensors_that_lie() {
    let one = |dims: &[u64], ty, offset| Writer::new().entry("w", dims, ty, offset).data(256);
    let table = [
        (one(&[1 << 32, 1 << 32], 0, 0), "tensor \"w\": the shape [4294967296, 4294967296] overflows"),
        (one(&[1 << 62], 0, 0), "overflows"),
        (one(&[u64::MAX, 2], 24, 0), "overflows"),
        (one(&[32, 0], 0, 0), "tensor \"w\": a dimension of zero"),
        (one(&[1; 5], 0, 0), "tensor \"w\": 5 dimensions; 4 at most"),
        (one(&[48, 2], 8, 0), "tensor \"w\": rows of 48 elements do not divide into Q8_0 blocks of 32"),
        (one(&[32], 4, 0), "tensor \"w\": type number 4 is not known (Q4_2 and Q4_3 were removed"),
        (one(&[32], 77, 0), "tensor \"w\": type number 77 is not known: the file may be newer"),
        (one(&[32], 0, 16), "tensor \"w\": offset 16 is not a multiple of the alignment 32"),
        (one(&[65], 0, 0), "truncated: tensor \"w\" at byte 64 ends at byte 324, the file has 320"),
        (one(&[1], 0, u64::MAX - 31), "truncated: tensor \"w\""),
        (one(&[32], 0, 0).entry("v", &[32], 0, 96), "tensor \"v\": its data overlap those of tensor \"w\""),
        (one(&[32], 0, 0).entry("v", &[8], 0, 0), "overlap"),
        (one(&[32], 0, 0).entry("w", &[8], 0, 128), "tensor \"w\": appears twice"),
    ];
    for (writer, expected) in table {
        let found = message(&writer);
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
    let adjacent = one(&[32], 0, 128).entry("v", &[32], 0, 0);
    assert!(parse(&adjacent).is_ok(), "any order, side by side");
    assert!(parse(&one(&[], 0, 0)).unwrap().tensor("w").unwrap().shape.is_empty(), "a scalar");
}

#[test]
fn the_alignment_of_the_file_holds() {
    let aligned = |offset| {
        Writer { alignment: 64, ..Writer::new() }.u32("general.alignment", 64).entry("w", &[4], 0, offset).data(80)
    };
    assert_eq!(&*parse(&aligned(64)).unwrap().tensor("w").unwrap().data, &[7u8; 16]);
    let err = parse(&aligned(32)).unwrap_err();
    let Problem::Tensor { problem, .. } = err.problem else { panic!("{err}") };
    assert!(matches!(problem, TensorProblem::Misaligned { offset: 32, alignment: 64 }));
}

#[test]
fn random_and_mutated_bytes_never_panic() {
    let mut rng = Rng(1);
    let seed = sample().bytes();
    let mut sound = 0;
    for i in 0..20_000 {
        let bytes = match i % 4 {
            0 => (0..rng.below(200)).map(|_| rng.next() as u8).collect(),
            1 => {
                let random = (0..rng.below(200)).map(|_| rng.next() as u8);
                b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".iter().copied().chain(random).collect()
            }
            _ => mutate(&seed, &mut rng),
        };
        if let Ok(model) = Gguf::parse(Bytes::from(bytes), "t.gguf") {
            sound += 1;
            for info in model.tensors() {
                assert_eq!(info.dtype.row_bytes(info.elements()), Some(info.data.len()));
            }
        }
    }
    assert!(sound > 100, "mutations reach past the header: {sound}");
}
