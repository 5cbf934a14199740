//! The server that is tested: one in this process, or one that runs elsewhere.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use engine::{Engine, KvMemory, LoadOptions, ModelFile, Service, ServiceOptions};
use serde_json::Value;
use server::{Handle, Server, ServerError, ServerOptions};

use crate::{
    cases::Facts,
    check::Checked,
    hostile::Patience,
    http::{Client, Wire},
};

/// Tokens that a sequence of a real model may have, and the sequences that run at once.
const CONTEXT: usize = 1024;
const SLOTS: usize = 8;

/// Sequences that may wait: fewer than the clients ask for at times, so that some are refused.
const QUEUE: usize = 80;

/// Full contexts that the KV cache holds: fewer than there are slots, so that blocks run out.
const CONTEXTS: u64 = 3;

/// For a head and for a body.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a server may take to become idle, or to stop.
const SETTLED: Duration = Duration::from_secs(60);

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// What it is, in words.
    pub(crate) name: String,
    local: Option<Local>,
    /// The process whose memory is looked at.
    process: Option<String>,
}

/// Memory of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Its own.
    pub(crate) own_mib: f64,
    /// With what it has mapped.
    pub(crate) resident_mib: f64,
    /// KV blocks with contents: the system gives their memory when they are first written.
    blocks: f64,
}

/// The first of these, taken one after the other, in which the KV cache is about as full as it ever is.
pub(crate) fn settled(held: &[Held]) -> Option<&Held> {
    let most = held.iter().map(|held| held.blocks).fold(0.0, f64::max);
    held.iter().find(|held| held.blocks >= 0.9 * most)
}

/// A server in this process.
struct Local {
    handle: Handle,
    service: Service,
    thread: JoinHandle<Result<(), ServerError>>,
}

impl Target {
    /// A server that runs elsewhere, at `http://ADDRESS:PORT`, in process `pid` of this machine where that is known.
    pub(crate) fn elsewhere(url: &str, pid: Option<u32>) -> Result<Target, Failure> {
        let address = url.trim_end_matches('/').strip_prefix("http://").unwrap_or(url);
        let address = address.parse().map_err(|error| format!("{url}: {error}; as in http://127.0.0.1:8000"))?;
        Ok(Target { address, name: url.to_owned(), local: None, process: pid.map(|pid| pid.to_string()) })
    }

    /// A server in this process, on a free port, with a model or the speaking fixture.
    pub(crate) fn here(model: Option<PathBuf>) -> Result<Target, Failure> {
        let (engine, name) = match model {
            Some(path) => (load(&path, CONTEXT, 256)?, path.display().to_string()),
            None => {
                let dir = std::env::temp_dir().join(format!("unicorn-load-{}", std::process::id()));
                let engine =
                    testkit::speaking("gemma3", &dir).map_err(Failure::from).and_then(|path| load(&path, 512, 64));
                // The weights stay mapped.
                fs::remove_dir_all(&dir)?;
                (engine?, "the speaking fixture".to_owned())
            }
        };
        let service = Service::start(engine, ServiceOptions { queue: QUEUE, ..ServiceOptions::default() })?;
        let mut options = ServerOptions { port: 0, ..ServerOptions::default() };
        (options.timeouts.header, options.timeouts.body) = (PATIENCE, PATIENCE);
        let server = Server::bind(options)?;
        server.ready(service.clone());
        let (address, handle) = (server.address(), server.handle());
        let thread = std::thread::spawn(move || server.run_blocking(std::future::pending()));
        let local = Some(Local { handle, service, thread });
        Ok(Target { address, name, local, process: Some("self".to_owned()) })
    }

    /// How long the server waits for heads and bodies, where that is known.
    pub(crate) fn patience(&self) -> Patience {
        Patience(self.local.as_ref().map(|_| PATIENCE))
    }

    /// What the server says of its model.
    pub(crate) fn facts(&self) -> Result<Facts, Failure> {
        let reply = Client::new(self.address, SETTLED).ask(&Wire::get("/v1/models"))?;
        let models: Value = serde_json::from_slice(&reply.body)?;
        let model = &models["data"][0];
        let number = |value: &Value| value.as_u64().map(|value| value as usize);
        let (context, vocab) = (number(&model["max_model_len"]), number(&model["unicorn"]["vocab"]));
        let (Some(context), Some(vocab)) = (context, vocab) else { return Err(format!("no model in {models}").into()) };
        Ok(Facts { context, vocab, most_tokens: (context / 16).clamp(1, 32) })
    }

    /// A line of `/metrics`.
    fn metric(&self, name: &str) -> Result<f64, Failure> {
        let reply = Client::new(self.address, SETTLED).ask(&Wire::get("/metrics"))?;
        let text = String::from_utf8(reply.body)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.ok_or_else(|| format!("no {name} in /metrics"))?.parse()?)
    }

    /// What the server's process holds, and how many KV blocks have been written so far; `None` where it cannot be known.
    ///
    /// Pages of the mapped model come in as they are looked up, are bounded by the file and can be dropped by the
    /// system: they do not count (RssAnon of proc_pid_status(5)).
    pub(crate) fn held(&self) -> Option<Held> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.as_ref()?)).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse().ok()
        };
        let (own, resident): (f64, f64) = (kib("RssAnon:")?, kib("VmRSS:")?);
        let blocks = self.metric("unicorn_kv_blocks_used").ok()? + self.metric("unicorn_kv_blocks_cached").ok()?;
        Some(Held { own_mib: own / 1024.0, resident_mib: resident / 1024.0, blocks })
    }

    /// The totals that tell how the engine was used, in words.
    pub(crate) fn books(&self) -> Result<String, Failure> {
        let of = |name: &str| self.metric(name);
        Ok(format!(
            "engine: {} tokens generated, {} of prompts, {} of them found in the cache; {} steps of {:.1} rows; {} preemptions",
            of("unicorn_generated_tokens_total")?,
            of("unicorn_prompt_tokens_total")?,
            of("unicorn_prefix_cache_hit_tokens_total")?,
            of("unicorn_steps_total")?,
            of("unicorn_step_rows_total")? / of("unicorn_steps_total")?.max(1.0),
            of("unicorn_preemptions_total")?,
        ))
    }

    /// Nothing runs, nothing waits, nothing is held, and no connection is left but the one that asks.
    pub(crate) fn check_idle(&self) -> Checked {
        let start = Instant::now();
        loop {
            let state = self.state().map_err(|error| error.to_string())?;
            if state.iter().all(|(_, value, most)| value <= most) {
                return Ok(());
            }
            if start.elapsed() > SETTLED {
                return Err(format!("not idle after {} s: {state:?}", SETTLED.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What must come to nothing: names, values, and what may be left.
    fn state(&self) -> Result<Vec<(&'static str, f64, f64)>, Failure> {
        let mut state = Vec::new();
        for (name, most) in [
            ("unicorn_running", 0.0),
            ("unicorn_waiting", 0.0),
            ("unicorn_kv_blocks_used", 0.0),
            ("unicorn_connections", 1.0),
        ] {
            state.push((name, self.metric(name)?, most));
        }
        if let Some(local) = &self.local {
            let stats = local.service.stats();
            state.push(("Stats::running", stats.running as f64, 0.0));
            state.push(("Stats::waiting", stats.waiting as f64, 0.0));
            state.push(("Stats::kv_blocks_used", stats.kv_blocks_used as f64, 0.0));
        }
        Ok(state)
    }

    /// Ends a server of this process, which must end without an error and answer nobody afterwards.
    pub(crate) fn stop(self) -> Checked {
        let Some(local) = self.local else { return Ok(()) };
        let start = Instant::now();
        local.handle.stop();
        while !local.thread.is_finished() {
            if start.elapsed() > SETTLED {
                return Err("the server does not stop".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        local.thread.join().map_err(|_| "the server panicked")?.map_err(|error| error.to_string())?;
        match std::net::TcpStream::connect(self.address) {
            Ok(_) => Err("someone still listens".to_owned()),
            Err(_) => Ok(()),
        }
    }
}

fn load(path: &std::path::Path, context: usize, chunk: usize) -> Result<Engine, Failure> {
    let file = ModelFile::open(path)?;
    let options = |kv_memory| LoadOptions {
        context: Some(context),
        sequences: SLOTS,
        outputs: 32,
        chunk,
        kv_memory,
        ..LoadOptions::default()
    };
    // What a full context of every slot takes is known from a plan.
    let (_, plan) = file.plan(&options(KvMemory::Contexts), false)?;
    let all: u64 = plan.bytes.iter().map(|bytes| bytes.kv).sum();
    Ok(Engine::load(&file, &options(KvMemory::Bytes(all * CONTEXTS / SLOTS as u64)), &mut |_, _| ())?)
}
