//! Which web pages may use the server.
//!
//! A browser sends the origin of the page with every request that could change something. Pages of this machine are
//! let in, others only by name: without that, any page that a user visits could put a model on the user's machine to
//! work (a request of type `text/plain` needs no permission), and one that rebinds its name to 127.0.0.1 could read the
//! answers as well. Programs send no origin and are not concerned.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    error::{ApiError, ServerError},
    state::App,
};

/// The origins that are let in.
#[derive(Clone, Debug)]
pub(crate) struct Origins {
    any: bool,
    named: Vec<String>,
}

impl Origins {
    pub(crate) fn new(origins: &[String]) -> Result<Origins, ServerError> {
        let bad = |origin: &&String| !(origin.as_str() == "*" || origin.split_once("://").is_some_and(is_origin));
        if let Some(origin) = origins.iter().find(bad) {
            return Err(ServerError::BadOrigin { origin: origin.clone() });
        }
        let named = origins.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase()).collect();
        Ok(Origins { any: origins.iter().any(|origin| origin == "*"), named })
    }

    pub(crate) fn allow(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return self.any };
        let origin = origin.to_ascii_lowercase();
        self.any || is_local(&origin) || self.named.contains(&origin)
    }

    /// What tells browsers so.
    pub(crate) fn layer(&self) -> CorsLayer {
        let origins = self.clone();
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(move |origin, _| origins.allow(origin)))
            .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER])
            .max_age(Duration::from_secs(600))
    }
}

/// A scheme, and a host without a path.
fn is_origin((scheme, host): (&str, &str)) -> bool {
    let host = host.strip_suffix('/').unwrap_or(host);
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    plain(scheme) && plain(host)
}

/// A page that this machine serves.
fn is_local(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    matches!(scheme, "http" | "https") && matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// Refuses what a page sends that is not let in.
pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    match request.headers().get(header::ORIGIN) {
        Some(origin) if !app.origins.allow(origin) => {
            let message = format!("The origin {origin:?} is not allowed: name it with --cors.");
            Err(ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", message).code("origin_not_allowed"))
        }
        _ => Ok(next.run(request).await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_and_named_ones_are_let_in() {
        let named = Origins::new(&["https://Chat.example/".to_owned()]).unwrap();
        for (origin, ok) in [
            ("http://localhost", true),
            ("http://localhost:3000", true),
            ("https://127.0.0.1:8443", true),
            ("http://[::1]:8080", true),
            ("https://chat.example", true),
            ("http://chat.example", false),
            ("http://localhost.evil.example", false),
            ("http://evil.example:127", false),
            ("http://127.0.0.1.evil.example", false),
            ("file://localhost", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(named.allow(&HeaderValue::from_str(origin).unwrap()), ok, "{origin}");
        }
        let any = Origins::new(&["*".to_owned()]).unwrap();
        assert!(any.allow(&HeaderValue::from_static("null")));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for origin in ["chat.example", "https://", "https://a/b", "", "https://a b"] {
            assert!(matches!(Origins::new(&[origin.to_owned()]), Err(ServerError::BadOrigin { .. })), "{origin}");
        }
    }
}
