//! API keys.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    body,
    error::{ApiError, ServerError},
    state::App,
};

/// What anyone may see: that the server is alive, and how it is spoken to.
const OPEN: [&str; 6] = ["/health", "/ready", "/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json"];

/// The keys that open the server, as their hashes: comparing takes the same time whatever is shown, and no key lies in
/// memory.
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Result<Keys, ServerError> {
        if let Some(index) = keys.iter().position(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(ServerError::BadKey { index: index + 1 });
        }
        Ok(Keys(keys.iter().map(|key| hash(key.as_bytes())).collect()))
    }

    /// Whether a request with these headers may go on.
    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let refuse = |code, message: &str| {
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message).code(code))
        };
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return refuse("missing_api_key", "You did not provide an API key: send it as Authorization: Bearer KEY.");
        };
        let bytes = value.as_bytes();
        let Some((_, key)) = bytes.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        else {
            return refuse("invalid_api_key", "The Authorization header is not of the form Bearer KEY.");
        };
        let shown = hash(key.trim_ascii());
        // Every key is compared, so that the time does not tell which one came close.
        let known = self.0.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(&shown));
        if known.into() { Ok(()) } else { refuse("invalid_api_key", "Incorrect API key provided.") }
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Lets a request through that shows a key, or needs none.
pub(crate) async fn require_key(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    if !OPEN.contains(&request.uri().path())
        && let Err(error) = app.keys.check(request.headers())
    {
        body::drain(request.into_body()).await;
        return Err(error);
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_whole() {
        let keys = Keys::new(&["secret".to_owned(), "other".to_owned()]).unwrap();
        for (shown, ok) in [
            (Some("Bearer secret"), true),
            (Some("bearer other"), true),
            (Some("Bearer  secret "), true),
            (Some("Bearer secre"), false),
            (Some("Bearer secrets"), false),
            (Some("Bearer "), false),
            (Some("Basic secret"), false),
            (Some("secret"), false),
            (Some(""), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(shown) = shown {
                headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
            }
            assert_eq!(keys.check(&headers).is_ok(), ok, "{shown:?}");
        }
        assert!(Keys::new(&[]).unwrap().check(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn keys_that_cannot_be_sent_are_refused() {
        for key in ["", "with space", "ключ", "a\nb"] {
            assert!(matches!(Keys::new(&["fine".to_owned(), key.to_owned()]), Err(ServerError::BadKey { index: 2 })));
        }
    }
}
