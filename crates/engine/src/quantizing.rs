//! From an opened model to what the quantiser takes, tensors and metadata in GGUF's form, and back from memory.

use std::path::PathBuf;

use files::{
    gguf::{Array, Gguf, Value},
    hf::HfDir,
};
use quantize::{Importance, Mix, Plan, Report, Source, WriteOptions};
use serde_json::Value as Json;

use crate::{EngineError, ModelFile, source::Kind};

impl ModelFile {
    /// The model as the quantiser takes it, with notices for the user.
    ///
    /// # Errors
    /// Where the model is of a family that has no GGUF form here, or its tokenizer cannot be read.
    pub fn quantize_source(&self) -> Result<(Source, Vec<String>), EngineError> {
        match &self.kind {
            Kind::Gguf(gguf) => {
                // What most of its bytes are.
                let bytes = |dtype| {
                    let own = gguf.tensors().iter().filter(|info| info.dtype == dtype);
                    own.map(|info| info.data.len()).sum::<usize>()
                };
                let blocks = gguf.tensors().iter().map(|info| info.dtype).filter(|dtype| dtype.is_block());
                let most = blocks.max_by_key(|dtype| bytes(*dtype));
                let notice = most.map(|dtype| {
                    format!("the source is quantised already (most of it to {dtype}): what was lost then stays lost")
                });
                Ok((Source::gguf(gguf), notice.into_iter().collect()))
            }
            Kind::HuggingFace(dir) => directory(self, dir),
            Kind::Shape(_) => Err(EngineError::Unusable("a shape without a file cannot be quantised".to_owned())),
        }
    }

    /// The same model with other types, in memory, with what was done. It takes the memory of its weights until it is
    /// dropped, and what a device makes of them comes on top.
    ///
    /// # Errors
    /// As [`ModelFile::quantize_source`], and where a weight cannot be packed.
    pub fn quantized(
        &self,
        mix: &Mix,
        importance: Option<&Importance>,
        options: &WriteOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(ModelFile, Report), EngineError> {
        let (source, _) = self.quantize_source()?;
        let plan = Plan::new(&source, mix, importance.is_some())?;
        self.packed(&source, &plan, importance, options, progress)
    }

    /// As [`ModelFile::quantized`], of a plan.
    pub(crate) fn packed(
        &self,
        source: &Source,
        plan: &Plan,
        importance: Option<&Importance>,
        options: &WriteOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(ModelFile, Report), EngineError> {
        let (bytes, report) = quantize::pack(source, plan, importance, options, progress)?;
        let gguf = Gguf::parse(bytes, &self.path)?;
        Ok((self.with_kind(Kind::Gguf(Box::new(gguf))), report))
    }
}

fn directory(file: &ModelFile, dir: &HfDir) -> Result<(Source, Vec<String>), EngineError> {
    let model = |source| EngineError::Model { file: file.path.clone(), source: Box::new(source) };
    let export = models::export(dir).map_err(model)?;
    let (mut metadata, mut notices) = (export.metadata, export.notices);
    let rows = |name: &str| export.tensors.iter().find(|tensor| tensor.name == name)?.shape.first().copied();
    let vocab = rows("token_embd.weight").unwrap_or(0);
    match dir.read_tokenizer_json()? {
        Some(json) => metadata.extend(tokenizer(dir, &json, vocab).map_err(EngineError::Unusable)?),
        None => {
            notices.push("the directory has no tokenizer.json: the result takes ids and no text".to_owned());
            metadata.push(("tokenizer.ggml.model".to_owned(), "none".into()));
        }
    }
    if let Some(template) = file.template_source()? {
        metadata.push(("tokenizer.chat_template".to_owned(), template.as_str().into()));
    }
    Ok((Source { metadata, tensors: export.tensors, files: weight_files(dir) }, notices))
}

fn weight_files(dir: &HfDir) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(&dir.path) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

/// Numbers of `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// `tokenizer.ggml.*` of a `tokenizer.json` with a BPE model. One with a fallback to bytes is SentencePiece's: there a
/// merge is worth what its result scores, so that the first merge of the list scores highest.
fn tokenizer(dir: &HfDir, json: &str, vocab: usize) -> Result<Vec<(String, Value)>, String> {
    let json: Json = serde_json::from_str(json).map_err(|error| format!("tokenizer.json: {error}"))?;
    let model = &json["model"];
    if model["type"].as_str().is_some_and(|kind| kind != "BPE") {
        return Err(format!("tokenizer.json: a model of type {} has no form in GGUF here", model["type"]));
    }
    let (mut tokens, mut types) = tokens(&json, vocab)?;
    let merges = merges(model)?;
    let spm = model["byte_fallback"].as_bool().unwrap_or(false);
    let mut metadata: Vec<(String, Value)> = Vec::new();
    let mut set = |key: &str, value: Value| metadata.push((format!("tokenizer.ggml.{key}"), value));
    if spm {
        let mut scores = vec![-1e6f32; tokens.len()];
        let ids: std::collections::HashMap<&str, usize> =
            tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
        for (rank, merge) in merges.iter().enumerate().rev() {
            if let Some(id) = ids.get(merge.replacen(' ', "", 1).as_str()) {
                scores[*id] = -(rank as f32);
            }
        }
        set("model", "llama".into());
        set("pre", "default".into());
        set("scores", scores[..].into());
        set("add_space_prefix", Value::Bool(json.to_string().contains("\"prepend\"")));
    } else {
        set("model", "gpt2".into());
        set("pre", split_name(&json).into());
        set("merges", Value::Array(Array::Strings(merges.iter().collect())));
    }
    let config = dir.tokenizer_config.clone().unwrap_or_default();
    let unknown = config.unk_token.clone().or_else(|| model["unk_token"].as_str().map(str::to_owned));
    let id = |text: &Option<String>| tokens.iter().position(|token| Some(token) == text.as_ref());
    if let Some(id) = id(&unknown) {
        types[id] = token_type::UNKNOWN;
    }
    let eos = dir.eos_token_ids().first().map(|id| *id as usize);
    let special = [
        ("bos", id(&config.bos_token).or(dir.config.text.bos_token_ids.first().map(|id| *id as usize))),
        ("eos", id(&config.eos_token).or(eos)),
        ("unknown", id(&unknown)),
        ("padding", id(&config.pad_token)),
    ];
    for (name, id) in special {
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            set(&format!("{name}_token_id"), Value::U32(id));
        }
    }
    let begins = config.add_bos_token.unwrap_or_else(|| json["post_processor"].to_string().contains("SpecialToken"));
    set("add_bos_token", Value::Bool(begins));
    set("add_eos_token", Value::Bool(config.add_eos_token.unwrap_or(false)));
    set("token_type", types[..].into());
    set("tokens", Value::Array(Array::Strings(tokens.drain(..).collect())));
    Ok(metadata)
}

/// Tokens with their types, filled up to the rows of the embedding.
fn tokens(json: &Json, vocab: usize) -> Result<(Vec<String>, Vec<i32>), String> {
    let list = json["model"]["vocab"].as_object().ok_or("tokenizer.json: no vocabulary")?;
    let added = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |id: &Json| id.as_u64().and_then(|id| usize::try_from(id).ok());
    let most = list.len() + added.len() + vocab;
    let mut tokens: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![token_type::UNUSED; vocab];
    let mut put = |id: usize, text: &str, kind: i32| {
        if id >= most {
            return Err(format!("tokenizer.json: token id {id} in a vocabulary of {most}"));
        }
        while tokens.len() <= id {
            tokens.push(format!("[PAD{}]", tokens.len()));
            types.push(token_type::UNUSED);
        }
        (tokens[id], types[id]) = (text.to_owned(), kind);
        Ok(())
    };
    for (text, number) in list {
        let byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if byte { token_type::BYTE } else { token_type::NORMAL };
        put(id(number).ok_or("tokenizer.json: a token without an id")?, text, kind)?;
    }
    for token in added {
        let kind =
            if token["special"].as_bool() == Some(true) { token_type::CONTROL } else { token_type::USER_DEFINED };
        let text = token["content"].as_str().ok_or("tokenizer.json: an added token without content")?;
        put(id(&token["id"]).ok_or("tokenizer.json: an added token without an id")?, text, kind)?;
    }
    if vocab > 0 && tokens.len() > vocab {
        return Err(format!("tokenizer.json has {} tokens, the embedding {vocab} rows", tokens.len()));
    }
    Ok((tokens, types))
}

/// `left right`, in old files as a string and in new ones as a pair.
fn merges(model: &Json) -> Result<Vec<String>, String> {
    let list = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    };
    list.iter().map(merge).collect::<Option<_>>().ok_or_else(|| "tokenizer.json: a merge that is no pair".to_owned())
}

/// The name that llama.cpp gives the split of words, by marks of its expression.
fn split_name(json: &Json) -> &'static str {
    let split = json["pre_tokenizer"].to_string();
    match () {
        () if split.contains(r"\\p{Lu}") && split.contains(r"\\p{N}{1,3}") => "gpt-4o",
        () if split.contains(r"\\p{Lu}") => "tekken",
        () if split.contains(r"\\p{N}{1,3}") => "llama-bpe",
        () if split.contains(r"\\p{N}|") => "qwen2",
        () if split.contains("Digits") => "smollm",
        () => "gpt-2",
    }
}
