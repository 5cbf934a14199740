//! Fixtures that speak: a model of the fixtures with a tokenizer and a chat template of its own, in a folder of its own.
//!
//! The fixtures have weights and no words. Tests of everything above the ids (templates, streams, servers) need both, so
//! this writes a byte-level tokenizer of the fixture's 320 entries: the 256 bytes, the three control tokens of ChatML,
//! and common pairs of letters for the rest. What such a model says is noise, and the same noise every time.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::Fixture;

/// The control tokens, from id 256 on.
pub const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Pairs that are merged, from id 259 on, as many as fit into 320 entries.
const PAIRS: &str = "th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te et ng of al de se le sa \
                     si ar ve ra ld ur no ly il me us wa be io li ec el om ro ta ne ho ic ma ch ut ri ce";

/// ChatML with tools told the way of Qwen 2.5 (<https://huggingface.co/Qwen/Qwen2.5-1.5B-Instruct>), in few words.
const TEMPLATE: &str = "\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}\
{{- '\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}\
{{- '\\n</tools>\\n<tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}\
{%- endif %}\
{%- for message in messages %}\
{%- if not (tools and loop.first and message.role == 'system') %}\
{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.content %}{{- message.content }}{%- endif %}\
{%- if message.tool_calls %}{%- for call in message.tool_calls %}\
{{- '\\n<tool_call>\\n' }}{{- call.function | tojson }}{{- '\\n</tool_call>' }}{%- endfor %}{%- endif %}\
{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// The visible name of each byte in byte-level vocabularies (Radford et al. 2019, GPT-2's `bytes_to_unicode`).
fn byte_names() -> Vec<char> {
    let own = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..256)
        .map(|byte| {
            let point = if own(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(point).expect("far below the surrogates")
        })
        .collect()
}

/// The tokenizer of a speaking fixture, as `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let mut vocab: Map<String, Value> =
        byte_names().into_iter().enumerate().map(|(id, name)| (name.to_string(), json!(id))).collect();
    let first = 256 + CONTROL.len();
    let pairs: Vec<&str> = PAIRS.split_whitespace().take(320 - first).collect();
    vocab.extend(pairs.iter().enumerate().map(|(index, pair)| ((*pair).to_owned(), json!(first + index))));
    // The tokenizers crate gives added tokens that are no entries ids of its own.
    vocab.extend(CONTROL.iter().enumerate().map(|(index, name)| ((*name).to_owned(), json!(256 + index))));
    let merges: Vec<Value> = pairs.iter().map(|pair| json!([&pair[..1], &pair[1..]])).collect();
    let added: Vec<Value> = CONTROL
        .iter()
        .enumerate()
        .map(|(index, content)| {
            json!({"id": 256 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": merges},
    })
}

/// Makes a speaking copy of a fixture in `dir`, which is made where it is missing.
///
/// # Errors
/// What the file system reports.
pub fn speaking(name: &str, dir: &Path) -> io::Result<PathBuf> {
    let source = Fixture::path(name);
    let target = dir.join(name);
    fs::create_dir_all(&target)?;
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), target.join(file))?;
    }
    fs::write(target.join("tokenizer.json"), tokenizer_json().to_string())?;
    let config = json!({
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": false, "bos_token": null, "eos_token": CONTROL[2],
        "chat_template": TEMPLATE,
    });
    fs::write(target.join("tokenizer_config.json"), config.to_string())?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_the_fixtures_has_one_word() {
        let json = tokenizer_json();
        let mut ids: Vec<u64> =
            json["model"]["vocab"].as_object().unwrap().values().map(|id| id.as_u64().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..320).collect::<Vec<_>>());
    }
}
