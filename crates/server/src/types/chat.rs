//! `/v1/chat/completions`.

use std::collections::HashMap;

use engine::TokenLogprob;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    fields::{self, Endpoint},
    format::{self, ResponseFormat},
    messages::{self, Message},
    sampling::{self, Sampling},
    tools::{self, Tool, ToolCall, Tools},
    usage::{Unicorn, Usage},
};
use crate::{dialogue::Dialogue, error::ApiError, options::ServerOptions};

/// A request for the next message of a chat.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// The model's name, or nothing.
    pub(crate) model: Option<String>,
    /// The chat so far.
    pub(crate) messages: Vec<Message>,
    /// Tokens of the answer at most; `max_completion_tokens` goes before it.
    pub(crate) max_tokens: Option<i64>,
    /// Tokens of the answer at most; none, or -1, goes on until the model ends or the context is full.
    pub(crate) max_completion_tokens: Option<i64>,
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
    /// Answers to make.
    pub(crate) n: Option<u32>,
    /// Whether the answer tells the logarithmic probabilities of its tokens.
    pub(crate) logprobs: Option<bool>,
    /// And those of so many of the likeliest others, up to 20.
    pub(crate) top_logprobs: Option<u32>,
    /// Whether the answer comes as it is made, as server-sent events.
    pub(crate) stream: Option<bool>,
    /// How it comes.
    pub(crate) stream_options: Option<StreamOptions>,
    /// What the answer must look like.
    pub(crate) response_format: Option<ResponseFormat>,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<Tool>>,
    /// `auto`, `none`, `required`, or an object that names a function.
    #[schema(value_type = Option<Object>)]
    pub(crate) tool_choice: Option<Value>,
    /// Whether more than one call may be made.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// What the model's template reads beside messages and tools, as `enable_thinking`. Not one of OpenAI's fields.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Who asks; not used.
    #[expect(dead_code, reason = "taken and of no effect, as with OpenAI")]
    pub(crate) user: Option<Value>,
    /// Labels; not used.
    #[expect(dead_code, reason = "taken and of no effect, as with OpenAI")]
    #[schema(value_type = Option<Object>)]
    pub(crate) metadata: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub(crate) rest: Map<String, Value>,
}

/// How a stream comes.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk tells the tokens used.
    pub(crate) include_usage: Option<bool>,
    /// Not served.
    #[schema(ignore)]
    pub(crate) include_obfuscation: Option<bool>,
}

impl StreamOptions {
    /// Whether usage is wanted, where `stream` is.
    pub(crate) fn usage(options: Option<&StreamOptions>, stream: bool) -> Result<bool, ApiError> {
        let Some(options) = options else { return Ok(false) };
        if !stream {
            return Err(ApiError::value("stream_options", "stream_options is for streams: set stream to true."));
        }
        if options.include_obfuscation == Some(true) {
            let why = "Chunks are not padded.";
            return Err(ApiError::unsupported("stream_options.include_obfuscation", why));
        }
        Ok(options.include_usage.unwrap_or(false))
    }
}

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) dialogue: Dialogue,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) ignored: Vec<String>,
}

impl ChatRequest {
    pub(crate) fn parse(self, options: &ServerOptions) -> Result<Chat, ApiError> {
        let limits = &options.limits;
        let ignored = fields::check(Endpoint::Chat, &self.rest)?;
        let sampler = self.sampling().options(&options.sampler)?;
        let (max, name) = match self.max_completion_tokens {
            Some(max) => (Some(max), "max_completion_tokens"),
            None => (self.max_tokens, "max_tokens"),
        };
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(sampling::alternatives(top.unwrap_or(0), "top_logprobs")?),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(ApiError::value("top_logprobs", "top_logprobs needs logprobs to be true."));
            }
        };
        let stream = self.stream.unwrap_or(false);
        let functions = tools::functions(self.tools.unwrap_or_default())?;
        let choice = tools::choice(self.tool_choice.as_ref())?;
        let dialogue = Dialogue {
            messages: messages::messages(self.messages)?,
            variables: self.chat_template_kwargs.unwrap_or_default(),
            tools: Tools::new(functions, choice, self.parallel_tool_calls)?,
            format: format::format(self.response_format.as_ref(), "response_format")?,
            format_field: "response_format",
            prompt_field: "messages",
            max_tokens: sampling::answer_tokens(max, name, limits)?,
            sampler,
            stop: sampling::stops(self.stop.as_ref())?,
            ignore_end: self.ignore_eos.unwrap_or(false),
            choices: sampling::choices(self.n, limits)?,
            logprobs,
        };
        let include_usage = StreamOptions::usage(self.stream_options.as_ref(), stream)?;
        Ok(Chat { dialogue, stream, include_usage, ignored })
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling {
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
        }
    }
}

/// The answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatReply {
    /// Names the answer.
    pub(crate) id: String,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The model's name.
    pub(crate) model: String,
    /// One for each answer asked for.
    pub(crate) choices: Vec<ChatChoice>,
    /// Tokens used.
    pub(crate) usage: Usage,
    /// The program that answered.
    pub(crate) system_fingerprint: &'static str,
    /// What this server says beyond OpenAI's fields.
    pub(crate) unicorn: Unicorn,
}

/// An answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    /// Its number.
    pub(crate) index: usize,
    /// The message.
    pub(crate) message: ChatMessage,
    /// Probabilities of its tokens, where asked for.
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub(crate) finish_reason: &'static str,
}

/// The message of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// `assistant`.
    pub(crate) role: &'static str,
    /// Its text; null where there are calls alone.
    pub(crate) content: Option<String>,
    /// Always null.
    pub(crate) refusal: Option<String>,
    /// Calls that it makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// Probabilities of the tokens of a message.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    /// Of each token.
    pub(crate) content: Vec<ChatLogprob>,
    /// Always null.
    pub(crate) refusal: Option<Vec<ChatLogprob>>,
}

/// A token with its probability.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprob {
    /// Its text; U+FFFD stands for what is no whole character.
    pub(crate) token: String,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// The likeliest tokens at this place.
    pub(crate) top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    /// Its text.
    pub(crate) token: String,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// What OpenAI writes for a probability of 0; JSON has no infinity.
const NEVER: f32 = -9999.0;

pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

impl From<TokenLogprob> for ChatLogprob {
    fn from(token: TokenLogprob) -> ChatLogprob {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let top = |(_, bytes, logprob): (u32, Vec<u8>, f32)| TopLogprob {
            token: text(&bytes),
            logprob: finite(logprob),
            bytes,
        };
        ChatLogprob {
            token: text(&token.bytes),
            logprob: finite(token.logprob),
            bytes: token.bytes,
            top_logprobs: token.top.into_iter().map(top).collect(),
        }
    }
}

/// A piece of the answers, in a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    /// Names the answer; the same in all pieces.
    pub(crate) id: String,
    /// `chat.completion.chunk`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The model's name.
    pub(crate) model: String,
    /// The program that answered.
    pub(crate) system_fingerprint: &'static str,
    /// One, or none in the piece that tells the usage.
    pub(crate) choices: Vec<ChunkChoice>,
    /// Tokens used: in the last piece, where asked for; null in the others then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
    /// What this server says beyond OpenAI's fields; in the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unicorn: Option<Unicorn>,
}

/// A piece of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    /// The answer's number.
    pub(crate) index: usize,
    /// What is new.
    pub(crate) delta: ChatDelta,
    /// Probabilities of the new tokens, where asked for.
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// Why the answer ended; null before its last piece.
    pub(crate) finish_reason: Option<&'static str>,
}

/// What is new in a message.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatDelta {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    /// More of the calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallDelta>,
}

/// What is new in a call.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ToolCallDelta {
    /// The call's number.
    pub(crate) index: usize,
    /// Names the call, in its first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// `function`, in its first piece.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    /// What is new.
    pub(crate) function: FunctionDelta,
}

/// What is new in a called function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    /// Its name, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// More of the arguments' JSON.
    pub(crate) arguments: String,
}
