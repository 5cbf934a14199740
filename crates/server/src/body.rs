//! Request bodies: read within bounds of time and memory, and parsed with an error that says where.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use bytes::BytesMut;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    error::ApiError,
    state::{App, shortened},
};

/// What a parsed value takes however short it was written, about.
const VALUE_BYTES: usize = 80;

/// Bodies beyond this many bytes are parsed aside, where they hold up no connection.
const PARSED_ASIDE_BYTES: usize = 64 << 10;

/// How much, and for how long, of a body that is too large is read before it is refused.
const DRAINED_BYTES: usize = 256 << 20;
const DRAINED_FOR: Duration = Duration::from_secs(2);

/// A parsed body, and the share of memory it holds until it is used up.
pub(crate) struct Payload<T>(pub(crate) T, pub(crate) Share);

/// A share of the memory that bodies may take all together.
pub(crate) struct Share(OwnedSemaphorePermit);

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for Payload<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Payload<T>, ApiError> {
        if let Err(error) = check_type(request.headers()) {
            drain(request.into_body()).await;
            return Err(error);
        }
        let limit = app.options.limits.body_bytes;
        if content_length(request.headers()).is_some_and(|length| length > limit as u64) {
            // A client that waits for a word before it sends need not send.
            if !request.headers().contains_key(header::EXPECT) {
                drain(request.into_body()).await;
            }
            return Err(too_large(limit));
        }
        let read = read(request.into_body(), app);
        let (bytes, mut share) = tokio::time::timeout(app.options.timeouts.body, read).await.map_err(|_| {
            let message = "The body of the request did not arrive in time.";
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message).code("body_timeout")
        })??;
        let (values, most_values) = (count_values(&bytes), app.options.limits.json_values);
        if values > most_values {
            let message = format!("The body of the request has more than {most_values} JSON values.");
            let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message);
            return Err(error.code("too_complex"));
        }
        share.0.merge(take(app, values * VALUE_BYTES)?);
        let value =
            if bytes.len() <= PARSED_ASIDE_BYTES { parse(&bytes)? } else { app.aside(move || parse(&bytes)).await?? };
        Ok(Payload(value, share))
    }
}

/// Only JSON is taken. Otherwise a page of any origin could send requests as plain text, which browsers allow.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json") {
        return Ok(());
    }
    let message = "The body must be JSON, and the request must say so: Content-Type: application/json.";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message).code("content_type"))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("The body of the request is larger than {limit} bytes.");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).code("body_too_large")
}

async fn read(mut body: Body, app: &App) -> Result<(Bytes, Share), ApiError> {
    let limit = app.options.limits.body_bytes;
    let mut bytes = BytesMut::new();
    let mut share = take(app, 0)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("The body of the request broke off: {error}.")).code("body_incomplete")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            drop((bytes, share));
            drain(body).await;
            return Err(too_large(limit));
        }
        match take(app, data.len()) {
            Ok(more) => share.merge(more),
            Err(error) => {
                drop((bytes, share));
                drain(body).await;
                return Err(error);
            }
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), Share(share)))
}

/// Reads on for a while and forgets it: many clients look at the answer only when they have sent everything, and one
/// whose connection is closed before that may never see it.
pub(crate) async fn drain(mut body: Body) {
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DRAINED_BYTES {
                break;
            }
        }
    };
    // Whoever sends for longer finds the connection closed.
    let _ = tokio::time::timeout(DRAINED_FOR, read).await;
}

fn take(app: &App, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    app.bodies.clone().try_acquire_many_owned(count).map_err(|_| {
        let message = "Too many large requests at once.";
        ApiError::unavailable(message, "bodies_full", Duration::from_secs(2))
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        ApiError::bad_request(format!("The body of the request is not UTF-8: byte {at}.")).code("invalid_utf8")
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| explain(&error))?;
    json.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

/// No fewer than the values in a JSON text: each but the first follows a comma, a colon or a bracket.
fn count_values(json: &[u8]) -> usize {
    let (mut in_string, mut escaped, mut count) = (false, false, 1);
    for byte in json {
        if in_string {
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else {
            in_string = *byte == b'"';
            count += usize::from(matches!(byte, b',' | b':' | b'[' | b'{'));
        }
    }
    count
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let (inner, path) = (error.inner(), shortened(&error.path().to_string()));
    if inner.classify() != serde_json::error::Category::Data {
        return malformed(inner);
    }
    let text = inner.to_string();
    if let Some((field, _)) = text.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
        return ApiError::missing(if path == "." { field.to_owned() } else { format!("{path}.{field}") });
    }
    let text = told(&text);
    if path == "." {
        return ApiError::bad_request(format!("Invalid body: {text}.")).code("invalid_type");
    }
    ApiError::bad_request(format!("Invalid value for '{path}': {text}.")).param(path).code("invalid_type")
}

fn malformed(error: &serde_json::Error) -> ApiError {
    let text = told(&error.to_string());
    ApiError::bad_request(format!("The body of the request is not valid JSON: {text}.")).code("invalid_json")
}

/// The parser's words, which quote what they are about however long it is: their beginning, and their end with the line
/// and column.
fn told(text: &str) -> String {
    const HALF: usize = 150;
    match (text.char_indices().nth(HALF), text.char_indices().rev().nth(HALF)) {
        (Some((end, _)), Some((start, _))) if end < start => format!("{}...{}", &text[..end], &text[start..]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only the errors are looked at")]
    struct Sample {
        list: Vec<Item>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only the errors are looked at")]
    struct Item {
        number: u32,
    }

    #[test]
    fn errors_say_where() {
        let deep = "[".repeat(100_000);
        for (body, code, param, words) in [
            (r#"{"list": [{"number": 1}, {"number": "x"}]}"#, "invalid_type", Some("list[1].number"), "string \"x\""),
            (r#"{"list": [{"number": -1}]}"#, "invalid_type", Some("list[0].number"), "-1"),
            (r#"{"list": [{}]}"#, "missing_required_parameter", Some("list[0].number"), "number"),
            ("{}", "missing_required_parameter", Some("list"), "list"),
            (r#"{"list": 3}"#, "invalid_type", Some("list"), "line 1 column 10"),
            (r#"{"list": []"#, "invalid_json", None, "line 1 column 11"),
            ("{\n\"list\" []}", "invalid_json", None, "line 2 column 8"),
            (r#"{"list": []} x"#, "invalid_json", None, "line 1 column 14"),
            ("", "invalid_json", None, "EOF"),
            ("[]", "invalid_type", None, "Invalid body"),
            (r#"{"list": [{"number": 1e999}]}"#, "invalid_json", None, "number out of range"),
            (&format!(r#"{{"list": {deep}"#), "invalid_type", Some("list[0][0]"), "line 1"),
        ] {
            let error = parse::<Sample>(body.as_bytes()).unwrap_err();
            let short = &body[..body.len().min(60)];
            assert_eq!((error.code, error.param.as_deref()), (Some(code), param), "{short}: {}", error.message);
            assert!(error.message.contains(words), "{short}: {}", error.message);
        }
        let error = parse::<Sample>(b"{\"a\": \"\xff\"}").unwrap_err();
        assert_eq!(error.code, Some("invalid_utf8"));
        assert!(error.message.contains("byte 7"), "{}", error.message);
        let long = format!(r#"{{"list": "{}"}}"#, "é".repeat(100_000));
        let error = parse::<Sample>(long.as_bytes()).unwrap_err();
        assert!(error.message.len() < 1000 && error.message.contains("line 1 column"), "{}", error.message);
        let error = parse::<serde_json::Value>(deep.as_bytes()).unwrap_err();
        assert!(error.message.contains("recursion limit"), "{}", error.message);
    }

    #[test]
    fn values_are_counted_before_they_are_made() {
        for (json, least, most) in [
            ("1", 1, 1),
            ("[1,2,3]", 4, 4),
            (r#"{"a": "x,y,[{:", "b": "\"\\,"}"#, 3, 6),
            (r#""\\",1"#, 2, 2),
            ("[[[]]]", 3, 4),
        ] {
            let count = count_values(json.as_bytes());
            assert!((least..=most).contains(&count), "{json}: {count}");
        }
    }
}
