//! Targets for the crate `files`.

use files::TensorInfo;
use files::gguf::{Gguf, Metadata};
use files::hf::{GenerationConfig, HfConfig, TokenizerConfig};
use files::safetensors::{SafeTensors, check_index};
use tensor::Bytes;

/// A GGUF file.
pub fn gguf(data: &[u8]) {
    let file = Bytes::from(data.to_vec());
    let Ok(model) = Gguf::parse(file, "fuzz.gguf") else { return };
    check_tensors(model.tensors(), data.len());
    for info in model.tensors() {
        assert_eq!(model.tensor(&info.name).map(|found| found.data.as_ptr()), Some(info.data.as_ptr()));
    }
    check_metadata(model.metadata());
}

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    let file = Bytes::from(data.to_vec());
    let Ok(model) = SafeTensors::parse(file, "fuzz.safetensors") else { return };
    check_tensors(model.tensors(), data.len());
    for info in model.tensors() {
        assert!(model.tensor(&info.name).is_some());
        assert!(model.part_of(&info.name).is_some());
    }
}

/// The JSON files of a Hugging Face directory: the same text is tried as each.
pub fn hf_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = TokenizerConfig::parse(text, "tokenizer_config.json");
    let _ = GenerationConfig::parse(text, "generation_config.json");
    let _ = check_index(text, "model.safetensors.index.json");
    let Ok(config) = HfConfig::parse(text, "config.json") else { return };
    let text = config.text;
    assert_ne!(text.vocab_size, Some(0));
    assert_ne!(text.num_attention_heads, Some(0));
    if let (Some(layers), Some(types)) = (text.num_hidden_layers, &text.layer_types) {
        assert_eq!(layers as usize, types.len());
    }
}

/// Data have the size that type and shape say, and no byte belongs to two tensors.
fn check_tensors(tensors: &[TensorInfo], file_bytes: usize) {
    for info in tensors {
        assert_eq!(info.dtype.row_bytes(info.elements()), Some(info.data.len()), "{}", info.name);
    }
    assert!(tensors.iter().map(|info| info.data.len()).sum::<usize>() <= file_bytes);
}

/// No getter panics, whatever the type of the value.
fn check_metadata(metadata: &Metadata) {
    for (key, _) in metadata.iter() {
        assert!(metadata.get(key).is_some());
        let _ = metadata.opt_str(key);
        let _ = metadata.opt_bool(key);
        let _ = metadata.opt_u32(key);
        let _ = metadata.opt_u64(key);
        let _ = metadata.opt_f32(key);
        let _ = metadata.opt_strings(key);
        let _ = metadata.opt_f32s(key);
        let _ = metadata.opt_u32s(key);
        let _ = metadata.opt_i32s(key);
        let _ = metadata.opt_bools(key);
        let _ = metadata.opt_u32_or_array(key, 3);
        if let Ok(Some(strings)) = metadata.opt_str_array(key) {
            assert!(strings.iter_bytes().eq((0..strings.len()).filter_map(|i| strings.bytes(i))));
        }
    }
}
