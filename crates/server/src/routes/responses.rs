//! `/v1/responses`, without what needs a memory between requests.

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use engine::FinishReason;

use super::responses_stream::ResponseStream;
use crate::{
    body::Payload,
    error::ApiError,
    ids::{new_id, unix_s},
    observe::Tracker,
    running::{Finish, Piece, Running},
    sse,
    state::App,
    told::Told,
    types::{
        chat::ChatLogprob,
        error::ErrorReply,
        responses::{
            Echoed, Incomplete, InputDetails, OutputDetails, OutputItem, OutputPart, Reasoning, Respond, ResponseReply,
            ResponseRequest, ResponseUsage, TextReply,
        },
        usage::{Costs, Usage},
    },
};

/// A response to an input. Nothing is kept: `previous_response_id`, `conversation` and `"store": true` are refused.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponseRequest, responses(
    (status = 200, content((ResponseReply = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", body = ErrorReply), (status = "5XX", body = ErrorReply)))]
pub(crate) async fn respond(
    State(app): State<App>,
    Extension(tracker): Extension<Tracker>,
    Payload(request, share): Payload<ResponseRequest>,
) -> Result<Response, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let prepare = {
        let (app, model) = (app.clone(), model.clone());
        move || {
            let Respond { dialogue, stream, ignored, echoed } = request.parse(&app.options)?;
            let job = dialogue.prepare(&model, app.options.limits.prompt_tokens)?;
            drop(share);
            Ok((job, stream, ignored, echoed))
        }
    };
    let (job, stream, ignored, echoed) = app.aside(prepare).await??;
    let costs = Costs::new(&model.device, ignored);
    let draft = Draft { id: new_id("resp_"), created_at: unix_s(), model: app.options.model.clone(), echoed };
    let running = Running::start(&app, &model, &tracker, job)?;
    if stream {
        let tell = ResponseStream::new(draft, costs);
        return Ok(sse::response(Told::new(running, tracker, tell), app.options.timeouts.keep_alive));
    }
    Ok(Json(whole(&draft, running, costs).await?).into_response())
}

async fn whole(draft: &Draft, mut running: Running, mut costs: Costs) -> Result<ResponseReply, ApiError> {
    let mut output = Output::default();
    let mut finish = None;
    while let Some((_, piece)) = running.next().await? {
        match piece {
            Piece::Prompt(_) => {}
            Piece::Text { text, logprobs } => {
                output.text(&text, logprobs.into_iter().map(Into::into).collect());
            }
            Piece::CallStart { name, .. } => {
                output.call(name);
            }
            Piece::CallArguments { text, .. } => {
                output.arguments(&text);
            }
            Piece::Finish(end) => {
                costs.add(0, &end.metrics, end.cause, true);
                finish = Some(end);
            }
        }
    }
    let finish = finish.ok_or_else(|| ApiError::internal("The engine broke off."))?;
    Ok(draft.finished(output, &finish, &costs))
}

/// A response before its output.
pub(crate) struct Draft {
    pub(crate) id: String,
    pub(crate) created_at: u64,
    pub(crate) model: String,
    pub(crate) echoed: Echoed,
}

impl Draft {
    /// The response with this status and output.
    pub(crate) fn reply(&self, status: &'static str, output: Vec<OutputItem>) -> ResponseReply {
        let echoed = self.echoed.clone();
        ResponseReply {
            id: self.id.clone(),
            object: "response",
            created_at: self.created_at,
            status,
            background: false,
            error: None,
            incomplete_details: None,
            instructions: echoed.instructions,
            max_output_tokens: echoed.max_output_tokens,
            model: self.model.clone(),
            output,
            parallel_tool_calls: echoed.parallel_tool_calls,
            previous_response_id: None,
            reasoning: Reasoning::default(),
            store: false,
            temperature: echoed.temperature,
            text: TextReply { format: echoed.format },
            tool_choice: echoed.tool_choice,
            tools: echoed.tools,
            top_logprobs: echoed.top_logprobs,
            top_p: echoed.top_p,
            truncation: "disabled",
            usage: None,
            user: None,
            metadata: echoed.metadata,
            unicorn: None,
        }
    }

    /// The response when its answer is whole.
    pub(crate) fn finished(&self, output: Output, finish: &Finish, costs: &Costs) -> ResponseReply {
        let status = status(finish);
        ResponseReply {
            incomplete_details: (status == "incomplete").then_some(Incomplete { reason: "max_output_tokens" }),
            usage: Some(usage(&costs.usage)),
            unicorn: Some(costs.unicorn.clone()),
            ..self.reply(status, output.items(status))
        }
    }
}

/// The status of a response that ended so.
pub(crate) fn status(finish: &Finish) -> &'static str {
    if finish.cause == FinishReason::Stop { "completed" } else { "incomplete" }
}

fn usage(usage: &Usage) -> ResponseUsage {
    ResponseUsage {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: InputDetails { cached_tokens: usage.prompt_tokens_details.cached_tokens },
        output_tokens: usage.completion_tokens,
        output_tokens_details: OutputDetails::default(),
        total_tokens: usage.total_tokens,
    }
}

/// The items of a response, in the making: the last is open, those before it are whole.
#[derive(Default)]
pub(crate) struct Output {
    items: Vec<Item>,
}

/// An item in the making.
#[derive(Clone)]
pub(crate) enum Item {
    Message { id: String, text: String, logprobs: Vec<ChatLogprob> },
    Call { id: String, call_id: String, name: String, arguments: String },
}

impl Output {
    /// More text, in a message that is begun where none is open. Tells whether it was.
    pub(crate) fn text(&mut self, more: &str, tokens: Vec<ChatLogprob>) -> bool {
        let begins = !matches!(self.items.last(), Some(Item::Message { .. }));
        if begins {
            self.items.push(Item::Message { id: new_id("msg_"), text: String::new(), logprobs: Vec::new() });
        }
        if let Some(Item::Message { text, logprobs, .. }) = self.items.last_mut() {
            text.push_str(more);
            logprobs.extend(tokens);
        }
        begins
    }

    /// A call begins.
    pub(crate) fn call(&mut self, name: String) {
        let (id, call_id) = (new_id("fc_"), new_id("call_"));
        self.items.push(Item::Call { id, call_id, name, arguments: String::new() });
    }

    /// More of the last call's arguments.
    pub(crate) fn arguments(&mut self, more: &str) {
        if let Some(Item::Call { arguments, .. }) = self.items.last_mut() {
            arguments.push_str(more);
        }
    }

    /// The item that is open, and its number.
    pub(crate) fn last(&self) -> Option<(usize, &Item)> {
        self.items.last().map(|item| (self.items.len() - 1, item))
    }

    /// All items: those before the last are complete, the last has this status. An answer without a word is a message.
    fn items(mut self, last: &'static str) -> Vec<OutputItem> {
        if self.items.is_empty() {
            self.text("", Vec::new());
        }
        let end = self.items.len() - 1;
        let status = |at| if at == end { last } else { "completed" };
        self.items.into_iter().enumerate().map(|(at, item)| item.wire(status(at))).collect()
    }
}

impl Item {
    /// The item as it goes over the wire.
    pub(crate) fn wire(self, status: &'static str) -> OutputItem {
        match self {
            Item::Message { id, text, logprobs } => {
                OutputItem::Message { id, status, role: "assistant", content: vec![part(text, logprobs)] }
            }
            Item::Call { id, call_id, name, arguments } => {
                OutputItem::FunctionCall { id, call_id, name, arguments, status }
            }
        }
    }
}

/// The part of a message.
pub(crate) fn part(text: String, logprobs: Vec<ChatLogprob>) -> OutputPart {
    OutputPart::OutputText { text, annotations: Vec::new(), logprobs }
}
