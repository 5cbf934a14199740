//! What can go wrong: with the server, and with a request.

use std::{fmt, io, net::SocketAddr, path::PathBuf, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use engine::{ConstraintError, EngineError, SubmitError};

use crate::types::error::{ErrorBody, ErrorReply};

/// Why a server did not start, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A host that means no address.
    #[error("no address for host {host:?}: {source}")]
    Host {
        /// As given.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Open to the network without a key.
    #[error("{address} can be reached from other machines: give an API key, or say --no-auth")]
    KeyRequired {
        /// The address.
        address: SocketAddr,
    },
    /// A key that no client could send.
    #[error("API key {index} is empty or has characters that a header cannot carry")]
    BadKey {
        /// Its number, from 1.
        index: usize,
    },
    /// An origin that no browser sends.
    #[error("origin {origin:?} is none: it is a scheme and a host, as https://chat.example, or *")]
    BadOrigin {
        /// As given.
        origin: String,
    },
    /// A limit that lets nothing through.
    #[error("{name} must be at least 1")]
    ZeroLimit {
        /// The limit.
        name: &'static str,
    },
    /// A time that is none, or has no end.
    #[error("{name} is {} s: it may be from a millisecond to a year", value.as_secs_f64())]
    Timeout {
        /// What it is for.
        name: &'static str,
        /// As given.
        value: Duration,
    },
    /// A certificate or key that cannot be read.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Certificate and key that do not go together.
    #[error("certificate and key: {0}")]
    Tls(#[from] rustls::Error),
    /// The system gave no threads or sockets.
    #[error("cannot run the server: {0}")]
    Runtime(#[from] io::Error),
}

/// A refusal or failure of a request, in OpenAI's shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, code: None, param: None, message: message.into(), retry_after: None }
    }

    /// The request asks for what cannot be.
    pub(crate) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field has a value that it may not have.
    pub(crate) fn value(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::bad_request(message).param(param).code("invalid_value")
    }

    /// A field is missing.
    pub(crate) fn missing(param: impl Into<String>) -> ApiError {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'.");
        ApiError::bad_request(message).param(param).code("missing_required_parameter")
    }

    /// A field has a value of the wrong type.
    pub(crate) fn wrong_type(param: impl Into<String>, expected: &str) -> ApiError {
        let param = param.into();
        let message = format!("Invalid type for '{param}': expected {expected}.");
        ApiError::bad_request(message).param(param).code("invalid_type")
    }

    /// A field is known and not served.
    pub(crate) fn unsupported(param: impl Into<String>, why: &str) -> ApiError {
        let param = param.into();
        let message = format!("Unsupported parameter: '{param}'. {why}");
        ApiError::bad_request(message).param(param).code("unsupported_parameter")
    }

    /// Something broke that is not the client's fault.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message).code("internal_error")
    }

    /// The server cannot serve now.
    pub(crate) fn unavailable(message: impl Into<String>, code: &'static str, retry_after: Duration) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        ApiError { retry_after: Some(retry_after), ..error.code(code) }
    }

    /// The server is on its way out.
    pub(crate) fn stopping() -> ApiError {
        ApiError::unavailable("The server is stopping.", "stopping", Duration::from_secs(10))
    }

    pub(crate) fn param(self, param: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..self }
    }

    pub(crate) fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// An engine's error, where the prompt came in the field `prompt`.
    pub(crate) fn engine(error: &EngineError, prompt: &str) -> ApiError {
        let message = error.to_string();
        match error {
            EngineError::PromptTooLong { prompt: tokens, context, .. } => ApiError::too_long(tokens, *context, prompt),
            EngineError::Setting { name, .. } => ApiError::value(*name, message),
            EngineError::IdOutOfRange { .. } | EngineError::EmptyPrompt | EngineError::NoTokenizer(_) => {
                ApiError::value(prompt, message)
            }
            EngineError::NoTemplate { .. } | EngineError::Text(_) => ApiError::value(prompt, message),
            // A format that compiles can still become too much while it is followed.
            EngineError::Constraint(ConstraintError::Step(_)) => ApiError::bad_request(message).code("invalid_format"),
            EngineError::Ended => ApiError::stopping(),
            error if error.is_misuse() => ApiError::bad_request(message),
            _ => {
                tracing::error!(error = %message, "the engine failed");
                ApiError::internal(format!("The engine failed: {message}"))
            }
        }
    }

    /// A format, or tools, that an answer cannot be held to, from the field `path`.
    pub(crate) fn format(error: &EngineError, path: &str) -> ApiError {
        match error {
            EngineError::Constraint(reason) if reason.is_misuse() => {
                ApiError::value(path, format!("{path}: {reason}.")).code("invalid_format")
            }
            error => ApiError::engine(error, path),
        }
    }

    /// A prompt beyond what the context, or the limit on prompts, allows.
    pub(crate) fn too_long(tokens: &dyn fmt::Display, limit: usize, param: &str) -> ApiError {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your prompt has {tokens} tokens. Please \
             shorten it."
        );
        ApiError::bad_request(message).param(param).code("context_length_exceeded")
    }

    /// A submission that the engine did not take. `retry_after` is for a full queue.
    pub(crate) fn submit(error: SubmitError, prompt: &str, retry_after: Duration) -> ApiError {
        match error {
            SubmitError::QueueFull { waiting, limit } => {
                let message = format!(
                    "The queue is full: {waiting} requests wait, and it holds {limit}. Please retry in {} s.",
                    retry_after.as_secs()
                );
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
                ApiError { retry_after: Some(retry_after), ..error.code("queue_full") }
            }
            SubmitError::TooManyChoices { choices, most } => {
                ApiError::value("n", format!("n is {choices}: this server has slots and a queue for {most}."))
            }
            SubmitError::Stopped => ApiError::stopping(),
            SubmitError::Refused(error) => ApiError::engine(&error, prompt),
        }
    }

    /// The body that tells it.
    pub(crate) fn body(&self) -> ErrorReply {
        ErrorReply {
            error: ErrorBody {
                message: self.message.clone(),
                kind: self.kind.to_owned(),
                param: self.param.clone(),
                code: self.code.map(str::to_owned),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE || self.status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the body will not be read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
