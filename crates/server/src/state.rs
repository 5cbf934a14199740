//! What all requests share.

use std::{
    ops::Deref,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use engine::Service;
use tokio::sync::{Semaphore, watch};

use crate::{
    auth::Keys,
    error::{ApiError, ServerError},
    ids::unix_s,
    metrics::Metrics,
    options::ServerOptions,
    origin::Origins,
};

/// A share in what all requests share.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) options: ServerOptions,
    pub(crate) keys: Keys,
    pub(crate) origins: Origins,
    pub(crate) metrics: Metrics,
    /// Bytes of bodies that may still be taken in.
    pub(crate) bodies: Arc<Semaphore>,
    /// Requests that may be prepared (parsed, rendered, encoded) at the same time: one a processor.
    pub(crate) preparing: Arc<Semaphore>,
    /// Whether only this machine reaches the server, and whoever does is let in.
    pub(crate) loopback_only: bool,
    /// Turns true when the server is told to stop.
    pub(crate) stop: watch::Sender<bool>,
    /// When the server started, for `created` of the model.
    pub(crate) started_s: u64,
    phase: RwLock<Phase>,
    loaded_bytes: AtomicU64,
    all_bytes: AtomicU64,
}

/// How far the model is.
enum Phase {
    Loading,
    Ready(Arc<Model>),
}

/// The model, served.
pub(crate) struct Model {
    pub(crate) service: Service,
    /// The devices that it runs on.
    pub(crate) device: String,
    /// Bytes of its longest token.
    longest_token_bytes: usize,
}

impl Model {
    /// Refuses a text, from the field `path`, that is too long however it is encoded: what encoding takes grows with the
    /// text, and the answer to ten megabytes is known before.
    pub(crate) fn check_text(&self, text: &str, path: &str) -> Result<(), ApiError> {
        let context = self.service.context();
        let least = text.len() / self.longest_token_bytes;
        if least > context { Err(ApiError::too_long(&format!("at least {least}"), context, path)) } else { Ok(()) }
    }
}

/// What `/ready` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Readiness {
    Loading {
        done_bytes: u64,
        all_bytes: u64,
    },
    Ready,
    /// The engine's thread is gone.
    Failed,
    Stopping,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    pub(crate) fn new(mut options: ServerOptions, is_loopback: bool) -> Result<App, ServerError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let loopback_only = is_loopback && options.api_keys.is_empty() && options.cors_origins.is_empty();
        // From here on only their hashes are kept.
        let keys = Keys::new(&std::mem::take(&mut options.api_keys))?;
        Ok(App(Arc::new(Shared {
            keys,
            loopback_only,
            origins: Origins::new(&options.cors_origins)?,
            metrics: Metrics::default(),
            bodies: Arc::new(Semaphore::new(options.limits.bodies_bytes.min(Semaphore::MAX_PERMITS))),
            preparing: Arc::new(Semaphore::new(processors)),
            stop: watch::Sender::new(false),
            started_s: unix_s(),
            phase: RwLock::new(Phase::Loading),
            loaded_bytes: AtomicU64::new(0),
            all_bytes: AtomicU64::new(0),
            options,
        })))
    }

    pub(crate) fn loading(&self, done_bytes: u64, all_bytes: u64) {
        self.loaded_bytes.store(done_bytes, Ordering::Relaxed);
        self.all_bytes.store(all_bytes, Ordering::Relaxed);
    }

    pub(crate) fn ready(&self, service: Service) {
        let device = service.plan().used_devices().join(",");
        let longest_token_bytes = service.tokenizer().map_or(1, |tokenizer| {
            let lengths = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token_bytes(id));
            lengths.map(|bytes| bytes.len()).max().unwrap_or(1).max(1)
        });
        let model = Model { service, device, longest_token_bytes };
        *self.phase.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Phase::Ready(Arc::new(model));
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    pub(crate) fn readiness(&self) -> Readiness {
        if self.is_stopping() {
            return Readiness::Stopping;
        }
        match self.loaded() {
            Some(model) if model.service.is_alive() => Readiness::Ready,
            Some(_) => Readiness::Failed,
            None => Readiness::Loading {
                done_bytes: self.loaded_bytes.load(Ordering::Relaxed),
                all_bytes: self.all_bytes.load(Ordering::Relaxed),
            },
        }
    }

    /// The model, where it is loaded.
    pub(crate) fn loaded(&self) -> Option<Arc<Model>> {
        match &*self.phase.read().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Phase::Ready(model) => Some(model.clone()),
            Phase::Loading => None,
        }
    }

    /// The model, for a request that names it, or names none.
    ///
    /// # Errors
    /// 404 for another model's name, 503 while this one is loaded or the server stops.
    pub(crate) fn model(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        if let Some(name) = name {
            self.check_name(name)?;
        }
        match self.readiness() {
            Readiness::Stopping => return Err(ApiError::stopping()),
            Readiness::Loading { done_bytes, all_bytes } => {
                let percent = (100 * done_bytes).checked_div(all_bytes).unwrap_or(0);
                let message = format!("The model is being loaded: {percent} % of {all_bytes} bytes.");
                return Err(ApiError::unavailable(message, "model_loading", Duration::from_secs(2)));
            }
            Readiness::Failed => {
                return Err(ApiError::internal("The engine has failed: the server must be restarted."));
            }
            Readiness::Ready => {}
        }
        self.loaded().ok_or_else(ApiError::stopping)
    }

    pub(crate) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        let options = &self.options;
        if name == options.model || options.aliases.iter().any(|alias| alias == name) {
            return Ok(());
        }
        let message = format!("The model '{}' does not exist. This server has '{}'.", shortened(name), options.model);
        let error = ApiError::new(axum::http::StatusCode::NOT_FOUND, "invalid_request_error", message);
        Err(error.param("model").code("model_not_found"))
    }

    /// How long a client should wait that found the queue full: the time that the queue takes at the pace so far.
    pub(crate) fn retry_after(&self, model: &Model) -> Duration {
        let stats = model.service.stats();
        let turns = (stats.waiting as f64 / stats.slots.max(1) as f64).max(1.0);
        Duration::from_secs_f64((turns * self.metrics.mean_run_s()).clamp(1.0, 60.0).ceil())
    }
}

/// The beginning of what a stranger wrote, for a message.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
