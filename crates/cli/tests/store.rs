//! Models by name: `list`, `rm`, `pull`, and the model that need not be named.

mod common;

use common::{User, fixture};

const STORE: &str = ".cache/unicorn/models";

/// Puts a tiny model into the user's store.
fn install(user: &User, fixture_name: &str, name: &str) {
    for file in ["config.json", "model.safetensors"] {
        user.write(&format!("{STORE}/{name}/{file}"), std::fs::read(fixture(fixture_name).join(file)).unwrap());
    }
}

#[test]
fn models_are_listed_taken_and_removed() {
    let user = User::new();
    let empty = user.run(&["list"]);
    assert_eq!((empty.ok(), empty.err.contains("no models")), ("", true));
    user.run(&["plan"]).fails(2, &["--model", "./quickstart"]);
    assert_eq!(user.run(&["list", "--json"]).json(), serde_json::json!([]));

    install(&user, "qwen2", "tiny-qwen");
    let plan = user.run(&["plan", "--json"]);
    assert_eq!(plan.json()["model"]["architecture"], "qwen2");
    assert!(plan.err.contains("tiny-qwen"), "the model taken is named: {plan:?}");

    let quiet = user.run(&["run", "-q", "x"]);
    quiet.fails(1, &["tokenizer"]);
    assert_eq!(quiet.err.lines().count(), 1, "the error and nothing else: {quiet:?}");

    install(&user, "llama", "org/tiny-llama");
    user.run(&["plan"]).fails(2, &["org/tiny-llama", "tiny-qwen"]);
    let list = user.run(&["list"]);
    assert!(list.ok().contains("tiny-qwen") && list.out.contains("hub org/tiny-llama"), "{list:?}");
    let json = user.run(&["list", "--json"]).json();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert!(json[0]["bytes"].as_u64().unwrap() > 100_000, "{json}");
    assert_eq!(user.run(&["inspect", "org/tiny-llama", "--json"]).json()["model"]["architecture"], "llama");

    user.run(&["rm", "tiny-qwen"]).fails(2, &["--yes"]);
    let removed = user.run(&["rm", "tiny-qwen", "--yes"]);
    removed.ok();
    assert!(removed.err.contains("freed"), "{removed:?}");
    assert!(!user.path(STORE).join("tiny-qwen").exists());
    user.run(&["rm", "tiny-qwen", "--yes"]).fails(2, &["tiny-qwen"]);
}

#[test]
fn a_hub_out_of_reach_is_named() {
    let user = User::new();
    // Nothing listens on the discard port.
    let output = user.command(&["pull", "org/repo"]).env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    common::Ran::from(output).fails(1, &["127.0.0.1:9", "HF_ENDPOINT"]);
    let output = user.command(&["pull", "org/repo"]).env("HF_ENDPOINT", "ftp://host").output().unwrap();
    common::Ran::from(output).fails(2, &["ftp://host"]);
}
