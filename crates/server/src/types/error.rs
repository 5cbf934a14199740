//! Errors, as OpenAI's clients read them.

use serde::Serialize;
use utoipa::ToSchema;

/// The body of every answer with a status of 400 and above.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorReply {
    /// What went wrong.
    pub(crate) error: ErrorBody,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// For people.
    pub(crate) message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The field that is at fault, as a path into the request.
    pub(crate) param: Option<String>,
    /// For programs.
    pub(crate) code: Option<String>,
}
