//! Model names to files: the model list, the hub client and the local directory of models.
//!
//! A user writes `--model smollm2-135m`, `--model org/repo:Q8_0` or `--model ./some.gguf`. This crate turns any of
//! them into a path ([`Store::resolve`]), fetches what is not here yet ([`Store::pull`]), and lists and removes what
//! is ([`Store::list`], [`Store::remove`]).
//!
//! It is not a parser of model files (it never looks inside one) and not a user interface: it prints nothing, reports
//! progress through [`Progress`], and returns typed errors.
//!
//! ```text
//! $UNICORN_HOME/models                  (else $XDG_CACHE_HOME/unicorn/models, else ~/.cache/unicorn/models)
//!   SmolLM2-135M-Instruct.Q4_1.gguf     a file of models.json, fetched by ./quickstart
//!   by-hand.gguf                        a file that someone put here
//!   org/repo/model-Q4_K_M.gguf          pulled from the hub
//!   org/repo/model.gguf.1f2e3d4c.part   a pull that was cut: the next pull goes on from here
//!   org/other/config.json, ...          a Hugging Face directory; config.json is fetched last, so its presence
//!                                       says that the directory is whole
//! ```
//!
//! ```
//! use store::{Store, StoreError};
//!
//! let store = Store::at("/nonexistent/models");
//! match store.resolve("smollm-135m") {
//!     Err(StoreError::NotFound { suggestions, .. }) => assert_eq!(suggestions, ["smollm2-135m"]),
//!     other => panic!("{other:?}"),
//! }
//! ```
//!
//! Fetching, with a client for the endpoint and the token that the environment names:
//!
//! ```no_run
//! use store::{Hub, Store};
//!
//! # fn main() -> Result<(), store::StoreError> {
//! let pulled = Store::open_default()?.pull(&Hub::from_env()?, "org/repo:Q4_K_M", &mut ())?;
//! println!("{}", pulled.path.display());
//! # Ok(())
//! # }
//! ```
//!
//! # What a pull guarantees
//!
//! A file appears under its final name only after its size, and its SHA-256 where the hub states one (every file kept
//! in large file storage, so all weights), have been checked and the bytes are on disk. Until then they are in a
//! `.part` file whose name carries the version being fetched; killing the program at any moment leaves either the
//! `.part` or the finished file. Names and sizes from the server are not trusted: a name is a plain relative path or
//! the pull is refused, no file grows beyond its stated size, and an answer in JSON is read up to a bound. All files
//! of one pull come from one commit. Of a Hugging Face directory that is fetched anew, `config.json` goes first and comes
//! last, and weights of the earlier version go before it comes.
//!
//! # Why not the crate `hf-hub`
//!
//! It was read in versions 0.5.0 (its `ureq` feature) and 1.0.0. Neither checks a SHA-256. 0.5.0 resumes by
//! appending, also when the server ignores the range and sends the whole file; it does not compare the length at the
//! end, joins file names from the server to a path as they come, and reads no `HF_TOKEN`. 1.0.0 needs over 220 crates
//! (an async runtime and the Xet client among them) and over plain HTTP starts a cut file again from its first byte.
//! Both lay files out in a cache of links named by hash, where this crate wants names that a person can read. The
//! client here is the four requests that a pull needs, on `ureq` with `rustls`: 22 crates.
#![forbid(unsafe_code)]

mod download;
mod error;
mod hub;
mod inventory;
mod known;
mod local;
mod names;
mod part;
mod pull;
mod select;
mod store;

pub use error::StoreError;
pub use hub::{Hub, HubOptions};
pub use inventory::{Entry, Kind, Source};
pub use known::{KnownModel, known_models};
pub use pull::{Progress, Pulled};
pub use store::Store;
