//! The table of routes.

pub(crate) mod chat;
mod chat_stream;
pub(crate) mod completions;
mod completions_stream;
mod docs;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod models;
pub(crate) mod responses;
mod responses_stream;
pub(crate) mod tokenize;

use axum::{
    Router,
    extract::Request,
    http::{Method, StatusCode},
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{auth, error::ApiError, observe, origin, state::App};

/// What this program calls itself in `system_fingerprint`.
pub(crate) const FINGERPRINT: &str = concat!("unicorn-", env!("CARGO_PKG_VERSION"));

/// Every route, once.
fn table() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![
        ("/v1/chat/completions", post(chat::complete)),
        ("/v1/completions", post(completions::complete)),
        ("/v1/embeddings", post(embeddings::embed)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::one)),
        ("/v1/responses", post(responses::respond)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
        ("/tokenizer_info", get(tokenize::info)),
        ("/health", get(health::health)),
        ("/ready", get(health::ready)),
        ("/metrics", get(health::metrics)),
        ("/docs", get(docs::page)),
        ("/docs/docs.js", get(docs::script)),
        ("/docs/docs.css", get(docs::style)),
        ("/openapi.json", get(docs::openapi)),
    ]
}

/// The routes with all that goes before them: the first to see a request is the last layer.
pub(crate) fn router(app: &App) -> Router {
    let router = table().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), auth::require_key))
        .layer(middleware::from_fn_with_state(app.clone(), origin::check))
        .layer(app.origins.layer())
        .layer(CatchPanicLayer::custom(|_| ApiError::internal("The server failed.").into_response()))
        .layer(middleware::from_fn_with_state(app.clone(), observe::observe))
        .with_state(app.clone())
}

async fn unknown(request: Request) -> ApiError {
    let path = crate::state::shortened(request.uri().path());
    let message = format!("Unknown request URL: {} {path}. What there is, is listed at /docs.", request.method());
    ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code("unknown_url")
}

async fn wrong_method(method: Method, request: Request) -> Response {
    let message = format!("{} does not take {method}.", crate::state::shortened(request.uri().path()));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
        .code("method_not_allowed")
        .into_response()
}
