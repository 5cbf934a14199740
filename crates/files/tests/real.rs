//! Published models and fixtures, where they are at hand: `cargo test -p files --release -- --ignored --nocapture`.

use files::gguf::Gguf;
use files::hf::HfDir;

/// (file, architecture, tensors, vocabulary)
const MODELS: [(&str, &str, usize, usize); 3] = [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", "llama", 272, 49152),
    ("gemma-3-270m-q4_k_m.gguf", "gemma3", 236, 262144),
    ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "qwen2", 339, 151936),
];

#[test]
#[ignore = "needs the published models in ~/.cache/unicorn/models"]
fn published_gguf_files() {
    for (file, architecture, tensors, vocabulary) in MODELS {
        let Some(path) = testkit::published(file) else { continue };
        let model = Gguf::open(&path).unwrap();
        let meta = model.metadata();
        let tokens = meta.strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!(meta.str("general.architecture").unwrap(), architecture);
        assert_eq!((model.tensors().len(), tokens.len()), (tensors, vocabulary));
        let layers = meta.u32(&format!("{architecture}.block_count")).unwrap() as usize;
        let widths = meta.u32_or_array(&format!("{architecture}.feed_forward_length"), layers).unwrap();
        assert_eq!(widths.len(), layers);
        assert!(meta.f32(&format!("{architecture}.rope.freq_base")).unwrap() > 1e4);
        let embd = model.tensor("token_embd.weight").unwrap();
        assert_eq!(embd.shape[0], vocabulary);
        assert!(embd.data.is_mapped());
    }
}

#[test]
#[ignore = "needs UNICORN_FIXTURES, a directory of Hugging Face model directories"]
fn fixture_directories() {
    let Some(root) = std::env::var_os("UNICORN_FIXTURES") else {
        println!("skipped: UNICORN_FIXTURES is not set");
        return;
    };
    let mut opened = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let dir = entry.unwrap().path();
        let model = HfDir::open(&dir).unwrap();
        let text = &model.config.text;
        let embeds = |name: &str| name.ends_with("embed_tokens.weight");
        let embd = model.weights.tensors().iter().find(|info| embeds(&info.name)).unwrap();
        let expected = [text.vocab_size, text.hidden_size].map(|size| size.unwrap() as usize);
        assert_eq!(embd.shape, expected, "{}", dir.display());
        opened += 1;
    }
    println!("{opened} directories");
    assert!(opened > 0);
}
