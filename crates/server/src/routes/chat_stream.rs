//! The chunks of `/v1/chat/completions`: for each answer its role, its pieces and its end; then the usage, where asked
//! for, and `[DONE]`.

use super::{FINGERPRINT, chat::Head};
use crate::{
    ids::new_id,
    running::{Finish, Piece, Running},
    sse,
    told::Tell,
    types::{
        chat::{ChatChunk, ChatDelta, ChatLogprobs, ChunkChoice, FunctionDelta, ToolCallDelta},
        usage::Costs,
    },
};

pub(crate) struct ChatStream {
    pub(crate) head: Head,
    pub(crate) costs: Costs,
    pub(crate) include_usage: bool,
    pub(crate) with_logprobs: bool,
}

impl ChatStream {
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

    fn finish(&mut self, index: usize, finish: &Finish, is_last: bool) -> String {
        self.costs.add(index, &finish.metrics, finish.cause, index == 0);
        let delta = ChatDelta::default();
        let mut chunk =
            self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: Some(finish.reason) }]);
        // The last piece with an answer in it, unless the usage follows.
        if is_last && !self.include_usage {
            chunk.unicorn = Some(self.costs.unicorn.clone());
        }
        sse::data(&chunk)
    }
}

impl Tell for ChatStream {
    /// The role of every answer.
    fn begin(&mut self, number: usize, running: &Running) -> Option<String> {
        let role = || ChatDelta { role: Some("assistant"), content: Some(String::new()), tool_calls: Vec::new() };
        (number == 0).then(|| (0..running.answers()).map(|index| self.piece(index, role())).collect())
    }

    fn write(&mut self, index: usize, piece: Piece, running: &Running) -> String {
        let call = |call| ChatDelta { tool_calls: vec![call], ..ChatDelta::default() };
        match piece {
            Piece::Prompt(_) => String::new(),
            Piece::Text { text, logprobs } => {
                let delta = ChatDelta { content: Some(text), ..ChatDelta::default() };
                let content = logprobs.into_iter().map(Into::into).collect();
                let logprobs = self.with_logprobs.then_some(ChatLogprobs { content, refusal: None });
                sse::data(&self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }]))
            }
            Piece::CallStart { index: number, name } => {
                let function = FunctionDelta { name: Some(name), arguments: String::new() };
                let id = Some(new_id("call_"));
                self.piece(index, call(ToolCallDelta { index: number, id, kind: Some("function"), function }))
            }
            Piece::CallArguments { index: number, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                self.piece(index, call(ToolCallDelta { index: number, id: None, kind: None, function }))
            }
            Piece::Finish(finish) => self.finish(index, &finish, running.is_whole()),
        }
    }

    fn end(&mut self) -> String {
        let mut text = String::new();
        if self.include_usage {
            let usage = Some(Some(self.costs.usage.clone()));
            let chunk = ChatChunk { usage, unicorn: Some(self.costs.unicorn.clone()), ..self.chunk(Vec::new()) };
            text = sse::data(&chunk);
        }
        text + sse::DONE
    }
}
