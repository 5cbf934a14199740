//! Answers told as they are made: from [`Running`] to the events of an endpoint.

use axum::body::Bytes;

use crate::{
    error::ApiError,
    metrics::Outcome,
    observe::Tracker,
    running::{Piece, Running},
    sse::{self, Events},
};

/// How an endpoint words it. Texts are whole events, one or several; an empty one is none.
pub(crate) trait Tell: Send + 'static {
    /// Text `number` of what comes before the first piece; asked from 0 on until there is no more.
    fn begin(&mut self, number: usize, running: &Running) -> Option<String>;

    /// What a piece of the answer `index` says.
    fn write(&mut self, index: usize, piece: Piece, running: &Running) -> String;

    /// What comes after all answers.
    fn end(&mut self) -> String;

    /// How it says that the answers broke off: the status has been sent long since.
    fn broken(&mut self, error: &ApiError) -> String {
        sse::data(&error.body()) + sse::DONE
    }
}

/// The events of running answers.
pub(crate) struct Told<T> {
    running: Running,
    tracker: Tracker,
    tell: T,
    /// Texts of the beginning that were asked for.
    begun: usize,
    ended: bool,
}

impl<T: Tell> Told<T> {
    pub(crate) fn new(running: Running, tracker: Tracker, tell: T) -> Told<T> {
        tracker.streams();
        Told { running, tracker, tell, begun: 0, ended: false }
    }

    /// Before the last bytes go out: a client that has them may be gone at once.
    fn end(&mut self, outcome: Outcome) {
        self.tracker.ended(outcome);
        self.ended = true;
    }
}

impl<T: Tell> Events for Told<T> {
    async fn next(&mut self) -> Option<Bytes> {
        while let Some(text) = self.tell.begin(self.begun, &self.running) {
            self.begun += 1;
            if !text.is_empty() {
                return Some(text.into());
            }
        }
        while !self.ended {
            let mut text = match self.running.next().await {
                Ok(Some((index, piece))) => self.tell.write(index, piece, &self.running),
                Ok(None) => String::new(),
                Err(error) => {
                    self.end(Outcome::of_status(error.status.as_u16()));
                    return Some(self.tell.broken(&error).into());
                }
            };
            if self.running.is_whole() {
                text += &self.tell.end();
                self.end(Outcome::Ok);
            }
            if !text.is_empty() {
                return Some(text.into());
            }
        }
        None
    }
}
