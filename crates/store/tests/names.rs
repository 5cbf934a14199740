//! Finding, listing and removing what is in a store.

use std::fs;
use std::path::Path;
use store::{Kind, Source, Store, StoreError, known_models};
use tempfile::TempDir;

fn store_with(files: &[(&str, usize)]) -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::at(dir.path().join("models"));
    fs::create_dir_all(store.dir()).expect("created");
    for (name, bytes) in files {
        write(&store.dir().join(name), *bytes);
    }
    (dir, store)
}

fn write(path: &Path, bytes: usize) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("created");
    fs::write(path, vec![0; bytes]).expect("written");
}

/// A file of the size that the model list states, without its bytes.
fn write_known(store: &Store, name: &str, short_by: u64) {
    let known = known_models().iter().find(|m| m.name == name).expect("in the list");
    let file = fs::File::create(store.dir().join(&known.file)).expect("created");
    file.set_len(known.bytes - short_by).expect("sized");
}

#[test]
fn names_are_resolved() {
    let (dir, store) = store_with(&[
        ("by-hand.gguf", 3),
        ("split-00001-of-00002.gguf", 1),
        ("split-00002-of-00002.gguf", 1),
        ("hand-hf/config.json", 2),
        ("hand-hf/model.safetensors", 2),
        ("org/repo/m-Q4_0.gguf", 1),
        ("org/repo/m-Q8_0.gguf", 1),
        ("org/hf/config.json", 1),
        ("org/hf/model.safetensors", 1),
    ]);
    write_known(&store, "smollm2-135m", 0);
    let outside = dir.path().join("elsewhere.gguf");
    write(&outside, 1);
    let outside_hf = dir.path().join("hf");
    write(&outside_hf.join("config.json"), 1);
    for (name, want) in [
        (outside.to_str().expect("utf-8"), outside.clone()),
        (outside_hf.to_str().expect("utf-8"), outside_hf.clone()),
        ("smollm2-135m", store.dir().join("SmolLM2-135M-Instruct.Q4_1.gguf")),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", store.dir().join("SmolLM2-135M-Instruct.Q4_1.gguf")),
        ("by-hand.gguf", store.dir().join("by-hand.gguf")),
        ("split-00002-of-00002.gguf", store.dir().join("split-00001-of-00002.gguf")),
        ("hand-hf", store.dir().join("hand-hf")),
        ("org/repo", store.dir().join("org/repo/m-Q4_0.gguf")),
        ("org/repo:Q8_0", store.dir().join("org/repo/m-Q8_0.gguf")),
        ("org/repo:m-Q8_0.gguf", store.dir().join("org/repo/m-Q8_0.gguf")),
        ("org/hf", store.dir().join("org/hf")),
    ] {
        assert_eq!(store.resolve(name).map_err(|e| e.to_string()), Ok(want), "{name}");
    }
}

#[test]
fn what_is_not_here_says_what_to_do() {
    let (dir, store) = store_with(&[("org/repo/m-Q4_0.gguf", 1)]);
    for (name, parts) in [
        ("gemma3-270m", &["not here yet", "`./quickstart gemma3-270m`"][..]),
        ("gema3-270m", &["did you mean gemma3-270m?", "./quickstart NAME", "unicorn pull"]),
        ("org/rpo", &["did you mean org/repo", "`unicorn pull org/rpo`"]),
        ("org/repo:Q8_0", &["does not hold it", "`unicorn pull org/repo:Q8_0`"]),
        ("./missing.gguf", &["no such path"]),
        ("../../etc", &["no such path"]),
        ("", &["no model \"\""]),
    ] {
        let error = store.resolve(name).expect_err("not here");
        assert!(matches!(error, StoreError::NotFound { .. }), "{name:?}: {error}");
        let text = error.to_string();
        assert!(parts.iter().all(|p| text.contains(p)) && !text.contains('\n'), "{name:?}: {text}");
    }
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("created");
    let error = store.resolve(empty.to_str().expect("utf-8")).expect_err("no model");
    assert!(matches!(error, StoreError::NotAModel { .. }), "{error}");
    if cfg!(unix) {
        let error = store.resolve("/dev/null").expect_err("no model");
        assert!(error.is_misuse() && error.to_string().contains("\"/dev/null\" is not a regular file"), "{error}");
    }
}

#[test]
fn a_known_model_of_the_wrong_size_is_refused_and_can_be_removed() {
    let (_dir, store) = store_with(&[]);
    write_known(&store, "smollm2-135m", 1);
    assert!(matches!(store.resolve("smollm2-135m"), Err(StoreError::WrongSize { .. })));
    store.remove("smollm2-135m").expect("removed");
    assert!(matches!(store.resolve("smollm2-135m"), Err(StoreError::NotFound { .. })));
}

#[test]
fn the_list_names_what_resolve_finds() {
    let (_dir, store) = store_with(&[
        ("by-hand.gguf", 3),
        ("notes.txt", 9),
        (".fetch-x/part", 9),
        ("hand-hf/config.json", 2),
        ("hand-hf/model.safetensors", 5),
        ("org/repo/m-00001-of-00002.gguf", 10),
        ("org/repo/m-00002-of-00002.gguf", 20),
        ("org/repo/n.gguf.abcd1234.part", 4),
        ("org/hf/config.json", 1),
        ("org/hf/model.safetensors", 6),
    ]);
    write_known(&store, "smollm2-135m", 0);
    let hub = |repo: &str| Source::Hub(repo.into());
    let want = [
        ("by-hand.gguf", Kind::Gguf, Source::Local, 3),
        ("hand-hf", Kind::HfDirectory, Source::Local, 7),
        ("org/hf", Kind::HfDirectory, hub("org/hf"), 7),
        ("org/repo:m-00001-of-00002.gguf", Kind::Gguf, hub("org/repo"), 30),
        ("org/repo:n.gguf", Kind::Partial, hub("org/repo"), 4),
        ("smollm2-135m", Kind::Gguf, Source::ModelList, 98_362_432),
    ];
    let list = store.list().expect("listed");
    let got: Vec<_> = list.iter().map(|e| (e.name.as_str(), e.kind, e.source.clone(), e.bytes)).collect();
    assert_eq!(got, want);
    for entry in &list {
        assert!(entry.modified.is_some());
        assert_eq!(store.resolve(&entry.name).is_ok(), entry.kind != Kind::Partial, "{}", entry.name);
    }
    let freed: u64 = list.iter().map(|e| store.remove(&e.name).expect("removed")).sum();
    assert_eq!(freed, list.iter().map(|e| e.bytes).sum::<u64>());
    assert!(store.list().expect("listed").is_empty());
    assert!(store.dir().join("notes.txt").exists() && !store.dir().join("org").exists());
    assert!(Store::at("/nonexistent").list().expect("a store that is not there is empty").is_empty());
}

#[test]
fn remove_stays_inside_the_store() {
    let (dir, store) = store_with(&[("keep.gguf", 1), ("org/repo/m.gguf", 1)]);
    let outside = dir.path().join("outside.gguf");
    write(&outside, 1);
    let absolute = outside.to_str().expect("utf-8").to_string();
    for name in [
        "../outside.gguf",
        "..",
        ".",
        "",
        "/",
        absolute.as_str(),
        "org/../keep.gguf",
        "org/repo:../../keep.gguf",
        "a\\b",
        "org/repo/m.gguf",
    ] {
        let error = store.remove(name).expect_err("refused");
        assert!(error.is_misuse(), "{name:?}: {error}");
    }
    // An organisation is no model.
    for name in ["org", "nothing.gguf", "org/other", "org/repo:Q8_0"] {
        assert!(matches!(store.remove(name), Err(StoreError::NotFound { .. })), "{name}");
    }
    assert!(outside.exists() && store.dir().join("keep.gguf").exists() && store.dir().join("org/repo/m.gguf").exists());
}

#[cfg(unix)]
#[test]
fn links_are_removed_and_not_followed() {
    use std::os::unix::fs::symlink;
    let (dir, store) = store_with(&[("org/repo/m.gguf", 2)]);
    let outside = dir.path().join("outside");
    write(&outside.join("repo/m.gguf"), 1);
    write(&outside.join("config.json"), 1);
    symlink(outside.join("repo/m.gguf"), store.dir().join("link.gguf")).expect("linked");
    symlink(&outside, store.dir().join("linked-hf")).expect("linked");
    symlink(dir.path().join("nowhere"), store.dir().join("dangling.gguf")).expect("linked");
    symlink(&outside, store.dir().join("linked-org")).expect("linked");
    symlink(&outside, store.dir().join("org/repo/linked-dir")).expect("linked");

    for (name, freed) in [("link.gguf", 0), ("linked-hf", 0), ("dangling.gguf", 0), ("org/repo", 2)] {
        assert_eq!(store.remove(name).map_err(|e| e.to_string()), Ok(freed), "{name}");
    }
    for name in ["linked-org/repo", "linked-org/repo:m.gguf"] {
        assert!(matches!(store.remove(name), Err(StoreError::BadName { .. })), "{name}");
    }
    assert!(outside.join("repo/m.gguf").exists() && outside.join("config.json").exists());
    assert!(!store.dir().join("org").exists());
}

#[test]
fn removing_a_file_deletes_no_directory() {
    let (_dir, store) = store_with(&[("org/repo/sub/m-Q4_0.gguf", 1), ("org/repo/sub/m-Q8_0.gguf", 2)]);
    let error = store.remove("org/repo:sub").expect_err("a directory");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert!(store.dir().join("org/repo/sub/m-Q8_0.gguf").exists());
    assert_eq!(store.remove("org/repo:sub/m-Q8_0.gguf").expect("removed"), 2);
    assert!(store.dir().join("org/repo/sub/m-Q4_0.gguf").exists());
}
