//! One line of log and one count for each request, when the last of its answer is made or its client is gone.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method, StatusCode},
    middleware::Next,
    response::Response,
};

use crate::{ids::new_id, metrics::Outcome, state::App};

const REQUEST_ID: &str = "x-request-id";

/// Follows a request until its last share is dropped, and says then what became of it.
#[derive(Clone)]
pub(crate) struct Tracker(Arc<Tracked>);

struct Tracked {
    app: App,
    id: String,
    method: Method,
    route: Option<MatchedPath>,
    start: Instant,
    state: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    status: Option<StatusCode>,
    /// `None` until the answer is whole: a request that ends without was cancelled.
    outcome: Option<Outcome>,
    /// Whether the answer is a stream, which says itself how it ended.
    streams: bool,
    prompt_tokens: usize,
    generated_tokens: usize,
}

impl Tracker {
    fn state(&self) -> MutexGuard<'_, Progress> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// When the request came in.
    pub(crate) fn start(&self) -> Instant {
        self.0.start
    }

    /// An answer has ended that took so many tokens.
    pub(crate) fn used(&self, prompt_tokens: usize, generated_tokens: usize) {
        let mut state = self.state();
        state.prompt_tokens += prompt_tokens;
        state.generated_tokens += generated_tokens;
    }

    /// The answer is a stream.
    pub(crate) fn streams(&self) {
        self.state().streams = true;
    }

    /// The stream has ended so.
    pub(crate) fn ended(&self, outcome: Outcome) {
        self.state().outcome = Some(outcome);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let outcome = state.outcome.unwrap_or(Outcome::Cancelled);
        // Those of the table. Paths that strangers make up are one: they must not fill the memory.
        let route = self.route.as_ref().map_or("other", MatchedPath::as_str);
        self.app.metrics.count(route, outcome);
        tracing::info!(
            request_id = %self.id,
            method = %self.method,
            route,
            status = state.status.map(|status| status.as_u16()),
            outcome = outcome.name(),
            seconds = self.start.elapsed().as_secs_f64(),
            prompt_tokens = state.prompt_tokens,
            generated_tokens = state.generated_tokens,
            "request"
        );
    }
}

/// Follows a request, and gives it and its answer an id: the client's own where that is sane.
pub(crate) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).filter(|id| is_sane(id.as_bytes()));
    let id = given.and_then(|id| id.to_str().ok()).map_or_else(|| new_id("req_"), str::to_owned);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let tracker = Tracker(Arc::new(Tracked {
        app,
        id: id.clone(),
        method: request.method().clone(),
        route,
        start: Instant::now(),
        state: Mutex::default(),
    }));
    request.extensions_mut().insert(tracker.clone());
    let mut response = next.run(request).await;
    {
        let mut state = tracker.state();
        state.status = Some(response.status());
        if !state.streams {
            state.outcome = Some(Outcome::of_status(response.status().as_u16()));
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Short, and nothing in it that could forge a log.
fn is_sane(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_clients_are_taken_where_they_are_sane() {
        for (id, ok) in [("req-1:a.b_c", true), ("", false), ("a b", false), ("a\n", false), (&"x".repeat(129), false)]
        {
            assert_eq!(is_sane(id.as_bytes()), ok, "{id:?}");
        }
    }
}
