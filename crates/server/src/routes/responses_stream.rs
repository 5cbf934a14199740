//! The events of `/v1/responses`, in the order of
//! <https://platform.openai.com/docs/api-reference/responses-streaming>.

use std::mem;

use serde::Serialize;
use serde_json::json;

use super::responses::{Draft, Item, Output, part, status};
use crate::{
    error::ApiError,
    running::{Finish, Piece, Running},
    sse,
    told::Tell,
    types::{
        chat::ChatLogprob,
        responses::{OutputItem, ResponseError, ResponseReply},
        usage::Costs,
    },
};

pub(crate) struct ResponseStream {
    draft: Draft,
    costs: Costs,
    output: Output,
    /// Of the next event.
    sequence_number: u64,
}

/// Fields that every event has, and its own.
#[derive(Serialize)]
struct Numbered<'e, T> {
    #[serde(rename = "type")]
    kind: &'e str,
    sequence_number: u64,
    #[serde(flatten)]
    fields: T,
}

#[derive(Serialize)]
struct OfResponse {
    response: ResponseReply,
}

#[derive(Serialize)]
struct OfItem {
    output_index: usize,
    item: OutputItem,
}

impl ResponseStream {
    pub(crate) fn new(draft: Draft, costs: Costs) -> ResponseStream {
        ResponseStream { draft, costs, output: Output::default(), sequence_number: 0 }
    }

    fn event(&mut self, kind: &str, fields: impl Serialize) -> String {
        let sequence_number = self.sequence_number;
        self.sequence_number += 1;
        sse::named(kind, &Numbered { kind, sequence_number, fields })
    }

    fn text(&mut self, text: &str, logprobs: Vec<ChatLogprob>) -> String {
        let mut events = String::new();
        if !matches!(self.output.last(), Some((_, Item::Message { .. }))) {
            events = self.close("completed");
        }
        if self.output.text(text, logprobs.clone()) {
            events += &self.open();
        }
        let Some((index, Item::Message { id, .. })) = self.output.last() else { return events };
        let fields = json!({
            "item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": logprobs,
        });
        events + &self.event("response.output_text.delta", fields)
    }

    /// The last item has begun, and is shown empty.
    fn open(&mut self) -> String {
        let Some((output_index, item)) = self.output.last() else { return String::new() };
        match item {
            Item::Message { id, .. } => {
                let id = id.clone();
                let item =
                    OutputItem::Message { id: id.clone(), status: "in_progress", role: "assistant", content: vec![] };
                let added = self.event("response.output_item.added", OfItem { output_index, item });
                let part = part(String::new(), Vec::new());
                let fields = json!({"item_id": id, "output_index": output_index, "content_index": 0, "part": part});
                added + &self.event("response.content_part.added", fields)
            }
            Item::Call { id, call_id, name, .. } => {
                let item = OutputItem::FunctionCall {
                    id: id.clone(),
                    call_id: call_id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                    status: "in_progress",
                };
                self.event("response.output_item.added", OfItem { output_index, item })
            }
        }
    }

    /// The last item, where there is one, is whole.
    fn close(&mut self, status: &'static str) -> String {
        let Some((output_index, item)) = self.output.last() else { return String::new() };
        let item = item.clone();
        let done = match &item {
            Item::Message { id, text, logprobs } => {
                let at = json!({"item_id": id, "output_index": output_index, "content_index": 0});
                let text_done = merged(&at, json!({"text": text, "logprobs": logprobs}));
                let part_done = merged(&at, json!({"part": part(text.clone(), logprobs.clone())}));
                self.event("response.output_text.done", text_done)
                    + &self.event("response.content_part.done", part_done)
            }
            Item::Call { id, name, arguments, .. } => {
                let fields = json!({"item_id": id, "output_index": output_index, "name": name, "arguments": arguments});
                self.event("response.function_call_arguments.done", fields)
            }
        };
        done + &self.event("response.output_item.done", OfItem { output_index, item: item.wire(status) })
    }

    fn finish(&mut self, finish: &Finish) -> String {
        self.costs.add(0, &finish.metrics, finish.cause, true);
        let mut events = String::new();
        if self.output.last().is_none() {
            // An answer without a word is a message all the same.
            self.output.text("", Vec::new());
            events = self.open();
        }
        events += &self.close(status(finish));
        let response = self.draft.finished(mem::take(&mut self.output), finish, &self.costs);
        let kind = if response.status == "completed" { "response.completed" } else { "response.incomplete" };
        events + &self.event(kind, OfResponse { response })
    }
}

/// One object of the fields of both.
fn merged(at: &serde_json::Value, fields: serde_json::Value) -> serde_json::Value {
    let mut all = at.clone();
    if let (Some(all), serde_json::Value::Object(fields)) = (all.as_object_mut(), fields) {
        all.extend(fields);
    }
    all
}

impl Tell for ResponseStream {
    fn begin(&mut self, number: usize, _: &Running) -> Option<String> {
        if number > 0 {
            return None;
        }
        let response = self.draft.reply("in_progress", Vec::new());
        let created = self.event("response.created", OfResponse { response: response.clone() });
        Some(created + &self.event("response.in_progress", OfResponse { response }))
    }

    fn write(&mut self, _: usize, piece: Piece, _: &Running) -> String {
        match piece {
            Piece::Prompt(_) => String::new(),
            Piece::Text { text, logprobs } => self.text(&text, logprobs.into_iter().map(Into::into).collect()),
            Piece::CallStart { name, .. } => {
                let closed = self.close("completed");
                self.output.call(name);
                closed + &self.open()
            }
            Piece::CallArguments { text, .. } => {
                self.output.arguments(&text);
                let Some((index, Item::Call { id, .. })) = self.output.last() else { return String::new() };
                let fields = json!({"item_id": id, "output_index": index, "delta": text});
                self.event("response.function_call_arguments.delta", fields)
            }
            Piece::Finish(finish) => self.finish(&finish),
        }
    }

    fn end(&mut self) -> String {
        // The last event of the answer is that of the response.
        String::new()
    }

    fn broken(&mut self, error: &ApiError) -> String {
        let code = error.code.unwrap_or(error.kind).to_owned();
        let error = Some(ResponseError { code, message: error.message.clone() });
        let response = ResponseReply { error, ..self.draft.reply("failed", Vec::new()) };
        self.event("response.failed", OfResponse { response })
    }
}
