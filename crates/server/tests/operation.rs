//! What those who run a server rely on: readiness, keys, origins, limits, timeouts, clients that vanish, and its end.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use common::{Behind, CONTEXT, Coming, MODEL, Site, chat, options, wait_for, with};
use serde_json::{Value, json};
use server::{Server, ServerOptions, Tls};

const CHAT: &str = "/v1/chat/completions";

/// A request that runs until the context is full.
fn long(fields: Value) -> Value {
    chat("go on", with(json!({"ignore_eos": true}), fields))
}

fn with_timeouts(change: impl FnOnce(&mut ServerOptions)) -> ServerOptions {
    let mut options = options();
    change(&mut options);
    options
}

/// A metric's value.
fn metric(site: &Site, name: &str) -> f64 {
    let text = site.handle.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
}

#[test]
fn a_server_answers_while_its_model_is_loaded() {
    let server = Server::bind(options()).unwrap();
    let (address, handle) = (server.address(), server.handle());
    let thread = std::thread::spawn(move || server.run_blocking(std::future::pending()));
    let get = |path| common::send(address, "GET", path, &[], b"").read();
    assert_eq!(get("/health").ok(), json!({"status": "ok"}));
    handle.loading(250, 1000);
    let ready = get("/ready");
    assert_eq!(ready.status, 503);
    let want = json!({"status": "loading", "model": MODEL, "progress": 0.25, "done_bytes": 250, "all_bytes": 1000});
    assert_eq!(ready.json(), want);
    assert_eq!(get("/v1/models").ok()["data"][0]["id"], MODEL);
    let headers = [("content-type", "application/json")];
    let body = chat("hi", json!({"max_tokens": 1})).to_string();
    let refused = common::send(address, "POST", CHAT, &headers, body.as_bytes()).read();
    assert!(refused.header("retry-after").is_some());
    let message = refused.error(503, "model_loading", None);
    assert!(message.contains("25 %"), "{message}");
    handle.ready(common::service(Behind::default()));
    assert_eq!(get("/ready").ok(), json!({"status": "ready", "model": MODEL}));
    common::send(address, "POST", CHAT, &headers, body.as_bytes()).read().ok();
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn keys_are_asked_for() {
    let site = Site::with(with_timeouts(|it| it.api_keys = vec!["sesame".to_owned()]), Behind::default());
    let get = |path: &str, key: Option<&str>| {
        let headers: Vec<(&str, &str)> = key.map(|key| ("authorization", key)).into_iter().collect();
        site.send("GET", path, &headers, b"")
    };
    for path in ["/v1/models", "/metrics", "/made/up"] {
        let refused = get(path, None);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        refused.error(401, "missing_api_key", None);
        get(path, Some("Bearer sesam")).error(401, "invalid_api_key", None);
    }
    get("/v1/models", Some("Bearer sesame")).ok();
    for path in ["/health", "/ready", "/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json"] {
        assert_eq!(get(path, None).status, 200, "{path}");
    }
}

#[test]
fn pages_of_this_machine_are_let_in_and_others_by_name() {
    let named = with_timeouts(|it| it.cors_origins = vec!["https://chat.example".to_owned()]);
    let site = Site::with(named, Behind::default());
    let body = chat("hi", json!({"max_tokens": 1})).to_string();
    let post = |origin: &str| {
        site.send("POST", CHAT, &[("content-type", "application/json"), ("origin", origin)], body.as_bytes())
    };
    for origin in ["http://localhost:3000", "http://127.0.0.1:8080", "https://chat.example"] {
        let reply = post(origin);
        assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
        reply.ok();
        let asked = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        let preflight = site.send("OPTIONS", CHAT, &asked, b"");
        assert_eq!(preflight.status, 200);
        assert_eq!(preflight.header("access-control-allow-origin"), Some(origin));
        assert!(preflight.header("access-control-allow-headers").unwrap().contains("authorization"));
    }
    let refused = post("https://evil.example");
    assert_eq!(refused.header("access-control-allow-origin"), None);
    refused.error(403, "origin_not_allowed", None);
}

#[test]
fn a_name_rebound_to_this_machine_reads_nothing() {
    let get = |site: &Site, host: &str| site.send("GET", "/v1/models", &[("host", host)], b"");
    let site = Site::new();
    for host in ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "127.8.8.8"] {
        assert_eq!(get(&site, host).status, 200, "{host}");
    }
    for host in ["rebound.example", "rebound.example:8000", "localhost.example", "192.168.1.5"] {
        get(&site, host).error(403, "host_not_allowed", None);
    }
    // Who shows a key, or is a page let in by name, may come by any name.
    let keyed = Site::with(with_timeouts(|it| it.api_keys = vec!["k".to_owned()]), Behind::default());
    let headers = [("host", "proxy.example"), ("authorization", "Bearer k")];
    assert_eq!(keyed.send("GET", "/v1/models", &headers, b"").status, 200);
    let named = with_timeouts(|it| it.cors_origins = vec!["https://chat.example".to_owned()]);
    assert_eq!(get(&Site::with(named, Behind::default()), "chat.example").status, 200);
}

#[test]
fn requests_have_ids() {
    let site = Site::new();
    let id = |given: Option<&str>| {
        let headers: Vec<(&str, &str)> = given.map(|id| ("x-request-id", id)).into_iter().collect();
        site.send("GET", "/health", &headers, b"").header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id(Some("my-id.1")), "my-id.1");
    assert!(id(Some("no \"id\"")).starts_with("req_"));
    assert!(id(None).starts_with("req_"));
    assert_ne!(id(None), id(None));
}

#[test]
fn bodies_are_bounded() {
    let site = Site::with(with_timeouts(|it| it.limits.body_bytes = 1000), Behind::default());
    let headers = [("content-type", "application/json")];
    let reply = site.send("POST", CHAT, &headers, &[b' '; 2000]);
    reply.error(413, "body_too_large", None);
    // The length is not said beforehand.
    let mut stream = TcpStream::connect(site.address).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let _ = stream.write_all(&[b"800\r\n".as_slice(), &[b' '; 2048], b"\r\n0\r\n\r\n"].concat());
    Coming::read_head(stream).read().error(413, "body_too_large", None);
    let many = with_timeouts(|it| it.limits.json_values = 100);
    let site = Site::with(many, Behind::default());
    let body = json!({"prompt": vec![1; 200]});
    site.post("/v1/completions", &body).error(413, "too_complex", None);
}

#[test]
fn limits_on_tokens_and_choices_hold() {
    let limits = with_timeouts(|it| {
        it.limits.prompt_tokens = Some(40);
        it.limits.answer_tokens = Some(10);
        it.limits.choices = 2;
        it.limits.prompts = 3;
    });
    let site = Site::with(limits, Behind::default());
    let reply = site.post(CHAT, &long(json!({}))).ok();
    assert_eq!(reply["usage"]["completion_tokens"], 10);
    site.post(CHAT, &long(json!({"max_tokens": 11}))).error(400, "invalid_value", Some("max_tokens"));
    site.post(CHAT, &long(json!({"n": 3}))).error(400, "invalid_value", Some("n"));
    let message =
        site.post(CHAT, &chat(&"word ".repeat(40), json!({}))).error(400, "context_length_exceeded", Some("messages"));
    assert!(message.contains("40"), "{message}");
    let body = json!({"prompt": ["a", "b", "c", "d"]});
    site.post("/v1/completions", &body).error(400, "invalid_value", Some("prompt"));
}

#[test]
fn a_full_queue_is_a_429_that_says_when_to_come_back() {
    let site = Site::with(options(), Behind { slots: 1, queue: 1 });
    let mut streams = Vec::new();
    let mut refused = None;
    for _ in 0..50 {
        let coming = site.open(CHAT, &long(json!({"stream": true})));
        if coming.status == 429 {
            refused = Some(coming.read());
            break;
        }
        streams.push(coming);
    }
    let refused = refused.expect("one slot and one place in the queue");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    refused.error(429, "queue_full", None);
    drop(streams);
    site.wait_until_idle();
}

#[test]
fn a_client_that_vanishes_ends_its_answer_at_once() {
    let site = Site::new();
    for body in [long(json!({"n": 4, "stream": true})), long(json!({"n": 4}))] {
        let headers = "host: localhost\r\ncontent-type: application/json\r\n";
        let mut stream = TcpStream::connect(site.address).unwrap();
        let body = body.to_string();
        let request = format!("POST {CHAT} HTTP/1.1\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).unwrap();
        let before = site.service.stats().generated_tokens;
        wait_for("tokens", || site.service.stats().generated_tokens > before + 8);
        drop(stream);
        site.wait_until_idle();
        let made = site.service.stats().generated_tokens - before;
        assert!(made < 4 * (CONTEXT as u64 - 50), "{made} tokens were made for nobody");
    }
    wait_for("both in the books", || {
        site.handle
            .metrics()
            .contains("unicorn_requests_total{route=\"/v1/chat/completions\",outcome=\"cancelled\"} 2\n")
    });
    assert_eq!(metric(&site, "unicorn_kv_blocks_used"), 0.0);
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_others_are_served() {
    let slow = with_timeouts(|it| {
        it.timeouts.write = Duration::from_millis(300);
        it.limits.unread_bytes = 20_000;
    });
    let site = Site::with(slow, Behind::default());
    let mut stalled = Vec::new();
    for _ in 0..3 {
        // Probabilities make the stream large enough to fill what the system buffers.
        let body = long(json!({"stream": true, "n": 16, "logprobs": true, "top_logprobs": 20}));
        stalled.push(site.open(CHAT, &body));
    }
    let reply = site.post(CHAT, &chat("hi", json!({"max_tokens": 3}))).ok();
    assert_eq!(reply["object"], "chat.completion");
    site.wait_until_idle();
    wait_for("connections to go", || metric(&site, "unicorn_connections") == 0.0);
    drop(stalled);
}

#[test]
fn clients_that_send_too_slowly_are_cut_off() {
    let impatient = with_timeouts(|it| {
        it.timeouts.header = Duration::from_millis(300);
        it.timeouts.body = Duration::from_millis(300);
    });
    let site = Site::with(impatient, Behind::default());
    // A head that never ends.
    let mut head = TcpStream::connect(site.address).unwrap();
    head.set_read_timeout(Some(common::PATIENCE)).unwrap();
    head.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    let waited = head.read_to_end(&mut Vec::new()).err().map(|error| error.kind());
    assert!(!matches!(waited, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "the connection is still open");
    // A body that never ends.
    let mut body = TcpStream::connect(site.address).unwrap();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    body.write_all(request.as_bytes()).unwrap();
    Coming::read_head(body).read().error(408, "body_timeout", None);
    wait_for("connections to go", || metric(&site, "unicorn_connections") == 0.0);
}

#[test]
fn connections_beyond_the_limit_wait() {
    let few = with_timeouts(|it| it.limits.connections = 2);
    let site = Site::with(few, Behind::default());
    let idle: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(site.address).unwrap()).collect();
    wait_for("both connections", || metric(&site, "unicorn_connections") == 2.0);
    let address = site.address;
    let third = std::thread::spawn(move || common::send(address, "GET", "/health", &[], b"").read().status);
    std::thread::sleep(Duration::from_millis(200));
    assert!(!third.is_finished());
    drop(idle);
    assert_eq!(third.join().unwrap(), 200);
}

#[test]
fn a_request_that_takes_too_long_returns_what_there_is() {
    let hasty = with_timeouts(|it| it.timeouts.request = Duration::from_millis(60));
    let site = Site::with(hasty, Behind::default());
    let reply = site.post(CHAT, &long(json!({"n": 8})));
    // So early that nothing was made is possible, and said.
    if reply.status != 200 {
        reply.error(503, "timeout", None);
        return;
    }
    let finish = reply.json()["unicorn"]["finish"].clone();
    let known = |reason: &Value| ["deadline", "context", "length"].contains(&reason.as_str().unwrap());
    assert!(finish.as_array().unwrap().iter().all(known), "{finish}");
}

#[test]
fn silence_is_filled_with_comments() {
    let site = Site::with(with_timeouts(|it| it.timeouts.keep_alive = Duration::from_millis(1)), Behind::default());
    let text = site.post(CHAT, &long(json!({"stream": true, "n": 4}))).text().to_owned();
    assert!(text.contains(": keep-alive\n\n"));
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_server_that_is_stopped_finishes_what_runs() {
    let site = Site::new();
    let handle = site.handle.clone();
    let mut coming = site.open(CHAT, &long(json!({"stream": true})));
    assert!(!coming.chunk().is_empty());
    handle.stop();
    let rest = coming.read();
    assert!(rest.text().ends_with("data: [DONE]\n\n"), "{}", rest.text());
    assert!(rest.text().contains("\"finish_reason\":\"length\""), "{}", rest.text());
    let address = site.address;
    site.stop();
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn a_server_that_is_stopped_finishes_all_prompts_of_a_request() {
    let site = Site::with(options(), Behind { slots: 1, queue: 4 });
    let (handle, address) = (site.handle.clone(), site.address);
    let prompts: Vec<String> = (0..8).map(|number| format!("prompt {number}")).collect();
    let body = json!({"model": common::MODEL, "prompt": prompts, "max_tokens": 40, "ignore_eos": true});
    let client = std::thread::spawn(move || {
        let headers = [("content-type", "application/json")];
        common::send(address, "POST", "/v1/completions", &headers, body.to_string().as_bytes()).read().ok()
    });
    site.wait_until_busy(2);
    handle.stop();
    let reply = client.join().unwrap();
    assert_eq!(reply["usage"]["completion_tokens"], 8 * 40, "{reply}");
    site.stop();
}

#[test]
fn a_server_that_is_stopped_does_not_wait_for_ever() {
    let site = Site::with(with_timeouts(|it| it.timeouts.grace = Duration::ZERO), Behind { slots: 2, queue: 64 });
    let coming = site.open(CHAT, &long(json!({"stream": true, "n": 60})));
    let idle = TcpStream::connect(site.address).unwrap();
    let text = std::thread::spawn(move || coming.read().text().to_owned());
    site.stop();
    let text = text.join().unwrap();
    assert!(text.contains("\"code\":\"stopping\"") || text.contains("\"finish_reason\":\"length\""), "{text}");
    drop(idle);
}

#[test]
fn metrics_count_what_happened() {
    let site = Site::new();
    site.post(CHAT, &chat("the sea", json!({"max_tokens": 5, "ignore_eos": true}))).ok();
    site.post(CHAT, &chat("the sea", json!({"max_tokens": 5, "stream": true, "ignore_eos": true}))).events();
    site.post(CHAT, &json!({})).error(400, "missing_required_parameter", Some("messages"));
    site.get("/made/up").error(404, "unknown_url", None);
    let text = site.get("/metrics");
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    wait_for("all in the books", || {
        let text = site.handle.metrics();
        [
            "unicorn_requests_total{route=\"/v1/chat/completions\",outcome=\"ok\"} 2\n",
            "unicorn_requests_total{route=\"/v1/chat/completions\",outcome=\"refused\"} 1\n",
            "unicorn_requests_total{route=\"other\",outcome=\"refused\"} 1\n",
            "unicorn_time_to_first_token_seconds_count 2\n",
            "unicorn_time_per_output_token_seconds_count 2\n",
            "unicorn_queue_wait_seconds_count 2\n",
        ]
        .iter()
        .all(|line| text.contains(line))
    });
    // The engine writes its books after it has told the last token.
    wait_for("the engine's books", || metric(&site, "unicorn_generated_tokens_total") == 10.0);
    assert!(metric(&site, "unicorn_prompt_tokens_total") > 10.0);
    assert!(metric(&site, "unicorn_kv_blocks") > 0.0);
    assert_eq!(metric(&site, "unicorn_slots"), 4.0);
    site.wait_until_idle();
    assert_eq!(metric(&site, "unicorn_running"), 0.0);
}

#[test]
fn the_documentation_needs_nothing_from_elsewhere() {
    let site = Site::new();
    let page = site.get("/docs");
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for path in ["/docs", "/docs/docs.js", "/docs/docs.css"] {
        let text = site.get(path).text().to_owned();
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("//cdn"), "{path}");
    }
    let description = site.get("/openapi.json").ok();
    for path in
        ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses", "/tokenize"]
    {
        assert!(description["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn https_with_a_certificate_given() {
    let file = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name);
    let files = Tls { certificates: file("localhost.pem"), key: file("localhost.key") };
    let site = Site::with(with_timeouts(|it| it.tls = Some(files)), Behind::default());
    let certificate = std::fs::read(file("localhost.pem")).unwrap();
    let mut stream = tls_client(site.address, &certificate);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("{\"status\":\"ok\"}"), "{text}");
    // What speaks no TLS gets no answer, and does no harm.
    let mut plain = TcpStream::connect(site.address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"));
}

/// A connection that trusts this certificate alone.
fn tls_client(
    address: std::net::SocketAddr,
    certificate: &[u8],
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap())
}
