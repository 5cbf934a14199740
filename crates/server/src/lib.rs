//! HTTP over the engine: the OpenAI API, as existing clients speak it.
//!
//! ```text
//!   connection -> listen   limits, TLS, timeouts of the connection
//!              -> observe  request id, log line, counts
//!              -> auth, origin
//!              -> routes/  wire types -> engine::Request -> events -> wire types
//!                              types/                 running.rs    sse.rs
//! ```
//!
//! It knows no tensor and no file format: it sees the engine's [`Service`](engine::Service), which runs on a thread of
//! its own, and nothing below it. It installs no logger (records go through `tracing`) and reads no environment.
//!
//! A [`Server`] listens before the model is loaded: `/health` answers, `/ready` says how far the loading is, and what
//! needs the model is refused with 503 until [`Handle::ready`].
//!
//! ```no_run
//! use engine::{Engine, LoadOptions, ModelFile, Service, ServiceOptions};
//! use server::{Server, ServerOptions};
//!
//! let server = Server::bind(ServerOptions { model: "gemma".to_owned(), ..ServerOptions::default() })?;
//! let handle = server.handle();
//! println!("listening on {}", server.url());
//! std::thread::spawn(move || {
//!     let file = ModelFile::open("model.gguf".as_ref()).unwrap();
//!     let progress = handle.clone();
//!     let engine = Engine::load(&file, &LoadOptions::default(), &mut |done, all| progress.loading(done, all));
//!     handle.ready(Service::start(engine.unwrap(), ServiceOptions::default()).unwrap());
//! });
//! server.run_blocking(std::future::pending())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is decided here, where OpenAI's reference leaves room:
//!
//! - A field that OpenAI or another local server knows and this one does not serve is a 400 that names it, unless it
//!   carries the value that asks for nothing (`"store": false`). A field that nobody knows is ignored, for clients add
//!   their own, and listed in the answer under `unicorn.ignored`.
//! - `temperature` is 1 where none is given, as with OpenAI, and `max_tokens` of `/v1/completions` is 16.
//! - `model` may be left out; a name that is not served is a 404.
//! - An answer that meets the end of the context ends with `finish_reason` `length`; a prompt that exceeds it is a 400.
//! - Without a `seed`, each request draws one.
#![forbid(unsafe_code)]

mod auth;
mod body;
mod calls;
mod dialogue;
mod error;
mod feed;
mod ids;
mod listen;
mod metrics;
mod observe;
mod openapi;
mod options;
mod origin;
mod prepare;
mod routes;
mod running;
mod server;
mod sse;
mod state;
mod told;
mod types;

pub use error::ServerError;
pub use openapi::openapi_json;
pub use options::{Limits, ServerOptions, Timeouts, Tls};
pub use server::{Handle, Server};
