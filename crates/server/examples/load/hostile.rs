//! What the clients ask for that must be refused, and clients that do not behave.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cases::{Case, Facts, Manner, Wanted},
    http::{Client, Incoming, Wire, connect},
    random::Random,
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Chats with one field that cannot be, and the codes they are refused with.
fn bad_fields() -> [(Value, &'static str); 22] {
    let image = json!([{"type": "image_url", "image_url": {"url": "data:,"}}]);
    let format = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    [
        (json!({"messages": []}), "invalid_value"),
        (json!({"messages": 3}), "invalid_type"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "invalid_value"),
        (json!({"messages": [{"role": "user"}]}), "missing_required_parameter"),
        (json!({"messages": [{"role": "user", "content": image}]}), "unsupported_content"),
        (json!({"max_tokens": 1e99}), "invalid_type"),
        (json!({"max_tokens": -2}), "invalid_value"),
        (json!({"max_tokens": 0}), "invalid_value"),
        (json!({"temperature": "hot"}), "invalid_type"),
        (json!({"temperature": 9}), "invalid_value"),
        (json!({"n": 1000}), "invalid_value"),
        (json!({"stop": [1]}), "invalid_type"),
        (json!({"stream": "yes"}), "invalid_type"),
        (json!({"logit_bias": {"99999999": 1}}), "invalid_value"),
        (json!({"tool_choice": "required"}), "invalid_value"),
        (json!({"store": true}), "unsupported_parameter"),
        (json!({"response_format": {"type": "yaml"}}), "invalid_value"),
        (json!({"response_format": {"type": "regex", "regex": "(("}}), "invalid_format"),
        (json!({"response_format": format(json!({"type": "animal"}))}), "invalid_format"),
        (json!({"response_format": format(json!({"not": {"type": "string"}}))}), "invalid_format"),
        (json!({"response_format": {"type": "regex", "regex": "x".repeat(1 << 20)}}), "invalid_format"),
        (json!({"top_logprobs": 2}), "invalid_value"),
    ]
}

/// A request that must be refused.
pub(crate) fn refused(random: &mut Random, facts: &Facts) -> Case {
    let (wire, status, code) = match random.below(30) {
        0..12 => {
            let (fields, code) = random.pick(&bad_fields()).clone();
            let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
            if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
                body.extend(fields);
            }
            (Wire::post(CHAT, body.to_string()), 400, code)
        }
        12..20 => no_request(random),
        20 => (Wire::post(COMPLETIONS, json!({"prompt": [1, facts.vocab]}).to_string()), 400, "invalid_value"),
        21 => (Wire::post(COMPLETIONS, r#"{"prompt": ""}"#), 400, "invalid_value"),
        22 => (Wire::post("/v1/embeddings", r#"{"input": ""}"#), 400, "invalid_value"),
        23 => (Wire::post("/detokenize", json!({"tokens": [facts.vocab]}).to_string()), 400, "invalid_value"),
        24 => (Wire { method: "GET", ..Wire::post(CHAT, "") }, 405, "method_not_allowed"),
        25 => (Wire { headers: "", ..Wire::post(CHAT, "{}") }, 415, "content_type"),
        26 => (Wire::post("/v1/nothing", "{}"), 404, "unknown_url"),
        27 => (
            Wire::post(CHAT, r#"{"messages": [{"role": "user", "content": "x"}], "model": "no-such"}"#),
            404,
            "model_not_found",
        ),
        _ => beyond(random, facts),
    };
    Case { kind: "must be refused", wire, wanted: Wanted::Refusal(status, code), manner: Manner::Reads }
}

/// Bodies that are no request at all.
fn no_request(random: &mut Random) -> (Wire, u16, &'static str) {
    let deep = 1 << random.between(8, 17);
    let nested = format!(r#"{{"messages": [{{"role": "user", "content": {}"#, "[".repeat(deep));
    let (body, code): (Vec<u8>, _) = match random.below(7) {
        0 => (Vec::new(), "invalid_json"),
        1 => (b"{\"messages\": [}".to_vec(), "invalid_json"),
        2 => (b"{\"messages\": \"\xff\xfe\"}".to_vec(), "invalid_utf8"),
        3 => (b"[]".to_vec(), "invalid_type"),
        4 => (b"{\"messages\": []} more".to_vec(), "invalid_json"),
        5 => (b"null".to_vec(), "invalid_type"),
        _ => (nested.into_bytes(), "invalid_json"),
    };
    (Wire::post(CHAT, body), 400, code)
}

/// Prompts far beyond the context, mostly by a little more than it, rarely by megabytes.
fn beyond(random: &mut Random, facts: &Facts) -> (Wire, u16, &'static str) {
    if random.percent(5) {
        let most = 1_000_000;
        return (Wire::post(COMPLETIONS, json!({"prompt": vec![1; most + 1]}).to_string()), 413, "too_complex");
    }
    let count = if random.percent(10) { 800_000 } else { facts.context * random.between(2, 5) };
    let body = json!({"messages": [{"role": "user", "content": "word ".repeat(count)}]});
    (Wire::post(CHAT, body.to_string()), 400, "context_length_exceeded")
}

/// How long a server that was started here waits for a head or a body; another's own times are longer than a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(pub(crate) Option<Duration>);

/// A client that does not speak HTTP properly, or stops in the middle. What is wrong with the answer, if anything.
pub(crate) fn rude(random: &mut Random, client: &Client, patience: Patience) -> io::Result<Result<(), String>> {
    let most = Duration::from_secs(60);
    let mut stream = connect(client.address(), most)?;
    match random.below(8) {
        0 => {
            // Every byte of the head on its own, and then nothing.
            for byte in b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-le" {
                stream.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(2));
            }
            let Patience(Some(patience)) = patience else { return Ok(Ok(())) };
            let start = Instant::now();
            // The server says nothing, or 408.
            let _ = stream.read_to_end(&mut Vec::new());
            let late = start.elapsed() > patience + Duration::from_secs(30);
            Ok(if late { Err(format!("a head may take {:?}", start.elapsed())) } else { Ok(()) })
        }
        1 => {
            stream.write_all(&half(300))?;
            let Patience(Some(_)) = patience else { return Ok(Ok(())) };
            expect(stream, most, 408)
        }
        2 => {
            stream.write_all(b"SPEAK friend\r\n\r\n")?;
            expect(stream, most, 400)
        }
        3 => {
            let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n", "y".repeat(200_000));
            // It may be refused before all of it is sent.
            let _ = stream.write_all(head.as_bytes());
            match expect(stream, most, 431) {
                // A reset overtakes the answer where bytes are left unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Ok(())),
                result => result,
            }
        }
        4 => {
            let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                        expect: 100-continue\r\ncontent-length: 1099511627776\r\n\r\n";
            stream.write_all(head.as_bytes())?;
            expect(stream, most, 413)
        }
        5 => Ok(Ok(())),
        _ => {
            // Half a body, and gone.
            stream.write_all(&half(random.between(1, 5000)))?;
            Ok(Ok(()))
        }
    }
}

/// A request of which less than half of the body is sent.
fn half(bytes: usize) -> Vec<u8> {
    let length = 2 * bytes + 1;
    let mut text = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    text += &" ".repeat(bytes);
    text.into_bytes()
}

fn expect(stream: std::net::TcpStream, most: Duration, status: u16) -> io::Result<Result<(), String>> {
    let got = Incoming::read_head(io::BufReader::new(stream), Instant::now() + most)?.status;
    Ok(if got == status { Ok(()) } else { Err(format!("status {got} where {status} was due")) })
}
