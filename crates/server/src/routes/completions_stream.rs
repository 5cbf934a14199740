//! The pieces of `/v1/completions`: for each answer its prompt, where that is shown, its text and its end; then the
//! usage, where asked for, and `[DONE]`.

use super::{FINGERPRINT, chat::Head, completions::Echoes};
use crate::{
    running::{Piece, Running},
    sse,
    told::Tell,
    types::{
        completions::{CompletionChoice, CompletionLogprobs, CompletionReply},
        usage::Costs,
    },
};

pub(crate) struct CompletionStream {
    head: Head,
    costs: Costs,
    include_usage: bool,
    echoes: Echoes,
    /// Characters of each answer so far.
    offsets: Vec<usize>,
}

impl CompletionStream {
    pub(crate) fn new(
        head: Head,
        running: &Running,
        costs: Costs,
        include_usage: bool,
        echoes: Echoes,
    ) -> CompletionStream {
        CompletionStream { head, costs, include_usage, echoes, offsets: vec![0; running.answers()] }
    }

    fn reply(&self, choices: Vec<CompletionChoice>) -> CompletionReply {
        CompletionReply {
            id: self.head.id.clone(),
            object: "text_completion",
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage: self.include_usage.then_some(None),
            system_fingerprint: FINGERPRINT,
            unicorn: None,
        }
    }

    fn piece(&self, index: usize, text: String, logprobs: Option<CompletionLogprobs>) -> String {
        sse::data(&self.reply(vec![CompletionChoice { text, index, logprobs, finish_reason: None }]))
    }
}

impl Tell for CompletionStream {
    /// The prompt of each answer, where it is shown.
    fn begin(&mut self, number: usize, running: &Running) -> Option<String> {
        let text = (number < running.answers()).then(|| self.echoes.text(number, running.choices()).to_owned())?;
        Some(if text.is_empty() { text } else { self.piece(number, text, None) })
    }

    fn write(&mut self, index: usize, piece: Piece, running: &Running) -> String {
        let choices = running.choices();
        let lister = self.echoes.lister(index, choices);
        let offset = &mut self.offsets[index];
        let mut list = CompletionLogprobs::default();
        match piece {
            Piece::Prompt(tokens) => {
                let Some(lister) = lister else { return String::new() };
                lister.prompt(&mut list, offset, &tokens);
                self.piece(index, String::new(), Some(list))
            }
            Piece::Text { text, logprobs } => {
                let list = lister.map(|lister| {
                    logprobs.iter().for_each(|token| lister.token(&mut list, offset, token));
                    list
                });
                self.piece(index, text, list)
            }
            Piece::Finish(finish) => {
                self.costs.add(index, &finish.metrics, finish.cause, index.is_multiple_of(choices));
                let finish_reason = Some(finish.reason);
                let choice = CompletionChoice { text: String::new(), index, logprobs: None, finish_reason };
                let mut reply = self.reply(vec![choice]);
                if running.is_whole() && !self.include_usage {
                    reply.unicorn = Some(self.costs.unicorn.clone());
                }
                sse::data(&reply)
            }
            // No tools, no calls.
            Piece::CallStart { .. } | Piece::CallArguments { .. } => String::new(),
        }
    }

    fn end(&mut self) -> String {
        let mut text = String::new();
        if self.include_usage {
            let usage = Some(Some(self.costs.usage.clone()));
            let unicorn = Some(self.costs.unicorn.clone());
            text = sse::data(&CompletionReply { usage, unicorn, ..self.reply(Vec::new()) });
        }
        text + sse::DONE
    }
}
