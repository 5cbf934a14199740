//! From a model file's metadata to a tokenizer and a chat template.

use files::{gguf::Gguf, hf::HfDir};
use text::{ChatTemplate, JsonConfig, TextError, TokenType, Tokenizer, Vocab};

use crate::{EngineError, ModelFile, source::Kind};

/// The tokenizer of a model; `None` where the file carries none.
///
/// # Errors
/// Where the metadata is damaged or of an unknown kind.
pub(crate) fn tokenizer(file: &ModelFile) -> Result<Option<Tokenizer>, EngineError> {
    match &file.kind {
        Kind::Gguf(gguf) => from_gguf(gguf, file),
        Kind::HuggingFace(dir) => from_directory(dir, file),
        Kind::Shape(_) => Ok(None),
    }
}

fn from_gguf(gguf: &Gguf, file: &ModelFile) -> Result<Option<Tokenizer>, EngineError> {
    let metadata = gguf.metadata();
    let Some(model) = metadata.opt_str("tokenizer.ggml.model")? else { return Ok(None) };
    // What files say that have none.
    if matches!(model, "none" | "no_vocab") {
        return Ok(None);
    }
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let mut vocab = match model {
        "gpt2" => {
            let pre = metadata.opt_str("tokenizer.ggml.pre")?.unwrap_or("default");
            Vocab::bpe(pre, tokens, metadata.strings("tokenizer.ggml.merges")?)
        }
        "llama" => Vocab::spm(tokens, metadata.f32s("tokenizer.ggml.scores")?),
        kind => return Err(EngineError::UnknownTokenizer { file: file.path.clone(), kind: kind.to_owned() }),
    };
    if let Some(types) = metadata.opt_i32s("tokenizer.ggml.token_type")? {
        vocab.types = types.into_iter().map(|number| TokenType::from_gguf(number).unwrap_or_default()).collect();
    }
    let id = |name: &str| metadata.opt_u32(&format!("tokenizer.ggml.{name}_token_id"));
    (vocab.bos, vocab.eos, vocab.eot, vocab.unk) = (id("bos")?, id("eos")?, id("eot")?, id("unknown")?);
    let flag = |name: &str| metadata.opt_bool(&format!("tokenizer.ggml.{name}"));
    if let Some(add) = flag("add_space_prefix")? {
        vocab.add_space_prefix = add;
    }
    if let Some(add) = flag("add_bos_token")? {
        vocab.add_bos = add;
    }
    vocab.add_eos = flag("add_eos_token")?.unwrap_or(false);
    Ok(Some(Tokenizer::from_vocab(vocab).map_err(|source| damaged(file, source))?))
}

fn from_directory(dir: &HfDir, file: &ModelFile) -> Result<Option<Tokenizer>, EngineError> {
    let Some(json) = dir.read_tokenizer_json()? else { return Ok(None) };
    let config = dir.tokenizer_config.clone().unwrap_or_default();
    // What these classes of transformers do where neither the flag nor a post-processor says.
    let class = config.tokenizer_class.unwrap_or_default();
    let usually_begins = ["Gemma", "Llama", "CodeLlama", "PreTrained"].iter().any(|name| class.starts_with(name));
    let mut tokenizer = Tokenizer::from_json(
        json.as_bytes(),
        &JsonConfig {
            add_bos: config.add_bos_token,
            usually_begins,
            add_eos: config.add_eos_token.unwrap_or(false),
            bos: config.bos_token,
            eos: config.eos_token,
            unk: config.unk_token,
        },
    )
    .map_err(|source| damaged(file, source))?;
    for id in dir.eos_token_ids() {
        tokenizer.add_end_token(*id).map_err(|source| damaged(file, source))?;
    }
    Ok(Some(tokenizer))
}

fn damaged(file: &ModelFile, source: TextError) -> EngineError {
    EngineError::Tokenizer { file: file.path.clone(), source: Box::new(source) }
}

/// The chat template of a model: its own, or the built-in one for a Gemma instruct model whose file lost it; `None` for
/// base models.
///
/// # Errors
/// Where the model's template does not compile.
pub(crate) fn template(
    file: &ModelFile,
    architecture: &str,
    name: Option<&str>,
) -> Result<Option<ChatTemplate>, EngineError> {
    if let Some(source) = file.template_source()? {
        return Ok(Some(ChatTemplate::new(&source).map_err(|source| damaged(file, source))?));
    }
    // Gemma's instruct models are named "-it"; base models have the same tokens, so the name is all there is to go by.
    let named = |text: &str| {
        let text = text.to_ascii_lowercase();
        text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| matches!(word, "it" | "instruct"))
    };
    let instruct = named(file.short_name()) || name.is_some_and(named);
    if architecture.starts_with("gemma") && instruct {
        return Ok(Some(ChatTemplate::gemma()?));
    }
    Ok(None)
}
