//! The fixtures: tiny models with their expected outputs.

use std::path::{Path, PathBuf};

use files::{hf::HfDir, safetensors::SafeTensors};
use tensor::DType;

/// The names of the text models among the fixtures.
pub const TEXT_FIXTURES: [&str; 7] = ["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"];

/// A fixture: a model and what transformers made of a prompt, in `f32`.
#[derive(Debug)]
pub struct Fixture {
    /// The name of its directory.
    pub name: String,
    /// The model.
    pub dir: HfDir,
    /// The prompt, `[T]`.
    pub ids: Vec<u32>,
    /// Logits at each token of the prompt, `[T, vocab]`.
    pub logits: Vec<f32>,
    /// The residual stream before the layers, between them, and after the final norm: `layers + 1` of `[T, hidden]`.
    pub hidden: Vec<Vec<f32>>,
    /// What greedy decoding appends to the prompt.
    pub greedy: Vec<u32>,
    /// The smallest distance between the two largest logits over the greedy steps.
    pub smallest_greedy_margin: f32,
}

#[derive(serde::Deserialize)]
struct Expected {
    smallest_greedy_margin: f32,
}

impl Fixture {
    /// Reads a fixture.
    ///
    /// # Panics
    /// Where a file is missing or broken.
    pub fn load(name: &str) -> Fixture {
        let path = Fixture::path(name);
        let dir = HfDir::open(&path).unwrap_or_else(|error| panic!("fixture {name}: {error}"));
        let expected = SafeTensors::open(&path.join("expected.safetensors")).expect("expected.safetensors");
        let json = std::fs::read_to_string(path.join("expected.json")).expect("expected.json");
        let json: Expected = serde_json::from_str(&json).expect("expected.json");
        let hidden = (0..).map(|layer| format!("hidden.{layer}"));
        Fixture {
            ids: ids(&expected, "input_ids"),
            logits: floats(&expected, "logits").expect("logits"),
            hidden: hidden.map_while(|name| floats(&expected, &name)).collect(),
            greedy: ids(&expected, "greedy"),
            smallest_greedy_margin: json.smallest_greedy_margin,
            name: name.to_owned(),
            dir,
        }
    }

    /// The directory of a fixture.
    pub fn path(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
    }

    /// Entries of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.logits.len() / self.ids.len()
    }
}

fn floats(file: &SafeTensors, name: &str) -> Option<Vec<f32>> {
    let info = file.tensor(name)?;
    assert_eq!(info.dtype, DType::F32, "{name}");
    Some(info.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect())
}

fn ids(file: &SafeTensors, name: &str) -> Vec<u32> {
    let info = file.tensor(name).unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!(info.dtype, DType::I64, "{name}");
    let id = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    info.data.chunks_exact(8).map(|bytes| u32::try_from(id(bytes)).expect("a token id")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixtures_are_whole() {
        for name in TEXT_FIXTURES {
            let fixture = Fixture::load(name);
            let layers = fixture.dir.config.text.num_hidden_layers.unwrap() as usize;
            assert_eq!(fixture.hidden.len(), layers + 1, "{name}");
            assert_eq!(fixture.greedy.len(), 12, "{name}");
            assert_eq!(fixture.vocab(), fixture.dir.config.text.vocab_size.unwrap() as usize, "{name}");
            assert!(fixture.smallest_greedy_margin > 0.0, "{name}");
        }
    }
}
