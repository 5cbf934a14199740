//! The events of `/v1/responses`, in the order of
//! <https://platform.openai.com/docs/api-reference/responses-streaming>.

use std::mem;

use axum::body::Bytes;
use serde::Serialize;
use serde_json::json;

use super::responses::{Draft, Item, Output, part, status};
use crate::{
    error::ApiError,
    metrics::Outcome,
    observe::Tracker,
    running::{Delta, Finish, Running},
    sse::{self, Events},
    types::{
        chat::ChatLogprob,
        responses::{OutputItem, ResponseError, ResponseReply},
        usage::Costs,
    },
};

pub(crate) struct ResponseStream {
    draft: Draft,
    running: Running,
    tracker: Tracker,
    costs: Costs,
    output: Output,
    sequence_number: u64,
    begun: bool,
    ended: bool,
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
    pub(crate) fn new(draft: Draft, running: Running, tracker: Tracker, costs: Costs) -> ResponseStream {
        let output = Output::default();
        ResponseStream { draft, running, tracker, costs, output, sequence_number: 0, begun: false, ended: false }
    }

    fn event(&mut self, kind: &str, fields: impl Serialize) -> String {
        let sequence_number = self.sequence_number;
        self.sequence_number += 1;
        sse::named(kind, &Numbered { kind, sequence_number, fields })
    }

    fn begin(&mut self) -> String {
        let response = self.draft.reply("in_progress", Vec::new());
        let created = self.event("response.created", OfResponse { response: response.clone() });
        created + &self.event("response.in_progress", OfResponse { response })
    }

    fn write(&mut self, delta: Delta) -> String {
        match delta {
            Delta::Prompt(_) => String::new(),
            Delta::Text { text, logprob } => self.text(&text, logprob.map(Into::into)),
            Delta::CallStart { name, .. } => {
                let closed = self.close("completed");
                self.output.call(name);
                closed + &self.open()
            }
            Delta::CallArguments { text, .. } => {
                self.output.arguments(&text);
                let Some((index, Item::Call { id, .. })) = self.output.last() else { return String::new() };
                let fields = json!({"item_id": id, "output_index": index, "delta": text});
                self.event("response.function_call_arguments.delta", fields)
            }
            Delta::Finish(finish) => self.finish(&finish),
        }
    }

    fn text(&mut self, text: &str, logprob: Option<ChatLogprob>) -> String {
        let mut events = String::new();
        if !matches!(self.output.last(), Some((_, Item::Message { .. }))) {
            events = self.close("completed");
        }
        if self.output.text(text, logprob.clone()) {
            events += &self.open();
        }
        let Some((index, Item::Message { id, .. })) = self.output.last() else { return events };
        let logprobs: Vec<ChatLogprob> = logprob.into_iter().collect();
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
        let mut events = String::new();
        let item = match item {
            Item::Message { id, text, logprobs } => {
                let (id, text, logprobs) = (id.clone(), text.clone(), logprobs.clone());
                let at = json!({"item_id": id, "output_index": output_index, "content_index": 0});
                let with = |fields: serde_json::Value| merged(&at, fields);
                let done = with(json!({"text": text, "logprobs": logprobs}));
                events += &self.event("response.output_text.done", done);
                let done = with(json!({"part": part(text.clone(), logprobs.clone())}));
                events += &self.event("response.content_part.done", done);
                Item::Message { id, text, logprobs }
            }
            Item::Call { id, call_id, name, arguments } => {
                let (id, call_id) = (id.clone(), call_id.clone());
                let (name, arguments) = (name.clone(), arguments.clone());
                let done = json!({"item_id": id, "output_index": output_index, "name": name, "arguments": arguments});
                events += &self.event("response.function_call_arguments.done", done);
                Item::Call { id, call_id, name, arguments }
            }
        };
        events + &self.event("response.output_item.done", OfItem { output_index, item: item.wire(status) })
    }

    fn finish(&mut self, finish: &Finish) -> String {
        self.costs.add(&finish.metrics, finish.cause, true);
        let mut events = String::new();
        if self.output.last().is_none() {
            // An answer without a word is a message all the same.
            self.output.text("", None);
            events = self.open();
        }
        events += &self.close(status(finish));
        let response = self.draft.finished(mem::take(&mut self.output), finish, &self.costs);
        let kind = if response.status == "completed" { "response.completed" } else { "response.incomplete" };
        self.tracker.ended(Outcome::Ok);
        self.ended = true;
        events + &self.event(kind, OfResponse { response })
    }

    fn fail(&mut self, error: &ApiError) -> String {
        self.tracker.ended(Outcome::of_status(error.status.as_u16()));
        self.ended = true;
        let code = error.code.unwrap_or(error.kind).to_owned();
        let error = Some(ResponseError { code, message: error.message.clone() });
        let response = ResponseReply { error, ..self.draft.reply("failed", Vec::new()) };
        self.event("response.failed", OfResponse { response })
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

impl Events for ResponseStream {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !self.begun {
            self.begun = true;
            return Some(self.begin().into());
        }
        loop {
            let text = match self.running.next().await {
                Ok(Some((_, delta))) => self.write(delta),
                Ok(None) => return None,
                Err(error) => self.fail(&error),
            };
            if !text.is_empty() {
                return Some(text.into());
            }
        }
    }
}
