//! The chunks of `/v1/chat/completions`: for each answer its role, its pieces and its end; then the usage, where asked
//! for, and `[DONE]`.

use axum::body::Bytes;

use super::{FINGERPRINT, chat::Head};
use crate::{
    error::ApiError,
    ids::new_id,
    metrics::Outcome,
    observe::Tracker,
    running::{Delta, Finish, Running},
    sse::{self, Events},
    types::{
        chat::{ChatChunk, ChatDelta, ChatLogprobs, ChunkChoice, FunctionDelta, ToolCallDelta},
        usage::Costs,
    },
};

pub(crate) struct ChatStream {
    head: Head,
    running: Running,
    tracker: Tracker,
    costs: Costs,
    include_usage: bool,
    with_logprobs: bool,
    begun: bool,
    ended: bool,
}

impl ChatStream {
    pub(crate) fn new(
        head: Head,
        running: Running,
        tracker: Tracker,
        costs: Costs,
        include_usage: bool,
        with_logprobs: bool,
    ) -> ChatStream {
        ChatStream { head, running, tracker, costs, include_usage, with_logprobs, begun: false, ended: false }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage: self.include_usage.then_some(None),
            unicorn: None,
        }
    }

    fn piece(&self, index: usize, delta: ChatDelta) -> String {
        sse::data(&self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }]))
    }

    /// The role of every answer.
    fn roles(&self) -> String {
        let role = || ChatDelta { role: Some("assistant"), content: Some(String::new()), tool_calls: Vec::new() };
        (0..self.running.answers()).map(|index| self.piece(index, role())).collect()
    }

    fn write(&mut self, index: usize, delta: Delta) -> String {
        let call = |call| ChatDelta { tool_calls: vec![call], ..ChatDelta::default() };
        match delta {
            Delta::Prompt(_) => String::new(),
            Delta::Text { text, logprob } => {
                let delta = ChatDelta { content: Some(text), ..ChatDelta::default() };
                let content = logprob.map(Into::into).into_iter().collect();
                let logprobs = self.with_logprobs.then_some(ChatLogprobs { content, refusal: None });
                sse::data(&self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }]))
            }
            Delta::CallStart { index: number, name } => {
                let function = FunctionDelta { name: Some(name), arguments: String::new() };
                let id = Some(new_id("call_"));
                self.piece(index, call(ToolCallDelta { index: number, id, kind: Some("function"), function }))
            }
            Delta::CallArguments { index: number, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                self.piece(index, call(ToolCallDelta { index: number, id: None, kind: None, function }))
            }
            Delta::Finish(finish) => self.finish(index, &finish),
        }
    }

    fn finish(&mut self, index: usize, finish: &Finish) -> String {
        self.costs.add(&finish.metrics, finish.cause, index == 0);
        let delta = ChatDelta::default();
        let mut chunk =
            self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: Some(finish.reason) }]);
        // The last piece with an answer in it, unless the usage follows.
        if self.running.is_whole() && !self.include_usage {
            chunk.unicorn = Some(self.costs.unicorn.clone());
        }
        sse::data(&chunk)
    }

    /// After all answers.
    fn end(&mut self) -> String {
        self.tracker.ended(Outcome::Ok);
        let mut text = String::new();
        if self.include_usage {
            let usage = Some(Some(self.costs.usage.clone()));
            let chunk = ChatChunk { usage, unicorn: Some(self.costs.unicorn.clone()), ..self.chunk(Vec::new()) };
            text = sse::data(&chunk);
        }
        text + sse::DONE
    }
}

/// How a stream tells that it broke off: the status has been sent long since.
pub(crate) fn broken(tracker: &Tracker, error: &ApiError) -> String {
    tracker.ended(Outcome::of_status(error.status.as_u16()));
    sse::data(&error.body()) + sse::DONE
}

impl Events for ChatStream {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !self.begun {
            self.begun = true;
            return Some(self.roles().into());
        }
        loop {
            let text = match self.running.next().await {
                Ok(Some((index, delta))) => self.write(index, delta),
                Ok(None) => {
                    self.ended = true;
                    self.end()
                }
                Err(error) => {
                    self.ended = true;
                    broken(&self.tracker, &error)
                }
            };
            // An empty frame would end a chunked body.
            if !text.is_empty() {
                return Some(text.into());
            }
        }
    }
}
