//! A Hugging Face model directory: config, weights, and the files of the tokenizer.
//!
//! Source: the config classes of the `transformers` library, and the config files of published models.

mod config;
mod fields;
mod rope;
mod tokenizer;

use std::path::{Path, PathBuf};

use crate::read::{read_text, read_text_if_there};
use crate::safetensors::SafeTensors;
use crate::{FileError, Problem, TensorProblem};

pub use config::{HfConfig, LayerType, PerLayer, TextConfig};
pub use fields::Setting;
pub use rope::{Rope, RopeParameters, RopeScaling};
pub use tokenizer::{GenerationConfig, TokenizerConfig};

/// A parsed value may take forty times the memory of its text, so the bound is tight: published files have up to
/// some hundred thousand bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// The largest known have a megabyte and a half, for their added tokens.
const MAX_TOKENIZER_CONFIG_BYTES: u64 = 16 << 20;
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
/// The largest known have some 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// An open model directory. Configs are read, weights mapped, the tokenizer left where it is.
#[derive(Clone, Debug)]
pub struct HfDir {
    /// The directory.
    pub path: PathBuf,
    /// `config.json`.
    pub config: HfConfig,
    /// The safetensors files.
    pub weights: SafeTensors,
    /// `generation_config.json`, if it is there.
    pub generation_config: Option<GenerationConfig>,
    /// Where `tokenizer.json` is, if it is there.
    pub tokenizer_json: Option<PathBuf>,
    /// `tokenizer_config.json`, if it is there.
    pub tokenizer_config: Option<TokenizerConfig>,
    /// The text of `chat_template.jinja`, if it is there.
    pub chat_template_jinja: Option<String>,
}

impl HfDir {
    /// Opens a directory that has at least `config.json` and weights.
    ///
    /// # Errors
    /// Where one of the files cannot be read or breaks its format. Weights whose type is unknown in a checkpoint with
    /// a `quantization_config` are answered with the quantisation method.
    pub fn open(dir: &Path) -> Result<HfDir, FileError> {
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            return Err(FileError::new(dir.display(), Problem::NoConfig));
        }
        let config = HfConfig::parse(&read_text(&config_path, MAX_CONFIG_BYTES)?, &config_path.display().to_string())?;
        let weights = SafeTensors::open_dir(dir).map_err(|err| explain_quantised(err, &config))?;
        let tokenizer_json = dir.join("tokenizer.json");
        Ok(HfDir {
            path: dir.into(),
            config,
            weights,
            generation_config: optional(dir, "generation_config.json", MAX_CONFIG_BYTES, GenerationConfig::parse)?,
            tokenizer_json: tokenizer_json.exists().then_some(tokenizer_json),
            tokenizer_config: optional(
                dir,
                "tokenizer_config.json",
                MAX_TOKENIZER_CONFIG_BYTES,
                TokenizerConfig::parse,
            )?,
            chat_template_jinja: read_text_if_there(&dir.join("chat_template.jinja"), MAX_TEMPLATE_BYTES)?,
        })
    }

    /// The text of `tokenizer.json`; `None` where there is none.
    ///
    /// # Errors
    /// Where it cannot be read, is not UTF-8, or exceeds 256 MiB.
    pub fn read_tokenizer_json(&self) -> Result<Option<String>, FileError> {
        self.tokenizer_json.as_deref().map(|path| read_text(path, MAX_TOKENIZER_BYTES)).transpose()
    }

    /// The chat template: that of `chat_template.jinja`, which transformers prefers, else the one of
    /// `tokenizer_config.json` that is named `default`.
    pub fn chat_template(&self) -> Option<&str> {
        let from_config = || self.tokenizer_config.as_ref().and_then(|config| config.chat_template("default"));
        self.chat_template_jinja.as_deref().or_else(from_config)
    }

    /// Ids that end an answer: those of `generation_config.json` where it names any, else those of `config.json`.
    pub fn eos_token_ids(&self) -> &[u32] {
        match &self.generation_config {
            Some(generation) if !generation.eos_token_ids.is_empty() => &generation.eos_token_ids,
            _ => &self.config.text.eos_token_ids,
        }
    }
}

/// Reads and parses a file that need not be there.
fn optional<T>(
    dir: &Path,
    name: &str,
    limit: u64,
    parse: impl FnOnce(&str, &str) -> Result<T, FileError>,
) -> Result<Option<T>, FileError> {
    let path = dir.join(name);
    let text = read_text_if_there(&path, limit)?;
    text.map(|text| parse(&text, &path.display().to_string())).transpose()
}

/// That F8 is unknown helps less than that the checkpoint is quantised.
fn explain_quantised(err: FileError, config: &HfConfig) -> FileError {
    match (&err.problem, &config.quantization) {
        (Problem::Tensor { problem: TensorProblem::TypeName { .. }, .. }, Some(method)) => {
            let problem = Problem::Quantised { method: crate::error::shown(method), detail: err.problem.to_string() };
            FileError::new(err.path, problem)
        }
        _ => err,
    }
}
