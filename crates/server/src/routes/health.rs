//! `/health`, `/ready`, `/metrics`.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{
    state::{App, Readiness},
    types::models::{Health, Ready},
};

/// That the server is alive, whatever it is busy with.
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, body = Health)))]
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether requests are served: 503 while the model is loaded, with how far it is, when the server stops, and when
/// the engine has failed.
#[utoipa::path(get, path = "/ready", tag = "operation",
    responses((status = 200, body = Ready), (status = 503, body = Ready)))]
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let model = app.options.model.clone();
    let simple = |status| Ready { status, model: model.clone(), progress: None, done_bytes: None, all_bytes: None };
    let (status, body) = match app.readiness() {
        Readiness::Ready => (StatusCode::OK, simple("ready")),
        Readiness::Failed => (StatusCode::SERVICE_UNAVAILABLE, simple("failed")),
        Readiness::Stopping => (StatusCode::SERVICE_UNAVAILABLE, simple("stopping")),
        Readiness::Loading { done_bytes, all_bytes } => {
            let progress = if all_bytes == 0 { 0.0 } else { done_bytes as f64 / all_bytes as f64 };
            let body = Ready {
                progress: Some(progress),
                done_bytes: Some(done_bytes),
                all_bytes: Some(all_bytes),
                ..simple("loading")
            };
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
    };
    (status, Json(body)).into_response()
}

/// Counts and times, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, content_type = "text/plain; version=0.0.4", body = String)))]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let stats = app.loaded().map(|model| model.service.stats());
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.metrics.render(stats.as_ref())).into_response()
}
