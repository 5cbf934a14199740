//! Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>) as the body of an answer.
//!
//! The body is made as the connection asks for it, in the connection's own task: when the client goes, the body is
//! dropped, and with it the ticket that keeps the engine at work.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

/// Makes events one after another.
pub(crate) trait Events: Send + 'static {
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// `data: JSON`.
pub(crate) fn data(value: &impl Serialize) -> String {
    format!("data: {}\n\n", json(value))
}

/// `event: NAME` and `data: JSON`.
pub(crate) fn named(name: &str, value: &impl Serialize) -> String {
    format!("event: {name}\ndata: {}\n\n", json(value))
}

/// What OpenAI's streams end with.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// The wire types have string keys and finite numbers, which is all that could fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an event could not be written");
        "{}".to_owned()
    })
}

/// An answer that streams `events`, with a comment after each `keep_alive` of silence.
pub(crate) fn response(events: impl Events, keep_alive: Duration) -> Response {
    let body = EventBody { state: State::Idle(events), alarm: Box::pin(tokio::time::sleep(keep_alive)), keep_alive };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies such as nginx hold answers back otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

type Making<E> = Pin<Box<dyn Future<Output = (E, Option<Bytes>)> + Send>>;

struct EventBody<E> {
    state: State<E>,
    alarm: Pin<Box<Sleep>>,
    keep_alive: Duration,
}

enum State<E> {
    Idle(E),
    Making(Making<E>),
    Done,
}

// The events themselves are never pinned, only the boxed futures that own them.
impl<E> Unpin for EventBody<E> {}

impl<E: Events> http_body::Body for EventBody<E> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        let mut making = match std::mem::replace(&mut body.state, State::Done) {
            State::Idle(mut events) => {
                body.alarm.as_mut().reset(Instant::now() + body.keep_alive);
                Box::pin(async move {
                    let bytes = events.next().await;
                    (events, bytes)
                })
            }
            State::Making(making) => making,
            State::Done => return Poll::Ready(None),
        };
        match making.as_mut().poll(cx) {
            Poll::Ready((_, None)) => Poll::Ready(None),
            Poll::Ready((events, Some(bytes))) => {
                body.state = State::Idle(events);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Pending => {
                body.state = State::Making(making);
                if body.alarm.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                body.alarm.as_mut().reset(Instant::now() + body.keep_alive);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": keep-alive\n\n")))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Slow(Vec<&'static str>);

    impl Events for Slow {
        async fn next(&mut self) -> Option<Bytes> {
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.0.pop().map(Bytes::from)
        }
    }

    #[tokio::test]
    async fn silence_is_filled_and_events_come_in_order() {
        let response = response(Slow(vec!["b", "a"]), Duration::from_millis(40));
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let (events, comments): (Vec<&str>, Vec<&str>) =
            text.split(": keep-alive\n\n").partition(|piece| !piece.is_empty());
        assert_eq!(events.concat(), "ab");
        assert!(!comments.is_empty(), "{text}");
    }
}
