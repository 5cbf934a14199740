//! `/v1/models`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use crate::{
    error::ApiError,
    state::App,
    types::{
        error::ErrorReply,
        models::{ModelDetails, ModelEntry, ModelList},
    },
};

/// The models that requests may name. Those that are still being loaded are among them.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub(crate) async fn list(State(app): State<App>) -> Json<ModelList> {
    let names = std::iter::once(&app.options.model).chain(&app.options.aliases);
    Json(ModelList { object: "list", data: names.map(|name| entry(&app, name)).collect() })
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path, description = "Its name.")),
    responses((status = 200, body = ModelEntry), (status = 404, body = ErrorReply)))]
pub(crate) async fn one(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelEntry>, ApiError> {
    // What is no text is no name either.
    let Path(id) = id.unwrap_or_else(|_| Path("\u{fffd}".to_owned()));
    app.check_name(&id)?;
    Ok(Json(entry(&app, &id)))
}

fn entry(app: &App, name: &str) -> ModelEntry {
    let model = app.loaded();
    let details = model.as_ref().map(|model| {
        let (service, info) = (&model.service, model.service.info());
        ModelDetails {
            name: info.name.clone(),
            architecture: info.architecture.clone(),
            device: model.device.clone(),
            trained_context: info.context,
            vocab: info.vocab,
            chat: service.template().is_some(),
            slots: service.stats().slots,
        }
    });
    ModelEntry {
        id: name.to_owned(),
        object: "model",
        created: app.started_s,
        owned_by: "unicorn",
        max_model_len: model.map(|model| model.service.context()),
        unicorn: details,
    }
}
