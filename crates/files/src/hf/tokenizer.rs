//! `tokenizer_config.json` and `generation_config.json`: the few fields that running a model needs.

use serde::Deserialize;
use serde_json::Value;

use super::fields::Fields;
use crate::{FileError, Problem};

/// A model's `tokenizer_config.json`. Fields that the file lacks are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Such as `GemmaTokenizerFast`.
    pub tokenizer_class: Option<String>,
    /// Whether encoding puts the first special token before a text.
    pub add_bos_token: Option<bool>,
    /// Whether encoding puts the last special token after a text.
    pub add_eos_token: Option<bool>,
    /// Text of the token that begins a text.
    pub bos_token: Option<String>,
    /// Text of the token that ends a text.
    pub eos_token: Option<String>,
    /// Text of the token for what cannot be encoded.
    pub unk_token: Option<String>,
    /// Text of the token that fills batches.
    pub pad_token: Option<String>,
    /// The chat templates with their names, in the order of the file; a single template is named `default`.
    pub chat_templates: Vec<(String, String)>,
}

/// The file's own form. Unknown fields, among them tens of thousands of added tokens, are skipped unread.
#[derive(Deserialize)]
struct Raw {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a token: a string, or an object with its content")]
enum Token {
    Text(String),
    Object { content: String },
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a chat template: a string, or a list of objects with name and template")]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// Reads the text of a `tokenizer_config.json`. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Where it is not JSON, or one of the fields of this type has another form.
    pub fn parse(json: &str, name: &str) -> Result<TokenizerConfig, FileError> {
        let raw: Raw = serde_json::from_str(json).map_err(|err| FileError::new(name, Problem::json(err)))?;
        let text = |token: Option<Token>| token.map(|(Token::Text(text) | Token::Object { content: text })| text);
        Ok(TokenizerConfig {
            tokenizer_class: raw.tokenizer_class,
            add_bos_token: raw.add_bos_token,
            add_eos_token: raw.add_eos_token,
            bos_token: text(raw.bos_token),
            eos_token: text(raw.eos_token),
            unk_token: text(raw.unk_token),
            pad_token: text(raw.pad_token),
            chat_templates: match raw.chat_template {
                None => Vec::new(),
                Some(Templates::One(template)) => vec![("default".into(), template)],
                Some(Templates::Named(list)) => list.into_iter().map(|named| (named.name, named.template)).collect(),
            },
        })
    }

    /// The template of this name.
    pub fn chat_template(&self, name: &str) -> Option<&str> {
        self.chat_templates.iter().find(|(own, _)| own == name).map(|(_, template)| template.as_str())
    }
}

/// A model's `generation_config.json`: what its makers advise. Fields that the file lacks are `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an answer; more complete than those of `config.json` in several models.
    pub eos_token_ids: Vec<u32>,
    /// Whether to sample at all.
    pub do_sample: Option<bool>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: Option<u32>,
    /// Probability mass kept.
    pub top_p: Option<f64>,
    /// Divisor of the logits of tokens already seen.
    pub repetition_penalty: Option<f64>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Where it is not a JSON object, or a field has another type than it should.
    pub fn parse(json: &str, name: &str) -> Result<GenerationConfig, FileError> {
        let read = || {
            let value: Value = serde_json::from_str(json).map_err(Problem::json)?;
            let fields = Fields::root(&value)?;
            Ok(GenerationConfig {
                eos_token_ids: fields.token_ids("eos_token_id")?.unwrap_or_default(),
                do_sample: fields.bool("do_sample")?,
                temperature: fields.number("temperature")?,
                top_k: fields.index("top_k")?,
                top_p: fields.number("top_p")?,
                repetition_penalty: fields.number("repetition_penalty")?,
            })
        };
        read().map_err(|problem| FileError::new(name, problem))
    }
}
