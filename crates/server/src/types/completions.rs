//! `/v1/completions`.

use std::collections::HashMap;

use engine::{Format, SamplerOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    chat::StreamOptions,
    fields::{self, Endpoint},
    format::{self, ResponseFormat},
    sampling::{self, Sampling},
    usage::{Unicorn, Usage},
};
use crate::{error::ApiError, options::ServerOptions};

/// Tokens of an answer where none is said, as with OpenAI.
const DEFAULT_MAX_TOKENS: i64 = 16;

/// A request to go on with texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// The model's name, or nothing.
    pub(crate) model: Option<String>,
    /// A string, an array of strings, token ids, or an array of arrays of ids.
    #[schema(value_type = Object)]
    pub(crate) prompt: Option<Value>,
    /// Tokens of an answer at most; 16 where absent, -1 goes on until the model ends. 0 is for `echo` with `logprobs`.
    pub(crate) max_tokens: Option<i64>,
    /// 0 takes the likeliest token, 1 (the default) draws from the model's distribution; up to 2.
    pub(crate) temperature: Option<f32>,
    /// Draws from the likeliest tokens that together have this probability.
    pub(crate) top_p: Option<f32>,
    /// Draws from so many of the likeliest tokens; 0 or -1 from all.
    pub(crate) top_k: Option<i64>,
    /// Draws from tokens at least so likely, relative to the likeliest.
    pub(crate) min_p: Option<f32>,
    /// Draws from tokens about as surprising as expected that together have this probability.
    pub(crate) typical_p: Option<f32>,
    /// Divides the logits of the last tokens; 1 is off.
    #[serde(alias = "repeat_penalty")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtracted for each time a token was generated; -2 to 2.
    pub(crate) frequency_penalty: Option<f32>,
    /// Subtracted where a token was generated; -2 to 2.
    pub(crate) presence_penalty: Option<f32>,
    /// Added to the logits of single tokens, by id; -100 bans a token.
    pub(crate) logit_bias: Option<HashMap<String, f32>>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// A string, or up to 16, that end the answer and are not part of it.
    #[schema(value_type = Option<Vec<String>>)]
    pub(crate) stop: Option<Value>,
    /// Goes on past the model's end.
    pub(crate) ignore_eos: Option<bool>,
    /// Answers to each prompt.
    pub(crate) n: Option<u32>,
    /// Not served beyond `n`.
    pub(crate) best_of: Option<u32>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: Option<bool>,
    /// The logarithmic probabilities of the tokens, those of the prompt too where it is echoed, with so many of the
    /// likeliest others, up to 20.
    pub(crate) logprobs: Option<u32>,
    /// Whether the answer comes as it is made, as server-sent events.
    pub(crate) stream: Option<bool>,
    /// How it comes.
    pub(crate) stream_options: Option<StreamOptions>,
    /// What the answer must look like; not one of OpenAI's fields here.
    pub(crate) response_format: Option<ResponseFormat>,
    /// Who asks; not used.
    #[expect(dead_code, reason = "taken and of no effect, as with OpenAI")]
    pub(crate) user: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub(crate) rest: Map<String, Value>,
}

/// A text, or the ids of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampler: SamplerOptions,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_end: bool,
    pub(crate) choices: usize,
    pub(crate) echo: bool,
    pub(crate) logprobs: Option<usize>,
    pub(crate) format: Option<Format>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) ignored: Vec<String>,
}

impl CompletionRequest {
    pub(crate) fn parse(self, options: &ServerOptions) -> Result<Completion, ApiError> {
        let ignored = fields::check(Endpoint::Completions, &self.rest)?;
        let limits = &options.limits;
        let choices = sampling::choices(self.n, limits)?;
        if self.best_of.is_some_and(|best| best as usize != choices) {
            return Err(ApiError::unsupported("best_of", "Every answer made is returned: use n."));
        }
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.as_ref(),
            seed: self.seed,
        };
        let stream = self.stream.unwrap_or(false);
        let asked = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let logprobs = self.logprobs.map(|count| sampling::alternatives(count, "logprobs")).transpose()?;
        let echo = self.echo.unwrap_or(false);
        if asked == 0 && !echo {
            return Err(ApiError::value("max_tokens", "max_tokens is 0: that is for echo, which shows the prompt."));
        }
        let prompts = prompts(self.prompt.ok_or_else(|| ApiError::missing("prompt"))?, "prompt", limits.prompts)?;
        if prompts.len() * choices > limits.prompts {
            let message = format!("n is {choices}, for {} prompts: at most {} answers.", prompts.len(), limits.prompts);
            return Err(ApiError::value("n", message));
        }
        Ok(Completion {
            prompts,
            max_tokens: match asked {
                0 => Some(0),
                asked => sampling::answer_tokens(Some(asked), "max_tokens", limits)?,
            },
            sampler: sampling.options(&options.sampler)?,
            stop: sampling::stops(self.stop.as_ref())?,
            ignore_end: self.ignore_eos.unwrap_or(false),
            choices,
            echo,
            logprobs,
            format: format::format(self.response_format.as_ref(), "response_format")?,
            stream,
            include_usage: StreamOptions::usage(self.stream_options.as_ref(), stream)?,
            ignored,
        })
    }
}

/// A string, an array of strings, ids, or an array of arrays of ids: at most `most` of them.
pub(crate) fn prompts(value: Value, path: &str, most: usize) -> Result<Vec<Prompt>, ApiError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of arrays of token ids";
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        Value::Null => return Err(ApiError::missing(path)),
        _ => return Err(ApiError::wrong_type(path, EXPECTED)),
    };
    if matches!(items.first(), Some(Value::Number(_))) {
        return Ok(vec![Prompt::Ids(ids(&items, path)?)]);
    }
    if items.is_empty() || items.len() > most {
        return Err(ApiError::value(path, format!("{path} has {} items: it may have 1 to {most}.", items.len())));
    }
    let prompt = |(at, item): (usize, Value)| match item {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) => Ok(Prompt::Ids(ids(&items, &format!("{path}[{at}]"))?)),
        _ => Err(ApiError::wrong_type(format!("{path}[{at}]"), "a string or an array of token ids")),
    };
    items.into_iter().enumerate().map(prompt).collect()
}

fn ids(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(at, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::wrong_type(format!("{path}[{at}]"), "a token id"))
    };
    items.iter().enumerate().map(id).collect()
}

/// The answers; in a stream, a piece of one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CompletionReply {
    /// Names the answer.
    pub(crate) id: String,
    /// `text_completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The model's name.
    pub(crate) model: String,
    /// The answers to the first prompt, then those to the second, and so on.
    pub(crate) choices: Vec<CompletionChoice>,
    /// Tokens used; in a stream in the last piece, where asked for, and null in the others then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
    /// The program that answered.
    pub(crate) system_fingerprint: &'static str,
    /// What this server says beyond OpenAI's fields; in a stream in the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unicorn: Option<Unicorn>,
}

/// An answer, or a piece of one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    /// The text.
    pub(crate) text: String,
    /// Its number.
    pub(crate) index: usize,
    /// Probabilities, where asked for.
    pub(crate) logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null before the last piece.
    pub(crate) finish_reason: Option<&'static str>,
}

/// Probabilities of the tokens of a text: lists of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// Texts of the tokens; `bytes:\xe2\x82` for one that is no whole character.
    pub(crate) tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first of a prompt.
    pub(crate) token_logprobs: Vec<Option<f64>>,
    /// The likeliest tokens at each place, the one that stands there among them; null for the first of a prompt.
    #[schema(value_type = Vec<Option<Object>>)]
    pub(crate) top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each begins in the text, in characters.
    pub(crate) text_offset: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prompts_are_texts_or_ids() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (value, want) in [
            (json!("a"), Ok(vec![text("a")])),
            (json!(["a", "b"]), Ok(vec![text("a"), text("b")])),
            (json!([1, 2]), Ok(vec![Prompt::Ids(vec![1, 2])])),
            (json!([[1], [2, 3]]), Ok(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])])),
            (json!([]), Err("prompt")),
            (json!(3), Err("prompt")),
            (json!({}), Err("prompt")),
            (json!(null), Err("prompt")),
            (json!(["a", 3]), Err("prompt[1]")),
            (json!([1, "a"]), Err("prompt[1]")),
            (json!([1, -2]), Err("prompt[1]")),
            (json!([1.5]), Err("prompt[0]")),
            (json!([[1], [2, 4_294_967_296u64]]), Err("prompt[1][1]")),
            (json!(["a", "b", "c", "d", "e"]), Err("prompt")),
        ] {
            let got = prompts(value.clone(), "prompt", 4);
            match want {
                Ok(want) => assert_eq!(got.unwrap(), want, "{value}"),
                Err(param) => assert_eq!(got.unwrap_err().param.as_deref(), Some(param), "{value}"),
            }
        }
    }

    #[test]
    fn what_is_not_served_is_refused() {
        for (body, param) in [
            (json!({"prompt": "a"}), None),
            (json!({"prompt": "a", "best_of": 1, "suffix": null}), None),
            (json!({"prompt": "a", "n": 2, "best_of": 2}), None),
            (json!({"prompt": "a", "best_of": 3}), Some("best_of")),
            (json!({"prompt": "a", "suffix": "b"}), Some("suffix")),
            (json!({"prompt": "a", "max_tokens": 0}), Some("max_tokens")),
            (json!({"prompt": "a", "max_tokens": 0, "echo": true}), None),
            (json!({"prompt": "a", "max_tokens": -1}), None),
            (json!({"prompt": "a", "max_tokens": -3}), Some("max_tokens")),
            (json!({"prompt": vec!["a"; 100], "n": 20}), None),
            (json!({"prompt": vec!["a"; 100], "n": 21}), Some("n")),
            (json!({"prompt": "a", "logprobs": 21}), Some("logprobs")),
            (json!({"prompt": "a", "n": 0}), Some("n")),
            (json!({"prompt": "a", "stream_options": {"include_usage": true}}), Some("stream_options")),
            (json!({}), Some("prompt")),
        ] {
            let wire: CompletionRequest = serde_json::from_value(body.clone()).unwrap();
            let got = wire.parse(&ServerOptions::default());
            assert_eq!(got.err().and_then(|error| error.param).as_deref(), param, "{body}");
        }
    }
}
