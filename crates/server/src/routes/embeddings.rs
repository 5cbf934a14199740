//! `/v1/embeddings`.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use axum::{Extension, Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use engine::{EngineError, Event, SubmitError, Ticket};
use tokio::sync::oneshot;

use crate::{
    body::Payload,
    dialogue::check_length,
    error::ApiError,
    observe::Tracker,
    running::late,
    state::{App, Model},
    types::{
        completions::Prompt,
        embeddings::{Embedding, EmbeddingReply, EmbeddingRequest, EmbeddingUnicorn, EmbeddingUsage, Vector},
        error::ErrorReply,
    },
};

/// What is waited for until there may be room in the queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// The vectors of texts: pooled as the model says, of length 1.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses((status = 200, body = EmbeddingReply), (status = "4XX", body = ErrorReply)))]
pub(crate) async fn embed(
    State(app): State<App>,
    Extension(tracker): Extension<Tracker>,
    Payload(request, share): Payload<EmbeddingRequest>,
) -> Result<Json<EmbeddingReply>, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let prepare = {
        let (app, model) = (app.clone(), model.clone());
        move || {
            let request = request.parse(&app.options.limits)?;
            let ids = request.inputs.into_iter().enumerate().map(|(at, input)| ids(&model, at, input));
            let ids = ids.collect::<Result<Vec<_>, ApiError>>()?;
            let most = app.options.limits.prompt_tokens;
            ids.iter().try_for_each(|ids| check_length(ids.len(), most, "input"))?;
            drop(share);
            Ok((ids, request.base64, request.dimensions, request.ignored))
        }
    };
    let (ids, base64, dimensions, ignored) = app.aside(prepare).await??;
    let tokens = ids.iter().map(Vec::len).sum();
    tracker.used(tokens, 0);
    let texts = Texts { pending: ids.into(), coming: VecDeque::new(), dimensions };
    let vectors = texts.vectors(&app, &model, &tracker).await?;
    let wire = |vector: Vec<f32>| if base64 { Vector::Base64(encoded(&vector)) } else { Vector::Floats(vector) };
    let embedding = |(index, vector)| Embedding { object: "embedding", index, embedding: wire(vector) };
    Ok(Json(EmbeddingReply {
        object: "list",
        data: vectors.into_iter().enumerate().map(embedding).collect(),
        model: app.options.model.clone(),
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
        unicorn: EmbeddingUnicorn { device: model.device.clone(), ignored },
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

/// Texts whose vectors are wanted.
struct Texts {
    pending: VecDeque<Vec<u32>>,
    coming: VecDeque<Coming>,
    /// Components that the vectors must have, where the request says so.
    dimensions: Option<usize>,
}

impl Texts {
    /// The vectors in order. Only as many texts are submitted at a time as keep the engine busy.
    async fn vectors(mut self, app: &App, model: &Model, tracker: &Tracker) -> Result<Vec<Vec<f32>>, ApiError> {
        let deadline = tracker.start() + app.options.timeouts.request;
        let enough = 2 * model.service.stats().slots.max(1);
        let mut vectors = Vec::with_capacity(self.pending.len());
        loop {
            while let Some(ids) = self.pending.front().filter(|_| self.coming.len() < enough) {
                match submit(model, ids.clone(), deadline) {
                    Ok(next) => self.coming.push_back(next),
                    Err(SubmitError::QueueFull { .. }) if !self.coming.is_empty() => break,
                    // What is computed is not thrown away because others came in between.
                    Err(SubmitError::QueueFull { .. }) if !vectors.is_empty() && Instant::now() < deadline => {
                        tokio::time::sleep(QUEUE_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(ApiError::submit(error, "input", app.retry_after(model))),
                }
                self.pending.pop_front();
            }
            let Some(next) = self.coming.pop_front() else { return Ok(vectors) };
            match next.vector.await {
                Ok(Event::Embedding(vector)) => vectors.push(self.checked(vector)?),
                Ok(Event::Failed(EngineError::Deadline)) => return Err(late(app.options.timeouts.request)),
                Ok(Event::Failed(error)) => return Err(ApiError::engine(&error, "input")),
                Ok(_) => return Err(ApiError::stopping()),
                Err(_) => return Err(ApiError::internal("The engine broke off.")),
            }
            app.metrics.answer_time.record(tracker.start().elapsed().as_secs_f64());
        }
    }

    fn checked(&self, vector: Vec<f32>) -> Result<Vec<f32>, ApiError> {
        match self.dimensions {
            Some(asked) if asked != vector.len() => {
                let message = format!("dimensions is {asked}: the vectors of this model have {}.", vector.len());
                Err(ApiError::value("dimensions", message))
            }
            _ => Ok(vector),
        }
    }
}

fn submit(model: &Model, ids: Vec<u32>, deadline: Instant) -> Result<Coming, SubmitError> {
    let (sender, vector) = oneshot::channel();
    let mut sender = Some(sender);
    let sink = move |_, event| {
        if !matches!(event, Event::Prefill { .. })
            && let Some(sender) = sender.take()
        {
            // Where the client has gone, its ticket says so.
            let _ = sender.send(event);
        }
        ControlFlow::Continue(())
    };
    let ticket = model.service.embed(ids, model.service.pooling(), Some(deadline), Box::new(sink))?;
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
