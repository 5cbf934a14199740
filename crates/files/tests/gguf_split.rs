//! GGUF sets of several files.

mod common;

use std::path::{Path, PathBuf};

use common::{Writer, ty};
use files::gguf::Gguf;

/// Part `no` (from 0) of `count`, with one tensor `w{no}`.
fn part(no: u16, count: u16, tensors: i32) -> Writer {
    Writer::new()
        .raw(b"split.no", ty::U16, &no.to_le_bytes())
        .raw(b"split.count", ty::U16, &count.to_le_bytes())
        .raw(b"split.tensors.count", ty::I32, &tensors.to_le_bytes())
        .tensor(&format!("w{no}"), &[4], 0, &[no as u8; 16])
}

fn name(i: usize, of: usize) -> String {
    format!("m-{i:05}-of-{of:05}.gguf")
}

/// Writes parts under the names of a set and answers their paths.
fn write(dir: &Path, parts: &[Writer]) -> Vec<PathBuf> {
    let paths: Vec<_> = (1..=parts.len()).map(|i| dir.join(name(i, parts.len()))).collect();
    for (path, part) in paths.iter().zip(parts) {
        std::fs::write(path, part.bytes()).unwrap();
    }
    paths
}

fn set() -> Vec<Writer> {
    vec![part(0, 3, 3).str("general.architecture", "llama"), part(1, 3, 3), part(2, 3, 3)]
}

#[test]
fn any_part_opens_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), &set());
    for path in &paths {
        let model = Gguf::open(path).unwrap();
        assert_eq!(model.parts(), paths);
        assert_eq!(model.metadata().str("general.architecture").unwrap(), "llama");
        let names: Vec<_> = model.tensors().iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["w0", "w1", "w2"]);
        assert_eq!(&*model.tensor("w2").unwrap().data, &[2u8; 16]);
        assert!(model.tensor("w1").unwrap().data.is_mapped());
    }
}

#[test]
fn a_missing_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), &set());
    std::fs::remove_file(&paths[1]).unwrap();
    for path in [&paths[0], &paths[2]] {
        let err = Gguf::open(path).unwrap_err().to_string();
        assert!(err.ends_with("m-00002-of-00003.gguf: part 2 of 3 is missing: put it beside the others"), "{err}");
    }
}

#[test]
fn sets_that_disagree() {
    let table: [(&str, Vec<Writer>, &str); 6] = [
        ("another set", vec![part(0, 2, 2), part(1, 3, 2)], "00002.gguf: split.count is 3, 2 in agreement"),
        ("the same part twice", vec![part(0, 2, 2), part(0, 2, 2)], "split.no is 0, 1 in agreement"),
        ("other totals", vec![part(0, 2, 2), part(1, 2, 9)], "split.tensors.count is 9, 2 in agreement"),
        ("too few tensors", vec![part(0, 2, 5), part(1, 2, 5)], "split.tensors.count is 5, 2 in agreement"),
        ("a lone file among them", vec![part(0, 2, 2), common::sample()], "split.count is 1, 2 in agreement"),
        (
            "a tensor in two parts",
            vec![part(0, 2, 3), part(1, 2, 3).tensor("w0", &[4], 0, &[0; 16])],
            "tensor \"w0\": appears twice",
        ),
    ];
    for (what, parts, expected) in table {
        let dir = tempfile::tempdir().unwrap();
        let paths = write(dir.path(), &parts);
        let err = Gguf::open(&paths[0]).expect_err(what).to_string();
        assert!(err.contains(expected), "{what}: {err}");
    }
}

#[test]
fn names_and_contents_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, writer: Writer| {
        let path = dir.path().join(name);
        std::fs::write(&path, writer.bytes()).unwrap();
        Gguf::open(&path).map(|model| model.tensors().len()).map_err(|err| err.to_string())
    };
    let renamed = at("renamed.gguf", part(0, 2, 2)).unwrap_err();
    assert!(renamed.ends_with("so its name must end in -00001-of-00002.gguf"), "{renamed}");
    let whole = at(&name(1, 2), common::sample()).unwrap_err();
    assert!(whole.contains("the name says part 1 of 2, the file has no split.count that agrees"), "{whole}");
    assert_eq!(at(&name(1, 1), common::sample()).unwrap(), 3, "a set of one");
    assert_eq!(at("one.gguf", part(0, 1, 1)).unwrap(), 1, "a set of one by its keys");
    let absent = Gguf::open(&dir.path().join("absent.gguf")).unwrap_err().to_string();
    assert!(absent.contains("absent.gguf: cannot read it"), "{absent}");
}
