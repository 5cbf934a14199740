//! Pulls against a hub on this machine: what arrives, what is resumed, and what every failure leaves behind.

mod common;

use common::{Behaviour, FakeFile, FakeHub, lfs, sha256, small};
use std::path::{Path, PathBuf};
use store::{Kind, Progress, Store, StoreError};
use tempfile::TempDir;

/// Bytes without a period that a misplaced copy could hide behind.
fn weights(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn hub_with(files: &[(&str, FakeFile)]) -> FakeHub {
    let files = files.iter().map(|(n, f)| (n.to_string(), f.clone())).collect();
    FakeHub::start(Behaviour { files, ..Behaviour::default() })
}

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::at(dir.path().join("models"));
    (dir, store)
}

/// All files below `dir`, by relative path.
fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                pending.push(entry.path());
            } else {
                let path: PathBuf = entry.path().strip_prefix(dir).expect("below").into();
                found.push(path.to_str().expect("utf-8").to_string());
            }
        }
    }
    found.sort();
    found
}

/// Writes down what it is told.
#[derive(Default)]
struct Log(Vec<String>);

impl Progress for Log {
    fn start(&mut self, file: &str, bytes: u64) {
        self.0.push(format!("start {file} {bytes}"));
    }
    fn advance(&mut self, bytes: u64) {
        match self.0.last_mut().and_then(|l| l.strip_prefix("advance ").and_then(|n| n.parse::<u64>().ok())) {
            Some(n) => *self.0.last_mut().expect("just seen") = format!("advance {}", n + bytes),
            None => self.0.push(format!("advance {bytes}")),
        }
    }
    fn finish(&mut self) {
        self.0.push("finish".into());
    }
}

#[test]
fn a_gguf_is_pulled_found_listed_and_removed() {
    let body = weights(700_000);
    let hub = hub_with(&[("m-Q4_K_M.gguf", lfs(&body)), ("m-Q8_0.gguf", lfs(b"other")), ("README.md", small(b"x"))]);
    let (_dir, store) = store();
    let mut log = Log::default();
    let pulled = store.pull(&hub.client(), "org/repo", &mut log).expect("pulled");
    assert_eq!(pulled.files, ["m-Q4_K_M.gguf"]);
    assert_eq!((pulled.total_bytes, pulled.received_bytes), (700_000, 700_000));
    assert_eq!(std::fs::read(&pulled.path).expect("readable"), body);
    assert_eq!(log.0, ["start m-Q4_K_M.gguf 700000", "advance 700000", "finish"]);
    assert_eq!(tree(store.dir()), ["org/repo/m-Q4_K_M.gguf"]);

    for name in ["org/repo", "org/repo:Q4_K_M", "org/repo:m-Q4_K_M.gguf"] {
        assert_eq!(store.resolve(name).expect("found"), pulled.path, "{name}");
    }
    let entries = store.list().expect("listed");
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].name.as_str(), entries[0].bytes), ("org/repo:m-Q4_K_M.gguf", 700_000));

    // Again: checked by digest, not fetched.
    let transfers = hub.transfers().len();
    assert_eq!(store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled").received_bytes, 0);
    assert_eq!(hub.transfers().len(), transfers);

    assert_eq!(store.remove("org/repo").expect("removed"), 700_000);
    assert_eq!(std::fs::read_dir(store.dir()).expect("readable").count(), 0);
}

#[test]
fn a_changed_file_is_fetched_again() {
    let hub = hub_with(&[("m.gguf", lfs(b"one"))]);
    let (_dir, store) = store();
    let path = store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled").path;
    hub.change(|b| _ = b.files.insert("m.gguf".into(), lfs(b"two")));
    store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled");
    assert_eq!(std::fs::read(path).expect("readable"), b"two");
}

#[test]
fn a_hugging_face_directory_is_whole_when_it_has_its_config() {
    let hub = hub_with(&[
        ("config.json", small(b"{}")),
        ("tokenizer.json", small(b"{\"t\":1}")),
        ("chat_template.jinja", small(b"t")),
        ("model-00001-of-00002.safetensors", lfs(b"weights 1")),
        ("model-00002-of-00002.safetensors", FakeFile { claimed_sha256: Some(sha256(b"")), ..lfs(b"weights 2") }),
        ("model.safetensors.index.json", small(b"{}")),
        ("training_args.bin", lfs(b"x")),
    ]);
    let (_dir, store) = store();
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("the second shard is wrong");
    assert!(matches!(error, StoreError::Checksum { .. }), "{error}");
    assert!(matches!(store.resolve("org/repo"), Err(StoreError::NotFound { .. })));

    hub.change(|b| _ = b.files.insert("model-00002-of-00002.safetensors".into(), lfs(b"weights 2")));
    let pulled = store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled");
    assert_eq!(pulled.path, store.dir().join("org/repo"));
    assert_eq!(store.resolve("org/repo").expect("found"), pulled.path);
    assert_eq!(
        tree(&pulled.path),
        [
            "chat_template.jinja",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ]
    );
    assert_eq!(store.list().expect("listed")[0].kind, Kind::HfDirectory);
}

#[test]
fn a_directory_is_not_whole_while_it_is_fetched_anew() {
    let hub = hub_with(&[
        ("config.json", small(b"{}")),
        ("tokenizer.json", small(b"{}")),
        ("model.safetensors", lfs(b"one file of weights")),
    ]);
    let (_dir, store) = store();
    let path = store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled").path;

    // The next version is split, and its second shard does not arrive: what is there is of two versions.
    hub.change(|b| {
        b.files.remove("model.safetensors");
        b.files.insert("model-00001-of-00002.safetensors".into(), lfs(b"weights 1"));
        let wrong = FakeFile { claimed_sha256: Some(sha256(b"")), ..lfs(b"weights 2") };
        b.files.insert("model-00002-of-00002.safetensors".into(), wrong);
        b.files.insert("model.safetensors.index.json".into(), small(b"{}"));
    });
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("the second shard is wrong");
    assert!(matches!(error, StoreError::Checksum { .. }), "{error}");
    assert!(!path.join("config.json").exists());
    assert!(matches!(store.resolve("org/repo"), Err(StoreError::NotFound { .. })));

    // Whole again, and without the weights of the first version, which a reader would prefer.
    hub.change(|b| _ = b.files.insert("model-00002-of-00002.safetensors".into(), lfs(b"weights 2")));
    std::fs::write(path.join("notes.txt"), b"mine").expect("written");
    store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled");
    assert_eq!(store.resolve("org/repo").expect("found"), path);
    let want = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "notes.txt",
        "tokenizer.json",
    ];
    assert_eq!(tree(&path), want);

    // And back: the index of the split one goes too.
    hub.change(|b| {
        b.files.retain(|name, _| !name.starts_with("model"));
        b.files.insert("model.safetensors".into(), lfs(b"one file of weights"));
    });
    store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled");
    assert_eq!(tree(&path), ["config.json", "model.safetensors", "notes.txt", "tokenizer.json"]);
}

#[test]
fn a_hub_that_is_out_of_order_leaves_a_directory_whole() {
    let hub = hub_with(&[("config.json", small(b"{}")), ("model.safetensors", lfs(b"weights"))]);
    let (_dir, store) = store();
    let path = store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled").path;
    hub.change(|b| b.unavailable = usize::MAX);
    store.pull(&hub.client(), "org/repo", &mut ()).expect_err("not reached");
    assert_eq!(store.resolve("org/repo").expect("found"), path);
}

#[test]
fn a_hub_that_names_no_commit_is_refused() {
    let (_dir, store) = store();
    let hub = hub_with(&[("m.gguf", lfs(b"body"))]);
    for sha in ["null", "\"main\"", "\"../../x\"", "7"] {
        hub.change(|b| b.listing = Some(format!(r#"{{"sha":{sha},"siblings":[{{"rfilename":"m.gguf"}}]}}"#)));
        let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("refused");
        assert!(matches!(error, StoreError::BadAnswer { .. }), "{sha}: {error}");
    }
    assert!(tree(store.dir()).is_empty());
}

#[test]
fn all_parts_of_a_split_model_are_pulled() {
    let hub = hub_with(&[
        ("Q8_0/m-Q8_0-00001-of-00002.gguf", lfs(b"first")),
        ("Q8_0/m-Q8_0-00002-of-00002.gguf", lfs(b"second")),
        ("m-Q2_K.gguf", lfs(b"small")),
    ]);
    let (_dir, store) = store();
    let pulled = store.pull(&hub.client(), "org/repo:Q8_0", &mut ()).expect("pulled");
    assert_eq!(pulled.path, store.dir().join("org/repo/Q8_0/m-Q8_0-00001-of-00002.gguf"));
    assert_eq!(store.resolve("org/repo:Q8_0").expect("found"), pulled.path);
    assert_eq!(store.list().expect("listed")[0].bytes, 11);

    std::fs::remove_file(store.dir().join("org/repo/Q8_0/m-Q8_0-00002-of-00002.gguf")).expect("removed");
    assert!(matches!(store.resolve("org/repo:Q8_0"), Err(StoreError::MissingParts { present: 1, total: 2, .. })));
}

#[test]
fn a_cut_transfer_goes_on_in_the_same_pull_and_in_the_next() {
    let body = weights(1_000_000);
    let hub = hub_with(&[("m.gguf", lfs(&body))]);
    let (_dir, store) = store();

    // Cut at 300,000 bytes each time, three times: each try moves on, so the pull goes on.
    hub.change(|b| b.cut = Some((300_000, 3)));
    let mut log = Log::default();
    let pulled = store.pull(&hub.client(), "org/repo", &mut log).expect("pulled");
    assert_eq!(std::fs::read(&pulled.path).expect("readable"), body);
    assert_eq!(
        hub.transfers(),
        [None, Some("bytes=300000-".into()), Some("bytes=600000-".into()), Some("bytes=900000-".into())]
    );
    assert_eq!(log.0, ["start m.gguf 1000000", "advance 1000000", "finish"]);
    store.remove("org/repo").expect("removed");

    // Cut at once, as often as it is tried: the part stays and is listed, and the next pull goes on with it.
    let _ = std::fs::create_dir_all(store.dir().join("org/repo"));
    let part = format!("org/repo/m.gguf.{}.part", &sha256(&body)[..12]);
    std::fs::write(store.dir().join(&part), &body[..400_000]).expect("written");
    hub.change(|b| b.cut = Some((0, usize::MAX)));
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("cut");
    assert!(matches!(error, StoreError::Interrupted { have: 400_000, expected: 1_000_000, .. }), "{error}");
    assert_eq!(tree(store.dir()), [part]);
    assert_eq!(store.list().expect("listed")[0].kind, Kind::Partial);
    let error = store.resolve("org/repo").expect_err("not whole").to_string();
    assert!(error.contains("unfinished"), "{error}");

    hub.change(|b| b.cut = None);
    let pulled = store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled");
    assert_eq!(pulled.received_bytes, 600_000);
    assert_eq!(std::fs::read(&pulled.path).expect("readable"), body);
    assert_eq!(tree(store.dir()), ["org/repo/m.gguf"]);
}

#[test]
fn a_truncated_body_never_gets_the_final_name() {
    // The server closes properly after fewer bytes than the hub states.
    let hub = hub_with(&[("m.gguf", FakeFile { claimed_bytes: Some(100), ..lfs(&weights(90)) })]);
    let (_dir, store) = store();
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("truncated");
    assert!(matches!(error, StoreError::Interrupted { .. } | StoreError::BadAnswer { .. }), "{error}");
    assert!(!store.dir().join("org/repo/m.gguf").exists());
}

#[test]
fn a_body_longer_than_stated_is_not_written_beyond_it() {
    let hub = hub_with(&[("m.gguf", FakeFile { claimed_bytes: Some(10), ..lfs(&weights(1_000_000)) })]);
    let (_dir, store) = store();
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("too long");
    assert!(matches!(error, StoreError::BadAnswer { .. }), "{error}");
    for file in tree(store.dir()) {
        assert_eq!(std::fs::metadata(store.dir().join(&file)).expect("there").len(), 0, "{file}");
    }
}

#[test]
fn servers_that_mishandle_ranges() {
    let body = weights(1000);
    let (_dir, store) = store();
    let hub = hub_with(&[("m.gguf", lfs(&body))]);

    // The whole file instead of the rest: begun again, not appended.
    hub.change(|b| (b.cut, b.ignore_range) = (Some((400, 1)), true));
    let path = store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled").path;
    assert_eq!(std::fs::read(path).expect("readable"), body);
    store.remove("org/repo").expect("removed");

    // Another range than asked for: refused, and what was there stays.
    hub.change(|b| (b.cut, b.ignore_range, b.wrong_range) = (Some((400, 1)), false, true));
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("wrong range");
    assert!(matches!(error, StoreError::BadAnswer { .. }), "{error}");
    assert_eq!(store.list().expect("listed")[0].bytes, 400);
}

#[test]
fn a_wrong_digest_deletes_the_download() {
    let hub = hub_with(&[("m.gguf", FakeFile { claimed_sha256: Some(sha256(b"else")), ..lfs(b"this") })]);
    let (_dir, store) = store();
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("wrong digest");
    assert!(matches!(&error, StoreError::Checksum { actual, .. } if *actual == sha256(b"this")), "{error}");
    assert!(tree(store.dir()).is_empty());
    assert!(!store.dir().join("org").exists(), "directories that were made for it are gone");
    // What else lies there stays.
    let other = store.dir().join("org/other/m.gguf");
    std::fs::create_dir_all(other.parent().expect("a directory")).expect("made");
    std::fs::write(&other, b"here").expect("written");
    store.pull(&hub.client(), "org/repo", &mut ()).expect_err("wrong digest");
    assert!(other.exists() && !store.dir().join("org/repo").exists());
}

#[test]
fn a_busy_server_is_asked_again() {
    let hub = hub_with(&[("m.gguf", lfs(b"body"))]);
    let (_dir, store) = store();
    hub.change(|b| b.unavailable = 2);
    store.pull(&hub.client(), "org/repo", &mut ()).expect("pulled at the third try");
    assert_eq!(hub.transfers().len(), 3);
}

#[test]
fn refusals_say_what_to_do() {
    let (_dir, store) = store();
    let hub = hub_with(&[("m.gguf", lfs(b"body"))]);
    for (refuse, want) in [
        ((404, "RepoNotFound"), "has no repository org/repo"),
        ((401, "RepoNotFound"), "set HF_TOKEN"),
        ((401, "GatedRepo"), "accept its licence"),
        ((403, ""), "accept its licence"),
        ((418, ""), "HTTP 418"),
    ] {
        hub.change(|b| b.refuse = Some(refuse));
        let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("refused").to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{refuse:?}: {error}");
    }
    hub.change(|b| b.refuse = None);
    let error = store.pull(&hub.client(), "org/repo:Q8_0", &mut ()).expect_err("no such file");
    assert!(matches!(&error, StoreError::NoSuchFile { choices, .. } if choices[..] == ["m.gguf"]), "{error}");
    assert!(tree(store.dir()).is_empty());
}

#[test]
fn a_listed_file_that_is_gone_is_named() {
    let (_dir, store) = store();
    let hub = hub_with(&[]);
    hub.change(|b| b.listed_only = vec!["gone.gguf".into()]);
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("gone");
    assert!(matches!(&error, StoreError::Gone { file, .. } if file == "gone.gguf"), "{error}");
    assert!(error.to_string().contains("lists \"gone.gguf\" in org/repo and does not have it"), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_storage() {
    let (_dir, store) = store();
    let storage = hub_with(&[("m.gguf", lfs(b"body"))]);
    let hub = hub_with(&[("m.gguf", lfs(b"body"))]);
    hub.change(|b| (b.token, b.storage) = (Some("t0k"), Some(storage.url.clone())));

    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("no token");
    assert!(matches!(error, StoreError::Unauthorised { token_sent: false, .. }), "{error}");
    let error = store.pull(&hub.client_with_token(Some("bad")), "org/repo", &mut ()).expect_err("wrong token");
    assert!(matches!(error, StoreError::Unauthorised { token_sent: true, .. }), "{error}");
    store.pull(&hub.client_with_token(Some("t0k")), "org/repo", &mut ()).expect("pulled");
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].authorization, None);
}

#[test]
fn hostile_listings_are_refused_before_anything_is_written() {
    let (dir, store) = store();
    let hub = hub_with(&[]);
    for name in
        ["../../escape.gguf", "/etc/escape.gguf", "a/../../escape.gguf", "a\\..\\escape.gguf", "e\u{1b}[2J.gguf"]
    {
        hub.change(|b| b.listed_only = vec![name.into()]);
        let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("refused");
        assert!(matches!(error, StoreError::UnsafeName { .. }), "{name:?}: {error}");
        assert!(!error.to_string().contains('\u{1b}'), "{name:?}");
    }
    // A safetensors directory goes through the same gate.
    hub.change(|b| b.listed_only = vec!["config.json".into(), "\u{7}.safetensors".into()]);
    assert!(matches!(store.pull(&hub.client(), "org/repo", &mut ()), Err(StoreError::UnsafeName { .. })));
    for listing in ["", "null", "[]", "{}", r#"{"siblings":[{}]}"#, r#"{"siblings":[{"rfilename":1}]}"#] {
        hub.change(|b| b.listing = Some(listing.into()));
        let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("refused");
        assert!(matches!(error, StoreError::BadAnswer { .. }), "{listing}: {error}");
    }
    hub.change(|b| b.listing = Some(format!("{{\"siblings\":[],\"x\":\"{}\"}}", "x".repeat(17 << 20))));
    let error = store.pull(&hub.client(), "org/repo", &mut ()).expect_err("refused");
    assert!(matches!(error, StoreError::BadAnswer { .. }), "{error}");
    assert!(tree(dir.path()).is_empty());
}

#[test]
fn no_server_is_said_so() {
    let (_dir, store) = store();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let hub = store::Hub::new(store::HubOptions { endpoint, ..Default::default() }).expect("valid");
    let error = store.pull(&hub, "org/repo", &mut ()).expect_err("offline");
    assert!(matches!(error, StoreError::Offline { .. }), "{error}");
}

#[test]
fn a_malformed_spec_is_misuse_and_asks_nobody() {
    let (_dir, store) = store();
    let hub = hub_with(&[]);
    for spec in ["repo", "../repo", "org/repo:../x", "org/repo/x", ""] {
        let error = store.pull(&hub.client(), spec, &mut ()).expect_err("refused");
        assert!(error.is_misuse(), "{spec:?}: {error}");
    }
    assert!(hub.seen().is_empty());
}
