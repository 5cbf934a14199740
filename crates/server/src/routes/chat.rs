//! `/v1/chat/completions`.

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{FINGERPRINT, chat_stream::ChatStream};
use crate::{
    body::Payload,
    error::ApiError,
    ids::{new_id, unix_s},
    observe::Tracker,
    running::{Piece, Running},
    sse,
    state::App,
    told::Told,
    types::{
        chat::{Chat, ChatChoice, ChatChunk, ChatLogprobs, ChatMessage, ChatReply, ChatRequest},
        error::ErrorReply,
        tools::{CalledFunction, ToolCall},
        usage::Costs,
    },
};

/// The next message of a chat.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest, responses(
    (status = 200, content((ChatReply = "application/json"), (ChatChunk = "text/event-stream"))),
    (status = "4XX", body = ErrorReply), (status = "5XX", body = ErrorReply)))]
pub(crate) async fn complete(
    State(app): State<App>,
    Extension(tracker): Extension<Tracker>,
    Payload(request, share): Payload<ChatRequest>,
) -> Result<Response, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let prepare = {
        let (app, model) = (app.clone(), model.clone());
        move || {
            let Chat { dialogue, stream, include_usage, ignored } = request.parse(&app.options)?;
            let with_logprobs = dialogue.logprobs.is_some();
            let job = dialogue.prepare(&model, app.options.limits.prompt_tokens)?;
            // The text of the request is no longer needed.
            drop(share);
            Ok((job, stream, include_usage, with_logprobs, ignored))
        }
    };
    let (job, stream, include_usage, with_logprobs, ignored) = app.aside(prepare).await??;
    let costs = Costs::new(&model.device, ignored);
    let running = Running::start(&app, &model, &tracker, job)?;
    let head = Head { id: new_id("chatcmpl-"), created: unix_s(), model: app.options.model.clone() };
    if stream {
        let tell = ChatStream { head, costs, include_usage, with_logprobs };
        return Ok(sse::response(Told::new(running, tracker, tell), app.options.timeouts.keep_alive));
    }
    Ok(Json(whole(head, running, costs, with_logprobs).await?).into_response())
}

/// What an answer and its pieces have in common.
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

/// An answer, as far as it is made.
#[derive(Default)]
struct Message {
    text: String,
    logprobs: ChatLogprobs,
    calls: Vec<ToolCall>,
    reason: &'static str,
}

async fn whole(head: Head, mut running: Running, mut costs: Costs, with_logprobs: bool) -> Result<ChatReply, ApiError> {
    let mut messages: Vec<Message> = std::iter::repeat_with(Message::default).take(running.answers()).collect();
    while let Some((choice, piece)) = running.next().await? {
        let message = &mut messages[choice];
        match piece {
            Piece::Prompt(_) => {}
            Piece::Text { text, logprobs } => {
                message.text += &text;
                message.logprobs.content.extend(logprobs.into_iter().map(Into::into));
            }
            Piece::CallStart { name, .. } => {
                let function = CalledFunction { name, arguments: String::new() };
                message.calls.push(ToolCall { id: new_id("call_"), kind: "function", function });
            }
            Piece::CallArguments { index, text } => {
                if let Some(call) = message.calls.get_mut(index) {
                    call.function.arguments += &text;
                }
            }
            Piece::Finish(finish) => {
                message.reason = finish.reason;
                costs.add(choice, &finish.metrics, finish.cause, choice == 0);
            }
        }
    }
    let choice = |(index, message): (usize, Message)| ChatChoice {
        index,
        finish_reason: message.reason,
        logprobs: with_logprobs.then_some(message.logprobs),
        message: ChatMessage {
            role: "assistant",
            content: (message.calls.is_empty() || !message.text.is_empty()).then_some(message.text),
            refusal: None,
            tool_calls: message.calls,
        },
    };
    Ok(ChatReply {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices: messages.into_iter().enumerate().map(choice).collect(),
        usage: costs.usage,
        system_fingerprint: FINGERPRINT,
        unicorn: costs.unicorn,
    })
}
