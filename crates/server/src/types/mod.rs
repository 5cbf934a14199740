//! What goes over the wire, and what it means.
//!
//! The wire types follow the fields of <https://platform.openai.com/docs/api-reference>; a field that may be one of
//! several types is a [`serde_json::Value`] there, and becomes what it means here, with an error that names its path.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod format;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod responses;
pub(crate) mod responses_input;
pub(crate) mod sampling;
pub(crate) mod tokenize;
pub(crate) mod tools;
pub(crate) mod usage;
