//! Answers in the making: what the engine says of its sequences, as pieces of messages.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use engine::{Event, FinishReason, Generation, Metrics, Request, SubmitError, Ticket, TokenLogprob};

use crate::{
    calls::{CallParser, Calls, Piece},
    error::ApiError,
    feed::{Item, Receiver},
    observe::Tracker,
    state::{App, Model},
};

/// Something new in an answer.
#[derive(Debug)]
pub(crate) enum Delta {
    /// The tokens of the prompt after the first, with their probabilities.
    Prompt(Vec<TokenLogprob>),
    /// More text; empty where a token has brought none yet.
    Text { text: String, logprob: Option<TokenLogprob> },
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
    ready: VecDeque<(usize, Delta)>,
}

#[derive(Default)]
struct Answer {
    parser: Option<CallParser>,
    calls: usize,
    finished: bool,
}

impl Running {
    /// Submits a job, or as much of it as the engine can be busy with.
    ///
    /// # Errors
    /// Where the engine refuses it.
    pub(crate) fn start(app: &App, model: &Arc<Model>, tracker: &Tracker, job: Job) -> Result<Running, ApiError> {
        let deadline = tracker.start() + app.options.timeouts.request;
        let answers = job.requests.len() * job.choices;
        let answer = || Answer { parser: job.calls.as_ref().and_then(Calls::parser), ..Answer::default() };
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
            answers: std::iter::repeat_with(answer).take(answers).collect(),
            ready: VecDeque::new(),
        };
        running.submit()?;
        Ok(running)
    }

    /// Submits pending prompts up to twice what runs at once. A full queue is an error only where nothing of this
    /// request is under way.
    fn submit(&mut self) -> Result<(), ApiError> {
        let enough = 2 * self.model.service.stats().slots;
        while let Some(request) = self.pending.front() {
            let prompt = self.tickets.len();
            let under_way = self.answers[..prompt * self.choices].iter().filter(|answer| !answer.finished).count();
            if under_way > 0 && under_way + self.choices > enough {
                return Ok(());
            }
            let sender = self.receiver.sender(prompt * self.choices);
            let sink = Box::new(move |choice, event| {
                if !matches!(event, Event::Prefill { .. }) {
                    sender.send(choice, event);
                }
            });
            match self.model.service.submit(request.clone(), self.choices, sink) {
                Ok(ticket) => self.tickets.push(ticket),
                Err(SubmitError::QueueFull { .. }) if under_way > 0 => return Ok(()),
                Err(error) => {
                    return Err(ApiError::submit(error, self.prompt_field, self.app.retry_after(&self.model)));
                }
            }
            self.pending.pop_front();
        }
        Ok(())
    }

    /// What is new, and of which answer; `None` when all are whole.
    ///
    /// # Errors
    /// Where the engine fails or stops, or the client reads too slowly.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Delta)>, ApiError> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Ok(Some(delta));
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
        self.ready.is_empty() && self.pending.is_empty() && self.answers.iter().all(|answer| answer.finished)
    }

    /// Number of answers.
    pub(crate) fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Answers to each prompt.
    pub(crate) fn choices(&self) -> usize {
        self.choices
    }

    fn hear(&mut self, choice: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Prefill { .. } | Event::Embedding(_) => {}
            Event::Prompt(tokens) => self.ready.push_back((choice, Delta::Prompt(tokens))),
            Event::Token { text, logprob } => self.text(choice, text, logprob),
            Event::Done(generation) => self.done(choice, generation)?,
            Event::Failed(error) => return Err(ApiError::engine(&error, self.prompt_field)),
        }
        Ok(())
    }

    fn text(&mut self, choice: usize, text: String, logprob: Option<TokenLogprob>) {
        let answer = &mut self.answers[choice];
        let Some(parser) = &mut answer.parser else {
            if !text.is_empty() || logprob.is_some() {
                self.ready.push_back((choice, Delta::Text { text, logprob }));
            }
            return;
        };
        let pieces = parser.push(&text);
        self.pieces(choice, pieces, logprob);
    }

    /// Pieces of text and calls. The probability of a token goes with the first text it brought, or alone where it
    /// brought none; tokens of calls have none, as with OpenAI.
    fn pieces(&mut self, choice: usize, pieces: Vec<Piece>, mut logprob: Option<TokenLogprob>) {
        let answer = &mut self.answers[choice];
        if pieces.is_empty() && logprob.is_some() && answer.calls == 0 {
            self.ready.push_back((choice, Delta::Text { text: String::new(), logprob: logprob.take() }));
        }
        for piece in pieces {
            let delta = match piece {
                Piece::Text(text) => Delta::Text { text, logprob: logprob.take() },
                Piece::Start { index, name } => {
                    answer.calls = answer.calls.max(index + 1);
                    Delta::CallStart { index, name }
                }
                Piece::Arguments { index, text } => Delta::CallArguments { index, text },
            };
            self.ready.push_back((choice, delta));
        }
    }

    fn done(&mut self, choice: usize, generation: Generation) -> Result<(), ApiError> {
        let Generation { finish: cause, metrics, .. } = generation;
        if cause == FinishReason::Cancelled {
            // Whoever asked is gone otherwise, and does not hear this.
            return Err(ApiError::stopping());
        }
        if cause == FinishReason::Deadline && metrics.generated_tokens == 0 {
            let seconds = self.app.options.timeouts.request.as_secs_f64();
            let message = format!("The request did not begin to be answered within {seconds} s.");
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).code("timeout");
            return Err(ApiError { retry_after: Some(Duration::from_secs(10)), ..error });
        }
        if let Some(parser) = self.answers[choice].parser.take() {
            let rest = parser.finish();
            self.pieces(choice, rest, None);
        }
        let answer = &mut self.answers[choice];
        answer.finished = true;
        let reason = match cause {
            FinishReason::Stop if answer.calls > 0 => "tool_calls",
            FinishReason::Stop => "stop",
            _ => "length",
        };
        self.observe(choice, &metrics);
        self.ready.push_back((choice, Delta::Finish(Finish { reason, cause, metrics })));
        self.submit()
    }

    fn observe(&self, choice: usize, metrics: &Metrics) {
        let counts = &self.app.metrics;
        let is_first = choice.is_multiple_of(self.choices);
        self.tracker.used(if is_first { metrics.prompt_tokens } else { 0 }, metrics.generated_tokens);
        counts.queue_wait.record(metrics.queue_s);
        counts.answer_time.record((Instant::now() - self.tracker.start()).as_secs_f64());
        if metrics.generated_tokens > 0 {
            counts.time_to_first_token.record(metrics.time_to_first_token_s);
        }
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
