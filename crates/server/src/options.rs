//! How a server is set up.

use std::{path::PathBuf, time::Duration};

use engine::SamplerOptions;

/// Where a server listens, whom it lets in, and what it takes at most.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name or address to listen on.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Name of the model, as clients write it in `model`.
    pub model: String,
    /// Further names that mean the same model.
    pub aliases: Vec<String>,
    /// Keys of which a client must show one. Empty lets everyone in, and is refused off loopback unless `no_auth`.
    pub api_keys: Vec<String>,
    /// Lets everyone in that reaches the address, wherever from.
    pub no_auth: bool,
    /// Origins of web pages that may use the server, as `https://chat.example`, besides those of this machine. `*` is
    /// every page.
    pub cors_origins: Vec<String>,
    /// Certificate and key for HTTPS.
    pub tls: Option<Tls>,
    /// How tokens are picked where a request does not say.
    pub sampler: SamplerOptions,
    /// Bounds on what is taken.
    pub limits: Limits,
    /// Bounds on how long it may take.
    pub timeouts: Timeouts,
}

/// Files of a certificate chain and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The chain, the server's own certificate first.
    pub certificates: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Bounds on what is taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of the bodies that are being read and parsed, all together.
    pub bodies_bytes: usize,
    /// Values in a request's JSON: a parsed value takes some 80 bytes however short it was written.
    pub json_values: usize,
    /// Connections at once; further ones wait in the system's queue.
    pub connections: usize,
    /// Tokens of a prompt; `None` is the context.
    pub prompt_tokens: Option<usize>,
    /// Tokens of an answer. A request that asks for more is refused, one that names no number gets this one.
    pub answer_tokens: Option<usize>,
    /// Answers a request may ask for (`n`).
    pub choices: usize,
    /// Answers of one `/v1/completions` request, to all its prompts, and texts of one `/v1/embeddings` request.
    pub prompts: usize,
    /// Bytes of an answer that wait for a client that reads too slowly; beyond, the answer is broken off.
    pub unread_bytes: usize,
}

/// Bounds on how long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the head of a request, from the connection or the answer before it.
    pub header: Duration,
    /// For the whole body of a request.
    pub body: Duration,
    /// Without a byte that the client takes, while there are some for it.
    pub write: Duration,
    /// For an answer, from the request on. What is there by then is returned.
    pub request: Duration,
    /// Silence in a stream, after which a comment is sent to keep the connection.
    pub keep_alive: Duration,
    /// For what is running when the server is told to stop.
    pub grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            model: "model".to_owned(),
            aliases: Vec::new(),
            api_keys: Vec::new(),
            no_auth: false,
            cors_origins: Vec::new(),
            tls: None,
            // As with OpenAI.
            sampler: SamplerOptions { temperature: 1.0, ..SamplerOptions::default() },
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes: 32 << 20,
            bodies_bytes: 256 << 20,
            json_values: 1_000_000,
            connections: 1024,
            prompt_tokens: None,
            answer_tokens: None,
            choices: 128,
            prompts: 2048,
            unread_bytes: 4 << 20,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            header: Duration::from_secs(30),
            body: Duration::from_secs(60),
            write: Duration::from_secs(30),
            request: Duration::from_secs(30 * 60),
            keep_alive: Duration::from_secs(10),
            grace: Duration::from_secs(30),
        }
    }
}
