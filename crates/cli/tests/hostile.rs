//! Damaged files: one line that names the file, exit code 1, nothing half-written.

mod common;

use common::{User, fixture};
use testkit::published;

/// A GGUF file that says no more than that its architecture is `name`.
fn gguf(name: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text(name)].concat());
    file
}

#[test]
fn damaged_gguf_files_are_refused_in_one_line() {
    let user = User::new();
    let whole = gguf("llama");
    let mut lying = whole.clone();
    lying[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases = [
        ("empty.gguf", Vec::new()),
        ("text.gguf", b"once upon a time".to_vec()),
        ("magic.gguf", whole[..4].to_vec()),
        ("half.gguf", whole[..whole.len() / 2].to_vec()),
        ("bare.gguf", whole.clone()),
        ("lying.gguf", lying),
        ("mamba.gguf", gguf("mamba")),
        ("escape.gguf", gguf("\x1b[2J\nunicorn: fine")),
    ];
    for (name, bytes) in cases {
        let path = user.write(name, bytes);
        let path = path.to_str().unwrap();
        let output = user.path("out");
        let output = output.to_str().unwrap();
        for arguments in [
            &["run", "-m", path, "x", "-o", output][..],
            &["inspect", path],
            &["plan", "-m", path],
            &["logits", "-m", path, "--ids", "1", "-o", output],
            &["bench", "-m", path],
            &["chat", "-m", path],
        ] {
            let ran = user.run(arguments);
            ran.fails(1, &[name]);
            assert!(!ran.err.contains('\x1b'), "{ran:?}");
        }
        assert!(!user.path("out").exists(), "{name}");
    }
}

#[test]
fn damaged_directories_are_refused_in_one_line() {
    let user = User::new();
    let config = std::fs::read(fixture("qwen2").join("config.json")).unwrap();
    let weights = std::fs::read(fixture("qwen2").join("model.safetensors")).unwrap();
    for (name, config, weights) in [
        ("no-weights", &config[..], None),
        ("cut-config", &config[..config.len() / 2], Some(&weights[..])),
        ("cut-weights", &config[..], Some(&weights[..weights.len() - 1])),
        ("no-json", b"{}", Some(&weights[..])),
    ] {
        user.write(&format!("{name}/config.json"), config);
        if let Some(weights) = weights {
            user.write(&format!("{name}/model.safetensors"), weights);
        }
        user.run(&["plan", "-m", user.path(name).to_str().unwrap()]).fails(1, &[name]);
    }
}

/// Sets an element of a 16-bit tensor of a safetensors file to NaN.
fn damage(path: &std::path::Path, tensor: &str, element: usize) {
    let mut file = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let first = json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    file[8 + header + first + 2 * element..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_model_that_computes_no_numbers_fails_and_its_damage_is_named() {
    let user = User::new();
    let model = testkit::speaking("mistral", user.home.path()).unwrap();
    damage(&model.join("model.safetensors"), "lm_head.weight", 5);
    let path = model.to_str().unwrap();
    let text = user.write("text.txt", "the sea and the land and the heaven and the earth");
    let words = ["mistral: ", "not numbers", "lm_head.weight", "row 0, column 5", "fetch"];
    for arguments in [
        &["run", "-m", path, "a", "-o", "out"][..],
        &["run", "-m", path, "a", "-o", "out", "--temperature", "1", "--top-k", "3"],
        &["run", "-m", path, "a", "-o", "out", "--logit-bias", "0=-inf"],
        &["logits", "-m", path, "--ids", "1,2,3", "-o", "out"],
        &["perplexity", "-m", path, "--file", text.to_str().unwrap(), "--window", "4"],
    ] {
        user.run(arguments).fails(1, &words);
        assert!(!user.path("out").exists(), "{arguments:?}");
    }
    let chat = user.run_with(&["chat", "-m", path], "hello\n");
    assert!(chat.code == Some(1) && words.iter().all(|word| chat.err.contains(word)), "{chat:?}");
}

#[test]
fn a_truncated_published_model_is_refused_at_every_cut() {
    let Some(model) = published("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let whole = std::fs::read(model).unwrap();
    let user = User::new();
    for bytes in [3, 4, 23, 24, 1_000, 100_000, 1_000_000, 2_000_000, 50_000_000, whole.len() - 1] {
        let path = user.write("cut.gguf", &whole[..bytes]);
        user.run(&["run", "-m", path.to_str().unwrap(), "x"]).fails(1, &["cut.gguf"]);
    }
}

#[test]
fn damaged_text_files_are_refused() {
    let Some(model) = published("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let model = model.to_str().unwrap();
    let user = User::new();
    for (messages, words) in [
        ("[{\"role\":", &["messages.json", "JSON"][..]),
        ("{}", &["messages.json", "list"]),
        ("[1]", &["messages.json"]),
    ] {
        user.write("messages.json", messages);
        user.run(&["template", "-m", model, "--messages", "messages.json"]).fails(1, words);
    }
    user.run(&["template", "-m", model, "--messages", "absent.json"]).fails(1, &["absent.json"]);
    user.run_with(&["tokenize", "-m", model], b"ab\xff").fails(1, &["standard input", "byte 2"]);
    user.run_with(&["run", "-m", model], b"ab\xff").fails(1, &["standard input", "byte 2"]);
    user.write("latin1.txt", b"caf\xe9");
    user.run(&["perplexity", "-m", model, "--file", "latin1.txt"]).fails(1, &["latin1.txt", "byte 3"]);
    user.write("short.txt", "Too short.");
    user.run(&["perplexity", "-m", model, "--file", "short.txt"]).fails(2, &["short.txt", "--window"]);
}
