//! safetensors: what is read, and what each lie is answered with.

mod common;

use std::path::Path;

use ::safetensors::{Dtype, serialize, tensor::TensorView};
use common::{Rng, mutate};
use files::safetensors::SafeTensors;
use files::{FileError, Problem};
use tensor::{Bytes, DType};

/// A file with any header, of any claimed length.
fn file_with(len: u64, header: &str, data: usize) -> Vec<u8> {
    [&len.to_le_bytes(), header.as_bytes(), &vec![5; data]].concat()
}

fn file(header: &str, data: usize) -> Vec<u8> {
    file_with(header.len() as u64, header, data)
}

fn parse(bytes: Vec<u8>) -> Result<SafeTensors, FileError> {
    SafeTensors::parse(Bytes::from(bytes), "t")
}

/// Written by the reference implementation.
fn sample() -> Vec<u8> {
    let data = [1u8; 24];
    let view = |dtype, shape: &[usize], len| TensorView::new(dtype, shape.to_vec(), &data[..len]).unwrap();
    let tensors = [
        ("a.weight", view(Dtype::BF16, &[3, 4], 24)),
        ("b.weight", view(Dtype::F32, &[2], 8)),
        ("c.scalar", view(Dtype::I64, &[], 8)),
        ("d.empty", view(Dtype::F16, &[0, 7], 0)),
    ];
    let meta = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize(tensors, Some(meta)).unwrap()
}

fn one(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

#[test]
fn what_the_reference_writes_is_read() {
    let model = parse(sample()).unwrap();
    assert_eq!(model.tensors().len(), 4);
    let a = model.tensor("a.weight").unwrap();
    assert_eq!((a.dtype, &a.shape[..], a.data.len()), (DType::BF16, &[3, 4][..], 24));
    assert_eq!(model.tensor("b.weight").unwrap().dtype, DType::F32);
    assert_eq!(model.tensor("c.scalar").unwrap().elements(), 1);
    assert!(model.tensor("d.empty").unwrap().data.is_empty());
    assert!(model.tensor("__metadata__").is_none());
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample();
    for len in 0..whole.len() {
        let err = parse(whole[..len].to_vec()).expect_err("a part of a file");
        assert!(matches!(err.problem, Problem::Truncated { .. }), "{len}: {err}");
    }
    let err = parse(whole[..whole.len() - 1].to_vec()).unwrap_err().to_string();
    let expected = format!("ends at byte {}, the file has {}: download it again", whole.len(), whole.len() - 1);
    assert!(err.contains(&expected), "{err}");
}

#[test]
fn files_that_lie() {
    let w = |dtype, shape, begin, end| format!("{{{}}}", one("w", dtype, shape, begin, end));
    let table = [
        (file_with(1 << 60, "{}", 0), "promises 1152921504606846976 bytes of header"),
        (file_with(3, "{}", 0), "truncated: the header at byte 8 ends at byte 11, the file has 10"),
        (b"version https://git-lfs.github.com/spec/v1".to_vec(), "git lfs pull"),
        (file("[]", 0), "not valid JSON of the expected form"),
        (file("{\"__metadata__\":{\"k\":1}}", 0), "invalid type: integer `1`, expected a string"),
        (file("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "__metadata__ appears twice"),
        ([&2u64.to_le_bytes()[..], b"\xff\xff"].concat(), "the header at byte 8 is not UTF-8"),
        (file("{\"w\":1}", 0), "tensor \"w\": invalid type: integer"),
        (file(&w("F8_E4M3", "[4]", 0, 4), 4), "tensor \"w\": type \"F8_E4M3\" is not read"),
        (file(&w("F32", "[4]", 0, 8), 8), "tensor \"w\": shape [4] of F32 needs 16 bytes, the offsets give 8"),
        (file(&w("F32", "[4]", 16, 0), 16), "tensor \"w\": data offsets 16..0 are reversed"),
        (file(&w("F32", "[4]", 16, 32), 32), "tensor \"w\": data begin at 16, and the tensors before it end at 0"),
        (file(&w("F32", "[4294967296,4294967296]", 0, 0), 0), "overflows"),
        (file(&w("F32", "[0,4294967296,4294967296]", 0, 0), 0), "overflows"),
        (file(&w("I8", "[18446744073709551615,2]", 0, 0), 0), "overflows"),
        (file(&w("F32", "[1,1,1,1,1,1,1,1,1]", 0, 4), 4), "9 dimensions; 8 at most"),
        (file(&w("F32", "[-1]", 0, 4), 4), "tensor \"w\": invalid value: integer `-1`"),
        (file(&w("F32", "[1]", 0, 4), 5), "tensor data ends at byte"),
        (file(&w("I8", "[18446744073709551615]", 0, u64::MAX), 4), "truncated: the tensor data"),
        (
            file(&format!("{{{},{}}}", one("w", "F32", "[1]", 0, 4), one("w", "F32", "[1]", 4, 8)), 8),
            "tensor \"w\": appears twice",
        ),
        (
            file(&format!("{{{},{}}}", one("v", "F32", "[2]", 0, 8), one("w", "F32", "[2]", 4, 12)), 12),
            "tensor \"w\": data begin at 4, and the tensors before it end at 8",
        ),
    ];
    for (bytes, expected) in table {
        let found = parse(bytes).expect_err(expected).to_string();
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
    let deep = format!("{{\"w\":{}", "[".repeat(100_000));
    assert!(parse(file(&deep, 0)).is_err());
}

#[test]
fn random_and_mutated_bytes_never_panic() {
    let mut rng = Rng(2);
    let seed = sample();
    let mut sound = 0;
    for i in 0..20_000 {
        let bytes = match i % 4 {
            0 => (0..rng.below(100)).map(|_| rng.next() as u8).collect(),
            _ => mutate(&seed, &mut rng),
        };
        // The reference implementation accepts whatever is accepted here.
        if let Ok(model) = parse(bytes.clone()) {
            sound += 1;
            let reference = ::safetensors::SafeTensors::deserialize(&bytes).expect("the reference agrees");
            assert_eq!(reference.len(), model.tensors().len());
            for info in model.tensors() {
                assert_eq!(reference.tensor(&info.name).unwrap().data(), &*info.data);
            }
        }
    }
    assert!(sound > 100, "mutations reach past the header: {sound}");
}

/// Writes a shard with one f32 a name.
fn shard(dir: &Path, name: &str, tensors: &[&str]) {
    let data = [0u8; 4];
    let view = TensorView::new(Dtype::F32, vec![1], &data).unwrap();
    std::fs::write(dir.join(name), serialize(tensors.iter().map(|t| (*t, view.clone())), None).unwrap()).unwrap();
}

fn index(dir: &Path, map: &[(&str, &str)]) {
    let map: Vec<String> = map.iter().map(|(tensor, shard)| format!("\"{tensor}\":\"{shard}\"")).collect();
    let json = format!("{{\"metadata\":{{\"total_size\":8}},\"weight_map\":{{{}}}}}", map.join(","));
    std::fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
}

const A: &str = "model-00001-of-00002.safetensors";
const B: &str = "model-00002-of-00002.safetensors";

#[test]
fn directories() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(matches!(SafeTensors::open_dir(dir).unwrap_err().problem, Problem::NoWeights));

    shard(dir, A, &["x"]);
    let err = SafeTensors::open_dir(dir).unwrap_err().to_string();
    assert!(
        err.ends_with("model-00002-of-00002.safetensors: part 2 of 2 is missing: put it beside the others"),
        "{err}"
    );
    shard(dir, B, &["y", "z"]);
    let found = SafeTensors::open_dir(dir).unwrap();
    assert_eq!((found.tensors().len(), found.parts().len()), (3, 2), "without an index");

    shard(dir, "other.safetensors", &["x"]);
    let err = SafeTensors::open_dir(dir).unwrap_err().to_string();
    assert!(err.ends_with("tensor \"x\": appears twice"), "{err}");

    index(dir, &[("x", A), ("y", B)]);
    let found = SafeTensors::open_dir(dir).unwrap();
    assert_eq!(found.tensors().len(), 3, "the index chooses the files");
    assert_eq!(found.part_of("y"), Some(dir.join(B).as_path()));
    assert_eq!(found.part_of("w"), None);

    shard(dir, "model.safetensors", &["only"]);
    let found = SafeTensors::open_dir(dir).unwrap();
    assert_eq!(found.tensors().len(), 1, "a whole file comes before an index");
    assert!(found.tensor("only").unwrap().data.is_mapped());
}

#[test]
fn indices_that_lie() {
    let table: [(&[(&str, &str)], &str); 7] = [
        (&[("x", "../m.safetensors")], "shard name \"../m.safetensors\" is not a plain file name"),
        (&[("x", "/etc/m.safetensors")], "is not a plain file name"),
        (&[("x", "model.bin")], "is not a plain file name"),
        (&[("x", "absent.safetensors")], "shard \"absent.safetensors\", named by the index, is missing"),
        (&[("q", A)], "the index puts tensor \"q\" into shard"),
        (&[("x", B), ("y", A)], "the index puts tensor \"x\" into shard \"model-00002-of-00002.safetensors\""),
        (&[], "no .safetensors file"),
    ];
    for (map, expected) in table {
        let dir = tempfile::tempdir().unwrap();
        shard(dir.path(), A, &["x"]);
        shard(dir.path(), B, &["y"]);
        index(dir.path(), map);
        let err = SafeTensors::open_dir(dir.path()).expect_err(expected).to_string();
        assert!(err.contains(expected), "{err:?} lacks {expected:?}");
    }
}
