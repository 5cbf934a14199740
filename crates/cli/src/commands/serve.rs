//! `unicorn serve`: a model behind the OpenAI API.

use std::{
    fs,
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::Context;
use clap::ValueEnum;
use engine::{KvMemory, LoadOptions, ModelFile, Service, ServiceOptions};
use server::{Handle, Limits, Server, ServerOptions, Timeouts, Tls};

use crate::{
    args::{DraftArgs, LoadArgs, ModelArg, PickArgs, TemplateOptions, WeightArgs, parse_bytes, parse_count},
    exit::{INTERRUPTED, usage},
    interrupt,
    model::{load_with, open},
    output::{bytes, note, one_line},
};

/// Rows whose outputs a step can give, at least: requests that score a prompt take as many at a time.
const OUTPUTS: usize = 32;

/// Serves a model to programs and people, through the OpenAI API
///
/// Point Open WebUI, the openai library or any other client of the OpenAI API at the printed URL with /v1 behind it. What
/// the server takes and answers is described at /docs of the same URL; /health, /ready and /metrics are for those who
/// operate it.
///
/// Many clients are answered together: every step of the model takes a token of each answer that is being written and
/// fills up with pieces of new prompts. What was computed for one prompt is not computed again for the next that begins
/// with the same words.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn serve -m smollm2-135m
  unicorn serve -m model.gguf --port 8080 --slots 16 --ctx 8192
  unicorn serve -m model.gguf --temperature 0.6 --top-p 0.95 --template-var enable_thinking=false
  UNICORN_API_KEY=secret unicorn serve -m model.gguf --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem
  unicorn serve -m model.gguf --api-keys keys.txt --cors https://chat.example

Off loopback a key is required (--api-keys or $UNICORN_API_KEY), or --no-auth.
SIGTERM or Ctrl-C stops gracefully: nothing new is taken, what runs may finish within --grace seconds, and the exit code \
is 0. A second one ends the program at once.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Name or address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(short, long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Name of the model for clients [default: that of its file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A further name that means the same model; repeatable
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    #[command(flatten)]
    batching: BatchingArgs,
    #[command(flatten)]
    template: TemplateOptions,
    /// What is taken where a request does not say.
    #[command(flatten)]
    pick: PickArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    bounds: BoundArgs,
    /// What is logged to stderr, and everything more severe
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    log: LogLevel,
    /// Logs one JSON object a line
    #[arg(long)]
    log_json: bool,
    #[command(flatten)]
    drafts: DraftArgs,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// How many are answered at once, and in how much memory.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Batching")]
struct BatchingArgs {
    /// Answers written at the same time, at most
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_count)]
    slots: usize,
    /// Answers that wait for a slot, at most; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse_count)]
    queue: usize,
    /// Memory of the KV cache, as 8GiB or 500MB: what full contexts do not need keeps what was computed for others to
    /// go on from [default: a quarter of what is free; one full context at least]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    kv_memory: Option<u64>,
    /// Milliseconds between two tokens of an answer that the prompts of others shall not exceed
    #[arg(long, value_name = "MS", default_value_t = 250)]
    gap: u64,
}

/// Who may use it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Access")]
struct AccessArgs {
    /// File with API keys, one a line, of which clients must show one; those of $UNICORN_API_KEY, separated by commas,
    /// count too
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Lets everyone in that reaches the address, off loopback too
    #[arg(long)]
    no_auth: bool,
    /// Origin of web pages that may use the server, scheme and host, or * for all; repeatable [default: pages of this
    /// machine]
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Certificate chain for HTTPS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key for HTTPS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// What is taken at most, and for how long.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct BoundArgs {
    /// Bytes of a request, as 32MiB
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = parse_bytes)]
    max_body: u64,
    /// Tokens of a prompt [default: the context]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    max_prompt_tokens: Option<usize>,
    /// Tokens of an answer: the default of requests that name none, and more are refused [default: the context]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    max_answer_tokens: Option<usize>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = parse_count)]
    max_connections: usize,
    /// Seconds that an answer may take, from the request on
    #[arg(long, value_name = "S", default_value_t = 1800)]
    timeout: u64,
    /// Seconds that answers may go on when the server is stopped
    #[arg(long, value_name = "S", default_value_t = 30)]
    grace: u64,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<LogLevel> for tracing_subscriber::filter::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

impl ServeArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let mut file = open(self.model.model.as_deref())?;
        self.template.apply(&mut file)?;
        let server = Server::bind(self.server_options(&file)?).map_err(|error| usage(error.to_string()))?;
        self.start_log();
        let handle = server.handle();
        let url = server.url();
        stop_on_signals(handle.clone())?;
        note(format_args!("listening on {url}, loading {}", one_line(file.short_name())));
        let failure = Arc::new(Mutex::new(None));
        let loader = self.load_behind(file, handle, url, failure.clone())?;
        server.run_blocking(std::future::pending())?;
        // Where it was stopped while it loads, nobody waits for the model any more.
        if loader.is_finished() && loader.join().is_err() {
            anyhow::bail!("loading the model failed");
        }
        match failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            Some(error) => Err(error),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    fn server_options(&self, file: &ModelFile) -> anyhow::Result<ServerOptions> {
        let (access, bounds) = (&self.access, &self.bounds);
        let own = file.short_name();
        let name = self.name.clone().unwrap_or_else(|| own.strip_suffix(".gguf").unwrap_or(own).to_owned());
        let body_bytes = usize::try_from(bounds.max_body).unwrap_or(usize::MAX);
        let limits = Limits::default();
        // As with OpenAI, where the flags say nothing.
        let sampler = self.pick.options(1.0, 1.0);
        sampler.check(usize::MAX)?;
        Ok(ServerOptions {
            host: self.host.clone(),
            port: self.port,
            model: name,
            aliases: self.alias.clone(),
            api_keys: access.keys()?,
            no_auth: access.no_auth,
            cors_origins: access.cors.clone(),
            tls: access
                .tls_cert
                .clone()
                .zip(access.tls_key.clone())
                .map(|(certificates, key)| Tls { certificates, key }),
            sampler,
            limits: Limits {
                body_bytes,
                bodies_bytes: limits.bodies_bytes.max(body_bytes),
                prompt_tokens: bounds.max_prompt_tokens,
                answer_tokens: bounds.max_answer_tokens,
                connections: bounds.max_connections,
                ..limits
            },
            timeouts: Timeouts {
                request: Duration::from_secs(bounds.timeout),
                grace: Duration::from_secs(bounds.grace),
                ..Timeouts::default()
            },
        })
    }

    fn start_log(&self) {
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::from(self.log))
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        if self.log_json {
            log.json().flatten_event(true).init();
        } else {
            log.init();
        }
    }

    fn load_options(&self) -> LoadOptions {
        LoadOptions {
            sequences: self.batching.slots,
            outputs: self.batching.slots.max(OUTPUTS),
            kv_memory: self.batching.kv_memory.map_or(KvMemory::Quarter, KvMemory::Bytes),
            ..self.load.generating(&self.drafts)
        }
    }

    /// Loads while the server answers that it is loading; a failure stops the server.
    fn load_behind(
        &self,
        file: ModelFile,
        handle: Handle,
        url: String,
        failure: Arc<Mutex<Option<anyhow::Error>>>,
    ) -> anyhow::Result<std::thread::JoinHandle<()>> {
        let (options, slots) = (self.load_options(), self.batching.slots);
        let service = ServiceOptions { queue: self.batching.queue, gap: Duration::from_millis(self.batching.gap) };
        let weights = self.weights.clone();
        let work = move || {
            let loaded = weights.apply(file, options.threads, false).and_then(|file| {
                load_with(&file, &options, "--ctx", false, &mut |done, all| handle.loading(done, all))
            });
            let ready = loaded.and_then(|loaded| {
                let kv: u64 = loaded.engine.plan().bytes.iter().map(|device| device.kv).sum();
                Ok((Service::start(loaded.engine, service)?, kv))
            });
            match ready {
                Ok((service, kv)) => {
                    handle.ready(service);
                    note(format_args!(
                        "ready: {slots} slots, {} of KV cache; {url}/v1, described at {url}/docs",
                        bytes(kv)
                    ));
                }
                Err(error) => {
                    *failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
                    handle.stop();
                }
            }
        };
        Ok(std::thread::Builder::new().name("load".to_owned()).spawn(work)?)
    }
}

impl AccessArgs {
    fn keys(&self) -> anyhow::Result<Vec<String>> {
        let mut keys = Vec::new();
        if let Some(path) = &self.api_keys {
            let text =
                fs::read_to_string(path).with_context(|| format!("cannot read --api-keys {}", path.display()))?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            if keys.is_empty() {
                return Err(usage(format!("--api-keys {}: there is no key in it", path.display())));
            }
        }
        if let Ok(listed) = std::env::var("UNICORN_API_KEY") {
            keys.extend(listed.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned));
        }
        Ok(keys)
    }
}

/// The first SIGTERM or Ctrl-C stops the server, a second ends the program.
fn stop_on_signals(handle: Handle) -> anyhow::Result<()> {
    let asked = AtomicBool::new(false);
    interrupt::call(move || {
        if asked.swap(true, SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        note("stopping; again to end at once");
        handle.stop();
    })
}
