//! `/v1/embeddings`.

use std::collections::VecDeque;

use axum::{Extension, Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use engine::{Event, SubmitError, Ticket};
use tokio::sync::oneshot;

use crate::{
    body::Payload,
    error::ApiError,
    observe::Tracker,
    state::{App, Model},
    types::{
        completions::Prompt,
        embeddings::{Embedding, EmbeddingReply, EmbeddingRequest, EmbeddingUsage, Vector},
        error::ErrorReply,
    },
};

/// The vectors of texts: pooled as the model says, of length 1.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses((status = 200, body = EmbeddingReply), (status = "4XX", body = ErrorReply)))]
pub(crate) async fn embed(
    State(app): State<App>,
    Extension(tracker): Extension<Tracker>,
    Payload(request, share): Payload<EmbeddingRequest>,
) -> Result<Json<EmbeddingReply>, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let request = request.parse(&app.options.limits)?;
    let (base64, dimensions) = (request.base64, request.dimensions);
    let encoder = model.clone();
    let encode = move || {
        let ids = request.inputs.into_iter().enumerate().map(|(at, input)| ids(&encoder, at, input));
        let ids = ids.collect::<Result<Vec<_>, _>>();
        drop(share);
        ids
    };
    let ids = app.aside(encode).await??;
    let tokens = ids.iter().map(Vec::len).sum();
    tracker.used(tokens, 0);
    let mut data = Vec::with_capacity(ids.len());
    for vector in vectors(&app, &model, ids).await? {
        if let Some(asked) = dimensions.filter(|asked| *asked != vector.len()) {
            let message = format!("dimensions is {asked}: the vectors of this model have {}.", vector.len());
            return Err(ApiError::value("dimensions", message));
        }
        let embedding = if base64 { Vector::Base64(encoded(&vector)) } else { Vector::Floats(vector) };
        data.push(Embedding { object: "embedding", index: data.len(), embedding });
    }
    Ok(Json(EmbeddingReply {
        object: "list",
        data,
        model: app.options.model.clone(),
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    }))
}

fn ids(model: &Model, at: usize, input: Prompt) -> Result<Vec<u32>, ApiError> {
    match input {
        Prompt::Ids(ids) => Ok(ids),
        Prompt::Text(text) if text.is_empty() => {
            Err(ApiError::value(format!("input[{at}]"), "An empty text has no vector."))
        }
        Prompt::Text(text) => {
            model.check_text(&text, "input")?;
            model.service.prompt(&text).map_err(|error| ApiError::engine(&error, "input"))
        }
    }
}

fn encoded(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// A vector that is being computed. Dropped, it is given up.
struct Coming {
    vector: oneshot::Receiver<Event>,
    _ticket: Ticket,
}

/// The vectors in order. Only as many texts are submitted at a time as keep the engine busy.
async fn vectors(app: &App, model: &Model, ids: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>, ApiError> {
    let enough = 2 * model.service.stats().slots.max(1);
    let mut texts: VecDeque<Vec<u32>> = ids.into();
    let mut coming: VecDeque<Coming> = VecDeque::new();
    let mut vectors = Vec::with_capacity(texts.len());
    loop {
        while let Some(ids) = texts.front().filter(|_| coming.len() < enough) {
            match submit(model, ids.clone()) {
                Ok(next) => coming.push_back(next),
                Err(SubmitError::QueueFull { .. }) if !coming.is_empty() => break,
                Err(error) => return Err(ApiError::submit(error, "input", app.retry_after(model))),
            }
            texts.pop_front();
        }
        let Some(next) = coming.pop_front() else { return Ok(vectors) };
        match next.vector.await {
            Ok(Event::Embedding(vector)) => vectors.push(vector),
            Ok(Event::Failed(error)) => return Err(ApiError::engine(&error, "input")),
            Ok(_) => return Err(ApiError::stopping()),
            Err(_) => return Err(ApiError::internal("The engine broke off.")),
        }
    }
}

fn submit(model: &Model, ids: Vec<u32>) -> Result<Coming, SubmitError> {
    let (sender, vector) = oneshot::channel();
    let mut sender = Some(sender);
    let sink = move |_, event| {
        if !matches!(event, Event::Prefill { .. })
            && let Some(sender) = sender.take()
        {
            // Nobody hears it where the client has gone.
            let _ = sender.send(event);
        }
    };
    let ticket = model.service.embed(ids, model.service.pooling(), Box::new(sink))?;
    Ok(Coming { vector, _ticket: ticket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_of_little_endian_floats() {
        assert_eq!(encoded(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
