//! A server on a free port of this machine, with a real engine on a fixture, and a client that is as small as HTTP/1.1
//! allows.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use engine::{Engine, KvMemory, LoadOptions, ModelFile, Service, ServiceOptions};
use serde_json::{Value, json};
use server::{Handle, Server, ServerError, ServerOptions};

/// Tokens that a sequence of the test model may have.
pub(crate) const CONTEXT: usize = 512;

/// The name of the test model.
pub(crate) const MODEL: &str = "speaker";

/// The device of the engine: the CPU, or the one that `UNICORN_TEST_DEVICE` names as `--device` would.
pub(crate) fn device() -> String {
    std::env::var("UNICORN_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// Whether two answers are the same. A card adds in the order, and in halves where it has matrix units, as the batch's
/// shape asks for, so there numbers that are not counts may differ by its rounding (0.002 was seen); on the CPU they are
/// equal.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Number(x), Value::Number(y)) if device() != "cpu" && x.is_f64() && y.is_f64() => {
            (x.as_f64().unwrap() - y.as_f64().unwrap()).abs() < 0.01
        }
        _ => a == b,
    }
}

/// A server at work. Dropped, it is stopped, and must stop without an error.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) service: Service,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// How the engine behind a site is made.
#[derive(Clone, Copy)]
pub(crate) struct Behind {
    pub(crate) slots: usize,
    pub(crate) queue: usize,
}

impl Default for Behind {
    fn default() -> Behind {
        Behind { slots: 4, queue: 64 }
    }
}

/// An engine on a fixture that has words. It is loaded by a thread that ends before its device does, as `unicorn serve`
/// loads it: see the page of the crate `vulkan` on threads.
pub(crate) fn service(behind: Behind) -> Service {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("server-{}-{call}", std::process::id()));
    let file = ModelFile::open(&testkit::speaking("gemma3", &dir).unwrap()).unwrap();
    let options = LoadOptions {
        device: device(),
        threads: Some(2),
        context: Some(CONTEXT),
        sequences: behind.slots,
        outputs: behind.slots.max(4),
        chunk: 64,
        // Room for what earlier requests have left.
        kv_memory: KvMemory::Bytes(32 << 20),
        ..LoadOptions::default()
    };
    let load = std::thread::spawn(move || Engine::load(&file, &options, &mut |_, _| ()).unwrap());
    let engine = load.join().unwrap();
    // The weights stay mapped.
    std::fs::remove_dir_all(&dir).unwrap();
    let options = ServiceOptions { queue: behind.queue, ..ServiceOptions::default() };
    Service::start(engine, options).unwrap()
}

pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        port: 0,
        model: MODEL.to_owned(),
        aliases: vec!["other-name".to_owned()],
        ..ServerOptions::default()
    }
}

impl Site {
    pub(crate) fn new() -> Site {
        Site::with(options(), Behind::default())
    }

    pub(crate) fn with(options: ServerOptions, behind: Behind) -> Site {
        let service = service(behind);
        let server = Server::bind(options).unwrap();
        server.ready(service.clone());
        let (address, handle) = (server.address(), server.handle());
        let thread = std::thread::spawn(move || server.run_blocking(std::future::pending()));
        Site { address, handle, service, thread: Some(thread) }
    }

    /// Stops the server and waits for it.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        send(self.address, method, path, headers, body).read()
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Sends a request whose answer is read as it comes.
    pub(crate) fn open(&self, path: &str, body: &Value) -> Coming {
        let headers = [("content-type", "application/json")];
        send(self.address, "POST", path, &headers, body.to_string().as_bytes())
    }

    /// Waits until nothing runs and nothing waits.
    #[track_caller]
    pub(crate) fn wait_until_idle(&self) {
        wait_for("an idle engine", || {
            let stats = self.service.stats();
            stats.running == 0 && stats.waiting == 0
        });
    }

    /// Waits until `count` sequences run or wait.
    #[track_caller]
    pub(crate) fn wait_until_busy(&self, count: usize) {
        wait_for("a busy engine", || {
            let stats = self.service.stats();
            stats.running + stats.waiting >= count
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// How long a test waits for what may take any time on a busy machine, before it calls it stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An answer whose head is read.
pub(crate) struct Coming {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    chunked: bool,
    length: Option<usize>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// Sends a request with `connection: close` and reads the head of the answer.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Coming {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses a body early may close before it has all of it.
    let _ = stream.write_all(body);
    Coming::read_head(stream)
}

impl Coming {
    pub(crate) fn read_head(stream: TcpStream) -> Coming {
        let mut stream = BufReader::new(stream);
        let status = line(&mut stream);
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("{status:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = line(&mut stream);
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let find = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let chunked = find("transfer-encoding").is_some_and(|coding| coding == "chunked");
        let length = find("content-length").map(|length| length.parse().unwrap());
        Coming { status, headers, stream, chunked, length }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The next chunk; empty at the end.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let size = usize::from_str_radix(&line(&mut self.stream), 16).unwrap();
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk).unwrap();
        assert_eq!(line(&mut self.stream), "");
        chunk
    }

    pub(crate) fn read(mut self) -> Reply {
        let mut body = Vec::new();
        if self.chunked {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
        } else if let Some(length) = self.length {
            body = vec![0; length];
            self.stream.read_exact(&mut body).unwrap();
        } else {
            self.stream.read_to_end(&mut body).unwrap();
        }
        Reply { status: self.status, headers: self.headers, body }
    }
}

fn line(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line.trim_end_matches(['\r', '\n']).to_owned()
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It went well; returns the body.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// It is an error in OpenAI's shape, with this status, code and field; returns the message.
    #[track_caller]
    pub(crate) fn error(&self, status: u16, code: &str, param: Option<&str>) -> String {
        let body = self.json();
        let error = &body["error"];
        let got = (self.status, error["code"].as_str(), error["param"].as_str());
        assert_eq!(got, (status, Some(code), param), "{body}");
        assert!(error["type"].is_string(), "{body}");
        assert!(error.get("param").is_some(), "clients read it: {body}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty());
        message.to_owned()
    }

    /// The `data:` of each event, without `[DONE]`, which must be the last.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let mut data: Vec<&str> = self.text().split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text());
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// A request of one message from the user.
pub(crate) fn chat(text: &str, fields: Value) -> Value {
    with(json!({"model": MODEL, "messages": [{"role": "user", "content": text}]}), fields)
}

/// An object with more fields.
pub(crate) fn with(mut object: Value, fields: Value) -> Value {
    object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    object
}
