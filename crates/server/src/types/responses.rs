//! `/v1/responses`, without what needs a memory between requests.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    chat::ChatLogprob,
    fields::{self, Endpoint},
    format::{self, ResponseFormat},
    responses_input,
    sampling::{self, Sampling},
    tools::{self, Function, Tools},
    usage::Unicorn,
};
use crate::{dialogue::Dialogue, error::ApiError, options::ServerOptions};

/// What `include` asks for where it wants probabilities.
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";

/// A request for a response.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseRequest {
    /// The model's name, or nothing.
    pub(crate) model: Option<String>,
    /// A string, or items: messages, calls, and what came of calls.
    #[schema(value_type = Object)]
    pub(crate) input: Option<Value>,
    /// Goes before the input, as the system's message.
    pub(crate) instructions: Option<String>,
    /// Tokens of the response at most.
    pub(crate) max_output_tokens: Option<i64>,
    /// 0 takes the likeliest token, 1 (the default) draws from the model's distribution; up to 2.
    pub(crate) temperature: Option<f32>,
    /// Draws from the likeliest tokens that together have this probability.
    pub(crate) top_p: Option<f32>,
    /// Draws from so many of the likeliest tokens; 0 or -1 from all. Not one of OpenAI's fields.
    pub(crate) top_k: Option<i64>,
    /// Draws from tokens at least so likely, relative to the likeliest. Not one of OpenAI's fields.
    pub(crate) min_p: Option<f32>,
    /// The same seed gives the same response. Not one of OpenAI's fields.
    pub(crate) seed: Option<i64>,
    /// So many of the likeliest tokens at each place, where `include` asks for probabilities.
    pub(crate) top_logprobs: Option<u32>,
    /// `message.output_text.logprobs`, or nothing.
    pub(crate) include: Option<Vec<String>>,
    /// Whether the response comes as it is made, as server-sent events.
    pub(crate) stream: Option<bool>,
    /// Not served.
    #[schema(ignore)]
    pub(crate) stream_options: Option<super::chat::StreamOptions>,
    /// What the text must look like.
    pub(crate) text: Option<TextOptions>,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<FlatTool>>,
    /// `auto`, `none`, `required`, or an object that names a function.
    #[schema(value_type = Option<Object>)]
    pub(crate) tool_choice: Option<Value>,
    /// Whether more than one call may be made.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Labels, which come back with the response.
    #[schema(value_type = Option<Object>)]
    pub(crate) metadata: Option<Value>,
    /// Who asks; not used.
    #[expect(dead_code, reason = "taken and of no effect, as with OpenAI")]
    pub(crate) user: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub(crate) rest: Map<String, Value>,
}

/// What the text of a response must look like.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct TextOptions {
    /// Its format.
    pub(crate) format: Option<ResponseFormat>,
    /// `medium`, or nothing.
    pub(crate) verbosity: Option<String>,
}

/// A tool, as `/v1/responses` takes it: the function's fields stand beside the type.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct FlatTool {
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The function's name.
    pub(crate) name: Option<String>,
    /// What it does, for the model.
    pub(crate) description: Option<String>,
    /// Its arguments, as a JSON schema.
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Value>,
    /// Arguments follow the schema in any case, as far as it can be enforced; with this, one that cannot is an error.
    pub(crate) strict: Option<bool>,
}

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Respond {
    pub(crate) dialogue: Dialogue,
    pub(crate) stream: bool,
    pub(crate) ignored: Vec<String>,
    pub(crate) echoed: Echoed,
}

/// What a response repeats of its request.
#[derive(Clone, Debug)]
pub(crate) struct Echoed {
    pub(crate) instructions: Option<String>,
    pub(crate) max_output_tokens: Option<i64>,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_logprobs: u32,
    pub(crate) tools: Vec<FlatTool>,
    pub(crate) tool_choice: Value,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) format: ResponseFormat,
    pub(crate) metadata: Value,
}

impl ResponseRequest {
    pub(crate) fn parse(self, options: &ServerOptions) -> Result<Respond, ApiError> {
        let ignored = fields::check(Endpoint::Responses, &self.rest)?;
        let text = self.text.unwrap_or_default();
        if text.verbosity.as_ref().is_some_and(|verbosity| verbosity != "medium") {
            return Err(ApiError::unsupported("text.verbosity", "Say it in the instructions."));
        }
        if self.stream_options.is_some_and(|options| options.include_obfuscation == Some(true)) {
            return Err(ApiError::unsupported("stream_options.include_obfuscation", "Events are not padded."));
        }
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            ..Sampling::default()
        };
        let wire_tools = self.tools.unwrap_or_default();
        let choice = tools::choice(self.tool_choice.as_ref())?;
        let functions = wire_tools.iter().enumerate().map(function).collect::<Result<_, _>>()?;
        let asked = self.max_output_tokens;
        let sampler = sampling.options(&options.sampler)?;
        let (temperature, top_p) = (sampler.temperature, sampler.top_p);
        let dialogue = Dialogue {
            messages: responses_input::messages(self.instructions.clone(), self.input)?,
            variables: Map::new(),
            tools: Tools::new(functions, choice, self.parallel_tool_calls)?,
            format: format::format(text.format.as_ref(), "text.format")?,
            format_field: "text.format",
            prompt_field: "input",
            max_tokens: sampling::answer_tokens(asked, "max_output_tokens", &options.limits)?,
            sampler,
            stop: Vec::new(),
            ignore_end: false,
            choices: 1,
            logprobs: logprobs(self.include.as_deref(), self.top_logprobs)?,
        };
        Ok(Respond {
            dialogue,
            stream: self.stream.unwrap_or(false),
            ignored,
            echoed: Echoed {
                instructions: self.instructions,
                max_output_tokens: asked,
                temperature,
                top_p,
                top_logprobs: self.top_logprobs.unwrap_or(0),
                tools: wire_tools,
                tool_choice: self.tool_choice.unwrap_or_else(|| "auto".into()),
                parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
                format: text.format.unwrap_or(ResponseFormat { kind: "text".to_owned(), ..Default::default() }),
                metadata: metadata(self.metadata)?,
            },
        })
    }
}

/// Labels, within the bounds that OpenAI sets: every reply repeats them.
fn metadata(labels: Option<Value>) -> Result<Value, ApiError> {
    const MOST: usize = 16;
    const LONGEST: (usize, usize) = (64, 512);
    let labels = match labels.unwrap_or_default() {
        Value::Null => Map::new(),
        Value::Object(labels) => labels,
        _ => return Err(ApiError::wrong_type("metadata", "an object of strings")),
    };
    let fits = |(key, value): (&String, &Value)| {
        key.chars().count() <= LONGEST.0 && value.as_str().is_some_and(|value| value.chars().count() <= LONGEST.1)
    };
    if labels.len() > MOST || !labels.iter().all(fits) {
        let message = format!(
            "metadata may have {MOST} strings of up to {} characters, with keys of up to {}.",
            LONGEST.1, LONGEST.0
        );
        return Err(ApiError::value("metadata", message));
    }
    Ok(Value::Object(labels))
}

fn logprobs(include: Option<&[String]>, top: Option<u32>) -> Result<Option<usize>, ApiError> {
    let include = include.unwrap_or_default();
    // Asked for by clients that keep nothing, for models whose reasoning is hidden: here there is none to include.
    let known = |name: &String| name == INCLUDE_LOGPROBS || name == "reasoning.encrypted_content";
    if let Some(at) = include.iter().position(|name| !known(name)) {
        let why = "There is nothing of the kind to include.";
        return Err(ApiError::unsupported(format!("include[{at}]"), why));
    }
    match (include.iter().any(|name| name == INCLUDE_LOGPROBS), top) {
        (true, top) => Ok(Some(sampling::alternatives(top.unwrap_or(0), "top_logprobs")?)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = format!("top_logprobs needs {INCLUDE_LOGPROBS} in include.");
            Err(ApiError::value("top_logprobs", message))
        }
    }
}

fn function((at, tool): (usize, &FlatTool)) -> Result<Function, ApiError> {
    let path = format!("tools[{at}]");
    if tool.kind != "function" {
        return Err(ApiError::unsupported(format!("{path}.type"), "Tools are functions; the server has none itself."));
    }
    let name = tool.name.clone().ok_or_else(|| ApiError::missing(format!("{path}.name")))?;
    let FlatTool { description, parameters, strict, .. } = tool.clone();
    let function = Function { name, description, parameters, strict };
    tools::check(&function, &path)?;
    Ok(function)
}

/// A response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ResponseReply {
    /// Names the response.
    pub(crate) id: String,
    /// `response`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub(crate) status: &'static str,
    /// Always false.
    pub(crate) background: bool,
    /// Why it failed.
    pub(crate) error: Option<ResponseError>,
    /// Why it is incomplete.
    pub(crate) incomplete_details: Option<Incomplete>,
    /// As asked.
    pub(crate) instructions: Option<String>,
    /// As asked.
    pub(crate) max_output_tokens: Option<i64>,
    /// The model's name.
    pub(crate) model: String,
    /// Messages and calls.
    pub(crate) output: Vec<OutputItem>,
    /// As asked.
    pub(crate) parallel_tool_calls: bool,
    /// Always null.
    pub(crate) previous_response_id: Option<String>,
    /// Always empty.
    pub(crate) reasoning: Reasoning,
    /// Always false: nothing is kept.
    pub(crate) store: bool,
    /// As asked.
    pub(crate) temperature: f32,
    /// As asked.
    pub(crate) text: TextReply,
    /// As asked.
    #[schema(value_type = Object)]
    pub(crate) tool_choice: Value,
    /// As asked.
    pub(crate) tools: Vec<FlatTool>,
    /// As asked.
    pub(crate) top_logprobs: u32,
    /// As asked.
    pub(crate) top_p: f32,
    /// Always `disabled`.
    pub(crate) truncation: &'static str,
    /// Tokens used; null until they are known.
    pub(crate) usage: Option<ResponseUsage>,
    /// Always null.
    pub(crate) user: Option<String>,
    /// As asked.
    #[schema(value_type = Object)]
    pub(crate) metadata: Value,
    /// What this server says beyond OpenAI's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unicorn: Option<Unicorn>,
}

/// Why a response failed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ResponseError {
    /// For programs.
    pub(crate) code: String,
    /// For people.
    pub(crate) message: String,
}

/// Why a response is incomplete.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Incomplete {
    /// `max_output_tokens`.
    pub(crate) reason: &'static str,
}

/// Nothing: models are not told how to reason.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Reasoning {
    /// Always null.
    pub(crate) effort: Option<String>,
    /// Always null.
    pub(crate) summary: Option<String>,
}

/// The format that was asked for.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TextReply {
    /// The format.
    pub(crate) format: ResponseFormat,
}

/// A message or a call.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    /// Text.
    Message {
        /// Names the item.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// `assistant`.
        role: &'static str,
        /// One part.
        content: Vec<OutputPart>,
    },
    /// A call.
    FunctionCall {
        /// Names the item.
        id: String,
        /// Names the call, for the item that answers it.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments, as JSON in a string.
        arguments: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
}

/// A part of a message.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputPart {
    /// Text.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<String>,
        /// Probabilities of the tokens, where asked for.
        logprobs: Vec<ChatLogprob>,
    },
}

/// Tokens of a response.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    /// Tokens of instructions and input.
    pub(crate) input_tokens: usize,
    /// Of those.
    pub(crate) input_tokens_details: InputDetails,
    /// Tokens of the output, the end token included.
    pub(crate) output_tokens: usize,
    /// Of those.
    pub(crate) output_tokens_details: OutputDetails,
    /// Both.
    pub(crate) total_tokens: usize,
}

/// Of the tokens of the input.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct InputDetails {
    /// Those that were not computed again.
    pub(crate) cached_tokens: usize,
}

/// Of the tokens of the output.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct OutputDetails {
    /// Always 0: what a model thinks is part of its text.
    pub(crate) reasoning_tokens: usize,
}
