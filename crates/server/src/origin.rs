//! Which web pages may use the server.
//!
//! A browser sends the origin of the page with every request that could change something. Pages of this machine are
//! let in, others only by name: without that, any page that a user visits could put a model on the user's machine to
//! work (a request of type `text/plain` needs no permission), and one that rebinds its name to 127.0.0.1 could read the
//! answers as well. Programs send no origin and are not concerned.

use std::{net::IpAddr, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    body,
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
        let bad = |origin: &&String| {
            !(matches!(origin.as_str(), "*" | "null") || origin.split_once("://").is_some_and(is_origin))
        };
        if let Some(origin) = origins.iter().find(bad) {
            return Err(ServerError::BadOrigin { origin: origin.clone() });
        }
        let named = origins.iter().map(|origin| without_default_port(origin.trim_end_matches('/'))).collect();
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
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'*'));
    plain(scheme) && plain(host)
}

/// As browsers write it: in small letters, without the port that goes without saying.
fn without_default_port(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let port = if origin.starts_with("https://") { ":443" } else { ":80" };
    origin.strip_suffix(port).map(str::to_owned).unwrap_or(origin)
}

/// A page that this machine serves.
fn is_local(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    matches!(scheme, "http" | "https") && is_loopback(authority)
}

/// Whether a host, with or without a port, is this machine by a name that no one else can give away.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Refuses what a page sends that is not let in, and what a page could be behind that has rebound its name to this
/// machine: a browser names no origin where it reads from the page's own.
pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    let forbidden =
        |message, code| Err(ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", message).code(code));
    if let Some(origin) = request.headers().get(header::ORIGIN).filter(|origin| !app.origins.allow(origin)) {
        let message = format!("The origin {origin:?} is not allowed: name it with --cors.");
        body::drain(request.into_body()).await;
        return forbidden(message, "origin_not_allowed");
    }
    if app.loopback_only && !request.headers().get(header::HOST).is_none_or(|host| app.is_own_host(host)) {
        let message =
            "This server is for programs of this machine: ask it as localhost, or name the page or proxy with --cors."
                .to_owned();
        body::drain(request.into_body()).await;
        return forbidden(message, "host_not_allowed");
    }
    Ok(next.run(request).await)
}

impl App {
    /// Whether a `Host` header means this server.
    fn is_own_host(&self, host: &HeaderValue) -> bool {
        host.to_str().is_ok_and(|host| {
            let host = host.to_ascii_lowercase();
            let name = host.rsplit_once(':').map_or(&*host, |(name, _)| name);
            is_loopback(&host) || name.eq_ignore_ascii_case(&self.options.host)
        })
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
        let odd = ["https://x.example:443".to_owned(), "null".to_owned(), "tauri://localhost".to_owned()];
        let odd = Origins::new(&odd).unwrap();
        for origin in ["https://x.example", "null", "tauri://localhost"] {
            assert!(odd.allow(&HeaderValue::from_str(origin).unwrap()), "{origin}");
        }
        let any = Origins::new(&["*".to_owned()]).unwrap();
        assert!(any.allow(&HeaderValue::from_static("null")));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for origin in ["chat.example", "https://", "https://a/b", "", "https://a b", "https://*.example"] {
            assert!(matches!(Origins::new(&[origin.to_owned()]), Err(ServerError::BadOrigin { .. })), "{origin}");
        }
    }
}
