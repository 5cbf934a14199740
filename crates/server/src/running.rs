//! Answers in the making: what the engine says of its sequences, as pieces of messages.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc, time::Duration};

use axum::http::StatusCode;
use engine::{Delta, Event, FinishReason, Generation, Metrics, Parser, Request, Ticket, TokenLogprob};

use crate::{
    calls::Calls,
    error::ApiError,
    feed::{Item, Receiver},
    observe::Tracker,
    state::{App, Model},
};

/// Something new in an answer.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The tokens of the prompt after the first, with their probabilities.
    Prompt(Vec<TokenLogprob>),
    /// More text, and the probabilities of the tokens that it ends.
    Text { text: String, logprobs: Vec<TokenLogprob> },
    /// A call begins.
    CallStart { index: usize, name: String },
    /// More of a call's arguments.
    CallArguments { index: usize, text: String },
    /// The answer is whole.
    Finish(Finish),
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub(crate) struct Finish {
    /// As OpenAI words it.
    pub(crate) reason: &'static str,
    /// As the engine does.
    pub(crate) cause: FinishReason,
    pub(crate) metrics: Metrics,
}

/// What is to be generated.
pub(crate) struct Job {
    /// One for each prompt.
    pub(crate) requests: Vec<Request>,
    /// Answers to each.
    pub(crate) choices: usize,
    /// How calls are found in the text.
    pub(crate) calls: Option<Calls>,
    /// The field that the prompts came in.
    pub(crate) prompt_field: &'static str,
}

/// Answers in the making. Dropped, it cancels what has not ended.
pub(crate) struct Running {
    app: App,
    model: Arc<Model>,
    tracker: Tracker,
    prompt_field: &'static str,
    /// Prompts that are not submitted yet: only as many are as keep the engine busy.
    pending: VecDeque<Request>,
    tickets: Vec<Ticket>,
    choices: usize,
    receiver: Receiver,
    answers: Vec<Answer>,
    /// Answers that have not ended.
    left: usize,
    /// Whether any answer has a token.
    begun: bool,
    ready: VecDeque<(usize, Piece)>,
}

#[derive(Default)]
struct Answer {
    /// Reads calls; `None` where there may be none.
    parser: Option<Parser>,
    /// Probabilities of tokens whose text the parser holds back.
    held: Vec<TokenLogprob>,
    calls: usize,
    /// Whether a call was broken off.
    broken: bool,
    begun: bool,
    finished: bool,
    /// What came before the prompt was heard, which goes before it.
    early: Option<Vec<Piece>>,
}

impl Running {
    /// Submits a job, or as much of it as the engine can be busy with.
    ///
    /// # Errors
    /// Where the engine refuses it.
    pub(crate) fn start(app: &App, model: &Arc<Model>, tracker: &Tracker, job: Job) -> Result<Running, ApiError> {
        let deadline = tracker.start() + app.options.timeouts.request;
        let answers = job.requests.len() * job.choices;
        // The engine tells the prompt to the first choice alone.
        let shows_prompt = job.requests.first().is_some_and(|request| request.prompt_logprobs.is_some());
        let answer = |index: usize| Answer {
            parser: job.calls.as_ref().and_then(Calls::parser),
            early: (shows_prompt && !index.is_multiple_of(job.choices)).then(Vec::new),
            ..Answer::default()
        };
        let with_deadline = |request| Request { deadline: Some(deadline), ..request };
        let mut running = Running {
            app: app.clone(),
            model: model.clone(),
            tracker: tracker.clone(),
            prompt_field: job.prompt_field,
            pending: job.requests.into_iter().map(with_deadline).collect(),
            tickets: Vec::new(),
            choices: job.choices,
            receiver: Receiver::new(app.options.limits.unread_bytes),
            answers: (0..answers).map(answer).collect(),
            left: answers,
            begun: false,
            ready: VecDeque::new(),
        };
        running.submit()?;
        Ok(running)
    }

    /// Submits pending prompts up to twice what runs at once. The first stands in the queue as any request; those
    /// after it belong to what is under way.
    fn submit(&mut self) -> Result<(), ApiError> {
        let service = &self.model.service;
        let enough = 2 * service.stats().slots;
        loop {
            let prompt = self.tickets.len();
            let under_way = self.left - self.pending.len() * self.choices;
            if under_way > 0 && under_way + self.choices > enough {
                return Ok(());
            }
            let Some(request) = self.pending.pop_front() else { return Ok(()) };
            let sender = self.receiver.sender(prompt * self.choices);
            let sink = Box::new(move |choice, event| match event {
                Event::Prefill { .. } => ControlFlow::Continue(()),
                event => sender.send(choice, event),
            });
            let taken = match prompt {
                0 => service.submit(request, self.choices, sink),
                _ => service.submit_more(request, self.choices, sink),
            };
            let refused = |error| ApiError::submit(error, self.prompt_field, self.app.retry_after(&self.model));
            self.tickets.push(taken.map_err(refused)?);
        }
    }

    /// What is new, and of which answer; `None` when all are whole.
    ///
    /// # Errors
    /// Where the engine fails or stops, or the client reads too slowly.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Piece)>, ApiError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.is_whole() {
                return Ok(None);
            }
            match self.receiver.next().await {
                Ok(Item::Event(choice, event)) => self.hear(choice, event)?,
                Ok(Item::Gone(first)) => self.check_gone(first)?,
                Err(_) => {
                    let message = "The answer was broken off: the client reads it too slowly.";
                    return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "server_error", message).code("slow_reader"));
                }
            }
        }
    }

    /// Whether every answer has ended, and been told.
    pub(crate) fn is_whole(&self) -> bool {
        self.ready.is_empty() && self.left == 0
    }

    /// Number of answers.
    pub(crate) fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Answers to each prompt.
    pub(crate) fn choices(&self) -> usize {
        self.choices
    }

    fn hear(&mut self, index: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Prefill { .. } | Event::Embedding(_) => {}
            Event::Prompt(tokens) => self.prompt(index, tokens),
            Event::Token { text, logprobs } => self.token(index, text, logprobs),
            Event::Done(generation) => self.done(index, generation)?,
            Event::Failed(error) => return Err(ApiError::engine(&error, self.prompt_field)),
        }
        Ok(())
    }

    fn tell(&mut self, index: usize, piece: Piece) {
        match &mut self.answers[index].early {
            Some(early) => early.push(piece),
            None => self.ready.push_back((index, piece)),
        }
    }

    /// The prompt, for all answers to it; the engine tells the first.
    fn prompt(&mut self, first: usize, tokens: Vec<TokenLogprob>) {
        for index in first..first + self.choices {
            let early = self.answers[index].early.take().unwrap_or_default();
            self.ready.push_back((index, Piece::Prompt(tokens.clone())));
            self.ready.extend(early.into_iter().map(|piece| (index, piece)));
        }
    }

    fn token(&mut self, index: usize, text: String, logprobs: Vec<TokenLogprob>) {
        self.begun = true;
        let answer = &mut self.answers[index];
        if !std::mem::replace(&mut answer.begun, true) {
            self.app.metrics.time_to_first_token.record(self.tracker.start().elapsed().as_secs_f64());
        }
        match &mut answer.parser {
            None if text.is_empty() && logprobs.is_empty() => {}
            None => self.tell(index, Piece::Text { text, logprobs }),
            Some(parser) => {
                answer.held.extend(logprobs);
                let deltas = parser.push(&text);
                self.deltas(index, deltas);
            }
        }
    }

    /// Text and calls. Tokens of calls are without probabilities, as with OpenAI.
    fn deltas(&mut self, index: usize, deltas: Vec<Delta>) {
        for delta in deltas {
            let answer = &mut self.answers[index];
            let logprobs = std::mem::take(&mut answer.held);
            let piece = match delta {
                Delta::Text(text) => Piece::Text { text, logprobs },
                Delta::CallStart { index: call, name } => {
                    answer.calls += 1;
                    Piece::CallStart { index: call, name }
                }
                Delta::CallArguments { index: call, text } => Piece::CallArguments { index: call, text },
                Delta::CallEnd { whole, .. } => {
                    answer.broken |= !whole;
                    continue;
                }
            };
            self.tell(index, piece);
        }
    }

    fn done(&mut self, index: usize, generation: Generation) -> Result<(), ApiError> {
        let Generation { finish: cause, metrics, .. } = generation;
        if cause == FinishReason::Cancelled {
            // Whoever asked is gone otherwise, and does not hear this.
            return Err(ApiError::stopping());
        }
        if cause == FinishReason::Deadline && !self.begun {
            return Err(late(self.app.options.timeouts.request));
        }
        if let Some(parser) = self.answers[index].parser.take() {
            let rest = parser.finish();
            self.deltas(index, rest);
        }
        let answer = &mut self.answers[index];
        answer.finished = true;
        let reason = match cause {
            // A call that a stop string cut is not to be made.
            FinishReason::Stop if answer.calls > 0 && !answer.broken => "tool_calls",
            FinishReason::Stop => "stop",
            _ => "length",
        };
        let held = std::mem::take(&mut answer.held);
        if answer.calls == 0 && !held.is_empty() {
            self.tell(index, Piece::Text { text: String::new(), logprobs: held });
        }
        self.left -= 1;
        self.observe(index, &metrics);
        self.tell(index, Piece::Finish(Finish { reason, cause, metrics }));
        self.submit()
    }

    fn observe(&self, index: usize, metrics: &Metrics) {
        let counts = &self.app.metrics;
        let is_first = index.is_multiple_of(self.choices);
        self.tracker.used(if is_first { metrics.prompt_tokens } else { 0 }, metrics.generated_tokens);
        counts.queue_wait.record(metrics.queue_s);
        counts.answer_time.record(self.tracker.start().elapsed().as_secs_f64());
        if metrics.generated_tokens > 1 && metrics.decode_tok_per_s > 0.0 {
            counts.time_per_output_token.record(1.0 / metrics.decode_tok_per_s);
        }
    }

    /// The engine will say no more of a prompt's answers.
    fn check_gone(&self, first: usize) -> Result<(), ApiError> {
        if self.answers[first..first + self.choices].iter().all(|answer| answer.finished) {
            return Ok(());
        }
        tracing::error!("the engine gave a request up without a word");
        Err(ApiError::internal("The engine broke off."))
    }
}

/// Nothing was made before the deadline.
pub(crate) fn late(timeout: Duration) -> ApiError {
    let message = format!("The request did not begin to be answered within {} s.", timeout.as_secs_f64());
    let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).code("timeout");
    ApiError { retry_after: Some(Duration::from_secs(10)), ..error }
}
