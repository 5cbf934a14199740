//! A hub in a thread: the four routes that the client uses, and the ways in which servers fail.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{Hub, HubOptions};

/// The commit that the fake hub names.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of the fake repository `org/repo`.
#[derive(Clone, Default)]
pub(crate) struct FakeFile {
    pub(crate) body: Vec<u8>,
    /// In large file storage: served through a redirect to `storage`, with a digest.
    pub(crate) lfs: bool,
    /// State this digest instead of the true one.
    pub(crate) claimed_sha256: Option<String>,
    /// State this size instead of the true one.
    pub(crate) claimed_bytes: Option<u64>,
}

/// What the fake hub serves, and how.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    pub(crate) files: BTreeMap<String, FakeFile>,
    /// Names listed that have no file behind them.
    pub(crate) listed_only: Vec<String>,
    /// Sent instead of the listing.
    pub(crate) listing: Option<String>,
    /// Answer every request under `/api/` and `/org/` with this status and this `X-Error-Code`.
    pub(crate) refuse: Option<(u16, &'static str)>,
    /// Refuse with 401 what does not carry this token.
    pub(crate) token: Option<&'static str>,
    /// Close the connection after so many body bytes, for so many file transfers.
    pub(crate) cut: Option<(usize, usize)>,
    /// Answer so many file transfers with 503 first.
    pub(crate) unavailable: usize,
    /// Send the whole file whatever range is asked for.
    pub(crate) ignore_range: bool,
    /// Send another part of the file than the range asked for.
    pub(crate) wrong_range: bool,
    /// Where large files are redirected to; this server's own `/cdn/` if not set.
    pub(crate) storage: Option<String>,
}

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// A running fake hub. Its thread ends with the test process.
pub(crate) struct FakeHub {
    pub(crate) url: String,
    pub(crate) behaviour: Arc<Mutex<Behaviour>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl FakeHub {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let hub = Self { url, behaviour: Arc::new(Mutex::new(behaviour)), seen: Arc::default() };
        let (behaviour, seen, url) = (hub.behaviour.clone(), hub.seen.clone(), hub.url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &behaviour, &seen, &url);
            }
        });
        hub
    }

    pub(crate) fn client(&self) -> Hub {
        self.client_with_token(None)
    }

    pub(crate) fn client_with_token(&self, token: Option<&str>) -> Hub {
        let token = token.map(Into::into);
        Hub::new(HubOptions { endpoint: self.url.clone(), token, retries: 2, retry_delay: Duration::from_millis(1) })
            .expect("a valid endpoint")
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// Ranges of the `GET` requests that reached the bytes of a file.
    pub(crate) fn transfers(&self) -> Vec<Option<String>> {
        let to_file = |s: &&Seen| s.method == "GET" && s.path.starts_with("/cdn/");
        self.seen().iter().filter(to_file).map(|s| s.range.clone()).collect()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().expect("not poisoned"));
    }
}

pub(crate) fn lfs(body: &[u8]) -> FakeFile {
    FakeFile { body: body.to_vec(), lfs: true, ..FakeFile::default() }
}

pub(crate) fn small(body: &[u8]) -> FakeFile {
    FakeFile { body: body.to_vec(), ..FakeFile::default() }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One request on one connection, closed after the answer.
fn serve(mut stream: TcpStream, behaviour: &Mutex<Behaviour>, seen: &Mutex<Vec<Seen>>, url: &str) {
    let Some(request) = read_request(&stream) else { return };
    seen.lock().expect("not poisoned").push(request.clone());
    let mut behaviour = behaviour.lock().expect("not poisoned");
    // A client that has gone away is not the server's failure.
    let _ = answer(&mut stream, &request, &mut behaviour, url);
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut seen = Seen { method, path, range: None, authorization: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Some(seen) };
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.range = Some(value.to_string()),
            "authorization" => seen.authorization = Some(value.to_string()),
            _ => {}
        }
    }
}

fn answer(stream: &mut TcpStream, request: &Seen, behaviour: &mut Behaviour, url: &str) -> std::io::Result<()> {
    let path = request.path.clone();
    if let Some(name) = path.strip_prefix("/cdn/") {
        return send_file(stream, request, behaviour, name);
    }
    if let Some((status, code)) = behaviour.refuse {
        return send_head(stream, status, &[("x-error-code", code.into()), ("content-length", "0".into())]);
    }
    let authorised = behaviour.token.is_none_or(|t| request.authorization == Some(format!("Bearer {t}")));
    if !authorised {
        return send_head(stream, 401, &[("content-length", "0".into())]);
    }
    if path == "/api/models/org/repo/revision/main" {
        let listing = behaviour.listing.clone().unwrap_or_else(|| listing(behaviour));
        send_head(stream, 200, &[("content-length", listing.len().to_string())])?;
        return stream.write_all(listing.as_bytes());
    }
    if let Some(name) = path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/")) {
        return send_resolve(stream, request, behaviour, name, url);
    }
    if let Some(name) = path.strip_prefix("/moved/") {
        return send_file(stream, request, behaviour, name);
    }
    send_head(stream, 404, &[("content-length", "0".into())])
}

fn listing(behaviour: &Behaviour) -> String {
    let names = behaviour.files.keys().chain(&behaviour.listed_only);
    let siblings: Vec<_> = names.map(|n| serde_json::json!({ "rfilename": n })).collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

/// As the hub does: large files by a redirect to another place, small ones by a relative redirect.
fn send_resolve(
    stream: &mut TcpStream,
    request: &Seen,
    behaviour: &mut Behaviour,
    name: &str,
    url: &str,
) -> std::io::Result<()> {
    let Some(file) = behaviour.files.get(name) else {
        return send_head(stream, 404, &[("x-error-code", "EntryNotFound".into()), ("content-length", "0".into())]);
    };
    if !file.lfs {
        return send_head(stream, 307, &[("location", format!("/moved/{name}")), ("content-length", "0".into())]);
    }
    let bytes = file.claimed_bytes.unwrap_or(file.body.len() as u64);
    let digest = file.claimed_sha256.clone().unwrap_or_else(|| sha256(&file.body));
    let storage = behaviour.storage.clone().unwrap_or_else(|| url.to_string());
    let mut headers = vec![
        ("location", format!("{storage}/cdn/{name}")),
        ("x-linked-size", bytes.to_string()),
        ("x-linked-etag", format!("\"{digest}\"")),
        ("content-length", "0".into()),
    ];
    if request.method == "HEAD" {
        headers.push(("etag", "\"of-the-pointer\"".into()));
    }
    send_head(stream, 302, &headers)
}

/// The bytes of a file, with everything that can go wrong with them.
fn send_file(stream: &mut TcpStream, request: &Seen, behaviour: &mut Behaviour, name: &str) -> std::io::Result<()> {
    let Some(file) = behaviour.files.get(name).cloned() else {
        return send_head(stream, 404, &[("content-length", "0".into())]);
    };
    if behaviour.unavailable > 0 {
        behaviour.unavailable -= 1;
        return send_head(stream, 503, &[("content-length", "0".into())]);
    }
    let total = file.body.len();
    let asked = request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from: usize = if behaviour.ignore_range { 0 } else { asked.unwrap_or(0) };
    if from >= total && from > 0 {
        return send_head(stream, 416, &[("content-length", "0".into())]);
    }
    let body = &file.body[from..];
    let mut headers = vec![("etag", "\"v1-of-file\"".to_string()), ("content-length", body.len().to_string())];
    if from > 0 {
        let start = if behaviour.wrong_range { from - 1 } else { from };
        headers.push(("content-range", format!("bytes {start}-{}/{total}", total - 1)));
    }
    send_head(stream, if from > 0 { 206 } else { 200 }, &headers)?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match &mut behaviour.cut {
        Some((after, times)) if *times > 0 => {
            *times -= 1;
            stream.write_all(&body[..body.len().min(*after)])
        }
        _ => stream.write_all(body),
    }
}

fn send_head(stream: &mut TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())
}
